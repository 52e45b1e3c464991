//! The contract of tables, on the kernel.

use flannel_netlink::{LinkChange, NewLink, NewLinkKind, NewVxlan};
use flannel_testing::contract::table::TableSubject;

use super::*;
use crate::overlay_routes::{OverlayRoute, Routes};
use crate::routes::{Mark, RouteProtocol};
use flannel_netlink::{Route, RouteFilter, RouteKind};
use ipnet::IpNet;

/// A namespace with a tunnel device and a bridge.
struct Kernels {
    place: Place,
    bridge: u32,
}

impl Kernels {
    fn new() -> Self {
        let namespace = Namespace::create().expect("these tests make network namespaces: run them as root");
        let kernel = Kernel::open_in(&namespace).unwrap();
        let mut netlink = kernel.lock();
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
        let place = Place { kernel, index, family: IpFamily::V4 };
        Self { place, bridge }
    }

    /// Writes objects that are not ours.
    fn write(&self, writes: &[WriteRequest]) {
        self.place.kernel.apply(writes).into_iter().collect::<Result<(), _>>().unwrap();
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

struct NeighboursInKernel(Kernels);

impl NeighboursInKernel {
    /// One on another device, and one that is not permanent.
    fn foreign(&self) -> [Neighbour; 2] {
        let uncertain = flannel_netlink::NeighbourState::NoArp;
        [
            Neighbour::permanent(self.0.bridge, address("10.5.2.0"), mac(9)),
            Neighbour {
                state: uncertain,
                ..Neighbour::permanent(self.0.place.index, address("10.5.9.9"), mac(9))
            },
        ]
    }
}

impl TableSubject for NeighboursInKernel {
    type Table = Neighbours;

    fn open(&mut self) -> Neighbours {
        Neighbours(self.0.place.clone())
    }

    fn samples(&self) -> Vec<(IpAddr, Mac, Mac)> {
        (2..6).map(|n| (IpAddr::from([10, 5, n, 0]), mac(n), mac(n + 100))).collect()
    }

    /// The kernel takes any neighbour.
    fn impossible(&self) -> Option<(IpAddr, Mac)> {
        None
    }

    fn add_foreign_objects(&mut self) {
        self.0.write(&self.foreign().map(WriteRequest::PutNeighbour));
    }

    fn foreign_is_unchanged(&mut self) -> bool {
        let all = self.0.place.kernel.lock().neighbours(0, Some(IpFamily::V4)).unwrap();
        self.foreign().iter().all(|foreign| all.contains(foreign))
    }
}

struct FdbInKernel(Kernels);

impl FdbInKernel {
    /// One on another device, and one that the device might have learned.
    fn foreign(&self) -> [FdbEntry; 2] {
        let learned = flannel_netlink::NeighbourState::Reachable;
        let entry = |index, n| FdbEntry::permanent(index, mac(n), address("192.168.64.9"));
        [
            FdbEntry { destination: None, ..entry(self.0.bridge, 2) },
            FdbEntry { state: learned, ..entry(self.0.place.index, 99) },
        ]
    }
}

impl TableSubject for FdbInKernel {
    type Table = Fdb;

    fn open(&mut self) -> Fdb {
        Fdb(self.0.place.clone())
    }

    fn samples(&self) -> Vec<(Mac, IpAddr, IpAddr)> {
        let public = |n| IpAddr::from([192, 168, 64, n]);
        (2..6).map(|n| (mac(n), public(n), public(n + 100))).collect()
    }

    /// A tunnel ends at an address of the underlay's family.
    fn impossible(&self) -> Option<(Mac, IpAddr)> {
        Some((mac(66), address("fd00:64::66")))
    }

    fn add_foreign_objects(&mut self) {
        self.0.write(&self.foreign().map(WriteRequest::PutFdb));
    }

    fn foreign_is_unchanged(&mut self) -> bool {
        let all = self.0.place.kernel.lock().fdb(0).unwrap();
        let is_there = |foreign: &FdbEntry| {
            let key = |entry: &FdbEntry| (entry.index, entry.mac, entry.destination);
            all.iter().any(|entry| key(entry) == key(foreign))
        };
        self.foreign().iter().all(is_there)
    }
}

struct RoutesInKernel(Kernels);

impl RoutesInKernel {
    /// One through another device, one in another table, and one to nowhere.
    fn foreign(&self) -> [Route; 3] {
        let elsewhere = Route::attached(net("10.66.0.0/16"), self.0.bridge);
        let table = Route { table: 77, ..Route::attached(net("10.5.2.0/24"), self.0.place.index) };
        let index = None;
        let kind = RouteKind::Blackhole;
        let nowhere = Route { index, kind, scope: 0, ..Route::attached(net("10.67.0.0/16"), 0) };
        [elsewhere, table, nowhere]
    }
}

impl TableSubject for RoutesInKernel {
    type Table = Routes;

    fn open(&mut self) -> Routes {
        let mark = Mark { protocol: RouteProtocol::default(), network: net("10.5.0.0/16") };
        Routes::new(self.0.place.clone(), mark)
    }

    fn samples(&self) -> Vec<(IpNet, OverlayRoute, OverlayRoute)> {
        let sample = |n: u8| {
            let subnet = net(&format!("10.5.{n}.0/24"));
            let value = OverlayRoute::to(subnet, usize::from(n) * 25);
            // Even ones are replaced in place, odd ones by a route with another metric.
            let metric = if n.is_multiple_of(2) { value.metric } else { 7 };
            let gateway = Some(IpAddr::from([10, 5, 200, n]));
            (subnet, value, OverlayRoute { gateway, metric, ..value })
        };
        (2..6).map(sample).collect()
    }

    /// No route goes by a gateway that is a group.
    fn impossible(&self) -> Option<(IpNet, OverlayRoute)> {
        let subnet = net("224.5.2.0/24");
        Some((subnet, OverlayRoute::to(subnet, 0)))
    }

    fn add_foreign_objects(&mut self) {
        self.0.write(&self.foreign().map(WriteRequest::PutRoute));
    }

    fn foreign_is_unchanged(&mut self) -> bool {
        let filter = RouteFilter { family: Some(IpFamily::V4), ..RouteFilter::default() };
        let all = self.0.place.kernel.lock().routes(&filter).unwrap();
        self.foreign().iter().all(|foreign| all.contains(foreign))
    }
}

mod neighbours {
    use super::*;

    flannel_testing::table_contract!(
        #[test]
        NeighboursInKernel(Kernels::new())
    );
}

mod fdb {
    use super::*;

    flannel_testing::table_contract!(
        #[test]
        FdbInKernel(Kernels::new())
    );
}

mod routes {
    use super::*;

    flannel_testing::table_contract!(
        #[test]
        RoutesInKernel(Kernels::new())
    );

    #[test]
    fn a_route_in_the_way_is_named_and_left() {
        let mut kernel = RoutesInKernel(Kernels::new());
        let foreign = Route::attached(net("10.5.2.0/24"), kernel.0.bridge);
        kernel.0.write(&[WriteRequest::PutRoute(foreign.clone())]);
        let (key, value, _) = kernel.samples().remove(0);
        let mut table = kernel.open();
        let answers = table.apply(&[Change::Put { key, value, instead_of: None }]);
        let reason = answers[0].as_ref().unwrap_err().to_string();
        assert_eq!(
            reason,
            format!("somebody else's route is in its place: route 10.5.2.0/24 dev {}", kernel.0.bridge)
        );
        assert_eq!(table.read().unwrap(), []);
    }
}
