//! Watches across failures of etcd.

use std::time::{Duration, Instant};

use flannel_core::{RegistryEvent, Revision, SubnetRegistry};
use flannel_registry::Etcd3Registry;
use futures::FutureExt;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::timeout;

use crate::server::{DAY, PATIENCE, Server, host, next, subnet, subnet_key, until, words};

const RECORD: &str = r#"{"PublicIP":"192.168.0.1"}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_during_a_restart_of_etcd_are_yielded() {
    let server = Server::start();
    let registry = server.registry();
    let first = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let mut watch = registry.watch(None);
    assert_eq!(words(&[next(&mut watch).await]), ["snapshot 10.5.1.0-24"]);
    let second = registry.create(subnet(2), &host(2), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.2.0-24"]);

    server.etcd().kill().unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["unavailable"]);
    server.etcd().restart().unwrap();
    // Written and removed before the watch is polled again.
    registry.delete(&first).await.unwrap();
    registry.update(&second, &host(3), DAY).await.unwrap();
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Put(_))).await;
    assert_eq!(words(&events), ["available", "deleted 10.5.1.0-24", "put 10.5.2.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_watch_yields_a_snapshot() {
    let server = Server::start();
    let registry = server.registry();
    let first = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    registry.create(subnet(2), &host(2), DAY).await.unwrap();
    next(&mut watch).await;

    server.etcd().kill().unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["unavailable"]);
    server.etcd().restart().unwrap();
    registry.create(subnet(3), &host(3), DAY).await.unwrap();
    // A delete is the last compacted change (etcd-io/etcd#18089).
    registry.delete(&first).await.unwrap();
    server.compact();
    registry.create(subnet(4), &host(4), DAY).await.unwrap();
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Snapshot(_))).await;
    assert_eq!(
        words(&events).last().map(String::as_str),
        Some("snapshot 10.5.2.0-24,10.5.3.0-24,10.5.4.0-24")
    );
    registry.create(subnet(5), &host(5), DAY).await.unwrap();
    until(&mut watch, |event| matches!(event, RegistryEvent::Put(lease) if lease.subnet == subnet(5))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_etcd_yields_an_empty_snapshot() {
    let server = Server::start();
    let registry = server.registry();
    for third in 1..6 {
        registry.create(subnet(third), &host(third), DAY).await.unwrap();
    }
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    registry.create(subnet(6), &host(6), DAY).await.unwrap();
    next(&mut watch).await;

    server.etcd().wipe_data().unwrap();
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Snapshot(_))).await;
    assert_eq!(words(&events), ["unavailable", "snapshot "]);
    registry.create(subnet(7), &host(7), DAY).await.unwrap();
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Put(_))).await;
    assert_eq!(words(&events), ["available", "put 10.5.7.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_etcd_with_a_higher_revision_yields_an_empty_snapshot() {
    let server = Server::start();
    for _ in 0..2 {
        // Each start elects a leader, so the term exceeds that of a new store.
        server.etcd().restart().unwrap();
    }
    let registry = server.registry();
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    registry.create(subnet(2), &host(2), DAY).await.unwrap();
    next(&mut watch).await;

    server.etcd().wipe_data().unwrap();
    for third in 3..20 {
        registry.create(subnet(third), &host(third), DAY).await.unwrap();
    }
    let events =
        until(&mut watch, |event| !matches!(event, RegistryEvent::Unavailable(_) | RegistryEvent::Available))
            .await;
    assert!(
        matches!(events.last(), Some(RegistryEvent::Snapshot(snapshot)) if snapshot.leases.len() == 17),
        "{events:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_future_revision_yields_a_snapshot() {
    let server = Server::start();
    let registry = server.registry();
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let mut watch = registry.watch(Some(Revision(1_000_000)));
    assert_eq!(words(&[next(&mut watch).await]), ["snapshot 10.5.1.0-24"]);
    registry.create(subnet(2), &host(2), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.2.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_records_are_named_and_hide_nothing() {
    let server = Server::start();
    let registry = server.registry();
    let mut watch = registry.watch(None);
    assert_eq!(words(&[next(&mut watch).await]), ["snapshot "]);
    server.put("garbage", RECORD);
    server.put("10.5.1.0-24", "garbage");
    server.put("10.5.2.0-24", RECORD);
    server.put("10.5.1.0-24", RECORD);
    server.remove("garbage");
    server.remove("10.5.1.0-24");
    let events =
        until(&mut watch, |event| matches!(event, RegistryEvent::Deleted(..) | RegistryEvent::Released(..)))
            .await;
    let expected = [
        "bad garbage",
        "bad 10.5.1.0-24",
        "put 10.5.2.0-24",
        "put 10.5.1.0-24",
        "bad deleted garbage",
        "deleted 10.5.1.0-24",
    ];
    assert_eq!(words(&events), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_may_start_before_etcd() {
    let server = Server::start();
    server.etcd().stop().unwrap();
    let registry = server.registry();
    let mut watch = registry.watch(None);
    let silent = next(&mut watch).await;
    assert!(
        matches!(&silent, RegistryEvent::Unavailable(reason) if reason.contains("refused")),
        "{silent:?}"
    );
    server.etcd().restart().unwrap();
    // The watch opens when it is polled after its snapshot.
    server.put("10.5.1.0-24", RECORD);
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Available)).await;
    assert_eq!(words(&events), ["snapshot 10.5.1.0-24", "available"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unavailable_etcd_is_asked_with_backoff() {
    let server = Server::start();
    server.etcd().stop().unwrap();
    let registry = server.registry();
    let mut watch = registry.watch(None);
    assert_eq!(words(&[next(&mut watch).await]), ["unavailable"]);
    // Reported once per outage.
    assert!(timeout(Duration::from_secs(3), watch.next()).await.is_err());
    // 0.1 + 0.2 + 0.4 + 0.8 + 1.6 s, each shorter by up to 25 %.
    let calls = registry.calls().range;
    assert!((4..=8).contains(&calls), "{calls} calls in 3 s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_etcd_is_detected_and_a_quiet_one_is_not_suspected() {
    let server = Server::start();
    let mut options = server.options();
    // Longer than etcd may stall on a busy machine.
    options.silence = Duration::from_secs(3);
    options.timeout = Duration::from_secs(2);
    let registry = Etcd3Registry::new(options).unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    assert!(timeout(Duration::from_secs(8), watch.next()).await.is_err(), "an event without a change");
    assert_eq!(registry.calls().watch, 1);

    let hung = Instant::now();
    server.etcd().pause().unwrap();
    let silent = next(&mut watch).await;
    assert!(matches!(&silent, RegistryEvent::Unavailable(_)), "{silent:?}");
    assert!(hung.elapsed() < Duration::from_secs(12), "{:?}", hung.elapsed());
    server.etcd().resume().unwrap();
    until(&mut watch, |event| matches!(event, RegistryEvent::Available)).await;
    server.put("10.5.1.0-24", RECORD);
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.1.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_a_watch_cancels_it_in_etcd() {
    let server = Server::start();
    let registry = server.registry();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    open(&mut watch);
    let watchers = || {
        let metrics = metrics(&server.url());
        let line = metrics.lines().find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watcher_total "));
        line.map(str::to_owned)
    };
    until_equal(
        || {
            open(&mut watch);
            watchers()
        },
        // The watch of the leases and that of the config.
        Some("2".to_owned()),
    );
    drop(watch);
    until_equal(watchers, Some("0".to_owned()));
}

/// Polls a watch as far as possible without waiting.
fn open(watch: &mut BoxStream<'static, RegistryEvent>) {
    assert!(watch.next().now_or_never().is_none(), "no event is expected");
}

fn until_equal(mut value: impl FnMut() -> Option<String>, expected: Option<String>) {
    let begin = Instant::now();
    loop {
        let value = value();
        if value == expected {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{value:?} instead of {expected:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns etcd's metrics.
fn metrics(url: &str) -> String {
    use std::io::{Read, Write};
    let address = url.strip_prefix("http://").unwrap();
    let mut connection = std::net::TcpStream::connect(address).unwrap();
    write!(connection, "GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_distinguished_from_an_expiry() {
    let server = Server::start();
    let registry = server.registry();
    let mut leases = Vec::new();
    for third in 1..4 {
        leases.push(registry.create(subnet(third), &host(third), DAY).await.unwrap());
    }
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    registry.delete(&leases[0]).await.unwrap();
    let event = next(&mut watch).await;
    assert!(matches!(event, RegistryEvent::Released(released, _) if released == subnet(1)), "{event:?}");
    assert!(server.ctl(&["get", "--prefix", &subnet_key(&subnet(1).to_string())]).is_empty());

    // A removal by an operator, or by etcd when the lease expires, may be a fault.
    server.remove("10.5.2.0-24");
    let event = next(&mut watch).await;
    assert!(matches!(event, RegistryEvent::Deleted(deleted, _) if deleted == subnet(2)), "{event:?}");
    // The released subnet is free at once.
    registry.create(subnet(1), &host(9), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.1.0-24"]);
    registry.renew(&leases[2], DAY).await.unwrap();
}
