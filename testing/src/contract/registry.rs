//! The promises of [`SubnetRegistry`], each checked against a real store.
//!
//! A store's tests say how to get at it by [`RegistrySubject`] and call [`registry_contract!`](crate::registry_contract),
//! which makes a test of every check below. Each check wants a store of its own, and panics where a promise is broken.

mod bad_records;
mod config;
mod follow;
mod terms;
mod watches;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{Lease, RegistryError, SubnetRegistry, Term};

use super::{DAY, host, subnet};

pub use bad_records::*;
pub use config::*;
pub use terms::*;
pub use watches::*;
pub use writes::*;

/// An empty store under test, and what only its operator can do to it.
///
/// `flannel-registry/tests/contract_memory.rs` in the repository is one in memory, `tests/etcd3` has those on etcd.
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
    fn min_ttl(&self) -> Duration;

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
            another_configuration_is_noticed
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

fn is_gone(result: Result<(), RegistryError>) {
    assert!(matches!(result, Err(RegistryError::Gone(_))), "want Gone, got {result:?}");
}
