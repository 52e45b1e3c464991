//! Promises 2, 8 and 10: what a record says, and whose it is.

use flannel_core::{ManagerError, RegistryError, Term};

use super::LeaseManagerSubject;
use super::cluster::{Member, acquire, host_with, open, words};
use crate::contract::{host, subnet};

/// Promises 2 and 8: what a host says when it acquires, acquires again or publishes is what its peers hear; neither
/// changes its subnet.
pub async fn what_a_host_says_is_told_to_its_peers(subject: &dyn LeaseManagerSubject) {
    let mut peer = Member::join(subject, 1, None).await;
    let manager = open(subject, 2).await;
    let own = acquire(&*manager, &host_with(2, "first"), None).await;
    peer.peers.hear(own.subnet, &host_with(2, "first")).await;

    let again = acquire(&*manager, &host_with(2, "second"), None).await;
    assert_eq!((again.subnet, words(&again)), (own.subnet, host_with(2, "second")), "acquired again");
    peer.peers.hear(own.subnet, &host_with(2, "second")).await;

    // Another address is what a host publishes when it moves.
    for moved in [host_with(2, "third"), host_with(200, "third")] {
        let published = manager.publish(&again, &moved).await.expect("publishes");
        let (subnet, term) = (published.subnet, published.term);
        assert_eq!((subnet, term, words(&published)), (own.subnet, own.term, moved.clone()), "published");
        peer.peers.hear(own.subnet, &moved).await;
    }
}

/// Promise 8: a host whose subnet was taken away and is another's by now is told that its lease is lost.
pub async fn publishing_never_overwrites_another_host(subject: &dyn LeaseManagerSubject) {
    let manager = open(subject, 1).await;
    let own = acquire(&*manager, &host(1), Some(subnet(77))).await;
    let lost = async || {
        let published = manager.publish(&own, &host_with(1, "other")).await;
        let is_lost = matches!(
            published,
            Err(ManagerError::Registry(RegistryError::Gone(_) | RegistryError::Changed(_)))
        );
        assert!(is_lost, "want Gone or Changed, got {published:?}");
    };
    subject.revoke_subnet(own.subnet).await;
    lost().await;
    if !subject.chooses() {
        return;
    }
    let other = open(subject, 2).await;
    assert_eq!(acquire(&*other, &host(2), Some(own.subnet)).await.subnet, own.subnet);
    lost().await;
    let theirs =
        other.previous_lease(host(2).public).await.expect("looks it up").expect("the other host has a lease");
    assert_eq!((theirs.subnet, words(&theirs)), (own.subnet, host(2)), "the other host's record");
}

/// Promise 10: the subnet is free at once, the peers hear it, and there is nothing to give back then; another host's
/// lease is not given back.
///
/// Checks nothing if hosts do not choose.
pub async fn a_lease_that_is_given_back_is_free(subject: &dyn LeaseManagerSubject) {
    if !subject.chooses() {
        return;
    }
    let mut peer = Member::join(subject, 1, None).await;
    let manager = open(subject, 2).await;
    let own = acquire(&*manager, &host(2), Some(subnet(77))).await;
    peer.peers.hear(own.subnet, &host(2)).await;
    manager.release(&own).await.expect("gives it back");
    peer.peers.miss(own.subnet).await;
    manager.release(&own).await.expect("there is nothing to give back");
    let other = open(subject, 3).await;
    assert_eq!(acquire(&*other, &host(3), Some(own.subnet)).await.subnet, own.subnet, "it is free");
    // Whether that is an error is the manager's.
    let _ = manager.release(&own).await;
    let theirs = other.previous_lease(host(3).public).await.expect("looks it up");
    assert_eq!(theirs.map(|lease| lease.subnet), Some(own.subnet), "the other host still has it");
}

/// Promise 10: a reservation is used by its host, is not renewed, and stays when it is given back.
///
/// Checks nothing if there are none.
pub async fn a_reservation_stays(subject: &dyn LeaseManagerSubject) {
    if !subject.reserve(subnet(88), &host(2)).await {
        return;
    }
    let mut peer = Member::join(subject, 1, None).await;
    let manager = open(subject, 2).await;
    let own = acquire(&*manager, &host_with(2, "first"), None).await;
    assert_eq!((own.subnet, own.term), (subnet(88), Term::Permanent), "the reservation is the host's lease");
    peer.peers.hear(subnet(88), &host_with(2, "first")).await;
    let own = manager.publish(&own, &host_with(2, "second")).await.expect("publishes");
    assert_eq!(own.term, Term::Permanent, "the reservation has no end after it was published anew");
    manager.release(&own).await.expect("there is nothing to give back");
    let again = acquire(&*open(subject, 2).await, &host_with(2, "third"), None).await;
    assert_eq!(
        (again.subnet, again.term),
        (subnet(88), Term::Permanent),
        "the reservation after it was given back"
    );
    peer.peers.hear(subnet(88), &host_with(2, "third")).await;
}
