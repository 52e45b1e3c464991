//! The tunnel follows changes of the external interface.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use std::time::Duration;

use common::{DEADLINE, Station, StationExt, assert_idle, config, ip, lab, lines_of_all, net, peer};
use flannel_backend_vxlan::external_interface;
use flannel_core::{Dirty, ExternalInterface, NetworkConfig};
use flannel_testing::{PingOptions, RunningPing};

/// Reads an interface of a host.
fn read(station: &Station, name: &str) -> ExternalInterface {
    external_interface(&station.namespace, name).unwrap()
}

/// Updates the interface of a host, as a network's loop does.
fn follow(station: &mut Station, name: &str) {
    let external = read(station, name);
    station.backend.update_interface(&external).unwrap();
    station.own.attrs = station.backend.attrs().at(external.public);
    station.external = external;
    assert_eq!(station.sync_only(&Dirty::NONE).failed, []);
}

#[test]
fn a_tunnel_continues_after_its_address_was_replaced() {
    let lab = lab(2);
    let [mut one, mut two] =
        [0, 1].map(|n| Station::start(&lab.hosts[n].namespace, &format!("10.5.{}.0-24", n + 1)));
    one.complete([two.own.clone()]);
    two.complete([one.own.clone()]);
    let pod = |n: usize, station: &Station| {
        lab.hosts[n - 1].add_pod(&[net(&format!("10.5.{n}.0/24"))], station.backend.mtu()).unwrap()
    };
    let (from, to) = (pod(2, &two), pod(1, &one));
    let running = RunningPing::start(
        &from.namespace,
        to.addresses[0],
        Duration::from_millis(1),
        &PingOptions::default(),
    )
    .unwrap();
    running.wait_for_replies(20, DEADLINE).unwrap();
    let (device, tables) = (one.device(), one.tables());
    // With both addresses for a moment no packet is lost.
    ip(&one.namespace, "address add 192.168.64.77/32 dev eth0");
    one.namespace.write_sysctl("net/ipv4/conf/eth0/promote_secondaries", "1").unwrap();
    let mut both = read(&one, "eth0");
    both.v4 = "192.168.64.77".parse().ok();
    one.backend.update_interface(&both).unwrap();
    assert_eq!(one.sync_only(&Dirty::NONE).failed, []);
    let mut lease = one.own.clone();
    lease.attrs.public.v4 = both.v4;
    two.learn([lease]);
    two.sync();
    ip(&one.namespace, "address del 192.168.64.1/24 dev eth0");
    ip(&one.namespace, "route add 192.168.64.0/24 dev eth0");
    running.wait_for_replies(100, DEADLINE).unwrap();
    let after = one.device();
    assert_eq!((after.index, after.mac, one.tables()), (device.index, device.mac, tables));
    let local = after.vxlan().unwrap().local;
    assert_eq!(local, Some(common::address("192.168.64.77")));
    let report = running.stop();
    // Without an address and a route nothing can be sent.
    assert!(report.longest_gap < Duration::from_secs(10), "{report:?}");
    assert_idle(&one.sync());
}

#[test]
fn a_tunnel_moves_to_another_interface_and_keeps_its_peers() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.complete([peer(2), peer(3)]);
    let before = station.device();
    ip(&station.namespace, "link add lan0 up mtu 1400 type bridge");
    ip(&station.namespace, "address add 10.99.0.1/24 dev lan0");
    follow(&mut station, "lan0");
    let after = station.device();
    assert_eq!((after.index, after.mac, after.mtu), (before.index, before.mac, 1350));
    assert_eq!(station.tables(), lines_of_all([2, 3]));
    let link = ip(&station.namespace, "-d link show flannel.1").join(" ");
    assert!(link.contains(" local 10.99.0.1 dev lan0 "), "{link}");
    assert_idle(&station.sync());
    station.settle();
    // Drift is repaired with the new interface.
    ip(&station.namespace, "link del flannel.1");
    assert_eq!(station.heal().failed, []);
    assert_eq!((station.device().mac, station.device().mtu), (before.mac, 1350));
}

#[test]
fn the_mtu_follows_the_external_interface() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.complete([peer(2)]);
    for (below, on_top) in [(1400, 1350), (9000, 8950), (1500, 1450)] {
        ip(&station.namespace, &format!("link set eth0 mtu {below}"));
        follow(&mut station, "eth0");
        assert_eq!((station.backend.mtu(), station.device().mtu), (on_top, on_top));
        assert_eq!(station.tables(), lines_of_all([2]));
        assert_idle(&station.sync());
    }
}

#[test]
fn a_configured_mtu_is_kept_if_it_fits() {
    let lab = lab(1);
    let mut station = Station::start_with(&lab.hosts[0].namespace, "10.5.1.0-24", &config(r#","MTU":1300"#));
    for (below, on_top) in [(1400, 1250), (9000, 1250), (1280, 1230)] {
        ip(&station.namespace, &format!("link set eth0 mtu {below}"));
        follow(&mut station, "eth0");
        assert_eq!((station.backend.mtu(), station.device().mtu), (on_top, on_top));
    }
}

#[test]
fn an_interface_without_a_family_is_refused_and_nothing_changes() {
    let text = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetLen":64,
        "Backend":{"Type":"vxlan"}}"#;
    let lab = lab(1);
    let config = NetworkConfig::parse(text).unwrap();
    let mut station = Station::start_with(&lab.hosts[0].namespace, "10.5.1.0-24&fd00:5:0:1::-64", &config);
    let before = ip(&station.namespace, "-d link show type vxlan");
    let mut without = read(&station, "eth0");
    (without.v4, without.v6) = ("192.168.64.9".parse().ok(), None);
    let error = station.backend.update_interface(&without).unwrap_err().to_string();
    assert_eq!(error, "the interface eth0 has no IPv6 address for the tunnel flannel-v6.1");
    station.sync();
    assert_eq!(ip(&station.namespace, "-d link show type vxlan"), before);
}
