//! Watches across failures of etcd.

use std::time::{Duration, Instant};

use flannel_core::{RegistryEvent, Revision, SubnetRegistry};
use flannel_registry::Etcd2Registry;
use futures::{FutureExt, StreamExt};
use tokio::time::timeout;

use crate::common::{DAY, PATIENCE, PREFIX, host, next, subnet, subnet_key, until, words};
use crate::server::Server;

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

    let killed_while_waiting = async {
        assert!(timeout(Duration::from_millis(200), watch.next()).await.is_err());
        server.etcd().kill().unwrap();
        next(&mut watch).await
    };
    assert_eq!(words(&[killed_while_waiting.await]), ["unavailable"]);
    server.etcd().restart().unwrap();
    // Written and removed before the watch is polled again.
    registry.delete(&first).await.unwrap();
    registry.update(&second, &host(3), DAY).await.unwrap();
    // When it restarts, etcd replays its log and so restores the events.
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Put(_))).await;
    let seen = words(&events);
    assert_eq!(seen, ["available", "deleted 10.5.1.0-24", "put 10.5.2.0-24"]);
    let Some(RegistryEvent::Put(lease)) = events.last() else { panic!("{seen:?}") };
    assert_eq!(lease.attrs, host(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_whose_index_was_cleared_yields_a_snapshot() {
    let server = Server::start();
    let registry = server.registry();
    let first = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    registry.create(subnet(2), &host(2), DAY).await.unwrap();
    next(&mut watch).await;
    // The watch is not polled meanwhile, and so sends no requests.
    registry.create(subnet(3), &host(3), DAY).await.unwrap();
    registry.delete(&first).await.unwrap();
    server.compact();
    registry.create(subnet(4), &host(4), DAY).await.unwrap();
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Snapshot(_))).await;
    assert_eq!(words(&events), ["snapshot 10.5.2.0-24,10.5.3.0-24,10.5.4.0-24"]);
    registry.create(subnet(5), &host(5), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.5.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_watch_is_unaffected_by_other_keys() {
    let server = Server::start();
    let registry = server.registry();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    let calls = registry.calls();
    for _ in 0..3 {
        assert!(watch.next().now_or_never().is_none(), "no event is expected");
        tokio::task::block_in_place(|| server.compact());
    }
    // It has been waiting since before the index was cleared, so it receives the next event.
    server.put("10.5.1.0-24", RECORD.as_bytes());
    let events = until(&mut watch, |event| !matches!(event, RegistryEvent::Available)).await;
    let seen = words(&events);
    assert!(seen == ["put 10.5.1.0-24"] || seen == ["snapshot 10.5.1.0-24"], "{seen:?}");
    assert!(registry.calls().reads - calls.reads <= 1);
    server.put("10.5.2.0-24", RECORD.as_bytes());
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.2.0-24"]);
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
    let stale = registry.create(subnet(6), &host(6), DAY).await.unwrap();
    next(&mut watch).await;
    assert!(timeout(Duration::from_millis(200), watch.next()).await.is_err());

    server.etcd().wipe_data().unwrap();
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Snapshot(_))).await;
    assert_eq!(words(&events), ["unavailable", "snapshot "]);
    let lease = registry.create(subnet(7), &host(7), DAY).await.unwrap();
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Put(_))).await;
    assert_eq!(words(&events), ["available", "put 10.5.7.0-24"]);
    // The indices of the new store are lower than the last known one.
    let again = registry.create(subnet(6), &host(6), DAY).await.unwrap();
    assert!(again.revision < stale.revision);
    for lease in [&lease, &again] {
        registry.renew(lease, DAY).await.unwrap();
        assert!(registry.list().await.unwrap().leases.contains(&lease.clone().into()));
    }
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
    server.put("garbage", RECORD.as_bytes());
    server.put("10.5.1.0-24", b"");
    server.ctl(&["mkdir", &subnet_key("10.5.9.0-24")]);
    server.put("10.5.8.0-24/x", RECORD.as_bytes());
    server.put("10.5.2.0-24", RECORD.as_bytes());
    server.put("10.5.1.0-24", RECORD.as_bytes());
    server.remove("garbage");
    server.remove("10.5.1.0-24");
    let events =
        until(&mut watch, |event| matches!(event, RegistryEvent::Deleted(..) | RegistryEvent::Released(..)))
            .await;
    let expected = [
        "bad garbage",
        "bad 10.5.1.0-24",
        "bad 10.5.9.0-24",
        "bad 10.5.8.0-24",
        "bad 10.5.8.0-24/x",
        "put 10.5.2.0-24",
        "put 10.5.1.0-24",
        "bad deleted garbage",
        "deleted 10.5.1.0-24",
    ];
    assert_eq!(words(&events), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removing_a_directory_removes_its_leases() {
    let server = Server::start();
    let registry = server.registry();
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    server.put("old/10.5.2.0-24", RECORD.as_bytes());
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    server.ctl(&["rm", "--recursive", &subnet_key("old")]);
    let snapshot = next(&mut watch).await;
    assert!(
        matches!(&snapshot, RegistryEvent::Snapshot(snapshot) if snapshot.bad.is_empty()),
        "{snapshot:?}"
    );
    // Also a parent of the leases' directory.
    server.ctl(&["rm", "--recursive", PREFIX]);
    assert_eq!(words(&[next(&mut watch).await]), ["snapshot "]);
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.1.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_upstream_v0_11_are_understood() {
    let server = Server::start();
    let registry = server.registry();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    let value = r#"{"PublicIP":"172.27.137.240","BackendType":"vxlan","BackendData":{"VtepMAC":"ce:9c:a9:08:50:03"}}"#;
    // Upstream v0.11 renews by writing the record again.
    for _ in 0..2 {
        server.ctl(&["set", "--ttl", "86400", &subnet_key("10.5.1.0-24"), value]);
        let RegistryEvent::Put(lease) = next(&mut watch).await else { panic!("no event for a write") };
        assert_eq!(registry.list().await.unwrap().leases, [lease]);
    }
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
    server.put("10.5.1.0-24", RECORD.as_bytes());
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
    let calls = registry.calls().reads;
    assert!((4..=8).contains(&calls), "{calls} calls in 3 s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_etcd_is_detected_and_a_quiet_one_is_not_suspected() {
    let server = Server::start();
    let mut options = server.options();
    // Longer than etcd may stall on a busy machine.
    options.silence = Duration::from_millis(2500);
    options.timeout = Duration::from_secs(2);
    let registry = Etcd2Registry::new(options).unwrap();
    registry.create(subnet(9), &host(9), DAY).await.unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    let before = registry.calls();
    assert!(timeout(Duration::from_secs(10), watch.next()).await.is_err(), "an event without a change");
    let after = registry.calls();
    assert!((3..=5).contains(&(after.polls - before.polls)), "{after:?}");
    assert_eq!(after.reads, before.reads, "a cluster whose raft index moves on is not asked for more");

    let hung = Instant::now();
    server.etcd().pause().unwrap();
    let silent = next(&mut watch).await;
    assert!(matches!(&silent, RegistryEvent::Unavailable(_)), "{silent:?}");
    assert!(hung.elapsed() < Duration::from_secs(12), "{:?}", hung.elapsed());
    server.etcd().resume().unwrap();
    until(&mut watch, |event| matches!(event, RegistryEvent::Available)).await;
    server.put("10.5.1.0-24", RECORD.as_bytes());
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.1.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_a_watch_ends_its_request() {
    let server = Server::start();
    let registry = server.registry();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    let begin = Instant::now();
    while watchers(&server) != 1 {
        assert!(begin.elapsed() < PATIENCE, "etcd knows of no watcher");
        assert!(timeout(Duration::from_millis(20), watch.next()).await.is_err(), "no event is expected");
    }
    drop(watch);
    let begin = Instant::now();
    while watchers(&server) != 0 {
        assert!(begin.elapsed() < PATIENCE, "etcd keeps a watcher");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns the number of watchers of the v2 store.
fn watchers(server: &Server) -> u64 {
    let text = server.http().get("/v2/stats/store");
    let (_, rest) = text.split_once("\"watchers\":").unwrap();
    rest.trim_end_matches('}').parse().unwrap()
}
