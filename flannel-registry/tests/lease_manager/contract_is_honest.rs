//! Checks of the contract suite of lease managers: for each check there is a manager that fails it.

#![allow(clippy::wildcard_enum_match_arm, reason = "a broken manager does all but one thing right")]

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{
    KeepEvent, Lease, LeaseAttrs, LeaseChange, LeaseManager, LeaseRequest, ManagerError, NetworkConfig,
    PeerEvent, PublicAddrs, RegistryError, SubnetKey, SubnetRegistry,
};
use flannel_registry::MemoryRegistry;
use flannel_testing::contract::manager::{self, RegistryBacked};
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};

use crate::contract;
use crate::memory::{Memory, OUTAGE};
use crate::site::{config, key};

/// The defect of a manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    TakesWhatItLikes,
    ForgetsWhoItIs,
    NoPreviousLease,
    RefusesNobody,
    NeverGoesBack,
    TakesItBackFromAnother,
    IsSilentWhenFull,
    IsSilentOfItsConfig,
    KeepsOldWords,
    PublishesNothing,
    PublishesOverOthers,
    MovesWhenItPublishes,
    PublishesForEver,
    GivesNothingBack,
    GivesBackWhatIsAnothers,
    EndsReservations,
    NeverCompletes,
    TellsNoDepartures,
    TellsNoChanges,
    TellsItself,
    HidesBadRecords,
    StopsAtABadRecord,
    BelievesSilence,
    LosesInSilence,
    RenewsNothing,
    NeverLoses,
    GoesOnAfterALoss,
}

use Wrong::*;

/// Returns hosts whose managers have a defect.
fn broken(wrong: Wrong) -> RegistryBacked<Memory> {
    let memory = Memory::new();
    let store = memory.store.clone();
    let hosts = RegistryBacked::new(memory, move |registry, host, ttl| {
        let inner = contract::manager(registry, host, ttl);
        Arc::new(Manager { wrong, store: store.clone(), inner, first: Mutex::default() })
    });
    hosts.with_outage(OUTAGE)
}

struct Manager {
    wrong: Wrong,
    store: MemoryRegistry,
    inner: contract::Manager,
    first: Mutex<Option<Lease>>,
}

impl Manager {
    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == wrong
    }

    fn overwrite(&self, subnet: SubnetKey, attrs: &LeaseAttrs) {
        self.store.put_raw(&subnet.to_string(), attrs.to_record().as_bytes());
    }

    /// Removes all leases of the host.
    async fn wipe(&self, public: PublicAddrs) {
        for lease in self.store.list().await.unwrap().leases {
            if lease.is_held_by(&public) {
                self.store.delete(&lease).await.unwrap();
            }
        }
    }
}

#[async_trait]
impl LeaseManager for Manager {
    fn describe(&self) -> String {
        format!("{:?}", self.wrong)
    }

    async fn config(&self) -> Result<NetworkConfig, ManagerError> {
        let unavailable = || RegistryError::Unavailable("store".to_owned(), "not now".into()).into();
        self.inner
            .config()
            .await
            .map_err(|error| if self.is(IsSilentOfItsConfig) { unavailable() } else { error })
    }

    async fn previous_lease(&self, public: PublicAddrs) -> Result<Option<Lease>, ManagerError> {
        let previous = self.inner.previous_lease(public).await?;
        Ok(previous.filter(|_| !self.is(NoPreviousLease)))
    }

