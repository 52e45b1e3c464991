//! The fake backend keeps the promises of every backend, and the suite detects backends that do not: for each check there
//! is a defect that fails it.

#![allow(clippy::unwrap_used, reason = "a test may fail in its helpers too")]

mod defective;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use flannel_core::{BackendAttrs, ExternalInterface, LeaseAttrs, NetworkConfig, OpenBackend, SubnetKey};
use flannel_testing::FakeBackend;
use flannel_testing::contract::backend::{self, BackendSubject};

use defective::{Defect::*, DefectiveBackend};

/// An interface; the backends here use only its MTU.
fn external() -> ExternalInterface {
    ExternalInterface::new("eth0", 2, 1500, Ipv4Addr::new(192, 168, 64, 1))
}

fn config() -> NetworkConfig {
    NetworkConfig::parse(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"toy"}}"#).unwrap()
}

struct Fake(FakeBackend);

impl BackendSubject for Fake {
    fn opener(&self) -> Box<dyn OpenBackend> {
        Box::new(self.0.clone())
    }

    fn config(&self) -> NetworkConfig {
        config()
    }

    fn external(&self) -> ExternalInterface {
        external()
    }

    fn peer(&self, _: u8, public: Ipv4Addr) -> LeaseAttrs {
        LeaseAttrs::new(public.into())
    }

    fn peer_destinations(&self) -> BTreeMap<SubnetKey, IpAddr> {
        let peers = self.0.peers().into_iter();
        peers.map(|(subnet, attrs)| (subnet, attrs.public.v4.unwrap().into())).collect()
    }

    fn objects(&self) -> Vec<String> {
        self.peer_destinations().into_iter().map(|(subnet, public)| format!("{subnet} at {public}")).collect()
    }

    fn add_foreign_objects(&self) {}

    fn undo(&self, subnet: SubnetKey) {
        self.0.disturb(subnet);
    }

    fn block(&self, subnet: SubnetKey) {
        self.0.refuse(subnet, true);
    }

    fn unblock(&self, subnet: SubnetKey) {
        self.0.refuse(subnet, false);
    }

    fn invalid_options(&self) -> Vec<(&'static str, &'static str)> {
        Vec::new()
    }
}

mod fake {
    flannel_testing::backend_contract!(super::Fake(super::FakeBackend::new()), skip: {
        add_foreign_objects = "its host holds nothing but peers",
        devices = "it has no device",
        invalid_options = "it has no options",
        other_options = "it has no options",
        traffic = "it carries no traffic",
        unreachable_peer = "it accepts every peer",
    });
}

impl BackendSubject for DefectiveBackend {
    fn opener(&self) -> Box<dyn OpenBackend> {
        Box::new(self.clone())
    }

    fn config(&self) -> NetworkConfig {
        config()
    }

    fn external(&self) -> ExternalInterface {
        external()
    }

    fn peer(&self, _: u8, public: Ipv4Addr) -> LeaseAttrs {
        BackendAttrs::new("toy".to_owned().into()).at(public.into())
    }

    fn unreachable_peer(&self, public: Ipv4Addr) -> Option<LeaseAttrs> {
        Some(LeaseAttrs::new(public.into()))
    }

    fn peer_destinations(&self) -> BTreeMap<SubnetKey, IpAddr> {
        self.state().peers.iter().map(|(subnet, public)| (*subnet, (*public).into())).collect()
    }

    fn objects(&self) -> Vec<String> {
        self.all_objects()
    }

    fn add_foreign_objects(&self) {
        self.state().foreign = vec!["a foreign device".to_owned(), "a foreign route".to_owned()];
    }

    fn undo(&self, subnet: SubnetKey) {
        self.remove_peer(subnet);
    }

    fn block(&self, subnet: SubnetKey) {
        self.state().blocked.insert(subnet);
    }

    fn unblock(&self, subnet: SubnetKey) {
        self.state().blocked.remove(&subnet);
    }

