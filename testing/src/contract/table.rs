//! The promises of [`Table`], each checked against a real one.

use flannel_core::reconcile::{Change, Table};

/// A table under test, empty of objects that are ours, and examples of its objects. `testing/tests/table_contract.rs` in the
/// repository asks [`FakeTable`](crate::FakeTable), `flannel-backend-vxlan/src/tables/tests.rs` the kernel's.
pub trait TableSubject {
    /// The table.
    type Table: Table;

    /// Opens the table, with no memory of what was done before.
    fn open(&mut self) -> Self::Table;

    /// Gives at least three objects with different keys, each with a second value that it could have.
    #[expect(clippy::type_complexity, reason = "tuples of the table's own types read best as they are")]
    fn samples(
        &self,
    ) -> Vec<(<Self::Table as Table>::Key, <Self::Table as Table>::Value, <Self::Table as Table>::Value)>;

    /// Gives an object that cannot be written.
    #[expect(clippy::type_complexity, reason = "tuples of the table's own types read best as they are")]
    fn impossible(&self) -> Option<(<Self::Table as Table>::Key, <Self::Table as Table>::Value)>;

    /// Puts objects of this kind beside ours that are not ours.
    fn add_foreign_objects(&mut self);

    /// Tells whether those are all still there, as they were.
    fn foreign_is_unchanged(&mut self) -> bool;
}

/// Makes a test of each promise of a table.
///
/// ```ignore
/// flannel_testing::table_contract!(#[test] Routes::in_a_namespace());
/// ```
///
/// The first part is the attribute of each test, the second an expression for a fresh
/// [`TableSubject`].
#[macro_export]
macro_rules! table_contract {
    (#[$test:meta] $subject:expr) => {
        $crate::table_contract! { @each #[$test] $subject;
            what_is_put_is_read
            what_is_dropped_is_gone
            what_is_put_in_place_of_something_replaces_it
            to_put_what_is_there_succeeds
            to_drop_what_is_gone_succeeds
            a_change_that_fails_stops_no_other
            what_is_foreign_is_neither_read_nor_touched
        }
    };
    (@each #[$test:meta] $subject:expr; $($check:ident)*) => {$(
        #[$test]
        fn $check() {
            let mut subject = $subject;
            $crate::contract::table::$check(&mut subject);
        }
    )*};
}

/// Promise 1: `read` returns all objects that are ours, also those that another process put, each once.
pub fn what_is_put_is_read<S: TableSubject>(subject: &mut S) {
    let samples = first_values(subject);
    assert!(samples.len() >= 3, "three samples at least");
    holds(&mut subject.open(), &[]);
    succeeds(subject.open().apply(&puts(&samples)), samples.len());
    holds(&mut subject.open(), &samples);
}

/// Promise 1: what was dropped is not read any more, and what was not is.
pub fn what_is_dropped_is_gone<S: TableSubject>(subject: &mut S) {
    let samples = first_values(subject);
    let mut table = subject.open();
    succeeds(table.apply(&puts(&samples)), samples.len());
    let (left, dropped) = samples.split_at(1);
    succeeds(subject.open().apply(&drops(dropped)), dropped.len());
    holds(&mut table, left);
    succeeds(table.apply(&drops(left)), 1);
    holds(&mut table, &[]);
}

/// What is put in place of something else is there alone.
pub fn what_is_put_in_place_of_something_replaces_it<S: TableSubject>(subject: &mut S) {
    let samples = first_values(subject);
    let mut table = subject.open();
    succeeds(table.apply(&puts(&samples)), samples.len());
    let changes: Vec<_> = subject
        .samples()
        .into_iter()
        .map(|(key, old, new)| Change::Put { key, value: new, instead_of: Some(old) })
        .collect();
    succeeds(table.apply(&changes), samples.len());
    let replaced: Vec<_> = subject.samples().into_iter().map(|(key, _, new)| (key, new)).collect();
    holds(&mut table, &replaced);
}

/// Promise 3: to put what is there already succeeds, whether or not it is known to be there.
pub fn to_put_what_is_there_succeeds<S: TableSubject>(subject: &mut S) {
    let samples = first_values(subject);
    let mut table = subject.open();
    succeeds(table.apply(&puts(&samples)), samples.len());
    succeeds(table.apply(&puts(&samples)), samples.len());
    let known: Vec<_> = samples
        .iter()
        .map(|(key, value)| Change::Put {
            key: key.clone(),
            value: value.clone(),
            instead_of: Some(value.clone()),
        })
        .collect();
    succeeds(table.apply(&known), samples.len());
    holds(&mut table, &samples);
}

/// Promise 3: to drop what is gone already succeeds.
pub fn to_drop_what_is_gone_succeeds<S: TableSubject>(subject: &mut S) {
    let samples = first_values(subject);
    let mut table = subject.open();
    succeeds(table.apply(&drops(&samples)), samples.len());
    succeeds(table.apply(&puts(&samples)), samples.len());
    succeeds(table.apply(&drops(&samples)), samples.len());
    succeeds(table.apply(&drops(&samples)), samples.len());
    holds(&mut table, &[]);
}

/// Promise 2: there is one answer for each change, in order, and one change that fails stops no other.
pub fn a_change_that_fails_stops_no_other<S: TableSubject>(subject: &mut S) {
    let samples = first_values(subject);
    let mut table = subject.open();
    assert!(table.apply(&[]).is_empty(), "no change, no answer");
    let impossible = subject.impossible();
    let mut changes = puts(&samples);
    let middle = changes.len() / 2;
    changes.splice(middle..middle, puts(impossible.as_slice()));
    let answers: Vec<bool> = table.apply(&changes).iter().map(Result::is_ok).collect();
    let expected: Vec<bool> = (0..changes.len()).map(|i| impossible.is_none() || i != middle).collect();
    assert_eq!(answers, expected);
    holds(&mut table, &samples);
}

/// Promise 1: an object that is not ours is not read, and what is done to ours does nothing to it.
pub fn what_is_foreign_is_neither_read_nor_touched<S: TableSubject>(subject: &mut S) {
    let samples = first_values(subject);
    subject.add_foreign_objects();
    let mut table = subject.open();
    holds(&mut table, &[]);
    succeeds(table.apply(&puts(&samples)), samples.len());
    holds(&mut table, &samples);
    succeeds(table.apply(&drops(&samples)), samples.len());
    holds(&mut table, &[]);
    assert!(subject.foreign_is_unchanged(), "a foreign object was touched");
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

fn succeeds(answers: Vec<Result<(), flannel_core::BoxError>>, changes: usize) {
    assert_eq!(answers.len(), changes, "one answer for each change");
    for answer in answers {
        answer.expect("the change succeeds");
    }
}

/// Checks that a table holds just these objects, or such as will do.
fn holds<T: Table>(table: &mut T, expected: &[(T::Key, T::Value)]) {
    let mut read = table.read().expect("the table can be read");
    read.sort_by(|one, other| one.0.cmp(&other.0));
    let mut expected = expected.to_vec();
    expected.sort_by(|one, other| one.0.cmp(&other.0));
    let agrees = read.len() == expected.len()
        && read
            .iter()
            .zip(&expected)
            .all(|(read, wanted)| read.0 == wanted.0 && T::satisfies(&wanted.1, &read.1));
    assert!(agrees, "the table holds {read:?}, not {expected:?}");
}
