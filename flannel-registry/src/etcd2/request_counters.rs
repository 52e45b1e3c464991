//! How often etcd was asked, by kind of call.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many requests a registry made to etcd since it was opened, each attempt counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Etcd2Calls {
    /// `GET`: one for the configuration, one for a list however long it is.
    pub reads: u64,
    /// `PUT` and `DELETE`: one for each write of a record, and one for each renewal.
    pub writes: u64,
    /// `GET` with `wait=true`: one for each event, unless many come at once, and for each time that nothing happened for
    /// a while.
    pub polls: u64,
}

/// One kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Read,
    Write,
    Poll,
}

/// Counts calls.
#[derive(Debug, Default)]
pub(super) struct Counters([AtomicU64; 3]);

impl Counters {
    /// Counts one call.
    pub(super) fn count(&self, call: Call) {
        // The discriminants of `Call` are the indices of the array.
        if let Some(counter) = self.0.get(call as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reads all counters.
    pub(super) fn read(&self) -> Etcd2Calls {
        let [reads, writes, polls] = self.0.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        Etcd2Calls { reads, writes, polls }
    }
}
