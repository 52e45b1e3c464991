//! Audits, which find what a watch cannot see.

use std::time::Duration;

use flannel_core::{RegistryEvent, SubnetRegistry};
use flannel_registry::Etcd3Registry;

use crate::server::{DAY, Server, host, next, subnet, until, words};

fn audited(server: &Server, interval: Duration) -> Etcd3Registry {
    let mut options = server.options();
    options.audit = Some(interval);
    Etcd3Registry::new(options).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_lists_in_parallel_to_the_open_watch() {
    let server = Server::start();
    let registry = audited(&server, Duration::from_millis(400));
    let mut watch = registry.watch(None);
    assert_eq!(words(&[next(&mut watch).await]), ["snapshot "]);
    assert_eq!(words(&[next(&mut watch).await]), ["snapshot "]);
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    // Yielded once, by the watch or the audit, and by every audit after that.
    let events = until(
        &mut watch,
        |event| matches!(event, RegistryEvent::Snapshot(snapshot) if snapshot.leases.len() == 1),
    )
    .await;
    assert!(events.iter().filter(|event| matches!(event, RegistryEvent::Put(_))).count() <= 1);
    assert_eq!(registry.calls().watch, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_audit_does_not_end_the_watch() {
    let server = Server::start();
    let registry = audited(&server, Duration::from_millis(200));
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    next(&mut watch).await;
    server.etcd().pause().unwrap();
    until(&mut watch, |event| matches!(event, RegistryEvent::Unavailable(_))).await;
    server.etcd().resume().unwrap();
    until(&mut watch, |event| matches!(event, RegistryEvent::Available)).await;
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    until(
        &mut watch,
        |event| matches!(event, RegistryEvent::Snapshot(snapshot) if snapshot.leases.len() == 1),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_detects_a_restored_store_that_caught_up() {
    let server = Server::start();
    let registry = audited(&server, Duration::from_secs(3));
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    server.etcd().back_up().unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    registry.create(subnet(2), &host(2), DAY).await.unwrap();
    let has_both = |event: &RegistryEvent| matches!(event, RegistryEvent::Snapshot(snapshot) if snapshot.leases.len() == 2);
    until(&mut watch, |event| has_both(event) || matches!(event, RegistryEvent::Put(_))).await;

    server.etcd().restore_backup().unwrap();
    // Each start raises the term, and each write the revision, until both exceed those that the watch knows.
    for _ in 0..3 {
        server.etcd().restart().unwrap();
        server.ctl(&["put", "/other", "value"]);
    }
    let events = until(&mut watch, |event| {
        let RegistryEvent::Snapshot(snapshot) = event else { return false };
        snapshot.leases.iter().all(|lease| lease.subnet == subnet(1))
    })
    .await;
    // Nothing else distinguishes the restored store. The audit may run before the outage is detected.
    let words = words(&events);
    let [before @ .., last] = &words[..] else { panic!("no event was received") };
    assert_eq!(last, "snapshot 10.5.1.0-24");
    assert!(before.is_empty() || before == ["unavailable", "available"], "{words:?}");
}
