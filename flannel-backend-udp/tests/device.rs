//! The device: equal to upstream's, and repaired after every kind of damage.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use std::net::UdpSocket;

use common::{DEADLINE, IPV4, Overlay, QUIET, Setup, TestHost, ip, lab, peer};
use flannel_backend_udp::OpenUdp;
use flannel_backend_vxlan::external_interface;
use flannel_core::{NetworkConfig, SyncReport};
use flannel_netlink::{LinkKind, Namespace, Netlink};
use flannel_testing::{PingOptions, eventually, ping, transfer};

/// Returns the addresses and routes of the device as `ip` prints them.
fn shown(namespace: &Namespace) -> Vec<String> {
    let mut lines = ip(namespace, "-4 -o address show dev flannel0");
    lines.extend(ip(namespace, "route show dev flannel0"));
    // Strip the index at the start of the line.
    lines
        .iter()
        .map(|line| line.split_once(": ").map_or(line.as_str(), |(_, rest)| rest).to_owned())
        .collect()
}

#[test]
fn the_device_equals_upstreams() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let station = TestHost::start(host, 1, Setup::default());
    let link = Netlink::open_in(host).unwrap().link("flannel0").unwrap().unwrap();
    assert_eq!((link.mtu, link.up, link.txqlen, &link.kind), (1472, true, 500, &LinkKind::Tun));
    assert_eq!(station.backend.mtu(), 1472);
    let lines = shown(host);
    assert!(lines[0].contains("inet 10.5.1.0/32 scope global flannel0"), "{lines:?}");
    assert_eq!(lines[1..], ["10.5.0.0/16"]);
    assert_eq!(ip(host, "-d route show dev flannel0"), ["unicast 10.5.0.0/16 proto boot scope global"]);
    assert_eq!(station.own.attrs.to_record(), r#"{"PublicIP":"192.168.64.1","PublicIPv6":null}"#);
}

/// Damages the device, waits until the backend notices and repairs it, and checks device and traffic.
fn disturb(by_hand: impl FnOnce(&Namespace)) -> SyncReport {
    let mut overlay = Overlay::new(2);
    let host = overlay.stations[0].namespace.clone();
    let before = shown(&host);
    by_hand(&host);
    let report = overlay.stations[0].heal();
    assert_eq!(report.failed, []);
    assert!(report.drifted > 0, "{report:?}");
    assert_eq!(shown(&host), before);
    let (from, to) = (&overlay.pods[0].namespace, overlay.pods[1].addresses[0]);
    ping(from, to, &PingOptions::default()).unwrap();
    assert_eq!(overlay.stations[0].sync(), SyncReport::default());
    assert_eq!(overlay.stations[0].noticed(QUIET), None, "the backend takes its own changes for drift");
    report
}

#[test]
fn a_deleted_device_comes_back() {
    disturb(|host| drop(ip(host, "link del flannel0")));
}

#[test]
fn a_device_deleted_under_load_comes_back_and_the_stream_continues() {
    let mut overlay = Overlay::new(2);
    let (from, to) = (overlay.pods[0].namespace.clone(), overlay.pods[1].namespace.clone());
    let address = overlay.pods[1].addresses[0];
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| transfer(&from, &to, address, 64 << 20));
        for station in [0, 1] {
            let station = &mut overlay.stations[station];
            let moved = |station: &TestHost| {
                let counts = station.counts();
                counts.peers.values().map(|peer| peer.sent_bytes + peer.received_bytes).sum::<u64>()
            };
            let before = moved(station);
            eventually(DEADLINE, || moved(station) > before + (1 << 20)).unwrap();
            ip(&station.namespace, "link del flannel0");
            assert_eq!(station.heal().failed, []);
        }
        stream.join().unwrap().unwrap();
    });
}

#[test]
fn a_deleted_address_comes_back_with_its_route() {
    disturb(|host| drop(ip(host, "address del 10.5.1.0/32 dev flannel0")));
}

#[test]
fn a_deleted_route_comes_back() {
    disturb(|host| drop(ip(host, "route del 10.5.0.0/16 dev flannel0")));
}

#[test]
fn a_device_set_down_comes_up_with_its_route() {
    disturb(|host| drop(ip(host, "link set flannel0 down")));
}

#[test]
fn a_changed_mtu_is_reset() {
    disturb(|host| drop(ip(host, "link set flannel0 mtu 1300")));
    disturb(|host| drop(ip(host, "address add 10.5.77.0/32 dev flannel0")));
}

#[test]
fn a_pass_without_drift_writes_nothing() {
    let lab = lab(1);
    let mut station = TestHost::start(&lab.hosts[0].namespace, 1, Setup::default());
    station.learn([peer(2), peer(3)]);
    let report = station.sync();
    assert_eq!((report.written, report.removed, report.drifted), (2, 0, 0));
    assert_eq!(station.sync(), SyncReport::default());
    station.remove(&peer(2));
    let report = station.sync();
    assert_eq!((report.written, report.removed), (0, 1));
}

#[test]
fn two_networks_have_a_device_each() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let _first = TestHost::start(host, 1, Setup::default());
    let config = r#"{"Network":"10.6.0.0/16","Backend":{"Type":"udp","Port":8286}}"#;
    let config = NetworkConfig::parse(config).unwrap();
    let external = external_interface(host, "eth0").unwrap();
    let _second = common::open(&OpenUdp::new(host.clone()), &config, &external).unwrap();
    assert!(Netlink::open_in(host).unwrap().link("flannel1").unwrap().is_some());
}

#[test]
fn the_config_of_another_backend_is_refused() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
    let config = NetworkConfig::parse(config).unwrap();
    let external = external_interface(host, "eth0").unwrap();
    let error = common::open(&OpenUdp::new(host.clone()), &config, &external).err().unwrap();
    assert_eq!(error.to_string(), "unknown backend type: vxlan (available: udp)");
    assert!(Netlink::open_in(host).unwrap().link("flannel0").unwrap().is_none(), "nothing was created");
}

#[test]
fn removal_leaves_nothing_and_a_drop_ends_the_threads() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let is_gone = || Netlink::open_in(host).unwrap().link("flannel0").unwrap().is_none();
    let mut station = TestHost::start(host, 1, Setup::default());
    station.backend.remove().unwrap();
    assert!(is_gone());
    drop(station);
    drop(TestHost::start(host, 1, Setup::default()));
    eventually(DEADLINE, is_gone).unwrap();
}

#[test]
fn an_error_names_the_port_in_use() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let _other = host.run(|| UdpSocket::bind("192.168.64.1:8285")).unwrap().unwrap();
    let external = external_interface(host, "eth0").unwrap();
    let config = NetworkConfig::parse(IPV4).unwrap();
    let error = common::open(&OpenUdp::new(host.clone()), &config, &external).err().unwrap();
    let text = flannel_core::chain(&error);
    assert_eq!(text, "failed to listen on 192.168.64.1:8285 (UDP): Address already in use (os error 98)");
}

#[test]
fn a_conflicting_foreign_route_is_kept_and_reported() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = TestHost::start(host, 1, Setup::default());
    ip(host, "route replace 10.5.0.0/16 via 192.168.64.254");
    let report = station.heal();
    assert_eq!(report.failed.len(), 1, "{report:?}");
    assert!(
        report.failed[0].reason.contains("route 10.5.0.0/16 via 192.168.64.254 dev 2 conflicts with"),
        "{report:?}"
    );
    assert!(report.retry_in.is_some());
    ip(host, "route del 10.5.0.0/16 via 192.168.64.254");
    assert_eq!(station.heal().failed, []);
}
