//! The range of subnets that hosts may lease, in one family.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// The subnets of one size between a first and a last one, both included, inside one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubnetPool {
    network: IpNet,
    first: IpNet,
    last: IpNet,
}

impl SubnetPool {
    /// Puts a pool together; `first` and `last` are subnets of `network`, of one size and in this order.
    pub(crate) fn new(network: IpNet, first: IpNet, last: IpNet) -> Self {
        debug_assert!(network.contains(&first) && network.contains(&last) && first <= last);
        debug_assert_eq!(first.prefix_len(), last.prefix_len());
        Self { network, first, last }
    }

    /// Returns the network that the subnets are part of.
    #[must_use]
    pub fn network(&self) -> IpNet {
        self.network
    }

    /// Returns the prefix length of every subnet.
    #[must_use]
    pub fn subnet_len(&self) -> u8 {
        self.first.prefix_len()
    }

    /// Returns the first subnet that may be leased.
    #[must_use]
    pub fn first(&self) -> IpNet {
        self.first
    }

    /// Returns the last subnet that may be leased.
    #[must_use]
    pub fn last(&self) -> IpNet {
        self.last
    }

    /// Tells whether a subnet is one that may be leased.
    #[must_use]
    pub fn offers(&self, subnet: IpNet) -> bool {
        subnet.prefix_len() == self.subnet_len() && self.first <= subnet && subnet <= self.last
    }

    /// Returns true if the network contains the subnet, of any length, and more.
    pub(crate) fn contains_subnet(&self, subnet: IpNet) -> bool {
        self.network != subnet && self.network.contains(&subnet)
    }

    /// Returns the subnet at the place of a number: each number has one, and those that follow each other have
    /// different ones until all were named.
    pub(crate) fn at(&self, number: u128) -> IpNet {
        let (first, last, step) = (bits(self.first.addr()), bits(self.last.addr()), size(self.first));
        let count = ((last - first) / step).saturating_add(1);
        with_bits(self.first, first + number % count * step)
    }

    /// Walks over all subnets that may be leased, in order.
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

/// Returns an address as a number.
pub(crate) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Returns the network of the same family and length as `like` at another address.
pub(crate) fn with_bits(like: IpNet, bits: u128) -> IpNet {
    let address = match like {
        IpNet::V4(_) => IpAddr::V4(u32::try_from(bits).unwrap_or(u32::MAX).into()),
        IpNet::V6(_) => IpAddr::V6(bits.into()),
    };
    IpNet::new(address, like.prefix_len()).unwrap_or(like).trunc()
}

/// Returns the number of addresses in a network; the whole IPv6 space is one short, to fit.
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
    fn a_pool_offers_its_subnets_of_its_size_only() {
        let pool = pool("10.5.0.0/16", "10.5.1.0/24", "10.5.3.0/24");
        assert!(pool.offers("10.5.3.0/24".parse().unwrap()));
        assert!(!pool.offers("10.5.0.0/24".parse().unwrap()));
        assert!(!pool.offers("10.5.4.0/24".parse().unwrap()));
        assert!(!pool.offers("10.5.2.0/25".parse().unwrap()));
        let all: Vec<_> = pool.subnets().map(|net| net.to_string()).collect();
        assert_eq!(all, ["10.5.1.0/24", "10.5.2.0/24", "10.5.3.0/24"]);
    }

    #[test]
    fn each_number_has_its_place() {
        let small = pool("10.5.0.0/16", "10.5.1.0/24", "10.5.3.0/24");
        let places: Vec<_> = (0..4).map(|number| small.at(number).to_string()).collect();
        assert_eq!(places, ["10.5.1.0/24", "10.5.2.0/24", "10.5.3.0/24", "10.5.1.0/24"]);
        let huge = pool("::/0", "::/128", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128");
        assert_eq!(huge.at(7), "::7/128".parse::<IpNet>().unwrap());
        assert!(huge.offers(huge.at(u128::MAX)));
    }

    #[test]
    fn a_pool_at_the_end_of_the_address_space_has_an_end() {
        assert_eq!(pool("255.255.0.0/16", "255.255.254.0/24", "255.255.255.0/24").subnets().count(), 2);
        let v6 = pool("ffff::/16", "ffff:ffff:ffff:fffe::/64", "ffff:ffff:ffff:ffff::/64");
        assert_eq!(v6.subnets().count(), 2);
    }
}
