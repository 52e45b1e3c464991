//! The backend's options in the network configuration.

use flannel_core::json::{JsonError, Object};
use flannel_core::{BackendConfig, BackendError, NetworkConfig};

/// The validated options of the VXLAN backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VxlanConfig {
    /// The VXLAN network identifier, 24 bits (RFC 7348, section 5).
    pub(crate) vni: u32,
    /// The UDP port, if given.
    pub(crate) port: Option<u16>,
    /// Whether the Group Based Policy extension is enabled.
    pub(crate) gbp: bool,
    /// Whether the device learns addresses from the packets it receives.
    pub(crate) learning: bool,
    /// The MTU to assume for the external interface, in bytes.
    pub(crate) mtu: Option<u32>,
    /// Whether peers on the same link are reached without encapsulation.
    pub(crate) direct_routing: bool,
}

/// The kernel's default (`drivers/net/vxlan/vxlan_core.c`, `vxlan_port`).
const DEFAULT_PORT: u16 = 8472;

/// The largest VNI, without and with IPv6, whose device name `flannel-v6.<VNI>` or `flannel.<VNI>` fits into the kernel's 15 bytes
/// (`IFNAMSIZ`, `include/uapi/linux/if.h`).
const LARGEST_VNI: [(bool, u64); 2] = [(false, 9_999_999), (true, 9_999)];

impl VxlanConfig {
    /// Reads the options. Ignores unknown ones.
    pub(crate) fn parse(backend: &BackendConfig, has_ipv6: bool) -> Result<Self, BackendError> {
        let wrong = |reason: String| BackendError::Config { backend: "VXLAN", reason };
        let json = |error: JsonError| wrong(error.to_string());
        let options: Object<'_> = backend.options.object().map_err(json)?;
        let number = |name: &str, default: u64, largest: u64| match options.unsigned(name).map_err(json)? {
            Some(value) if value > largest => Err(wrong(format!("{name} is {value}, more than {largest}"))),
            value => Ok(value.unwrap_or(default)),
        };
        let flag = |name: &str| options.boolean(name).map_err(json).map(|value| value.unwrap_or(false));

        let (_, largest_vni) = LARGEST_VNI[usize::from(has_ipv6)];
        let fits = "the checks above keep it in range";
        let port = u16::try_from(number("Port", 0, u16::MAX.into())?).expect(fits);
        let mtu = u32::try_from(number("MTU", 0, 65_535)?).expect(fits);
        Ok(Self {
            vni: u32::try_from(number("VNI", 1, largest_vni)?).expect(fits),
            port: Some(port).filter(|port| *port > 0),
            gbp: flag("GBP")?,
            learning: flag("Learning")?,
            mtu: Some(mtu).filter(|mtu| *mtu > 0),
            direct_routing: flag("DirectRouting")?,
        })
    }

    /// Reads the options that name the device and the port. Invalid ones count as not given.
    pub(crate) fn parse_lenient(config: &NetworkConfig) -> Self {
        let options = config.backend.options.object().ok();
        let number = |name: &str| options.as_ref().and_then(|options| options.unsigned(name).ok().flatten());
        let (_, largest_vni) = LARGEST_VNI[usize::from(config.ipv6.is_some())];
        let vni = number("VNI").filter(|vni| *vni <= largest_vni);
        Self {
            vni: vni.and_then(|vni| u32::try_from(vni).ok()).unwrap_or(1),
            port: number("Port").and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0),
            gbp: false,
            learning: false,
            mtu: None,
            direct_routing: false,
        }
    }

    /// Returns the UDP port. Like upstream flannel, defaults to the kernel's.
    pub(crate) fn udp_port(&self) -> u16 {
        self.port.unwrap_or(DEFAULT_PORT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> Result<VxlanConfig, String> {
        let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"vxlan"{options}}}}}"#);
        let config = NetworkConfig::parse(&text).unwrap();
        VxlanConfig::parse(&config.backend, false).map_err(|error| error.to_string())
    }

    #[test]
    fn missing_options_have_upstreams_defaults() {
        let expected =
            VxlanConfig { vni: 1, port: None, gbp: false, learning: false, mtu: None, direct_routing: false };
        assert_eq!(parse(""), Ok(expected.clone()));
        assert_eq!(parse(r#","VNI":null,"Port":0,"MTU":0,"MacPrefix":"0E-2A","Name":"x""#), Ok(expected));
    }

    #[test]
    fn option_names_are_case_insensitive() {
        let config =
            parse(r#","vni":7,"PORT":4789,"gbp":true,"learning":true,"Mtu":9000,"directrouting":true"#);
        let expected = VxlanConfig {
            vni: 7,
            port: Some(4789),
            gbp: true,
            learning: true,
            mtu: Some(9000),
            direct_routing: true,
        };
        assert_eq!(config, Ok(expected));
    }

    #[test]
    fn an_error_names_the_option() {
        for (options, reason) in [
            (
                r#","VNI":"1""#,
                "error decoding VXLAN backend config: json: cannot unmarshal string into VNI, which must be a whole number, zero or more",
            ),
            (r#","VNI":10000000"#, "error decoding VXLAN backend config: VNI is 10000000, more than 9999999"),
            (r#","Port":65536"#, "error decoding VXLAN backend config: Port is 65536, more than 65535"),
            (
                r#","GBP":1"#,
                "error decoding VXLAN backend config: json: cannot unmarshal number 1 into GBP, which must be true or false",
            ),
        ] {
            assert_eq!(parse(options), Err(reason.to_owned()));
        }
    }
}
