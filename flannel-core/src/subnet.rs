//! The subnet of one host, in one or both families, and the name it has in a registry.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What a host leases: an IPv4 subnet, an IPv6 subnet, or one of each.
///
/// Its text form is the key under which flannel keeps a lease: `10.5.1.0-24`, with IPv6
/// `10.5.1.0-24&fc00:0:0:1::-64`, and `0.0.0.0-0&fc00:0:0:1::-64` if there is only IPv6 (flannel's own form for
/// "no IPv4"). Host bits are always clear, and one family at least is there.
///
/// ```
/// use flannel_core::SubnetKey;
///
/// let key: SubnetKey = "10.5.1.0-24".parse()?;
/// assert_eq!(key.v4(), Some("10.5.1.0/24".parse().unwrap()));
/// assert_eq!(key.to_string(), "10.5.1.0-24");
/// # Ok::<(), flannel_core::SubnetKeyError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubnetKey {
    v4: Option<Ipv4Net>,
    v6: Option<Ipv6Net>,
}

impl SubnetKey {
    /// Puts a key together, clearing host bits; `None` if neither family is given.
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

    /// Tells whether the two share an address in either family.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let v4 = self.v4.zip(other.v4).is_some_and(|(a, b)| a.contains(&b) || b.contains(&a));
        let v6 = self.v6.zip(other.v6).is_some_and(|(a, b)| a.contains(&b) || b.contains(&a));
        v4 || v6
    }

    /// Tells whether the address lies in the subnet of its family.
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

    /// Reads a key; what stands before the last `/` is ignored, so that a full registry path can be given.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
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

/// Why a text is not the key of a subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a subnet key: {reason}")]
pub struct SubnetKeyError {
    text: String,
    reason: &'static str,
}

/// Stands for "no IPv4" in front of an IPv6 subnet.
const NO_IPV4: &str = "0.0.0.0-0";

fn parse_v4(text: &str) -> Result<Ipv4Net, SubnetKeyError> {
    // Flannel's own parsers read prefix lengths up to 31 only.
    let (address, len) = split::<Ipv4Addr>(text, 31, "want ADDRESS-LENGTH, like 10.5.1.0-24")?;
    let net = Ipv4Net::new(address, len).map_err(|_| error(text, "the prefix length is too large"))?;
    if net.trunc() == net { Ok(net) } else { Err(error(text, "there are bits set behind the prefix")) }
}

fn parse_v6(text: &str) -> Result<Ipv6Net, SubnetKeyError> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(error(text, "IPv6 addresses are written in lower case"));
    }
    let (address, len) = split::<Ipv6Addr>(text, 127, "want ADDRESS-LENGTH, like fc00:0:0:1::-64")?;
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
        // Nobody leases a whole address space; a route to it would swallow the host's default route.
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
    fn keys_are_written_as_flannel_writes_them() {
        for text in ["172.30.8.0-21", "10.5.1.0-24", "10.5.1.0-24&fc00:0:0:1::-64", "0.0.0.0-0&fc00::-64"] {
            assert_eq!(text.parse::<SubnetKey>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_full_registry_path_is_read_by_its_last_part() {
        let key: SubnetKey = "/coreos.com/network/subnets/10.5.1.0-24".parse().unwrap();
        assert_eq!(key, "10.5.1.0-24".parse().unwrap());
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
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
            "10.5.1.0/24",
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
        fn every_key_survives_being_written_and_read(v4: Option<(u32, u8)>, v6: Option<(u128, u8)>) {
            let v4 = v4.map(|(bits, len)| Ipv4Net::new(bits.into(), 1 + len % 31).unwrap());
            let v6 = v6.map(|(bits, len)| Ipv6Net::new(bits.into(), 1 + len % 127).unwrap());
            if let Some(key) = SubnetKey::new(v4, v6) {
                prop_assert_eq!(key.to_string().parse::<SubnetKey>().unwrap(), key);
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<SubnetKey>();
        }
    }
}
