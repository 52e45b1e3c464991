//! Promises 5 and 6: how long a record lasts.

use std::time::Duration;

use flannel_core::{Lease, RegistryEvent, SubnetRegistry, Term};
use tokio::time::{Instant, sleep};

use super::follower::Follower;
use super::{DAY, RegistrySubject, assert_gone, create, host, list, sorted, subnet};

/// How often a check that needs timely renewals starts over: an expiry after a late renewal proves nothing.
const ATTEMPTS: u8 = 20;

/// Promise 5: a limited record without renewal expires, and watches report it.
pub async fn lease_expires_without_renewal(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let mut watch = Follower::new(subject, registry.watch(None));
    watch.next().await;
    let ttl = subject.min_ttl();
    let lease = registry.create(subnet(1), &host(1), ttl).await.expect("create must succeed");
    assert_eq!(lease.term, Term::Limited, "create must return a limited lease");
    watch.until("the lease was created", |state| state.leases.contains_key(&subnet(1))).await;
    watch.until("the lease expired", |state| state.leases.is_empty()).await;
    assert_eq!(list(&*registry).await, [], "a list must not contain an expired lease");
    assert_gone("renew", &registry.renew(&lease, ttl).await.map(drop));
}

/// Promise 5: a record that is renewed in time stays, and expires after the last renewal.
pub async fn renewed_lease_does_not_expire(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let mut watch = Follower::new(subject, registry.watch(None));
    watch.next().await;
    let ttl = subject.min_ttl();
    let mut was_timely = false;
    for third in 1..=ATTEMPTS {
        was_timely = renew_beyond_the_ttl(&*registry, third, ttl).await;
        if was_timely {
            break;
        }
    }
    assert!(
        was_timely,
        "the test must be scheduled in time for renewals of {ttl:?}: the machine is too busy"
    );
    watch.until("the lease was created", |state| !state.leases.is_empty()).await;
    watch.until("the lease expired", |state| state.leases.is_empty()).await;
}

/// Creates and renews a lease for longer than its time to live. Returns false if a call was late.
async fn renew_beyond_the_ttl(registry: &dyn SubnetRegistry, third: u8, ttl: Duration) -> bool {
    let mut renewed_at = Instant::now();
    let lease = registry.create(subnet(third), &host(third), ttl).await.expect("create must succeed");
    for _ in 0..4 {
        sleep(ttl / 2).await;
        let now = Instant::now();
        let renewed = registry.renew(&lease, ttl).await;
        if renewed_at.elapsed() >= ttl {
            return false;
        }
        let granted = renewed.expect("a timely renew must succeed");
        assert!(granted >= ttl, "renew must grant at least the requested {ttl:?}, got {granted:?}");
        renewed_at = now;
    }
    assert_listed(registry, &lease, renewed_at, ttl).await
}

/// Asserts that a list contains a lease that was renewed at this time. Returns false if the list was late.
async fn assert_listed(
    registry: &dyn SubnetRegistry,
    lease: &Lease,
    renewed_at: Instant,
    ttl: Duration,
) -> bool {
    let mut listed = list(registry).await;
    if renewed_at.elapsed() >= ttl {
        return false;
    }
    listed.retain(|other| other.subnet == lease.subnet);
    assert_eq!(listed, std::slice::from_ref(lease), "a list must contain a lease that was renewed in time");
    true
}

/// Promise 5: `update` restarts the time to live of a limited lease, and does not make it permanent.
pub async fn update_restarts_the_time_to_live(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let ttl = subject.min_ttl();
    let mut updated = None;
    for third in 1..=ATTEMPTS {
        updated = update_beyond_the_ttl(&*registry, third, ttl).await;
        if updated.is_some() {
            break;
        }
    }
    assert!(
        updated.is_some(),
        "the test must be scheduled in time for updates of {ttl:?}: the machine is too busy"
    );
    let Some(lease) = updated else { return };
    let mut watch = Follower::new(subject, registry.watch(Some(lease.revision)));
    watch.state.leases.insert(lease.subnet, lease);
    watch.until("the lease expired", |state| state.leases.is_empty()).await;
}

/// Creates and updates a lease and asserts that it outlives its first time to live. Returns `None` if a call was late.
async fn update_beyond_the_ttl(registry: &dyn SubnetRegistry, third: u8, ttl: Duration) -> Option<Lease> {
    let created_at = Instant::now();
    let lease = registry.create(subnet(third), &host(third), ttl).await.expect("create must succeed");
    sleep(ttl * 3 / 4).await;
    let updated_at = Instant::now();
    let updated = registry.update(&lease, &host(third + 100), ttl).await;
    if created_at.elapsed() >= ttl {
        return None;
    }
    let updated = updated.expect("a timely update must succeed");
    assert_eq!(updated.term, Term::Limited, "update must keep the term of a limited lease");
    sleep(ttl / 2).await;
    assert_listed(registry, &updated, updated_at, ttl).await.then_some(updated)
}

/// Promise 5: a permanent record stays, also after `update` and `renew`.
pub async fn reservation_does_not_expire(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let ttl = subject.min_ttl();
    subject.put_raw("10.5.1.0-24", br#"{"PublicIP":"192.168.0.1"}"#).await;
    let mut listed = list(&*registry).await;
    assert_eq!(listed.len(), 1, "a list must contain the reservation, got {listed:?}");
    let reservation = listed.remove(0);
    assert_eq!(
        (reservation.subnet, reservation.term),
        (subnet(1), Term::Permanent),
        "a record without an expiry must be listed as permanent"
    );
    let updated = registry.update(&reservation, &host(1), ttl).await.expect("update must succeed");
    assert_eq!(updated.term, Term::Permanent, "update must keep the term of a permanent lease");
    registry.renew(&updated, ttl).await.expect("renew of a permanent lease must succeed");
    // The expiry of another lease shows that the time to live is over.
    let mut watch = Follower::new(subject, registry.watch(None));
    watch.next().await;
    registry.create(subnet(2), &host(2), ttl).await.expect("create must succeed");
    watch.until("the lease was created", |state| state.leases.contains_key(&subnet(2))).await;
    watch.until("the lease expired", |state| !state.leases.contains_key(&subnet(2))).await;
    assert_eq!(list(&*registry).await, [updated], "a reservation must not expire");
}

/// Promise 6: `renew` changes neither the record nor its revision, and watches report nothing.
pub async fn renew_emits_no_event(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let lease = create(&*registry, 1).await;
    let before = registry.list().await.expect("list must succeed");
    let mut watch = Follower::new(subject, registry.watch(Some(before.revision)));
    for _ in 0..3 {
        registry.renew(&lease, DAY).await.expect("renew must succeed");
    }
    assert_eq!(
        list(&*registry).await,
        std::slice::from_ref(&lease),
        "renew must change neither the record nor its revision"
    );
    let marker = create(&*registry, 200).await;
    let mut event = watch.next().await;
    // A watch may start with a snapshot, taken before or after the marker was written.
    if let RegistryEvent::Snapshot(snapshot) = event {
        let leases = sorted(snapshot.leases);
        assert_eq!(
            leases.first(),
            Some(&lease),
            "a snapshot after renewals must contain the lease at its old revision"
        );
        if leases.get(1) == Some(&marker) {
            return;
        }
        assert_eq!(leases.len(), 1, "a snapshot must contain only what was written, got {leases:?}");
        event = watch.next().await;
    }
    assert!(
        matches!(&event, RegistryEvent::Put(first) if **first == marker),
        "a watch must report nothing for a renew: the next event must be the creation of {}, got {event:?}",
        marker.subnet
    );
}
