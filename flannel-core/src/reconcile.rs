//! Making one kind of kernel object what it should be.
//!
//! ```text
//!  what should be ──want / forget──▶ ┌─────────┐ ──missing──▶ put    ┐
//!                                    │ Tracker │                     ├─▶ Table::apply ─▶ an answer per object
//!  what there is  ──observe────────▶ └─────────┘ ──stale────▶ drop   ┘         │
//!        ▲                                ▲────────── settle ◀──────────────────┘
//!   Table::read, if in doubt
//! ```
//!
//! The [`Tracker`] decides and cannot touch anything; the [`Table`] obeys and decides nothing; a [`Reconciler`] holds
//! one of each. What should be and what there is are kept side by side, so a change of one object costs work for one
//! object, and doubt costs one read.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::{Duration, Instant};

use crate::backend::{ObjectFailure, SyncReport};
use crate::backoff::Backoff;
use crate::registry::BoxError;

mod pass;

pub use pass::{Layer, pass};

/// One kind of kernel object: how to read those that are ours, and how to write them.
///
/// Every implementation keeps these promises:
///
/// 1. `read` returns all objects that are ours and none that is not. An object may be returned more than once if the
///    kernel holds several under one key; the one that is in force comes first.
/// 2. `apply` answers once for each change, in order, and one change that fails stops no other.
/// 3. To put what is there already, and to drop what is gone already, succeeds.
pub trait Table {
    /// What tells the objects apart.
    type Key: Ord + Clone + Debug + Send;
    /// What is to be compared.
    type Value: PartialEq + Clone + Debug + Send;

    /// Names an object for reports, such as `route 10.5.3.0/24 via 10.5.3.0`.
    fn name(key: &Self::Key, value: &Self::Value) -> String;

    /// Tells whether what there is will do for what should be. Values that may differ freely are left out here.
    fn will_do(desired: &Self::Value, actual: &Self::Value) -> bool {
        desired == actual
    }

    /// Reads the objects that are ours.
    ///
    /// # Errors
    ///
    /// Whatever kept the table from being read whole.
    #[expect(clippy::type_complexity, reason = "pairs of the trait's own types read best as they are")]
    fn read(&mut self) -> Result<Vec<(Self::Key, Self::Value)>, BoxError>;

    /// Writes changes.
    fn apply(&mut self, changes: &[Change<Self::Key, Self::Value>]) -> Vec<Result<(), BoxError>>;
}

/// One write to a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<K, V> {
    /// Makes an object so, in place of what is known to be there.
    Put {
        /// Its key.
        key: K,
        /// What it shall be.
        value: V,
        /// What it is now.
        instead_of: Option<V>,
    },
    /// Removes an object.
    Drop {
        /// Its key.
        key: K,
        /// What it is now.
        value: V,
    },
}

impl<K, V> Change<K, V> {
    fn key(&self) -> &K {
        match self {
            Self::Put { key, .. } | Self::Drop { key, .. } => key,
        }
    }
}

/// What should be beside what there is, for one table. Pure.
#[derive(Debug)]
pub struct Tracker<K, V> {
    objects: BTreeMap<K, Object<V>>,
    /// Objects whose two sides may differ.
    open: BTreeSet<K>,
    /// Objects the kernel holds besides the one in force under the same key.
    surplus: Vec<(K, V)>,
    /// Objects that failed.
    waiting: BTreeMap<K, Waiting>,
    in_doubt: bool,
    will_do: fn(&V, &V) -> bool,
}

#[derive(Debug)]
struct Object<V> {
    desired: Option<V>,
    actual: Option<V>,
}

#[derive(Debug)]
struct Waiting {
    failures: u32,
    until: Instant,
    failure: ObjectFailure,
}

/// The pauses between attempts at one object: the first so short that a passing fault is not noticed, the longest so
/// long that thousands of failing objects cost little.
const RETRY: Backoff = Backoff { first: Duration::from_millis(50), longest: Duration::from_secs(30) };

