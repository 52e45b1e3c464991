//! The fake table keeps the promises of kernel tables, and for each check of the suite there is a defect that fails it.

#![allow(clippy::wildcard_enum_match_arm, reason = "a defect changes one operation only")]

use flannel_core::BoxError;
use flannel_core::reconcile::{Change, Table};
use flannel_testing::FakeTable;
use flannel_testing::contract::table::{self, TableSubject};

struct Fake {
    ours: FakeTable<u8, u8>,
}

impl TableSubject for Fake {
    type Table = FakeTable<u8, u8>;

    fn open(&mut self) -> Self::Table {
        self.ours.clone()
    }

    fn samples(&self) -> Vec<(u8, u8, u8)> {
        vec![(1, 10, 11), (2, 20, 21), (3, 30, 31)]
    }

    fn unwritable(&self) -> Option<(u8, u8)> {
        self.ours.fail_writes(9, 1);
        Some((9, 90))
    }

    fn add_foreign_objects(&mut self) {}

    fn foreign_is_unchanged(&mut self) -> bool {
        true
    }
}

mod contract {
    use super::*;

    flannel_testing::table_contract!(
        #[test]
        Fake { ours: FakeTable::new() }
    );
}

/// A promise that the table breaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Defect {
    KeepsReplaced,
    FailsOnExisting,
    FailsOnMissing,
    StopsAtFailure,
    ReadsOne,
    DropsNothing,
    ReadsForeign,
    ChangesForeign,
}

struct DefectiveTable {
    defect: Defect,
    ours: FakeTable<u8, u8>,
    foreign: FakeTable<u8, u8>,
}

impl Table for DefectiveTable {
    type Key = u8;
    type Value = u8;

    fn name(key: &u8, _: &u8) -> String {
        key.to_string()
    }

    fn read(&mut self) -> Result<Vec<(u8, u8)>, BoxError> {
        let mut read = self.ours.read()?;
        match self.defect {
            Defect::ReadsOne => read.truncate(1),
            Defect::ReadsForeign => read.extend(self.foreign.read()?),
            _ => {}
        }
        Ok(read)
    }

    fn apply(&mut self, changes: &[Change<u8, u8>]) -> Vec<Result<(), BoxError>> {
        let mut answers = Vec::new();
        for change in changes {
            let exists = match change {
                Change::Put { key, value, .. } | Change::Drop { key, value } => {
                    self.ours.objects().get(key).is_some_and(|values| values.contains(value))
                }
            };
            let change = match (self.defect, change.clone()) {
                (Defect::KeepsReplaced, Change::Put { key, value, .. }) => {
                    Change::Put { key, value, instead_of: None }
                }
                (Defect::DropsNothing, Change::Drop { .. }) => {
                    answers.push(Ok(()));
                    continue;
                }
                (_, change) => change,
            };
            let is_put = matches!(change, Change::Put { .. });
            let mut answer = self.ours.apply(&[change]);
            if (self.defect == Defect::FailsOnExisting && is_put && exists)
                || (self.defect == Defect::FailsOnMissing && !is_put && !exists)
            {
                answer = vec![Err("no such object".into())];
            }
            if self.defect == Defect::ChangesForeign {
                self.foreign.set(7, []);
            }
            let failed = answer[0].is_err();
            answers.extend(answer);
            if self.defect == Defect::StopsAtFailure && failed {
                break;
            }
        }
        answers
    }
}

impl TableSubject for DefectiveTable {
    type Table = Self;

    fn open(&mut self) -> Self {
        Self { defect: self.defect, ours: self.ours.clone(), foreign: self.foreign.clone() }
    }

    fn samples(&self) -> Vec<(u8, u8, u8)> {
        vec![(1, 10, 11), (2, 20, 21), (3, 30, 31)]
    }

    fn unwritable(&self) -> Option<(u8, u8)> {
        self.ours.fail_writes(9, 1);
        Some((9, 90))
    }

    fn add_foreign_objects(&mut self) {
        self.foreign.set(7, [70]);
    }

    fn foreign_is_unchanged(&mut self) -> bool {
        self.foreign.objects().contains_key(&7)
    }
}

#[test]
fn each_check_detects_its_defect() {
    type Check = fn(&mut DefectiveTable);
    let detected: [(Defect, Check); 8] = [
        (Defect::KeepsReplaced, table::put_replaces_the_old_value),
        (Defect::FailsOnExisting, table::putting_an_existing_object_succeeds),
        (Defect::FailsOnMissing, table::dropping_a_missing_object_succeeds),
        (Defect::StopsAtFailure, table::failed_change_does_not_stop_others),
        (Defect::ReadsOne, table::read_returns_what_was_put),
        (Defect::DropsNothing, table::read_omits_what_was_dropped),
        (Defect::ReadsForeign, table::foreign_objects_are_ignored),
        (Defect::ChangesForeign, table::foreign_objects_are_ignored),
    ];
    for (i, (defect, check)) in detected.into_iter().enumerate() {
        let mut subject = DefectiveTable { defect, ours: FakeTable::new(), foreign: FakeTable::new() };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&mut subject)));
        assert!(outcome.is_err(), "the check of defect {i} must fail");
    }
}
