use std::sync::Arc;

use flannel_core::reconcile::Table;
use flannel_core::{BackendAttrs, Json, LeaseAttrs, LeaseChange, Revision, Term};
use flannel_dataplane::{DirectRouteTable, FdbTable, NeighbourTable, OverlayRouteTable, RouteProtocol};
use proptest::prelude::*;

use super::*;

/// Trackers without tables.
#[derive(Debug)]
struct Trackers {
    neighbours: Tracker<IpAddr, Mac>,
    fdb: Tracker<Mac, IpAddr>,
    routes: Tracker<IpNet, OverlayRoute>,
    direct: Tracker<IpNet, Route>,
}

impl Trackers {
    fn new() -> Self {
        Self {
            neighbours: Tracker::new(NeighbourTable::satisfies),
            fdb: Tracker::new(FdbTable::satisfies),
            routes: Tracker::new(OverlayRouteTable::satisfies),
            direct: Tracker::new(DirectRouteTable::satisfies),
        }
    }

    /// Updates the peers. Those with the public address `on_link` are on the link.
    fn update(&mut self, objects: &mut PeerObjects, peers: &PeerSet, dirty: &Dirty, on_link: Option<IpAddr>) {
        let protocol = RouteProtocol::default();
        let mut next_hop = |_: IpNet, public: IpAddr| {
            (Some(public) == on_link).then_some(NextHop { gateway: public, index: 2, protocol })
        };
        let mut trackers = ObjectTrackers {
            next_hop: &mut next_hop,
            path_problem: &mut |_, _| None,
            direct: &mut self.direct,
            neighbours: &mut self.neighbours,
            fdb: &mut self.fdb,
            routes: &mut self.routes,
        };
        objects.update(peers, dirty, &own(), IpFamily::V4, &mut trackers);
    }

    /// Returns the desired objects of a subnet and MAC address: its neighbour, its FDB entry, and the gateways of its
    /// overlay and direct route.
    fn of(&self, subnet: IpNet, mac: Mac) -> (Option<Mac>, Option<IpAddr>, [Option<IpAddr>; 2]) {
        let direct = self.direct.desired(&subnet).and_then(|route| route.gateway);
        (
            self.neighbours.desired(&subnet.network()).copied(),
            self.fdb.desired(&mac).copied(),
            [self.routes.desired(&subnet).and_then(|route| route.gateway), direct],
        )
    }
}

fn key(subnet: &str) -> SubnetKey {
    subnet.parse().unwrap()
}

fn own() -> SubnetKey {
    key("10.5.1.0-24")
}

fn lease(subnet: &str, record: &str) -> Lease {
    Lease {
        subnet: key(subnet),
        attrs: LeaseAttrs::from_record(record).unwrap(),
        revision: Revision(1),
        term: Term::Limited,
    }
}

fn v4(subnet: &str, record: &str) -> Result<TunnelPeer, String> {
    TunnelPeer::from_lease(&lease(subnet, record), &own(), IpFamily::V4).unwrap()
}

fn peers(leases: impl IntoIterator<Item = Lease>) -> PeerSet {
    let mut peers = PeerSet::default();
    peers.extend(leases.into_iter().map(|lease| LeaseChange::Put(Arc::new(lease))));
    peers
}

const V0_11: &str =
    r#"{"PublicIP":"192.168.64.2","BackendType":"vxlan","BackendData":{"VtepMAC":"0e:00:00:00:00:02"}}"#;
const V0_28: &str = r#"{"PublicIP":"192.168.64.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:02"}}"#;
const DUAL: &str = r#"{"PublicIP":"192.168.64.2","PublicIPv6":"fd00:64::2","BackendType":"vxlan",
    "BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:02"},"BackendV6Data":{"VNI":1,"VtepMAC":"0e:00:00:00:00:62"}}"#;

#[test]
fn leases_of_every_upstream_release_are_read() {
    let peer = TunnelPeer {
        subnet: "10.5.2.0/24".parse().unwrap(),
        mac: Mac([0x0e, 0, 0, 0, 0, 2]),
        public: "192.168.64.2".parse().unwrap(),
        next_hop: None,
    };
    for record in [V0_11, V0_28, DUAL] {
        assert_eq!(v4("10.5.2.0-24", record), Ok(peer), "{record}");
    }
}

