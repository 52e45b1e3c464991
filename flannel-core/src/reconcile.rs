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

use std::fmt::Debug;
use std::time::Instant;

use crate::backend::{ObjectFailure, SyncReport};
use crate::plan::PlannedChange;
use crate::registry::BoxError;

mod pass;
mod tracker;

pub use pass::{TableSync, pass};
pub use tracker::Tracker;

/// One kind of kernel object: how to read those that are ours, and how to write them.
///
/// Every implementation keeps these promises:
///
/// 1. `read` returns all objects that are ours and none that is not. An object may be returned more than once if the
///    kernel holds several under one key; the one that is in force comes first.
/// 2. `apply` answers once for each change, in order, and one change that fails stops no other.
/// 3. To put what is there already, and to drop what is gone already, succeeds.
///
/// A table in memory, made what it should be:
///
/// ```
/// use std::collections::BTreeMap;
/// use std::time::Instant;
/// use flannel_core::BoxError;
/// use flannel_core::reconcile::{Change, Reconciler, Table, pass};
///
/// struct Routes(BTreeMap<&'static str, &'static str>);
///
/// impl Table for Routes {
///     type Key = &'static str;
///     type Value = &'static str;
///
///     fn name(subnet: &Self::Key, host: &Self::Value) -> String {
///         format!("route {subnet} via {host}")
///     }
///     fn read(&mut self) -> Result<Vec<(Self::Key, Self::Value)>, BoxError> {
///         Ok(self.0.clone().into_iter().collect())
///     }
///     fn apply(&mut self, changes: &[Change<Self::Key, Self::Value>]) -> Vec<Result<(), BoxError>> {
///         let mut apply = |change: &Change<_, _>| match change {
///             Change::Put { key, value, .. } => drop(self.0.insert(*key, *value)),
///             Change::Drop { key, .. } => drop(self.0.remove(*key)),
///         };
///         changes.iter().map(|change| Ok(apply(change))).collect()
///     }
/// }
///
/// let stale = BTreeMap::from([("10.5.9.0/24", "192.168.64.9")]);
/// let mut routes = Reconciler::new(Routes(stale));
/// routes.tracker.set_desired("10.5.2.0/24", "192.168.64.2");
/// let report = pass(&mut [("the routes", &mut routes)], true, Instant::now());
/// assert_eq!((report.written, report.removed), (1, 1));
/// assert_eq!(routes.table().0, BTreeMap::from([("10.5.2.0/24", "192.168.64.2")]));
/// ```
pub trait Table {
    /// What tells the objects apart.
    type Key: Ord + Clone + Debug + Send;
    /// What is to be compared.
    type Value: PartialEq + Clone + Debug + Send;

    /// Names an object for reports, such as `route 10.5.3.0/24 via 10.5.3.0`.
    fn name(key: &Self::Key, value: &Self::Value) -> String;

    /// Tells whether what there is will do for what should be. Values that may differ freely are left out here.
    fn satisfies(desired: &Self::Value, actual: &Self::Value) -> bool {
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
        Self { tracker: Tracker::new(T::satisfies), table }
    }

    /// Returns the table.
    pub fn table(&mut self) -> &mut T {
        &mut self.table
    }

    /// Reads the table if it is in doubt. If that fails the doubt stays, and what is believed is worked with.
    pub fn refresh(&mut self, what: &str) -> SyncReport {
        let mut report = SyncReport::default();
        if self.tracker.is_stale() {
            match self.table.read() {
                Ok(read) => report.drifted = self.tracker.observe(read),
                Err(error) => report.failed.push(failure(what.to_owned(), error.as_ref())),
            }
        }
        report
    }

    /// Puts what is missing. If that leaves it open what there is, the table is read again.
    pub fn put_missing(&mut self, now: Instant) -> SyncReport {
        let was_stale = self.tracker.is_stale();
        let changes = self.tracker.missing(now);
        let mut report = SyncReport { written: self.apply(changes, now), ..SyncReport::default() };
        if !was_stale {
            report.merge(self.refresh("what there is after a write"));
        }
        report
    }

    /// Drops what is stale.
    pub fn drop_unwanted(&mut self, now: Instant) -> SyncReport {
        // What was just put need not be looked at again.
        self.tracker.close();
        let changes = self.tracker.unwanted(now);
        SyncReport { removed: self.apply(changes, now), ..SyncReport::default() }
    }

    /// Tells what a pass would put, and what it would drop, in the kernel as it is now; for a table that `is_there`, or
    /// else is to be made. Writes nothing.
    ///
    /// # Errors
    ///
    /// Whatever kept the table from being read.
    pub fn plan(&mut self, is_there: bool) -> Result<(Vec<PlannedChange>, Vec<PlannedChange>), BoxError> {
        let read = if is_there { self.table.read()? } else { Vec::new() };
        self.tracker.observe(read);
        let planned = |change: Change<T::Key, T::Value>| match change {
            Change::Put { key, value, instead_of } => {
                let instead_of = instead_of.map(|actual| T::name(&key, &actual));
                PlannedChange::put(T::name(&key, &value), instead_of)
            }
            Change::Drop { key, value } => PlannedChange::remove(T::name(&key, &value)),
        };
        // Nothing was tried, so nothing waits, whatever the time.
        let now = tokio::time::Instant::now().into_std();
        let (puts, drops) = (self.tracker.missing(now), self.tracker.unwanted(now));
        Ok((puts.into_iter().map(planned).collect(), drops.into_iter().map(planned).collect()))
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
    ObjectFailure::new(object, crate::chain(error))
}
