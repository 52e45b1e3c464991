//! Promises 5 to 7: what a host hears of its peers.

use flannel_core::KeepEvent;
use tokio::time::sleep;

use super::LeaseManagerSubject;
use super::cluster::{Member, Peers, acquire, host_with, open};
use crate::contract::{host, subnet};

/// Promise 6: what is told up to `Complete` are the peers there are; then those that come, change and go.
pub async fn a_watch_tells_who_is_there_then_who_comes_changes_and_goes(subject: &dyn LeaseManagerSubject) {
    let second = open(subject, 2).await;
    let there = acquire(&*second, &host(2), None).await;
    let mut late = Member::join(subject, 1, None).await;
    late.peers.until("that all are told", |peers| peers.is_complete).await;
    late.peers.hear(there.subnet, &host(2)).await;

    let third = acquire(&*open(subject, 3).await, &host(3), None).await;
    late.peers.hear(third.subnet, &host(3)).await;
    acquire(&*second, &host_with(2, "other"), None).await;
    late.peers.hear(there.subnet, &host_with(2, "other")).await;
    subject.revoke_subnet(third.subnet).await;
    late.peers.miss(third.subnet).await;
    assert!(late.peers.known.contains_key(&there.subnet), "a peer went with another one");

    // Whoever begins only now hears the same.
    let mut later = Peers::new(subject, &*open(subject, 4).await, subnet(44));
    later.until("that all are told", |peers| peers.is_complete).await;
    later.hear(late.own.subnet, &host(1)).await;
    later.hear(there.subnet, &host_with(2, "other")).await;
    assert!(!later.known.contains_key(&third.subnet), "a peer is told that went before");
}

/// Promise 5: the own record is never a peer, whatever happens to it.
pub async fn a_watch_never_names_the_own_subnet(subject: &dyn LeaseManagerSubject) {
    let manager = open(subject, 1).await;
    let own = acquire(&*manager, &host(1), None).await;
    let mut member = Member::of(subject, &*manager, own.clone());
    manager.publish(&own, &host_with(1, "other")).await.expect("publishes");
    subject.revoke_subnet(own.subnet).await;
    // What happened before is told before.
    let peer = acquire(&*open(subject, 2).await, &host(2), Some(subnet(22))).await;
    member.peers.hear(peer.subnet, &host(2)).await;
    assert!(member.peers.is_complete);
}

/// Promise 6: a record that cannot be read is named, and hides no peer.
///
/// Checks nothing if there are no records.
pub async fn a_record_that_cannot_be_read_hides_no_peer(subject: &dyn LeaseManagerSubject) {
    let before = acquire(&*open(subject, 2).await, &host(2), Some(subnet(22))).await;
    let mut member = Member::join(subject, 1, Some(subnet(11))).await;
    let bad = subnet(5);
    if !subject.spoil(bad).await {
        return;
    }
    let name = bad.to_string();
    member.peers.until("which record cannot be read", |peers| peers.bad == [name.clone()]).await;
    let after = acquire(&*open(subject, 3).await, &host(3), Some(subnet(33))).await;
    member.peers.hear(before.subnet, &host(2)).await;
    member.peers.hear(after.subnet, &host(3)).await;
    let mut other = Member::join(subject, 4, Some(bad)).await;
    assert_ne!(other.own.subnet, bad, "a subnet whose record cannot be read is somebody's");
    other.peers.until("which record cannot be read", |peers| peers.bad == [name.clone()]).await;
    other.peers.hear(after.subnet, &host(3)).await;
    subject.revoke_subnet(bad).await;
    other.peers.until("that the record is gone", |peers| peers.bad.is_empty()).await;
}

/// Promises 4 and 6: a store that does not answer removes no peer and ends no lease; what happened meanwhile is told
/// when it answers again.
///
/// Checks nothing if the store cannot be stopped.
pub async fn silence_removes_nobody_and_ends_no_lease(subject: &dyn LeaseManagerSubject) {
    let peer = acquire(&*open(subject, 2).await, &host(2), None).await;
    let mut member = Member::join(subject, 1, None).await;
    member.peers.hear(peer.subnet, &host(2)).await;
    for round in 1..=2 {
        if !subject.stop().await {
            return;
        }
        member.peers.until("that the store is silent", |peers| peers.silences.0 >= round).await;
        sleep(subject.outage()).await;
        member.peers.catch_up();
        assert!(member.peers.known.contains_key(&peer.subnet), "silence removed a peer");
        subject.start().await;
        member.peers.until("that the store is heard", |peers| peers.silences.1 >= round).await;
    }
    let third = acquire(&*open(subject, 3).await, &host(3), None).await;
    member.peers.hear(third.subnet, &host(3)).await;
    let ended = member.keep.heard().into_iter().any(|event| matches!(event, KeepEvent::Lost(_)));
    assert!(!ended, "silence ended a lease");
    assert!(member.peers.known.contains_key(&peer.subnet), "a peer is missing after the silence");
}
