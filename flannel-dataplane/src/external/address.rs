//! The address of an interface that other hosts use.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::facts::{AddressFacts, LinkFacts};

/// Returns the best address of a family: global before link-local, one with an on-link prefix before a single-host one,
/// permanent before dynamic, primary before secondary or temporary, then in the kernel's order.
///
/// A single-host address (/32, /128) may float: keepalived and kube-vip move such an address between hosts. It has no
/// lifetime, so among these one with a lifetime, which comes from DHCP, is the host's own.
pub(super) fn preferred<A>(link: &LinkFacts, family: fn(IpAddr) -> Option<A>) -> Option<A> {
    let ranked = usable(link, family).map(|(facts, address)| {
        let rank = (
            !is_global(facts.address),
            facts.single_host,
            facts.permanent == facts.single_host,
            facts.temporary,
        );
        (rank, address)
    });
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, address)| address)
}

/// Returns the previous address while the interface has it, and otherwise the best one.
pub(super) fn preferred_over<A: Copy + PartialEq>(
    link: &LinkFacts,
    previous: Option<A>,
    family: fn(IpAddr) -> Option<A>,
) -> Option<A> {
    let exists = |previous: &A| usable(link, family).any(|(_, address)| address == *previous);
    previous.filter(exists).or_else(|| preferred(link, family))
}

/// Returns the unicast addresses of a family that are not deprecated, in the kernel's order.
pub(super) fn usable<A>(
    link: &LinkFacts,
    family: fn(IpAddr) -> Option<A>,
) -> impl Iterator<Item = (&AddressFacts, A)> {
    link.addresses.iter().filter(|facts| !facts.deprecated).filter_map(move |facts| {
        let is_unicast = is_global(facts.address) || is_link_local(facts.address);
        family(facts.address).filter(|_| is_unicast).map(|address| (facts, address))
    })
}

/// Returns true if an address can be reached from other links. Private ranges count.
pub(super) fn is_global(address: IpAddr) -> bool {
    let is_broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || is_broadcast
        || is_link_local(address))
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

pub(super) fn as_v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

pub(super) fn as_v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(address),
    }
}
