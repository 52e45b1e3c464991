//! The peers of a host, and their changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::lease::Lease;
use crate::lease_map::LeaseMap;
use crate::lease_set::LeaseChange;
use crate::subnet::SubnetKey;

/// The other hosts of the network, as last reported.
///
/// ```
/// use flannel_core::{LeaseChange, PeerSet};
///
/// let mut peers = PeerSet::default();
/// assert!(!peers.is_complete(), "a backend must not remove anything yet");
/// peers.complete();
/// peers.apply(LeaseChange::Removed("10.5.1.0/24".parse()?));
/// assert_eq!(peers.iter().count(), 0);
/// # Ok::<(), flannel_core::SubnetKeyError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct PeerSet {
    /// The note is the time at which the peer joined, in seconds since an epoch of the owner.
    peers: LeaseMap<u32>,
    complete: bool,
}

impl PeerSet {
    /// Creates a complete set.
    pub fn all_of<L: Into<Arc<Lease>>>(peers: impl IntoIterator<Item = L>) -> Self {
        Self { peers: peers.into_iter().map(Into::into).collect(), complete: true }
    }

    /// Applies a change.
    pub fn apply(&mut self, change: LeaseChange) {
        match change {
            LeaseChange::Put(lease) => self.insert(lease, 0),
            LeaseChange::Removed(subnet) | LeaseChange::Released(subnet) => self.remove(&subnet),
        };
    }

    /// Adds a peer, and returns its previous lease. The time counts for a new peer only.
    pub(crate) fn insert(&mut self, lease: Arc<Lease>, now: u32) -> Option<Arc<Lease>> {
        let joined = self.joined(&lease.subnet).unwrap_or(now);
        self.peers.insert(lease, joined)
    }

    /// Removes a peer, and returns its lease.
    pub(crate) fn remove(&mut self, subnet: &SubnetKey) -> Option<Arc<Lease>> {
        self.peers.remove(subnet)
    }

    /// Returns the time at which a peer joined.
    pub(crate) fn joined(&self, subnet: &SubnetKey) -> Option<u32> {
        self.peers.note(subnet)
    }

    /// Marks the set as complete: a host that isn't in it doesn't exist.
    pub fn complete(&mut self) {
        self.complete = true;
    }

    /// Returns true if all peers are known. Before that, nothing may be considered stale.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Returns the peer with this subnet.
    #[must_use]
    pub fn peer(&self, subnet: &SubnetKey) -> Option<&Arc<Lease>> {
        self.peers.get(subnet)
    }

    /// Iterates over the peers in the order of their subnets.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.peers.iter()
    }

    /// Returns the number of peers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Returns true if there are no peers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Extend<LeaseChange> for PeerSet {
    fn extend<I: IntoIterator<Item = LeaseChange>>(&mut self, changes: I) {
        for change in changes {
            self.apply(change);
        }
    }
}

/// A change of one peer, after damping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// The peer is new.
    Joined(Arc<Lease>),
    /// The peer's attributes changed.
    Changed(Arc<Lease>),
    /// The peer's lease disappeared, and the network keeps the peer for a while.
    Held {
        /// The lease.
        lease: Arc<Lease>,
        /// Whether the peer had been reported as left, and is now back.
        was_gone: bool,
    },
    /// The peer is gone.
    Left(SubnetKey),
}

impl PeerChange {
    /// Returns the peer's subnet.
    #[must_use]
    pub fn subnet(&self) -> SubnetKey {
        match self {
            Self::Joined(lease) | Self::Changed(lease) | Self::Held { lease, .. } => lease.subnet,
            Self::Left(subnet) => *subnet,
        }
    }
}

impl From<&PeerChange> for LeaseChange {
    /// Returns the change of the lease. A held peer stays.
    fn from(change: &PeerChange) -> Self {
        match change {
            PeerChange::Joined(lease) | PeerChange::Changed(lease) | PeerChange::Held { lease, .. } => {
                Self::Put(Arc::clone(lease))
            }
            PeerChange::Left(subnet) => Self::Removed(*subnet),
        }
    }
}

/// The peers that may have changed since the last pass.
///
/// It is a hint that saves work: `All` is always correct in place of another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dirty {
    /// Any peer.
    All,
    /// Only these peers.
    Some(BTreeSet<SubnetKey>),
}

impl Dirty {
    /// No peer changed.
    pub const NONE: Self = Self::Some(BTreeSet::new());

    /// Adds a peer.
    pub fn add(&mut self, subnet: SubnetKey) {
        match self {
            Self::All => {}
            Self::Some(subnets) => {
                subnets.insert(subnet);
            }
        }
    }
}
