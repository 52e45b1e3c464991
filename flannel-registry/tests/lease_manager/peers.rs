//! Watches of the peers.

use flannel_core::{Lease, LeaseChange, LeaseManager, PeerEvent, SubnetRegistry};
use futures::StreamExt;
use tokio::time::{Instant, timeout};

use crate::site::*;

#[tokio::test(start_paused = true)]
async fn a_watch_yields_all_peers_and_then_each_change() {
    let site = site();
    let (two, three) = (site.lease("10.5.2.0-24", 2).await, site.lease("10.5.3.0-24", 3).await);
    let own = site.acquire_with(CONFIG, Some("10.5.9.0-24")).await.unwrap();
    let mut peers = site.manager.watch(own.subnet);
    assert_eq!(changed(peers.next().await), [put(&two), put(&three)]);
    assert!(matches!(peers.next().await, Some(PeerEvent::Complete)));
    site.store.renew(&two, DAY).await.unwrap();
    let two = site.store.update(&two, &host(22), DAY).await.unwrap();
    site.store.delete(&three).await.unwrap();
    assert_eq!(
        changed(peers.next().await),
        [put(&two), LeaseChange::Released(three.subnet)],
        "simultaneous changes are yielded together, without the own lease"
    );
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_starts_without_a_list_is_complete_after_its_snapshot() {
    let site = site();
    let two = site.lease("10.5.2.0-24", 2).await;
    let mut peers = site.manager.watch(key("10.5.9.0-24"));
    assert_eq!(changed(peers.next().await), [put(&two)]);
    assert!(matches!(peers.next().await, Some(PeerEvent::Complete)));
    // A second watch, as after a change of the lease, starts from scratch.
    let mut peers = site.manager.watch(two.subnet);
    assert!(matches!(peers.next().await, Some(PeerEvent::Complete)));
}

#[tokio::test(start_paused = true)]
async fn an_outage_removes_no_peer_and_later_changes_are_yielded() {
    let site = site();
    let two = site.lease("10.5.2.0-24", 2).await;
    let three = site.lease("10.5.3.0-24", 3).await;
    let mut peers = site.manager.watch(key("10.5.9.0-24"));
    peers.next().await;
    peers.next().await;
    site.faulty.stop_responding();
    assert!(matches!(peers.next().await, Some(PeerEvent::RegistryUnavailable(_))));
    site.store.delete(&three).await.unwrap();
    assert!(timeout(DAY / 2, peers.next()).await.is_err(), "nothing is known");
    site.store.renew(&two, DAY).await.unwrap();
    site.faulty.resume_responding();
    assert!(matches!(peers.next().await, Some(PeerEvent::RegistryAvailable)));
    assert_eq!(changed(peers.next().await), [LeaseChange::Removed(three.subnet)]);
}

#[tokio::test(start_paused = true)]
async fn a_peer_whose_lease_expires_is_removed() {
    let site = site();
    let two = site.lease("10.5.2.0-24", 2).await;
    let mut peers = site.manager.watch(key("10.5.9.0-24"));
    peers.next().await;
    peers.next().await;
    let start = Instant::now();
    assert_eq!(changed(peers.next().await), [LeaseChange::Removed(two.subnet)]);
    assert!(start.elapsed() >= DAY);
}

#[tokio::test(start_paused = true)]
async fn bad_records_are_reported_as_a_list_when_it_changes() {
    let site = site();
    let two = site.lease("10.5.2.0-24", 2).await;
    site.store.put_raw("garbage", b"x");
    let mut peers = site.manager.watch(key("10.5.9.0-24"));
    peers.next().await;
    peers.next().await;
    assert_eq!(bad(peers.next().await), ["garbage"]);
    site.store.put_raw("10.5.2.0-24", b"x");
    assert_eq!(bad(peers.next().await), ["10.5.2.0-24", "garbage"]);
    site.store.put_raw("10.5.2.0-24", two.attrs.to_record().as_bytes());
    site.store.remove_raw("garbage");
    assert_eq!(bad(peers.next().await), [""; 0]);
}

fn put(lease: &Lease) -> LeaseChange {
    LeaseChange::Put(lease.clone().into())
}

fn changed(event: Option<PeerEvent>) -> Vec<LeaseChange> {
    match event {
        Some(PeerEvent::Changed(changes)) => changes,
        event => panic!("want changes, got {event:?}"),
    }
}

fn bad(event: Option<PeerEvent>) -> Vec<String> {
    match event {
        Some(PeerEvent::Bad(bad)) => bad.into_iter().map(|record| record.key).collect(),
        event => panic!("want bad records, got {event:?}"),
    }
}
