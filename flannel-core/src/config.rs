//! The configuration of a network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::SubnetKey;
use crate::family::IpFamilies;
use crate::json::{Json, JsonError, Object};
use crate::pool::{SubnetPool, bits, size, with_bits};

/// A valid network configuration.
///
/// [`parse`](Self::parse) is the only constructor, so a value is always valid.
///
/// ```
/// use flannel_core::NetworkConfig;
///
/// let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#)?;
/// let pool = config.ipv4.unwrap();
/// assert_eq!(pool.to_string(), "10.5.1.0 ... 10.5.255.0");
/// assert_eq!(pool.subnet_len(), 24);
/// assert_eq!(config.backend.name, "vxlan");
///
/// let error = NetworkConfig::parse(r#"{"Network": "10.5.0.0/29"}"#).unwrap_err();
/// assert_eq!(error.field(), Some("Network"));
/// # Ok::<(), flannel_core::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkConfig {
    /// The IPv4 subnets, if the network has IPv4.
    pub ipv4: Option<SubnetPool>,
    /// The IPv6 subnets, if the network has IPv6.
    pub ipv6: Option<SubnetPool>,
    /// The backend and its options.
    pub backend: BackendConfig,
    /// Whether the firewall rules use nftables instead of iptables.
    pub enable_nftables: bool,
    /// The text of the configuration.
    pub source: Json,
}

impl NetworkConfig {
    /// Parses and validates a configuration.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the member and its fault.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let object = Object::parse(text).map_err(|error| ConfigError::whole(error.to_string()))?;
        let ipv4 = pool_of(&object, &IPV4)?;
        let ipv6 = pool_of(&object, &IPV6)?;
        if ipv4.is_none() && ipv6.is_none() {
            return Err(ConfigError::whole(
                "none defined stack: both EnableIPv4 and EnableIPv6 are false".into(),
            ));
        }
        let enable_nftables =
            object.boolean("EnableNFTables").map_err(ConfigError::json("EnableNFTables"))?;
        let backend = BackendConfig::of(&object)?;
        let source = Json::parse(text).map_err(|error| ConfigError::whole(error.to_string()))?;
        Ok(Self { ipv4, ipv6, backend, enable_nftables: enable_nftables.unwrap_or(false), source })
    }

    /// Returns true if a host may choose this subnet: each enabled family is present, in range and of the configured length.
    #[must_use]
    pub fn offers(&self, subnet: &SubnetKey) -> bool {
        self.each_fits(subnet, |pool, net| pool.offers(net))
    }

    /// Returns true if the subnet is inside the network of each enabled family, whatever its length and whether or not the
    /// range for new leases contains it. An authority that assigns subnets itself may choose any of these.
    #[must_use]
    pub fn contains_subnet(&self, subnet: &SubnetKey) -> bool {
        self.each_fits(subnet, |pool, net| pool.contains_subnet(net))
    }

    fn each_fits(&self, subnet: &SubnetKey, fits: impl Fn(SubnetPool, IpNet) -> bool) -> bool {
        let fits = |pool: Option<SubnetPool>, net: Option<IpNet>| match (pool, net) {
            (Some(pool), Some(net)) => fits(pool, net),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        fits(self.ipv4, subnet.v4().map(IpNet::V4)) && fits(self.ipv6, subnet.v6().map(IpNet::V6))
    }

    /// Returns the address families of the overlay.
    #[must_use]
    pub fn families(&self) -> IpFamilies {
        IpFamilies { v4: self.ipv4.is_some(), v6: self.ipv6.is_some() }
    }

    /// Returns the pools of the enabled families, IPv4 first.
    pub fn pools(&self) -> impl Iterator<Item = SubnetPool> + use<> {
        self.ipv4.into_iter().chain(self.ipv6)
    }
}

/// The backend in a network configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendConfig {
    /// The backend's name as written; compare it in lower case. Empty if the object has no `Type`.
    pub name: String,
    /// The whole object, which the backend parses.
    pub options: Json,
}

