//! Findings about forwarding.

use crate::cluster::check_ping;
use crate::site::{Site, what};

#[test]
fn disabled_forwarding_is_enabled() {
    let mut site = Site::new(2);
    site.cycle("ip-forward", || drop(site.shell("sysctl -qw net.ipv4.ip_forward=0")));
    site.cluster.start_all();
    let pods = [site.cluster.add_pod(0), site.cluster.add_pod(1)];
    // Both hosts have their peer.
    check_ping(&pods[1], &pods[0]);
    // A running daemon would enable it again.
    site.cluster.daemon(0).kill().unwrap();
    site.cycle("ip-forward-device", || drop(site.shell("sysctl -qw net.ipv4.conf.flannel/1.forwarding=0")));
    check_ping(&pods[1], &pods[0]);
}

#[test]
fn strict_reverse_path_filters_are_loosened() {
    let site = Site::running(2);
    let finding =
        site.cycle("rp-filter", || drop(site.shell("sysctl -qw net.ipv4.conf.flannel/1.rp_filter=1")));
    assert!(what(&finding).contains("flannel.1"), "{finding:#}");

    // Packets to the other host leave through a different link than its packets arrive on.
    site.cluster.connect(0, "eth1");
    let other = site.cluster.public(1);
    let asymmetric = format!(
        "sysctl -qw net.ipv4.conf.eth0.rp_filter=1 net.ipv4.conf.eth1.rp_filter=0
         ip address add 192.168.64.101/32 dev eth1; ip route add {other} dev eth1"
    );
    let finding = site.cycle("rp-filter-underlay", || drop(site.shell(&asymmetric)));
    assert!(what(&finding).contains(&other) && what(&finding).contains("eth1"), "{finding:#}");
}

#[test]
fn with_kube_proxy_bridged_packets_must_pass_iptables() {
    let site = Site::running(1);
    let _pod = site.cluster.add_pod(0);
    site.shell("iptables -t nat -N KUBE-SERVICES; sysctl -qw net.bridge.bridge-nf-call-iptables=1");
    site.cycle("bridge-netfilter", || drop(site.shell("sysctl -qw net.bridge.bridge-nf-call-iptables=0")));
}
