//! Promises 7, 8 and 10: a watch is complete, never ends, and costs no calls.

use flannel_core::{Lease, RegistryError, RegistryEvent, Revision, SubnetRegistry};
use tokio::time::sleep;

use super::follower::Follower;
use super::{DAY, RegistrySubject, create, host, list, missing_hook, sorted, subnet};

/// Promise 7: a watch that starts with a snapshot gives the state of the store.
pub async fn watch_from_a_snapshot_converges(subject: &dyn RegistrySubject) {
    let (registry, writer) = (subject.open().await, subject.open().await);
    let first = create(&*writer, 1).await;
    let mut watch = Follower::new(subject, registry.watch(None));
    let event = watch.next().await;
    assert!(
        matches!(&event, RegistryEvent::Snapshot(snapshot) if sorted(snapshot.leases.clone()) == [first.clone()]),
        "a watch without a revision must start with a snapshot of the one lease, got {event:?}"
    );
    write_a_lot(&*writer, &first).await;
    watch.assert_agrees_with(&*writer).await;
    // Again, so that a watch that reports only the first events fails.
    write_more(&*writer).await;
    watch.assert_agrees_with(&*writer).await;
}

/// Promise 7: a watch that starts after a revision gives the state of the store, from the state at that revision.
pub async fn watch_from_a_revision_converges(subject: &dyn RegistrySubject) {
    let (registry, writer) = (subject.open().await, subject.open().await);
    let first = create(&*writer, 1).await;
    let start = registry.list().await.expect("list must succeed");
    write_a_lot(&*writer, &first).await;
    let mut watch = Follower::new(subject, registry.watch(Some(start.revision)));
    watch.state = start.into();
    watch.assert_agrees_with(&*writer).await;
    write_more(&*writer).await;
    watch.assert_agrees_with(&*writer).await;
}

/// Promise 7: a watch that starts after a compacted revision gives the state of the store, including a delete that was
/// the last change before the compaction.
pub async fn watch_from_a_compacted_revision_converges(subject: &dyn RegistrySubject) {
    let (registry, writer) = (subject.open().await, subject.open().await);
    let (first, second) = (create(&*writer, 1).await, create(&*writer, 2).await);
    let start = registry.list().await.expect("list must succeed");
    write_a_lot(&*writer, &first).await;
    writer.delete(&second).await.expect("delete must succeed");
    subject.compact().await;
    let mut watch = Follower::new(subject, registry.watch(Some(start.revision)));
    watch.state = start.into();
    watch.assert_agrees_with(&*writer).await;
    subject.compact().await;
    write_more(&*writer).await;
    watch.assert_agrees_with(&*writer).await;
    // A revision that the store has not reached, as after a restore from a backup.
    let ahead = Revision(registry.list().await.expect("list must succeed").revision.0 + 1_000_000);
    let mut watch = Follower::new(subject, registry.watch(Some(ahead)));
    watch.state.leases.insert(first.subnet, first);
    watch.assert_agrees_with(&*writer).await;
}

/// Promise 7: each of several watches reports every event.
pub async fn watches_are_independent(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let mut watches = Vec::new();
    for _ in 0..3 {
        watches.push(Follower::new(subject, registry.watch(None)));
    }
    let first = create(&*registry, 1).await;
    write_a_lot(&*registry, &first).await;
    for watch in &mut watches {
        watch.assert_agrees_with(&*registry).await;
    }
    // A dropped watch does not affect the others.
    watches.pop();
    write_more(&*registry).await;
    for watch in &mut watches {
        watch.assert_agrees_with(&*registry).await;
    }
}

/// Promise 8: a watch goes on after idle periods and compactions.
pub async fn watch_never_ends(subject: &dyn RegistrySubject) {
    watch_through(subject, false).await;
}

/// Promise 8: a watch reports an outage and its end, and then what happened meanwhile.
pub async fn watch_survives_outages(subject: &dyn RegistrySubject) {
    watch_through(subject, true).await;
}

