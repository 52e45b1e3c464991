//! What becomes of the external interface while the daemon runs.
//!
//! | it was chosen by | what is followed |
//! |---|---|
//! | its name | the name, whichever interface has it, and the address that this one has |
//! | its address, or `-public-ip` that it has | the address, on whichever interface it is |
//! | the default route | the default route, and the address of the interface it leaves by |
//!
//! An address that is still there is kept, however many are added. Where there is none, the last one that was good is
//! kept, because one is usually on its way.

use std::net::IpAddr;

use flannel_core::{ExternalInterface, PublicAddrs};

use super::{DefaultRoute, Facts, Families, LinkFact, Request, as_v4, as_v6, is_global, owner, preferred};

/// By what the interface was chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Basis {
    Name,
    Address(IpAddr),
    DefaultRoute,
}

/// What the interface is now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Followed {
    pub(crate) external: ExternalInterface,
    /// What is missing, so that something of what was before is kept.
    pub(crate) missing: Option<String>,
}

/// Tells by what an interface was chosen.
pub(crate) fn basis(request: &Request<'_>, chosen: &ExternalInterface) -> Basis {
    let has = |address: IpAddr| chosen.addresses().any(|own| own == address);
    let by_item = |item: &String| {
        if item.is_empty() {
            return Some(Basis::DefaultRoute);
        }
        let by_name = (*item == chosen.name).then_some(Basis::Name);
        by_name.or_else(|| item.parse().ok().filter(|address| has(*address)).map(Basis::Address))
    };
    if !request.interfaces.is_empty() {
        return request.interfaces.iter().find_map(by_item).unwrap_or(Basis::Name);
    }
    let public_v4 = request.public_v4.map(IpAddr::V4);
    let public = public_v4.into_iter().chain(request.public_v6.map(IpAddr::V6)).find(|public| has(*public));
    public.map_or(Basis::DefaultRoute, Basis::Address)
}

/// Tells what the interface is now that was chosen before.
pub(crate) fn follow(
    facts: &Facts,
    request: &Request<'_>,
    basis: Basis,
    known: &ExternalInterface,
) -> Followed {
    let keep = |missing: String| Followed { external: known.clone(), missing: Some(missing) };
    let Some(link) = link(facts, basis, known, request.families.v4) else {
        return keep(match basis {
            Basis::Name | Basis::DefaultRoute => format!("there is no interface {}", known.name),
            Basis::Address(address) => format!("no interface has the address {address}"),
        });
    };
    let Families { v4: uses_v4, v6: uses_v6 } = request.families;
    let (v4, lacks_v4) = address(link, known.v4, uses_v4, basis, as_v4);
    let (v6, lacks_v6) = address(link, known.v6, uses_v6, basis, as_v6);
    let missing = lacks_v4.then_some("IPv4").or(lacks_v6.then_some("IPv6"));
    let missing = missing.map(|family| format!("{} has no {family} address that can be used", link.name));
    if let Some(missing) = missing.clone().filter(|_| link.name != known.name) {
        // What was good on one interface is not on another.
        return keep(missing);
    }
    let public = PublicAddrs {
        v4: v4.map(|own| request.public_v4.unwrap_or(own)),
        v6: v6.map(|own| request.public_v6.unwrap_or(own)),
    };
    let mtu = if link.mtu == 0 { known.mtu } else { link.mtu };
    let external = ExternalInterface { name: link.name.clone(), index: link.index, mtu, v4, v6, public };
    Followed { external, missing }
}

fn link<'f>(
    facts: &'f Facts,
    basis: Basis,
    known: &ExternalInterface,
    uses_v4: bool,
) -> Option<&'f LinkFact> {
    match basis {
        Basis::Name => facts.links.iter().find(|link| link.name == known.name),
        Basis::Address(address) => owner(facts, address),
        Basis::DefaultRoute => {
            let routes: &[DefaultRoute] =
                if uses_v4 { &facts.default_routes_v4 } else { &facts.default_routes_v6 };
            let index = routes.iter().find_map(|route| route.next_hops.first());
            // An address that is replaced takes the default route with it for a moment.
            let is_it =
                |link: &&LinkFact| index.map_or(link.name == known.name, |index| link.index == *index);
            facts.links.iter().find(is_it)
        }
    }
}

/// The address of a family, and whether one is missing. A family that is not in use keeps what it had. One for the link only never takes the place of a global one:
/// it is what hosts give themselves while they wait for another.
fn address<A: Copy + PartialEq + Into<IpAddr>>(
    link: &LinkFact,
    known: Option<A>,
    is_used: bool,
    basis: Basis,
    family: fn(IpAddr) -> Option<A>,
) -> (Option<A>, bool) {
    if !is_used {
        return (known, false);
    }
    let is_there = |address: &A| {
        let mut same = link.addresses.iter().filter(|fact| family(fact.address) == Some(*address));
        same.any(|fact| !fact.deprecated || basis == Basis::Address(fact.address))
    };
    let was_global = known.is_none_or(|known| is_global(known.into()));
    let other = preferred(link, family).filter(|other| is_global((*other).into()) || !was_global);
    let now = known.filter(is_there).or(other);
    (now.or(known), now.is_none() && known.is_some())
}

#[cfg(test)]
mod tests;
