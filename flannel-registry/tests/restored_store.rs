//! A watch of the registry in memory after a restore.

#![allow(clippy::unwrap_used, reason = "a test may fail in its helpers too")]

use std::net::Ipv4Addr;
use std::time::Duration;

use flannel_core::{LeaseAttrs, RegistryEvent, SubnetRegistry};
use flannel_registry::MemoryRegistry;
use futures::StreamExt;

#[tokio::test]
async fn a_watch_not_polled_during_a_restore_yields_a_snapshot_although_the_revision_grew_again() {
    let store = MemoryRegistry::new();
    let attrs = LeaseAttrs::new(Ipv4Addr::new(192, 168, 0, 1).into());
    let ttl = Duration::from_secs(86_400);
    let mut watch = store.watch(None);
    assert!(matches!(watch.next().await, Some(RegistryEvent::Snapshot(_))));
    let backup = store.backup();
    store.create("10.5.1.0-24".parse().unwrap(), &attrs, ttl).await.unwrap();
    assert!(matches!(watch.next().await, Some(RegistryEvent::Put(_))));

    store.restore(backup);
    for key in ["10.5.2.0-24", "10.5.3.0-24"] {
        store.create(key.parse().unwrap(), &attrs, ttl).await.unwrap();
    }
    let Some(RegistryEvent::Snapshot(snapshot)) = watch.next().await else {
        unreachable!("only a snapshot can show missing records");
    };
    let subnets: Vec<String> = snapshot.leases.iter().map(|lease| lease.subnet.to_string()).collect();
    assert_eq!(subnets, ["10.5.2.0-24", "10.5.3.0-24"]);
}
