//! Drift is noticed and repaired; the backend's own writes are not noticed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use std::time::Duration;

use common::{DEVICE, QUIET, Station, StationExt, assert_idle, bridge, ip, lab, lines_of_all, peer};
use flannel_core::{Dirty, SyncReport};
use flannel_netlink::{IpFamily, Namespace, NeighbourState, Netlink, WriteRequest};

/// A host with three peers whose backend is idle.
fn settled(namespace: &Namespace) -> Station {
    let mut station = Station::start(namespace, "10.5.1.0-24");
    station.complete([peer(2), peer(3), peer(4)]);
    station.settle();
    station
}

/// Runs a command, lets the backend notice and repair, and compares the tables.
fn disturb(by_hand: impl FnOnce(&Namespace)) -> SyncReport {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = settled(host);
    let (tables, device) = (station.tables(), ip(host, "-d link show flannel.1"));
    let addresses = ip(host, "-4 address show flannel.1");
    by_hand(host);
    let report = station.heal();
    assert_eq!(report.failed, []);
    assert_eq!(station.tables(), tables);
    assert_eq!(without_index(&ip(host, "-d link show flannel.1")), without_index(&device));
    assert_eq!(without_index(&ip(host, "-4 address show flannel.1")), without_index(&addresses));
    assert_idle(&station.sync());
    report
}

/// Ignores the index, which a recreated device doesn't keep.
fn without_index(lines: &[String]) -> String {
    let text = lines.join("\n");
    text.split_once(": ").unwrap().1.to_owned()
}

#[test]
fn flushed_routes_are_restored() {
    let report = disturb(|host| drop(ip(host, "route flush dev flannel.1 proto boot")));
    assert_eq!((report.written, report.removed, report.drifted), (3, 0, 3));
}

#[test]
fn flushed_neighbours_are_restored() {
    let report = disturb(|host| drop(ip(host, "neigh flush dev flannel.1 nud permanent")));
    assert_eq!((report.written, report.removed, report.drifted), (3, 0, 3));
}

#[test]
fn deleted_fdb_entries_are_restored() {
    let report = disturb(|host| {
        for entry in bridge(host, "fdb show dev flannel.1") {
            let mac = entry.split(' ').next().unwrap();
            bridge(host, &format!("fdb del {mac} dev flannel.1"));
        }
    });
    assert_eq!((report.written, report.removed, report.drifted), (3, 0, 3));
}

#[test]
fn a_deleted_address_is_restored_with_its_routes() {
    let report = disturb(|host| drop(ip(host, "address del 10.5.1.0/32 dev flannel.1")));
    assert!(report.drifted > 3, "{report:?}");
}

#[test]
fn a_link_that_is_down_is_set_up_with_its_routes() {
    let report = disturb(|host| drop(ip(host, "link set flannel.1 down")));
    assert!(report.drifted > 3, "{report:?}");
}

#[test]
fn routes_return_after_the_link_was_down() {
    disturb(|host| {
        ip(host, "link set flannel.1 down");
        ip(host, "link set flannel.1 up");
    });
}

#[test]
fn a_changed_mtu_is_restored() {
    disturb(|host| drop(ip(host, "link set flannel.1 mtu 1200")));
}

#[test]
fn a_changed_mac_address_is_restored() {
    disturb(|host| drop(ip(host, "link set flannel.1 address 0e:00:00:00:00:99")));
}

#[test]
fn a_changed_queue_length_is_restored() {
    disturb(|host| drop(ip(host, "link set flannel.1 txqueuelen 1000")));
}

#[test]
fn enabled_learning_is_disabled() {
    disturb(|host| drop(ip(host, "link set flannel.1 type vxlan learning")));
}

#[test]
fn a_deleted_device_is_restored_with_its_objects() {
    let report = disturb(|host| drop(ip(host, "link del flannel.1")));
    assert_eq!((report.written, report.removed), (9, 0));
}

#[test]
fn a_foreign_device_with_our_name_is_replaced() {
    disturb(|host| {
        ip(host, "link del flannel.1");
        ip(host, "link add flannel.1 type bridge");
    });
}

#[test]
fn a_renamed_device_is_renamed_back() {
    disturb(|host| {
        ip(host, "link set flannel.1 down");
        ip(host, "link set flannel.1 name somebody");
        ip(host, "link set somebody up");
    });
}

#[test]
fn a_second_overlay_address_is_removed() {
    disturb(|host| drop(ip(host, "address add 10.5.77.0/32 dev flannel.1")));
}

