//! The kernel objects of peers that join, change and leave.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use std::time::Duration;

use common::{
    Station, StationExt, assert_idle, ip, key, lab, lease, lines_of, lines_of_all, mac, numbered, peer,
};
use flannel_core::{Dirty, LeaseChange, PeerFailure, SyncReport};
use flannel_netlink::{FdbEntry, Neighbour, Route, RouteFilter};

fn only(subnet: &str) -> Dirty {
    Dirty::Some([key(subnet)].into())
}

#[test]
fn a_peer_has_a_route_a_neighbour_and_an_fdb_entry() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.complete([peer(2)]);
    let index = station.device().index;
    let filter = RouteFilter {
        index: Some(index),
        table: Some(Route::MAIN_TABLE),
        family: Some(flannel_netlink::IpFamily::V4),
        ..RouteFilter::default()
    };
    let route = Route::onlink(common::net("10.5.2.0/24"), common::address("10.5.2.0"), index);
    assert_eq!(station.netlink.routes(&filter).unwrap(), [route]);
    let neighbours = station.netlink.neighbours(index, filter.family).unwrap();
    let gateway = common::address("10.5.2.0");
    assert_eq!(neighbours, [Neighbour::permanent(index, gateway, mac(2))]);
    let fdb = station.netlink.fdb(index).unwrap();
    let public = common::address("192.168.64.2");
    assert_eq!(fdb, [FdbEntry::permanent(index, mac(2), public)]);
}

#[test]
fn ip_and_bridge_show_the_objects_as_upstreams() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = Station::start(host, "10.5.1.0-24");
    station.complete([peer(2), peer(3)]);
    let underlay = "192.168.64.0/24 dev eth0 proto kernel scope link src 192.168.64.1 ";
    assert_eq!(
        ip(host, "route"),
        [
            "10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink ",
            "10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink ",
            underlay,
        ]
    );
    assert_eq!(
        ip(host, "-d route show 10.5.2.0/24"),
        ["unicast 10.5.2.0/24 via 10.5.2.0 dev flannel.1 proto boot scope global onlink "]
    );
    let mut neighbours = ip(host, "-4 neigh show dev flannel.1");
    neighbours.sort();
    assert_eq!(
        neighbours,
        ["10.5.2.0 lladdr 0e:00:00:00:00:02 PERMANENT ", "10.5.3.0 lladdr 0e:00:00:00:00:03 PERMANENT ",]
    );
    let mut fdb = common::bridge(host, "fdb show dev flannel.1");
    fdb.sort();
    assert_eq!(
        fdb,
        [
            "0e:00:00:00:00:02 dst 192.168.64.2 self permanent",
            "0e:00:00:00:00:03 dst 192.168.64.3 self permanent",
        ]
    );
}

#[test]
fn an_idle_pass_writes_nothing() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.complete((2..=20).map(peer));
    assert_idle(&station.sync());
    assert_idle(&station.sync_only(&Dirty::NONE));
}

#[test]
fn a_peer_with_a_new_device_has_one_fdb_entry() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.complete([peer(2), peer(3)]);
    station.learn([lease("10.5.2.0-24", "192.168.64.2", &mac(9).to_string())]);
    let report = station.sync_only(&only("10.5.2.0-24"));
    assert_eq!((report.written, report.removed, report.failed), (2, 1, vec![]));
    let mut expected = lines_of_all([2, 3]);
    for line in &mut expected {
        *line = line.replace("0e:00:00:00:00:02", "0e:00:00:00:00:09");
    }
    expected.sort();
    assert_eq!(station.tables(), expected);
}

#[test]
fn a_new_endpoint_of_a_peer_is_followed() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.complete([peer(2)]);
    station.learn([lease("10.5.2.0-24", "192.168.64.77", &mac(2).to_string())]);
    let report = station.sync_only(&only("10.5.2.0-24"));
    assert_eq!((report.written, report.removed), (1, 0));
    let fdb = common::bridge(&station.namespace, "fdb show dev flannel.1");
    assert_eq!(fdb, ["0e:00:00:00:00:02 dst 192.168.64.77 self permanent"]);
}

#[test]
fn the_objects_of_a_peer_that_leaves_are_removed() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.complete([peer(2), peer(3)]);
    station.remove("10.5.2.0-24");
    let report = station.sync_only(&only("10.5.2.0-24"));
    assert_eq!((report.written, report.removed), (0, 3));
    assert_eq!(station.tables(), lines_of_all([3]));
}

#[test]
fn the_objects_of_a_peer_that_changes_its_backend_are_removed() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.complete([peer(2), peer(3)]);
    let mut other = peer(2);
    other.attrs.backend_type = flannel_core::BackendType::HOST_GW;
    station.learn([other]);
    let report = station.sync_only(&only("10.5.2.0-24"));
    let refused =
        PeerFailure::new(key("10.5.2.0-24"), "ignoring non-vxlan subnet(10.5.2.0/24): type=host-gw");
    assert_eq!(report.unreachable, [refused]);
    assert_eq!(station.tables(), lines_of_all([3]));
}

