//! Findings about overlapping networks.

use flannel_testing::eventually;

use crate::cluster::{PATIENCE, VXLAN};
use crate::site::{Site, what};

#[test]
fn foreign_links_and_routes_inside_the_network_are_removed() {
    let site = Site::running(2);
    let docker =
        "ip link add docker0 type bridge; ip address add 10.5.200.1/24 dev docker0; ip link set docker0 up";
    let finding = site.cycle("network-overlaps-link", || drop(site.shell(docker)));
    assert!(what(&finding).contains("docker0"), "{finding:#}");
    assert!(finding["cure"]["lasting"][0].as_str().is_some_and(|line| line.contains("bip")), "{finding:#}");

    let route = "ip route add 10.5.77.0/24 via 192.168.64.254";
    let finding = site.cycle("network-overlaps-route", || drop(site.shell(route)));
    assert!(what(&finding).contains("10.5.77.0/24 via 192.168.64.254"), "{finding:#}");
}

#[test]
fn a_network_that_overlaps_the_underlay_is_moved() {
    let site = Site::new(1);
    site.shell("ip link add docker0 type bridge; ip address add 10.5.0.1/24 dev docker0");
    site.cluster.configure(r#"{"Network":"10.244.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#);
    let config =
        || site.cluster.etcd.etcdctl(&["get", "--print-value-only", "/coreos.com/network/config"]).unwrap();
    site.cycle("network-overlaps-underlay", || {
        site.cluster.configure(&VXLAN.replace("10.5.0.0/16", "192.168.0.0/16"));
    });
    assert!(config().contains("10.244.0.0/16") && config().contains("vxlan"), "{}", config());
}

#[test]
fn the_device_for_udp_peers_is_no_finding() {
    let site = Site::running(2);
    let before = site.ids();
    let record = r#"{"PublicIP":"192.168.64.254","BackendType":"udp"}"#;
    site.cluster.etcd.etcdctl(&["put", "/coreos.com/network/subnets/10.5.250.0-24", record]).unwrap();
    eventually(PATIENCE, || {
        !site.shell("ip route show 10.5.0.0/16 dev flannel0 2>/dev/null; true").is_empty()
    })
    .unwrap();
    site.wait_until_cured(&before, "nothing");
}
