//! Promises 2, 8 and 10: the attributes of a lease, and whose lease it is.

use flannel_core::{ManagerError, RegistryError, Term};

use super::LeaseManagerSubject;
use super::joined::{JoinedHost, acquire, attrs_of, host_with, open, published, published_with};
use crate::contract::{host, missing_hook, subnet};

/// Promises 2 and 8: the attributes of `acquire`, a repeated `acquire` and `publish` reach the peers and keep the
/// subnet.
pub async fn attributes_reach_peers(subject: &dyn LeaseManagerSubject) {
    let mut peer = JoinedHost::join(subject, 1, None).await;
    let manager = open(subject, 2).await;
    let own = acquire(&*manager, &host_with(2, "first"), None).await;
    peer.peers.wait_for_attrs(own.subnet, &published_with(subject, 2, "first")).await;

    let again = acquire(&*manager, &host_with(2, "second"), None).await;
    assert_eq!(
        (again.subnet, attrs_of(&again)),
        (own.subnet, published_with(subject, 2, "second")),
        "a second acquire must return the same subnet with the new attributes"
    );
    peer.peers.wait_for_attrs(own.subnet, &published_with(subject, 2, "second")).await;

    // A host that moves publishes another address.
    for moved in [host_with(2, "third"), host_with(200, "third")] {
        let published = manager.publish(&again, &moved).await.expect("publish must succeed for a held lease");
        let (subnet, term) = (published.subnet, published.term);
        assert_eq!(
            (subnet, term, attrs_of(&published)),
            (own.subnet, own.term, subject.published(2, moved.clone())),
            "publish must keep subnet and term and return the new attributes"
        );
        peer.peers.wait_for_attrs(own.subnet, &subject.published(2, moved)).await;
    }
}

/// Promise 8: `publish` fails once the lease is revoked, and never overwrites the record of a host that leased the
/// subnet since.
pub async fn publish_never_overwrites_another_host(subject: &dyn LeaseManagerSubject) {
    let manager = open(subject, 1).await;
    let own = acquire(&*manager, &host(1), Some(subnet(77))).await;
    let assert_publish_fails = async |when: &str| {
        let published = manager.publish(&own, &host_with(1, "other")).await;
        let is_lost = matches!(
            published,
            Err(ManagerError::Registry(RegistryError::Gone(_) | RegistryError::Changed(_)))
        );
        assert!(is_lost, "publish must fail with Gone or Changed {when}, got {published:?}");
    };
    subject.revoke_subnet(own.subnet).await;
    assert_publish_fails("after the lease was revoked").await;
    if subject.assigned_subnet(1).is_some() {
        return;
    }
    let other = open(subject, 2).await;
    assert_eq!(
        acquire(&*other, &host(2), Some(own.subnet)).await.subnet,
        own.subnet,
        "another host must get the revoked subnet"
    );
    assert_publish_fails("after another host leased the subnet").await;
    let theirs = other
        .previous_lease(host(2).public)
        .await
        .expect("previous_lease must succeed")
        .expect("previous_lease must find the other host's lease");
    assert_eq!(
        (theirs.subnet, attrs_of(&theirs)),
        (own.subnet, published(subject, 2)),
        "a failed publish must not change the other host's record"
    );
}

/// Promise 10: a released subnet is free at once and its peers see the removal; releasing it again succeeds, and never
/// releases another host's lease.
pub async fn released_subnet_is_free(subject: &dyn LeaseManagerSubject) {
    if subject.assigned_subnet(1).is_some() {
        missing_hook("chooses_subnet");
    }
    let mut peer = JoinedHost::join(subject, 1, None).await;
    let manager = open(subject, 2).await;
    let own = acquire(&*manager, &host(2), Some(subnet(77))).await;
    peer.peers.wait_for_attrs(own.subnet, &published(subject, 2)).await;
    manager.release(&own).await.expect("release of a held lease must succeed");
    peer.peers.wait_for_removal(own.subnet).await;
    manager.release(&own).await.expect("release of a lease that no longer exists must succeed");
    let other = open(subject, 3).await;
    assert_eq!(
        acquire(&*other, &host(3), Some(own.subnet)).await.subnet,
        own.subnet,
        "another host must get the released subnet"
    );
    // The manager decides whether this is an error.
    let _ = manager.release(&own).await;
    let theirs = other.previous_lease(host(3).public).await.expect("previous_lease must succeed");
    assert_eq!(
        theirs.map(|lease| lease.subnet),
        Some(own.subnet),
        "release must not remove a lease that another host holds by now"
    );
}

/// Promise 10: a host uses its reservation, which never expires and stays after `publish` and `release`.
pub async fn reservation_is_kept(subject: &dyn LeaseManagerSubject) {
    subject.reserve(subnet(88), &host(2)).await;
    let mut peer = JoinedHost::join(subject, 1, None).await;
    let manager = open(subject, 2).await;
    let own = acquire(&*manager, &host_with(2, "first"), None).await;
    assert_eq!(
        (own.subnet, own.term),
        (subnet(88), Term::Permanent),
        "acquire must return the host's reservation"
    );
    peer.peers.wait_for_attrs(subnet(88), &published_with(subject, 2, "first")).await;
    let own = manager.publish(&own, &host_with(2, "second")).await.expect("publish must succeed");
    assert_eq!(own.term, Term::Permanent, "a reservation must stay permanent after publish");
    manager.release(&own).await.expect("release of a reservation must succeed");
    let again = acquire(&*open(subject, 2).await, &host_with(2, "third"), None).await;
    assert_eq!(
        (again.subnet, again.term),
        (subnet(88), Term::Permanent),
        "a reservation must stay after release"
    );
    peer.peers.wait_for_attrs(subnet(88), &published_with(subject, 2, "third")).await;
}
