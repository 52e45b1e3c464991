//! What the kernel says about this host's interfaces.

use std::net::IpAddr;

use flannel_core::chain;
use flannel_netlink::{Address, Error, IpFamily, Link, Netlink, Route, RouteFilter, RouteKind};

use super::select::{AddressFact, DefaultRoute, Facts, LinkFact, Way};

/// What is to be read beside the interfaces and their addresses.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// To find them, the kernel hands out all routes there are.
    pub default_routes: bool,
    /// The address to which the way is wanted.
    pub way_to: Option<IpAddr>,
}

/// Reads from the namespace that the process is in.
pub fn read(wanted: Wanted) -> Result<Facts, Error> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let addresses = netlink.addresses(0)?;
    let links = links.into_iter().map(|link| link_fact(link, &addresses)).collect();
    let mut facts = Facts { links, ..Facts::default() };
    if wanted.default_routes {
        facts.default_routes_v4 = default_routes(&mut netlink, IpFamily::V4)?;
        facts.default_routes_v6 = default_routes(&mut netlink, IpFamily::V6)?;
    }
    facts.way = wanted.way_to.map(|address| way(&mut netlink, address));
    Ok(facts)
}

fn way(netlink: &mut Netlink, address: IpAddr) -> Result<Way, String> {
    let route = netlink.route_to(address).map_err(|error| chain(&error))?;
    match route {
        Route { kind: RouteKind::Unicast, index: Some(index), source, .. } => Ok(Way { index, source }),
        Route { kind: RouteKind::Local, .. } => Err(format!("{address} is an address of this host")),
        _ => Err(format!("no interface leads to {address}")),
    }
}

fn link_fact(link: Link, addresses: &[Address]) -> LinkFact {
    let addresses =
        addresses.iter().filter(|address| address.index == link.index).map(address_fact).collect();
    let Link { index, name, alternative_names, mtu, .. } = link;
    LinkFact { index, name, alternative_names, mtu, addresses }
}

fn address_fact(address: &Address) -> AddressFact {
    /// `IFA_F_SECONDARY` of IPv4 and `IFA_F_TEMPORARY` of IPv6 (`linux/if_addr.h`).
    const TEMPORARY: u32 = 0x01;
    /// `IFA_F_PERMANENT`.
    const PERMANENT: u32 = 0x80;
    AddressFact {
        address: address.net.addr(),
        permanent: address.flags & PERMANENT != 0,
        deprecated: address.flags & Address::DEPRECATED != 0,
        temporary: address.flags & TEMPORARY != 0,
    }
}

fn default_routes(netlink: &mut Netlink, family: IpFamily) -> Result<Vec<DefaultRoute>, Error> {
    let filter =
        RouteFilter { family: Some(family), table: Some(Route::MAIN_TABLE), ..RouteFilter::default() };
    let mut routes = netlink.routes(&filter)?;
    routes.retain(|route| route.destination.prefix_len() == 0);
    routes.sort_by_key(|route| route.metric.unwrap_or(0));
    Ok(routes.into_iter().map(|route| DefaultRoute { index: route.index.or(route.first_link) }).collect())
}
