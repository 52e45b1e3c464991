//! The fake backend keeps the promises of every backend, and their contract finds a backend that breaks them: for each
//! check there is a backend that fails it.

#![allow(clippy::unwrap_used, reason = "a test may fail in its helpers too")]

mod toy;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use flannel_core::{BackendAttrs, ExternalInterface, LeaseAttrs, NetworkConfig, OpenBackend, SubnetKey};
use flannel_testing::FakeBackend;
use flannel_testing::contract::backend::{self, BackendSubject};

use toy::{Toy, Wrong::*};

/// An interface that is not asked for anything but its MTU.
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

    /// Its host has nothing but peers.
    fn add_foreign_objects(&self) {}

    fn undo(&self, subnet: SubnetKey) -> bool {
        self.0.disturb(subnet);
        true
    }

    fn block(&self, subnet: SubnetKey) -> bool {
        self.0.refuse(subnet, true);
        true
    }

    fn unblock(&self, subnet: SubnetKey) {
        self.0.refuse(subnet, false);
    }

    fn invalid_options(&self) -> Vec<(&'static str, &'static str)> {
        // It has none.
        Vec::new()
    }
}

mod of_the_fake {
    flannel_testing::backend_contract!(super::Fake(super::FakeBackend::new()));
}

impl BackendSubject for Toy {
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

    fn undo(&self, subnet: SubnetKey) -> bool {
        self.disturb(subnet);
        true
    }

    fn block(&self, subnet: SubnetKey) -> bool {
        self.state().blocked.insert(subnet);
        true
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

    /// It notices at once, or never.
    fn drift_timeout(&self) -> Duration {
        Duration::from_millis(200)
    }
}

mod of_one_that_does_nothing_wrong {
    flannel_testing::backend_contract!(super::Toy::new(None));
}

/// Makes a test for each backend that does something wrong, with the checks that find it.
macro_rules! found {
    ($($name:ident: $wrong:ident is found by $($check:ident),+;)*) => {$(
        #[test]
        fn $name() {
            $(
                let toy = Toy::new(Some($wrong));
                let outcome = catch_unwind(AssertUnwindSafe(|| backend::$check(&toy)));
                assert!(outcome.is_err(), "{} did not find a backend that {:?}", stringify!($check), $wrong);
            )+
        }
    )*};
}

found! {
    a_peer_that_moves_and_is_not_followed: IgnoresMovedPeers is found by
        the_host_is_as_it_should_be_for_exactly_these_peers, a_hint_of_what_changed_is_enough;
    a_peer_that_left_and_is_kept: KeepsWhoLeft is found by
        the_host_is_as_it_should_be_for_exactly_these_peers, a_hint_of_what_changed_is_enough,
        nothing_is_removed_before_the_peers_are_complete;
    a_hint_that_is_not_looked_at: LooksOnlyAtAll is found by a_hint_of_what_changed_is_enough;
    a_pass_that_writes_what_is_there: WritesAgain is found by
        a_pass_that_finds_everything_in_order_writes_nothing, a_new_start_takes_over_what_is_there;
    a_start_that_begins_anew: WipesAtTheStart is found by
        a_new_start_takes_over_what_is_there, nothing_is_removed_before_the_peers_are_complete;
    a_removal_before_all_are_known: RemovesEarly is found by nothing_is_removed_before_the_peers_are_complete;
    a_foreign_object_that_is_removed: RemovesForeign is found by nothing_foreign_is_touched;
    a_peer_that_is_not_reached_and_named_once: NamesStrangersOnce is found by
        a_peer_that_cannot_be_reached_is_named_in_every_pass;
    a_peer_that_is_not_reached_and_never_named: NamesNoStrangers is found by
        a_peer_that_cannot_be_reached_is_named_in_every_pass, a_plan_writes_nothing_and_is_what_is_then_done;
    a_counter_that_outlives_its_peer: CountsWhoLeft is found by traffic_is_counted_for_peers_only;
    a_failure_that_stops_the_others: StopsAtAFailure is found by an_object_that_cannot_be_written_delays_no_other;
    a_failure_that_is_told_once: TellsFailuresOnce is found by an_object_that_cannot_be_written_delays_no_other;
    a_failure_without_its_peer: NamesNobodyWaiting is found by an_object_that_cannot_be_written_delays_no_other;
    a_failure_that_is_not_tried_again: GivesUp is found by what_failed_is_tried_again_with_growing_pauses;
    pauses_that_do_not_grow: TriesAtTheSamePace is found by what_failed_is_tried_again_with_growing_pauses;
    a_disturbance_that_is_not_noticed: NoticesNothing is found by what_somebody_undoes_is_noticed_and_made_again;
    a_disturbance_that_is_noticed_and_left: HealsOnlyWhenToldAll is found by
        what_somebody_undoes_is_noticed_and_made_again;
    a_word_that_changes: SaysAnotherWordEachTime is found by what_a_host_says_stands;
    packets_larger_than_the_interface_takes: ForgetsItsHeader is found by what_a_host_says_stands;
    an_option_that_is_passed_over: TakesAnyOption is found by a_wrong_option_is_named,
        a_configuration_that_cannot_be_used_changes_nothing;
    an_option_that_is_found_too_late: MakesTheDeviceFirst is found by a_wrong_option_is_named;
    an_interface_that_changed: KeepsItsMtu is found by another_mtu_of_the_interface_is_taken_in;
    a_lease_that_leaves_its_address: KeepsOldAddresses is found by another_lease_is_taken_in;
    a_drop_that_removes: RemovesWhenDropped is found by dropping_keeps_everything;
    a_removal_that_leaves_something: LeavesItsDevice is found by removing_leaves_nothing;
    a_removal_that_leaves_peers: LeavesPeers is found by removing_leaves_nothing;
    a_plan_that_writes: DoesWhatItPlans is found by a_plan_writes_nothing_and_is_what_is_then_done;
    a_plan_that_forgets_what_is_there: PlansAllAnew is found by a_plan_writes_nothing_and_is_what_is_then_done;
    a_device_that_is_not_there: DescribesAnotherDevice is found by devices_are_described_as_they_are;
    a_configuration_that_is_passed_over: KeepsItsConfiguration is found by another_configuration_is_taken_in;
    what_the_old_configuration_asked_for_and_stays: LeavesItsOldDevice is found by
        another_configuration_is_taken_in;
    a_configuration_that_is_taken_in_by_half: TakesInHalf is found by
        a_configuration_that_cannot_be_used_changes_nothing;
}
