//! How much of the history of the configuration is known.

use std::sync::atomic::{AtomicU64, Ordering};

/// The revision of the store at which the configuration was read last; zero before.
#[derive(Debug, Default)]
pub(crate) struct ConfigRead(AtomicU64);

impl ConfigRead {
    /// Takes note that it was read at this revision.
    pub(crate) fn at(&self, revision: u64) {
        self.0.store(revision, Ordering::Relaxed);
    }

    /// The revision, if it was read.
    pub(crate) fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|revision| *revision > 0)
    }
}
