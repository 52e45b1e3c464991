//! A pass over several tables of which one leads to the next.

use std::time::Instant;

use super::{Reconciler, Table};
use crate::backend::SyncReport;

/// A table with its tracker, whatever its objects are.
///
/// A [`Reconciler`] of any table is one; [`Table`] has an example, which [`pass()`] goes through.
pub trait TableSync {
    /// Reads the table if it is in doubt; `what` names it in the report.
    fn refresh(&mut self, what: &str) -> SyncReport;

    /// Puts what is missing.
    fn put_missing(&mut self, now: Instant) -> SyncReport;

    /// Drops what is stale.
    fn drop_unwanted(&mut self, now: Instant) -> SyncReport;

    /// Ends the pass and reports what failed.
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

/// Makes one pass over tables, named and in the order in which they are to be written: a packet's last refresh-up first,
/// so that nothing leads to what is not there yet. What is stale goes the other way round.
///
/// Nothing is dropped unless what should be is `complete`: before that, what looks stale may only be unknown.
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
