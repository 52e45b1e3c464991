//! Failover to another member.

use std::time::Duration;

use flannel_core::{RegistryError, RegistryEvent, SubnetRegistry, chain};
use flannel_registry::Etcd2Registry;
use futures::StreamExt;
use tokio::time::timeout;

use crate::common::{DAY, host, next, subnet, until, words};
use crate::server::Server;

/// An address without a listener: discard, on a loopback address.
const NOBODY: &str = "http://127.99.99.99:9";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_and_watches_use_the_member_that_answers() {
    let server = Server::start();
    let without = Server::start_without_v2();
    let mut options = server.options();
    options.endpoints = vec![NOBODY.to_owned(), server.url(), without.url()];
    // The first member to ask is chosen at random.
    for third in 1..6 {
        let registry = Etcd2Registry::new(options.clone()).unwrap();
        let mut watch = registry.watch(None);
        assert!(matches!(next(&mut watch).await, RegistryEvent::Snapshot(_)));
        registry.create(subnet(third), &host(third), DAY).await.unwrap();
        assert_eq!(words(&[next(&mut watch).await]), [format!("put {}", subnet(third))]);
        let before = registry.calls().reads;
        registry.list().await.unwrap();
        registry.list().await.unwrap();
        assert_eq!(registry.calls().reads - before, 2, "the member that answers is asked first");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_reconnects_after_its_member_restarted() {
    let server = Server::start();
    let mut options = server.options();
    options.endpoints = vec![NOBODY.to_owned(), server.url()];
    let registry = Etcd2Registry::new(options).unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    next(&mut watch).await;
    assert!(timeout(Duration::from_millis(200), watch.next()).await.is_err());
    server.etcd().restart().unwrap();
    registry.create(subnet(2), &host(2), DAY).await.unwrap();
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Put(_))).await;
    assert_eq!(words(&events), ["unavailable", "available", "put 10.5.2.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_was_not_sent_goes_to_the_next_member() {
    let server = Server::start();
    let mut options = server.options();
    options.endpoints = vec![NOBODY.to_owned(), server.url()];
    for third in 1..6 {
        let registry = Etcd2Registry::new(options.clone()).unwrap();
        let lease = registry.create(subnet(third), &host(third), DAY).await.unwrap();
        registry.delete(&lease).await.unwrap();
    }
    options.endpoints = vec![NOBODY.to_owned(), "127.99.99.98:9".to_owned()];
    let registry = Etcd2Registry::new(options).unwrap();
    let error = registry.create(subnet(1), &host(1), DAY).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unavailable(..)), "{error:?}");
    assert!(chain(&error).contains("refused"), "{error:?}");
}
