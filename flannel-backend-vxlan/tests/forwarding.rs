//! Settings of the kernel that traffic needs: forwarding, and who computes checksums.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use common::{DEVICE, QUIET, Station, StationExt, assert_idle, config, ip, lab, lines_of_all, peer};
use flannel_backend_vxlan::{ChecksumOffload, OpenVxlan};
use flannel_core::{BackendType, Dirty, NetworkConfig, OpenBackend, OpenRequest};

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetLen":64,
    "Backend":{"Type":"vxlan"}}"#;
const SUBNET: &str = "10.5.1.0-24&fd00:5:0:1::-64";

/// What is switched off in turn.
const SWITCHES: [&str; 4] = [
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/conf/flannel.1/forwarding",
    "net/ipv6/conf/flannel-v6.1/forwarding",
];

fn dual(text: &str) -> NetworkConfig {
    NetworkConfig::parse(&DUAL.replace("vxlan", text)).unwrap()
}

#[test]
fn forwarding_that_is_switched_off_is_switched_on_again() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = Station::start_with(host, SUBNET, &dual("vxlan"));
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
fn for_host_gw_too() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = Station::start_with(host, SUBNET, &dual("host-gw"));
    let mut other = peer(2);
    other.attrs.backend_type = BackendType::HOST_GW;
    station.complete([]);
    station.settle();
    for switch in &SWITCHES[..2] {
        host.write_sysctl(switch, "0").unwrap();
        assert_eq!(station.heal().failed, [], "{switch}");
        assert_eq!(host.read_sysctl(switch).unwrap(), "1", "{switch}");
    }
}

#[test]
fn forwarding_that_was_never_on_is_the_hosts_decision_until_it_is_on() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    host.write_sysctl("net/ipv4/ip_forward", "0").unwrap();
    let mut station = Station::start(host, "10.5.1.0-24");
    station.complete([peer(2)]);
    station.settle();
    assert_idle(&station.sync());
    assert_eq!(host.read_sysctl("net/ipv4/ip_forward").unwrap(), "0");
    // A container runtime comes, and then somebody reads the old settings again.
    host.write_sysctl("net/ipv4/ip_forward", "1").unwrap();
    assert_eq!(station.noticed(QUIET), None);
    host.write_sysctl("net/ipv4/ip_forward", "0").unwrap();
    assert_eq!(station.heal().drifted, 1);
    assert_eq!(host.read_sysctl("net/ipv4/ip_forward").unwrap(), "1");
}

#[test]
fn what_others_switch_off_on_their_own_links_is_theirs() {
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
fn an_audit_finds_forwarding_that_was_switched_off_unheard() {
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
fn checksums_are_computed_before_the_tunnel_where_that_is_chosen() {
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
    // Somebody switches it on again, or makes the device anew.
    station.netlink.set_tx_checksum_offload(DEVICE, true).unwrap();
    assert_eq!(station.heal().failed, []);
    assert!(!offload(&station));
    ip(host, "link del flannel.1");
    assert_eq!(station.heal().failed, []);
    assert!(!offload(&station));
    assert_eq!(station.tables(), lines_of_all([2]));
}
