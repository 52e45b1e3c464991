//! Which interface carries the traffic between hosts, and which address peers reach it at.
//!
//! [`choose`] decides from [`Facts`] that were read before, in this order:
//!
//! 1. `-iface`: each item, a name or an address, until one fits.
//! 2. `-public-ip` alone: the interface that has this address; if none has, there is address translation
//!    between this host and its peers, and the next rule applies.
//! 3. The interface of the default route.
//!
//! [`follow()`] decides what becomes of the choice while the daemon runs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_core::{ExternalInterface, PublicAddrs};
use tracing::{info, warn};

mod follow;

pub(crate) use follow::{Basis, Followed, basis, follow};

/// What the kernel says about the interfaces of this host.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Facts {
    /// Every interface, in the order of their indexes.
    pub(crate) links: Vec<LinkFact>,
    /// The IPv4 default routes of the main table in the kernel's order, which is that of their metrics.
    pub(crate) default_routes_v4: Vec<DefaultRoute>,
    /// The same for IPv6.
    pub(crate) default_routes_v6: Vec<DefaultRoute>,
}

/// One interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct LinkFact {
    /// The number of the interface.
    pub(crate) index: u32,
    /// The name of the interface.
    pub(crate) name: String,
    /// The largest packet, in bytes.
    pub(crate) mtu: u32,
    /// Its addresses of both families, in the kernel's order.
    pub(crate) addresses: Vec<AddressFact>,
}

/// One address of an interface; the flags are those of `linux/if_addr.h`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct AddressFact {
    /// The address.
    pub(crate) address: IpAddr,
    /// `IFA_F_PERMANENT`: it does not expire, as one from DHCP does.
    pub(crate) permanent: bool,
    /// `IFA_F_DEPRECATED`: it should not be used for anything new.
    pub(crate) deprecated: bool,
    /// `IFA_F_TEMPORARY` of IPv6, which is the same bit as `IFA_F_SECONDARY` of IPv4.
    pub(crate) temporary: bool,
}

/// One default route.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct DefaultRoute {
    /// The index of the interface of each next hop; none for a route that only rejects.
    pub(crate) next_hops: Vec<u32>,
}

/// What the operator asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    /// The values of `-iface`: names or addresses in the order of preference. An empty value, which a unit
    /// makes of a variable that is not set, stands for the interface of the default route.
    pub(crate) interfaces: &'a [String],
    /// The value of `-public-ip`.
    pub(crate) public_v4: Option<Ipv4Addr>,
    /// The value of `-public-ipv6`.
    pub(crate) public_v6: Option<Ipv6Addr>,
    /// The families that the network uses, of which the interface needs an address.
    pub(crate) families: Families,
}

/// The address families of a network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Families {
    /// Whether hosts reach each other over IPv4.
    pub(crate) v4: bool,
    /// Whether hosts reach each other over IPv6.
    pub(crate) v6: bool,
}

/// Why there is no external interface. Each message is one line and lists what the host has.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum IfaceError {
    /// No item of `-iface` fits; the operator has to change them.
    #[error(
        "Failed to find interface to use that matches the interfaces and/or regexes provided: {tried}; \
         this host has {present}"
    )]
    NoMatch {
        /// Each item with the reason why not.
        tried: String,
        /// The interfaces of the host.
        present: String,
    },
    /// Nothing was asked for, and the host has no obvious interface (yet): it may get its default route
    /// or its address later.
    #[error("Failed to find any valid interface to use: {why}; -iface can name one; this host has {present}")]
    NoDefault {
        /// What is missing.
        why: String,
        /// The interfaces of the host.
        present: String,
    },
}

/// Chooses the external interface and logs what it is, or why an item of `-iface` is passed over.
pub(crate) fn choose(facts: &Facts, request: &Request<'_>) -> Result<ExternalInterface, IfaceError> {
    let chosen = if request.interfaces.is_empty() {
        unnamed(facts, request).map_err(|why| IfaceError::NoDefault { why, present: present(facts) })
    } else {
        first_match(facts, request).map_err(|tried| IfaceError::NoMatch { tried, present: present(facts) })
    }?;
    announce(&chosen, request);
    Ok(chosen)
}