    async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError> {
        let LeaseRequest { attrs, mut previous, .. } = request;
        match self.wrong {
            TakesWhatItLikes => {
                let other = config(r#"{"Network":"10.9.0.0/16"}"#);
                return self.inner.acquire(LeaseRequest::new(&other, attrs).with_previous(previous)).await;
            }
            ForgetsWhoItIs => {
                self.wipe(attrs.public).await;
                // Revisions grow.
                let revision = self.store.list().await.unwrap().revision.0;
                previous = Some(key(&format!("10.5.{}.0-24", 100 + revision % 100)));
            }
            RefusesNobody => {
                let subnet = previous.unwrap_or_else(|| key("10.5.9.0-24"));
                self.overwrite(subnet, attrs);
                return Ok(Lease::new(subnet, attrs.clone()));
            }
            NeverGoesBack => previous = None,
            TakesItBackFromAnother => {
                if let Some(subnet) = previous {
                    self.store.remove_raw(&subnet.to_string());
                }
            }
            KeepsOldWords => {
                let mut first = self.first.lock().unwrap().clone();
                if first.is_none() {
                    first = Some(self.inner.acquire(request).await?);
                    self.first.lock().unwrap().clone_from(&first);
                }
                return Ok(Lease { attrs: attrs.clone(), ..first.unwrap() });
            }
            _ => {}
        }
        match self.inner.acquire(request.with_previous(previous)).await {
            Err(ManagerError::OutOfSubnets(_)) if self.is(IsSilentWhenFull) => {
                Err(RegistryError::Unavailable("store".to_owned(), "not now".into()).into())
            }
            result => result,
        }
    }

    async fn publish(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, ManagerError> {
        match self.wrong {
            PublishesNothing => Ok(Lease { attrs: attrs.clone(), ..own.clone() }),
            PublishesOverOthers => {
                self.overwrite(own.subnet, attrs);
                Ok(Lease { attrs: attrs.clone(), ..own.clone() })
            }
            PublishesForEver => Ok(self.store.update(own, attrs, Duration::MAX).await?),
            MovesWhenItPublishes => {
                self.store.remove_raw(&own.subnet.to_string());
                let moved = key("10.5.200.0-24");
                Ok(self.store.create(moved, attrs, Duration::from_secs(9999)).await?)
            }
            _ => self.inner.publish(own, attrs).await,
        }
    }

    fn keep(&self, own: Lease) -> BoxStream<'static, KeepEvent> {
        let is_lost = |event: &KeepEvent| matches!(event, KeepEvent::Lost(_));
        let events = self.inner.keep(own);
        match self.wrong {
            RenewsNothing => stream::once(async { KeepEvent::Permanent }).chain(stream::pending()).boxed(),
            NeverLoses => events
                .filter(move |event| std::future::ready(!is_lost(event)))
                .chain(stream::pending())
                .boxed(),
            GoesOnAfterALoss => events.chain(stream::once(async { KeepEvent::Permanent })).boxed(),
            LosesInSilence => {
                let lost = |event| match event {
                    KeepEvent::RenewalFailed { reason, .. } => KeepEvent::Lost(reason),
                    event => event,
                };
                events.map(lost).boxed()
            }
            _ => events,
        }
    }

    fn watch(&self, own: SubnetKey) -> BoxStream<'static, PeerEvent> {
        let wrong = self.wrong;
        if wrong == TellsItself {
            return self.inner.watch(key("10.5.255.0-24"));
        }
        let mut known = std::collections::BTreeSet::new();
        let mut is_over = false;
        let events = self.inner.watch(own).filter_map(move |mut event| {
            if let PeerEvent::Changed(changes) = &mut event {
                changes.retain(|change| match change {
                    LeaseChange::Put(lease) => known.insert(lease.subnet) || wrong != TellsNoChanges,
                    LeaseChange::Removed(_) | LeaseChange::Released(_) => wrong != TellsNoDepartures,
                });
            }
            let seen = match event {
                PeerEvent::Complete if wrong == NeverCompletes => None,
                PeerEvent::Bad(_) if wrong == HidesBadRecords => None,
                PeerEvent::Bad(_) if wrong == StopsAtABadRecord => {
                    is_over = true;
                    Some(event)
                }
                _ if is_over => None,
                PeerEvent::RegistryUnavailable(reason) if wrong == BelievesSilence => {
                    let all = std::mem::take(&mut known).into_iter().map(LeaseChange::Removed).collect();
                    return std::future::ready(Some(vec![
                        PeerEvent::Changed(all),
                        PeerEvent::RegistryUnavailable(reason),
                    ]));
                }
                event => Some(event),
            };
            std::future::ready(seen.map(|event| vec![event]))
        });
        events.flat_map(stream::iter).boxed()
    }