#[test]
fn unwanted_entries_on_the_device_are_removed() {
    let report = disturb(|host| {
        ip(host, "route add 10.5.66.0/24 via 10.5.66.0 dev flannel.1 onlink");
        ip(host, "neigh add 10.5.66.0 lladdr 0e:00:00:00:00:66 dev flannel.1 nud permanent");
        bridge(host, "fdb add 0e:00:00:00:00:66 dev flannel.1 dst 192.168.64.66");
    });
    assert_eq!((report.written, report.removed), (0, 3));
}

#[test]
fn a_second_route_to_a_peer_is_removed() {
    let report =
        disturb(|host| drop(ip(host, "route add 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink metric 77")));
    assert_eq!((report.written, report.removed), (0, 1));
}

#[test]
fn changed_entries_are_restored() {
    let report = disturb(|host| {
        ip(host, "route replace 10.5.2.0/24 via 10.5.3.0 dev flannel.1 onlink");
        ip(host, "neigh replace 10.5.2.0 lladdr 0e:00:00:00:00:66 dev flannel.1 nud permanent");
        bridge(host, "fdb replace 0e:00:00:00:00:02 dev flannel.1 dst 192.168.64.66");
    });
    assert_eq!((report.written, report.removed, report.drifted), (3, 0, 3));
}

#[test]
fn broadcast_destinations_are_removed() {
    let report = disturb(|host| {
        bridge(host, "fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.168.64.2");
        bridge(host, "fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.168.64.3");
    });
    assert_eq!((report.written, report.removed), (0, 2));
}

#[test]
fn a_route_to_a_peer_through_another_device_is_reported_and_kept() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = settled(host);
    ip(host, "route replace 10.5.2.0/24 via 192.168.64.254 dev eth0");
    let report = station.heal();
    assert_eq!(report.failed.len(), 1, "{report:?}");
    assert_eq!(ip(host, "route show 10.5.2.0/24"), ["10.5.2.0/24 via 192.168.64.254 dev eth0 "]);
    ip(host, "route del 10.5.2.0/24");
    assert_eq!(station.heal().failed, []);
    assert_eq!(station.tables(), lines_of_all([2, 3, 4]));
}

#[test]
fn the_tunnel_returns_with_its_interface() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = settled(host);
    let tables = station.tables();
    ip(host, "link del eth0");
    assert!(station.noticed(common::DEADLINE).is_some());
    let report = station.sync_only(&Dirty::NONE);
    assert_eq!(report.failed.len(), 1, "{report:?}");
    assert!(report.retry_in.is_some());
    ip(host, "link add eth0 up type veth peer name far0");
    ip(host, "address add 192.168.64.1/24 dev eth0");
    assert_eq!(station.heal().failed, []);
    assert_eq!(station.tables(), tables);
}

#[test]
fn the_tunnel_survives_a_rename_of_its_interface() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = settled(host);
    ip(host, "link set eth0 down");
    ip(host, "link set eth0 name lan0");
    ip(host, "link set lan0 up");
    assert_idle(&station.sync());
}

/// The MTU of the tunnel cannot be restored while that of the external interface is smaller.
#[test]
fn an_mtu_that_cannot_be_restored_blocks_nothing_else() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = settled(host);
    let tables = station.tables();
    ip(host, "link set eth0 mtu 1400");
    ip(host, "link set flannel.1 mtu 1300");
    ip(host, "route flush dev flannel.1 proto boot");
    let report = station.heal();
    assert!(report.failed.iter().all(|failure| failure.object == "device flannel.1"), "{report:?}");
    assert!(report.retry_in.is_some(), "{report:?}");
    assert_eq!(station.tables(), tables);
}

#[test]
fn unrelated_changes_are_ignored() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = settled(host);
    ip(host, "link add other up type bridge");
    ip(host, "address add 10.99.0.1/24 dev other");
    ip(host, "address add 10.98.0.1/24 dev flannel.1");
    ip(host, "route add 10.66.0.0/16 via 192.168.64.254");
    ip(host, "route add 10.67.0.0/24 dev flannel.1 table 77");
    ip(host, "neigh add 10.98.0.7 lladdr 0e:00:00:00:00:98 dev flannel.1 nud reachable");
    bridge(host, "fdb add 0e:00:00:00:00:98 dev other self permanent");
    assert_eq!(station.noticed(QUIET), None);
}

/// The notifications of its own writes overflow the socket buffer, which causes one idle pass.
#[test]
fn a_large_network_causes_one_idle_pass() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.complete((0..6000_u32).map(|n| {
        let [_, b, c, d] = n.to_be_bytes();
        let mac = format!("0e:01:00:{b:02x}:{c:02x}:{d:02x}");
        common::lease(&format!("10.{}.{d}.0-24", 16 + c), &format!("172.16.{c}.{d}"), &mac)
    }));
    station.settle();
}

