//! Whatever anybody does by hand is noticed and put right, and what the backend does itself is not noticed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use std::time::Duration;

use common::{DEVICE, QUIET, Station, StationExt, assert_idle, bridge, ip, lab, lines_of_all, peer};
use flannel_core::{Dirty, SyncReport};
use flannel_netlink::{IpFamily, Namespace, NeighbourState, Netlink, WriteRequest};

/// A host with three peers, whose backend has nothing more to tell.
fn settled(namespace: &Namespace) -> Station {
    let mut station = Station::start(namespace, "10.5.1.0-24");
    station.complete([peer(2), peer(3), peer(4)]);
    station.settle();
    station
}

/// Does something by hand, has the backend notification and look again, and finds everything as it was.
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

/// A device that was made anew has another index.
fn without_index(lines: &[String]) -> String {
    let text = lines.join("\n");
    text.split_once(": ").unwrap().1.to_owned()
}

#[test]
fn flushed_routes_come_back() {
    let report = disturb(|host| drop(ip(host, "route flush dev flannel.1 proto boot")));
    assert_eq!((report.written, report.removed, report.drifted), (3, 0, 3));
}

#[test]
fn flushed_neighbours_come_back() {
    let report = disturb(|host| drop(ip(host, "neigh flush dev flannel.1 nud permanent")));
    assert_eq!((report.written, report.removed, report.drifted), (3, 0, 3));
}

#[test]
fn deleted_forwarding_entries_come_back() {
    let report = disturb(|host| {
        for entry in bridge(host, "fdb show dev flannel.1") {
            let mac = entry.split(' ').next().unwrap();
            bridge(host, &format!("fdb del {mac} dev flannel.1"));
        }
    });
    assert_eq!((report.written, report.removed, report.drifted), (3, 0, 3));
}

#[test]
fn a_deleted_address_comes_back_with_the_routes_that_went_with_it() {
    let report = disturb(|host| drop(ip(host, "address del 10.5.1.0/32 dev flannel.1")));
    assert!(report.drifted > 3, "{report:?}");
}

#[test]
fn a_link_set_down_comes_up_with_its_routes() {
    let report = disturb(|host| drop(ip(host, "link set flannel.1 down")));
    assert!(report.drifted > 3, "{report:?}");
}

#[test]
fn a_link_set_down_and_up_gets_its_routes_back() {
    disturb(|host| {
        ip(host, "link set flannel.1 down");
        ip(host, "link set flannel.1 up");
    });
}

#[test]
fn a_changed_mtu_is_set_back() {
    disturb(|host| drop(ip(host, "link set flannel.1 mtu 1200")));
}

#[test]
fn a_changed_address_of_the_device_is_set_back() {
    disturb(|host| drop(ip(host, "link set flannel.1 address 0e:00:00:00:00:99")));
}

#[test]
fn a_queue_is_removed_again() {
    disturb(|host| drop(ip(host, "link set flannel.1 txqueuelen 1000")));
}

#[test]
fn learning_that_was_switched_on_ends() {
    disturb(|host| drop(ip(host, "link set flannel.1 type vxlan learning")));
}

#[test]
fn a_deleted_device_comes_back_with_all_that_was_on_it() {
    let report = disturb(|host| drop(ip(host, "link del flannel.1")));
    assert_eq!((report.written, report.removed), (9, 0));
}

#[test]
fn a_device_in_place_of_a_deleted_one_is_replaced() {
    disturb(|host| {
        ip(host, "link del flannel.1");
        ip(host, "link add flannel.1 type bridge");
    });
}

#[test]
fn a_device_that_was_renamed_takes_its_name_back() {
    disturb(|host| {
        ip(host, "link set flannel.1 down");
        ip(host, "link set flannel.1 name somebody");
        ip(host, "link set somebody up");
    });
}

#[test]
fn a_second_address_on_the_overlay_goes() {
    disturb(|host| drop(ip(host, "address add 10.5.77.0/32 dev flannel.1")));
}

#[test]
fn foreign_entries_on_the_device_go() {
    let report = disturb(|host| {
        ip(host, "route add 10.5.66.0/24 via 10.5.66.0 dev flannel.1 onlink");
        ip(host, "neigh add 10.5.66.0 lladdr 0e:00:00:00:00:66 dev flannel.1 nud permanent");
        bridge(host, "fdb add 0e:00:00:00:00:66 dev flannel.1 dst 192.168.64.66");
    });
    assert_eq!((report.written, report.removed), (0, 3));
}

#[test]
fn a_second_route_to_a_peer_goes() {
    let report =
        disturb(|host| drop(ip(host, "route add 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink metric 77")));
    assert_eq!((report.written, report.removed), (0, 1));
}

#[test]
fn entries_that_were_changed_are_changed_back() {
    let report = disturb(|host| {
        ip(host, "route replace 10.5.2.0/24 via 10.5.3.0 dev flannel.1 onlink");
        ip(host, "neigh replace 10.5.2.0 lladdr 0e:00:00:00:00:66 dev flannel.1 nud permanent");
        bridge(host, "fdb replace 0e:00:00:00:00:02 dev flannel.1 dst 192.168.64.66");
    });
    assert_eq!((report.written, report.removed, report.drifted), (3, 0, 3));
}

#[test]
fn destinations_for_broadcasts_go() {
    let report = disturb(|host| {
        bridge(host, "fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.168.64.2");
        bridge(host, "fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.168.64.3");
    });
    assert_eq!((report.written, report.removed), (0, 2));
}

#[test]
fn a_route_to_a_peer_through_another_device_is_noticed_and_left() {
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
fn an_interface_that_comes_back_brings_the_tunnel_back() {
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
fn an_interface_that_is_renamed_keeps_the_tunnel() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = settled(host);
    ip(host, "link set eth0 down");
    ip(host, "link set eth0 name lan0");
    ip(host, "link set lan0 up");
    assert_idle(&station.sync());
}

/// The interface below can be made smaller than the tunnel was; the tunnel then cannot be made as large again.
#[test]
fn an_mtu_that_cannot_be_set_back_keeps_nothing_else_from_being() {
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
fn what_others_do_beside_the_tunnel_is_not_looked_at() {
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

/// More notifications of its own than fit into the buffer of the socket wake it once, and find nothing to do.
#[test]
fn a_large_network_does_not_keep_its_hosts_busy() {
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
fn lost_notices_make_everything_be_looked_at() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = settled(host);
    let index = station.device().index;
    // A neighbour goes among more notifications than any buffer holds.
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

/// An audit finds what no notification told of.
#[test]
fn an_audit_repairs_what_was_not_noticed() {
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

/// What was in the way of an object may be gone when the device changes, so its pause ends then.
#[test]
fn what_could_not_be_put_is_tried_at_once_when_the_device_changes() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = settled(host);
    let tables = station.tables();
    // No route goes by an address of the host itself.
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

/// A question for a neighbour that was lost while the interface came up is asked again before the kernel would, and
/// whatever else is known of neighbours stays.
#[test]
fn when_the_interface_is_back_unanswered_neighbours_are_asked_for_again() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = settled(host);
    let index = station.external.index;
    let mut netlink = Netlink::open_in(host).unwrap();
    let mut unanswered = |station: &mut Station, later: Duration| {
        // As a packet to it would, this has the kernel ask for an address that nobody has.
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
