//! What becomes of the external interface while the daemon runs.
//!
//! | it was chosen by | what is followed |
//! |---|---|
//! | its name | the name, whichever interface has it, and the address that this one has |
//! | its address, or `-public-ip` that it has | the address, on whichever interface it is |
//! | a pattern that fits its address | the address and, when that is gone, the pattern |
//! | the default route, or the way to an address | that, and the address of the interface it leaves by |
//!
//! An address that is still there is kept, however many are added. Where there is none, the last one that was good is
//! kept, because one is usually on its way.

use std::net::IpAddr;

use flannel_core::{ExternalInterface, PublicAddrs};

use super::search::{Fixed, matched};
use super::{Facts, Families, LinkFact, Wishes, as_v4, as_v6, is_global, owner, preferred};

/// By what the interface was chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Basis {
    Name,
    Address(IpAddr),
    /// Its address fits a pattern.
    Pattern,
    /// The way to an address of the operator's.
    Way,
    DefaultRoute,
}

/// What the interface is now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Followed {
    pub external: ExternalInterface,
    /// What is missing, so that something of what was before is kept.
    pub missing: Option<String>,
}

/// Tells what the interface is now that was chosen before.
pub fn follow(
    facts: &Facts,
    wishes: &Wishes,
    families: Families,
    basis: Basis,
    known: &ExternalInterface,
) -> Followed {
    let keep = |missing: String| Followed { external: known.clone(), missing: Some(missing) };
    let Some((link, fixed)) = link(facts, wishes, families, basis, known) else {
        return keep(match basis {
            Basis::Name | Basis::Way | Basis::DefaultRoute => format!("there is no interface {}", known.name),
            Basis::Address(address) => format!("no interface has the address {address}"),
            Basis::Pattern => "no interface has an address that -iface-regex fits".to_owned(),
        });
    };
    let wanted_v4 = Wanted { is_used: families.v4, fixed: fixed.v4, basis };
    let wanted_v6 = Wanted { is_used: families.v6, fixed: fixed.v6, basis };
    let (v4, lacks_v4) = address(link, known.v4, wanted_v4, as_v4);
    let (v6, lacks_v6) = address(link, known.v6, wanted_v6, as_v6);
    let missing = lacks_v4.then_some("IPv4").or(lacks_v6.then_some("IPv6"));
    let missing = missing.map(|family| format!("{} has no {family} address that can be used", link.name));
    if let Some(missing) = missing.clone().filter(|_| link.name != known.name) {
        // What was good on one interface is not on another.
        return keep(missing);
    }
    let public = PublicAddrs {
        v4: v4.map(|own| wishes.public_v4.unwrap_or(own)),
        v6: v6.map(|own| wishes.public_v6.unwrap_or(own)),
    };
    let mtu = if link.mtu == 0 { known.mtu } else { link.mtu };
    let external = ExternalInterface::new(&link.name, link.index, mtu, PublicAddrs { v4, v6 });
    Followed { external: external.with_public(public), missing }
}

/// The interface, and the addresses of it that are decided.
fn link<'f>(
    facts: &'f Facts,
    wishes: &Wishes,
    families: Families,
    basis: Basis,
    known: &ExternalInterface,
) -> Option<(&'f LinkFact, Fixed)> {
    let undecided = |link: &'f LinkFact| (link, Fixed::default());
    let named = || facts.links.iter().find(|link| link.name == known.name);
    // An address that is replaced takes its routes with it for a moment.
    let by_index = |index: Option<u32>| match index {
        Some(index) => facts.links.iter().find(|link| link.index == index),
        None => named(),
    };
    match basis {
        Basis::Name => named().map(undecided),
        Basis::Address(address) => owner(facts, address).map(undecided),
        Basis::Pattern => {
            let is_there = |link: &&LinkFact| {
                let has = |address| link.addresses.iter().any(|fact| fact.address == address);
                let v4 = known.v4.filter(|_| families.v4).map(IpAddr::V4);
                v4.or(known.v6.map(IpAddr::V6)).is_some_and(has)
            };
            let again = || wishes.patterns.iter().find_map(|pattern| matched(facts, pattern, families));
            named().filter(is_there).map(undecided).or_else(again)
        }
        Basis::Way => {
            let way = facts.way.as_ref().and_then(|way| way.as_ref().ok());
            let fixed = Fixed { v4: way.and_then(|way| way.source).and_then(as_v4), v6: None };
            by_index(way.map(|way| way.index)).map(|link| (link, fixed))
        }
        Basis::DefaultRoute => {
            let routes = if families.v4 { &facts.default_routes_v4 } else { &facts.default_routes_v6 };
            by_index(routes.iter().find_map(|route| route.index)).map(undecided)
        }
    }
}

/// What is asked of an interface for one family.
struct Wanted<A> {
    is_used: bool,
    /// The address to take if the one that is known is gone.
    fixed: Option<A>,
    basis: Basis,
}

/// The address of a family, and whether one is missing. A family that is not in use keeps what it had. One for the link
/// only never takes the place of a global one: it is what hosts give themselves while they wait for another.
fn address<A: Copy + PartialEq + Into<IpAddr>>(
    link: &LinkFact,
    known: Option<A>,
    wanted: Wanted<A>,
    family: fn(IpAddr) -> Option<A>,
) -> (Option<A>, bool) {
    let Wanted { is_used, fixed, basis } = wanted;
    if !is_used {
        return (known, false);
    }
    let is_there = |address: &A| {
        let mut same = link.addresses.iter().filter(|fact| family(fact.address) == Some(*address));
        same.any(|fact| !fact.deprecated || basis == Basis::Address(fact.address))
    };
    let was_global = known.is_none_or(|known| is_global(known.into()));
    let other = preferred(link, family).filter(|other| is_global((*other).into()) || !was_global);
    let now = known.filter(is_there).or(fixed).or(other);
    (now.or(known), now.is_none() && known.is_some())
}

#[cfg(test)]
mod tests;
