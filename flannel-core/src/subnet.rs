//! The subnet of a host, and its key in a registry.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The subnet that a host leases: IPv4, IPv6, or one of each. Host bits are clear.
///
/// `Display` writes the key under which flannel stores a lease: `10.5.1.0-24`, with IPv6 `10.5.1.0-24&fc00:0:0:1::-64`, and
/// `0.0.0.0-0&fc00:0:0:1::-64` without IPv4. `FromStr` reads this form, and CIDR notation: one subnet, or both separated by
/// a comma. Serde uses an array of subnets in CIDR notation.
///
/// ```
/// use flannel_core::SubnetKey;
///
/// let key: SubnetKey = "10.5.1.0-24".parse()?;
/// assert_eq!(key.v4(), Some("10.5.1.0/24".parse().unwrap()));
/// assert_eq!(key.to_string(), "10.5.1.0-24");
/// assert_eq!("10.5.1.0/24".parse(), Ok(key));
///
/// let both: SubnetKey = "10.5.1.0/24,fc00:0:0:1::/64".parse()?;
/// assert_eq!(both, "10.5.1.0-24&fc00:0:0:1::-64".parse()?);
/// assert_eq!(serde_json::to_string(&both).unwrap(), r#"["10.5.1.0/24","fc00:0:0:1::/64"]"#);
/// # Ok::<(), flannel_core::SubnetKeyError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubnetKey {
    v4: Option<Ipv4Net>,
    v6: Option<Ipv6Net>,
}

impl SubnetKey {
    /// Creates a key and clears host bits; `None` without a subnet.
    #[must_use]
    pub fn new(v4: Option<Ipv4Net>, v6: Option<Ipv6Net>) -> Option<Self> {
        (v4.is_some() || v6.is_some())
            .then(|| Self { v4: v4.map(|net| net.trunc()), v6: v6.map(|net| net.trunc()) })
    }

    /// Returns the IPv4 subnet.
    #[must_use]
    pub fn v4(&self) -> Option<Ipv4Net> {
        self.v4
    }

    /// Returns the IPv6 subnet.
    #[must_use]
    pub fn v6(&self) -> Option<Ipv6Net> {
        self.v6
    }

    /// Returns the subnets of both families, IPv4 first.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> + use<> {
        self.v4.map(IpNet::V4).into_iter().chain(self.v6.map(IpNet::V6))
    }

    /// Returns true if the two share an address in either family.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let v4 = self.v4.zip(other.v4).is_some_and(|(a, b)| a.contains(&b) || b.contains(&a));
        let v6 = self.v6.zip(other.v6).is_some_and(|(a, b)| a.contains(&b) || b.contains(&a));
        v4 || v6
    }

    /// Returns true if the subnet of the address's family contains it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.is_some_and(|net| net.contains(&address)),
            IpAddr::V6(address) => self.v6.is_some_and(|net| net.contains(&address)),
        }
    }
}

impl From<Ipv4Net> for SubnetKey {
    fn from(net: Ipv4Net) -> Self {
        Self { v4: Some(net.trunc()), v6: None }
    }
}

impl From<Ipv6Net> for SubnetKey {
    fn from(net: Ipv6Net) -> Self {
        Self { v4: None, v6: Some(net.trunc()) }
    }
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.v4 {
            Some(net) => write!(f, "{}-{}", net.addr(), net.prefix_len())?,
            None => f.write_str(NO_IPV4)?,
        }
        match self.v6 {
            Some(net) => write!(f, "&{}-{}", net.addr(), net.prefix_len()),
            None => Ok(()),
        }
    }
}

impl FromStr for SubnetKey {
    type Err = SubnetKeyError;

    /// Reads a key or CIDR notation. In a registry path only the last component counts.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(key) = parse_cidr(text) {
            return key;
        }
        let name = text.rsplit('/').next().unwrap_or(text);
        let (v4, v6) = match name.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (name, None),
        };
        let v6 = v6.map(parse_v6).transpose()?;
        let v4 = if v4 == NO_IPV4 && v6.is_some() { None } else { Some(parse_v4(v4)?) };
        Ok(Self { v4, v6 })
    }
}

/// The reason why a text isn't a subnet key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a subnet key: {reason}")]
pub struct SubnetKeyError {
    text: String,
    reason: &'static str,
}

/// Represents a missing IPv4 subnet in front of an IPv6 subnet.
const NO_IPV4: &str = "0.0.0.0-0";

/// Reads one subnet in CIDR notation, or two that are separated by a comma, IPv4 first. Returns `None` if the text isn't in
/// this form, and may be a key.
fn parse_cidr(text: &str) -> Option<Result<SubnetKey, SubnetKeyError>> {
    let nets = text.split(',').map(|net| net.trim().parse::<IpNet>()).collect::<Result<Vec<_>, _>>().ok()?;
    let (v4, v6) = match nets.as_slice() {
        [IpNet::V4(v4)] => (Some(*v4), None),
        [IpNet::V6(v6)] => (None, Some(*v6)),
        [IpNet::V4(v4), IpNet::V6(v6)] => (Some(*v4), Some(*v6)),
        _ => return Some(Err(error(text, "want one subnet, or an IPv4 and an IPv6 subnet in this order"))),
    };
    let check = |net: IpNet, longest: u8| {
        if net.trunc() != net {
            Err(error(text, "there are bits set behind the prefix"))
        } else if net.prefix_len() == 0 {
            Err(error(text, "the prefix length is zero"))
        } else if net.prefix_len() > longest {
            Err(error(text, "the prefix length is too large"))
        } else {
            Ok(())
        }
    };
    let v4_ok = v4.map_or(Ok(()), |net| check(net.into(), LONGEST_V4));
    let v6_ok = v6.map_or(Ok(()), |net| check(net.into(), LONGEST_V6));
    Some(v4_ok.and(v6_ok).map(|()| SubnetKey { v4, v6 }))
}