    async fn release(&self, own: &Lease) -> Result<(), ManagerError> {
        match self.wrong {
            GivesNothingBack => Ok(()),
            GivesBackWhatIsAnothers | EndsReservations => {
                self.store.remove_raw(&own.subnet.to_string());
                Ok(())
            }
            _ => self.inner.release(own).await,
        }
    }
}

/// Defines a test for each defect, with the checks that find it.
macro_rules! found {
    ($($name:ident: $wrong:ident is found by $($check:ident),+;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $name() {
            $(
                let subject = broken($wrong);
                let outcome = AssertUnwindSafe(manager::$check(&subject)).catch_unwind().await;
                assert!(outcome.is_err(), "{} did not find a manager that {:?}", stringify!($check), $wrong);
            )+
        }
    )*};
}

found! {
    a_subnet_of_another_network: TakesWhatItLikes is found by lease_is_within_the_network;
    a_host_that_takes_another_subnet_each_time: ForgetsWhoItIs is found by host_has_one_lease;
    a_previous_lease_that_is_not_returned: NoPreviousLease is found by host_has_one_lease;
    a_subnet_that_is_given_to_all: RefusesNobody is found by subnets_are_unique;
    a_previous_subnet_that_is_not_taken: NeverGoesBack is found by
        previous_subnet_is_reused_if_free;
    a_previous_subnet_that_is_stolen: TakesItBackFromAnother is found by
        previous_subnet_is_reused_if_free;
    a_full_network_that_seems_to_be_away: IsSilentWhenFull is found by full_network_is_an_error;
    a_wrong_configuration_that_seems_to_be_away: IsSilentOfItsConfig is found by
        missing_or_invalid_config_is_named;
    words_that_are_not_written: KeepsOldWords is found by attributes_reach_peers;
    a_publication_that_is_not_written: PublishesNothing is found by attributes_reach_peers;
    a_publication_that_takes_another_subnet: MovesWhenItPublishes is found by attributes_reach_peers;
    a_publication_without_an_end: PublishesForEver is found by kept_lease_does_not_expire;
    a_publication_that_steals: PublishesOverOthers is found by publish_never_overwrites_another_host;
    a_lease_that_is_not_given_back: GivesNothingBack is found by released_subnet_is_free;
    a_lease_of_another_host_that_is_given_back: GivesBackWhatIsAnothers is found by
        released_subnet_is_free;
    a_reservation_that_is_given_back: EndsReservations is found by reservation_is_kept;
    a_watch_that_is_never_complete: NeverCompletes is found by
        watch_reports_peers_then_changes;
    a_departure_that_is_not_told: TellsNoDepartures is found by
        watch_reports_peers_then_changes, lost_lease_is_reported_and_reacquired;
    a_change_that_is_not_told: TellsNoChanges is found by
        watch_reports_peers_then_changes, attributes_reach_peers;
    a_host_that_is_its_own_peer: TellsItself is found by watch_omits_own_subnet;
    a_bad_record_that_is_not_named: HidesBadRecords is found by unreadable_record_hides_no_peer;
    a_bad_record_that_hides_peers: StopsAtABadRecord is found by unreadable_record_hides_no_peer;
    silence_that_removes: BelievesSilence is found by outage_removes_no_peer_and_no_lease;
    silence_that_ends_a_lease: LosesInSilence is found by outage_removes_no_peer_and_no_lease;
    a_lease_that_is_not_renewed: RenewsNothing is found by kept_lease_does_not_expire;
    a_loss_that_is_not_told: NeverLoses is found by lost_lease_is_reported_and_reacquired;
    keeping_that_goes_on_after_the_loss: GoesOnAfterALoss is found by
        lost_lease_is_reported_and_reacquired;
}
