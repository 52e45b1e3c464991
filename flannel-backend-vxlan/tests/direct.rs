//! `DirectRouting`: direct routes to peers on the same link, in both families.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use std::time::Duration;

use common::{
    DEADLINE, QUIET, Station, StationExt, assert_idle, bridge, config, ip, key, mac, net, routed_lab,
};
use flannel_core::{Dirty, Json, Lease, NetworkConfig, PublicAddrs};
use flannel_testing::{Lab, PingOptions, RunningPing, eventually, ping};

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetLen":64,
    "Backend":{"Type":"vxlan","DirectRouting":true}}"#;

fn dual() -> NetworkConfig {
    NetworkConfig::parse(DUAL).unwrap()
}

fn subnet(n: u8) -> String {
    format!("10.5.{n}.0-24&fd00:5:0:{n}::-64")
}

/// The first host of a lab, without peers.
fn alone(lab: &Lab) -> Station {
    Station::start_with(&lab.hosts[0].namespace, &subnet(1), &dual())
}

/// The lease of a fictitious host number `n` on segment `s`, in both families.
fn on_segment(n: u8, s: u8) -> Lease {
    let data = |n: u8| Json::parse(&format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(n))).ok();
    let mut lease = common::peer(n);
    lease.subnet = key(&subnet(n));
    lease.attrs.public = PublicAddrs {
        v4: format!("192.168.{}.{n}", 64 + s).parse().ok(),
        v6: format!("fd00:64:0:{s}::{n}").parse().ok(),
    };
    lease.attrs.backend_v6_data = data(n);
    lease
}

