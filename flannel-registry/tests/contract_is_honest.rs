//! Checks of the contract suite of registries: for each check there is a store that fails it.

#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test may fail in its helpers too")]

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{
    Lease, LeaseAttrs, RegistryError, RegistryEvent, Revision, Snapshot, SubnetKey, SubnetRegistry, Term,
};
use flannel_registry::MemoryRegistry;
use flannel_testing::contract::registry::{self, RegistrySubject};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, future};
use tokio::sync::watch;

/// The defect of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    ListsWhatItListedFirst,
    CreatesOverWhatIsThere,
    IgnoresRevisions,
    MakesAgainWhatIsGone,
    GivesEveryWriteTheSameRevision,
    KeepsLeasesForEver,
    RenewsNothing,
    UpdatesWithoutTime,
    LimitsReservations,
    TellsRenewals,
    DropsNewLeases,
    DropsChangedLeases,
    DropsDeletions,
    DropsSnapshotsAfterARevision,
    TellsTheLastWatchOnly,
    EndsWatches,
    EndsWatchesInSilence,
    ListsUpToABadRecord,
    WatchesUpToABadRecord,
    TakesOtherKeysForSubnets,
    AsksForEachLease,
    NeverTellsOfConfigurations,
}

use Wrong::*;

#[derive(Clone)]
struct Broken {
    wrong: Wrong,
    inner: MemoryRegistry,
    first_list: Arc<std::sync::OnceLock<Snapshot>>,
    watches: Arc<AtomicUsize>,
    calls: Arc<AtomicU64>,
    is_silent: watch::Sender<bool>,
}

impl Broken {
    fn new(wrong: Wrong) -> Self {
        Self {
            wrong,
            inner: MemoryRegistry::new(),
            first_list: Arc::default(),
            watches: Arc::default(),
            calls: Arc::default(),
            is_silent: watch::Sender::default(),
        }
    }

    fn count(&self, calls: usize) {
        self.calls.fetch_add(calls as u64, Ordering::Relaxed);
    }

    /// Returns the current record, for stores that do not compare.
    async fn now(&self, lease: &Lease) -> Lease {
        let leases = self.inner.list().await.unwrap().leases;
        let now = leases.iter().find(|now| now.subnet == lease.subnet);
        now.map_or(lease, |now| now).clone()
    }

    fn corrupt(&self, mut lease: Lease) -> Lease {
        if self.wrong == GivesEveryWriteTheSameRevision {
            lease.revision = Revision(1);
        }
        lease
    }
}

#[async_trait]
impl SubnetRegistry for Broken {
    fn describe(&self) -> String {
        format!("{:?}", self.wrong)
    }

    fn how_to_configure(&self) -> String {
        "MemoryRegistry::set_config".to_owned()
    }

    async fn config(&self) -> Result<Option<String>, RegistryError> {
        self.inner.config().await
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        let mut list = self.inner.list().await?;
        self.count(if self.wrong == AsksForEachLease { list.leases.len() } else { 1 });
        match self.wrong {
            ListsWhatItListedFirst => list = self.first_list.get_or_init(|| list).clone(),
            ListsUpToABadRecord if !list.bad.is_empty() => list.leases.truncate(1),
            TakesOtherKeysForSubnets => {
                for bad in list.bad.iter_mut().filter(|bad| bad.key.contains('/')) {
                    bad.subnet = bad.key.parse().ok();
                }
            }
            _ => {}
        }
        list.leases =
            list.leases.into_iter().map(|lease| self.corrupt(Arc::unwrap_or_clone(lease)).into()).collect();
        Ok(list)
    }

