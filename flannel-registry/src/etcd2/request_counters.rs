//! Numbers of requests to etcd, by kind.

use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers of requests that a registry has made to etcd; each attempt counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Etcd2Calls {
    /// `GET`: one for the config, one for a list of any length.
    pub reads: u64,
    /// `PUT` and `DELETE`: one per write of a record and one per renewal.
    pub writes: u64,
    /// `GET` with `wait=true`: one per event, unless many arrive at once, and one per quiet period.
    pub polls: u64,
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallKind {
    Read,
    Write,
    Poll,
}

/// Counters of requests.
#[derive(Debug, Default)]
pub(super) struct RequestCounters([AtomicU64; 3]);

impl RequestCounters {
    /// Counts one request.
    pub(super) fn count(&self, call: CallKind) {
        // The discriminants of `CallKind` are the indices of the array.
        if let Some(counter) = self.0.get(call as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the current counts.
    pub(super) fn read(&self) -> Etcd2Calls {
        let [reads, writes, polls] = self.0.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        Etcd2Calls { reads, writes, polls }
    }
}
