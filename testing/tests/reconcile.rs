//! The reconcile engine against a kernel that fails, drifts and crashes. The model removes everything and then adds the
//! desired objects.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flannel_core::SyncReport;
use flannel_core::reconcile::{Change, Reconciler};
use flannel_testing::FakeTable;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

type Kernel = FakeTable<u8, u8>;
type Desired = BTreeMap<u8, u8>;

/// An engine on a kernel, and its clock.
struct Run {
    kernel: Kernel,
    engine: Reconciler<Kernel>,
    desired: Desired,
    now: Instant,
}

impl Run {
    fn new(kernel: &Kernel, desired: &Desired) -> Self {
        let mut engine = Reconciler::new(kernel.clone());
        engine.tracker.set_all_desired(desired.clone().into_iter().collect());
        Self { kernel: kernel.clone(), engine, desired: desired.clone(), now: Instant::now() }
    }

    fn set_desired(&mut self, key: u8, value: u8) {
        self.desired.insert(key, value);
        self.engine.tracker.set_desired(key, value);
    }

    fn unset_desired(&mut self, key: u8) {
        self.desired.remove(&key);
        self.engine.tracker.unset_desired(&key);
    }

    /// Makes one pass, as backends do.
    fn pass(&mut self) -> SyncReport {
        let _ = self.kernel.take_writes();
        let mut report = self.engine.refresh("the table");
        report.merge(self.engine.put_missing(self.now));
        report.merge(self.engine.drop_unwanted(self.now));
        report.merge(self.engine.finish(self.now));
        self.removes_nothing_that_is_right();
        report
    }

    fn removes_nothing_that_is_right(&self) {
        for change in self.kernel.take_writes() {
            if let Change::Drop { key, value } = change {
                assert_ne!(self.desired.get(&key), Some(&value), "{key} was right");
            }
        }
    }

    fn later(&mut self, time: Duration) {
        self.now += time;
    }

    /// Ends all faults and lets time pass.
    fn settle(&mut self) {
        self.kernel.heal();
        self.engine.tracker.mark_stale();
        for _ in 0..2 {
            self.later(Duration::from_secs(60));
            self.pass();
        }
    }

    /// Asserts that the kernel holds what removing everything and adding the desired objects gives.
    fn is_as_if_made_anew(&mut self) {
        let anew: BTreeMap<u8, Vec<u8>> =
            self.desired.iter().map(|(key, value)| (*key, vec![*value])).collect();
        assert_eq!(self.kernel.objects(), anew);
        self.later(Duration::from_secs(60));
        self.engine.tracker.mark_stale();
        assert_eq!(self.pass(), SyncReport::default(), "a pass over a converged kernel must do nothing");
    }
}

#[derive(Clone, Debug)]
enum Step {
    SetDesired(u8, u8),
    UnsetDesired(u8),
    Exactly(Desired),
    /// Changes the kernel, with or without a notification.
    Foreign(u8, Vec<u8>, bool),
    FailWrites(u8, usize),
    FailReads(usize),
    StopAfter(usize),
    Heal,
    Pass,
    Wait(u64),
    /// Kills the process and starts another.
    Restart,
}

