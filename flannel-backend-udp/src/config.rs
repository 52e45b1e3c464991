//! The options of the UDP backend in the network configuration.

use flannel_core::json::{JsonError, Object};
use flannel_core::{BackendConfig, BackendError};

/// The validated options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UdpConfig {
    /// The UDP port that all hosts listen on and send to.
    pub(crate) port: u16,
}

/// The default of `Port`.
const DEFAULT_PORT: u16 = 8285;

impl Default for UdpConfig {
    fn default() -> Self {
        Self { port: DEFAULT_PORT }
    }
}

impl UdpConfig {
    /// Parses the options and ignores unknown ones.
    pub(crate) fn parse(backend: &BackendConfig) -> Result<Self, BackendError> {
        let wrong = |reason: String| BackendError::Config { backend: "UDP", reason };
        let json = |error: JsonError| wrong(error.to_string());
        let options: Object<'_> = backend.options.object().map_err(json)?;
        let port = match options.unsigned("Port").map_err(json)? {
            None | Some(0) => DEFAULT_PORT,
            Some(port) => {
                u16::try_from(port).map_err(|_| wrong(format!("Port is {port}, more than {}", u16::MAX)))?
            }
        };
        Ok(Self { port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_core::NetworkConfig;

    fn parse(backend: &str) -> Result<u16, String> {
        let config = NetworkConfig::parse(&format!(r#"{{"Network":"10.5.0.0/16"{backend}}}"#)).unwrap();
        UdpConfig::parse(&config.backend).map(|udp| udp.port).map_err(|error| error.to_string())
    }

    #[test]
    fn the_default_port_is_8285() {
        assert_eq!(parse(""), Ok(8285));
        assert_eq!(parse(r#","Backend":{"Type":"udp"}"#), Ok(8285));
        assert_eq!(parse(r#","Backend":{"Type":"udp","Port":0,"Other":1}"#), Ok(8285));
        assert_eq!(parse(r#","Backend":{"Type":"udp","port":7890}"#), Ok(7890));
    }

    #[test]
    fn a_wrong_port_is_named() {
        for (port, reason) in [
            ("65536", "error decoding UDP backend config: Port is 65536, more than 65535"),
            (
                r#""1""#,
                "error decoding UDP backend config: json: cannot unmarshal string into Port, which must be a whole number, zero or more",
            ),
        ] {
            assert_eq!(
                parse(&format!(r#","Backend":{{"Type":"udp","Port":{port}}}"#)),
                Err(reason.to_owned())
            );
        }
    }
}
