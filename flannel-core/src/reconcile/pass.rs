//! A pass over several tables that depend on each other.

use std::time::Instant;

use super::reconciler::Reconciler;
use super::table::Table;
use crate::report::SyncReport;

/// One table in a [pass](pass()), whatever its objects are. Each [`Reconciler`] is one; [`Table`] has an example.
pub trait TableSync {
    /// Reads the table if the actual state is stale. `what` names the table in the report.
    fn refresh(&mut self, what: &str) -> SyncReport;

    /// Puts missing objects.
    fn put_missing(&mut self, now: Instant) -> SyncReport;

    /// Drops unwanted objects.
    fn drop_unwanted(&mut self, now: Instant) -> SyncReport;

    /// Ends the pass and reports the failures.
    fn finish(&mut self, now: Instant) -> SyncReport;
}

impl<T: Table> TableSync for Reconciler<T> {
    fn refresh(&mut self, what: &str) -> SyncReport {
        Self::refresh(self, what)
    }

    fn put_missing(&mut self, now: Instant) -> SyncReport {
        Self::put_missing(self, now)
    }

    fn drop_unwanted(&mut self, now: Instant) -> SyncReport {
        Self::drop_unwanted(self, now)
    }

    fn finish(&mut self, now: Instant) -> SyncReport {
        Self::finish(self, now)
    }
}

/// Reconciles tables in the order in which they must be written: a packet's last lookup first, so that no entry refers to a
/// missing one. Unwanted objects are dropped in the opposite order.
///
/// Nothing is dropped unless the desired state is `complete`: before that, an unwanted object may only be unknown.
pub fn pass(tables: &mut [(&str, &mut dyn TableSync)], complete: bool, now: Instant) -> SyncReport {
    let mut report = SyncReport::default();
    for (what, table) in &mut *tables {
        report.merge(table.refresh(what));
    }
    for (_, table) in &mut *tables {
        report.merge(table.put_missing(now));
    }
    if complete {
        for (_, table) in tables.iter_mut().rev() {
            report.merge(table.drop_unwanted(now));
        }
    }
    for (_, table) in tables {
        report.merge(table.finish(now));
    }
    report
}
