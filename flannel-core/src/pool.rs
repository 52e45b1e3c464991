//! The range of subnets that hosts may lease.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// The subnets of one length between a first and a last one, inclusive, in one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubnetPool {
    network: IpNet,
    first: IpNet,
    last: IpNet,
}

impl SubnetPool {
    /// Creates a pool; `first` and `last` are subnets of `network`, of the same length and in this order.
    pub(crate) fn new(network: IpNet, first: IpNet, last: IpNet) -> Self {
        debug_assert!(network.contains(&first) && network.contains(&last) && first <= last);
        debug_assert_eq!(first.prefix_len(), last.prefix_len());
        Self { network, first, last }
    }

    /// Returns the network that contains the subnets.
    #[must_use]
    pub fn network(&self) -> IpNet {
        self.network
    }

    /// Returns the prefix length of the subnets.
    #[must_use]
    pub fn subnet_len(&self) -> u8 {
        self.first.prefix_len()
    }

    /// Returns the first subnet.
    #[must_use]
    pub fn first(&self) -> IpNet {
        self.first
    }

    /// Returns the last subnet.
    #[must_use]
    pub fn last(&self) -> IpNet {
        self.last
    }

    /// Returns true if the pool contains the subnet.
    #[must_use]
    pub fn offers(&self, subnet: IpNet) -> bool {
        subnet.prefix_len() == self.subnet_len() && self.first <= subnet && subnet <= self.last
    }

    /// Returns true if the network contains the subnet, of any length, and more.
    pub(crate) fn contains_subnet(&self, subnet: IpNet) -> bool {
        self.network != subnet && self.network.contains(&subnet)
    }

    /// Returns the subnet with this number, modulo the size of the pool.
    pub(crate) fn at(&self, number: u128) -> IpNet {
        let (first, last, step) = (bits(self.first.addr()), bits(self.last.addr()), size(self.first));
        let count = ((last - first) / step).saturating_add(1);
        with_bits(self.first, first + number % count * step)
    }

    /// Iterates over the subnets in order.
    pub fn subnets(&self) -> impl Iterator<Item = IpNet> + use<> {
        let (mut next, last) = (Some(bits(self.first.addr())), bits(self.last.addr()));
        let (step, first) = (size(self.first), self.first);
        std::iter::from_fn(move || {
            let current = next.filter(|bits| *bits <= last)?;
            next = current.checked_add(step);
            Some(with_bits(first, current))
        })
    }
}

impl fmt::Display for SubnetPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ... {}", self.first.addr(), self.last.addr())
    }
}

/// Converts an address to a number.
pub(crate) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Returns the network at another address, with the family and length of `like`.
pub(crate) fn with_bits(like: IpNet, bits: u128) -> IpNet {
    let address = match like {
        IpNet::V4(_) => IpAddr::V4(u32::try_from(bits).unwrap_or(u32::MAX).into()),
        IpNet::V6(_) => IpAddr::V6(bits.into()),
    };
    IpNet::new(address, like.prefix_len()).unwrap_or(like).trunc()
}

/// Returns the number of addresses in a network, one less for the whole IPv6 space.
pub(crate) fn size(net: IpNet) -> u128 {
    1_u128.checked_shl(u32::from(net.max_prefix_len() - net.prefix_len())).unwrap_or(u128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(network: &str, first: &str, last: &str) -> SubnetPool {
        SubnetPool::new(network.parse().unwrap(), first.parse().unwrap(), last.parse().unwrap())
    }

    #[test]
    fn a_pool_contains_subnets_of_its_length_only() {
        let pool = pool("10.5.0.0/16", "10.5.1.0/24", "10.5.3.0/24");
        assert!(pool.offers("10.5.3.0/24".parse().unwrap()));
        assert!(!pool.offers("10.5.0.0/24".parse().unwrap()));
        assert!(!pool.offers("10.5.4.0/24".parse().unwrap()));
        assert!(!pool.offers("10.5.2.0/25".parse().unwrap()));
        let all: Vec<_> = pool.subnets().map(|net| net.to_string()).collect();
        assert_eq!(all, ["10.5.1.0/24", "10.5.2.0/24", "10.5.3.0/24"]);
    }

    #[test]
    fn numbers_wrap_around() {
        let small = pool("10.5.0.0/16", "10.5.1.0/24", "10.5.3.0/24");
        let places: Vec<_> = (0..4).map(|number| small.at(number).to_string()).collect();
        assert_eq!(places, ["10.5.1.0/24", "10.5.2.0/24", "10.5.3.0/24", "10.5.1.0/24"]);
        let huge = pool("::/0", "::/128", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128");
        assert_eq!(huge.at(7), "::7/128".parse::<IpNet>().unwrap());
        assert!(huge.offers(huge.at(u128::MAX)));
    }

    #[test]
    fn a_pool_at_the_end_of_the_address_space_is_finite() {
        assert_eq!(pool("255.255.0.0/16", "255.255.254.0/24", "255.255.255.0/24").subnets().count(), 2);
        let v6 = pool("ffff::/16", "ffff:ffff:ffff:fffe::/64", "ffff:ffff:ffff:ffff::/64");
        assert_eq!(v6.subnets().count(), 2);
    }
}