const KEYS: std::ops::Range<u8> = 0..5;
const VALUES: std::ops::Range<u8> = 0..3;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (KEYS, VALUES).prop_map(|(key, value)| Step::SetDesired(key, value)),
        2 => KEYS.prop_map(Step::UnsetDesired),
        1 => desired().prop_map(Step::Exactly),
        3 => (KEYS, vec(VALUES, 0..3), any::<bool>()).prop_map(|(key, values, seen)| Step::Foreign(key, values, seen)),
        2 => (KEYS, 1..4_usize).prop_map(|(key, times)| Step::FailWrites(key, times)),
        1 => (1..3_usize).prop_map(Step::FailReads),
        1 => (0..4_usize).prop_map(Step::StopAfter),
        1 => Just(Step::Heal),
        6 => Just(Step::Pass),
        3 => (0..40_000_u64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

fn desired() -> impl Strategy<Value = Desired> {
    btree_map(KEYS, VALUES, 0..5)
}

/// The objects of an earlier run and of other programs.
fn leftovers() -> impl Strategy<Value = BTreeMap<u8, Vec<u8>>> {
    btree_map(KEYS, vec(VALUES, 1..3), 0..5)
}

fn kernel(leftovers: &BTreeMap<u8, Vec<u8>>) -> Kernel {
    let kernel = Kernel::new();
    for (key, values) in leftovers {
        kernel.set(*key, values.clone());
    }
    kernel
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_kernel_converges_after_the_faults_end(leftovers in leftovers(), steps in vec(step(), 0..40)) {
        let kernel = kernel(&leftovers);
        let mut run = Run::new(&kernel, &Desired::new());
        for step in steps {
            match step {
                Step::SetDesired(key, value) => run.set_desired(key, value),
                Step::UnsetDesired(key) => run.unset_desired(key),
                Step::Exactly(desired) => {
                    run.desired = desired.clone();
                    run.engine.tracker.set_all_desired(desired.into_iter().collect());
                }
                Step::Foreign(key, values, seen) => {
                    kernel.set(key, values);
                    // A change without a notification is found when the table is read again.
                    if seen {
                        run.engine.tracker.mark_stale();
                    }
                }
                Step::FailWrites(key, times) => kernel.fail_writes(key, times),
                Step::FailReads(times) => kernel.fail_reads(times),
                Step::StopAfter(writes) => kernel.stop_after(writes),
                Step::Heal => kernel.heal(),
                Step::Pass => drop(run.pass()),
                Step::Wait(ms) => run.later(Duration::from_millis(ms)),
                Step::Restart => run = Run::new(&kernel, &run.desired),
            }
        }
        run.settle();
        run.is_as_if_made_anew();
    }

    #[test]
    fn after_a_kill_at_any_write_the_next_process_converges(leftovers in leftovers(), desired in desired()) {
        let writes = {
            let kernel = kernel(&leftovers);
            let report = Run::new(&kernel, &desired).pass();
            report.written + report.removed
        };
        for killed_after in 0..=writes {
            let kernel = kernel(&leftovers);
            kernel.stop_after(killed_after);
            Run::new(&kernel, &desired).pass();
            kernel.heal();
            let mut next = Run::new(&kernel, &desired);
            let report = next.pass();
            prop_assert_eq!(report.written + report.removed, writes - killed_after, "no write must be repeated");
            next.is_as_if_made_anew();
        }
    }

    #[test]
    fn a_failed_object_does_not_delay_others(leftovers in leftovers(), desired in desired(), failing in KEYS) {
        let kernel = kernel(&leftovers);
        kernel.fail_writes(failing, usize::MAX);
        let mut run = Run::new(&kernel, &desired);
        let report = run.pass();
        for key in KEYS.filter(|key| *key != failing) {
            let right: Vec<u8> = desired.get(&key).copied().into_iter().collect();
            prop_assert_eq!(kernel.objects().remove(&key).unwrap_or_default(), right);
        }
        prop_assert!(report.failed.len() <= 1);
        let is_wrong = kernel.objects().get(&failing).cloned() != desired.get(&failing).map(|value| vec![*value]);
        prop_assert_eq!(!report.failed.is_empty(), is_wrong, "the report must list a failure exactly if there is one");
        prop_assert_eq!(report.retry_in.is_some(), is_wrong, "the report must set retry_in exactly if there is a failure");
        prop_assert!(report.retry_in.is_none_or(|pause| pause >= Duration::from_millis(50)), "a retry must be delayed");
        run.settle();
        run.is_as_if_made_anew();
    }

    #[test]
    fn a_pass_before_the_retry_time_writes_nothing(desired in desired(), leftovers in leftovers(), failing in KEYS) {
        let kernel = kernel(&leftovers);
        kernel.fail_writes(failing, usize::MAX);
        let mut run = Run::new(&kernel, &desired);
        let mut pause = Duration::ZERO;
        for _ in 0..12 {
            let Some(next) = run.pass().retry_in else { break };
            prop_assert!(next >= pause, "the retry delay must grow");
            pause = next;
            run.engine.refresh("the table");
            prop_assert!(run.engine.tracker.missing(run.now).is_empty());
            prop_assert!(run.engine.tracker.unwanted(run.now).is_empty());
            run.later(next);
        }
    }

    #[test]
    fn drifted_objects_are_counted(desired in desired(), key in KEYS, values in vec(VALUES, 0..2)) {
        let kernel = Kernel::new();
        let mut run = Run::new(&kernel, &desired);
        run.pass();
        let before = kernel.objects();
        kernel.set(key, values);
        run.engine.tracker.mark_stale();
        let changed = usize::from(kernel.objects() != before && desired.contains_key(&key));
        prop_assert_eq!(run.pass().drifted, changed);
        run.is_as_if_made_anew();
    }
}

#[test]
fn an_unreadable_table_is_written_from_the_last_known_state_and_read_again_soon() {
    let kernel = Kernel::new();
    let mut run = Run::new(&kernel, &[(1, 1)].into());
    kernel.fail_reads(1);
    let report = run.pass();
    assert_eq!((report.written, report.failed.len()), (1, 1));
    assert!(report.retry_in.is_some());
    assert_eq!(run.pass(), SyncReport::default());
    assert_eq!(kernel.reads(), 2);
}

#[test]
fn a_pass_over_a_current_table_reads_nothing() {
    let kernel = Kernel::new();
    let mut run = Run::new(&kernel, &Desired::new());
    for value in 0..10 {
        run.set_desired(1, value);
        run.pass();
    }
    assert_eq!(kernel.reads(), 1);
}
