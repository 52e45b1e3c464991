//! The promises of [`Backend`], each checked on a host.
//!
//! A backend's tests implement [`BackendSubject`] for a host and call [`backend_contract!`](crate::backend_contract),
//! which emits a test for every check below. Each check needs a fresh host and panics if the backend breaks a promise.

mod failures;
mod kernel;
mod lifecycle;
mod peers;
mod run;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use flannel_core::{ExternalInterface, LeaseAttrs, NetworkConfig, OpenBackend, SubnetKey};

#[cfg(doc)]
use flannel_core::Backend;

use super::missing_hook;

pub use failures::*;
pub use kernel::kernel_objects;
pub use lifecycle::*;
pub use peers::*;

/// A host under test on which no backend has run, and the ways to observe and change it.
///
/// Its own subnet is 10.5.1.0/24. Its peers have the subnets 10.5.2.0/24 to 10.5.9.0/24 and addresses in
/// 192.168.64.0/24, the network of its external interface; they need not exist. In the repository,
/// `flannel-backend-vxlan/tests/contract.rs` implements it in network namespaces, `testing/tests/backend_contract.rs` in
/// memory.
pub trait BackendSubject {
    /// Returns an opener of the backend on the host, one per start of a program.
    fn opener(&self) -> Box<dyn OpenBackend>;

    /// Returns the config of the network: 10.5.0.0/16 and the backend's options.
    fn config(&self) -> NetworkConfig;

    /// Returns the external interface.
    fn external(&self) -> ExternalInterface;

    /// Returns the attributes of peer number `n`, which runs the same backend at this address.
    fn peer(&self, n: u8, public: Ipv4Addr) -> LeaseAttrs;

    /// Returns the attributes of a peer that this backend cannot reach. Skip `unreachable_peer` if it reaches every
    /// peer.
    fn unreachable_peer(&self, public: Ipv4Addr) -> Option<LeaseAttrs> {
        let _ = public;
        None
    }

    /// Returns the endpoint that the backend uses for a peer with these attributes: its IPv4 address, unless the underlay
    /// is IPv6.
    fn endpoint_of(&self, attrs: &LeaseAttrs) -> Option<IpAddr> {
        attrs.public.v4.map(Into::into)
    }

    /// Returns a directory that the backend keeps its state in, the same for each start. `None` by default.
    fn state_dir(&self) -> Option<PathBuf> {
        None
    }

    /// Returns the public address to which the host sends the traffic for each peer's subnet.
    fn peer_destinations(&self) -> BTreeMap<SubnetKey, IpAddr>;

    /// Lists all objects on the host that a backend could create or change, one line each, in any order.
    /// [`kernel_objects`] returns those of the kernel.
    fn objects(&self) -> Vec<String>;

    /// Adds objects that are not the backend's but resemble its own. Skip `add_foreign_objects` if the host can hold
    /// no others.
    fn add_foreign_objects(&self);

    /// Removes what the backend created for a peer without telling it. Skip `undo` if that is impossible.
    fn undo(&self, subnet: SubnetKey) {
        let _ = subnet;
        missing_hook("undo")
    }

    /// Makes writes for a peer fail from now on. Skip `block` if they cannot fail.
    fn block(&self, subnet: SubnetKey) {
        let _ = subnet;
        missing_hook("block")
    }

    /// Makes writes for a peer succeed again.
    fn unblock(&self, subnet: SubnetKey) {
        let _ = subnet;
        missing_hook("block")
    }

    /// Returns values of `Backend` that are invalid, each with the name of the invalid option. Skip `invalid_options`
    /// if the backend has no options.
    fn invalid_options(&self) -> Vec<(&'static str, &'static str)>;

    /// Returns values of `Backend` to which the backend can reconfigure without a restart, keeping its peers. Skip
    /// `other_options` if every change needs a restart.
    fn other_options(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Returns whether the backend carries traffic at all.
    fn carries_traffic(&self) -> bool {
        true
    }

    /// Returns whether the backend's objects outlive it and are adopted by the next start. Return false and skip
    /// `adopts` if they do not.
    fn adopts(&self) -> bool {
        true
    }

    /// Returns how long the backend may take to notice drift on a busy machine.
    fn drift_timeout(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// Returns how long after a sync the host may take to converge. Zero for a backend that does all work in `sync`.
    fn patience(&self) -> Duration {
        Duration::ZERO
    }
}

/// The hooks that a subject can skip.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
#[expect(non_camel_case_types, reason = "named like the hooks")]
pub enum BackendHook {
    add_foreign_objects,
    adopts,
    block,
    devices,
    invalid_options,
    other_options,
    plan,
    traffic,
    undo,
    unreachable_peer,
}

/// Emits a test for each promise of a backend.
///
/// ```ignore
/// mod contract {
///     flannel_testing::backend_contract!(super::Host::new(), skip: {
///         plan = "commands have no dry run",
///     });
/// }
/// ```
///
/// The first part is an expression for a fresh [`BackendSubject`]. Hooks that the subject lacks are skipped with a reason,
/// see [`contract`](crate::contract): `add_foreign_objects`, `adopts`, `block`, `invalid_options`, `other_options`,
/// `undo` and `unreachable_peer` of [`BackendSubject`], `devices` and `traffic` of [`Backend`] and
/// `plan` of [`OpenBackend`].
#[macro_export]
macro_rules! backend_contract {
    ($subject:expr $(, skip: { $($hook:ident = $reason:literal),* $(,)? })? $(,)?) => {
        $crate::__contract_hooks! { backend: $($($hook)*)? }
        $crate::backend_contract! { @each $subject, [$($($hook = $reason),*)?];
            host_matches_the_peer_set()
            dirty_hint_is_sufficient()
            sync_without_changes_writes_nothing()
            restart_adopts_existing_objects()
            nothing_is_removed_before_peers_are_complete(adopts)
            foreign_objects_are_unchanged(add_foreign_objects)
            unreachable_peer_is_reported_in_every_sync(unreachable_peer)
            traffic_is_counted_for_current_peers(traffic)
            failed_object_does_not_delay_others(block)
            failed_object_is_retried_with_backoff(block)
            drift_is_noticed_and_repaired(undo)
            attributes_and_mtu_are_stable()
            invalid_option_is_named(invalid_options)
            update_interface_applies_a_new_mtu()
            configure_applies_a_new_lease()
            reconfigure_applies_new_options(other_options)
            reconfigure_with_invalid_options_changes_nothing(invalid_options)
            drop_keeps_everything(adopts)
            remove_leaves_nothing()
            plan_writes_nothing_and_is_accurate(plan)
            devices_are_described_accurately(devices)
        }
    };
    (@each $subject:expr, $skip:tt; $($check:ident $needs:tt)*) => {$(
        $crate::__contract_test! { $needs $skip {
            #[test]
            fn $check() {
                let subject = $subject;
                $crate::contract::backend::$check(&subject);
            }
        }}
    )*};
}
