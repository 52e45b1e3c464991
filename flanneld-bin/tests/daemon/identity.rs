//! The identity of hosts: ID and address, and duplicates of both.

use std::fs;

use flannel_testing::eventually;

use crate::cluster::{Cluster, PATIENCE, VXLAN, check_ping};

/// The record of a host's lease.
fn record(cluster: &Cluster, host: usize) -> String {
    let key = format!("/coreos.com/network/subnets/{}-24", cluster.subnet(host).addr());
    let found = cluster.leases().into_iter().find(|(name, _)| *name == key);
    found.unwrap_or_else(|| panic!("{key} in {:?}", cluster.leases())).1
}

#[test]
fn a_host_that_returns_with_another_address_keeps_its_subnet() {
    let mut cluster = Cluster::running(2);
    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    check_ping(&pods[1], &pods[0]);
    let (subnet, id) = (cluster.subnet(0), fs::read_to_string(cluster.node_id(0)).unwrap());
    assert!(
        record(&cluster, 0).ends_with(&format!(r#","NodeID":"{}"}}"#, id.trim())),
        "{}",
        record(&cluster, 0)
    );
    cluster.daemon(0).terminate(PATIENCE).unwrap();
    // Only the ID identifies the owner of the lease.
    fs::remove_file(cluster.subnet_file(0)).unwrap();
    fs::remove_file(cluster.subnet_file(0).with_extension("env.cache")).unwrap();
    cluster.lines(0, &format!("ip addr del {}/24 dev eth0", cluster.public(0)));
    cluster.lines(0, "ip addr add 192.168.64.77/24 dev eth0");
    cluster.start(0);
    cluster.wait_until_ready(0);
    assert_eq!(cluster.subnet(0), subnet);
    assert!(record(&cluster, 0).starts_with(r#"{"PublicIP":"192.168.64.77""#), "{:?}", cluster.leases());
    assert_eq!(cluster.leases().len(), 2);
    cluster.daemon(0).wait_for_line("of this host, whose IP was 192.168.64.1", PATIENCE).unwrap();
    check_ping(&pods[1], &pods[0]);
    check_ping(&pods[0], &pods[1]);
}

#[test]
fn two_hosts_with_one_public_address_log_it_and_hold_two_subnets() {
    let mut cluster = Cluster::with_spare(1, 1);
    let subnet = cluster.subnet(0);
    cluster.start_with(1, &[format!("-public-ip={}", cluster.public(0))]);
    let line = cluster.daemon(0).wait_for_line("two hosts have the IP 192.168.64.1", PATIENCE).unwrap();
    assert!(line.starts_with('W') && line.contains("-public-ip"), "{line}");
    let line = cluster.daemon(1).wait_for_line("two hosts have the IP 192.168.64.1", PATIENCE).unwrap();
    assert!(line.starts_with('E') && line.contains("-public-ip"), "{line}");
    cluster.wait_until_ready(1);
    eventually(PATIENCE, || cluster.leases().len() == 2 && cluster.subnet(1) != subnet).unwrap();
    assert_eq!(cluster.subnet(0), subnet);
    let own = fs::read_to_string(cluster.node_id(0)).unwrap();
    assert!(record(&cluster, 0).contains(own.trim()), "{:?}", cluster.leases());
}

#[test]
fn a_clone_of_a_host_gets_another_id_and_another_subnet() {
    let mut cluster = Cluster::with_spare(1, 1);
    let subnet = cluster.subnet(0);
    // A disk image: the same ID and subnet.env, another address.
    fs::create_dir_all(cluster.subnet_file(1).parent().unwrap()).unwrap();
    for (from, to) in
        [(cluster.node_id(0), cluster.node_id(1)), (cluster.subnet_file(0), cluster.subnet_file(1))]
    {
        fs::copy(from, to).unwrap();
    }
    cluster.start(1);
    let line = cluster.daemon(1).wait_for_line("two hosts have the node id", PATIENCE).unwrap();
    assert!(line.starts_with('E'), "{line}");
    cluster.wait_until_ready(1);
    eventually(PATIENCE, || cluster.leases().len() == 2 && cluster.subnet(1) != subnet).unwrap();
    assert_eq!(cluster.subnet(0), subnet);
    let id = |host| fs::read_to_string(cluster.node_id(host)).unwrap();
    assert_ne!(id(0), id(1));
    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    check_ping(&pods[0], &pods[1]);
    check_ping(&pods[1], &pods[0]);
}

#[test]
fn a_host_that_lost_its_id_gets_its_subnet_by_its_address() {
    let mut cluster = Cluster::new(1);
    cluster.configure(VXLAN);
    cluster.start(0);
    cluster.wait_until_ready(0);
    let (subnet, id) = (cluster.subnet(0), fs::read_to_string(cluster.node_id(0)).unwrap());
    cluster.daemon(0).kill().unwrap();
    fs::remove_dir_all(cluster.subnet_file(0).parent().unwrap()).unwrap();
    cluster.start(0);
    cluster.wait_until_ready(0);
    assert_eq!((cluster.subnet(0), cluster.leases().len()), (subnet, 1));
    assert_ne!(fs::read_to_string(cluster.node_id(0)).unwrap(), id);
}

#[test]
fn a_host_whose_record_another_host_overwrites_leases_another_subnet() {
    let mut cluster = Cluster::running(2);
    let subnet = cluster.subnet(0);
    // As upstream renews: without compare-and-swap, here after a partition longer than the lease.
    let key = format!("/coreos.com/network/subnets/{}-24", subnet.addr());
    cluster.etcd.etcdctl(&["put", &key, r#"{"PublicIP":"192.168.64.99","PublicIPv6":null}"#]).unwrap();
    let line = cluster.daemon(0).wait_for_line("was overwritten by 192.168.64.99", PATIENCE).unwrap();
    assert!(line.starts_with('E') && line.contains("Lease has been revoked"), "{line}");
    eventually(PATIENCE, || cluster.leases().len() == 3 && cluster.subnet(0) != subnet).unwrap();
    let held = cluster.leases();
    assert!(held.iter().any(|(name, record)| *name == key && record.contains("192.168.64.99")), "{held:?}");
    assert!(record(&cluster, 0).starts_with(r#"{"PublicIP":"192.168.64.1""#), "{held:?}");
    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    check_ping(&pods[1], &pods[0]);
}

#[test]
fn a_record_that_another_daemon_of_the_host_rewrites_is_restored_and_logged() {
    let mut cluster = Cluster::running(2);
    let (key, ours) = cluster.leases().remove(0);
    let host = usize::from(!ours.contains("192.168.64.1\""));
    let theirs = format!(r#"{{"PublicIP":"{}","PublicIPv6":null}}"#, cluster.public(host));
    cluster.etcd.etcdctl(&["put", &key, &theirs]).unwrap();
    let line = cluster.daemon(host).wait_for_line("was rewritten by another daemon", PATIENCE).unwrap();
    assert!(line.starts_with('W') && line.ends_with("; restoring it"), "{line}");
    eventually(PATIENCE, || cluster.leases()[0].1 == ours).unwrap();
}
