//! The promises of [`LeaseManager`], each checked against managers that share a store.
//!
//! A manager's tests implement [`LeaseManagerSubject`] and call
//! [`lease_manager_contract!`](crate::lease_manager_contract), which emits a test for every check below. Each check needs
//! a fresh store and panics if the manager breaks a promise.

mod acquire;
mod attributes;
mod joined;
mod keep;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{LeaseAttrs, LeaseManager, SubnetKey, SubnetRegistry};

use super::missing_hook;
use super::registry::RegistrySubject;

pub use acquire::*;
pub use attributes::*;
pub use keep::*;
pub use watch::*;

/// A store without a config and leases, the managers of its hosts, and what only its operator can do.
///
/// [`RegistryBacked`] implements it for any [`RegistrySubject`]; in the repository, `testing/tests/static_manager_contract.rs`
/// implements it without a store.
#[async_trait]
pub trait LeaseManagerSubject: Send + Sync {
    /// Opens the manager of host number `host`, once per start of the host. Its leases expire after `ttl` without
    /// renewal, if they expire at all.
    async fn open(&self, host: u8, ttl: Duration) -> Arc<dyn LeaseManager>;

    /// Writes the config of the network and returns true. A subject whose config is fixed at
    /// `{"Network":"10.5.0.0/16"}` returns false and skips `set_config`.
    async fn set_config(&self, text: &str) -> bool;

    /// Revokes the lease of a subnet.
    async fn revoke_subnet(&self, subnet: SubnetKey);

    /// Creates a lease that never expires. Skip `reserve` if there are none.
    async fn reserve(&self, subnet: SubnetKey, attrs: &LeaseAttrs) {
        let _ = (subnet, attrs);
        missing_hook("reserve")
    }

    /// Makes the record of a subnet unreadable. Skip `corrupt_record` if there are no records.
    async fn corrupt_record(&self, subnet: SubnetKey) {
        let _ = subnet;
        missing_hook("corrupt_record")
    }

    /// Makes the store unreachable. Skip `stop` if that is impossible.
    async fn stop(&self) {
        missing_hook("stop")
    }

    /// Makes the store reachable again.
    async fn start(&self) {
        missing_hook("stop")
    }

    /// Returns how long a check leaves the store unreachable. The leases of a check last a day and are renewed after a
    /// third of that; a subject with a paused clock can return more.
    fn outage(&self) -> Duration {
        self.min_ttl().unwrap_or_default()
    }

    /// Returns the shortest time to live that the store grants exactly. Return `None` and skip `min_ttl` if leases do
    /// not expire.
    fn min_ttl(&self) -> Option<Duration>;

    /// Returns the subnet that is assigned to host number `host` now, which need not be in the network, and changes after
    /// a revocation. Return `None` if hosts choose their subnets; otherwise skip `chooses_subnet`.
    fn assigned_subnet(&self, host: u8) -> Option<SubnetKey> {
        let _ = host;
        None
    }

    /// Returns what peers see of host number `host` when it publishes these attributes: the same, unless the manager
    /// overrides some.
    fn published(&self, host: u8, attrs: LeaseAttrs) -> LeaseAttrs {
        let _ = host;
        attrs
    }

    /// Returns how late an answer, an event or the expiry of a lease may be.
    fn patience(&self) -> Duration;
}

/// The hooks that a subject can skip.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
#[expect(non_camel_case_types, reason = "named like the hooks")]
pub enum ManagerHook {
    chooses_subnet,
    corrupt_record,
    min_ttl,
    reserve,
    set_config,
    stop,
}

/// Emits a test for each promise of a lease manager.
///
/// ```ignore
/// mod contract {
///     flannel_testing::lease_manager_contract!(#[tokio::test(start_paused = true)] super::Memory::default());
/// }
/// ```
///
/// The first part is the attribute of each test, the second an expression for a fresh [`LeaseManagerSubject`], which may
/// await. Hooks that the subject lacks are skipped with a reason, see [`contract`](crate::contract): `chooses_subnet`,
/// `corrupt_record`, `min_ttl`, `reserve`, `set_config` and `stop`.
#[macro_export]
macro_rules! lease_manager_contract {
    (#[$test:meta] $subject:expr $(, skip: { $($hook:ident = $reason:literal),* $(,)? })? $(,)?) => {
        $crate::__contract_hooks! { manager: $($($hook)*)? }
        $crate::lease_manager_contract! { @each #[$test] $subject, [$($($hook = $reason),*)?];
            lease_is_within_the_network()
            host_has_one_lease()
            subnets_are_unique()
            previous_subnet_is_reused_if_free(chooses_subnet)
            full_network_is_an_error(set_config)
            missing_or_invalid_config_is_named(set_config)
            attributes_reach_peers()
            publish_never_overwrites_another_host()
            released_subnet_is_free(chooses_subnet)
            reservation_is_kept(reserve)
            watch_reports_peers_then_changes()
            watch_omits_own_subnet()
            unreadable_record_hides_no_peer(corrupt_record)
            outage_removes_no_peer_and_no_lease(stop)
            kept_lease_does_not_expire(min_ttl)
            lost_lease_is_reported_and_reacquired()
        }
    };
    (@each #[$test:meta] $subject:expr, $skip:tt; $($check:ident $needs:tt)*) => {$(
        $crate::__contract_test! { $needs $skip {
            #[$test]
            async fn $check() {
                let subject = $subject;
                $crate::contract::manager::$check(&subject).await;
            }
        }}
    )*};
}

/// The lease managers over a registry, as a subject.
pub struct RegistryBacked<S> {
    store: S,
    open: Box<OpenManager>,
    outage: Duration,
}

/// Opens the manager of a host from its registry, its number and the time to live of its leases.
type OpenManager = dyn Fn(Arc<dyn SubnetRegistry>, u8, Duration) -> Arc<dyn LeaseManager> + Send + Sync;

impl<S: RegistrySubject> RegistryBacked<S> {
    /// Combines a store with a function that opens the manager of a host from its registry, its number and the time to
    /// live of its leases.
    pub fn new(
        store: S,
        open: impl Fn(Arc<dyn SubnetRegistry>, u8, Duration) -> Arc<dyn LeaseManager> + Send + Sync + 'static,
    ) -> Self {
        let outage = store.min_ttl();
        Self { store, open: Box::new(open), outage }
    }

    /// Sets how long a check leaves the store unreachable, see [`outage`](LeaseManagerSubject::outage).
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

    async fn reserve(&self, subnet: SubnetKey, attrs: &LeaseAttrs) {
        self.store.put_raw(&subnet.to_string(), attrs.to_record().as_bytes()).await;
    }

    async fn corrupt_record(&self, subnet: SubnetKey) {
        self.store.put_raw(&subnet.to_string(), b"{").await;
    }

    async fn stop(&self) {
        self.store.stop().await;
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
