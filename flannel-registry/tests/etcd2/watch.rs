//! A watch loses nothing, whatever happens to etcd.

use std::time::{Duration, Instant};

use flannel_core::{RegistryEvent, Revision, SubnetRegistry};
use flannel_registry::Etcd2Registry;
use futures::{FutureExt, StreamExt};
use tokio::time::timeout;

use crate::common::{DAY, PATIENCE, PREFIX, host, next, subnet, subnet_key, until, words};
use crate::server::Server;

const RECORD: &str = r#"{"PublicIP":"192.168.0.1"}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_while_etcd_restarts_is_told() {
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
    assert_eq!(words(&[killed_while_waiting.await]), ["silent"]);
    server.etcd().restart().unwrap();
    // Written and removed before the watch is read again.
    registry.delete(&first).await.unwrap();
    registry.update(&second, &host(3), DAY).await.unwrap();
    // Starting again, etcd does all writes of its log again, and so remembers the events.
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Put(_))).await;
    let told = words(&events);
    assert_eq!(told, ["heard", "deleted 10.5.1.0-24", "put 10.5.2.0-24"]);
    let Some(RegistryEvent::Put(lease)) = events.last() else { panic!("{told:?}") };
    assert_eq!(lease.attrs, host(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_whose_index_was_cleared_gets_a_snapshot() {
    let server = Server::start();
    let registry = server.registry();
    let first = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    registry.create(subnet(2), &host(2), DAY).await.unwrap();
    next(&mut watch).await;
    // The watch is not read, and so does not ask, while all this happens.
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
async fn a_watch_that_waits_is_not_bothered_by_what_others_write() {
    let server = Server::start();
    let registry = server.registry();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    let calls = registry.calls();
    for _ in 0..3 {
        assert!(watch.next().now_or_never().is_none(), "nothing is to be told");
        tokio::task::block_in_place(|| server.compact());
    }
    // It waits since before the index was cleared, so it hears what comes.
    server.put("10.5.1.0-24", RECORD.as_bytes());
    let events = until(&mut watch, |event| !matches!(event, RegistryEvent::Available)).await;
    let told = words(&events);
    assert!(told == ["put 10.5.1.0-24"] || told == ["snapshot 10.5.1.0-24"], "{told:?}");
    assert!(registry.calls().reads - calls.reads <= 1);
    server.put("10.5.2.0-24", RECORD.as_bytes());
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.2.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_etcd_is_believed() {
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
    assert_eq!(words(&events), ["silent", "snapshot "]);
    let lease = registry.create(subnet(7), &host(7), DAY).await.unwrap();
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Put(_))).await;
    assert_eq!(words(&events), ["heard", "put 10.5.7.0-24"]);
    // The indices of the new store are smaller than what was told of the old one.
    let again = registry.create(subnet(6), &host(6), DAY).await.unwrap();
    assert!(again.revision < stale.revision);
    for lease in [&lease, &again] {
        registry.renew(lease, DAY).await.unwrap();
        assert!(registry.list().await.unwrap().leases.contains(&lease.clone().into()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_that_etcd_never_had_gets_a_snapshot() {
    let server = Server::start();
    let registry = server.registry();
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let mut watch = registry.watch(Some(Revision(1_000_000)));
    assert_eq!(words(&[next(&mut watch).await]), ["snapshot 10.5.1.0-24"]);
    registry.create(subnet(2), &host(2), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.2.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_named_and_hides_nothing() {
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
async fn a_directory_that_goes_takes_with_it_all_that_was_in_it() {
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
    // Above the one that holds the leases, too.
    server.ctl(&["rm", "--recursive", PREFIX]);
    assert_eq!(words(&[next(&mut watch).await]), ["snapshot "]);
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.1.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_of_the_time_before_are_heard() {
    let server = Server::start();
    let registry = server.registry();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    let value = r#"{"PublicIP":"172.27.137.240","BackendType":"vxlan","BackendData":{"VtepMAC":"ce:9c:a9:08:50:03"}}"#;
    // flannel v0.11 renews by writing again.
    for _ in 0..2 {
        server.ctl(&["set", "--ttl", "86400", &subnet_key("10.5.1.0-24"), value]);
        let RegistryEvent::Put(lease) = next(&mut watch).await else { panic!("a write is told") };
        assert_eq!(registry.list().await.unwrap().leases, [lease]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_begins_before_etcd_does() {
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
    // The watch opens when it is read after its snapshot.
    server.put("10.5.1.0-24", RECORD.as_bytes());
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Available)).await;
    assert_eq!(words(&events), ["snapshot 10.5.1.0-24", "heard"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_away_is_not_asked_without_rest() {
    let server = Server::start();
    server.etcd().stop().unwrap();
    let registry = server.registry();
    let mut watch = registry.watch(None);
    assert_eq!(words(&[next(&mut watch).await]), ["silent"]);
    // Said once, however long it lasts.
    assert!(timeout(Duration::from_secs(3), watch.next()).await.is_err());
    // 0.1 + 0.2 + 0.4 + 0.8 + 1.6 s, each up to a quarter shorter.
    let calls = registry.calls().reads;
    assert!((4..=8).contains(&calls), "{calls} calls in 3 s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_hangs_is_noticed_and_a_quiet_one_is_not_suspected() {
    let server = Server::start();
    let mut options = server.options();
    // Longer than a busy machine may make etcd stand still.
    options.silence = Duration::from_millis(2500);
    options.timeout = Duration::from_secs(2);
    let registry = Etcd2Registry::new(options).unwrap();
    registry.create(subnet(9), &host(9), DAY).await.unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    let before = registry.calls();
    assert!(
        timeout(Duration::from_secs(10), watch.next()).await.is_err(),
        "nothing happens and nothing is told"
    );
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
async fn a_dropped_watch_ends_its_request() {
    let server = Server::start();
    let registry = server.registry();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    let begin = Instant::now();
    while watchers(&server) != 1 {
        assert!(begin.elapsed() < PATIENCE, "etcd knows of no watcher");
        assert!(timeout(Duration::from_millis(20), watch.next()).await.is_err(), "nothing is to be told");
    }
    drop(watch);
    let begin = Instant::now();
    while watchers(&server) != 0 {
        assert!(begin.elapsed() < PATIENCE, "etcd keeps a watcher");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How many watchers the v2 store has, as it tells itself.
fn watchers(server: &Server) -> u64 {
    let text = server.http().get("/v2/stats/store");
    let (_, rest) = text.split_once("\"watchers\":").unwrap();
    rest.trim_end_matches('}').parse().unwrap()
}
