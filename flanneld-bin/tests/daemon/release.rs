//! The lease TTL, and the release of leases.

use flannel_testing::eventually;

use crate::cluster::{Cluster, NFTABLES, PATIENCE, VXLAN};

/// A ready cluster whose first host has these flags.
fn cluster(hosts: usize, flags: &[&str]) -> Cluster {
    let mut cluster = Cluster::new(hosts);
    cluster.configure(VXLAN);
    cluster.start_with(0, flags);
    (1..hosts).for_each(|host| cluster.start(host));
    (0..hosts).for_each(|host| cluster.wait_until_ready(host));
    cluster
}

/// The granted TTL, in seconds, of the etcd lease of the only record. Its previous etcd lease may still exist.
fn granted(cluster: &Cluster) -> u64 {
    let (key, _) = cluster.leases().remove(0);
    let fields = cluster.etcd.etcdctl(&["get", &key, "-w=fields"]).unwrap();
    let id = fields.lines().find_map(|line| line.strip_prefix("\"Lease\" : ")).unwrap();
    let id = format!("{:x}", id.parse::<u64>().unwrap());
    let output = cluster.etcd.etcdctl(&["lease", "timetolive", &id]).unwrap();
    output.split_once("granted with TTL(").unwrap().1.split_once('s').unwrap().0.parse().unwrap()
}

#[test]
fn a_lease_has_the_configured_ttl_and_is_renewed_before_the_margin() {
    let mut cluster = cluster(1, &["-subnet-lease-ttl=10m", "-subnet-lease-renew-margin=9"]);
    assert_eq!(granted(&cluster), 600);
    let line = cluster.daemon(0).wait_for_line("to renew lease", PATIENCE).unwrap();
    assert!(line.contains("Waiting for 5") || line.contains("Waiting for 1m0s"), "{line}");
    // The next start applies another TTL.
    cluster.daemon(0).terminate(PATIENCE).unwrap();
    let subnet = cluster.subnet(0);
    cluster.start_with(0, &["-subnet-lease-ttl=2h"]);
    cluster.wait_until_ready(0);
    assert_eq!((granted(&cluster), cluster.subnet(0)), (7200, subnet));
}

#[test]
fn release_on_exit_leaves_nothing_on_the_host_and_its_peers() {
    let mut cluster = cluster(3, &["-release-on-exit"]);
    eventually(PATIENCE, || cluster.routes(1).len() == 2).unwrap();
    let status = cluster.daemon(0).terminate(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(0), "{:#?}", cluster.daemon(0).lines());
    assert_eq!(cluster.leases().len(), 2);
    assert!(!cluster.lines(0, "ip link").iter().any(|line| line.contains("flannel.1")));
    let files =
        ["env", "env.cache", "env.node-id"].map(|name| cluster.subnet_file(0).with_extension(name).exists());
    assert_eq!(files, [false, false, true], "only the node ID stays");
    eventually(PATIENCE, || cluster.routes(1).len() == 1).unwrap();
    cluster.daemon(0).wait_for_line("Released the lease", PATIENCE).unwrap();
}

#[test]
fn two_of_three_hosts_that_release_their_leases_are_not_held() {
    let mut cluster = cluster(3, &["-release-on-exit"]);
    cluster.daemon(1).terminate(PATIENCE).unwrap();
    cluster.start_with(1, &["-release-on-exit"]);
    eventually(PATIENCE, || cluster.routes(2).len() == 2).unwrap();
    for host in 0..2 {
        assert_eq!(cluster.daemon(host).terminate(PATIENCE).unwrap().code(), Some(0));
    }
    eventually(PATIENCE, || cluster.routes(2).is_empty()).unwrap();
    let lines = cluster.daemon(2).lines();
    assert!(!lines.iter().any(|line| line.contains("Subnet held")), "{lines:#?}");
}

#[test]
fn release_on_exit_leaves_no_rules() {
    let flags = ["-release-on-exit", "-ip-masq", "-ip-blackhole-route", "-restrict-tunnel-port"];
    for config in [VXLAN, NFTABLES] {
        let mut cluster = Cluster::new(1);
        cluster.configure(config);
        cluster.start_with(0, &flags);
        cluster.wait_until_ready(0);
        let traces = |cluster: &Cluster| {
            cluster.shell(
                0,
                "{ iptables-save; nft list ruleset; ip route; } | grep -i -e flannel -e blackhole || true",
            )
        };
        assert!(traces(&cluster).contains("blackhole"), "{}", traces(&cluster));
        assert_eq!(cluster.daemon(0).terminate(PATIENCE).unwrap().code(), Some(0));
        assert_eq!(traces(&cluster), "", "{config}");
    }
}

#[test]
fn a_reservation_is_not_released() {
    let mut cluster = cluster(1, &["-release-on-exit"]);
    let (key, record) = cluster.leases().remove(0);
    cluster.etcd.etcdctl(&["put", &key, &record]).unwrap();
    cluster.daemon(0).wait_for_line("is a reservation", PATIENCE).unwrap();
    assert_eq!(cluster.daemon(0).terminate(PATIENCE).unwrap().code(), Some(0));
    assert_eq!(cluster.leases(), [(key, record)]);
    assert!(!cluster.lines(0, "ip link").iter().any(|line| line.contains("flannel.1")));
}

#[test]
fn a_failed_release_is_logged_and_the_host_is_cleaned_up_nevertheless() {
    let mut cluster = cluster(1, &["-release-on-exit"]);
    cluster.etcd.stop().unwrap();
    assert_eq!(cluster.daemon(0).terminate(PATIENCE).unwrap().code(), Some(1));
    let line = cluster.daemon(0).wait_for_line("failed to release the lease", PATIENCE).unwrap();
    assert!(line.starts_with('E') && line.contains("it expires on its own"), "{line}");
    assert!(!cluster.lines(0, "ip link").iter().any(|line| line.contains("flannel.1")));
    assert!(!cluster.subnet_file(0).exists());
}
