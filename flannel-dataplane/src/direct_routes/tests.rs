//! Direct routes on the kernel: the promises of every table, adoption, and foreign routes.

use flannel_netlink::{Address, LinkChange, Namespace, NewLink, NewLinkKind};
use flannel_testing::contract::table::TableSubject;

use super::*;

/// A namespace with an external interface, whose link is 192.168.64.0/24 and fd00:64::/64.
struct LinkHost {
    netlink: SharedNetlink,
    family: IpFamily,
    external: u32,
    other: u32,
}

impl LinkHost {
    fn new(family: IpFamily) -> Self {
        let namespace = Namespace::create().expect("these tests make network namespaces: run them as root");
        let shared = SharedNetlink::open_in(&namespace).unwrap();
        let mut netlink = shared.lock();
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        let loopback = netlink.link("lo").unwrap().unwrap();
        netlink.change_link(loopback.index, &up).unwrap();
        let mut create = |name: &str| {
            netlink.create_link(&NewLink { up: true, ..NewLink::new(name, NewLinkKind::Bridge) }).unwrap();
            netlink.link(name).unwrap().unwrap().index
        };
        let (external, other) = (create("eth0"), create("eth1"));
        for net in ["192.168.64.1/24", "fd00:64::1/64"] {
            let flags = if net.contains(':') { Address::NO_DAD } else { 0 };
            let address = Address { flags, ..Address::new(external, self::net(net)) };
            netlink.add_address(&address).unwrap();
        }
        drop(netlink);
        Self { netlink: shared, family, external, other }
    }

    /// The subnet number `n`, and a gateway to it.
    fn peer(&self, n: u8) -> (IpNet, IpAddr) {
        match self.family {
            IpFamily::V4 => (net(&format!("10.5.{n}.0/24")), IpAddr::from([192, 168, 64, n])),
            IpFamily::V6 => (net(&format!("fd00:5:0:{n}::/64")), format!("fd00:64::{n}").parse().unwrap()),
        }
    }

    fn route(&self, n: u8, others: usize) -> Route {
        let (subnet, gateway) = self.peer(n);
        NextHop { gateway, index: self.external, protocol: RouteProtocol::default() }.route(subnet, others)
    }

    fn write(&self, writes: &[WriteRequest]) {
        self.netlink.write(writes).into_iter().collect::<Result<(), _>>().unwrap();
    }

    fn all(&self) -> Vec<Route> {
        let filter = RouteFilter { family: Some(self.family), ..RouteFilter::default() };
        self.netlink.lock().routes(&filter).unwrap()
    }

    /// A route of protocol boot, one outside the network, one in another table and a blackhole.
    fn foreign(&self) -> [Route; 4] {
        let unmarked = Route { protocol: Route::PROTOCOL_BOOT, ..self.route(66, 0) };
        let outside = match self.family {
            IpFamily::V4 => "10.6.2.0/24",
            IpFamily::V6 => "fd00:6::/64",
        };
        let outside = Route { destination: net(outside), ..self.route(66, 0) };
        let table = Route { table: 77, ..self.route(2, 0) };
        let (index, gateway, kind) = (None, None, RouteKind::Blackhole);
        let nowhere = Route { index, gateway, kind, ..self.route(67, 0) };
        [unmarked, outside, table, nowhere]
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

impl TableSubject for LinkHost {
    type Table = DirectRouteTable;

    fn open(&mut self) -> DirectRouteTable {
        let network = match self.family {
            IpFamily::V4 => net("10.5.0.0/16"),
            IpFamily::V6 => net("fd00:5::/48"),
        };
        let owner = RouteOwner { protocol: RouteProtocol::default(), network };
        DirectRouteTable { netlink: self.netlink.clone(), family: self.family, owner, tunnel: None }
    }

    fn samples(&self) -> Vec<(IpNet, Route, Route)> {
        let sample = |n: u8| {
            let route = self.route(n, usize::from(n) * 100);
            // Even routes are replaced in place, odd ones by a route with another metric.
            let metric = if n.is_multiple_of(2) { route.metric } else { Some(7) };
            let (_, gateway) = self.peer(n + 100);
            (route.destination, route.clone(), Route { gateway: Some(gateway), metric, ..route })
        };
        (2..6).map(sample).collect()
    }

    /// A gateway must be on the link.
    fn unwritable(&self) -> Option<(IpNet, Route)> {
        let gateway = match self.family {
            IpFamily::V4 => "192.168.65.9",
            IpFamily::V6 => "fd00:65::9",
        };
        let route = Route { gateway: gateway.parse().ok(), ..self.route(99, 0) };
        Some((route.destination, route))
    }

    fn add_foreign_objects(&mut self) {
        self.write(&self.foreign().map(WriteRequest::PutRoute));
    }

    fn foreign_is_unchanged(&mut self) -> bool {
        let all = self.all();
        let same = |one: &Route, other: &Route| {
            let key =
                |route: &Route| (route.destination, route.gateway, route.table, route.protocol, route.kind);
            key(one) == key(other)
        };
        self.foreign().iter().all(|foreign| all.iter().any(|route| same(route, foreign)))
    }
}

mod v4 {
    use super::*;

    flannel_testing::table_contract!(
        #[test]
        LinkHost::new(IpFamily::V4)
    );
}

mod v6 {
    use super::*;

    flannel_testing::table_contract!(
        #[test]
        LinkHost::new(IpFamily::V6)
    );
}

fn put(route: &Route) -> [Change<IpNet, Route>; 1] {
    [Change::Put { key: route.destination, value: route.clone(), instead_of: None }]
}

#[test]
fn a_route_of_upstream_flannel_is_adopted_whatever_its_metric() {
    for family in IpFamily::BOTH {
        for metric in [None, Some(5)] {
            let mut host = LinkHost::new(family);
            let ours = host.route(2, 0);
            let left = Route { protocol: Route::PROTOCOL_BOOT, ..ours.clone() };
            let left = Route { metric: metric.or(left.metric), ..left };
            host.write(&[WriteRequest::PutRoute(left)]);
            let mut table = host.open();
            assert_eq!(table.read().unwrap(), []);
            table.apply(&put(&ours)).remove(0).unwrap();
            let there: Vec<_> =
                host.all().into_iter().filter(|route| route.destination == ours.destination).collect();
            assert_eq!(there, [ours], "{family} {metric:?}");
        }
    }
}

#[test]
fn a_foreign_route_that_blocks_ours_is_named_and_kept() {
    for family in IpFamily::BOTH {
        let mut host = LinkHost::new(family);
        let ours = host.route(2, 0);
        let (_, elsewhere) = host.peer(9);
        let static_ = Route { protocol: 4, ..ours.clone() };
        let unequal = Route { protocol: Route::PROTOCOL_BOOT, gateway: Some(elsewhere), ..ours.clone() };
        let other = Route { metric: ours.metric, ..Route::attached(ours.destination, host.other) };
        for foreign in [static_, unequal, other] {
            host.write(&[WriteRequest::PutRoute(foreign.clone())]);
            let reason = host.open().apply(&put(&ours)).remove(0).unwrap_err().to_string();
            assert_eq!(reason, format!("blocked by a foreign route: {foreign}"));
            assert_eq!(host.open().read().unwrap(), []);
            host.write(&[WriteRequest::DeleteRoute(foreign)]);
        }
    }
}
