//! What a watch cannot see it finds by looking now and then.

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
async fn an_audit_is_a_list_beside_the_open_watch() {
    let server = Server::start();
    let registry = audited(&server, Duration::from_millis(400));
    let mut watch = registry.watch(None);
    assert_eq!(words(&[next(&mut watch).await]), ["snapshot "]);
    assert_eq!(words(&[next(&mut watch).await]), ["snapshot "]);
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    // Told once, by the watch or by the audit, whichever comes first, and in every audit after it.
    let events = until(
        &mut watch,
        |event| matches!(event, RegistryEvent::Snapshot(snapshot) if snapshot.leases.len() == 1),
    )
    .await;
    assert!(events.iter().filter(|event| matches!(event, RegistryEvent::Put(_))).count() <= 1);
    assert_eq!(registry.calls().watch, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_that_fails_is_not_the_end_of_the_watch() {
    let server = Server::start();
    let registry = audited(&server, Duration::from_millis(200));
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    next(&mut watch).await;
    server.etcd().pause().unwrap();
    until(&mut watch, |event| matches!(event, RegistryEvent::Silent(_))).await;
    server.etcd().resume().unwrap();
    until(&mut watch, |event| matches!(event, RegistryEvent::Heard)).await;
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    until(
        &mut watch,
        |event| matches!(event, RegistryEvent::Snapshot(snapshot) if snapshot.leases.len() == 1),
    )
    .await;
}
