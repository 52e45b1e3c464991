//! Cached peers of a host whose registry is replaced.

use flannel_testing::{Etcd, EtcdOptions, eventually};

use crate::cluster::{Cluster, PATIENCE, SWITCH, VXLAN};
use crate::outage::wait_until_cached;

/// The address of a second etcd on the switch.
const OTHER_ETCD: &str = "192.168.64.253";

/// Three hosts with each other in their caches.
fn cached_cluster() -> Cluster {
    let cluster = Cluster::running(3);
    (0..3).for_each(|host| wait_until_cached(&cluster, host, 2));
    cluster
}

fn etcd(cluster: &Cluster, address: &str, token: &str) -> Etcd {
    let inside = Some((cluster.lab.switch().clone(), address.parse().unwrap()));
    let arguments = vec![format!("--initial-cluster-token={token}")];
    Etcd::start_with(EtcdOptions { inside, arguments, ..EtcdOptions::default() }).unwrap()
}

/// Starts the daemon of a host with another etcd.
fn start(cluster: &mut Cluster, host: usize, etcd: &Etcd) {
    cluster.start_with(host, &[format!("-etcd-endpoints={}", etcd.client_url())]);
}

#[test]
fn a_host_that_moves_to_another_etcd_drops_the_cached_peers() {
    let mut cluster = cached_cluster();
    let device = cluster.switch_device();
    cluster.shell_on_switch(&format!("ip addr add {OTHER_ETCD}/24 dev {device}"));
    let mut other = etcd(&cluster, OTHER_ETCD, "other");
    other.etcdctl(&["put", "/coreos.com/network/config", VXLAN]).unwrap();
    for host in [0, 1] {
        cluster.daemon(host).terminate(PATIENCE).unwrap();
    }

    // The first host starts after its new registry, the second before.
    start(&mut cluster, 0, &other);
    cluster.daemon(0).wait_for_line("cache is from another registry (http://", PATIENCE).unwrap();
    cluster.wait_until_ready(0);
    eventually(PATIENCE, || cluster.routes(0).is_empty()).unwrap();

    other.stop().unwrap();
    start(&mut cluster, 1, &other);
    cluster.daemon(1).wait_for_line("Running with cached peers", PATIENCE).unwrap();
    cluster.wait_until_ready(1);
    assert_eq!(cluster.routes(1).len(), 2, "the cached peers stay");
    other.restart().unwrap();
    cluster.daemon(1).wait_for_line("cache is from another registry", PATIENCE * 2).unwrap();
    let only_the_other = |host, peer| {
        let routes = cluster.routes(host);
        routes.len() == 1 && routes[0].starts_with(&cluster.subnet(peer).to_string())
    };
    eventually(PATIENCE, || only_the_other(1, 0) && only_the_other(0, 1)).unwrap();
}

#[test]
fn a_recreated_etcd_at_the_same_address_is_suspected() {
    let mut cluster = cached_cluster();
    for host in 0..3 {
        cluster.daemon(host).kill().unwrap();
    }
    cluster.etcd.stop().unwrap();
    cluster.etcd = etcd(&cluster, SWITCH, "made anew");
    cluster.configure(VXLAN);
    cluster.start(0);
    cluster.daemon(0).wait_for_line("2 peers disappeared at once", PATIENCE).unwrap();
    cluster.wait_until_ready(0);
    assert_eq!(cluster.routes(0).len(), 2);
    let lines = cluster.daemon(0).lines();
    assert!(!lines.iter().any(|line| line.contains("another registry")), "{lines:#?}");
}