    async fn create(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError> {
        if self.wrong == CreatesOverWhatIsThere {
            self.inner.remove_raw(&subnet.to_string());
        }
        let ttl = if self.wrong == KeepsLeasesForEver { Duration::MAX } else { ttl };
        self.inner.create(subnet, attrs, ttl).await.map(|lease| self.corrupt(lease))
    }

    async fn update(&self, lease: &Lease, attrs: &LeaseAttrs, ttl: Duration) -> Result<Lease, RegistryError> {
        let (mut lease, mut ttl) = (lease.clone(), ttl);
        match self.wrong {
            IgnoresRevisions | GivesEveryWriteTheSameRevision => lease = self.now(&lease).await,
            UpdatesWithoutTime => ttl /= 8,
            LimitsReservations if lease.term == Term::Permanent => {
                self.inner.delete(&lease).await?;
                let lease = self.inner.create(lease.subnet, attrs, ttl).await?;
                return Ok(Lease { term: Term::Permanent, ..lease });
            }
            _ => {}
        }
        match self.inner.update(&lease, attrs, ttl).await {
            Err(RegistryError::Gone(subnet)) if self.wrong == MakesAgainWhatIsGone => {
                self.inner.create(subnet, attrs, ttl).await
            }
            result => result.map(|lease| self.corrupt(lease)),
        }
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError> {
        match self.wrong {
            RenewsNothing => Ok(ttl),
            TellsRenewals => {
                let now = self.now(lease).await;
                self.inner.update(&now, &lease.attrs, ttl).await.map(|_| ttl)
            }
            IgnoresRevisions => self.inner.renew(&self.now(lease).await, ttl).await,
            _ => self.inner.renew(lease, ttl).await,
        }
    }

    async fn delete(&self, lease: &Lease) -> Result<(), RegistryError> {
        match self.wrong {
            IgnoresRevisions | GivesEveryWriteTheSameRevision => {
                self.inner.delete(&self.now(lease).await).await
            }
            _ => self.inner.delete(lease).await,
        }
    }

    fn config_changes(&self) -> BoxStream<'static, ()> {
        match self.wrong {
            NeverTellsOfConfigurations => futures::stream::pending().boxed(),
            _ => self.inner.config_changes(),
        }
    }

    fn watch(&self, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
        let this = self.clone();
        let number = self.watches.fetch_add(1, Ordering::Relaxed) + 1;
        let mut seen_bad = false;
        let mut known = std::collections::BTreeSet::new();
        let passes = move |event: &RegistryEvent| {
            let is_bad = matches!(event, RegistryEvent::Bad(_));
            let hidden = seen_bad;
            seen_bad |= is_bad;
            let is_new = match event {
                RegistryEvent::Put(lease) => known.insert(lease.subnet),
                RegistryEvent::Snapshot(snapshot) => {
                    known.extend(snapshot.leases.iter().map(|lease| lease.subnet));
                    false
                }
                _ => false,
            };
            if this.wrong == AsksForEachLease {
                this.count(1);
            }
            match (this.wrong, event) {
                (DropsNewLeases, RegistryEvent::Put(lease)) => {
                    // The markers of the checks pass, or every check would only find missing events.
                    !is_new || lease.subnet.to_string() == "10.5.255.0-24"
                }
                (DropsChangedLeases, RegistryEvent::Put(_)) => is_new,
                (DropsDeletions, RegistryEvent::Deleted(..) | RegistryEvent::Released(..)) => false,
                (DropsSnapshotsAfterARevision, RegistryEvent::Snapshot(_)) => after.is_none(),
                (TellsTheLastWatchOnly, _) => this.watches.load(Ordering::Relaxed) == number,
                (WatchesUpToABadRecord, _) => !hidden,
                _ => true,
            }
        };
        let mut passes = passes;
        let events = self.inner.watch(after).filter(move |event| future::ready(passes(event)));
        match self.wrong {
            EndsWatches => events.take(3).boxed(),
            EndsWatchesInSilence => {
                let mut is_silent = self.is_silent.subscribe();
                events
                    .take_until(async move { drop(is_silent.wait_for(|is_silent| *is_silent).await) })
                    .boxed()
            }
            _ => events.boxed(),
        }
    }
}

#[async_trait]
impl RegistrySubject for Broken {
    async fn open(&self) -> Arc<dyn SubnetRegistry> {
        Arc::new(self.clone())
    }

