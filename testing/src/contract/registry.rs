//! The promises of [`SubnetRegistry`], each checked against a real store.
//!
//! A store's tests say how to get at it by [`RegistrySubject`] and call [`registry_contract!`](crate::registry_contract),
//! which makes a test of every check below. Each check wants a store of its own, and panics where a promise is broken.

mod follow;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{
    Lease, LeaseAttrs, RegistryError, RegistryEvent, Revision, SubnetKey, SubnetRegistry, Term,
};
use futures::future::join_all;
use tokio::time::sleep;

use follow::Follower;

/// An empty store under test, and what only its operator can do to it.
#[async_trait]
pub trait RegistrySubject: Send + Sync {
    /// Opens the registry as one more host does.
    async fn open(&self) -> Arc<dyn SubnetRegistry>;

    /// Writes the configuration of the network.
    async fn set_config(&self, text: &str);

    /// Writes a record without an end; `key` is the part below the one that holds all leases.
    async fn put_raw(&self, key: &str, value: &[u8]);

    /// Removes a record.
    async fn remove_raw(&self, key: &str);

    /// Makes the store forget all changes so far, as far as it lets one ask for that.
    async fn compact(&self);

    /// The shortest time to live that the store grants as it is asked for.
    fn shortest_ttl(&self) -> Duration;

    /// How long an answer, an event or the end of a lease may be late.
    fn patience(&self) -> Duration;

    /// Makes the store unreachable, and tells whether it could.
    async fn stop(&self) -> bool {
        false
    }

    /// Makes the store reachable again.
    async fn start(&self) {}

    /// How many requests the store has taken so far, if it counts them. Opening and reading a watch counts too.
    fn calls(&self) -> Option<u64> {
        None
    }
}

/// Makes a test of each promise of a registry.
///
/// ```ignore
/// mod contract {
///     flannel_testing::registry_contract!(#[tokio::test(start_paused = true)] super::Memory::default());
/// }
/// ```
///
/// The first part is the attribute of each test, the second an expression for a fresh
/// [`RegistrySubject`], which may await.
#[macro_export]
macro_rules! registry_contract {
    (#[$test:meta] $subject:expr) => {
        $crate::registry_contract! { @each #[$test] $subject;
            a_call_sees_all_writes_that_were_answered_before
            of_several_creates_exactly_one_succeeds
            a_write_with_an_old_revision_changes_nothing
            a_write_to_a_lease_that_is_gone_says_so
            every_write_has_a_larger_revision_than_any_before
            a_lease_that_is_not_renewed_ends
            a_renewed_lease_lasts
            an_updated_lease_lasts_for_a_new_time_to_live
            a_reservation_stays
            renewing_is_silent
            a_watch_from_a_snapshot_gives_the_state_of_the_store
            a_watch_from_a_revision_gives_the_state_of_the_store
            a_watch_from_before_the_history_gives_the_state_of_the_store
            all_watches_hear_all
            a_watch_does_not_end
            a_bad_record_hides_no_other_in_a_list
            a_bad_record_hides_no_other_in_a_watch
            the_cost_does_not_grow_with_the_number_of_hosts
        }
    };
    (@each #[$test:meta] $subject:expr; $($check:ident)*) => {$(
        #[$test]
        async fn $check() {
            let subject = $subject;
            $crate::contract::registry::$check(&subject).await;
        }
    )*};
}

/// So long that no lease of it ends during a check.
const DAY: Duration = Duration::from_secs(86_400);

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

/// Promise 5: a limited record that is not renewed disappears, and watchers are told.
pub async fn a_lease_that_is_not_renewed_ends(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let mut watch = Follower::new(subject, registry.watch(None));
    let ttl = subject.shortest_ttl();
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
    let ttl = subject.shortest_ttl();
    let lease = registry.create(subnet(1), &host(1), ttl).await.expect("creates");
    for _ in 0..4 {
        sleep(ttl / 2).await;
        let granted = registry.renew(&lease, ttl).await.expect("renews");
        assert!(granted >= ttl, "asked for {ttl:?}, got {granted:?}");
    }
    assert_eq!(listed(&*registry).await, [lease]);
    watch.until("the lease begins", |state| !state.leases.is_empty()).await;
    watch.until("the lease ends", |state| state.leases.is_empty()).await;
}

/// Promise 5: `update` gives a limited lease a new time to live, and only that.
pub async fn an_updated_lease_lasts_for_a_new_time_to_live(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let ttl = subject.shortest_ttl();
    let lease = registry.create(subnet(1), &host(1), ttl).await.expect("creates");
    sleep(ttl * 3 / 4).await;
    let lease = registry.update(&lease, &host(2), ttl).await.expect("updates");
    assert_eq!(lease.term, Term::Limited);
    sleep(ttl / 2).await;
    assert_eq!(listed(&*registry).await, std::slice::from_ref(&lease));
    let mut watch = Follower::new(subject, registry.watch(Some(lease.revision)));
    watch.state.leases.insert(lease.subnet, lease);
    watch.until("the lease ends", |state| state.leases.is_empty()).await;
}

