//! A table with its tracker.

use std::time::Instant;

use super::table::{Change, Table};
use super::tracker::Tracker;
use crate::plan::PlannedChange;
use crate::registry::BoxError;
use crate::report::{ObjectFailure, SyncReport};

/// A table with its tracker.
#[derive(Debug)]
pub struct Reconciler<T: Table> {
    /// The desired and the actual state.
    pub tracker: Tracker<T::Key, T::Value>,
    table: T,
}

impl<T: Table> Reconciler<T> {
    /// Creates a reconciler that desires and knows nothing.
    pub fn new(table: T) -> Self {
        Self { tracker: Tracker::new(T::satisfies), table }
    }

    /// Returns the table.
    pub fn table(&mut self) -> &mut T {
        &mut self.table
    }

    /// Reads the table if the actual state is stale. If that fails it stays stale, and the last known state is used. `what`
    /// names the table in the report.
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

    /// Puts missing objects. Reads the table again if a write leaves the actual state uncertain.
    pub fn put_missing(&mut self, now: Instant) -> SyncReport {
        let was_stale = self.tracker.is_stale();
        let changes = self.tracker.missing(now);
        let mut report = SyncReport { written: self.apply(changes, now), ..SyncReport::default() };
        if !was_stale {
            report.merge(self.refresh("the table after a write"));
        }
        report
    }

    /// Drops unwanted objects.
    pub fn drop_unwanted(&mut self, now: Instant) -> SyncReport {
        // Skips the objects that were just put.
        self.tracker.close();
        let changes = self.tracker.unwanted(now);
        SyncReport { removed: self.apply(changes, now), ..SyncReport::default() }
    }

    /// Returns the objects that a pass would put, and those that it would drop. A table that doesn't exist yet counts as
    /// empty. Writes nothing.
    ///
    /// # Errors
    ///
    /// Any error that prevented a complete read.
    pub fn plan(&mut self, exists: bool) -> Result<(Vec<PlannedChange>, Vec<PlannedChange>), BoxError> {
        let read = if exists { self.table.read()? } else { Vec::new() };
        self.tracker.observe(read);
        let planned = |change: Change<T::Key, T::Value>| match change {
            Change::Put { key, value, instead_of } => {
                let instead_of = instead_of.map(|actual| T::name(&key, &actual));
                PlannedChange::put(T::name(&key, &value), instead_of)
            }
            Change::Drop { key, value } => PlannedChange::remove(T::name(&key, &value)),
        };
        // Nothing failed yet, so the time doesn't matter.
        let now = tokio::time::Instant::now().into_std();
        let (puts, drops) = (self.tracker.missing(now), self.tracker.unwanted(now));
        Ok((puts.into_iter().map(planned).collect(), drops.into_iter().map(planned).collect()))
    }

    /// Ends the pass and reports the failures.
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
