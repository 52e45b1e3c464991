//! The kernel objects of an overlay on a host, for comparison with the desired ones.

use flannel_netlink::{
    Error, FdbEntry, IpFamily, Link, LinkKind, Mac, Neighbour, Netlink, Route, RouteFilter, RouteKind,
};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The kernel objects of an overlay in one family: a tunnel device, the objects on it, and direct routes.
///
/// Values that the kernel or the backend chooses freely, such as the index of the device and the metrics of routes, are
/// omitted. Two states are equal if and only if the host reaches the same peers in the same way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlayState {
    /// The tunnel device, if it exists.
    pub device: Option<DeviceState>,
    /// The addresses of the device, without link-local ones.
    pub addresses: BTreeSet<IpNet>,
    /// The neighbours of the device, without those that the kernel resolved.
    pub neighbours: BTreeSet<(IpAddr, Mac)>,
    /// The FDB entries. A MAC address can have several.
    pub fdb: BTreeSet<(Mac, IpAddr)>,
    /// The routes of the main table on the device, and the direct ones, sorted by destination, without metrics. Routes
    /// on the device have no index.
    pub routes: Vec<Route>,
}

/// A tunnel device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// The kind and its attributes.
    pub kind: LinkKind,
    /// The MAC address.
    pub mac: Option<Mac>,
    /// The MTU, in bytes.
    pub mtu: u32,
    /// The length of the transmit queue.
    pub txqlen: u32,
    /// Whether it is up.
    pub up: bool,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
}

impl From<Link> for DeviceState {
    fn from(link: Link) -> Self {
        let Link { kind, mac, mtu, txqlen, up, master, .. } = link;
        Self { kind, mac, mtu, txqlen, up, master }
    }
}

impl OverlayState {
    /// Reads the objects of one family. `is_direct` selects the overlay's routes that leave through other devices.
    ///
    /// # Errors
    /// Returns the kernel's errors. An object that disappears meanwhile is omitted.
    pub fn read(
        netlink: &mut Netlink,
        device: &str,
        family: IpFamily,
        is_direct: impl Fn(&Route) -> bool,
    ) -> Result<Self, Error> {
        let mut state = Self::default();
        let link = netlink.link(device)?;
        let index = link.as_ref().map(|link| link.index);
        let filter =
            RouteFilter { family: Some(family), table: Some(Route::MAIN_TABLE), ..RouteFilter::default() };
        for route in netlink.routes(&filter)? {
            let on_device = index.is_some() && route.index == index;
            if on_device && !is_kernels(&route) {
                state.routes.push(Route { metric: None, index: None, ..route });
            } else if !on_device && is_direct(&route) {
                state.routes.push(Route { metric: None, ..route });
            }
        }
        state.routes.sort_by_key(|route| (route.destination, route.gateway, route.index));
        if let Some(link) = link {
            state.read_device(netlink, link.index, family)?;
            state.device = Some(link.into());
        }
        Ok(state)
    }

    /// Returns one line per object, sorted.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let device = self.device.iter().map(|device| format!("{device:?}"));
        let addresses = self.addresses.iter().map(|net| format!("address {net}"));
        let neighbours =
            self.neighbours.iter().map(|(address, mac)| format!("neighbour {address} lladdr {mac}"));
        let fdb = self.fdb.iter().map(|(mac, public)| format!("FDB entry {mac} dst {public}"));
        let routes = self.routes.iter().map(|route| format!("route {route} proto {}", route.protocol));
        let mut lines: Vec<_> = device.chain(addresses).chain(neighbours).chain(fdb).chain(routes).collect();
        lines.sort();
        lines
    }

    /// Returns one line per difference from the desired state.
    #[must_use]
    pub fn differences(&self, desired: &Self) -> Vec<String> {
        let (here, desired) = (self.lines(), desired.lines());
        let lacks = |lines: &[String], line: &String| lines.binary_search(line).is_err();
        let surplus = here.iter().filter(|line| lacks(&desired, line)).map(|line| format!("extra: {line}"));
        let missing = desired.iter().filter(|line| lacks(&here, line)).map(|line| format!("missing: {line}"));
        let mut found: Vec<_> = surplus.chain(missing).collect();
        let twice =
            here.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| format!("duplicate: {}", pair[0]));
        found.extend(twice);
        found
    }

    fn read_device(&mut self, netlink: &mut Netlink, index: u32, family: IpFamily) -> Result<(), Error> {
        let of_family = |address: IpAddr| IpFamily::of(address) == family;
        let addresses = netlink.addresses(index)?.into_iter().filter(|address| address.scope == 0);
        self.addresses = addresses.map(|address| address.net).filter(|net| of_family(net.addr())).collect();
        let neighbours = netlink.neighbours(index, Some(family))?.into_iter();
        self.neighbours = neighbours.filter(Neighbour::is_permanent).filter_map(neighbour_entry).collect();
        let entry = |entry: FdbEntry| Some((entry.mac, entry.destination?));
        self.fdb = netlink.fdb(index)?.into_iter().filter_map(entry).collect();
        Ok(())
    }
}

/// The kernel creates routes for addresses, and for multicast groups on links with IPv6.
fn is_kernels(route: &Route) -> bool {
    route.protocol == Route::PROTOCOL_KERNEL || route.kind == RouteKind::Multicast
}

fn neighbour_entry(neighbour: Neighbour) -> Option<(IpAddr, Mac)> {
    Some((neighbour.address, neighbour.mac?))
}
