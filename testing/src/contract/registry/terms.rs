//! Promises 5 and 6: how long a record lasts.

use std::time::Duration;

use flannel_core::{Lease, RegistryEvent, SubnetRegistry, Term};
use tokio::time::{Instant, sleep};

use super::follow::Follower;
use super::{DAY, RegistrySubject, create, host, is_gone, listed, subnet};

/// How often a check begins anew that needs a machine which is not late: a lease that ended because its host came too late
/// proves nothing.
const ATTEMPTS: u8 = 20;

/// Promise 5: a limited record that is not renewed disappears, and watchers are told.
pub async fn a_lease_that_is_not_renewed_ends(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let mut watch = Follower::new(subject, registry.watch(None));
    watch.next().await;
    let ttl = subject.min_ttl();
    let lease = registry.create(subnet(1), &host(1), ttl).await.expect("creates");
    assert_eq!(lease.term, Term::Limited);
    watch.until("the lease begins", |state| state.leases.contains_key(&subnet(1))).await;
    watch.until("the lease ends", |state| state.leases.is_empty()).await;
    assert_eq!(listed(&*registry).await, []);
    is_gone(registry.renew(&lease, ttl).await.map(drop));
}

/// Promise 5: a record that is renewed within its time to live stays, and ends after that.
pub async fn a_renewed_lease_lasts(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let mut watch = Follower::new(subject, registry.watch(None));
    watch.next().await;
    let ttl = subject.min_ttl();
    let mut lasted = false;
    for third in 1..=ATTEMPTS {
        lasted = lasts_while_renewed(&*registry, third, ttl).await;
        if lasted {
            break;
        }
    }
    assert!(lasted, "this machine is too late for leases of {ttl:?}");
    watch.until("the lease begins", |state| !state.leases.is_empty()).await;
    watch.until("the lease ends", |state| state.leases.is_empty()).await;
}

/// Creates and renews a lease for longer than its time to live; false if a renewal or a look came too late.
async fn lasts_while_renewed(registry: &dyn SubnetRegistry, third: u8, ttl: Duration) -> bool {
    let mut asked = Instant::now();
    let lease = registry.create(subnet(third), &host(third), ttl).await.expect("creates");
    for _ in 0..4 {
        sleep(ttl / 2).await;
        let now = Instant::now();
        let renewed = registry.renew(&lease, ttl).await;
        if asked.elapsed() >= ttl {
            return false;
        }
        let granted = renewed.expect("renews");
        assert!(granted >= ttl, "asked for {ttl:?}, got {granted:?}");
        asked = now;
    }
    is_there(registry, &lease, asked, ttl).await
}

/// Checks that a lease is there that was asked for then; false if that came too late.
async fn is_there(registry: &dyn SubnetRegistry, lease: &Lease, asked: Instant, ttl: Duration) -> bool {
    let mut listed = listed(registry).await;
    if asked.elapsed() >= ttl {
        return false;
    }
    listed.retain(|other| other.subnet == lease.subnet);
    assert_eq!(listed, std::slice::from_ref(lease));
    true
}

/// Promise 5: `update` gives a limited lease a new time to live, and only that.
pub async fn an_updated_lease_lasts_for_a_new_time_to_live(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let ttl = subject.min_ttl();
    let mut updated = None;
    for third in 1..=ATTEMPTS {
        updated = lasts_after_an_update(&*registry, third, ttl).await;
        if updated.is_some() {
            break;
        }
    }
    assert!(updated.is_some(), "this machine is too late for leases of {ttl:?}");
    let Some(lease) = updated else { return };
    let mut watch = Follower::new(subject, registry.watch(Some(lease.revision)));
    watch.state.leases.insert(lease.subnet, lease);
    watch.until("the lease ends", |state| state.leases.is_empty()).await;
}

/// Creates and updates a lease, and sees that it outlives its first time to live; none if that came too late.
async fn lasts_after_an_update(registry: &dyn SubnetRegistry, third: u8, ttl: Duration) -> Option<Lease> {
    let asked = Instant::now();
    let lease = registry.create(subnet(third), &host(third), ttl).await.expect("creates");
    sleep(ttl * 3 / 4).await;
    let asked_again = Instant::now();
    let updated = registry.update(&lease, &host(third + 100), ttl).await;
    if asked.elapsed() >= ttl {
        return None;
    }
    let updated = updated.expect("updates");
    assert_eq!(updated.term, Term::Limited);
    sleep(ttl / 2).await;
    is_there(registry, &updated, asked_again, ttl).await.then_some(updated)
}

/// Promise 5: a permanent record stays, also after it was updated and renewed.
pub async fn a_reservation_stays(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let ttl = subject.min_ttl();
    subject.put_raw("10.5.1.0-24", br#"{"PublicIP":"192.168.0.1"}"#).await;
    let reservation = listed(&*registry).await.remove(0);
    assert_eq!((reservation.subnet, reservation.term), (subnet(1), Term::Permanent));
    let updated = registry.update(&reservation, &host(1), ttl).await.expect("updates");
    assert_eq!(updated.term, Term::Permanent);
    registry.renew(&updated, ttl).await.expect("renews");
    // A lease that was made at the same time tells when the time to live is surely over.
    let mut watch = Follower::new(subject, registry.watch(None));
    watch.next().await;
    registry.create(subnet(2), &host(2), ttl).await.expect("creates");
    watch.until("the lease begins", |state| state.leases.contains_key(&subnet(2))).await;
    watch.until("the lease ends", |state| !state.leases.contains_key(&subnet(2))).await;
    assert_eq!(listed(&*registry).await, [updated]);
}

/// Promise 6: `renew` changes neither the record nor its revision, and watchers see nothing.
pub async fn renewing_is_silent(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let lease = create(&*registry, 1).await;
    let before = registry.list().await.expect("lists");
    let mut watch = Follower::new(subject, registry.watch(Some(before.revision)));
    for _ in 0..3 {
        registry.renew(&lease, DAY).await.expect("renews");
    }
    assert_eq!(listed(&*registry).await, [lease]);
    let marker = create(&*registry, 200).await;
    match watch.next().await {
        RegistryEvent::Put(first) => assert_eq!(*first, marker, "a renewal was told"),
        RegistryEvent::Snapshot(snapshot) => assert_eq!(snapshot.leases.len(), 2),
        event @ (RegistryEvent::Deleted(..)
        | RegistryEvent::Bad(_)
        | RegistryEvent::BadDeleted(_)
        | RegistryEvent::Unavailable(_)
        | RegistryEvent::Available) => assert_eq!(format!("{event:?}"), "Put"),
    }
}
