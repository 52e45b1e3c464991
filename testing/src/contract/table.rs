//! The promises of [`Table`], each checked against a real one.

use flannel_core::reconcile::{Change, Table};

use super::missing_hook;

/// A table under test without objects of ours, and examples of its objects.
///
/// In the repository, `testing/tests/table_contract.rs` checks [`FakeTable`](crate::FakeTable), and the crates of the
/// backends check the tables of the kernel.
pub trait TableSubject {
    /// The table.
    type Table: Table;

    /// Opens the table with no state from earlier writes.
    fn open(&mut self) -> Self::Table;

    /// Returns at least three objects with distinct keys, each with two values that it could have.
    #[expect(clippy::type_complexity, reason = "tuples of the table's own types read best as they are")]
    fn samples(
        &self,
    ) -> Vec<(<Self::Table as Table>::Key, <Self::Table as Table>::Value, <Self::Table as Table>::Value)>;

    /// Returns an object whose write fails. Skip `unwritable` if every write succeeds.
    #[expect(clippy::type_complexity, reason = "tuples of the table's own types read best as they are")]
    fn unwritable(&self) -> Option<(<Self::Table as Table>::Key, <Self::Table as Table>::Value)>;

    /// Adds objects of this kind that are not ours.
    fn add_foreign_objects(&mut self);

    /// Returns whether all foreign objects still exist unchanged.
    fn foreign_is_unchanged(&mut self) -> bool;
}

/// The hooks that a subject can skip.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
#[expect(non_camel_case_types, reason = "named like the hooks")]
pub enum TableHook {
    unwritable,
}

/// Emits a test for each promise of a table.
///
/// ```ignore
/// flannel_testing::table_contract!(#[test] Routes::in_a_namespace());
/// ```
///
/// The first part is the attribute of each test, the second an expression for a fresh [`TableSubject`]. Hooks that the
/// subject lacks are skipped with a reason, see [`contract`](crate::contract): `unwritable`.
#[macro_export]
macro_rules! table_contract {
    (#[$test:meta] $subject:expr $(, skip: { $($hook:ident = $reason:literal),* $(,)? })? $(,)?) => {
        $crate::__contract_hooks! { table: $($($hook)*)? }
        $crate::table_contract! { @each #[$test] $subject, [$($($hook = $reason),*)?];
            read_returns_what_was_put()
            read_omits_what_was_dropped()
            put_replaces_the_old_value()
            putting_an_existing_object_succeeds()
            dropping_a_missing_object_succeeds()
            failed_change_does_not_stop_others(unwritable)
            foreign_objects_are_ignored()
        }
    };
    (@each #[$test:meta] $subject:expr, $skip:tt; $($check:ident $needs:tt)*) => {$(
        $crate::__contract_test! { $needs $skip {
            #[$test]
            fn $check() {
                let mut subject = $subject;
                $crate::contract::table::$check(&mut subject);
            }
        }}
    )*};
}

/// Promise 1: `read` returns each object of ours once, including those that another process wrote.
pub fn read_returns_what_was_put<S: TableSubject>(subject: &mut S) {
    let samples = first_values(subject);
    assert!(samples.len() >= 3, "the subject must give at least three samples, got {}", samples.len());
    assert_holds(&mut subject.open(), &[]);
    assert_all_succeed(subject.open().apply(&puts(&samples)), samples.len());
    assert_holds(&mut subject.open(), &samples);
}

/// Promise 1: `read` omits objects that were dropped and returns the others.
pub fn read_omits_what_was_dropped<S: TableSubject>(subject: &mut S) {
    let samples = first_values(subject);
    let mut table = subject.open();
    assert_all_succeed(table.apply(&puts(&samples)), samples.len());
    let (left, dropped) = samples.split_at(1);
    assert_all_succeed(subject.open().apply(&drops(dropped)), dropped.len());
    assert_holds(&mut table, left);
    assert_all_succeed(table.apply(&drops(left)), 1);
    assert_holds(&mut table, &[]);
}

/// A put with `instead_of` replaces the old value.
pub fn put_replaces_the_old_value<S: TableSubject>(subject: &mut S) {
    let samples = first_values(subject);
    let mut table = subject.open();
    assert_all_succeed(table.apply(&puts(&samples)), samples.len());
    let changes: Vec<_> = subject
        .samples()
        .into_iter()
        .map(|(key, old, new)| Change::Put { key, value: new, instead_of: Some(old) })
        .collect();
    assert_all_succeed(table.apply(&changes), samples.len());
    let replaced: Vec<_> = subject.samples().into_iter().map(|(key, _, new)| (key, new)).collect();
    assert_holds(&mut table, &replaced);
}

