//! Which address of an interface is the one that other hosts use.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{AddressFact, Facts, LinkFact};

/// The first interface that has exactly this address.
pub(crate) fn owner(facts: &Facts, address: IpAddr) -> Option<&LinkFact> {
    facts.links.iter().find(|link| link.addresses.iter().any(|fact| fact.address == address))
}

/// The address of a family that suits best: global before link-local, permanent before dynamic, then
/// primary before secondary or temporary, then the kernel's order.
pub(crate) fn preferred<A>(link: &LinkFact, family: fn(IpAddr) -> Option<A>) -> Option<A> {
    let ranked = usable(link, family).map(|(fact, address)| {
        let rank = (!is_global(fact.address), !fact.permanent, fact.temporary);
        (rank, address)
    });
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, address)| address)
}

/// The addresses of a family that can be used at all, in the kernel's order. Deprecated ones cannot.
pub(crate) fn usable<A>(
    link: &LinkFact,
    family: fn(IpAddr) -> Option<A>,
) -> impl Iterator<Item = (&AddressFact, A)> {
    link.addresses.iter().filter(|fact| !fact.deprecated).filter_map(move |fact| {
        let unicast = is_global(fact.address) || is_link_local(fact.address);
        family(fact.address).filter(|_| unicast).map(|address| (fact, address))
    })
}

/// Whether an address can be reached from other links; private ranges count.
pub(crate) fn is_global(address: IpAddr) -> bool {
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || broadcast
        || is_link_local(address))
}

/// Whether an address is good for its own link only.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

pub(crate) fn as_v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

pub(crate) fn as_v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(address),
    }
}
