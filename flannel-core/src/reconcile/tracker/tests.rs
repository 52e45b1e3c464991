//! The decisions of the tracker. `flannel-testing` tests the engine on a kernel that fails.

use super::*;

type T = Tracker<u8, &'static str>;

fn tracker() -> T {
    Tracker::new(|desired, actual| desired == actual)
}

fn put(key: u8, value: &'static str, instead_of: Option<&'static str>) -> Change<u8, &'static str> {
    Change::Put { key, value, instead_of }
}

fn drop(key: u8, value: &'static str) -> Change<u8, &'static str> {
    Change::Drop { key, value }
}

fn fails(tracker: &mut T, change: Change<u8, &'static str>, now: Instant) {
    let object = format!("object {}", change.key());
    tracker.settle(change, Err(ObjectFailure::new(object, "no")), now);
}

/// Applies all due changes, and ends the pass.
fn apply(tracker: &mut T, now: Instant) -> Vec<Change<u8, &'static str>> {
    let missing = tracker.missing(now);
    missing.iter().for_each(|change| tracker.settle(change.clone(), Ok(()), now));
    let stale = tracker.unwanted(now);
    stale.iter().for_each(|change| tracker.settle(change.clone(), Ok(()), now));
    tracker.close();
    [missing, stale].concat()
}

#[test]
fn a_pass_puts_missing_objects_drops_unwanted_ones_and_leaves_the_rest() {
    let (mut tracker, now) = (tracker(), Instant::now());
    tracker.set_desired(1, "a");
    tracker.set_desired(2, "b");
    tracker.set_desired(3, "c");
    assert_eq!(tracker.observe([(1, "a"), (2, "x"), (4, "d")]), 0, "nothing was known before");
    assert_eq!(apply(&mut tracker, now), [put(2, "b", Some("x")), put(3, "c", None), drop(4, "d")]);
    assert_eq!(apply(&mut tracker, now), []);
    assert_eq!(tracker.observe([(1, "a"), (2, "b"), (3, "c")]), 0);
    assert_eq!(apply(&mut tracker, now), []);
}

#[test]
fn repeating_a_desired_state_is_no_change() {
    let (mut tracker, now) = (tracker(), Instant::now());
    tracker.observe([]);
    tracker.set_desired(1, "a");
    apply(&mut tracker, now);
    tracker.set_desired(1, "a");
    tracker.unset_desired(&9);
    assert_eq!(apply(&mut tracker, now), []);
    tracker.set_desired(1, "b");
    assert_eq!(
        (tracker.desired(&1).copied(), apply(&mut tracker, now)),
        (Some("b"), vec![put(1, "b", Some("a"))])
    );
    tracker.unset_desired(&1);
    tracker.unset_desired(&1);
    assert_eq!((tracker.desired(&1).copied(), apply(&mut tracker, now)), (None, vec![drop(1, "b")]));
}

#[test]
fn setting_all_desired_objects_unsets_the_others() {
    let (mut tracker, now) = (tracker(), Instant::now());
    tracker.observe([]);
    tracker.set_all_desired([(1, "a"), (2, "b")].into());
    apply(&mut tracker, now);
    tracker.set_all_desired([(2, "b"), (3, "c")].into());
    assert_eq!(apply(&mut tracker, now), [put(3, "c", None), drop(1, "a")]);
}

#[test]
fn an_object_that_satisfies_the_desired_one_is_left() {
    let now = Instant::now();
    let mut tracker = Tracker::new(|desired: &&str, actual: &&str| desired.len() == actual.len());
    tracker.set_desired(1, "a");
    tracker.observe([(1, "b")]);
    assert_eq!(tracker.missing(now), []);
    tracker.observe([(1, "bb")]);
    assert_eq!(tracker.missing(now), [put(1, "a", Some("bb"))]);
}

#[test]
fn only_the_effective_object_of_a_key_stays() {
    let (mut tracker, now) = (tracker(), Instant::now());
    tracker.set_desired(1, "a");
    tracker.observe([(1, "a"), (1, "b"), (1, "c"), (2, "d"), (2, "e")]);
    let all = apply(&mut tracker, now);
    assert_eq!(all, [drop(2, "d"), drop(1, "b"), drop(1, "c"), drop(2, "e")]);
    assert_eq!(apply(&mut tracker, now), []);
}

#[test]
fn the_desired_object_of_a_key_stays_even_if_another_is_effective() {
    let (mut tracker, now) = (tracker(), Instant::now());
    tracker.set_desired(1, "b");
    tracker.observe([(1, "a"), (1, "b")]);
    assert_eq!(apply(&mut tracker, now), [drop(1, "a")], "the desired one becomes effective");
    assert_eq!(apply(&mut tracker, now), []);
    // Where the one in force will do, it stays.
    let mut tracker = Tracker::new(|_: &&str, _: &&str| true);
    tracker.set_desired(1, "b");
    tracker.observe([(1, "a"), (1, "b")]);
    assert_eq!((tracker.missing(now), tracker.unwanted(now)), (vec![], vec![drop(1, "b")]));
}

