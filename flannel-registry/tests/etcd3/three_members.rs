//! A cluster of three members with failures.

use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use flannel_core::{RegistryError, RegistryEvent, SubnetRegistry};
use flannel_netlink::Namespace;
use flannel_registry::{Etcd3Options, Etcd3Registry};
use flannel_testing::{Etcd, EtcdOptions, random_loopback_address};

use crate::server::{DAY, host, next, subnet, until, words};

/// Starts three members concurrently, because a single one does not become healthy.
fn start() -> Vec<Etcd> {
    let addresses: [Ipv4Addr; 3] = std::array::from_fn(|_| random_loopback_address());
    let peers: Vec<_> = (0..).zip(addresses).map(|(i, at)| format!("member{i}=http://{at}:2380")).collect();
    let peers = peers.join(",");
    let options = (0..).zip(addresses).map(|(i, address)| EtcdOptions {
        inside: Some((Namespace::current().unwrap(), address.into())),
        // Heartbeats are slow on a machine that runs all tests at once.
        arguments: [
            &format!("--name=member{i}"),
            &format!("--initial-cluster={peers}"),
            "--heartbeat-interval=50",
            "--election-timeout=500",
        ]
        .map(str::to_owned)
        .to_vec(),
        ..EtcdOptions::default()
    });
    let members: Mutex<Vec<Etcd>> = Mutex::default();
    thread::scope(|scope| {
        for options in options {
            scope.spawn(|| {
                let member = Etcd::start_with(options).unwrap();
                members.lock().unwrap().push(member);
            });
        }
    });
    members.into_inner().unwrap()
}

fn registry(members: &[Etcd]) -> Etcd3Registry {
    let mut options = Etcd3Options::default();
    options.endpoints = members.iter().map(Etcd::client_url).collect();
    options.timeout = Duration::from_secs(2);
    options.silence = Duration::from_secs(3);
    Etcd3Registry::new(options).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_member_is_replaced() {
    let mut members = start();
    let registry = registry(&members);
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let mut watch = registry.watch(None);
    assert_eq!(words(&[next(&mut watch).await]), ["snapshot 10.5.1.0-24"]);
    // One member is the leader, and one serves the watch.
    for (third, member) in (10..).zip(&mut members) {
        member.pause().unwrap();
        // The outcome of a write to a frozen leader may be unknown; no other error is allowed.
        let created = registry.create(subnet(third), &host(third), DAY).await;
        assert!(
            matches!(created, Ok(_) | Err(RegistryError::Unknown(..) | RegistryError::Unavailable(..))),
            "{created:?}"
        );
        let marker = third + 100;
        while registry.create(subnet(marker), &host(marker), DAY).await.is_err() {}
        let is_marker = |event: &RegistryEvent| matches!(event, RegistryEvent::Put(lease) if lease.subnet == subnet(marker));
        let events = until(&mut watch, is_marker).await;
        let snapshots = events.iter().filter(|event| matches!(event, RegistryEvent::Snapshot(_))).count();
        assert_eq!(snapshots, 0, "a member that is as far leads on: {events:?}");
        registry.renew(&lease, DAY).await.unwrap();
        member.resume().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_member_yields_no_old_state() {
    let mut members = start();
    let lone = registry(&members[..1]);
    let lease = lone.create(subnet(1), &host(1), DAY).await.unwrap();
    let mut watch = lone.watch(None);
    next(&mut watch).await;
    lone.create(subnet(2), &host(2), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.2.0-24"]);

    for member in &mut members[1..] {
        member.kill().unwrap();
    }
    // It does not know yet that it is partitioned, and could answer from its own state.
    let listed = lone.list().await;
    assert!(matches!(listed, Err(RegistryError::Unavailable(..))), "an old list: {listed:?}");
    assert_eq!(words(&[next(&mut watch).await]), ["unavailable"]);
    let listed = lone.list().await;
    assert!(matches!(listed, Err(RegistryError::Unavailable(..))), "an old list: {listed:?}");
    let renewed = lone.renew(&lease, DAY).await;
    assert!(matches!(renewed, Err(RegistryError::Unavailable(..))), "{renewed:?}");

    members[1].restart().unwrap();
    until(&mut watch, |event| matches!(event, RegistryEvent::Available)).await;
    lone.create(subnet(3), &host(3), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.3.0-24"]);
}
