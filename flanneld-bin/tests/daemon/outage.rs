//! A cluster without its registry keeps working.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use flannel_testing::{PingOptions, Pod, RunningPing, eventually};

use crate::cluster::{Cluster, Notifications, PATIENCE, VXLAN, check_ping, wait_for_replies};

/// How long etcd is down.
const OUTAGE: Duration = Duration::from_secs(60);

fn cache(cluster: &Cluster, host: usize) -> PathBuf {
    cluster.subnet_file(host).with_extension("env.cache")
}

/// Waits until a host's cache has this number of peers.
pub(crate) fn wait_until_cached(cluster: &Cluster, host: usize, peers: usize) {
    eventually(PATIENCE, || {
        let text = std::fs::read_to_string(cache(cluster, host)).unwrap_or_default();
        text.lines().filter(|line| line.starts_with("peer ")).count() == peers
    })
    .unwrap();
}

/// Pings from each pod to every other.
fn ping_all(pods: &[Pod]) -> Vec<RunningPing> {
    let pairs = pods.iter().flat_map(|from| pods.iter().map(move |to| (from, to)));
    let pairs = pairs.filter(|(from, to)| from.name != to.name);
    let pings = pairs.map(|(from, to)| {
        check_ping(from, to);
        let every = Duration::from_millis(20);
        RunningPing::start(&from.namespace, to.addresses[0], every, &PingOptions::default()).unwrap()
    });
    pings.collect()
}

fn check_nothing_was_lost(pings: Vec<RunningPing>) {
    for ping in pings {
        let report = ping.stop();
        assert_eq!(report.lost_count(), 0, "{report:?}");
    }
}

/// Starts a daemon and waits until it notifies that it is ready.
fn start_and_wait_for_ready(cluster: &mut Cluster, host: usize) {
    let (mut notifications, command) = (Notifications::new(), cluster.command(host));
    notifications.start(cluster, host, &command);
    notifications.wait_for("READY=1\n");
    assert!(cluster.subnet_file(host).exists());
}

#[test]
fn no_packet_is_lost_while_etcd_is_down_for_a_minute_and_two_hosts_restart() {
    let mut cluster = Cluster::with_spare(3, 1);
    let pods: Vec<_> = (0..3).map(|host| cluster.add_pod(host)).collect();
    let subnets: Vec<_> = (0..3).map(|host| cluster.subnet(host)).collect();
    (0..3).for_each(|host| wait_until_cached(&cluster, host, 2));
    let devices: Vec<_> = (0..3).map(|host| cluster.device(host)).collect();
    let pings = ping_all(&pods);

    let stopped = Instant::now();
    cluster.etcd.stop().unwrap();
    cluster.daemon(0).kill().unwrap();
    let ended = cluster.daemon(1).terminate(PATIENCE).unwrap();
    assert_eq!(ended.code(), Some(0));
    for host in [0, 1] {
        std::fs::remove_file(cluster.subnet_file(host)).unwrap();
        start_and_wait_for_ready(&mut cluster, host);
        assert_eq!(cluster.subnet(host), subnets[host]);
        cluster.daemon(host).wait_for_line("Running with cached peers", PATIENCE).unwrap();
    }
    std::thread::sleep(OUTAGE.saturating_sub(stopped.elapsed()));
    wait_for_replies(&pings, 10);

    cluster.etcd.restart().unwrap();
    for host in [0, 1] {
        cluster.daemon(host).wait_for_line("cached peers dropped", PATIENCE * 2).unwrap();
        cluster.daemon(host).wait_for_line("to renew lease", PATIENCE * 2).unwrap();
    }
    assert_eq!(cluster.leases().len(), 3);
    cluster.start(3);
    cluster.wait_until_ready(3);
    let joined = cluster.add_pod(3);
    for pod in &pods {
        check_ping(&joined, pod);
    }
    wait_for_replies(&pings, 10);
    check_nothing_was_lost(pings);
    assert_eq!((0..3).map(|host| cluster.subnet(host)).collect::<Vec<_>>(), subnets);
    assert_eq!((0..3).map(|host| cluster.device(host)).collect::<Vec<_>>(), devices);
}

