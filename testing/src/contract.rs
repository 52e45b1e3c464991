//! Contract suites: the numbered promises of a trait as tests that every implementation can run.
//!
//! A subject implements hooks that only its author can write, such as "make the write of this peer's objects fail". A
//! hook that makes no sense for a subject is skipped with a reason, and `cargo test` lists the checks that need it as
//! ignored, each with that reason:
//!
//! ```ignore
//! flannel_testing::backend_contract!(Host::new(), skip: {
//!     block = "programming a peer cannot fail: it is a map insert",
//!     adopts = "the device is removed when the backend closes its descriptor",
//! });
//! ```

pub mod backend;
pub mod manager;
pub mod registry;
pub mod table;

use std::net::Ipv4Addr;
use std::time::Duration;

use flannel_core::{LeaseAttrs, SubnetKey};

/// A time to live that no check outlasts.
const DAY: Duration = Duration::from_secs(86_400);

/// Returns the subnet of host number `n`.
fn subnet(n: u8) -> SubnetKey {
    format!("10.5.{n}.0-24").parse().expect("a valid subnet key")
}

/// Returns the attributes of host number `n`.
fn host(n: u8) -> LeaseAttrs {
    LeaseAttrs::new(Ipv4Addr::new(192, 168, 0, n).into())
}

/// Fails a check whose subject lacks a hook.
#[expect(clippy::panic, reason = "a failed check panics")]
#[track_caller]
fn missing_hook(hook: &str) -> ! {
    panic!(
        "the subject lacks `{hook}`: implement it, or skip it with a reason (`skip: {{ {hook} = \"…\" }}`)"
    )
}

/// Emits one test of a contract suite: `(needed hooks) [skipped hooks] { test }`. The test is ignored with the reason of
/// the first skipped hook that it needs.
#[doc(hidden)]
#[macro_export]
macro_rules! __contract_test {
    (@find () $rest:tt $skip:tt { $($test:tt)* }) => { $($test)* };
    (@find (add_foreign_objects $($more:tt)*) [add_foreign_objects = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (adopts $($more:tt)*) [adopts = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (block $($more:tt)*) [block = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (calls $($more:tt)*) [calls = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (chooses_subnet $($more:tt)*) [chooses_subnet = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (config_changes $($more:tt)*) [config_changes = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (corrupt_record $($more:tt)*) [corrupt_record = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (devices $($more:tt)*) [devices = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (invalid_options $($more:tt)*) [invalid_options = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (min_ttl $($more:tt)*) [min_ttl = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (other_options $($more:tt)*) [other_options = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (plan $($more:tt)*) [plan = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (reserve $($more:tt)*) [reserve = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (set_config $($more:tt)*) [set_config = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (stop $($more:tt)*) [stop = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (traffic $($more:tt)*) [traffic = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (undo $($more:tt)*) [undo = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (unreachable_peer $($more:tt)*) [unreachable_peer = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find (unwritable $($more:tt)*) [unwritable = $reason:literal $($rest:tt)*] $skip:tt $test:tt) => {
        $crate::__contract_test! { @ignore $reason $test }
    };
    (@find $needs:tt [$other:ident = $reason:literal $(, $($rest:tt)*)?] $skip:tt $test:tt) => {
        $crate::__contract_test! { @find $needs [$($($rest)*)?] $skip $test }
    };
    (@find ($hook:ident $($more:ident)*) [] $skip:tt $test:tt) => {
        $crate::__contract_test! { @find ($($more)*) $skip $skip $test }
    };
    (@ignore $reason:literal { $($test:tt)* }) => { #[ignore = $reason] $($test)* };
    ($needs:tt $skip:tt $test:tt) => { $crate::__contract_test! { @find $needs $skip $skip $test } };
}

/// Rejects a skipped hook that the suite does not have.
#[doc(hidden)]
#[macro_export]
macro_rules! __contract_hooks {
    (backend: $($hook:ident)*) => { $(const _: $crate::contract::backend::BackendHook = $crate::contract::backend::BackendHook::$hook;)* };
    (manager: $($hook:ident)*) => { $(const _: $crate::contract::manager::ManagerHook = $crate::contract::manager::ManagerHook::$hook;)* };
    (registry: $($hook:ident)*) => { $(const _: $crate::contract::registry::RegistryHook = $crate::contract::registry::RegistryHook::$hook;)* };
    (table: $($hook:ident)*) => { $(const _: $crate::contract::table::TableHook = $crate::contract::table::TableHook::$hook;)* };
}