impl BackendConfig {
    /// Creates a backend with this name and these options.
    #[must_use]
    pub fn new(name: impl Into<String>, options: Json) -> Self {
        Self { name: name.into(), options }
    }

    /// As in upstream, a missing `Backend` means `udp`, and a missing `Type` no backend at all.
    fn of(config: &Object<'_>) -> Result<Self, ConfigError> {
        let wrong = |error: JsonError| {
            ConfigError::of("Backend", format!("error decoding Backend property of config: {error}"))
        };
        let Some(text) = config.raw("Backend") else {
            return Ok(Self { name: "udp".to_owned(), options: Json::parse("{}").map_err(wrong)? });
        };
        let name = Object::parse(text).and_then(|backend| backend.string("Type")).map_err(wrong)?;
        Ok(Self { name: name.unwrap_or_default(), options: Json::parse(text).map_err(wrong)? })
    }
}

/// The reason why a text isn't a valid network configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ConfigError {
    field: Option<&'static str>,
    reason: String,
}

impl ConfigError {
    /// Returns the name of the invalid member, or `None` if the text as a whole is invalid.
    #[must_use]
    pub fn field(&self) -> Option<&'static str> {
        self.field
    }

    fn whole(reason: String) -> Self {
        Self { field: None, reason }
    }

    fn of(field: &'static str, reason: String) -> Self {
        Self { field: Some(field), reason }
    }

    fn json(field: &'static str) -> impl Fn(JsonError) -> Self {
        move |error| Self::of(field, error.to_string())
    }
}

/// The members and limits of an address family in the configuration.
struct FamilyMembers {
    enable: &'static str,
    enabled_by_default: bool,
    network: &'static str,
    subnet_len: &'static str,
    subnet_min: &'static str,
    subnet_max: &'static str,
    /// The longest prefix of a subnet, which leaves two addresses for containers.
    longest_subnet: u8,
    /// The default where the network has room for it.
    default_subnet_len: u8,
    parse_address: fn(&str) -> Option<IpAddr>,
    wrong_family: &'static str,
    name: &'static str,
}

const IPV4: FamilyMembers = FamilyMembers {
    enable: "EnableIPv4",
    enabled_by_default: true,
    network: "Network",
    subnet_len: "SubnetLen",
    subnet_min: "SubnetMin",
    subnet_max: "SubnetMax",
    longest_subnet: 30,
    default_subnet_len: 24,
    parse_address: |text| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    wrong_family: "invalid IPv4 CIDR format",
    name: "IPv4",
};

const IPV6: FamilyMembers = FamilyMembers {
    enable: "EnableIPv6",
    enabled_by_default: false,
    network: "IPv6Network",
    subnet_len: "IPv6SubnetLen",
    subnet_min: "IPv6SubnetMin",
    subnet_max: "IPv6SubnetMax",
    longest_subnet: 126,
    default_subnet_len: 64,
    parse_address: |text| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
    wrong_family: "invalid IPv6 CIDR format",
    name: "IPv6",
};

/// Parses one family, even a disabled one, so that an error is found early.
fn pool_of(config: &Object<'_>, family: &FamilyMembers) -> Result<Option<SubnetPool>, ConfigError> {
    let enabled = config.boolean(family.enable).map_err(ConfigError::json(family.enable))?;
    let network = network(config, family)?;
    let given_len = config.unsigned(family.subnet_len).map_err(ConfigError::json(family.subnet_len))?;
    let min = bound(config, family, family.subnet_min)?;
    let max = bound(config, family, family.subnet_max)?;
    if !enabled.unwrap_or(family.enabled_by_default) {
        return Ok(None);
    }

    let network = network.filter(|network| network.prefix_len() > 0).ok_or_else(|| {
        let reason = format!("please define a correct {} parameter in the flannel config", family.network);
        ConfigError::of(family.network, reason)
    })?;
    let len = subnet_len(family, network, given_len.unwrap_or(0))?;
    // The first subnet of the network stays free by default.
    let subnet = IpNet::new(network.addr(), len).unwrap_or(network);
    let default_min = bits(network.addr()) + size(subnet);
    let default_max = bits(network.addr()) + (size(network) - size(subnet));
    let first = edge(family, network, subnet, family.subnet_min, min.map_or(default_min, bits))?;
    let last = edge(family, network, subnet, family.subnet_max, max.map_or(default_max, bits))?;
    if first > last {
        let reason = format!("{} is after {}: {}", family.subnet_min, family.subnet_max, first.addr());
        return Err(ConfigError::of(family.subnet_min, reason));
    }
    Ok(Some(SubnetPool::new(network, first, last)))
}

