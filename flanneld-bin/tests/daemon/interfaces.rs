//! The choice between etcd's v2 and v3 APIs.

use flannel_testing::EtcdOptions;

use crate::cluster::{Cluster, PATIENCE, VXLAN, check_ping};

/// Hosts, and an etcd with both APIs.
pub(crate) fn cluster(hosts: usize) -> Cluster {
    Cluster::with_etcd(hosts, EtcdOptions { enable_v2: true, ..EtcdOptions::default() })
}

/// Writes the config with the v2 API, as for flannel up to v0.17.
pub(crate) fn configure_v2(cluster: &Cluster) {
    cluster.etcdctl_v2(&["set", "/coreos.com/network/config", VXLAN]);
}

#[test]
fn a_network_configured_in_v2_stays_in_v2() {
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
fn a_network_configured_in_both_stores_uses_v3_with_a_warning() {
    let mut cluster = cluster(1);
    configure_v2(&cluster);
    cluster.configure(VXLAN);
    cluster.start(0);
    let line =
        cluster.daemon(0).wait_for_line("network config in both its v3 and its v2 store", PATIENCE).unwrap();
    assert!(line.starts_with('W'), "{line}");
    cluster.wait_until_ready(0);
    assert_eq!(cluster.leases().len(), 1);
}

#[test]
fn v2_on_an_etcd_without_it_is_an_error_that_names_the_option() {
    let mut cluster = Cluster::new(1);
    cluster.start_with(0, &["-etcd-api=v2"]);
    let line = cluster.daemon(0).wait_for_line("Couldn't fetch network config: ", PATIENCE).unwrap();
    assert!(line.contains("--enable-v2"), "{line}");
}