#[test]
fn two_peers_that_swap_their_subnets_are_both_reachable() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.complete([peer(2), peer(3)]);
    station.learn([
        lease("10.5.2.0-24", "192.168.64.3", &mac(3).to_string()),
        lease("10.5.3.0-24", "192.168.64.2", &mac(2).to_string()),
    ]);
    let dirty = Dirty::Some([key("10.5.2.0-24"), key("10.5.3.0-24")].into());
    let report = station.sync_only(&dirty);
    assert_eq!((report.failed, report.unreachable), (vec![], vec![]));
    let mut neighbours = ip(&station.namespace, "-4 neigh show dev flannel.1");
    neighbours.sort();
    assert_eq!(
        neighbours,
        ["10.5.2.0 lladdr 0e:00:00:00:00:03 PERMANENT ", "10.5.3.0 lladdr 0e:00:00:00:00:02 PERMANENT ",]
    );
    assert_idle(&station.sync());
}

#[test]
fn the_second_peer_with_a_mac_address_succeeds_the_first() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.learn([peer(2), lease("10.5.3.0-24", "192.168.64.3", &mac(2).to_string())]);
    station.peers.complete();
    let report = station.sync();
    let refused = PeerFailure::new(
        key("10.5.3.0-24"),
        "the peer 192.168.64.2 has a device with the MAC address 0e:00:00:00:00:02 too",
    );
    assert_eq!(report.unreachable, [refused]);
    assert_eq!(station.tables(), lines_of_all([2]));
    station.remove("10.5.2.0-24");
    let report = station.sync_only(&only("10.5.2.0-24"));
    assert_eq!(report.unreachable, []);
    let tables = station.tables();
    assert_eq!(tables.len(), 3, "{tables:?}");
    assert_eq!(tables[0], "0e:00:00:00:00:02 dst 192.168.64.3 self permanent");
}

#[test]
fn a_refused_object_delays_no_other() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.learn((0..2000).map(numbered));
    // A multicast address cannot be a gateway.
    station.learn([lease("224.5.2.0-24", "172.31.0.1", "0e:02:00:00:00:01")]);
    station.peers.complete();
    let report = station.sync();
    let [failure] = &report.failed[..] else { panic!("{:?}", report.failed) };
    assert_eq!(failure.object, "route 224.5.2.0/24 via 224.5.2.0");
    assert!(failure.reason.contains("invalid gateway"), "{}", failure.reason);
    let retry_in = report.retry_in.unwrap();
    assert!(retry_in <= Duration::from_millis(50), "{retry_in:?}");
    let routes = ip(&station.namespace, "route show dev flannel.1");
    assert_eq!(routes.len(), 2000);
    assert_eq!(report.written, 3 * 2001 - 1);
    // The first routes equal upstream's; each other route has a unique metric.
    let mut metrics: Vec<&str> =
        routes.iter().filter_map(|line| line.split_once(" metric ")).map(|(_, metric)| metric).collect();
    assert_eq!(metrics.len(), 2000 - 64);
    metrics.sort_unstable();
    metrics.dedup();
    assert_eq!(metrics.len(), 2000 - 64);
    // Retried after the backoff, not before.
    let report = station.sync_only(&Dirty::NONE);
    assert_eq!((report.written, report.failed.len()), (0, 1));
    station.peers.apply(LeaseChange::Removed(key("224.5.2.0-24")));
    let report = station.sync_only(&only("224.5.2.0-24"));
    assert_eq!((report.removed, report.failed, report.retry_in), (2, vec![], None));
}

#[test]
fn the_cost_of_a_pass_is_proportional_to_the_change() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.complete((0..300).map(numbered));
    station.learn([peer(2)]);
    let expected = SyncReport::default();
    let report = station.sync_only(&only("10.5.2.0-24"));
    assert_eq!((report.written, report.removed, report.drifted), (3, 0, 0));
    assert_eq!((report.failed, report.retry_in), (expected.failed, None));
    assert_idle(&station.sync());
    let [route, ..] = lines_of(2);
    let line = ip(&station.namespace, "route show 10.5.2.0/24").remove(0);
    assert!(line.starts_with(&route.replace("onlink", "dev flannel.1")), "{line}");
    assert!(line.contains(" metric "), "{line}");
}

#[test]
fn a_peer_whose_packets_do_not_leave_the_host_is_unreachable_while_it_lasts() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.complete([peer(2), peer(3)]);
    let own = "the public address of 10.5.2.0/24 is this host's own (192.168.64.2)";
    let rejects = "the blackhole route 192.168.64.2/32 rejects packets to its public address 192.168.64.2";
    for (add, remove, reason) in [
        ("address add 192.168.64.2/32 dev lo", "address del 192.168.64.2/32 dev lo", own),
        ("address add 192.168.64.2/24 dev eth0", "address del 192.168.64.2/24 dev eth0", own),
        ("route add local 192.168.64.2 dev lo", "route del local 192.168.64.2 dev lo", own),
        ("route add blackhole 192.168.64.2", "route del blackhole 192.168.64.2", rejects),
    ] {
        station.settle();
        ip(&station.namespace, add);
        assert_eq!(station.heal().failed, []);
        let unreachable = station.sync_only(&Dirty::NONE).unreachable;
        assert_eq!(unreachable, [PeerFailure::new(key("10.5.2.0-24"), reason)], "{add}");
        station.settle();
        ip(&station.namespace, remove);
        station.heal();
        assert_eq!(station.sync_only(&Dirty::NONE).unreachable, [], "{remove}");
        assert_eq!(station.tables(), lines_of_all([2, 3]));
    }
}