#[test]
fn each_family_has_its_part_of_a_lease() {
    let both = lease("10.5.2.0-24&fd00:5:0:2::-64", DUAL);
    let six = TunnelPeer::from_lease(&both, &own(), IpFamily::V6).unwrap().unwrap();
    assert_eq!(
        (six.subnet.to_string(), six.mac.to_string(), six.public.to_string()),
        ("fd00:5:0:2::/64".into(), "0e:00:00:00:00:62".into(), "fd00:64::2".into())
    );
    assert_eq!(TunnelPeer::from_lease(&lease("10.5.2.0-24", DUAL), &own(), IpFamily::V6), None);
}

#[test]
fn an_unusable_lease_is_refused_with_a_reason() {
    let vxlan = |data: &str| format!(r#"{{"PublicIP":"192.168.64.2","BackendType":"vxlan"{data}}}"#);
    let cases = [
        (
            "10.5.2.0-24",
            r#"{"PublicIP":"192.168.64.2"}"#.to_owned(),
            "ignoring non-vxlan subnet(10.5.2.0/24): type=",
        ),
        (
            "10.5.2.0-24",
            r#"{"PublicIP":"192.168.64.2","BackendType":"host-gw"}"#.to_owned(),
            "ignoring non-vxlan subnet(10.5.2.0/24): type=host-gw",
        ),
        (
            "10.5.2.0-24",
            V0_28.replace("vxlan", "VXLAN"),
            "ignoring non-vxlan subnet(10.5.2.0/24): type=VXLAN",
        ),
        ("10.5.2.0-24", vxlan(""), "its lease has no BackendData"),
        ("10.5.2.0-24", vxlan(r#","BackendData":{}"#), "its lease has no VtepMAC"),
        (
            "10.5.2.0-24",
            vxlan(r#","BackendData":{"VtepMAC":"01:00:00:00:00:02"}"#),
            r#"VtepMAC of its lease is "01:00:00:00:00:02", expected the MAC address of a device"#,
        ),
        (
            "10.5.2.0-24",
            V0_28.replace("192.168.64.2", "0.0.0.0"),
            "its lease has no public address of this family",
        ),
        ("10.5.0.0-16", V0_28.to_owned(), "its subnet overlaps this host's subnet 10.5.1.0-24"),
        ("10.5.1.128-25", V0_28.to_owned(), "its subnet overlaps this host's subnet 10.5.1.0-24"),
    ];
    for (subnet, record, reason) in cases {
        assert_eq!(v4(subnet, &record), Err(reason.to_owned()), "{subnet} {record}");
    }
}

#[test]
fn the_first_peer_by_subnet_wins_a_conflict() {
    let same_start = V0_28.replace("00:02", "00:03");
    let peers =
        peers([lease("10.5.2.0-24", V0_28), lease("10.5.3.0-24", V0_28), lease("10.5.2.0-25", &same_start)]);
    let (mut objects, mut trackers) = (PeerObjects::default(), Trackers::new());
    trackers.update(&mut objects, &peers, &Dirty::All, None);
    let refused: Vec<_> = objects.unreachable().map(ToString::to_string).collect();
    assert_eq!(
        refused,
        [
            "peer 10.5.2.0-25: the subnet of another peer starts at 10.5.2.0 too",
            "peer 10.5.3.0-24: the peer 192.168.64.2 has a device with the MAC address 0e:00:00:00:00:02 too",
        ]
    );
}

#[test]
fn a_peer_on_the_link_has_a_direct_route_only() {
    let other = V0_28.replace("00:02", "00:03").replace("64.2", "65.3");
    let peers = peers([lease("10.5.2.0-24", V0_28), lease("10.5.3.0-24", &other)]);
    let (mut objects, mut trackers) = (PeerObjects::default(), Trackers::new());
    let (public, gateway) = ("192.168.64.2".parse().unwrap(), "10.5.3.0".parse().unwrap());
    trackers.update(&mut objects, &peers, &Dirty::All, Some(public));
    let of = |trackers: &Trackers, subnet: &str, n| {
        trackers.of(subnet.parse().unwrap(), Mac([0x0e, 0, 0, 0, 0, n]))
    };
    assert_eq!(of(&trackers, "10.5.2.0/24", 2), (None, None, [None, Some(public)]));
    let tunnel = of(&trackers, "10.5.3.0/24", 3);
    assert_eq!(tunnel.2, [Some(gateway), None]);
    assert!(tunnel.0.is_some() && tunnel.1.is_some());
}

#[test]
fn the_first_routes_have_no_metric_and_all_others_a_unique_one() {
    let net = |n: u32| IpNet::new(IpAddr::from((0x0a05_0000 + (n << 8)).to_be_bytes()), 24).unwrap();
    let metric = |n: u32, others| OverlayRoute::to(net(n), others).metric;
    assert_eq!([metric(0, 0), metric(63, 63)], [0, 0]);
    let mut metrics: Vec<_> = (0..65_536).map(|n| metric(n, 64)).collect();
    assert!(!metrics.contains(&0));
    metrics.sort_unstable();
    metrics.dedup();
    assert_eq!(metrics.len(), 65_536);
    assert_eq!(OverlayRoute::to("0.0.0.0/24".parse().unwrap(), 64).metric, 1);
    assert_eq!(OverlayRoute::to("fd00:5::/64".parse().unwrap(), 64).metric, 1024);
}

#[test]
fn any_metric_satisfies() {
    let few = OverlayRoute::to("10.5.2.0/24".parse().unwrap(), 0);
    let many = OverlayRoute::to("10.5.2.0/24".parse().unwrap(), 1000);
    assert_ne!(few, many);
    assert!(OverlayRouteTable::satisfies(&few, &many) && OverlayRouteTable::satisfies(&many, &few));
    assert!(!OverlayRouteTable::satisfies(&few, &OverlayRoute { onlink: false, ..few }));
    assert!(!OverlayRouteTable::satisfies(&few, &OverlayRoute { gateway: None, ..few }));
    assert!(!OverlayRouteTable::satisfies(&few, &OverlayRoute { tos: 0x10, ..few }));
}

/// Few enough to conflict often.
const SUBNETS: [&str; 7] =
    ["10.5.2.0-24", "10.5.3.0-24", "10.5.4.0-24", "10.5.2.0-25", "10.5.2.0-23", "10.5.0.0-16", "10.5.1.0-24"];

fn step() -> impl Strategy<Value = LeaseChange> {
    let subnet = proptest::sample::select(&SUBNETS[..]).prop_map(key);
    // No lease, or one with a device and a public address, which may be unusable.
    let attrs = proptest::option::of((0_u8..5, 1_u8..4));
    (subnet, attrs).prop_map(|(subnet, attrs)| {
        let Some((mac, public)) = attrs else {
            return LeaseChange::Removed(subnet);
        };
        let data = Json::parse(&format!(r#"{{"VtepMAC":"0e:00:00:00:00:0{mac}"}}"#)).unwrap();
        let public = std::net::Ipv4Addr::new(192, 168, 64, public);
        let attrs =
            BackendAttrs::new(BackendType::VXLAN).with_data((mac > 0).then_some(data)).at(public.into());
        LeaseChange::Put(Arc::new(Lease { subnet, attrs, revision: Revision(1), term: Term::Limited }))
    })
}

fn subnet_of(change: &LeaseChange) -> SubnetKey {
    match change {
        LeaseChange::Put(lease) => lease.subnet,
        LeaseChange::Removed(subnet) | LeaseChange::Released(subnet) => *subnet,
    }
}

proptest! {
    #[test]
    fn desired_objects_depend_only_on_the_peers(
        passes in proptest::collection::vec(proptest::collection::vec(step(), 1..4), 1..12),
    ) {
        let on_link = Some("192.168.64.2".parse().unwrap());
        let mut peers = PeerSet::default();
        let (mut objects, mut trackers) = (PeerObjects::default(), Trackers::new());
        for changes in passes {
            let dirty = Dirty::Some(changes.iter().map(subnet_of).collect());
            peers.extend(changes);
            trackers.update(&mut objects, &peers, &dirty, on_link);
            let (mut fresh, mut expected) = (PeerObjects::default(), Trackers::new());
            expected.update(&mut fresh, &peers, &Dirty::All, on_link);
            for subnet in SUBNETS.into_iter().flat_map(|subnet| key(subnet).nets()) {
                for mac in 0..5 {
                    let mac = Mac([0x0e, 0, 0, 0, 0, mac]);
                    prop_assert_eq!(trackers.of(subnet, mac), expected.of(subnet, mac));
                }
            }
            prop_assert!(objects.unreachable().eq(fresh.unreachable()));
        }
    }
}