/// Chooses the external interface of a network whose families are not known before its configuration was read: by
/// IPv4 or, on a host without it, by IPv6. What the interface has of the other family is taken along.
pub(crate) fn choose_any(facts: &Facts, request: &Request<'_>) -> Result<ExternalInterface, IfaceError> {
    let by = |v4, v6| choose(facts, &Request { families: Families { v4, v6 }, ..*request });
    let no_ipv4 = facts.links.iter().all(|link| preferred(link, as_v4).is_none());
    let mut chosen = if no_ipv4 { by(false, true)? } else { by(true, false)? };
    let link = facts.links.iter().find(|link| link.index == chosen.index);
    // A link-local address does not lead to hosts on other links.
    let other = link.and_then(|link| preferred(link, as_v6)).filter(|v6| is_global(IpAddr::V6(*v6)));
    if chosen.v6.is_none() && other.is_some() {
        chosen.v6 = other;
        chosen.public.v6 = request.public_v6.or(other);
    }
    Ok(chosen)
}

/// The interface of the first item of `-iface` that fits, or the list of what is wrong with each.
fn first_match(facts: &Facts, request: &Request<'_>) -> Result<ExternalInterface, String> {
    let mut tried = Vec::new();
    for item in request.interfaces {
        match matching(facts, request, item) {
            Ok(chosen) => return Ok(chosen),
            Err(why) => {
                info!("Could not find valid interface matching {item}: {why}");
                tried.push(format!("-iface={item}: {why}"));
            }
        }
    }
    Err(tried.join("; "))
}

/// The interface that one item of `-iface` means.
fn matching(facts: &Facts, request: &Request<'_>, item: &str) -> Result<ExternalInterface, String> {
    if item.is_empty() {
        return with_addresses(default_link(facts, request.families)?, None, request);
    }
    let failed = |why: &str| format!("error looking up interface {item}: {why}");
    if let Ok(address) = item.parse() {
        info!("Searching for interface using {address}");
        let link = owner(facts, address).ok_or_else(|| failed("No interface with given IP found"))?;
        return with_addresses(link, Some(address), request);
    }
    let named = facts.links.iter().find(|link| link.name == item);
    let link = named.ok_or_else(|| failed("route ip+net: no such network interface"))?;
    with_addresses(link, None, request)
}

/// The interface when `-iface` is not given.
fn unnamed(facts: &Facts, request: &Request<'_>) -> Result<ExternalInterface, String> {
    let public_v4 = request.public_v4.filter(|_| request.families.v4).map(|ip| ("public-ip", IpAddr::V4(ip)));
    let public_v6 =
        request.public_v6.filter(|_| request.families.v6).map(|ip| ("public-ipv6", IpAddr::V6(ip)));
    if let Some((flag, address)) = public_v4.or(public_v6) {
        info!("Searching for interface using {address}");
        if let Some(link) = owner(facts, address) {
            return with_addresses(link, Some(address), request);
        }
        warn!("no interface has the address {address} of -{flag}; using the interface of the default route");
    }
    with_addresses(default_link(facts, request.families)?, None, request)
}

/// The first interface that has exactly this address.
fn owner(facts: &Facts, address: IpAddr) -> Option<&LinkFact> {
    facts.links.iter().find(|link| link.addresses.iter().any(|fact| fact.address == address))
}

/// The interface of the default route; of both families' default routes, if both are in use.
fn default_link(facts: &Facts, families: Families) -> Result<&LinkFact, String> {
    info!("Determining IP address of default interface");
    let v4 = families.v4.then(|| first_next_hop(facts, &facts.default_routes_v4)).transpose()?;
    let v6 = families.v6.then(|| first_next_hop(facts, &facts.default_routes_v6)).transpose()?;
    if let (Some(v4), Some(v6)) = (v4, v6)
        && v4.index != v6.index
    {
        return Err(format!(
            "v6 default route interface {} must be the same with v4 default route interface {}",
            v6.name, v4.name
        ));
    }
    v4.or(v6).ok_or_else(|| "neither IPv4 nor IPv6 is enabled".to_owned())
}

