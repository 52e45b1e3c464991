//! Promises 7, 8 and 10: a watch tells all, does not end, and costs no calls.

use flannel_core::{Lease, RegistryError, RegistryEvent, Revision, SubnetRegistry};
use tokio::time::sleep;

use super::follow::Follower;
use super::{DAY, RegistrySubject, create, host, listed, sorted, subnet};

/// Promise 7: a watch that starts with a snapshot gives the state of the store.
pub async fn a_watch_from_a_snapshot_gives_the_state_of_the_store(subject: &dyn RegistrySubject) {
    let (registry, writer) = (subject.open().await, subject.open().await);
    let first = create(&*writer, 1).await;
    let mut watch = Follower::new(subject, registry.watch(None));
    assert!(
        matches!(watch.next().await, RegistryEvent::Snapshot(snapshot) if sorted(snapshot.leases.clone()) == [first.clone()])
    );
    many_writes(&*writer, &first).await;
    watch.agrees_with(&*writer).await;
    // Again after a pause, so that the first events are not all that is ever told.
    many_more_writes(&*writer).await;
    watch.agrees_with(&*writer).await;
}

/// Promise 7: a watch that starts after a revision gives the state of the store, from the state at that revision.
pub async fn a_watch_from_a_revision_gives_the_state_of_the_store(subject: &dyn RegistrySubject) {
    let (registry, writer) = (subject.open().await, subject.open().await);
    let first = create(&*writer, 1).await;
    let start = registry.list().await.expect("lists");
    many_writes(&*writer, &first).await;
    let mut watch = Follower::new(subject, registry.watch(Some(start.revision)));
    watch.state = start.into();
    watch.agrees_with(&*writer).await;
    many_more_writes(&*writer).await;
    watch.agrees_with(&*writer).await;
}

/// Promise 7: a watch that starts where the history is gone says what there is. A delete that is the last change
/// before the cut is not lost.
pub async fn a_watch_from_before_the_history_gives_the_state_of_the_store(subject: &dyn RegistrySubject) {
    let (registry, writer) = (subject.open().await, subject.open().await);
    let (first, second) = (create(&*writer, 1).await, create(&*writer, 2).await);
    let start = registry.list().await.expect("lists");
    many_writes(&*writer, &first).await;
    writer.delete(&second).await.expect("deletes");
    subject.compact().await;
    let mut watch = Follower::new(subject, registry.watch(Some(start.revision)));
    watch.state = start.into();
    watch.agrees_with(&*writer).await;
    subject.compact().await;
    many_more_writes(&*writer).await;
    watch.agrees_with(&*writer).await;
    // A revision that the store never had, as after it was restored from a backup.
    let ahead = Revision(registry.list().await.expect("lists").revision.0 + 1_000_000);
    let mut watch = Follower::new(subject, registry.watch(Some(ahead)));
    watch.state.leases.insert(first.subnet, first);
    watch.agrees_with(&*writer).await;
}

/// Promise 7: several watches do not take events from each other.
pub async fn all_watches_hear_all(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let mut watches = Vec::new();
    for _ in 0..3 {
        watches.push(Follower::new(subject, registry.watch(None)));
    }
    let first = create(&*registry, 1).await;
    many_writes(&*registry, &first).await;
    for watch in &mut watches {
        watch.agrees_with(&*registry).await;
    }
    // One that nobody listens to any more disturbs no other.
    watches.pop();
    many_more_writes(&*registry).await;
    for watch in &mut watches {
        watch.agrees_with(&*registry).await;
    }
}

/// Promise 8: a watch goes on whatever happens to the store; what happened meanwhile is told.
pub async fn a_watch_does_not_end(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let first = create(&*registry, 1).await;
    let mut watch = Follower::new(subject, registry.watch(None));
    watch.agrees_with(&*registry).await;
    for _ in 0..2 {
        if subject.stop().await {
            watch
                .hears("that the store is silent", |event| matches!(event, RegistryEvent::Unavailable(_)))
                .await;
            assert!(!watch.state.leases.is_empty(), "silence removed a lease");
            is_no_answer(registry.list().await.map(drop));
            is_no_answer(registry.renew(&first, DAY).await.map(drop));
            subject.start().await;
            watch.hears("that the store is heard", |event| matches!(event, RegistryEvent::Available)).await;
        }
        sleep(subject.min_ttl()).await;
        subject.compact().await;
    }
    many_writes(&*registry, &first).await;
    watch.agrees_with(&*registry).await;
}

/// Promise 10: a list is a number of calls that does not depend on who wrote the records, and an event costs none.
///
/// Checks nothing if the store does not count.
pub async fn the_cost_does_not_grow_with_the_number_of_hosts(subject: &dyn RegistrySubject) {
    let calls = || subject.calls().unwrap_or_default();
    let registry = subject.open().await;
    let cost_of_list = async || {
        let before = calls();
        let leases = listed(&*registry).await.len();
        (calls() - before, leases)
    };
    create(&*registry, 1).await;
    let (cost_of_one, one) = cost_of_list().await;
    for i in 2..22 {
        create(&*subject.open().await, i).await;
    }
    let (cost_of_many, many) = cost_of_list().await;
    assert_eq!((one, many), (1, 21));
    assert_eq!(cost_of_many, cost_of_one, "a list costs more calls with more leases");

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
    watch.until("all there is", |state| state.leases.len() == 41).await;
    let before = write(150).await;
    watch.until("all that came", |state| state.leases.len() == 61).await;
    // A watch that has much to catch up with may list instead.
    assert!(calls() - before <= unwatched + 1, "events cost calls");
}

/// Writes of every kind, so that to leave out any one of them gives another state.
async fn many_writes(registry: &dyn SubnetRegistry, first: &Lease) {
    let updated = registry.update(first, &host(77), DAY).await.expect("updates");
    let short = create(registry, 10).await;
    create(registry, 11).await;
    registry.delete(&short).await.expect("deletes");
    let short = create(registry, 12).await;
    registry.delete(&short).await.expect("deletes");
    create(registry, 12).await;
    registry.update(&updated, &host(78), DAY).await.expect("updates");
}

/// Writes that follow [`many_writes`].
async fn many_more_writes(registry: &dyn SubnetRegistry) {
    let leases = listed(registry).await;
    for lease in leases.iter().filter(|lease| lease.subnet == subnet(11) || lease.subnet == subnet(12)) {
        registry.delete(lease).await.expect("deletes");
    }
    create(registry, 13).await;
}

fn is_no_answer(result: Result<(), RegistryError>) {
    let is_no_answer = matches!(result, Err(RegistryError::Unavailable(..) | RegistryError::Unknown(..)));
    assert!(is_no_answer, "want Unavailable or Unknown, got {result:?}");
}
