//! Records of both stores, and the outcome of their migration.

use std::time::Duration;

use flannel_core::{Lease, SubnetKey};

/// A record of the v2 store.
#[derive(Clone, Debug)]
pub(crate) struct SourceRecord {
    pub(crate) lease: Lease,
    /// The stored text.
    pub(crate) record: String,
    /// The remaining TTL; `None` if the record is permanent.
    pub(crate) ttl: Option<Duration>,
}

/// A record of the v3 store.
#[derive(Clone, Debug)]
pub(crate) struct TargetRecord {
    pub(crate) lease: Lease,
    /// The stored text.
    pub(crate) record: Vec<u8>,
    pub(crate) author: RecordAuthor,
    /// The remaining TTL of a copy; zero if permanent.
    pub(crate) ttl: Duration,
}

/// The last writer of a record of the v3 store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordAuthor {
    /// An earlier migration; no host has taken the record over.
    Migration,
    /// A host that uses v3, or an operator.
    Host,
}

/// The outcome of a migration for a lease or the network config.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MigrationOutcome {
    /// Copied, with this TTL if it is not permanent.
    Copied(Option<Duration>),
    /// An older copy was updated, with this TTL if it is not permanent.
    Updated(Option<Duration>),
    /// The v3 store already has an up-to-date copy.
    UpToDate,
    /// The host already uses v3, with this subnet.
    AlreadyMoved(SubnetKey),
    /// The lease expires within a second.
    Expiring,
    /// The v3 store has a conflicting record, which stays; an operator must decide.
    Conflict(String),
}