/// The longest prefix lengths that upstream's parsers accept.
const LONGEST_V4: u8 = 31;
const LONGEST_V6: u8 = 127;

fn parse_v4(text: &str) -> Result<Ipv4Net, SubnetKeyError> {
    let (address, len) = split::<Ipv4Addr>(text, LONGEST_V4, "want ADDRESS-LENGTH, like 10.5.1.0-24")?;
    let net = Ipv4Net::new(address, len).map_err(|_| error(text, "the prefix length is too large"))?;
    if net.trunc() == net { Ok(net) } else { Err(error(text, "there are bits set behind the prefix")) }
}

fn parse_v6(text: &str) -> Result<Ipv6Net, SubnetKeyError> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(error(text, "IPv6 addresses are written in lower case"));
    }
    let (address, len) = split::<Ipv6Addr>(text, LONGEST_V6, "want ADDRESS-LENGTH, like fc00:0:0:1::-64")?;
    let net = Ipv6Net::new(address, len).map_err(|_| error(text, "the prefix length is too large"))?;
    if net.trunc() == net { Ok(net) } else { Err(error(text, "there are bits set behind the prefix")) }
}

fn split<A: FromStr>(text: &str, longest: u8, wanted: &'static str) -> Result<(A, u8), SubnetKeyError> {
    let (address, len) = text.rsplit_once('-').ok_or_else(|| error(text, wanted))?;
    let address = address.parse().map_err(|_| error(text, wanted))?;
    if !len.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(error(text, wanted));
    }
    let len = len.parse().map_err(|_| error(text, wanted))?;
    match len {
        // A route to the whole address space would replace the host's default route.
        0 => Err(error(text, "the prefix length is zero")),
        len if len > longest => Err(error(text, "the prefix length is too large")),
        len => Ok((address, len)),
    }
}

fn error(text: &str, reason: &'static str) -> SubnetKeyError {
    SubnetKeyError { text: text.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_have_upstreams_form() {
        for text in ["172.30.8.0-21", "10.5.1.0-24", "10.5.1.0-24&fc00:0:0:1::-64", "0.0.0.0-0&fc00::-64"] {
            assert_eq!(text.parse::<SubnetKey>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn only_the_last_component_of_a_registry_path_counts() {
        let key: SubnetKey = "/coreos.com/network/subnets/10.5.1.0-24".parse().unwrap();
        assert_eq!(key, "10.5.1.0-24".parse().unwrap());
    }

    #[test]
    fn a_malformed_key_is_refused() {
        for text in [
            "",
            "garbage",
            "10.5.1.0",
            "10.5.1.0-",
            "10.5.1.0-32",
            "10.5.1.0-+4",
            "10.5.1.256-24",
            "10.05.1.0-24",
            "10.5.1.7-24",
            "10.5.1.0-24junk",
            "10.5.1.0-24&",
            "10.5.1.0-24&FC00::-64",
            "10.5.1.0-24&fc00::-128",
            "10.5.1.0-24&::-0",
            "0.0.0.0-0",
            "10.5.1.0-24&fc00::1-64",
            "10.5.1.7/24",
            "10.5.1.0/32",
            "0.0.0.0/0",
            "fc00::/64,10.5.1.0/24",
            "10.5.1.0/24,",
        ] {
            assert!(text.parse::<SubnetKey>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn keys_overlap_if_they_share_an_address_in_either_family() {
        let key = |text: &str| text.parse::<SubnetKey>().unwrap();
        assert!(key("10.5.0.0-16").overlaps(&key("10.5.9.0-24")));
        assert!(key("10.5.1.0-24&fc00::-64").overlaps(&key("10.5.2.0-24&fc00::-63")));
        assert!(!key("10.5.1.0-24&fc00::-64").overlaps(&key("10.5.2.0-24&fc00:0:0:1::-64")));
        assert!(!key("10.5.1.0-24").overlaps(&key("0.0.0.0-0&fc00::-64")));
    }

    proptest! {
        #[test]
        fn a_key_survives_a_round_trip(v4: Option<(u32, u8)>, v6: Option<(u128, u8)>) {
            let v4 = v4.map(|(bits, len)| Ipv4Net::new(bits.into(), 1 + len % 31).unwrap());
            let v6 = v6.map(|(bits, len)| Ipv6Net::new(bits.into(), 1 + len % 127).unwrap());
            if let Some(key) = SubnetKey::new(v4, v6) {
                prop_assert_eq!(key.to_string().parse::<SubnetKey>().unwrap(), key);
                let nets: Vec<String> = key.nets().map(|net| net.to_string()).collect();
                prop_assert_eq!(nets.join(",").parse::<SubnetKey>().unwrap(), key);
            }
        }

        #[test]
        fn the_parser_never_panics(text: String) {
            let _ = text.parse::<SubnetKey>();
        }
    }
}