/// Promise 5: a permanent record stays, also after it was updated.
pub async fn a_reservation_stays(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let ttl = subject.shortest_ttl();
    subject.put_raw("10.5.1.0-24", br#"{"PublicIP":"192.168.0.1"}"#).await;
    let reservation = listed(&*registry).await.remove(0);
    assert_eq!((reservation.subnet, reservation.term), (subnet(1), Term::Permanent));
    let updated = registry.update(&reservation, &host(1), ttl).await.expect("updates");
    assert_eq!(updated.term, Term::Permanent);
    // A lease that was made at the same time tells when the time to live is surely over.
    let mut watch = Follower::new(subject, registry.watch(None));
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
        | RegistryEvent::Silent(_)
        | RegistryEvent::Heard) => assert_eq!(format!("{event:?}"), "Put"),
    }
}

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
            watch.hears("that the store is silent", |event| matches!(event, RegistryEvent::Silent(_))).await;
            assert!(!watch.state.leases.is_empty(), "silence removed a lease");
            is_no_answer(registry.list().await.map(drop));
            is_no_answer(registry.renew(&first, DAY).await.map(drop));
            subject.start().await;
            watch.hears("that the store is heard", |event| matches!(event, RegistryEvent::Heard)).await;
        }
        sleep(subject.shortest_ttl()).await;
        subject.compact().await;
    }
    many_writes(&*registry, &first).await;
    watch.agrees_with(&*registry).await;
}

/// Records that cannot be read, and whether their key is that of a subnet.
const BAD: [(&str, &[u8], bool); 7] = [
    ("10.5.100.0-24", b"{", true),
    ("10.5.101.0-24", b"", true),
    ("10.5.102.0-24", b"\xff\xfe", true),
    ("10.5.103.0-24", br#"{"PublicIP":"::1"}"#, true),
    ("garbage", br#"{"PublicIP":"192.168.0.9"}"#, false),
    ("old/10.5.1.0-24", br#"{"PublicIP":"192.168.0.9"}"#, false),
    ("10.5.1.0-024", br#"{"PublicIP":"192.168.0.9"}"#, false),
];

/// Promise 9: a record that cannot be read is named beside the good ones.
pub async fn a_bad_record_hides_no_other_in_a_list(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let low = create(&*registry, 1).await;
    for (key, value, _) in BAD {
        subject.put_raw(key, value).await;
    }
    let high = create(&*registry, 200).await;
    let list = registry.list().await.expect("lists");
    assert_eq!(sorted(list.leases), [low, high]);
    let bad: BTreeMap<_, _> = list.bad.into_iter().map(|record| (record.key, record.subnet)).collect();
    let expected = BAD.map(|(key, _, is_subnet)| (key.to_owned(), key.parse().ok().filter(|_| is_subnet)));
    assert_eq!(bad, BTreeMap::from(expected));
}

/// Promise 9: a record that cannot be read is told, and so is all that is written after it, its removal included.
pub async fn a_bad_record_hides_no_other_in_a_watch(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let mut watch = Follower::new(subject, registry.watch(None));
    create(&*registry, 1).await;
    for (i, (key, value, _)) in (2..).zip(BAD) {
        subject.put_raw(key, value).await;
        create(&*registry, i).await;
        watch.agrees_with(&*registry).await;
    }
    assert_eq!(watch.state.bad.len(), BAD.len());
    subject.put_raw(BAD[0].0, host(7).to_record().as_bytes()).await;
    watch.agrees_with(&*registry).await;
    assert_eq!(watch.state.bad.len(), BAD.len() - 1, "a record that was repaired is good");
    for (key, ..) in BAD {
        subject.remove_raw(key).await;
    }
    watch.agrees_with(&*registry).await;
    assert_eq!(watch.state.bad, BTreeSet::new());
    assert!(watch.state.leases.contains_key(&subnet(1)), "a record of another key took it along");
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

fn subnet(third: u8) -> SubnetKey {
    let net = format!("10.5.{third}.0-24");
    net.parse().expect("is a subnet key")
}

fn host(last: u8) -> LeaseAttrs {
    LeaseAttrs::new(Ipv4Addr::new(192, 168, 0, last).into())
}

async fn create(registry: &dyn SubnetRegistry, third: u8) -> Lease {
    let lease = registry.create(subnet(third), &host(third), DAY).await.expect("creates");
    assert_eq!((lease.subnet, lease.term), (subnet(third), Term::Limited));
    assert_eq!(lease.attrs, host(third));
    lease
}

async fn listed(registry: &dyn SubnetRegistry) -> Vec<Lease> {
    sorted(registry.list().await.expect("lists").leases)
}

fn sorted(leases: Vec<Arc<Lease>>) -> Vec<Lease> {
    let mut leases: Vec<_> = leases.into_iter().map(Arc::unwrap_or_clone).collect();
    leases.sort_by_key(|lease| lease.subnet);
    leases
}

fn is_changed(result: Result<(), RegistryError>) {
    assert!(matches!(result, Err(RegistryError::Changed(_))), "want Changed, got {result:?}");
}

fn is_gone(result: Result<(), RegistryError>) {
    assert!(matches!(result, Err(RegistryError::Gone(_))), "want Gone, got {result:?}");
}

fn is_no_answer(result: Result<(), RegistryError>) {
    let is_no_answer = matches!(result, Err(RegistryError::Unavailable(..) | RegistryError::Unknown(..)));
    assert!(is_no_answer, "want Unavailable or Unknown, got {result:?}");
}

fn unexpected(wanted: &str, error: &RegistryError) {
    assert_eq!(format!("{error:?}"), wanted);
}
