//! The promises of [`LeaseManager`], each checked against managers that share a store.
//!
//! A manager's tests say how to get at it by [`LeaseManagerSubject`] and call
//! [`lease_manager_contract!`](crate::lease_manager_contract), which makes a test of every check below. Each check wants
//! a store of its own, and panics where a promise is broken.

mod acquire;
mod cluster;
mod keep;
mod watch;
mod words;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{LeaseAttrs, LeaseManager, SubnetKey, SubnetRegistry};

use super::registry::RegistrySubject;

pub use acquire::*;
pub use keep::*;
pub use watch::*;
pub use words::*;

/// A store without a configuration and without leases, the managers of its hosts, and what only its operator can do.
///
/// [`RegistryBacked`] is one of a [`RegistrySubject`], for the managers of any store; `testing/tests/fed_contract.rs` in the
/// repository is one without a store.
#[async_trait]
pub trait LeaseManagerSubject: Send + Sync {
    /// Opens the manager of host number `host`, as each start of the host does. Leases that it gets last for `ttl`
    /// unless they are renewed, if they end at all.
    async fn open(&self, host: u8, ttl: Duration) -> Arc<dyn LeaseManager>;

    /// Writes the configuration of the network, and tells whether that can be done. If it cannot, it is always
    /// `{"Network":"10.5.0.0/16"}`.
    async fn set_config(&self, text: &str) -> bool;

    /// Takes a subnet away from the host that has it.
    async fn revoke_subnet(&self, subnet: SubnetKey);

    /// Makes a lease without an end, and tells whether there are such.
    async fn reserve(&self, subnet: SubnetKey, attrs: &LeaseAttrs) -> bool {
        let _ = (subnet, attrs);
        false
    }

    /// Makes the record of a subnet one that cannot be read, and tells whether there are records.
    async fn spoil(&self, subnet: SubnetKey) -> bool {
        let _ = subnet;
        false
    }

    /// Makes the store unreachable, and tells whether it could.
    async fn stop(&self) -> bool {
        false
    }

    /// Makes the store reachable again.
    async fn start(&self) {}

    /// How long the store is left unreachable. Checks ask for leases of a day, which are renewed after a third of it: a
    /// subject whose clock is paused can be longer away than that.
    fn outage(&self) -> Duration {
        self.min_ttl().unwrap_or_default()
    }

    /// The shortest time to live that the store grants as it is asked for, if leases end at all.
    fn min_ttl(&self) -> Option<Duration>;

    /// Whether hosts choose their subnets. If not, host number `n` is given 10.5.`n`.0/24, and another one when that is
    /// taken away.
    fn chooses(&self) -> bool {
        true
    }

    /// How long an answer, an event or the end of a lease may be late.
    fn patience(&self) -> Duration;
}

/// Makes a test of each promise of a lease manager.
///
/// ```ignore
/// mod contract {
///     flannel_testing::lease_manager_contract!(#[tokio::test(start_paused = true)] super::Memory::default());
/// }
/// ```
///
/// The first part is the attribute of each test, the second an expression for a fresh
/// [`LeaseManagerSubject`], which may await.
#[macro_export]
macro_rules! lease_manager_contract {
    (#[$test:meta] $subject:expr) => {
        $crate::lease_manager_contract! { @each #[$test] $subject;
            a_lease_is_one_that_the_network_offers
            one_host_has_one_lease
            no_two_hosts_hold_one_subnet
            a_host_gets_its_previous_subnet_if_it_is_free
            a_full_network_says_so
            a_configuration_that_is_missing_or_wrong_is_named
            what_a_host_says_is_told_to_its_peers
            publishing_never_overwrites_another_host
            a_lease_that_is_given_back_is_free
            a_reservation_stays
            a_watch_tells_who_is_there_then_who_comes_changes_and_goes
            a_watch_never_names_the_own_subnet
            a_record_that_cannot_be_read_hides_no_peer
            silence_removes_nobody_and_ends_no_lease
            a_lease_lasts_while_it_is_kept
            a_lost_lease_ends_its_keeping_and_is_taken_again
        }
    };
    (@each #[$test:meta] $subject:expr; $($check:ident)*) => {$(
        #[$test]
        async fn $check() {
            let subject = $subject;
            $crate::contract::manager::$check(&subject).await;
        }
    )*};
}

/// The hosts of a store whose registry is under test too.
pub struct RegistryBacked<S> {
    store: S,
    open: Box<OpenManager>,
    outage: Duration,
}

/// Opens the manager of a host, given its registry, its number, and how long its leases last.
type OpenManager = dyn Fn(Arc<dyn SubnetRegistry>, u8, Duration) -> Arc<dyn LeaseManager> + Send + Sync;

impl<S: RegistrySubject> RegistryBacked<S> {
    /// Takes the store, and what opens the manager of a host: given its registry, its number, and how long its leases
    /// last.
    pub fn new(
        store: S,
        open: impl Fn(Arc<dyn SubnetRegistry>, u8, Duration) -> Arc<dyn LeaseManager> + Send + Sync + 'static,
    ) -> Self {
        let outage = store.min_ttl();
        Self { store, open: Box::new(open), outage }
    }

    /// Leaves the store unreachable for so long, see [`outage`](LeaseManagerSubject::outage).
    #[must_use]
    pub fn with_outage(self, outage: Duration) -> Self {
        Self { outage, ..self }
    }
}

#[async_trait]
impl<S: RegistrySubject> LeaseManagerSubject for RegistryBacked<S> {
    async fn open(&self, host: u8, ttl: Duration) -> Arc<dyn LeaseManager> {
        (self.open)(self.store.open().await, host, ttl)
    }

    async fn set_config(&self, text: &str) -> bool {
        self.store.set_config(text).await;
        true
    }

    async fn revoke_subnet(&self, subnet: SubnetKey) {
        self.store.remove_raw(&subnet.to_string()).await;
    }

    async fn reserve(&self, subnet: SubnetKey, attrs: &LeaseAttrs) -> bool {
        self.store.put_raw(&subnet.to_string(), attrs.to_record().as_bytes()).await;
        true
    }

    async fn spoil(&self, subnet: SubnetKey) -> bool {
        self.store.put_raw(&subnet.to_string(), b"{").await;
        true
    }

    async fn stop(&self) -> bool {
        self.store.stop().await
    }

    async fn start(&self) {
        self.store.start().await;
    }

    fn outage(&self) -> Duration {
        self.outage
    }

    fn min_ttl(&self) -> Option<Duration> {
        Some(self.store.min_ttl())
    }

    fn patience(&self) -> Duration {
        self.store.patience()
    }
}
