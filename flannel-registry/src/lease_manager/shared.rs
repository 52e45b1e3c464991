//! The state that a manager and its streams share.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flannel_core::{Lease, LeaseAttrs, NodeId, PublicAddrs, Snapshot};
use tokio::sync::watch;

use super::options::RegistryLeaseManagerOptions;
use super::peer_view::OwnRecord;

#[derive(Debug)]
pub(super) struct Shared<R> {
    pub(super) registry: R,
    pub(super) options: RegistryLeaseManagerOptions,
    pub(super) state: Mutex<State>,
    /// The state of the own record as the watch last saw it, until the renewal takes it.
    pub(super) own_record: watch::Sender<Option<OwnRecord>>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) random: fastrand::Rng,
    /// The last list, until a watch starts from it.
    pub(super) last_list: Option<LastList>,
    /// The TTL that the registry granted at the last renewal.
    pub(super) granted: Duration,
    /// The lease as last read or written; the next write compares its revision.
    pub(super) held: Option<Lease>,
    /// The owner that the reused record named, if its id or address differs from this host's.
    pub(super) taken_from: Option<LeaseOwner>,
    /// The ids of other hosts that use this host's address.
    pub(super) others: BTreeSet<NodeId>,
}

/// The owner that a record names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeaseOwner {
    pub(super) public: PublicAddrs,
    pub(super) node: Option<NodeId>,
}

impl LeaseOwner {
    /// Returns the owner that attributes name.
    pub(super) fn of(attrs: &LeaseAttrs) -> Self {
        Self { public: attrs.public, node: attrs.node }
    }
}

#[derive(Debug)]
pub(super) struct LastList {
    pub(super) snapshot: Snapshot,
    /// Whether no acquisition has used it yet.
    pub(super) fresh: bool,
}

impl<R> Shared<R> {
    /// Returns the state. A panic cannot leave it half written, so poisoning means nothing.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the TTL that the registry granted. A TTL that is longer than requested does not delay the next renewal.
    pub(super) fn set_granted(&self, ttl: Duration) {
        self.state().granted = ttl.min(self.options.ttl);
    }

    /// Returns the id of this host, if it has one.
    pub(super) fn node(&self) -> Option<NodeId> {
        self.options.identity.as_ref().map(|identity| identity.id())
    }

    /// Returns a random number between 0 and 1.
    pub(super) fn random(&self) -> f64 {
        self.state().random.f64()
    }
}
