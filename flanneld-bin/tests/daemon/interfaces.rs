//! Which of etcd's two interfaces is used.

use flannel_testing::EtcdOptions;

use crate::cluster::{Cluster, PATIENCE, VXLAN, check_ping};

/// Hosts, and an etcd that has both interfaces.
pub(crate) fn cluster(hosts: usize) -> Cluster {
    Cluster::with_etcd(hosts, EtcdOptions { enable_v2: true, ..EtcdOptions::default() })
}

/// Writes the configuration over the v2 interface, as operators of flannel up to v0.17 did.
pub(crate) fn configure_v2(cluster: &Cluster) {
    cluster.etcdctl_v2(&["set", "/coreos.com/network/config", VXLAN]);
}

#[test]
fn a_network_that_is_configured_over_v2_lives_there() {
    let mut cluster = cluster(2);
    configure_v2(&cluster);
    cluster.start_all();
    let line = cluster.daemon(0).wait_for_line("interface of etcd", PATIENCE).unwrap();
    assert!(line.contains("V2"), "{line}");
    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    check_ping(&pods[0], &pods[1]);
    let listed = cluster.etcdctl_v2(&["ls", "/coreos.com/network/subnets"]);
    for host in [0, 1] {
        assert!(listed.contains(&cluster.subnet(host).addr().to_string()), "{listed}");
    }
    assert_eq!(cluster.leases(), [], "nothing is in the store of v3");
}

#[test]
fn configured_over_both_it_lives_in_v3_and_says_so() {
    let mut cluster = cluster(1);
    configure_v2(&cluster);
    cluster.configure(VXLAN);
    cluster.start(0);
    let line = cluster.daemon(0).wait_for_line("in its v3 and in its v2 interface", PATIENCE).unwrap();
    assert!(line.starts_with('W'), "{line}");
    cluster.wait_until_ready(0);
    assert_eq!(cluster.leases().len(), 1);
}

#[test]
fn asked_for_v2_where_it_is_off_it_says_how_to_switch_it_on() {
    let mut cluster = Cluster::new(1);
    cluster.start_with(0, &["-etcd-api=v2"]);
    let line = cluster.daemon(0).wait_for_line("Couldn't fetch network config: ", PATIENCE).unwrap();
    assert!(line.contains("--enable-v2"), "{line}");
}
