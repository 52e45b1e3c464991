//! The promises of [`SubnetRegistry`], each checked against a real store.
//!
//! A store's tests implement [`RegistrySubject`] and call [`registry_contract!`](crate::registry_contract), which emits a
//! test for every check below. Each check needs a fresh store and panics if the registry breaks a promise.

mod bad_records;
mod config;
mod expiry;
mod follower;
mod watch;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{Lease, RegistryError, SubnetRegistry, Term};

use super::{DAY, host, missing_hook, subnet};

pub use bad_records::*;
pub use config::*;
pub use expiry::*;
pub use watch::*;
pub use writes::*;

/// An empty store under test, and what only its operator can do to it.
///
/// In the repository, `flannel-registry/tests/contract_memory.rs` implements it for the registry in memory and
/// `flannel-registry/tests/etcd3` for etcd.
#[async_trait]
pub trait RegistrySubject: Send + Sync {
    /// Opens the registry as another host.
    async fn open(&self) -> Arc<dyn SubnetRegistry>;

    /// Writes the config of the network.
    async fn set_config(&self, text: &str);

    /// Writes a record that never expires; `key` is relative to the directory of all leases.
    async fn put_raw(&self, key: &str, value: &[u8]);

    /// Removes a record.
    async fn remove_raw(&self, key: &str);

    /// Discards the store's history of changes, as far as the store supports that.
    async fn compact(&self);

    /// Returns the shortest time to live that the store grants exactly.
    fn min_ttl(&self) -> Duration;

    /// Returns how late an answer, an event or the expiry of a lease may be.
    fn patience(&self) -> Duration;

    /// Makes the store unreachable. Skip `stop` if that is impossible.
    async fn stop(&self) {
        missing_hook("stop")
    }

    /// Makes the store reachable again.
    async fn start(&self) {
        missing_hook("stop")
    }

    /// Returns the number of requests that the store has received, where opening and reading a watch count too. Skip
    /// `calls` if it does not count them.
    fn calls(&self) -> Option<u64> {
        None
    }
}

/// The hooks that a subject can skip.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
#[expect(non_camel_case_types, reason = "named like the hooks")]
pub enum RegistryHook {
    calls,
    config_changes,
    stop,
}

/// Emits a test for each promise of a registry.
///
/// ```ignore
/// mod contract {
///     flannel_testing::registry_contract!(#[tokio::test(start_paused = true)] super::Memory::default(), skip: {
///         calls = "the registry in memory makes no requests",
///     });
/// }
/// ```
///
/// The first part is the attribute of each test, the second an expression for a fresh [`RegistrySubject`], which may
/// await. Hooks that the subject lacks are skipped with a reason, see [`contract`](crate::contract): `calls` and `stop`
/// of [`RegistrySubject`], and [`config_changes`](SubnetRegistry::config_changes) of a registry that keeps the default,
/// which never yields.
#[macro_export]
macro_rules! registry_contract {
    (#[$test:meta] $subject:expr $(, skip: { $($hook:ident = $reason:literal),* $(,)? })? $(,)?) => {
        $crate::__contract_hooks! { registry: $($($hook)*)? }
        $crate::registry_contract! { @each #[$test] $subject, [$($($hook = $reason),*)?];
            calls_see_completed_writes()
            concurrent_creates_have_one_winner()
            write_with_a_stale_revision_changes_nothing()
            write_to_a_deleted_lease_fails()
            revisions_increase()
            lease_expires_without_renewal()
            renewed_lease_does_not_expire()
            update_restarts_the_time_to_live()
            reservation_does_not_expire()
            renew_emits_no_event()
            watch_from_a_snapshot_converges()
            watch_from_a_revision_converges()
            watch_from_a_compacted_revision_converges()
            watches_are_independent()
            watch_never_ends()
            watch_survives_outages(stop)
            bad_record_hides_no_other_in_a_list()
            bad_record_hides_no_other_in_a_watch()
            cost_is_independent_of_the_number_of_hosts(calls)
            config_change_is_noticed(config_changes)
            config_change_during_an_outage_is_noticed(config_changes stop)
        }
    };
    (@each #[$test:meta] $subject:expr, $skip:tt; $($check:ident $needs:tt)*) => {$(
        $crate::__contract_test! { $needs $skip {
            #[$test]
            async fn $check() {
                let subject = $subject;
                $crate::contract::registry::$check(&subject).await;
            }
        }}
    )*};
}

async fn create(registry: &dyn SubnetRegistry, third: u8) -> Lease {
    let lease = registry
        .create(subnet(third), &host(third), DAY)
        .await
        .expect("create of a free subnet must succeed");
    assert_eq!(
        (lease.subnet, lease.term),
        (subnet(third), Term::Limited),
        "create must return a limited lease of the requested subnet"
    );
    assert_eq!(lease.attrs, host(third), "create must return the given attributes");
    lease
}

async fn list(registry: &dyn SubnetRegistry) -> Vec<Lease> {
    sorted(registry.list().await.expect("list must succeed").leases)
}

fn sorted(leases: Vec<Arc<Lease>>) -> Vec<Lease> {
    let mut leases: Vec<_> = leases.into_iter().map(Arc::unwrap_or_clone).collect();
    leases.sort_by_key(|lease| lease.subnet);
    leases
}

#[track_caller]
fn assert_gone(call: &str, result: &Result<(), RegistryError>) {
    assert!(
        matches!(result, Err(RegistryError::Gone(_))),
        "{call} of a lease that no longer exists must fail with Gone, got {result:?}"
    );
}
