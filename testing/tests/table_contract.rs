//! The contract of kernel tables: the fake table keeps it, and for each check there is a table that fails it.

#![allow(clippy::wildcard_enum_match_arm, reason = "a table does one thing wrong and all else right")]

use flannel_core::BoxError;
use flannel_core::reconcile::{Change, Table};
use flannel_testing::FakeTable;
use flannel_testing::contract::table::{self, TableSubject};

/// The fake is a table like any other.
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

    fn impossible(&self) -> Option<(u8, u8)> {
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

/// What a table does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    KeepsWhatIsReplaced,
    FailsOnWhatIsThere,
    FailsOnWhatIsGone,
    StopsAtAFailure,
    ReadsOne,
    DropsNothing,
    ReadsForeign,
    TouchesForeign,
}

struct Broken {
    wrong: Wrong,
    ours: FakeTable<u8, u8>,
    foreign: FakeTable<u8, u8>,
}

impl Table for Broken {
    type Key = u8;
    type Value = u8;

    fn name(key: &u8, _: &u8) -> String {
        key.to_string()
    }

    fn read(&mut self) -> Result<Vec<(u8, u8)>, BoxError> {
        let mut read = self.ours.read()?;
        match self.wrong {
            Wrong::ReadsOne => read.truncate(1),
            Wrong::ReadsForeign => read.extend(self.foreign.read()?),
            _ => {}
        }
        Ok(read)
    }

    fn apply(&mut self, changes: &[Change<u8, u8>]) -> Vec<Result<(), BoxError>> {
        let mut answers = Vec::new();
        for change in changes {
            let is_there = match change {
                Change::Put { key, value, .. } | Change::Drop { key, value } => {
                    self.ours.objects().get(key).is_some_and(|values| values.contains(value))
                }
            };
            let change = match (self.wrong, change.clone()) {
                (Wrong::KeepsWhatIsReplaced, Change::Put { key, value, .. }) => {
                    Change::Put { key, value, instead_of: None }
                }
                (Wrong::DropsNothing, Change::Drop { .. }) => {
                    answers.push(Ok(()));
                    continue;
                }
                (_, change) => change,
            };
            let is_put = matches!(change, Change::Put { .. });
            let mut answer = self.ours.apply(&[change]);
            if (self.wrong == Wrong::FailsOnWhatIsThere && is_put && is_there)
                || (self.wrong == Wrong::FailsOnWhatIsGone && !is_put && !is_there)
            {
                answer = vec![Err("wrong".into())];
            }
            if self.wrong == Wrong::TouchesForeign {
                self.foreign.set(7, []);
            }
            let failed = answer[0].is_err();
            answers.extend(answer);
            if self.wrong == Wrong::StopsAtAFailure && failed {
                break;
            }
        }
        answers
    }
}

impl TableSubject for Broken {
    type Table = Self;

    fn open(&mut self) -> Self {
        Self { wrong: self.wrong, ours: self.ours.clone(), foreign: self.foreign.clone() }
    }

    fn samples(&self) -> Vec<(u8, u8, u8)> {
        vec![(1, 10, 11), (2, 20, 21), (3, 30, 31)]
    }

    fn impossible(&self) -> Option<(u8, u8)> {
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
fn each_check_finds_the_table_that_breaks_its_promise() {
    type Check = fn(&mut Broken);
    let found: [(Wrong, Check); 8] = [
        (Wrong::KeepsWhatIsReplaced, table::what_is_put_in_place_of_something_replaces_it),
        (Wrong::FailsOnWhatIsThere, table::to_put_what_is_there_succeeds),
        (Wrong::FailsOnWhatIsGone, table::to_drop_what_is_gone_succeeds),
        (Wrong::StopsAtAFailure, table::a_change_that_fails_stops_no_other),
        (Wrong::ReadsOne, table::what_is_put_is_read),
        (Wrong::DropsNothing, table::what_is_dropped_is_gone),
        (Wrong::ReadsForeign, table::what_is_foreign_is_neither_read_nor_touched),
        (Wrong::TouchesForeign, table::what_is_foreign_is_neither_read_nor_touched),
    ];
    for (i, (wrong, check)) in found.into_iter().enumerate() {
        let mut subject = Broken { wrong, ours: FakeTable::new(), foreign: FakeTable::new() };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&mut subject)));
        assert!(outcome.is_err(), "broken table {i} was not found");
    }
}
