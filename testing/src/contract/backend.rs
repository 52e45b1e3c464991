//! The promises of [`Backend`], each checked on a host.
//!
//! A backend's tests say how to get at a host by [`BackendSubject`] and call
//! [`backend_contract!`](crate::backend_contract), which makes a test of every check below. Each check wants a host of
//! its own, and panics where a promise is broken.

mod failures;
mod kernel;
mod life;
mod peers;
mod run;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use flannel_core::{ExternalInterface, LeaseAttrs, NetworkConfig, OpenBackend, SubnetKey};

#[cfg(doc)]
use flannel_core::Backend;

pub use failures::*;
pub use kernel::kernel_objects;
pub use life::*;
pub use peers::*;

/// A host under test on which no backend ever ran, and what anybody sees of it and does to it.
///
/// Its own subnet is 10.5.1.0/24. Its peers have the subnets 10.5.2.0/24 to 10.5.9.0/24 and addresses in
/// 192.168.64.0/24, the network of its interface; none of them need exist. `flannel-backend-vxlan/tests/contract.rs` in the
/// repository is one in namespaces of the kernel, `testing/tests/backend_contract.rs` one in memory.
pub trait BackendSubject {
    /// Opens backends on the host, as each start of a program does.
    fn opener(&self) -> Box<dyn OpenBackend>;

    /// The network: 10.5.0.0/16, and the backend's options.
    fn config(&self) -> NetworkConfig;

    /// The interface that carries the traffic.
    fn external(&self) -> ExternalInterface;

    /// What peer number `n` says about itself that has the same backend and this address.
    fn peer(&self, n: u8, public: Ipv4Addr) -> LeaseAttrs;

    /// What a peer says about itself that this backend cannot reach, if there is such a one.
    fn unreachable_peer(&self, public: Ipv4Addr) -> Option<LeaseAttrs> {
        let _ = public;
        None
    }

    /// Where the host sends what goes to each peer's subnet: to which public address.
    fn peer_destinations(&self) -> BTreeMap<SubnetKey, IpAddr>;

    /// All objects on the host that a backend could make or touch, a line for each, in any order.
    /// [`kernel_objects`] are those of the kernel.
    fn objects(&self) -> Vec<String>;

    /// Puts objects on the host that are not the backend's, as like to its own as can be.
    fn add_foreign_objects(&self);

    /// Undoes behind the backend's back what it made for a peer, and tells whether that can be done.
    fn undo(&self, subnet: SubnetKey) -> bool {
        let _ = subnet;
        false
    }

    /// Lets what is to be made for a peer fail from now on, and tells whether that can be done.
    fn block(&self, subnet: SubnetKey) -> bool {
        let _ = subnet;
        false
    }

    /// Lets it succeed again.
    fn unblock(&self, subnet: SubnetKey) {
        let _ = subnet;
    }

    /// Values of `Backend` in the configuration that cannot be used, each with the option that is wrong.
    fn invalid_options(&self) -> Vec<(&'static str, &'static str)>;

    /// Values of `Backend` to which the backend comes from the one in `config` without a restart, with the same peers.
    fn other_options(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Whether the backend carries traffic at all.
    fn carries_traffic(&self) -> bool {
        true
    }

    /// Whether what the backend makes outlives it and is found again by the next one.
    fn adopts(&self) -> bool {
        true
    }

    /// How long the backend may take to notice what somebody undid, on a machine that does much else.
    fn drift_timeout(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// How long after a pass the host may take to be as it should be. Zero for a backend that does all in the pass.
    fn patience(&self) -> Duration {
        Duration::ZERO
    }
}

/// Makes a test of each promise of a backend.
///
/// ```ignore
/// mod contract {
///     flannel_testing::backend_contract!(super::Host::new());
/// }
/// ```
///
/// It takes an expression for a fresh [`BackendSubject`].
#[macro_export]
macro_rules! backend_contract {
    ($subject:expr) => {
        $crate::backend_contract! { @each $subject;
            the_host_is_as_it_should_be_for_exactly_these_peers
            a_hint_of_what_changed_is_enough
            a_pass_that_finds_everything_in_order_writes_nothing
            a_new_start_takes_over_what_is_there
            nothing_is_removed_before_the_peers_are_complete
            nothing_foreign_is_touched
            a_peer_that_cannot_be_reached_is_named_in_every_pass
            traffic_is_counted_for_peers_only
            an_object_that_cannot_be_written_delays_no_other
            what_failed_is_tried_again_with_growing_pauses
            what_somebody_undoes_is_noticed_and_made_again
            what_a_host_says_stands
            a_wrong_option_is_named
            another_mtu_of_the_interface_is_taken_in
            another_lease_is_taken_in
            another_configuration_is_taken_in
            a_configuration_that_cannot_be_used_changes_nothing
            dropping_keeps_everything
            removing_leaves_nothing
            a_plan_writes_nothing_and_is_what_is_then_done
            devices_are_described_as_they_are
        }
    };
    (@each $subject:expr; $($check:ident)*) => {$(
        #[test]
        fn $check() {
            let subject = $subject;
            $crate::contract::backend::$check(&subject);
        }
    )*};
}