fn network(config: &Object<'_>, family: &FamilyMembers) -> Result<Option<IpNet>, ConfigError> {
    let Some(text) = config.raw(family.network).map(bare) else {
        return Ok(None);
    };
    let wrong = |what| ConfigError::of(family.network, format!("{what}: {text} ({})", family.network));
    let (address, len) = text.split_once('/').ok_or_else(|| wrong("invalid CIDR address"))?;
    let parsed = address.parse::<IpAddr>().ok().zip(len.parse().ok());
    let network = parsed.and_then(|(address, len)| IpNet::new(address, len).ok());
    match (network, (family.parse_address)(address)) {
        (Some(network), Some(_)) => Ok(Some(network.trunc())),
        (Some(_), None) => Err(wrong(family.wrong_family)),
        (None, _) => Err(wrong("invalid CIDR address")),
    }
}

/// Parses the first or last subnet. The unspecified address counts as not given; `null` does so only for IPv6.
fn bound(
    config: &Object<'_>,
    family: &FamilyMembers,
    field: &'static str,
) -> Result<Option<IpAddr>, ConfigError> {
    let Some(text) = config.raw(field).map(bare) else {
        return Ok(None);
    };
    if text == "null" && family.name == "IPv6" {
        return Ok(None);
    }
    match (family.parse_address)(text) {
        Some(address) => Ok(Some(address).filter(|address| !address.is_unspecified())),
        None if text.parse::<IpAddr>().is_ok() => {
            Err(ConfigError::of(field, format!("invalid {} address format: {text} ({field})", family.name)))
        }
        None => Err(ConfigError::of(field, format!("invalid IP address format: {text:?} ({field})"))),
    }
}

/// Removes the quotes. As in upstream, escapes are not decoded.
fn bare(text: &str) -> &str {
    text.trim_matches('"')
}

fn subnet_len(family: &FamilyMembers, network: IpNet, given: u64) -> Result<u8, ConfigError> {
    let field = family.subnet_len;
    let len = network.prefix_len();
    let room = family.longest_subnet - 2;
    match u8::try_from(given) {
        Ok(0) if len > room => {
            let network = if family.name == "IPv4" { "network" } else { family.network };
            let reason = format!("{network} is too small. Minimum useful network prefix is /{room}");
            Err(ConfigError::of(family.network, reason))
        }
        Ok(0) if len <= family.default_subnet_len - 2 => Ok(family.default_subnet_len),
        Ok(0) => Ok(len + 2),
        Ok(given) if given <= family.longest_subnet => {
            let reason = "network must be able to accommodate at least four subnets";
            if given >= len + 2 { Ok(given) } else { Err(ConfigError::of(field, reason.to_owned())) }
        }
        Ok(_) | Err(_) => {
            let longest = family.longest_subnet + 1;
            Err(ConfigError::of(field, format!("SubnetLen must be less than /{longest}")))
        }
    }
}

/// Returns the subnet at this address, if it is inside the network and aligned.
fn edge(
    family: &FamilyMembers,
    network: IpNet,
    subnet: IpNet,
    field: &'static str,
    start: u128,
) -> Result<IpNet, ConfigError> {
    let address = with_bits(IpNet::from(network.addr()), start).addr();
    if !network.contains(&address) {
        let reason = format!("{field} is not in the range of the {}: {address}", family.network);
        return Err(ConfigError::of(field, reason));
    }
    if !start.is_multiple_of(size(subnet)) {
        return Err(ConfigError::of(field, format!("{field} is not on a SubnetLen boundary: {address}")));
    }
    Ok(with_bits(subnet, start))
}

#[cfg(test)]
mod tests;
