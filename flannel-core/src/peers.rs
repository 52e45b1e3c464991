//! The peers of a host, and which of them changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::lease_map::LeaseMap;
use crate::lease_set::LeaseChange;
use crate::{Lease, SubnetKey};

/// All other hosts of the network, as last heard.
///
/// ```
/// use flannel_core::{LeaseChange, PeerSet};
///
/// let mut peers = PeerSet::default();
/// assert!(!peers.is_complete(), "nothing may be removed from the kernel yet");
/// peers.complete();
/// peers.apply(LeaseChange::Removed("10.5.1.0-24".parse()?));
/// assert_eq!(peers.iter().count(), 0);
/// # Ok::<(), flannel_core::SubnetKeyError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct PeerSet {
    peers: LeaseMap,
    complete: bool,
}

impl PeerSet {
    /// Takes these for all peers there are.
    pub fn all_of<L: Into<Arc<Lease>>>(peers: impl IntoIterator<Item = L>) -> Self {
        Self { peers: peers.into_iter().map(Into::into).collect(), complete: true }
    }

    /// Takes in one change.
    pub fn apply(&mut self, change: LeaseChange) {
        match change {
            LeaseChange::Put(lease) => self.insert(lease),
            LeaseChange::Removed(subnet) => self.remove(&subnet),
        };
    }

    /// Adds a peer, and returns what it was before.
    pub(crate) fn insert(&mut self, lease: Arc<Lease>) -> Option<Arc<Lease>> {
        self.peers.insert(lease)
    }

    /// Removes a peer, and returns what it was.
    pub(crate) fn remove(&mut self, subnet: &SubnetKey) -> Option<Arc<Lease>> {
        self.peers.remove(subnet)
    }

    /// Says that all peers are known now, so that whoever is not among them does not exist.
    pub fn complete(&mut self) {
        self.complete = true;
    }

    /// Tells whether all peers are known. Before that, nothing may be taken for stale.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Returns one peer.
    #[must_use]
    pub fn peer(&self, subnet: &SubnetKey) -> Option<&Arc<Lease>> {
        self.peers.get(subnet)
    }

    /// Walks over the peers in the order of their subnets.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.peers.iter()
    }

    /// Returns the number of peers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Tells whether there is no peer.
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

/// How one peer changed; there is no other way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// It was not there before.
    Joined(Arc<Lease>),
    /// It says something new about itself.
    Changed(Arc<Lease>),
    /// It is gone.
    Left(SubnetKey),
}

impl PeerChange {
    /// Returns the subnet of the peer.
    #[must_use]
    pub fn subnet(&self) -> SubnetKey {
        match self {
            Self::Joined(lease) | Self::Changed(lease) => lease.subnet,
            Self::Left(subnet) => *subnet,
        }
    }
}

/// Which peers may have changed since they were last looked at.
///
/// It is a hint that saves work: to take `All` for any other value is always right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dirty {
    /// Any of them.
    All,
    /// These only.
    Some(BTreeSet<SubnetKey>),
}

impl Dirty {
    /// Says that no peer changed.
    pub const NONE: Self = Self::Some(BTreeSet::new());

    /// Adds one peer.
    pub fn add(&mut self, subnet: SubnetKey) {
        match self {
            Self::All => {}
            Self::Some(subnets) => {
                subnets.insert(subnet);
            }
        }
    }
}