async fn watch_through(subject: &dyn RegistrySubject, outages: bool) {
    let registry = subject.open().await;
    let first = create(&*registry, 1).await;
    let mut watch = Follower::new(subject, registry.watch(None));
    watch.assert_agrees_with(&*registry).await;
    for _ in 0..2 {
        if outages {
            subject.stop().await;
            watch.wait_for("the outage", |event| matches!(event, RegistryEvent::Unavailable(_))).await;
            assert!(!watch.state.leases.is_empty(), "an outage must not remove a lease");
            assert_unavailable("list", &registry.list().await.map(drop));
            assert_unavailable("renew", &registry.renew(&first, DAY).await.map(drop));
            subject.start().await;
            watch.wait_for("the end of the outage", |event| matches!(event, RegistryEvent::Available)).await;
        }
        sleep(subject.min_ttl()).await;
        subject.compact().await;
    }
    write_a_lot(&*registry, &first).await;
    watch.assert_agrees_with(&*registry).await;
}

/// Promise 10: the number of calls of a list does not depend on who wrote the records, and an event costs no call.
pub async fn cost_is_independent_of_the_number_of_hosts(subject: &dyn RegistrySubject) {
    let calls = || subject.calls().unwrap_or_else(|| missing_hook("calls"));
    let registry = subject.open().await;
    let cost_of_list = async || {
        let before = calls();
        let leases = list(&*registry).await.len();
        (calls() - before, leases)
    };
    create(&*registry, 1).await;
    let (cost_of_one, one) = cost_of_list().await;
    for i in 2..22 {
        create(&*subject.open().await, i).await;
    }
    let (cost_of_many, many) = cost_of_list().await;
    assert_eq!((one, many), (1, 21), "a list must contain every lease");
    assert_eq!(
        cost_of_many, cost_of_one,
        "a list of 21 leases (left) must cost as many calls as a list of one (right)"
    );

    let write = async |first: u8| {
        let before = calls();
        for i in first..first + 20 {
            subject.put_raw(&subnet(i).to_string(), host(i).to_record().as_bytes()).await;
        }
        before
    };
    let unwatched = {
        let before = write(100).await;
        calls() - before
    };
    let mut watch = Follower::new(subject, registry.watch(None));
    watch.until("41 leases exist", |state| state.leases.len() == 41).await;
    let before = write(150).await;
    watch.until("61 leases exist", |state| state.leases.len() == 61).await;
    // A watch that is far behind may list instead.
    let watched = calls() - before;
    assert!(
        watched <= unwatched + 1,
        "20 writes with a watch must cost at most one call more than the {unwatched} without, got {watched}"
    );
}

/// Writes in every way, so that missing any of the events gives another state.
async fn write_a_lot(registry: &dyn SubnetRegistry, first: &Lease) {
    let updated = registry.update(first, &host(77), DAY).await.expect("update must succeed");
    let short = create(registry, 10).await;
    create(registry, 11).await;
    registry.delete(&short).await.expect("delete must succeed");
    let short = create(registry, 12).await;
    registry.delete(&short).await.expect("delete must succeed");
    create(registry, 12).await;
    registry.update(&updated, &host(78), DAY).await.expect("update must succeed");
}

/// Writes that follow [`write_a_lot`].
async fn write_more(registry: &dyn SubnetRegistry) {
    let leases = list(registry).await;
    for lease in leases.iter().filter(|lease| lease.subnet == subnet(11) || lease.subnet == subnet(12)) {
        registry.delete(lease).await.expect("delete must succeed");
    }
    create(registry, 13).await;
}

#[track_caller]
fn assert_unavailable(call: &str, result: &Result<(), RegistryError>) {
    assert!(
        matches!(result, Err(RegistryError::Unavailable(..) | RegistryError::Unknown(..))),
        "{call} during an outage must fail with Unavailable or Unknown, got {result:?}"
    );
}
