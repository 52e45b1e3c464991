//! Leftovers on the device are adopted or removed; foreign objects stay.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use std::time::{Duration, Instant};

use common::{Station, StationExt, assert_idle, ip, lab, lines_of_all, mac, numbered, peer};
use flannel_core::{Dirty, NetworkConfig};
use flannel_netlink::{Neighbour, NeighbourState, Route, WriteRequest};

fn apply(station: &mut Station, writes: &[WriteRequest]) {
    for outcome in station.netlink.apply(writes) {
        outcome.unwrap();
    }
}

/// Leftovers of a former peer or of another program, as one line of `ip` or `bridge` each.
const LEFTOVERS: [&str; 12] = [
    "route add 10.5.66.0/24 via 10.5.66.0 dev flannel.1 onlink",
    "route add 10.5.67.0/24 via 10.5.67.0 dev flannel.1 onlink metric 77",
    "route add 10.5.68.0/24 via 10.5.68.0 dev flannel.1 onlink proto static",
    "route add 10.5.69.0/24 dev flannel.1 scope link",
    "route add 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink metric 500",
    "route add 10.5.2.0/24 dev flannel.1 metric 600",
    "route append 10.5.2.0/24 dev flannel.1 scope link",
    "route add 10.5.2.0/24 tos 0x10 via 10.5.2.0 dev flannel.1 onlink",
    "neigh add 10.5.66.0 lladdr 0e:00:00:00:00:66 dev flannel.1 nud permanent",
    "fdb add 0e:00:00:00:00:66 dev flannel.1 dst 192.168.64.66",
    "fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.168.64.67",
    "fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.168.64.68",
];

fn litter(station: &Station) {
    for line in LEFTOVERS {
        if line.starts_with("fdb") {
            common::bridge(&station.namespace, line);
        } else {
            ip(&station.namespace, line);
        }
    }
}

#[test]
fn leftovers_are_removed_once_all_peers_are_known() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.complete([peer(2), peer(3)]);
    litter(&station);
    let littered = station.tables();
    assert_eq!(littered.len(), 6 + LEFTOVERS.len(), "{littered:#?}");
    // After a restart, one peer is known at first.
    station.peers = flannel_core::PeerSet::default();
    let mut station = station.restart();
    station.learn([peer(3)]);
    let report = station.sync();
    assert_eq!((report.written, report.removed), (0, 0));
    assert_eq!(station.tables(), littered);
    station.learn([peer(2)]);
    station.peers.complete();
    until_quiet(&mut station);
    assert_eq!(station.tables(), lines_of_all([2, 3]));
    assert_idle(&station.sync());
}

/// Runs passes until none is requested.
fn until_quiet(station: &mut Station) {
    for _ in 0..5 {
        let report = station.sync();
        assert_eq!(report.failed, []);
        let Some(pause) = report.retry_in else { return };
        assert!(pause < Duration::from_secs(1), "{pause:?}");
    }
    panic!("passes without end");
}

#[test]
fn routes_of_upstream_without_metrics_are_adopted() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    let index = station.device().index;
    let leases: Vec<_> = (0..400_u32).map(numbered).collect();
    let put = |lease: &flannel_core::Lease| {
        let net = lease.subnet.nets().next().unwrap();
        WriteRequest::PutRoute(Route::onlink(net, net.network(), index))
    };
    let writes: Vec<_> = leases.iter().map(put).collect();
    apply(&mut station, &writes);
    let before = ip(&station.namespace, "route show dev flannel.1");
    station.complete(leases);
    assert_eq!(ip(&station.namespace, "route show dev flannel.1"), before);
    assert_idle(&station.sync());
}

#[test]
fn a_foreign_route_to_a_peer_is_reported_until_it_is_removed() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = Station::start(host, "10.5.1.0-24");
    ip(host, "route add 10.5.2.0/24 via 192.168.64.254 dev eth0");
    let foreign = "10.5.2.0/24 via 192.168.64.254 dev eth0 ";
    station.learn([peer(2), peer(3)]);
    station.peers.complete();
    let report = station.sync();
    let [failure] = &report.failed[..] else { panic!("{report:?}") };
    assert_eq!(failure.object, "route 10.5.2.0/24 via 10.5.2.0");
    let index = station.external.index;
    assert_eq!(
        failure.reason,
        format!("blocked by a foreign route: route 10.5.2.0/24 via 192.168.64.254 dev {index}")
    );
    assert_eq!(ip(host, "route show 10.5.2.0/24"), [foreign]);
    assert_eq!(station.tables().len(), 5, "the other peer has all, this one two");
    // Our route is added as soon as the foreign one is removed.
    let mut now = Instant::now();
    for _ in 0..12 {
        now += Duration::from_secs(60);
        let report = station.backend.sync(flannel_core::SyncRequest::new(&station.peers, &Dirty::NONE, now));
        assert_eq!(report.failed.len(), 1);
    }
    ip(host, "route del 10.5.2.0/24 via 192.168.64.254 dev eth0");
    assert_eq!(station.heal().failed, []);
    assert_eq!(station.tables(), lines_of_all([2, 3]));
}

