//! The kernel objects that backends create and change.

use flannel_netlink::{Error, IpFamily, Namespace, Netlink, Route, RouteFilter};

/// Lists the objects in a namespace that a backend could create or change, one line each: links, their IPv4 addresses,
/// permanent neighbours and FDB entries, and the routes of the main table.
///
/// Numbers that the kernel assigns are omitted, so that a recreated object has the same line.
///
/// # Errors
///
/// Returns the kernel's errors.
pub fn kernel_objects(namespace: &Namespace) -> Result<Vec<String>, Error> {
    let mut netlink = Netlink::open_in(namespace)?;
    let mut objects = Vec::new();
    let links = netlink.links()?;
    for link in &links {
        let (name, index) = (&link.name, link.index);
        objects.push(format!("link {name} {:?} mtu {} up {}", link.kind, link.mtu, link.up));
        for address in netlink.addresses(index)?.into_iter().filter(|address| address.net.addr().is_ipv4()) {
            objects.push(format!("address {} on {name}", address.net));
        }
        for neighbour in
            netlink.neighbours(index, Some(IpFamily::V4))?.into_iter().filter(|it| it.is_permanent())
        {
            objects.push(format!("neighbour {} {:?} on {name}", neighbour.address, neighbour.mac));
        }
        for entry in netlink.fdb(index)?.into_iter().filter(|entry| entry.is_permanent()) {
            objects.push(format!("FDB entry {} to {:?} on {name}", entry.mac, entry.destination));
        }
    }
    let filter =
        RouteFilter { family: Some(IpFamily::V4), table: Some(Route::MAIN_TABLE), ..RouteFilter::default() };
    for route in netlink.routes(&filter)? {
        let device = links.iter().find(|link| Some(link.index) == route.index).map(|link| link.name.as_str());
        let route = Route { index: None, ..route };
        objects.push(format!("route {route} {:?} on {}", route.protocol, device.unwrap_or("none")));
    }
    Ok(objects)
}
