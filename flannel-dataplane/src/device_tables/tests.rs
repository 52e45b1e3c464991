//! The kernel's tables keep the promises of every table.

use flannel_netlink::{
    LinkChange, Namespace, NeighbourState, NewLink, NewLinkKind, NewVxlan, Route, RouteFilter, RouteKind,
};
use flannel_testing::contract::table::TableSubject;
use ipnet::IpNet;

use super::*;
use crate::overlay_routes::{OverlayRoute, OverlayRouteTable};
use crate::routes::{RouteOwner, RouteProtocol};

/// A namespace with a tunnel device and a bridge.
struct TunnelHost {
    scope: DeviceScope,
    bridge: u32,
}

impl TunnelHost {
    fn new() -> Self {
        let namespace = Namespace::create().expect("these tests make network namespaces: run them as root");
        let netlink_handle = SharedNetlink::open_in(&namespace).unwrap();
        let mut netlink = netlink_handle.lock();
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        let loopback = netlink.link("lo").unwrap().unwrap();
        netlink.change_link(loopback.index, &up).unwrap();
        let vxlan = NewVxlan { vni: 1, port: Some(8472), ..NewVxlan::default() };
        let mut create = |name: &str, kind| {
            netlink.create_link(&NewLink { up: true, ..NewLink::new(name, kind) }).unwrap();
            netlink.link(name).unwrap().unwrap().index
        };
        let index = create("flannel.1", NewLinkKind::Vxlan(vxlan));
        let bridge = create("other", NewLinkKind::Bridge);
        drop(netlink);
        let scope = DeviceScope { netlink: netlink_handle, index, family: IpFamily::V4 };
        Self { scope, bridge }
    }

