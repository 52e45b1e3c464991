//! Promises 5 to 7: the events that a host receives about its peers.

use flannel_core::KeepEvent;
use tokio::time::sleep;

use super::LeaseManagerSubject;
use super::joined::{JoinedHost, PeerView, acquire, host_with, open, published, published_with};
use crate::contract::{host, subnet};

/// Promise 6: a watch reports the current peers up to `Complete`, then the peers that join, change and leave.
pub async fn watch_reports_peers_then_changes(subject: &dyn LeaseManagerSubject) {
    let second = open(subject, 2).await;
    let existing = acquire(&*second, &host(2), None).await;
    let mut late = JoinedHost::join(subject, 1, None).await;
    late.peers.until("Complete", |peers| peers.is_complete).await;
    late.peers.wait_for_attrs(existing.subnet, &published(subject, 2)).await;

    let third = acquire(&*open(subject, 3).await, &host(3), None).await;
    late.peers.wait_for_attrs(third.subnet, &published(subject, 3)).await;
    acquire(&*second, &host_with(2, "other"), None).await;
    late.peers.wait_for_attrs(existing.subnet, &published_with(subject, 2, "other")).await;
    subject.revoke_subnet(third.subnet).await;
    late.peers.wait_for_removal(third.subnet).await;
    assert!(
        late.peers.known.contains_key(&existing.subnet),
        "the removal of one peer must not remove another"
    );

    // A watch that starts now reports the same state.
    let mut later = PeerView::new(subject, &*open(subject, 4).await, subnet(44));
    later.until("Complete", |peers| peers.is_complete).await;
    later.wait_for_attrs(late.own.subnet, &published(subject, 1)).await;
    later.wait_for_attrs(existing.subnet, &published_with(subject, 2, "other")).await;
    assert!(
        !later.known.contains_key(&third.subnet),
        "a new watch must not report a peer that left before it started"
    );
}

/// Promise 5: a watch never reports the host's own record, whatever happens to it.
pub async fn watch_omits_own_subnet(subject: &dyn LeaseManagerSubject) {
    let manager = open(subject, 1).await;
    let own = acquire(&*manager, &host(1), None).await;
    let mut holder = JoinedHost::with_lease(subject, &*manager, own.clone());
    manager.publish(&own, &host_with(1, "other")).await.expect("publish must succeed for a held lease");
    subject.revoke_subnet(own.subnet).await;
    // Events are ordered: once the peer is reported, so are the changes to the own record.
    let peer = acquire(&*open(subject, 2).await, &host(2), Some(subnet(22))).await;
    holder.peers.wait_for_attrs(peer.subnet, &published(subject, 2)).await;
    holder.peers.until("Complete", |peers| peers.is_complete).await;
}

/// Promise 6: a watch names an unreadable record, which hides no peer.
pub async fn unreadable_record_hides_no_peer(subject: &dyn LeaseManagerSubject) {
    let before = acquire(&*open(subject, 2).await, &host(2), Some(subnet(22))).await;
    let mut joined = JoinedHost::join(subject, 1, Some(subnet(11))).await;
    let bad = subnet(5);
    subject.corrupt_record(bad).await;
    let name = bad.to_string();
    joined.peers.until("the unreadable record", |peers| peers.bad == [name.clone()]).await;
    let after = acquire(&*open(subject, 3).await, &host(3), Some(subnet(33))).await;
    joined.peers.wait_for_attrs(before.subnet, &published(subject, 2)).await;
    joined.peers.wait_for_attrs(after.subnet, &published(subject, 3)).await;
    let mut other = JoinedHost::join(subject, 4, Some(bad)).await;
    assert_ne!(other.own.subnet, bad, "acquire must not return the subnet of an unreadable record");
    other.peers.until("the unreadable record", |peers| peers.bad == [name.clone()]).await;
    other.peers.wait_for_attrs(after.subnet, &published(subject, 3)).await;
    subject.revoke_subnet(bad).await;
    other.peers.until("the removal of the unreadable record", |peers| peers.bad.is_empty()).await;
}

/// Promises 4 and 6: an unreachable store removes no peer and ends no lease; changes during the outage are reported
/// after it.
pub async fn outage_removes_no_peer_and_no_lease(subject: &dyn LeaseManagerSubject) {
    let peer = acquire(&*open(subject, 2).await, &host(2), None).await;
    let mut joined = JoinedHost::join(subject, 1, None).await;
    joined.peers.wait_for_attrs(peer.subnet, &published(subject, 2)).await;
    for round in 1..=2 {
        subject.stop().await;
        joined.peers.until("that the store is unavailable", |peers| peers.outages.0 >= round).await;
        sleep(subject.outage()).await;
        joined.peers.catch_up();
        assert!(joined.peers.known.contains_key(&peer.subnet), "an outage must not remove a peer");
        subject.start().await;
        joined.peers.until("that the store is available", |peers| peers.outages.1 >= round).await;
    }
    let third = acquire(&*open(subject, 3).await, &host(3), None).await;
    joined.peers.wait_for_attrs(third.subnet, &published(subject, 3)).await;
    let lost = joined.keep.drain().into_iter().any(|event| matches!(event, KeepEvent::Lost(_)));
    assert!(!lost, "an outage shorter than the time to live must not end a lease");
    assert!(joined.peers.known.contains_key(&peer.subnet), "the end of an outage must not remove a peer");
}