impl<K: Ord + Clone, V: PartialEq + Clone> Tracker<K, V> {
    /// Starts with nothing wanted and nothing known.
    #[must_use]
    pub fn new(will_do: fn(&V, &V) -> bool) -> Self {
        Self {
            objects: BTreeMap::new(),
            open: BTreeSet::new(),
            surplus: Vec::new(),
            waiting: BTreeMap::new(),
            in_doubt: true,
            will_do,
        }
    }

    /// Says what an object should be.
    pub fn want(&mut self, key: K, value: V) {
        let object = self.objects.entry(key.clone()).or_insert(Object { desired: None, actual: None });
        if object.desired.as_ref() != Some(&value) {
            object.desired = Some(value);
            self.waiting.remove(&key);
            self.open.insert(key);
        }
    }

    /// Says that an object should not be.
    pub fn forget(&mut self, key: &K) {
        if let Some(object) = self.objects.get_mut(key)
            && object.desired.take().is_some()
        {
            self.waiting.remove(key);
            self.open.insert(key.clone());
        }
    }

    /// Says what all objects should be.
    pub fn want_exactly(&mut self, desired: BTreeMap<K, V>) {
        let gone: Vec<K> = self.objects.keys().filter(|key| !desired.contains_key(key)).cloned().collect();
        gone.iter().for_each(|key| self.forget(key));
        desired.into_iter().for_each(|(key, value)| self.want(key, value));
    }

    /// Returns what an object should be.
    #[must_use]
    pub fn wanted(&self, key: &K) -> Option<&V> {
        self.objects.get(key)?.desired.as_ref()
    }

    /// Returns what is believed to be there and in force.
    #[must_use]
    pub fn believed(&self, key: &K) -> Option<&V> {
        self.objects.get(key)?.actual.as_ref()
    }

    /// Says that the kernel may have changed: the table is to be read before the next write.
    pub fn distrust(&mut self) {
        self.in_doubt = true;
    }

    /// Lets an object that failed be tried again at once, because what was in its way may be gone.
    pub fn retry(&mut self, key: &K) {
        self.waiting.remove(key);
    }

    /// Lets all objects that failed be tried again at once, because what was in their way may be gone.
    pub fn retry_all(&mut self) {
        self.waiting.clear();
    }