/// Promise 3: putting an existing object succeeds, whether or not the caller knows that it exists.
pub fn putting_an_existing_object_succeeds<S: TableSubject>(subject: &mut S) {
    let samples = first_values(subject);
    let mut table = subject.open();
    assert_all_succeed(table.apply(&puts(&samples)), samples.len());
    assert_all_succeed(table.apply(&puts(&samples)), samples.len());
    let known: Vec<_> = samples
        .iter()
        .map(|(key, value)| Change::Put {
            key: key.clone(),
            value: value.clone(),
            instead_of: Some(value.clone()),
        })
        .collect();
    assert_all_succeed(table.apply(&known), samples.len());
    assert_holds(&mut table, &samples);
}

/// Promise 3: dropping a missing object succeeds.
pub fn dropping_a_missing_object_succeeds<S: TableSubject>(subject: &mut S) {
    let samples = first_values(subject);
    let mut table = subject.open();
    assert_all_succeed(table.apply(&drops(&samples)), samples.len());
    assert_all_succeed(table.apply(&puts(&samples)), samples.len());
    assert_all_succeed(table.apply(&drops(&samples)), samples.len());
    assert_all_succeed(table.apply(&drops(&samples)), samples.len());
    assert_holds(&mut table, &[]);
}

/// Promise 2: `apply` returns one answer per change, in order, and a failed change does not stop the others.
pub fn failed_change_does_not_stop_others<S: TableSubject>(subject: &mut S) {
    let samples = first_values(subject);
    let mut table = subject.open();
    assert!(table.apply(&[]).is_empty(), "applying no changes must return no answers");
    let Some(unwritable) = subject.unwritable() else { missing_hook("unwritable") };
    let mut changes = puts(&samples);
    let middle = changes.len() / 2;
    changes.splice(middle..middle, puts(&[unwritable]));
    let answers: Vec<bool> = table.apply(&changes).iter().map(Result::is_ok).collect();
    let expected: Vec<bool> = (0..changes.len()).map(|i| i != middle).collect();
    assert_eq!(
        answers, expected,
        "only the unwritable object must fail, and its answer must be in its place"
    );
    assert_holds(&mut table, &samples);
}

/// Promise 1: `read` omits foreign objects, and writes to ours leave them unchanged.
pub fn foreign_objects_are_ignored<S: TableSubject>(subject: &mut S) {
    let samples = first_values(subject);
    subject.add_foreign_objects();
    let mut table = subject.open();
    assert_holds(&mut table, &[]);
    assert_all_succeed(table.apply(&puts(&samples)), samples.len());
    assert_holds(&mut table, &samples);
    assert_all_succeed(table.apply(&drops(&samples)), samples.len());
    assert_holds(&mut table, &[]);
    assert!(subject.foreign_is_unchanged(), "the table must not change or remove foreign objects");
}

#[expect(clippy::type_complexity, reason = "pairs of the table's own types read best as they are")]
fn first_values<S: TableSubject>(subject: &S) -> Vec<(<S::Table as Table>::Key, <S::Table as Table>::Value)> {
    subject.samples().into_iter().map(|(key, value, _)| (key, value)).collect()
}

fn puts<K: Clone, V: Clone>(objects: &[(K, V)]) -> Vec<Change<K, V>> {
    let put =
        |(key, value): &(K, V)| Change::Put { key: key.clone(), value: value.clone(), instead_of: None };
    objects.iter().map(put).collect()
}

fn drops<K: Clone, V: Clone>(objects: &[(K, V)]) -> Vec<Change<K, V>> {
    let drop = |(key, value): &(K, V)| Change::Drop { key: key.clone(), value: value.clone() };
    objects.iter().map(drop).collect()
}

#[track_caller]
fn assert_all_succeed(answers: Vec<Result<(), flannel_core::BoxError>>, changes: usize) {
    assert_eq!(answers.len(), changes, "apply must return one answer per change");
    for (i, answer) in answers.iter().enumerate() {
        assert!(answer.is_ok(), "change {i} must succeed, got {answer:?}");
    }
}

/// Asserts that a table holds exactly these objects, with equal or satisfying values.
#[track_caller]
fn assert_holds<T: Table>(table: &mut T, expected: &[(T::Key, T::Value)]) {
    let mut read = table.read().expect("the table must be readable");
    read.sort_by(|one, other| one.0.cmp(&other.0));
    let mut expected = expected.to_vec();
    expected.sort_by(|one, other| one.0.cmp(&other.0));
    let agrees = read.len() == expected.len()
        && read
            .iter()
            .zip(&expected)
            .all(|(read, desired)| read.0 == desired.0 && T::satisfies(&desired.1, &read.1));
    assert!(agrees, "the table must hold {expected:?}, got {read:?}");
}