/// The interface of the first next hop of the first default route that has one.
///
/// Of several next hops the first is taken, because a host needs one interface and any of them leads out.
fn first_next_hop<'f>(facts: &'f Facts, routes: &[DefaultRoute]) -> Result<&'f LinkFact, String> {
    let failed = |why: String| format!("failed to get default interface: {why}");
    if routes.is_empty() {
        return Err(failed("unable to find default route".to_owned()));
    }
    let index = routes.iter().find_map(|route| route.next_hops.first());
    let index =
        index.ok_or_else(|| failed("found default route but could not determine interface".into()))?;
    let link = facts.links.iter().find(|link| link.index == *index);
    link.ok_or_else(|| failed(format!("interface {index} of the default route does not exist")))
}

/// Completes `link` with its own addresses, of which `fixed` is already decided, and the published ones.
fn with_addresses(
    link: &LinkFact,
    fixed: Option<IpAddr>,
    request: &Request<'_>,
) -> Result<ExternalInterface, String> {
    let missing = |family: &str| format!("failed to find {family} address for interface {}", link.name);
    let families = request.families;
    let v4 = families
        .v4
        .then(|| fixed.and_then(as_v4).or_else(|| preferred(link, as_v4)).ok_or_else(|| missing("IPv4")));
    let v6 = families
        .v6
        .then(|| fixed.and_then(as_v6).or_else(|| preferred(link, as_v6)).ok_or_else(|| missing("IPv6")));
    let (v4, v6) = (v4.transpose()?, v6.transpose()?);
    if link.mtu == 0 {
        let address = v4.map(IpAddr::V4).or(v6.map(IpAddr::V6));
        let address = address.map_or_else(|| link.name.clone(), |address| address.to_string());
        return Err(format!("failed to determine MTU for {address} interface"));
    }
    Ok(ExternalInterface {
        name: link.name.clone(),
        index: link.index,
        mtu: link.mtu,
        v4,
        v6,
        public: PublicAddrs {
            v4: v4.map(|own| request.public_v4.unwrap_or(own)),
            v6: v6.map(|own| request.public_v6.unwrap_or(own)),
        },
    })
}

/// The address of a family that suits best: global before link-local, permanent before dynamic, then
/// primary before secondary or temporary, then the kernel's order. Deprecated ones do not count.
fn preferred<A>(link: &LinkFact, family: fn(IpAddr) -> Option<A>) -> Option<A> {
    let usable = link.addresses.iter().filter(|fact| !fact.deprecated).filter_map(|fact| {
        let rank = (!is_global(fact.address), !fact.permanent, fact.temporary);
        let unicast = is_global(fact.address) || is_link_local(fact.address);
        family(fact.address).filter(|_| unicast).map(|address| (rank, address))
    });
    usable.min_by_key(|(rank, _)| *rank).map(|(_, address)| address)
}

/// Whether an address can be reached from other links; private ranges count.
fn is_global(address: IpAddr) -> bool {
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

fn as_v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn as_v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(address),
    }
}

/// Logs the choice in the words that operators search for.
fn announce(chosen: &ExternalInterface, request: &Request<'_>) {
    let name = &chosen.name;
    if let Some(address) = chosen.v4 {
        info!("Using interface with name {name} and address {address}");
        match request.public_v4 {
            Some(public) => info!("Using {public} as external address"),
            None => info!("Defaulting external address to interface address ({address})"),
        }
    }
    if let Some(address) = chosen.v6 {
        info!("Using interface with name {name} and v6 address {address}");
        match request.public_v6 {
            Some(public) => info!("Using {public} as external v6 address"),
            None => info!("Defaulting external v6 address to interface address ({address})"),
        }
    }
}

/// The interfaces of the host with their addresses, cut short on a host that has very many.
fn present(facts: &Facts) -> String {
    /// Enough to find a misspelt name among, few enough for a line.
    const SHOWN: usize = 20;
    if facts.links.is_empty() {
        return "no interface".to_owned();
    }
    let mut words: Vec<String> = facts.links.iter().take(SHOWN).map(described).collect();
    if facts.links.len() > SHOWN {
        words.push(format!("{} more", facts.links.len() - SHOWN));
    }
    words.join(", ")
}

/// One interface with its addresses.
fn described(link: &LinkFact) -> String {
    let addresses: Vec<String> = link.addresses.iter().map(|fact| fact.address.to_string()).collect();
    if addresses.is_empty() {
        format!("{} (no address)", link.name)
    } else {
        format!("{} ({})", link.name, addresses.join(" "))
    }
}

#[cfg(test)]
mod tests;
