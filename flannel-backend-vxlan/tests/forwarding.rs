//! Kernel settings that traffic needs: forwarding and checksum offload.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use common::{DEVICE, QUIET, Station, StationExt, assert_idle, config, ip, lab, lines_of_all, peer};
use flannel_backend_vxlan::{ChecksumOffload, OpenVxlan};
use flannel_core::{Dirty, NetworkConfig, OpenBackend, OpenRequest};

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetLen":64,
    "Backend":{"Type":"vxlan"}}"#;
const SUBNET: &str = "10.5.1.0-24&fd00:5:0:1::-64";

/// The settings to disable, one after another.
const SWITCHES: [&str; 4] = [
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/conf/flannel.1/forwarding",
    "net/ipv6/conf/flannel-v6.1/forwarding",
];

fn dual() -> NetworkConfig {
    NetworkConfig::parse(DUAL).unwrap()
}

#[test]
fn disabled_forwarding_is_enabled_again() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = Station::start_with(host, SUBNET, &dual());
    station.complete([]);
    station.settle();
    for switch in SWITCHES {
        host.write_sysctl(switch, "0").unwrap();
        let report = station.heal();
        assert_eq!(report.failed, [], "{switch}");
        assert!(report.drifted > 0, "{switch}");
        for switch in SWITCHES {
            assert_eq!(host.read_sysctl(switch).unwrap(), "1", "{switch}");
        }
        assert_eq!(station.noticed(QUIET), None, "{switch}");
        assert_idle(&station.sync());
    }
}

#[test]
fn forwarding_that_was_never_enabled_is_left_alone() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    host.write_sysctl("net/ipv4/ip_forward", "0").unwrap();
    let mut station = Station::start(host, "10.5.1.0-24");
    station.complete([peer(2)]);
    station.settle();
    assert_idle(&station.sync());
    assert_eq!(host.read_sysctl("net/ipv4/ip_forward").unwrap(), "0");
    // A container runtime enables forwarding, then another program restores the old settings.
    host.write_sysctl("net/ipv4/ip_forward", "1").unwrap();
    assert_eq!(station.noticed(QUIET), None);
    host.write_sysctl("net/ipv4/ip_forward", "0").unwrap();
    assert_eq!(station.heal().drifted, 1);
    assert_eq!(host.read_sysctl("net/ipv4/ip_forward").unwrap(), "1");
}

#[test]
fn settings_of_foreign_links_are_left_alone() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = Station::start(host, "10.5.1.0-24");
    station.complete([peer(2)]);
    station.settle();
    host.write_sysctl("net/ipv4/conf/eth0/forwarding", "0").unwrap();
    assert_eq!(station.noticed(QUIET), None);
    assert_idle(&station.sync());
    assert_eq!(host.read_sysctl("net/ipv4/conf/eth0/forwarding").unwrap(), "0");
}

#[test]
fn an_audit_finds_disabled_forwarding_without_a_notification() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = Station::start(host, "10.5.1.0-24");
    station.complete([]);
    host.write_sysctl("net/ipv4/ip_forward", "0").unwrap();
    assert_idle(&station.sync_only(&Dirty::NONE));
    assert!(station.sync().drifted > 0);
    assert_eq!(host.read_sysctl("net/ipv4/ip_forward").unwrap(), "1");
}

#[test]
fn the_checksum_offload_is_disabled_if_configured() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = Station::start(host, "10.5.1.0-24");
    station.complete([peer(2)]);
    let offload = |station: &Station| station.netlink.tx_checksum_offload(DEVICE).unwrap();
    assert!(offload(&station), "this kernel is a good one");
    for (chosen, expected) in [(ChecksumOffload::Untouched, true), (ChecksumOffload::Off, false)] {
        let config = config("");
        let request = OpenRequest::new(&config, &station.external);
        let opener = OpenVxlan::new(host.clone()).with_checksum_offload(chosen);
        station.backend = opener.open(request).unwrap();
        station.backend.configure(&station.own).unwrap();
        station.sync();
        assert_eq!(offload(&station), expected);
        assert_idle(&station.sync());
    }
    station.settle();
    // Another program enables it again, or recreates the device.
    station.netlink.set_tx_checksum_offload(DEVICE, true).unwrap();
    assert_eq!(station.heal().failed, []);
    assert!(!offload(&station));
    ip(host, "link del flannel.1");
    assert_eq!(station.heal().failed, []);
    assert!(!offload(&station));
    assert_eq!(station.tables(), lines_of_all([2]));
}