#[test]
fn lost_notifications_cause_a_full_pass() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = settled(host);
    let index = station.device().index;
    // A neighbour is deleted among more notifications than the buffer holds.
    ip(host, "neigh del 10.5.2.0 dev flannel.1");
    let mut netlink = Netlink::open_in(host).unwrap();
    let other = flannel_netlink::Route::attached("10.200.0.0/24".parse().unwrap(), station.external.index);
    let storm: Vec<_> = (0..30_000)
        .map(|n| {
            let metric = 1 + n / 2;
            let route = other.clone().with_metric(metric);
            if n % 2 == 0 { WriteRequest::PutRoute(route) } else { WriteRequest::DeleteRoute(route) }
        })
        .collect();
    assert!(netlink.apply(&storm).iter().all(Result::is_ok));
    let noticed = station.noticed(common::DEADLINE).unwrap();
    assert_eq!(noticed, "notifications were lost");
    let report = station.sync_only(&Dirty::NONE);
    assert_eq!((report.written, report.drifted), (1, 1));
    assert_eq!(station.device().index, index);
    assert_eq!(station.netlink.link(DEVICE).unwrap().unwrap().index, index);
}

/// An audit finds drift that no notification reported.
#[test]
fn an_audit_repairs_unnoticed_drift() {
    let lab = lab(1);
    let mut station = settled(&lab.hosts[0].namespace);
    ip(&station.namespace, "route flush dev flannel.1 proto boot");
    ip(&station.namespace, "link set flannel.1 mtu 1200");
    assert_idle(&station.sync_only(&Dirty::NONE));
    let report = station.sync();
    assert_eq!((report.written, report.drifted), (3, 1 + 3));
    assert_eq!(station.tables(), lines_of_all([2, 3, 4]));
    assert_eq!(station.device().mtu, 1450);
}

/// A change of the device may unblock an object, so its backoff ends.
#[test]
fn a_failed_object_is_retried_when_the_device_changes() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = settled(host);
    let tables = station.tables();
    // The host's own address cannot be a gateway.
    ip(host, "address add 10.5.2.0/32 dev lo");
    ip(host, "route del 10.5.2.0/24");
    assert_eq!(station.heal().failed.len(), 1);
    for _ in 0..8 {
        let report = station.sync_later(Duration::from_secs(60));
        assert_eq!(report.failed.len(), 1, "{report:?}");
    }
    ip(host, "address del 10.5.2.0/32 dev lo");
    assert_eq!(station.sync_only(&Dirty::NONE).written, 0, "it waits");
    ip(host, "link set flannel.1 mtu 1200");
    assert_eq!((station.heal().failed, station.tables()), (vec![], tables));
}

/// Incomplete neighbours are deleted before the kernel's own retry; other neighbours stay.
#[test]
fn incomplete_neighbours_are_probed_again_when_the_interface_is_back() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = settled(host);
    let index = station.external.index;
    let mut netlink = Netlink::open_in(host).unwrap();
    let mut unanswered = |station: &mut Station, later: Duration| {
        // Like a packet, this makes the kernel resolve an address that no host has.
        ip(host, "neigh replace 192.168.64.77 dev eth0 use");
        let report = station.sync_later(later);
        let known = netlink.neighbours(index, Some(IpFamily::V4)).unwrap();
        let is_unanswered =
            |neighbour: &&flannel_netlink::Neighbour| neighbour.state == NeighbourState::Incomplete;
        (known.iter().filter(is_unanswered).count(), report.retry_in)
    };
    assert_eq!(unanswered(&mut station, Duration::ZERO), (1, None), "that is the kernel's business");
    ip(host, "link set eth0 down");
    ip(host, "link set eth0 up");
    ip(host, "neigh add 192.168.64.66 lladdr 0e:00:00:00:00:66 dev eth0 nud permanent");
    while station.noticed(QUIET).is_some() {}
    let mut times = 0;
    let (mut later, mut pause) = (Duration::ZERO, Some(Duration::ZERO));
    while let Some(next) = pause {
        later += next;
        let (count, next) = unanswered(&mut station, later);
        assert_eq!(count, 0);
        (pause, times) = (next, times + 1);
    }
    assert_eq!(times, 7);
    assert_eq!(
        ip(host, "neigh show dev eth0 nud permanent"),
        ["192.168.64.66 lladdr 0e:00:00:00:00:66 PERMANENT "]
    );
}
