//! The interfaces of a host as the kernel reports them.

use std::net::IpAddr;

use flannel_core::chain;
use flannel_netlink::{Address, Error, IpFamily, Link, Namespace, Netlink, Route, RouteFilter, RouteKind};

/// The interfaces and routes from which the external interface is selected.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct HostFacts {
    /// Every interface, ordered by index.
    pub(super) links: Vec<LinkFacts>,
    /// The IPv4 default routes of the main table, ordered by metric.
    pub(super) default_routes_v4: Vec<DefaultRoute>,
    /// The IPv6 default routes of the main table, ordered by metric.
    pub(super) default_routes_v6: Vec<DefaultRoute>,
    /// The route to the address that must be reachable, or why it is unreachable. Absent if it was not requested.
    pub(super) lookup: Option<Result<RouteLookup, String>>,
}

/// One interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct LinkFacts {
    pub(super) index: u32,
    pub(super) name: String,
    /// The alternative names, which a selection by name accepts too.
    pub(super) alternative_names: Vec<String>,
    /// The MTU, in bytes.
    pub(super) mtu: u32,
    /// The addresses of both families, in the kernel's order.
    pub(super) addresses: Vec<AddressFacts>,
}

impl LinkFacts {
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|facts| facts.address == address)
    }
}

/// One address of an interface. The flags are those of `linux/if_addr.h`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct AddressFacts {
    pub(super) address: IpAddr,
    /// `IFA_F_PERMANENT`: the address doesn't expire, unlike one from DHCP.
    pub(super) permanent: bool,
    /// `IFA_F_DEPRECATED`: the address should not be used for new connections.
    pub(super) deprecated: bool,
    /// `IFA_F_TEMPORARY` of IPv6, which has the same value as `IFA_F_SECONDARY` of IPv4.
    pub(super) temporary: bool,
    /// The prefix covers only the address, and there is no other end of the link.
    pub(super) single_host: bool,
}

/// One default route.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct DefaultRoute {
    /// The index of the interface, or of the first usable next hop's. Absent for a route that rejects packets.
    pub(super) index: Option<u32>,
}

/// The kernel's route to an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct RouteLookup {
    /// The index of the interface.
    pub(super) index: u32,
    /// The source address that the kernel selects.
    pub(super) source: Option<IpAddr>,
}

/// What to read besides interfaces and addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct FactsRequest {
    /// Whether to read the default routes, for which the kernel dumps its whole table.
    pub(super) default_routes: bool,
    /// The address to look up a route to.
    pub(super) lookup: Option<IpAddr>,
}

impl HostFacts {
    /// Reads the facts of a namespace.
    pub(super) fn read(namespace: &Namespace, request: FactsRequest) -> Result<Self, Error> {
        let mut netlink = Netlink::open_in(namespace)?;
        let links = netlink.links()?;
        let addresses = netlink.addresses(0)?;
        let links = links.into_iter().map(|link| link_facts(link, &addresses)).collect();
        let mut facts = Self { links, ..Self::default() };
        if request.default_routes {
            facts.default_routes_v4 = default_routes(&mut netlink, IpFamily::V4)?;
            facts.default_routes_v6 = default_routes(&mut netlink, IpFamily::V6)?;
        }
        facts.lookup = request.lookup.map(|address| look_up_route(&mut netlink, address));
        Ok(facts)
    }

    /// Returns the interface with an index.
    pub(super) fn link(&self, index: u32) -> Option<&LinkFacts> {
        self.links.iter().find(|link| link.index == index)
    }

    /// Returns the interface with a name.
    pub(super) fn link_named(&self, name: &str) -> Option<&LinkFacts> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Returns the interface with a name or an alternative name.
    pub(super) fn link_with_any_name(&self, name: &str) -> Option<&LinkFacts> {
        let mut links = self.links.iter();
        links.find(|link| link.name == name || link.alternative_names.iter().any(|other| other == name))
    }

    /// Returns the first interface that has an address.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&LinkFacts> {
        self.links.iter().find(|link| link.has(address))
    }
}

fn look_up_route(netlink: &mut Netlink, address: IpAddr) -> Result<RouteLookup, String> {
    let route = netlink.route_to(address).map_err(|error| chain(&error))?;
    match route {
        Route { kind: RouteKind::Unicast, index: Some(index), source, .. } => {
            Ok(RouteLookup { index, source })
        }
        Route { kind: RouteKind::Local, .. } => Err(format!("{address} is an address of this host")),
        _ => Err(format!("no interface leads to {address}")),
    }
}

fn link_facts(link: Link, addresses: &[Address]) -> LinkFacts {
    let addresses =
        addresses.iter().filter(|address| address.index == link.index).map(address_facts).collect();
    let Link { index, name, alternative_names, mtu, .. } = link;
    LinkFacts { index, name, alternative_names, mtu, addresses }
}

fn address_facts(address: &Address) -> AddressFacts {
    /// `IFA_F_SECONDARY` of IPv4 and `IFA_F_TEMPORARY` of IPv6 (`linux/if_addr.h`).
    const TEMPORARY: u32 = 0x01;
    /// `IFA_F_PERMANENT`.
    const PERMANENT: u32 = 0x80;
    AddressFacts {
        address: address.net.addr(),
        permanent: address.flags & PERMANENT != 0,
        deprecated: address.flags & Address::DEPRECATED != 0,
        temporary: address.flags & TEMPORARY != 0,
        single_host: address.is_single_host(),
    }
}

fn default_routes(netlink: &mut Netlink, family: IpFamily) -> Result<Vec<DefaultRoute>, Error> {
    let filter =
        RouteFilter { family: Some(family), table: Some(Route::MAIN_TABLE), ..RouteFilter::default() };
    let mut routes = netlink.routes(&filter)?;
    routes.retain(|route| route.destination.prefix_len() == 0);
    routes.sort_by_key(|route| route.metric.unwrap_or(0));
    Ok(routes.into_iter().map(|route| DefaultRoute { index: route_link(netlink, &route) }).collect())
}

/// Returns the index of the link of a route. Without `net.ipv4.nexthop_compat_mode` the kernel names only the nexthop object.
fn route_link(netlink: &mut Netlink, route: &Route) -> Option<u32> {
    // The object may have been deleted since, and the route with it.
    let of_object = |id: u32| netlink.nexthop_link(id).ok().flatten();
    route.index.or(route.first_link).or_else(|| route.nexthop.and_then(of_object))
}