    /// Writes foreign objects.
    fn write(&self, writes: &[WriteRequest]) {
        self.scope.netlink.write(writes).into_iter().collect::<Result<(), _>>().unwrap();
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn mac(n: u8) -> Mac {
    Mac([0x0e, 0, 0, 0, 0, n])
}

struct NeighbourSubject(TunnelHost);

impl NeighbourSubject {
    /// One on another device, and one that is not permanent.
    fn foreign(&self) -> [Neighbour; 2] {
        let state = NeighbourState::NoArp;
        [
            Neighbour::permanent(self.0.bridge, address("10.5.2.0"), mac(9)),
            Neighbour { state, ..Neighbour::permanent(self.0.scope.index, address("10.5.9.9"), mac(9)) },
        ]
    }
}

impl TableSubject for NeighbourSubject {
    type Table = NeighbourTable;

    fn open(&mut self) -> NeighbourTable {
        NeighbourTable { scope: self.0.scope.clone() }
    }

    fn samples(&self) -> Vec<(IpAddr, Mac, Mac)> {
        (2..6).map(|n| (IpAddr::from([10, 5, n, 0]), mac(n), mac(n + 100))).collect()
    }

    /// The kernel accepts any neighbour.
    fn unwritable(&self) -> Option<(IpAddr, Mac)> {
        None
    }

    fn add_foreign_objects(&mut self) {
        self.0.write(&self.foreign().map(WriteRequest::PutNeighbour));
    }

    fn foreign_is_unchanged(&mut self) -> bool {
        let all = self.0.scope.netlink.lock().neighbours(0, Some(IpFamily::V4)).unwrap();
        self.foreign().iter().all(|foreign| all.contains(foreign))
    }
}

struct FdbSubject(TunnelHost);

impl FdbSubject {
    /// One on another device, and one that the device might have learned.
    fn foreign(&self) -> [FdbEntry; 2] {
        let learned = NeighbourState::Reachable;
        let entry = |index, n| FdbEntry::permanent(index, mac(n), address("192.168.64.9"));
        [
            FdbEntry { destination: None, ..entry(self.0.bridge, 2) },
            FdbEntry { state: learned, ..entry(self.0.scope.index, 99) },
        ]
    }
}

impl TableSubject for FdbSubject {
    type Table = FdbTable;

    fn open(&mut self) -> FdbTable {
        FdbTable { scope: self.0.scope.clone() }
    }

    fn samples(&self) -> Vec<(Mac, IpAddr, IpAddr)> {
        let public = |n| IpAddr::from([192, 168, 64, n]);
        (2..6).map(|n| (mac(n), public(n), public(n + 100))).collect()
    }

    /// An endpoint must have the address family of the underlay.
    fn unwritable(&self) -> Option<(Mac, IpAddr)> {
        Some((mac(66), address("fd00:64::66")))
    }

    fn add_foreign_objects(&mut self) {
        self.0.write(&self.foreign().map(WriteRequest::PutFdb));
    }

    fn foreign_is_unchanged(&mut self) -> bool {
        let all = self.0.scope.netlink.lock().fdb(0).unwrap();
        let is_there = |foreign: &FdbEntry| {
            let key = |entry: &FdbEntry| (entry.index, entry.mac, entry.destination);
            all.iter().any(|entry| key(entry) == key(foreign))
        };
        self.foreign().iter().all(is_there)
    }
}

struct OverlayRouteSubject(TunnelHost);

impl OverlayRouteSubject {
    /// One through another device, one in another table, and one to nowhere.
    fn foreign(&self) -> [Route; 3] {
        let elsewhere = Route::attached(net("10.66.0.0/16"), self.0.bridge);
        let table = Route { table: 77, ..Route::attached(net("10.5.2.0/24"), self.0.scope.index) };
        let index = None;
        let kind = RouteKind::Blackhole;
        let nowhere = Route { index, kind, scope: 0, ..Route::attached(net("10.67.0.0/16"), 0) };
        [elsewhere, table, nowhere]
    }
}

impl TableSubject for OverlayRouteSubject {
    type Table = OverlayRouteTable;

    fn open(&mut self) -> OverlayRouteTable {
        let owner = RouteOwner { protocol: RouteProtocol::default(), network: net("10.5.0.0/16") };
        OverlayRouteTable::new(self.0.scope.clone(), owner)
    }

    fn samples(&self) -> Vec<(IpNet, OverlayRoute, OverlayRoute)> {
        let sample = |n: u8| {
            let subnet = net(&format!("10.5.{n}.0/24"));
            let value = OverlayRoute::to(subnet, usize::from(n) * 25);
            // Even routes are replaced in place, odd ones by a route with another metric.
            let metric = if n.is_multiple_of(2) { value.metric } else { 7 };
            let gateway = Some(IpAddr::from([10, 5, 200, n]));
            (subnet, value, OverlayRoute { gateway, metric, ..value })
        };
        (2..6).map(sample).collect()
    }

    /// A multicast address cannot be a gateway.
    fn unwritable(&self) -> Option<(IpNet, OverlayRoute)> {
        let subnet = net("224.5.2.0/24");
        Some((subnet, OverlayRoute::to(subnet, 0)))
    }

    fn add_foreign_objects(&mut self) {
        self.0.write(&self.foreign().map(WriteRequest::PutRoute));
    }

    fn foreign_is_unchanged(&mut self) -> bool {
        let filter = RouteFilter { family: Some(IpFamily::V4), ..RouteFilter::default() };
        let all = self.0.scope.netlink.lock().routes(&filter).unwrap();
        self.foreign().iter().all(|foreign| all.contains(foreign))
    }
}

mod neighbours {
    use super::*;

    flannel_testing::table_contract!(
        #[test]
        NeighbourSubject(TunnelHost::new()),
        skip: { unwritable = "the kernel accepts any neighbour" }
    );
}

mod fdb {
    use super::*;

    flannel_testing::table_contract!(
        #[test]
        FdbSubject(TunnelHost::new())
    );
}

mod routes {
    use super::*;

    flannel_testing::table_contract!(
        #[test]
        OverlayRouteSubject(TunnelHost::new())
    );

    #[test]
    fn a_route_in_the_way_is_named_and_left() {
        let mut kernel = OverlayRouteSubject(TunnelHost::new());
        let foreign = Route::attached(net("10.5.2.0/24"), kernel.0.bridge);
        kernel.0.write(&[WriteRequest::PutRoute(foreign.clone())]);
        let (key, value, _) = kernel.samples().remove(0);
        let mut table = kernel.open();
        let answers = table.apply(&[Change::Put { key, value, instead_of: None }]);
        let reason = answers[0].as_ref().unwrap_err().to_string();
        assert_eq!(reason, format!("blocked by a foreign route: route 10.5.2.0/24 dev {}", kernel.0.bridge));
        assert_eq!(table.read().unwrap(), []);
    }
}