    /// Tells whether the table is to be read before the next write.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// Takes in everything there is, and returns how many objects are not as they were believed to be.
    pub fn observe(&mut self, read: impl IntoIterator<Item = (K, V)>) -> usize {
        self.in_doubt = false;
        self.surplus.clear();
        let mut seen: BTreeMap<K, V> = BTreeMap::new();
        for (key, value) in read {
            match seen.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(value);
                }
                Entry::Occupied(mut entry) => {
                    let wanted = self.wanted(entry.key());
                    let better = wanted.is_some_and(|wanted| {
                        !(self.will_do)(wanted, entry.get()) && (self.will_do)(wanted, &value)
                    });
                    let surplus = if better { entry.insert(value) } else { value };
                    self.surplus.push((entry.key().clone(), surplus));
                }
            }
        }
        let mut drifted = 0;
        // Both sides are in the order of their keys, so one walk finds all pairs.
        let mut seen = seen.into_iter().peekable();
        let mut unknown = Vec::new();
        for (key, object) in &mut self.objects {
            unknown.extend(std::iter::from_fn(|| seen.next_if(|(other, _)| other < key)));
            let actual = seen.next_if(|(other, _)| other == key).map(|(_, value)| value);
            if object.actual != actual {
                if object.actual.is_some() {
                    drifted += 1;
                    self.waiting.remove(key);
                }
                self.open.insert(key.clone());
                object.actual = actual;
            }
        }
        for (key, value) in unknown.into_iter().chain(seen) {
            self.open.insert(key.clone());
            self.objects.insert(key, Object { desired: None, actual: Some(value) });
        }
        drifted
    }

    /// Lists the objects to be put now.
    #[must_use]
    pub fn missing(&self, now: Instant) -> Vec<Change<K, V>> {
        self.due(now).filter_map(|(key, object)| self.put(key, object)).collect()
    }

    /// Lists the objects to be dropped now.
    #[must_use]
    pub fn stale(&self, now: Instant) -> Vec<Change<K, V>> {
        let unwanted = self.due(now).filter_map(|(key, object)| match object {
            Object { desired: None, actual: Some(value) } => Some((key, value)),
            Object { .. } => None,
        });
        let surplus = self
            .surplus
            .iter()
            .filter(|(key, value)| self.is_due(key, now) && self.may_go(key, value))
            .map(|(key, value)| (key, value));
        unwanted
            .chain(surplus)
            .map(|(key, value)| Change::Drop { key: key.clone(), value: value.clone() })
            .collect()
    }

    /// Tells whether a surplus object may be dropped. One that is waiting to be put in force may not: it could be all
    /// there is for a while. Nor may one that cannot be told from the one in force.
    fn may_go(&self, key: &K, value: &V) -> bool {
        self.objects.get(key).is_none_or(|object| {
            let waits = object.desired.as_ref() == Some(value) && self.put(key, object).is_some();
            object.actual.as_ref() != Some(value) && !waits
        })
    }

    fn put(&self, key: &K, object: &Object<V>) -> Option<Change<K, V>> {
        let value = object.desired.clone()?;
        let instead_of = object.actual.clone();
        let will_do = instead_of.as_ref().is_some_and(|actual| (self.will_do)(&value, actual));
        (!will_do).then(|| Change::Put { key: key.clone(), value, instead_of })
    }

    fn due(&self, now: Instant) -> impl Iterator<Item = (&K, &Object<V>)> {
        self.open
            .iter()
            .filter(move |key| self.is_due(key, now))
            .filter_map(|key| self.objects.get_key_value(key))
    }

    fn is_due(&self, key: &K, now: Instant) -> bool {
        self.waiting.get(key).is_none_or(|waiting| waiting.until <= now)
    }

    /// Takes in the answer to a change.
    pub fn settle(&mut self, change: Change<K, V>, result: Result<(), ObjectFailure>, now: Instant) {
        match (change, result) {
            (change, Err(failure)) => {
                let key = change.key().clone();
                let failures = self.waiting.get(&key).map_or(0, |waiting| waiting.failures);
                let until = now + RETRY.delay(failures, 0.0);
                self.waiting.insert(key, Waiting { failures: failures.saturating_add(1), until, failure });
            }
            (Change::Put { key, value, .. }, Ok(())) => {
                self.waiting.remove(&key);
                if let Some(object) = self.objects.get_mut(&key) {
                    object.actual = Some(value);
                }
            }
            (Change::Drop { key, value }, Ok(())) => {
                // What else failed under the key of a surplus object goes on waiting.
                if !self.take_surplus(&key, &value) {
                    self.waiting.remove(&key);
                    if let Some(object) = self.objects.get_mut(&key) {
                        object.actual = None;
                    }
                }
            }
        }
    }

    fn take_surplus(&mut self, key: &K, value: &V) -> bool {
        let found = self.surplus.iter().position(|surplus| surplus.0 == *key && surplus.1 == *value);
        found.map(|i| self.surplus.swap_remove(i)).is_some()
    }

    /// Lets go of objects that are as they should be. Called when all answers are in.
    pub fn close(&mut self) {
        let Self { objects, open, will_do, .. } = self;
        open.retain(|key| match objects.get(key) {
            Some(Object { desired: Some(desired), actual: Some(actual) }) => !will_do(desired, actual),
            Some(Object { desired: None, actual: None }) => {
                objects.remove(key);
                false
            }
            Some(Object { desired: Some(_), actual: None } | Object { desired: None, actual: Some(_) }) => {
                true
            }
            None => false,
        });
        if !self.waiting.is_empty() {
            let surplus: BTreeSet<&K> = self.surplus.iter().map(|(key, _)| key).collect();
            self.waiting.retain(|key, _| self.open.contains(key) || surplus.contains(key));
        }
    }

    /// Lists what failed and waits.
    pub fn failures(&self) -> impl Iterator<Item = &ObjectFailure> {
        self.waiting.values().map(|waiting| &waiting.failure)
    }

    /// Returns how long until the first failed object may be tried again, or the table is to be read again.
    #[must_use]
    pub fn retry_in(&self, now: Instant) -> Option<Duration> {
        let failed = self.waiting.values().map(|waiting| waiting.until.saturating_duration_since(now));
        failed.chain(self.in_doubt.then_some(RETRY.first)).min()
    }
}