#[test]
fn all_leases_revoked_at_once_are_reacquired_without_packet_loss() {
    let cluster = Cluster::running(3);
    let pods: Vec<_> = (0..3).map(|host| cluster.add_pod(host)).collect();
    let before = cluster.leases();
    let pings = ping_all(&pods);
    cluster.etcd.etcdctl(&["del", "--prefix", "/coreos.com/network/subnets/"]).unwrap();
    eventually(PATIENCE, || cluster.leases() == before).unwrap();
    wait_for_replies(&pings, 50);
    check_nothing_was_lost(pings);
}

#[test]
fn a_wiped_etcd_gets_the_same_leases_again_also_from_a_host_that_restarts() {
    let mut cluster = Cluster::running(3);
    let pods: Vec<_> = (0..3).map(|host| cluster.add_pod(host)).collect();
    (0..3).for_each(|host| wait_until_cached(&cluster, host, 2));
    let before = cluster.leases();
    let pings = ping_all(&pods);
    cluster.daemon(0).kill().unwrap();
    std::fs::remove_file(cluster.subnet_file(0)).unwrap();
    cluster.etcd.etcdctl(&["del", "--prefix", "/coreos.com/network/"]).unwrap();
    cluster.start(0);
    cluster.wait_until_ready(0);
    eventually(PATIENCE, || cluster.leases() == before).unwrap();
    wait_for_replies(&pings, 50);
    check_nothing_was_lost(pings);
}

#[test]
fn peers_that_do_not_return_are_kept_for_the_configured_time() {
    let mut cluster = Cluster::new(3);
    cluster.configure(VXLAN);
    cluster.start_with(0, &["-mass-expiry-hold=6"]);
    (1..3).for_each(|host| cluster.start(host));
    (0..3).for_each(|host| cluster.wait_until_ready(host));
    eventually(PATIENCE, || cluster.routes(0).len() == 2).unwrap();
    let own = format!("/coreos.com/network/subnets/{}-24", cluster.subnet(0).addr());
    for host in [1, 2] {
        cluster.daemon(host).kill().unwrap();
    }
    let began = Instant::now();
    for (key, _) in cluster.leases().iter().filter(|(key, _)| *key != own) {
        cluster.etcd.etcdctl(&["del", key]).unwrap();
    }
    cluster.daemon(0).wait_for_line("2 peers disappeared at once", PATIENCE).unwrap();
    eventually(PATIENCE, || cluster.routes(0).len() == 2).unwrap();
    cluster.daemon(0).wait_for_line("2 peers that had disappeared at once did not return", PATIENCE).unwrap();
    assert!(began.elapsed() >= Duration::from_secs(6));
    eventually(PATIENCE, || cluster.routes(0).is_empty()).unwrap();
}

#[test]
fn a_cache_that_cannot_be_used_is_ignored_with_a_warning() {
    let mut cluster = Cluster::running(2);
    wait_until_cached(&cluster, 0, 1);
    let before = cluster.leases();
    cluster.daemon(0).terminate(PATIENCE).unwrap();
    let text = std::fs::read_to_string(cache(&cluster, 0)).unwrap();
    std::fs::write(cache(&cluster, 0), text.replace("192.168.64.2", "192.168.64.3")).unwrap();
    cluster.start(0);
    cluster.wait_until_ready(0);
    let lines = cluster.daemon(0).lines();
    let warnings: Vec<_> = lines.iter().filter(|line| line.contains("ignoring cache")).collect();
    assert!(warnings.len() == 1 && warnings[0].starts_with('W'), "{warnings:?}");
    assert!(warnings[0].ends_with("invalid checksum"), "{warnings:?}");
    wait_until_cached(&cluster, 0, 1);
    assert_eq!((cluster.leases(), cluster.routes(0).len()), (before, 1));
}
