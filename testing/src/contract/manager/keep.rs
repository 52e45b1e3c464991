//! Promises 4 and 9: a kept lease does not expire, and a lost one is acquired again.

use flannel_core::KeepEvent;
use tokio::time::sleep;

use super::LeaseManagerSubject;
use super::joined::{JoinedHost, acquire, host_with, open, open_with_ttl, published, published_with};
use crate::contract::{host, missing_hook, subnet};

/// Promise 4: a kept lease outlives its time to live and reports its renewals; a lease that is not kept expires, also
/// after it was published again.
pub async fn kept_lease_does_not_expire(subject: &dyn LeaseManagerSubject) {
    let Some(ttl) = subject.min_ttl() else { missing_hook("min_ttl") };
    let mut watcher = JoinedHost::join(subject, 1, None).await;
    let (kept, not_kept) = (open_with_ttl(subject, 2, ttl).await, open_with_ttl(subject, 3, ttl).await);
    let kept_lease = acquire(&*kept, &host(2), None).await;
    let keeper = JoinedHost::with_lease(subject, &*kept, kept_lease.clone());
    let other = acquire(&*not_kept, &host(3), None).await;
    watcher.peers.wait_for_attrs(kept_lease.subnet, &published(subject, 2)).await;
    watcher.peers.wait_for_attrs(other.subnet, &published(subject, 3)).await;
    not_kept.publish(&other, &host_with(3, "other")).await.expect("publish must succeed for a held lease");
    watcher.peers.wait_for_attrs(other.subnet, &published_with(subject, 3, "other")).await;
    watcher.peers.wait_for_removal(other.subnet).await;
    sleep(ttl).await;
    watcher.peers.catch_up();
    assert!(watcher.peers.known.contains_key(&kept_lease.subnet), "a kept lease must not expire");
    let mut keeper = keeper;
    let events = keeper.keep.drain();
    let renewals = events.iter().filter(|event| matches!(event, KeepEvent::Renewed(_))).count();
    assert!(renewals > 0, "keep must report renewals, got {events:?}");
    drop(keeper);
    watcher.peers.wait_for_removal(kept_lease.subnet).await;
}

/// Promises 4 and 9: `keep` reports a revoked lease at once with a reason and ends; the host can acquire a lease again,
/// of the same subnet if it chooses.
pub async fn lost_lease_is_reported_and_reacquired(subject: &dyn LeaseManagerSubject) {
    let mut peer = JoinedHost::join(subject, 2, Some(subnet(22))).await;
    let manager = open(subject, 1).await;
    let own = acquire(&*manager, &host(1), Some(subnet(77))).await;
    peer.peers.wait_for_attrs(own.subnet, &published(subject, 1)).await;
    let mut holder = JoinedHost::with_lease(subject, &*manager, own.clone());
    holder.peers.until("Complete", |peers| peers.is_complete).await;
    subject.revoke_subnet(own.subnet).await;
    loop {
        match holder.keep.next("Lost after the lease was revoked").await {
            Some(KeepEvent::Lost(reason)) => {
                break assert!(!reason.is_empty(), "Lost must have a reason");
            }
            event => assert!(event.is_some(), "keep must report Lost before it ends"),
        }
    }
    assert_eq!(holder.keep.next("its end after Lost").await, None, "keep must end after Lost");
    peer.peers.wait_for_removal(own.subnet).await;
    drop(holder);

    let again = acquire(&*manager, &host(1), Some(own.subnet)).await;
    assert_eq!(
        again.subnet,
        subject.assigned_subnet(1).unwrap_or(own.subnet),
        "a host must get its previous subnet again, or the one that is assigned by now"
    );
    peer.peers.wait_for_attrs(again.subnet, &published(subject, 1)).await;
    let mut holder = JoinedHost::with_lease(subject, &*manager, again);
    let event = holder.keep.next("the new lease").await;
    assert!(
        !matches!(event, Some(KeepEvent::Lost(_)) | None),
        "keep of the new lease must not report the loss of the old one, got {event:?}"
    );
}