#[test]
fn drift_is_counted_and_repaired() {
    let (mut tracker, now) = (tracker(), Instant::now());
    tracker.observe([]);
    for key in 1..=3 {
        tracker.set_desired(key, "a");
    }
    apply(&mut tracker, now);
    assert!(!tracker.is_stale());
    tracker.mark_stale();
    assert!(tracker.is_stale());
    assert_eq!(tracker.observe([(1, "a"), (2, "z")]), 2);
    assert!(!tracker.is_stale());
    assert_eq!(apply(&mut tracker, now), [put(2, "a", Some("z")), put(3, "a", None)]);
}

#[test]
fn a_failed_object_backs_off_without_delaying_others() {
    let (mut tracker, mut now) = (tracker(), Instant::now());
    tracker.observe([]);
    tracker.set_desired(1, "a");
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let change = tracker.missing(now).remove(0);
        fails(&mut tracker, change, now);
        tracker.close();
        assert_eq!(tracker.missing(now), []);
        assert_eq!(tracker.failures().count(), 1);
        let pause = tracker.retry_in(now).unwrap();
        pauses.push(pause);
        now += pause;
    }
    assert_eq!((pauses[0], pauses[1]), (RETRY.first, RETRY.first * 2));
    assert_eq!(pauses[11], RETRY.longest);
    tracker.set_desired(2, "b");
    assert_eq!(apply(&mut tracker, now), [put(1, "a", None), put(2, "b", None)]);
    assert_eq!((tracker.failures().count(), tracker.retry_in(now)), (0, None));
}

#[test]
fn a_failed_object_is_retried_at_once_if_its_desired_or_actual_state_changes() {
    let (mut tracker, now) = (tracker(), Instant::now());
    tracker.observe([(1, "x")]);
    tracker.set_desired(1, "a");
    fails(&mut tracker, put(1, "a", Some("x")), now);
    assert_eq!(tracker.missing(now), []);
    tracker.set_desired(1, "b");
    assert_eq!(tracker.missing(now), [put(1, "b", Some("x"))]);
    fails(&mut tracker, put(1, "b", Some("x")), now);
    assert_eq!(tracker.observe([]), 1);
    assert_eq!(tracker.missing(now), [put(1, "b", None)]);
}

#[test]
fn a_surplus_object_that_cannot_be_dropped_is_retried_and_reported() {
    let (mut tracker, now) = (tracker(), Instant::now());
    tracker.set_desired(1, "a");
    tracker.observe([(1, "a"), (1, "b")]);
    for _ in 0..3 {
        fails(&mut tracker, drop(1, "b"), now);
        tracker.close();
        assert_eq!(tracker.unwanted(now), [], "not immediately");
        assert_eq!(tracker.failures().count(), 1);
    }
    assert!(tracker.retry_in(now).unwrap() > RETRY.first, "the delays grow");
    tracker.observe([(1, "a")]);
    tracker.close();
    assert_eq!((tracker.failures().count(), tracker.retry_in(now)), (0, None), "removed by another program");
}

#[test]
fn a_failed_put_keeps_waiting_when_a_surplus_object_of_its_key_is_dropped() {
    let (mut tracker, now) = (tracker(), Instant::now());
    tracker.set_desired(1, "a");
    tracker.observe([(1, "b"), (1, "c")]);
    fails(&mut tracker, put(1, "a", Some("b")), now);
    tracker.settle(drop(1, "c"), Ok(()), now);
    tracker.close();
    assert_eq!((tracker.missing(now), tracker.failures().count()), (vec![], 1));
}

#[test]
fn the_actual_state_is_what_was_last_read_or_written() {
    let (mut tracker, now) = (tracker(), Instant::now());
    tracker.set_desired(1, "a");
    tracker.set_desired(2, "b");
    assert_eq!(tracker.actual(&1), None);
    tracker.observe([(1, "a"), (2, "x"), (3, "c")]);
    let actual = |tracker: &T| [1, 2, 3, 4].map(|key| tracker.actual(&key).copied());
    assert_eq!(actual(&tracker), [Some("a"), Some("x"), Some("c"), None]);
    apply(&mut tracker, now);
    assert_eq!(actual(&tracker), [Some("a"), Some("b"), None, None]);
}

#[test]
fn retry_all_allows_an_immediate_retry() {
    let (mut tracker, now) = (tracker(), Instant::now());
    tracker.observe([]);
    tracker.set_desired(1, "a");
    tracker.set_desired(2, "b");
    tracker.missing(now).into_iter().for_each(|change| fails(&mut tracker, change, now));
    assert_eq!((tracker.missing(now), tracker.failures().count()), (vec![], 2));
    tracker.retry_all();
    assert_eq!(tracker.missing(now), [put(1, "a", None), put(2, "b", None)]);
    assert_eq!(tracker.retry_in(now), None);
}
