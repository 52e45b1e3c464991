//! Promises 1 to 4: what a call sees, and which writes succeed.

use flannel_core::{Lease, RegistryError};
use futures::future::join_all;

use super::{DAY, RegistrySubject, create, host, is_gone, listed, sorted, subnet};

/// Promise 1: every call sees all writes that were answered before it began, also those of other hosts.
pub async fn a_call_sees_all_writes_that_were_answered_before(subject: &dyn RegistrySubject) {
    let (one, other) = (subject.open().await, subject.open().await);
    assert_eq!(one.config().await.expect("reads"), None);
    subject.set_config(r#"{"Network":"10.5.0.0/16"}"#).await;
    let config = other.config().await.expect("reads");
    assert_eq!(config.as_deref(), Some(r#"{"Network":"10.5.0.0/16"}"#));

    let mut lease = create(&*one, 1).await;
    for round in 2..6 {
        let seen = other.list().await.expect("lists");
        assert_eq!(sorted(seen.leases), std::slice::from_ref(&lease));
        assert!(seen.revision >= lease.revision, "a list is as new as what it holds");
        lease = one.update(&lease, &host(round), DAY).await.expect("updates");
        assert_eq!(lease.attrs, host(round));
    }
    one.delete(&lease).await.expect("deletes");
    assert_eq!(listed(&*other).await, []);
}

/// Promise 2: of several `create` calls for one subnet exactly one succeeds, and the record is that one's.
pub async fn of_several_creates_exactly_one_succeeds(subject: &dyn RegistrySubject) {
    let registries = [subject.open().await, subject.open().await];
    let creates = (0..8_u8).map(|i| {
        let registry = &registries[usize::from(i % 2)];
        async move { registry.create(subnet(1), &host(i), DAY).await }
    });
    let mut winners = Vec::new();
    for result in join_all(creates).await {
        match result {
            Ok(lease) => winners.push(lease),
            Err(RegistryError::Exists(taken)) => assert_eq!(taken, subnet(1)),
            Err(error) => unexpected("Exists", &error),
        }
    }
    assert_eq!(winners.len(), 1, "one winner, got {winners:?}");
    assert_eq!(listed(&*registries[0]).await, winners);

    registries[1].delete(&winners[0]).await.expect("deletes");
    create(&*registries[0], 1).await;
    subject.put_raw("10.5.2.0-24", b"garbage").await;
    let taken = registries[0].create(subnet(2), &host(1), DAY).await;
    assert!(matches!(taken, Err(RegistryError::Exists(_))), "a bad record counts as taken, got {taken:?}");
}

/// Promise 3: a write changes a record only if its revision is still the one given.
pub async fn a_write_with_an_old_revision_changes_nothing(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let old = create(&*registry, 1).await;
    let new = registry.update(&old, &host(2), DAY).await.expect("updates");
    // A write of the same content is a change too: what compares is the revision.
    let newest = registry.update(&new, &host(2), DAY).await.expect("updates");
    for stale in [&old, &new] {
        is_changed(registry.update(stale, &host(3), DAY).await.map(drop));
        is_changed(registry.renew(stale, DAY).await.map(drop));
        is_changed(registry.delete(stale).await);
    }
    assert_eq!(listed(&*registry).await, std::slice::from_ref(&newest));
    registry.renew(&newest, DAY).await.expect("renews");
    registry.delete(&newest).await.expect("deletes");
}

/// Promise 3: a write to a record that is gone says so, and makes none; one that was made again is another one.
pub async fn a_write_to_a_lease_that_is_gone_says_so(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let lease = create(&*registry, 1).await;
    registry.delete(&lease).await.expect("deletes");
    is_gone(registry.update(&lease, &host(2), DAY).await.map(drop));
    is_gone(registry.renew(&lease, DAY).await.map(drop));
    is_gone(registry.delete(&lease).await);
    assert_eq!(listed(&*registry).await, []);

    let again = create(&*registry, 1).await;
    is_changed(registry.update(&lease, &host(2), DAY).await.map(drop));
    is_changed(registry.renew(&lease, DAY).await.map(drop));
    is_changed(registry.delete(&lease).await);
    assert_eq!(listed(&*registry).await, [again]);
}

/// Promise 4: each write gives the record a larger revision than any before it.
pub async fn every_write_has_a_larger_revision_than_any_before(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let mut last = registry.list().await.expect("lists").revision;
    let mut grows = |lease: &Lease| {
        assert!(lease.revision > last, "{} is not larger than {last}", lease.revision);
        last = lease.revision;
    };
    let one = create(&*registry, 1).await;
    grows(&one);
    let two = create(&*registry, 2).await;
    grows(&two);
    let one = registry.update(&one, &host(1), DAY).await.expect("updates");
    grows(&one);
    registry.delete(&two).await.expect("deletes");
    grows(&create(&*registry, 2).await);
    subject.put_raw("10.5.1.0-24", host(9).to_record().as_bytes()).await;
    let leases = listed(&*registry).await;
    grows(leases.iter().find(|lease| lease.subnet == subnet(1)).expect("is there"));
}

fn is_changed(result: Result<(), RegistryError>) {
    assert!(matches!(result, Err(RegistryError::Changed(_))), "want Changed, got {result:?}");
}

fn unexpected(wanted: &str, error: &RegistryError) {
    assert_eq!(format!("{error:?}"), wanted);
}
