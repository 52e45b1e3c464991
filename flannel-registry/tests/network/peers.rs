//! Peers and the objects that reach them.

use std::collections::BTreeMap;
use std::time::Duration;

use flannel_core::{NetworkEvent, Shutdown};
use flannel_testing::FakeBackend;
use tokio::time::{Instant, sleep};

use crate::site::*;

#[tokio::test(start_paused = true)]
async fn hosts_see_peers_join_and_leave() {
    let site = site();
    let mut one = start(&site.faulty, 1, None);
    one.is_ready().await;
    let mut two = start(&site.faulty, 2, None);
    two.is_ready().await;
    let joined = |event: &NetworkEvent| match event {
        NetworkEvent::PeerJoined(lease) => Some(lease.subnet),
        _ => None,
    };
    assert_eq!(one.sees("a peer", joined).await, two.subnet());
    sleep(MOMENT).await;
    assert_eq!(one.host.peers().into_keys().collect::<Vec<_>>(), [two.subnet()]);
    assert_eq!(two.host.peers().into_keys().collect::<Vec<_>>(), [one.subnet()]);

    let (gone, host_of_two) = (two.subnet(), two.host.clone());
    two.network.shutdown(Shutdown::Remove).await;
    let left = |event: &NetworkEvent| match event {
        NetworkEvent::PeerLeft(subnet) => Some(*subnet),
        _ => None,
    };
    assert_eq!(one.sees("a peer go", left).await, gone);
    sleep(MOMENT).await;
    assert_eq!(one.host.peers(), BTreeMap::new());
    assert_eq!(host_of_two.peers(), BTreeMap::new());
}

#[tokio::test(start_paused = true)]
async fn only_changed_attributes_update_a_peer() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let passes = node.host.syncs_with_writes();
    site.peer("10.5.2.0-24", 2);
    let seen = node.within(MOMENT).await;
    assert!(!seen.iter().any(|event| matches!(event, NetworkEvent::PeerChanged(_))), "{seen:?}");
    assert_eq!(node.host.syncs_with_writes(), passes);
    site.peer("10.5.2.0-24", 22);
    let changed = |event: &NetworkEvent| match event {
        NetworkEvent::PeerChanged(lease) => Some(lease.attrs.clone()),
        _ => None,
    };
    assert_eq!(node.sees("a change", changed).await, host(22));
    sleep(MOMENT).await;
    assert_eq!(node.host.peers()[&key("10.5.2.0-24")], host(22));
}

#[tokio::test(start_paused = true)]
async fn a_bad_record_is_reported_once_and_removes_no_peer() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    site.store.put_raw("garbage", b"x");
    let mut node = start(&site.faulty, 1, None);
    let bad = |event: &NetworkEvent| match event {
        NetworkEvent::BadRecord(record) => Some(record.key.clone()),
        _ => None,
    };
    assert_eq!(node.sees("a bad record", bad).await, "garbage");
    site.store.put_raw("10.5.2.0-24", b"x");
    assert_eq!(node.sees("a bad record", bad).await, "10.5.2.0-24");
    // A snapshot with the same records.
    site.faulty.cut_watches();
    let seen = node.within(MOMENT).await;
    assert!(seen.iter().all(|event| bad(event).is_none()), "{seen:?}");
    assert_eq!(node.network.status().bad_records.len(), 2);
    assert_eq!(node.host.peers(), [(key("10.5.2.0-24"), host(2))].into());
    site.store.remove_raw("garbage");
    sleep(MOMENT).await;
    assert_eq!(node.network.status().bad_records.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_registry_removes_no_peer() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    site.peer("10.5.3.0-24", 3);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    site.faulty.stop_responding();
    node.sees("silence", |event| matches!(event, NetworkEvent::RegistryUnavailable(_)).then_some(())).await;
    site.store.remove_raw("10.5.3.0-24");
    sleep(DAY * 3).await;
    let status = node.network.status();
    assert!(status.registry.unavailable.is_some() && status.ready);
    assert_eq!(node.host.peers().len(), 2, "nothing is known to have changed");
    assert!(!node.task.is_finished());

    site.faulty.resume_responding();
    node.sees("the registry", |event| matches!(event, NetworkEvent::RegistryAvailable).then_some(())).await;
    sleep(MOMENT).await;
    assert_eq!(node.network.status().registry.unavailable, None);
    assert_eq!(node.host.peers().into_keys().collect::<Vec<_>>(), [key("10.5.2.0-24")]);
}

#[tokio::test(start_paused = true)]
async fn changes_of_the_host_by_others_are_repaired() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let start = Instant::now();
    node.host.disturb(key("10.5.2.0-24"));
    let repaired = |event: &NetworkEvent| match event {
        NetworkEvent::Repaired { objects, noticed } => Some((*objects, noticed.clone())),
        _ => None,
    };
    assert_eq!(node.sees("a repair", repaired).await, (1, "a peer was removed".to_owned()));
    assert!(start.elapsed() < Duration::from_millis(100));
    assert_eq!(node.host.peers().len(), 1);
    assert_eq!(node.network.status().kernel.repaired, 1);
}

#[tokio::test(start_paused = true)]
async fn a_failing_object_is_reported_once_retried_and_delays_no_other() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let host = FakeBackend::new();
    host.refuse(key("10.5.2.0-24"), true);
    let mut node = start_on(manager(&site.faulty), host, 1, None);
    node.is_ready().await;
    site.peer("10.5.3.0-24", 3);
    let seen = node.within(MOMENT).await;
    assert_eq!(node.host.peers().into_keys().collect::<Vec<_>>(), [key("10.5.3.0-24")]);
    assert_eq!(node.network.status().kernel.failed.len(), 1);
    let seen = seen.iter().filter(|event| matches!(event, NetworkEvent::ObjectFailed(_))).count();
    assert_eq!(seen, 0, "reported before, when the network started");
    node.host.refuse(key("10.5.2.0-24"), false);
    sleep(MOMENT).await;
    assert_eq!(node.host.peers().len(), 2);
    assert_eq!(node.network.status().kernel.failed, []);
}