    fn invalid_options(&self) -> Vec<(&'static str, &'static str)> {
        vec![(r#"{"Type":"toy","Size":"large"}"#, "Size")]
    }

    fn other_options(&self) -> Vec<&'static str> {
        vec![r#"{"Type":"toy","Name":"toy1"}"#]
    }

    /// The backend notices drift at once, or never.
    fn drift_timeout(&self) -> Duration {
        Duration::from_millis(200)
    }
}

mod without_a_defect {
    flannel_testing::backend_contract!(super::DefectiveBackend::new(None));
}

/// Emits a test per defect, which asserts that each of these checks fails.
macro_rules! detected {
    ($($name:ident: $defect:ident by $($check:ident),+;)*) => {$(
        #[test]
        fn $name() {
            $(
                let backend = DefectiveBackend::new(Some($defect));
                let outcome = catch_unwind(AssertUnwindSafe(|| backend::$check(&backend)));
                assert!(outcome.is_err(), "{} must fail for the defect {:?}", stringify!($check), $defect);
            )+
        }
    )*};
}

detected! {
    ignored_address_change: IgnoresMovedPeers by host_matches_the_peer_set, dirty_hint_is_sufficient;
    stale_peer: KeepsStalePeers by
        host_matches_the_peer_set, dirty_hint_is_sufficient, nothing_is_removed_before_peers_are_complete;
    ignored_dirty_hint: IgnoresDirtyHint by dirty_hint_is_sufficient;
    rewrite_of_existing_objects: RewritesExisting by
        sync_without_changes_writes_nothing, restart_adopts_existing_objects;
    wipe_on_open: WipesOnOpen by
        restart_adopts_existing_objects, nothing_is_removed_before_peers_are_complete;
    removal_before_complete: RemovesBeforeComplete by nothing_is_removed_before_peers_are_complete;
    removal_of_a_foreign_object: RemovesForeign by foreign_objects_are_unchanged;
    unreachable_peer_reported_once: ReportsUnreachableOnce by unreachable_peer_is_reported_in_every_sync;
    unreachable_peer_not_reported: OmitsUnreachable by
        unreachable_peer_is_reported_in_every_sync, plan_writes_nothing_and_is_accurate;
    counter_of_a_former_peer: CountsStalePeers by traffic_is_counted_for_current_peers;
    failure_that_stops_the_others: StopsAtFailure by failed_object_does_not_delay_others;
    failure_reported_once: ReportsFailureOnce by failed_object_does_not_delay_others;
    failure_without_a_pending_peer: OmitsPendingPeer by failed_object_does_not_delay_others;
    failure_without_a_retry: NeverRetries by failed_object_is_retried_with_backoff;
    retry_without_backoff: RetriesWithoutBackoff by failed_object_is_retried_with_backoff;
    unnoticed_drift: IgnoresDrift by drift_is_noticed_and_repaired;
    unrepaired_drift: RepairsOnlyOnDirtyAll by drift_is_noticed_and_repaired;
    changing_attributes: ChangesAttrsOnRestart by attributes_and_mtu_are_stable;
    mtu_above_the_interface: IgnoresHeaderInMtu by attributes_and_mtu_are_stable;
    accepted_invalid_option: AcceptsAnyOption by
        invalid_option_is_named, reconfigure_with_invalid_options_changes_nothing;
    validation_after_writes: CreatesDeviceBeforeValidation by invalid_option_is_named;
    old_interface_mtu: KeepsOldMtu by update_interface_applies_a_new_mtu;
    old_address: KeepsOldAddresses by configure_applies_a_new_lease;
    removal_on_drop: RemovesOnDrop by drop_keeps_everything;
    remove_leaves_a_device: LeavesDevice by remove_leaves_nothing;
    remove_leaves_peers: LeavesPeers by remove_leaves_nothing;
    plan_that_writes: PlanWrites by plan_writes_nothing_and_is_accurate;
    plan_that_ignores_existing_objects: PlanIgnoresExisting by plan_writes_nothing_and_is_accurate;
    missing_device: DescribesWrongDevice by devices_are_described_accurately;
    ignored_reconfigure: IgnoresReconfigure by reconfigure_applies_new_options;
    objects_of_the_old_config: LeavesOldDevice by reconfigure_applies_new_options;
    partly_applied_reconfigure: AppliesInvalidReconfigure by reconfigure_with_invalid_options_changes_nothing;
}

/// A subject without optional hooks, and with none of them skipped.
struct Bare(FakeBackend);

impl BackendSubject for Bare {
    fn opener(&self) -> Box<dyn OpenBackend> {
        Box::new(self.0.clone())
    }

    fn config(&self) -> NetworkConfig {
        config()
    }

    fn external(&self) -> ExternalInterface {
        external()
    }

    fn peer(&self, _: u8, public: Ipv4Addr) -> LeaseAttrs {
        LeaseAttrs::new(public.into())
    }

    fn peer_destinations(&self) -> BTreeMap<SubnetKey, IpAddr> {
        Fake(self.0.clone()).peer_destinations()
    }

    fn objects(&self) -> Vec<String> {
        Fake(self.0.clone()).objects()
    }

    fn add_foreign_objects(&self) {}

    fn invalid_options(&self) -> Vec<(&'static str, &'static str)> {
        Vec::new()
    }
}

#[test]
fn a_missing_hook_fails_its_checks_by_name() {
    type Check = fn(&dyn BackendSubject);
    let checks: [(&str, Check); 8] = [
        ("block", backend::failed_object_does_not_delay_others),
        ("undo", backend::drift_is_noticed_and_repaired),
        ("other_options", backend::reconfigure_applies_new_options),
        ("invalid_options", backend::invalid_option_is_named),
        ("unreachable_peer", backend::unreachable_peer_is_reported_in_every_sync),
        ("add_foreign_objects", backend::foreign_objects_are_unchanged),
        ("traffic", backend::traffic_is_counted_for_current_peers),
        ("devices", backend::devices_are_described_accurately),
    ];
    for (hook, check) in checks {
        let subject = Bare(FakeBackend::new());
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&subject)));
        let message = *outcome.unwrap_err().downcast::<String>().unwrap();
        assert!(message.starts_with(&format!("the subject lacks `{hook}`")), "{message}");
    }
}
