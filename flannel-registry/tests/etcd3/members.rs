//! Failover to another member.

use flannel_core::{RegistryEvent, SubnetRegistry};
use flannel_registry::Etcd3Registry;

use crate::server::{DAY, Server, host, next, subnet, until, words};

/// An address without a listener: discard, on a loopback address.
const NOBODY: &str = "http://127.99.99.99:9";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_and_watches_use_the_member_that_answers() {
    let server = Server::start();
    let mut options = server.options();
    options.endpoints = vec![NOBODY.to_owned(), server.url(), NOBODY.to_owned()];
    // The first member to ask is chosen at random.
    for third in 1..6 {
        let registry = Etcd3Registry::new(options.clone()).unwrap();
        let mut watch = registry.watch(None);
        assert!(matches!(next(&mut watch).await, RegistryEvent::Snapshot(_)));
        registry.create(subnet(third), &host(third), DAY).await.unwrap();
        assert_eq!(words(&[next(&mut watch).await]), [format!("put {}", subnet(third))]);
        let before = registry.calls().range;
        registry.list().await.unwrap();
        registry.list().await.unwrap();
        assert_eq!(registry.calls().range - before, 2, "the member that answers is asked first");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_reconnects_after_its_member_restarted() {
    let server = Server::start();
    let mut options = server.options();
    options.endpoints = vec![NOBODY.to_owned(), server.url()];
    let registry = Etcd3Registry::new(options).unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    next(&mut watch).await;
    server.etcd().restart().unwrap();
    registry.create(subnet(2), &host(2), DAY).await.unwrap();
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Put(_))).await;
    assert_eq!(words(&events), ["unavailable", "available", "put 10.5.2.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_is_described_by_its_endpoints() {
    let mut options = flannel_registry::Etcd3Options::default();
    options.endpoints = vec!["10.0.0.1:2379".to_owned(), "http://10.0.0.2:2379".to_owned()];
    let registry = Etcd3Registry::new(options).unwrap();
    assert_eq!(registry.describe(), "etcd v3 at http://10.0.0.1:2379, http://10.0.0.2:2379");
}