/// Beyond 64 peers a route has a metric, and the kernel accepts a second route to the same subnet.
#[test]
fn a_foreign_route_that_shadows_ours_is_reported_among_many_peers() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let config = NetworkConfig::parse(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#).unwrap();
    let mut station = Station::start_with(host, "10.5.1.0-24", &config);
    let leases: Vec<_> = (0..300_u32).map(numbered).collect();
    let last = leases.last().unwrap().subnet.v4().unwrap();
    // One exists before our route, the other is added later.
    ip(host, &format!("route add {last} via 192.168.64.254 dev eth0"));
    station.learn(leases);
    station.peers.complete();
    let report = station.sync();
    let [failure] = &report.failed[..] else { panic!("{report:?}") };
    assert_eq!(failure.object, format!("route {last} via {}", last.addr()));
    let index = station.external.index;
    let reason =
        |net: &str| format!("blocked by a foreign route: route {net} via 192.168.64.254 dev {index}");
    assert_eq!(failure.reason, reason(&last.to_string()));
    assert_eq!(ip(host, "route show dev flannel.1").len(), 299, "no other object waits");
    let other = numbered(298).subnet.v4().unwrap();
    ip(host, &format!("route add {other} via 192.168.64.254 dev eth0"));
    station.heal();
    let report = station.sync();
    let reasons: Vec<_> = report.failed.iter().map(|failure| failure.reason.clone()).collect();
    assert_eq!(reasons, [reason(&other.to_string()), reason(&last.to_string())]);
    assert_eq!((report.drifted, report.written), (0, 0), "reported once");
    assert_eq!(ip(host, &format!("route show {other}")).len(), 2, "neither is touched");
    for foreign in [last, other] {
        ip(host, &format!("route del {foreign} via 192.168.64.254 dev eth0"));
        station.heal();
    }
    assert_idle(&station.sync());
    assert_eq!(ip(host, "route show dev flannel.1").len(), 300);
    // A shadowed route is removed with its peer.
    ip(host, &format!("route add {other} via 192.168.64.254 dev eth0"));
    station.heal();
    station.remove(&format!("{}-24", other.addr()));
    assert_eq!(station.sync().failed, []);
    assert_eq!(ip(host, &format!("route show {other}")), [format!("{other} via 192.168.64.254 dev eth0 ")]);
}

#[test]
fn foreign_objects_are_left_alone() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = Station::start(host, "10.5.1.0-24");
    ip(host, "link add dummy0 up type bridge");
    for foreign in [
        "address add 10.99.0.1/24 dev flannel.1",
        "route add 10.66.0.0/16 via 192.168.64.254",
        "route add 10.5.9.0/24 dev dummy0",
        "route add 10.67.0.0/24 dev flannel.1 table 77",
        "route add blackhole 10.5.8.0/24",
        "neigh add 192.168.64.9 lladdr 0e:00:00:00:00:99 dev eth0 nud permanent",
        "neigh add 10.99.0.7 lladdr 0e:00:00:00:00:98 dev flannel.1 nud reachable",
        "rule add from 10.5.0.0/16 lookup 77",
    ] {
        ip(host, foreign);
    }
    let look = || {
        let routes = ip(host, "route show table all");
        let neighbours = ip(host, "neigh show").into_iter();
        let foreign = neighbours.filter(|line| !line.contains("10.5.")).map(|line| {
            // The kernel changes the states of neighbours.
            line.replace("STALE", "REACHABLE")
        });
        (routes, foreign.collect::<Vec<_>>(), ip(host, "rule"))
    };
    let before = look();
    station.complete([peer(2)]);
    station.remove("10.5.2.0-24");
    station.sync();
    assert_eq!(look(), before);
}

#[test]
fn a_neighbour_in_another_state_is_made_permanent_again() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.complete([peer(2)]);
    station.settle();
    let index = station.device().index;
    let uncertain = Neighbour {
        state: NeighbourState::Stale,
        ..Neighbour::permanent(index, common::address("10.5.2.0"), mac(2))
    };
    apply(&mut station, &[WriteRequest::PutNeighbour(uncertain)]);
    let report = station.heal();
    assert_eq!((report.written, report.drifted), (1, 1));
    assert_eq!(station.tables(), lines_of_all([2]));
}
