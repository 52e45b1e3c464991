//! The revision at which the network config was last read.

use std::sync::atomic::{AtomicU64, Ordering};

/// The store's revision at the last read of the network config; zero before the first read.
#[derive(Debug, Default)]
pub(crate) struct ConfigRevision(AtomicU64);

impl ConfigRevision {
    /// Records a read at this revision.
    pub(crate) fn set(&self, revision: u64) {
        self.0.store(revision, Ordering::Relaxed);
    }

    /// Returns the revision of the last read.
    pub(crate) fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|revision| *revision > 0)
    }
}
