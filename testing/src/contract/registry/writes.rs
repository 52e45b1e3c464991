//! Promises 1 to 4: what a call sees, and which writes succeed.

use flannel_core::{Lease, RegistryError};
use futures::future::join_all;

use super::{DAY, RegistrySubject, assert_gone, create, host, list, sorted, subnet};

/// Promise 1: a call sees all writes that completed before it started, including those of other hosts.
pub async fn calls_see_completed_writes(subject: &dyn RegistrySubject) {
    let (one, other) = (subject.open().await, subject.open().await);
    assert_eq!(one.config().await.expect("config must succeed"), None, "an empty store must have no config");
    subject.set_config(r#"{"Network":"10.5.0.0/16"}"#).await;
    let config = other.config().await.expect("config must succeed");
    assert_eq!(
        config.as_deref(),
        Some(r#"{"Network":"10.5.0.0/16"}"#),
        "config must return the text that was written"
    );

    let mut lease = create(&*one, 1).await;
    for round in 2..6 {
        let seen = other.list().await.expect("list must succeed");
        assert_eq!(
            sorted(seen.leases),
            std::slice::from_ref(&lease),
            "a list must contain what another host wrote before"
        );
        assert!(
            seen.revision >= lease.revision,
            "the revision of a list must not be older than its leases, got {} and {}",
            seen.revision,
            lease.revision
        );
        lease = one.update(&lease, &host(round), DAY).await.expect("update must succeed");
        assert_eq!(lease.attrs, host(round), "update must return the given attributes");
    }
    one.delete(&lease).await.expect("delete must succeed");
    assert_eq!(list(&*other).await, [], "a list must not contain what another host deleted before");
}

/// Promise 2: of several concurrent `create` calls for one subnet exactly one succeeds, and the record is the winner's.
pub async fn concurrent_creates_have_one_winner(subject: &dyn RegistrySubject) {
    let registries = [subject.open().await, subject.open().await];
    let creates = (0..8_u8).map(|i| {
        let registry = &registries[usize::from(i % 2)];
        async move { registry.create(subnet(1), &host(i), DAY).await }
    });
    let mut winners = Vec::new();
    for result in join_all(creates).await {
        match result {
            Ok(lease) => winners.push(lease),
            Err(error) => assert!(
                matches!(error, RegistryError::Exists(taken) if taken == subnet(1)),
                "a create of a taken subnet must fail with Exists, got {error:?}"
            ),
        }
    }
    assert_eq!(winners.len(), 1, "exactly one of the creates must succeed, got {winners:?}");
    assert_eq!(list(&*registries[0]).await, winners, "the record (left) must be the winner's (right)");

    registries[1].delete(&winners[0]).await.expect("delete must succeed");
    create(&*registries[0], 1).await;
    subject.put_raw("10.5.2.0-24", b"garbage").await;
    let taken = registries[0].create(subnet(2), &host(1), DAY).await;
    assert!(
        matches!(taken, Err(RegistryError::Exists(_))),
        "a create over an unreadable record must fail with Exists, got {taken:?}"
    );
}

/// Promise 3: a write changes a record only at the given revision.
pub async fn write_with_a_stale_revision_changes_nothing(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let old = create(&*registry, 1).await;
    let new = registry.update(&old, &host(2), DAY).await.expect("update must succeed");
    // A write of the same content changes the revision too.
    let newest = registry.update(&new, &host(2), DAY).await.expect("update must succeed");
    for stale in [&old, &new] {
        assert_changed("update", &registry.update(stale, &host(3), DAY).await.map(drop));
        assert_changed("renew", &registry.renew(stale, DAY).await.map(drop));
        assert_changed("delete", &registry.delete(stale).await);
    }
    assert_eq!(
        list(&*registry).await,
        std::slice::from_ref(&newest),
        "a write with a stale revision must not change the record"
    );
    registry.renew(&newest, DAY).await.expect("renew at the current revision must succeed");
    registry.delete(&newest).await.expect("delete at the current revision must succeed");
}

/// Promise 3: a write to a deleted record fails and creates none; a record that was created again is a different one.
pub async fn write_to_a_deleted_lease_fails(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let lease = create(&*registry, 1).await;
    registry.delete(&lease).await.expect("delete must succeed");
    assert_gone("update", &registry.update(&lease, &host(2), DAY).await.map(drop));
    assert_gone("renew", &registry.renew(&lease, DAY).await.map(drop));
    assert_gone("delete", &registry.delete(&lease).await);
    assert_eq!(list(&*registry).await, [], "a write to a deleted record must not create one");

    let again = create(&*registry, 1).await;
    assert_changed("update", &registry.update(&lease, &host(2), DAY).await.map(drop));
    assert_changed("renew", &registry.renew(&lease, DAY).await.map(drop));
    assert_changed("delete", &registry.delete(&lease).await);
    assert_eq!(
        list(&*registry).await,
        [again],
        "a write to a deleted record must not change one that was created since"
    );
}

/// Promise 4: each write gives the record a larger revision than all writes before it.
pub async fn revisions_increase(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let mut last = registry.list().await.expect("list must succeed").revision;
    let mut assert_larger = |lease: &Lease| {
        assert!(
            lease.revision > last,
            "the revision of a write must be larger than the last one, got {} after {last}",
            lease.revision
        );
        last = lease.revision;
    };
    let one = create(&*registry, 1).await;
    assert_larger(&one);
    let two = create(&*registry, 2).await;
    assert_larger(&two);
    let one = registry.update(&one, &host(1), DAY).await.expect("update must succeed");
    assert_larger(&one);
    registry.delete(&two).await.expect("delete must succeed");
    assert_larger(&create(&*registry, 2).await);
    subject.put_raw("10.5.1.0-24", host(9).to_record().as_bytes()).await;
    let leases = list(&*registry).await;
    let written = leases.iter().find(|lease| lease.subnet == subnet(1));
    assert_larger(written.expect("a list must contain a record that was written past the registry"));
}

#[track_caller]
fn assert_changed(call: &str, result: &Result<(), RegistryError>) {
    assert!(
        matches!(result, Err(RegistryError::Changed(_))),
        "{call} with a stale revision must fail with Changed, got {result:?}"
    );
}
