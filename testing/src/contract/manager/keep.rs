//! Promises 4 and 9: a lease lasts while it is kept, and a lost one is taken again.

use flannel_core::KeepEvent;
use tokio::time::sleep;

use super::LeaseManagerSubject;
use super::cluster::{Member, acquire, host_with, open, open_for};
use crate::contract::{host, subnet};

/// Promise 4: a lease that is kept outlives its time to live, and says when it is renewed; one that is not kept ends,
/// also one whose record was published anew.
///
/// Checks nothing if leases do not end.
pub async fn a_lease_lasts_while_it_is_kept(subject: &dyn LeaseManagerSubject) {
    let Some(ttl) = subject.min_ttl() else { return };
    let mut watcher = Member::join(subject, 1, None).await;
    let (kept, not_kept) = (open_for(subject, 2, ttl).await, open_for(subject, 3, ttl).await);
    let kept_lease = acquire(&*kept, &host(2), None).await;
    let member = Member::of(subject, &*kept, kept_lease.clone());
    let other = acquire(&*not_kept, &host(3), None).await;
    watcher.peers.hear(kept_lease.subnet, &host(2)).await;
    watcher.peers.hear(other.subnet, &host(3)).await;
    not_kept.publish(&other, &host_with(3, "other")).await.expect("publishes");
    watcher.peers.hear(other.subnet, &host_with(3, "other")).await;
    watcher.peers.miss(other.subnet).await;
    sleep(ttl).await;
    watcher.peers.catch_up();
    assert!(watcher.peers.known.contains_key(&kept_lease.subnet), "a lease ended that was kept");
    let mut member = member;
    let told = member.keep.heard();
    let renewals = told.iter().filter(|event| matches!(event, KeepEvent::Renewed(_))).count();
    assert!(renewals > 0, "no renewal is told: {told:?}");
    drop(member);
    watcher.peers.miss(kept_lease.subnet).await;
}

/// Promises 4 and 9: a lease that is taken away is lost at once, keeping it ends with the reason, and the host gets a
/// lease again: of the same subnet, if it chooses.
pub async fn a_lost_lease_ends_its_keeping_and_is_taken_again(subject: &dyn LeaseManagerSubject) {
    let mut peer = Member::join(subject, 2, Some(subnet(22))).await;
    let manager = open(subject, 1).await;
    let own = acquire(&*manager, &host(1), Some(subnet(77))).await;
    peer.peers.hear(own.subnet, &host(1)).await;
    let mut member = Member::of(subject, &*manager, own.clone());
    member.peers.until("that all are told", |peers| peers.is_complete).await;
    subject.revoke_subnet(own.subnet).await;
    loop {
        match member.keep.next("that the lease is lost").await {
            Some(KeepEvent::Lost(reason)) => break assert!(!reason.is_empty(), "a reason is given"),
            event => assert!(event.is_some(), "keeping ended without a word"),
        }
    }
    assert_eq!(member.keep.next("that keeping ended").await, None, "what is told after the loss");
    peer.peers.miss(own.subnet).await;
    drop(member);

    let again = acquire(&*manager, &host(1), Some(own.subnet)).await;
    assert_eq!(again.subnet == own.subnet, subject.chooses(), "{} after {}", again.subnet, own.subnet);
    peer.peers.hear(again.subnet, &host(1)).await;
    let mut member = Member::of(subject, &*manager, again);
    let told = member.keep.next("that it is kept").await;
    assert!(!matches!(told, Some(KeepEvent::Lost(_)) | None), "the old loss is told again: {told:?}");
}
