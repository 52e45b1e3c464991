//! The state of the external interface while the network runs. Pure.
//!
//! | selected by | tracked |
//! |---|---|
//! | its name | the interface that has the name, and its address |
//! | its address, or its public address | the interface that has the address |
//! | a pattern that matches its address | the address and, once that is gone, the pattern |
//! | the default route, or the route to an address | the interface of the route, and its address |
//!
//! An address is kept while it exists, even if others are added. Without one, the last usable state is kept, because a
//! new address usually follows. The network returns to its home address, the one that it left for want of it.

use std::net::IpAddr;

use flannel_core::{ExternalInterface, IpFamilies, PublicAddrs};

use super::address::{as_v4, as_v6, is_global, preferred, usable};
use super::facts::{HostFacts, LinkFacts};
use super::search::{Criteria, FixedAddrs, SelectedBy, first_match};

/// The current state of the interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct TrackedState {
    pub(super) external: ExternalInterface,
    /// What is missing, so that part of the previous state is kept.
    pub(super) missing: Option<String>,
    /// Whether the host has lost an address that the network uses.
    pub(super) is_lost: bool,
}

/// Returns the current state of a selected interface. `home` are the addresses to return to.
pub(super) fn track(
    facts: &HostFacts,
    criteria: &Criteria,
    families: IpFamilies,
    selected_by: SelectedBy,
    known: &ExternalInterface,
    home: PublicAddrs,
) -> TrackedState {
    let keep = |missing: String| TrackedState {
        external: known.clone(),
        missing: Some(missing),
        is_lost: is_lost(facts, families, known),
    };
    let Some((link, fixed)) = find_link(facts, criteria, families, selected_by, known) else {
        return keep(match selected_by {
            SelectedBy::Name | SelectedBy::Reachability | SelectedBy::DefaultRoute => {
                format!("there is no interface {}", known.name)
            }
            SelectedBy::Address(address) => format!("no interface has the address {address}"),
            SelectedBy::Pattern => "no interface has an address that matches -iface-regex".to_owned(),
        });
    };
    let (v4, lacks_v4) =
        current_address(link, (known.v4, home.v4), fixed.v4, families.v4, selected_by, as_v4);
    let (v6, lacks_v6) =
        current_address(link, (known.v6, home.v6), fixed.v6, families.v6, selected_by, as_v6);
    let missing = lacks_v4.then_some("IPv4").or(lacks_v6.then_some("IPv6"));
    let missing = missing.map(|family| format!("{} has no usable {family} address", link.name));
    if let Some(missing) = missing.clone().filter(|_| link.name != known.name) {
        // Half of another interface is worse than the one that worked.
        return keep(missing);
    }
    let public = PublicAddrs {
        v4: v4.map(|own| criteria.public_v4.unwrap_or(own)),
        v6: v6.map(|own| criteria.public_v6.unwrap_or(own)),
    };
    let mtu = if link.mtu == 0 { known.mtu } else { link.mtu };
    let external = ExternalInterface::new(&link.name, link.index, mtu, PublicAddrs { v4, v6 });
    let external = external.with_public(public);
    let is_lost = missing.is_some() && is_lost(facts, families, &external);
    TrackedState { external, missing, is_lost }
}

/// Returns true if no interface has an address that the network uses.
fn is_lost(facts: &HostFacts, families: IpFamilies, external: &ExternalInterface) -> bool {
    let mut used = external.addresses().filter(|address| families.contains(*address));
    used.any(|address| facts.owner(address).is_none())
}

/// Returns the interface, and its addresses that are already decided.
fn find_link<'f>(
    facts: &'f HostFacts,
    criteria: &Criteria,
    families: IpFamilies,
    selected_by: SelectedBy,
    known: &ExternalInterface,
) -> Option<(&'f LinkFacts, FixedAddrs)> {
    let undecided = |link: &'f LinkFacts| (link, FixedAddrs::default());
    let named = || facts.link_named(&known.name);
    // While an address is replaced, the routes of its interface are gone.
    let by_index = |index: Option<u32>| match index {
        Some(index) => facts.link(index),
        None => named(),
    };
    match selected_by {
        SelectedBy::Name => named().map(undecided),
        SelectedBy::Address(address) => facts.owner(address).map(undecided),
        SelectedBy::Pattern => {
            let has_address = |link: &&LinkFacts| {
                let v4 = known.v4.filter(|_| families.v4).map(IpAddr::V4);
                v4.or(known.v6.map(IpAddr::V6)).is_some_and(|address| link.has(address))
            };
            let next_match =
                || criteria.patterns.iter().find_map(|pattern| first_match(facts, pattern, families));
            named().filter(has_address).map(undecided).or_else(next_match)
        }
        SelectedBy::Reachability => {
            let lookup = facts.lookup.as_ref().and_then(|lookup| lookup.as_ref().ok());
            let source = lookup.and_then(|lookup| lookup.source);
            let fixed = FixedAddrs { v4: source.and_then(as_v4), v6: None };
            by_index(lookup.map(|lookup| lookup.index)).map(|link| (link, fixed))
        }
        SelectedBy::DefaultRoute => {
            let routes = if families.v4 { &facts.default_routes_v4 } else { &facts.default_routes_v6 };
            by_index(routes.iter().find_map(|route| route.index)).map(undecided)
        }
    }
}

/// Returns the address of a family, and whether it is missing. A family that is not in use keeps its address. A
/// link-local address never replaces a global one: hosts configure one while they wait for a global address.
fn current_address<A: Copy + PartialEq + Into<IpAddr>>(
    link: &LinkFacts,
    (known, home): (Option<A>, Option<A>),
    fixed: Option<A>,
    is_used: bool,
    selected_by: SelectedBy,
    family: fn(IpAddr) -> Option<A>,
) -> (Option<A>, bool) {
    if !is_used {
        return (known, false);
    }
    let exists = |address: &A| {
        let mut same = link.addresses.iter().filter(|facts| family(facts.address) == Some(*address));
        same.any(|facts| !facts.deprecated || selected_by == SelectedBy::Address(facts.address))
    };
    let was_global = known.is_none_or(|known| is_global(known.into()));
    let other = preferred(link, family).filter(|other| is_global((*other).into()) || !was_global);
    let home = home.filter(|home| usable(link, family).any(|(_, address)| address == *home));
    let current = home.or(known.filter(exists)).or(fixed).or(other);
    (current.or(known), current.is_none() && known.is_some())
}

#[cfg(test)]
mod tests;