    async fn set_config(&self, text: &str) {
        self.inner.set_config(text);
    }

    async fn put_raw(&self, key: &str, value: &[u8]) {
        self.inner.put_raw(key, value);
    }

    async fn remove_raw(&self, key: &str) {
        self.inner.remove_raw(key);
    }

    async fn compact(&self) {
        self.inner.compact();
    }

    async fn stop(&self) {
        self.is_silent.send_replace(true);
    }

    async fn start(&self) {
        self.is_silent.send_replace(false);
    }

    fn min_ttl(&self) -> Duration {
        Duration::from_millis(100)
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(10)
    }

    fn calls(&self) -> Option<u64> {
        Some(self.calls.load(Ordering::Relaxed))
    }
}

/// Defines a test for each defect, with the checks that find it.
macro_rules! found {
    ($($name:ident: $wrong:ident is found by $($check:ident),+;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $name() {
            $(
                let subject = Broken::new($wrong);
                let outcome = AssertUnwindSafe(registry::$check(&subject)).catch_unwind().await;
                assert!(outcome.is_err(), "{} did not find a store that {:?}", stringify!($check), $wrong);
            )+
        }
    )*};
}

found! {
    a_list_that_is_old: ListsWhatItListedFirst is found by calls_see_completed_writes;
    a_create_that_overwrites: CreatesOverWhatIsThere is found by concurrent_creates_have_one_winner;
    a_store_that_does_not_compare: IgnoresRevisions is found by
        write_with_a_stale_revision_changes_nothing, write_to_a_deleted_lease_fails;
    an_update_that_creates: MakesAgainWhatIsGone is found by write_to_a_deleted_lease_fails;
    a_revision_that_stands_still: GivesEveryWriteTheSameRevision is found by
        revisions_increase;
    a_lease_without_an_end: KeepsLeasesForEver is found by
        lease_expires_without_renewal, renewed_lease_does_not_expire;
    a_renewal_without_effect: RenewsNothing is found by renewed_lease_does_not_expire;
    an_update_that_gives_no_time: UpdatesWithoutTime is found by
        update_restarts_the_time_to_live;
    a_reservation_that_ends: LimitsReservations is found by reservation_does_not_expire;
    a_renewal_that_is_told: TellsRenewals is found by renew_emits_no_event;
    a_new_lease_that_is_not_told: DropsNewLeases is found by
        watch_from_a_snapshot_converges,
        watch_from_a_revision_converges,
        bad_record_hides_no_other_in_a_watch, watches_are_independent;
    a_change_that_is_not_told: DropsChangedLeases is found by
        watch_from_a_snapshot_converges,
        watch_from_a_revision_converges;
    a_deletion_that_is_not_told: DropsDeletions is found by
        lease_expires_without_renewal,
        update_restarts_the_time_to_live,
        watch_from_a_snapshot_converges,
        watch_from_a_revision_converges;
    a_gap_in_the_history_that_is_not_told: DropsSnapshotsAfterARevision is found by
        watch_from_a_compacted_revision_converges;
    a_watch_that_takes_events_from_another: TellsTheLastWatchOnly is found by watches_are_independent;
    a_watch_that_ends: EndsWatches is found by watch_never_ends;
    a_watch_that_ends_when_the_store_falls_silent: EndsWatchesInSilence is found by
        watch_survives_outages, config_change_during_an_outage_is_noticed;
    a_bad_record_that_hides_others_in_a_list: ListsUpToABadRecord is found by
        bad_record_hides_no_other_in_a_list;
    a_bad_record_that_hides_others_in_a_watch: WatchesUpToABadRecord is found by
        bad_record_hides_no_other_in_a_watch;
    a_key_that_is_taken_for_another: TakesOtherKeysForSubnets is found by
        bad_record_hides_no_other_in_a_list;
    a_configuration_that_nobody_hears_of: NeverTellsOfConfigurations is found by
        config_change_is_noticed;
    a_call_for_each_lease: AsksForEachLease is found by cost_is_independent_of_the_number_of_hosts;
}