/// The routes to a peer's subnets as `ip` shows them.
fn routes(station: &Station, n: u8) -> Vec<String> {
    let mut lines = ip(&station.namespace, &format!("-4 route show 10.5.{n}.0/24"));
    lines.extend(ip(&station.namespace, &format!("-6 route show fd00:5:0:{n}::/64")));
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

fn direct(n: u8) -> Vec<String> {
    vec![
        format!("10.5.{n}.0/24 via 192.168.64.{n} dev eth0 proto 241"),
        format!("fd00:5:0:{n}::/64 via fd00:64::{n} dev eth0 proto 241 metric 1024 pref medium"),
    ]
}

fn tunnelled(n: u8) -> Vec<String> {
    vec![
        format!("10.5.{n}.0/24 via 10.5.{n}.0 dev flannel.1 onlink"),
        format!("fd00:5:0:{n}::/64 via fd00:5:0:{n}:: dev flannel-v6.1 metric 1024 onlink pref medium"),
    ]
}

/// Returns the number of neighbours and FDB entries on both tunnels.
fn on_tunnels(station: &Station) -> [usize; 2] {
    let count = |device: &str| {
        ip(&station.namespace, &format!("neigh show dev {device} nud permanent")).len()
            + bridge(&station.namespace, &format!("fdb show dev {device}")).len()
    };
    [count("flannel.1"), count("flannel-v6.1")]
}

#[test]
fn a_peer_on_the_link_has_a_direct_route_and_one_behind_a_router_the_tunnel() {
    let lab = routed_lab(1);
    let mut station = alone(&lab);
    station.complete([on_segment(3, 0), on_segment(2, 1)]);
    assert_eq!(routes(&station, 3), direct(3));
    assert_eq!(routes(&station, 2), tunnelled(2));
    assert_eq!(on_tunnels(&station), [2, 2], "the far peer's only");
    assert_idle(&station.sync());
    station.settle();
}

#[test]
fn pods_reach_each_other_over_mixed_paths() {
    let lab = routed_lab(3);
    let start = |n: u8| Station::start_with(&lab.hosts[usize::from(n) - 1].namespace, &subnet(n), &dual());
    let mut stations = [start(1), start(2), start(3)];
    let leases = stations.each_ref().map(|station| station.own.clone());
    for (n, station) in stations.iter_mut().enumerate() {
        let others = leases.iter().enumerate().filter(|(other, _)| *other != n);
        station.complete(others.map(|(_, lease)| lease.clone()));
    }
    let pods = [1, 2, 3].map(|n: usize| {
        let subnets = [net(&format!("10.5.{n}.0/24")), net(&format!("fd00:5:0:{n}::/64"))];
        lab.hosts[n - 1].add_pod(&subnets, stations[n - 1].backend.mtu()).unwrap()
    });
    for from in &pods {
        for to in pods.iter().flat_map(|pod| &pod.addresses) {
            let answered = eventually(DEADLINE, || ping(&from.namespace, *to, &PingOptions::default()));
            answered.unwrap_or_else(|error| panic!("{} to {to}: {error}", from.name));
        }
    }
    assert_eq!(routes(&stations[0], 3), direct(3));
    assert_eq!(routes(&stations[2], 1), direct(1));
}

#[test]
fn a_peer_changes_its_path_in_one_pass() {
    let lab = routed_lab(1);
    let mut station = alone(&lab);
    station.complete([on_segment(3, 0), on_segment(4, 0)]);
    let dirty = Dirty::Some([key(&subnet(3))].into());
    for _ in 0..2 {
        station.learn([on_segment(3, 1)]);
        let report = station.sync_only(&dirty);
        assert_eq!((report.failed, report.retry_in), (vec![], None));
        assert_eq!(routes(&station, 3), tunnelled(3));
        assert_eq!(on_tunnels(&station), [2, 2]);
        assert_idle(&station.sync());
        station.learn([on_segment(3, 0)]);
        let report = station.sync_only(&dirty);
        assert_eq!((report.failed, report.retry_in), (vec![], None));
        assert_eq!(routes(&station, 3), direct(3));
        assert_eq!(on_tunnels(&station), [0, 0]);
        assert_idle(&station.sync());
    }
    assert_eq!(routes(&station, 4), direct(4), "and the other one stays where it is");
}

/// Sends packets between pods of the first and the third host while the peer moves behind a router and back eight times.
/// Returns the number of lost packets.
fn lost_while_changing(over_ipv6: bool) -> u64 {
    let lab = routed_lab(3);
    let start = |n: u8| Station::start_with(&lab.hosts[usize::from(n) - 1].namespace, &subnet(n), &dual());
    let (mut one, mut three) = (start(1), start(3));
    one.complete([three.own.clone()]);
    three.complete([one.own.clone()]);
    let (mtu, family) = (one.backend.mtu(), usize::from(over_ipv6));
    let pod = |n: usize| {
        let nets = [net(&format!("10.5.{n}.0/24")), net(&format!("fd00:5:0:{n}::/64"))];
        lab.hosts[n - 1].add_pod(&nets[family..=family], mtu).unwrap()
    };
    let (from, to) = (pod(1), pod(3));
    let every = Duration::from_millis(1);
    let running =
        RunningPing::start(&from.namespace, to.addresses[0], every, &PingOptions::default()).unwrap();
    running.wait_for_replies(20, DEADLINE).unwrap();
    let before = running.report().lost_count();
    // A host route through the router moves the peer behind it.
    let route = ["192.168.64.3/32 via 192.168.64.254", "fd00:64::3/128 via fd00:64::fe"][family];
    for _ in 0..8 {
        ip(&one.namespace, &format!("route add {route}"));
        one.heal();
        assert_eq!(routes(&one, 3)[family], tunnelled(3)[family]);
        ip(&one.namespace, &format!("route del {route}"));
        one.heal();
        assert_eq!(routes(&one, 3)[family], direct(3)[family]);
    }
    let report = running.stop();
    assert!(report.received > 20, "{report:?}");
    report.lost_count() - before
}

#[test]
fn a_change_of_path_loses_no_ipv4_packet() {
    assert_eq!(lost_while_changing(false), 0);
}

#[test]
fn a_change_of_path_loses_at_most_one_ipv6_packet() {
    let lost = lost_while_changing(true);
    assert!(lost <= 16, "one for each of the changes, but {lost}");
}

#[test]
fn a_peer_that_moves_to_another_link_and_back_is_reachable_in_both_families() {
    let lab = routed_lab(3);
    let start = |n: u8| Station::start_with(&lab.hosts[usize::from(n) - 1].namespace, &subnet(n), &dual());
    let (mut one, mut three) = (start(1), start(3));
    one.complete([three.own.clone()]);
    three.complete([one.own.clone()]);
    let mtu = one.backend.mtu();
    let pod = |n: usize| {
        let nets = [net(&format!("10.5.{n}.0/24")), net(&format!("fd00:5:0:{n}::/64"))];
        lab.hosts[n - 1].add_pod(&nets, mtu).unwrap()
    };
    let (from, to) = (pod(1), pod(3));
    // The third host has an address on each segment and publishes them in turn.
    let address = |n: &Lease, v4: &str, v6: &str| {
        let mut lease = n.clone();
        lease.attrs.public = PublicAddrs { v4: v4.parse().ok(), v6: v6.parse().ok() };
        lease
    };
    let host = &three.namespace;
    ip(host, "address add 192.168.65.33/32 dev lo");
    ip(host, "-6 address add fd00:64:0:1::33/128 dev lo");
    ip(lab.switch(), "route add 192.168.65.33/32 via 192.168.64.3");
    ip(lab.switch(), "-6 route add fd00:64:0:1::33/128 via fd00:64::3");
    for (v4, v6) in [("192.168.65.33", "fd00:64:0:1::33"), ("192.168.64.3", "fd00:64::3")] {
        one.learn([address(&three.own, v4, v6)]);
        assert_eq!(one.sync_only(&Dirty::Some([key(&subnet(3))].into())).failed, []);
        for to in &to.addresses {
            let answered = eventually(DEADLINE, || ping(&from.namespace, *to, &PingOptions::default()));
            answered.unwrap_or_else(|error| panic!("{v4} {to}: {error}"));
        }
        let expected = if v4 == "192.168.64.3" { direct(3) } else { tunnelled(3) };
        assert_eq!(routes(&one, 3), expected);
    }
}

#[test]
fn a_change_of_the_underlay_changes_paths() {
    let lab = routed_lab(1);
    let mut station = alone(&lab);
    station.complete([on_segment(3, 0), on_segment(2, 1)]);
    station.settle();
    let host = station.namespace.clone();
    let changes = [
        ("address add 192.168.65.1/24 dev eth0", "10.5.2.0/24 via 192.168.65.2 dev eth0 proto 241 "),
        ("address del 192.168.65.1/24 dev eth0", "10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink "),
        ("route add 192.168.65.0/24 dev eth0", "10.5.2.0/24 via 192.168.65.2 dev eth0 proto 241 "),
        ("route del 192.168.65.0/24 dev eth0", "10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink "),
    ];
    for (change, expected) in changes {
        ip(&host, change);
        assert_eq!(station.heal().failed, [], "{change}");
        assert_eq!(ip(&host, "route show 10.5.2.0/24"), [expected], "{change}");
        assert_eq!(routes(&station, 3), direct(3), "{change}");
    }
}

#[test]
fn a_changed_direct_route_is_restored() {
    let lab = routed_lab(1);
    let mut station = alone(&lab);
    station.complete([on_segment(3, 0)]);
    station.settle();
    for by_hand in [
        "route del 10.5.3.0/24",
        "-6 route del fd00:5:0:3::/64",
        "route flush proto 241",
        "-6 route flush proto 241",
        "route replace 10.5.3.0/24 via 192.168.64.9 proto 241",
        "-6 route replace fd00:5:0:3::/64 via fd00:64::9 proto 241",
        "route add 10.5.77.0/24 via 192.168.64.9 proto 241",
        "route add 10.5.3.0/24 via 192.168.64.9 metric 5 proto 241",
    ] {
        ip(&station.namespace, by_hand);
        assert_eq!(station.heal().failed, [], "{by_hand}");
        assert_eq!(routes(&station, 3), direct(3), "{by_hand}");
        assert_eq!(ip(&station.namespace, "route show 10.5.77.0/24"), Vec::<String>::new());
        assert_idle(&station.sync());
        assert_eq!(station.noticed(QUIET), None, "{by_hand}");
    }
}

#[test]
fn routes_return_after_the_interface_was_down() {
    let lab = routed_lab(1);
    let mut station = alone(&lab);
    station.complete([on_segment(3, 0)]);
    station.settle();
    let host = station.namespace.clone();
    ip(&host, "link set eth0 down");
    station.heal();
    ip(&host, "link set eth0 up");
    // The kernel removed the IPv6 address and the default routes; the administrator adds them again.
    ip(&host, "-6 address replace fd00:64::1/64 dev eth0 nodad");
    let healed = eventually(DEADLINE, || {
        station.noticed(QUIET);
        station.sync_only(&Dirty::NONE);
        (routes(&station, 3) == direct(3)).then_some(())
    });
    assert!(healed.is_ok(), "{:?}", routes(&station, 3));
}

#[test]
fn a_restart_adopts_direct_routes_and_writes_nothing() {
    let lab = routed_lab(1);
    let mut station = alone(&lab);
    station.complete([on_segment(3, 0), on_segment(2, 1), on_segment(5, 0)]);
    let mut station = station.restart();
    assert_idle(&station.sync());
    station.remove(&subnet(5));
    let mut station = station.restart();
    let report = station.sync();
    assert_eq!((report.written, report.removed), (0, 2), "the peer left meanwhile");
    assert_eq!(routes(&station, 5), Vec::<String>::new());
    assert_eq!(routes(&station, 3), direct(3));
}

#[test]
fn direct_routes_are_removed_when_direct_routing_is_disabled() {
    let lab = routed_lab(1);
    let mut station = alone(&lab);
    station.complete([on_segment(3, 0)]);
    station.config = NetworkConfig::parse(&DUAL.replace("true}", "false}")).unwrap();
    let mut station = station.restart();
    assert_eq!(station.sync().failed, []);
    assert_eq!(routes(&station, 3), tunnelled(3));
    assert_idle(&station.sync());
    station.config = dual();
    let mut station = station.restart();
    assert_eq!(station.sync().failed, []);
    assert_eq!((routes(&station, 3), on_tunnels(&station)), (direct(3), [0, 0]));
}

#[test]
fn a_route_of_upstream_is_adopted_and_removed_with_its_peer() {
    let lab = routed_lab(1);
    let host = &lab.hosts[0].namespace;
    ip(host, "route add 10.5.3.0/24 via 192.168.64.3");
    ip(host, "-6 route add fd00:5:0:3::/64 via fd00:64::3");
    ip(host, "route add 10.5.9.0/24 via 192.168.64.9");
    let mut station = alone(&lab);
    station.complete([on_segment(3, 0)]);
    assert_eq!(routes(&station, 3), direct(3), "marked in place");
    let mut station = station.restart();
    station.remove(&subnet(3));
    assert_eq!(station.sync().failed, []);
    assert_eq!(routes(&station, 3), Vec::<String>::new());
    let left = ip(host, "route show 10.5.9.0/24");
    assert_eq!(left, ["10.5.9.0/24 via 192.168.64.9 dev eth0 "], "nobody knows whose it is");
}

#[test]
fn a_blocking_foreign_route_is_named_and_kept_until_it_is_removed() {
    let lab = routed_lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = alone(&lab);
    ip(host, "route add 10.5.3.0/24 via 192.168.64.77");
    ip(host, "-6 route add fd00:5:0:3::/64 via fd00:64::77");
    let before = routes(&station, 3);
    station.learn([on_segment(3, 0), on_segment(4, 0)]);
    station.peers.complete();
    let report = station.sync();
    let index = station.external.index;
    let named = |route: &str| format!("blocked by a foreign route: route {route}");
    let failed: Vec<_> = report.failed.into_iter().map(|failure| (failure.object, failure.reason)).collect();
    assert_eq!(
        failed,
        [
            (
                "route 10.5.3.0/24 via 192.168.64.3".to_owned(),
                named(&format!("10.5.3.0/24 via 192.168.64.77 dev {index}"))
            ),
            (
                "route fd00:5:0:3::/64 via fd00:64::3".to_owned(),
                named(&format!("fd00:5:0:3::/64 via fd00:64::77 dev {index} metric 1024"))
            ),
        ]
    );
    assert_eq!(routes(&station, 3), before);
    assert_eq!(routes(&station, 4), direct(4), "the other peer has its own");
    while station.noticed(QUIET).is_some() {
        assert_eq!(station.sync_only(&Dirty::NONE).failed.len(), 2);
    }
    ip(host, "route del 10.5.3.0/24");
    ip(host, "-6 route del fd00:5:0:3::/64");
    assert_eq!(station.heal().failed, []);
    assert_eq!(routes(&station, 3), direct(3));
}

#[test]
fn remove_deletes_our_routes_only() {
    let lab = routed_lab(1);
    let host = &lab.hosts[0].namespace;
    let before = ip(host, "route");
    let mut station = alone(&lab);
    station.complete([on_segment(3, 0), on_segment(2, 1)]);
    station.backend.remove().unwrap();
    assert_eq!(ip(host, "route"), before);
    assert_eq!(routes(&station, 3), Vec::<String>::new());
}

#[test]
fn without_direct_routing_a_peer_on_the_link_uses_the_tunnel() {
    let lab = routed_lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = Station::start_with(host, "10.5.1.0-24", &config(""));
    station.complete([common::peer(3)]);
    assert_eq!(ip(host, "route show 10.5.3.0/24"), ["10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink "]);
}
