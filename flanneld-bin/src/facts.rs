//! What the kernel says about this host's interfaces.

use flannel_netlink::{Address, Error, Family, Link, Netlink, Route, RouteFilter};

use crate::iface::{AddressFact, DefaultRoute, Facts, LinkFact};

/// Reads the interfaces, their addresses and the default routes of the namespace that the process is in.
pub(crate) fn read() -> Result<Facts, Error> {
    let mut netlink = Netlink::open()?;
    Ok(Facts {
        default_routes_v4: default_routes(&mut netlink, Family::V4)?,
        default_routes_v6: default_routes(&mut netlink, Family::V6)?,
        ..interfaces(&mut netlink)?
    })
}

/// Reads the interfaces and their addresses only: to find the default routes, the kernel hands out all routes there
/// are.
pub(crate) fn read_interfaces() -> Result<Facts, Error> {
    interfaces(&mut Netlink::open()?)
}

fn interfaces(netlink: &mut Netlink) -> Result<Facts, Error> {
    let links = netlink.links()?;
    let addresses = netlink.addresses(0)?;
    let links = links.into_iter().map(|link| link_fact(link, &addresses)).collect();
    Ok(Facts { links, ..Facts::default() })
}

fn link_fact(link: Link, addresses: &[Address]) -> LinkFact {
    let addresses =
        addresses.iter().filter(|address| address.index == link.index).map(address_fact).collect();
    LinkFact { index: link.index, name: link.name, mtu: link.mtu, addresses }
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

fn default_routes(netlink: &mut Netlink, family: Family) -> Result<Vec<DefaultRoute>, Error> {
    let filter =
        RouteFilter { family: Some(family), table: Some(Route::MAIN_TABLE), ..RouteFilter::default() };
    let mut routes = netlink.routes(&filter)?;
    routes.retain(|route| route.destination.prefix_len() == 0);
    routes.sort_by_key(|route| route.metric.unwrap_or(0));
    Ok(routes
        .into_iter()
        .map(|route| DefaultRoute { next_hops: route.index.into_iter().collect() })
        .collect())
}