/// A table with its tracker.
#[derive(Debug)]
pub struct Reconciler<T: Table> {
    /// What should be, and what is believed to be there.
    pub tracker: Tracker<T::Key, T::Value>,
    table: T,
}

impl<T: Table> Reconciler<T> {
    /// Starts with nothing wanted and nothing known.
    pub fn new(table: T) -> Self {
        Self { tracker: Tracker::new(T::will_do), table }
    }

    /// Returns the table.
    pub fn table(&mut self) -> &mut T {
        &mut self.table
    }

    /// Reads the table if it is in doubt. If that fails the doubt stays, and what is believed is worked with.
    pub fn look(&mut self, what: &str) -> SyncReport {
        let mut report = SyncReport::default();
        if self.tracker.is_in_doubt() {
            match self.table.read() {
                Ok(read) => report.drifted = self.tracker.observe(read),
                Err(error) => report.failed.push(failure(what.to_owned(), error.as_ref())),
            }
        }
        report
    }

    /// Puts what is missing. If that leaves it open what there is, the table is read again.
    pub fn put_missing(&mut self, now: Instant) -> SyncReport {
        let was_in_doubt = self.tracker.is_in_doubt();
        let changes = self.tracker.missing(now);
        let mut report = SyncReport { written: self.apply(changes, now), ..SyncReport::default() };
        if !was_in_doubt {
            report.merge(self.look("what there is after a write"));
        }
        report
    }

    /// Drops what is stale.
    pub fn drop_stale(&mut self, now: Instant) -> SyncReport {
        // What was just put need not be looked at again.
        self.tracker.close();
        let changes = self.tracker.stale(now);
        SyncReport { removed: self.apply(changes, now), ..SyncReport::default() }
    }

    /// Ends a pass and reports what failed.
    pub fn finish(&mut self, now: Instant) -> SyncReport {
        self.tracker.close();
        SyncReport {
            failed: self.tracker.failures().cloned().collect(),
            retry_in: self.tracker.retry_in(now),
            ..SyncReport::default()
        }
    }

    fn apply(&mut self, changes: Vec<Change<T::Key, T::Value>>, now: Instant) -> usize {
        if changes.is_empty() {
            return 0;
        }
        let results = self.table.apply(&changes);
        let mut done = 0;
        for (change, result) in changes.into_iter().zip(results) {
            let result = result.map_err(|error| failure(change_name::<T>(&change), error.as_ref()));
            done += usize::from(result.is_ok());
            self.tracker.settle(change, result, now);
        }
        done
    }
}

fn change_name<T: Table>(change: &Change<T::Key, T::Value>) -> String {
    match change {
        Change::Put { key, value, .. } | Change::Drop { key, value } => T::name(key, value),
    }
}

fn failure(object: String, error: &(dyn std::error::Error + 'static)) -> ObjectFailure {
    ObjectFailure { object, reason: crate::chain(error) }
}

#[cfg(test)]
mod tests;
