//! The result of a reconcile pass.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::subnet::SubnetKey;

/// The result of [`Backend::sync`](crate::Backend::sync).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyncReport {
    /// The number of objects written.
    pub written: usize,
    /// The number of objects removed.
    pub removed: usize,
    /// The number of objects that had drifted: they differed from what the backend last wrote.
    pub drifted: usize,
    /// Objects that couldn't be written or removed, and will be retried.
    pub failed: Vec<ObjectFailure>,
    /// Peers that wait for an object that will be retried. Lists all of them, not only those that changed.
    pub pending: Vec<PeerFailure>,
    /// Peers that this backend can't reach at all. Lists all of them, not only those that changed.
    pub unreachable: Vec<PeerFailure>,
    /// The time until the first failed object may be retried.
    pub retry_in: Option<Duration>,
}

impl SyncReport {
    /// Adds the result of another part of the same pass.
    pub fn merge(&mut self, other: Self) {
        self.written += other.written;
        self.removed += other.removed;
        self.drifted += other.drifted;
        self.failed.extend(other.failed);
        self.pending.extend(other.pending);
        self.unreachable.extend(other.unreachable);
        self.retry_in = [self.retry_in, other.retry_in].into_iter().flatten().min();
    }
}

/// A kernel object that couldn't be written or removed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ObjectFailure {
    /// The object, such as `route 10.5.3.0/24 via 10.5.3.0`.
    pub object: String,
    /// The cause.
    pub reason: String,
}

impl ObjectFailure {
    /// Creates a failure of an object.
    #[must_use]
    pub fn new(object: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { object: object.into(), reason: reason.into() }
    }
}

impl fmt::Display for ObjectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.reason)
    }
}

/// A peer that isn't reachable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct PeerFailure {
    /// The peer's subnet.
    pub peer: SubnetKey,
    /// The cause.
    pub reason: String,
}

impl PeerFailure {
    /// Creates a failure of a peer.
    #[must_use]
    pub fn new(peer: SubnetKey, reason: impl Into<String>) -> Self {
        Self { peer, reason: reason.into() }
    }
}

impl fmt::Display for PeerFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {}: {}", self.peer, self.reason)
    }
}
