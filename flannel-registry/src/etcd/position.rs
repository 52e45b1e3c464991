//! A point in the history of a store. Pure.

use std::sync::atomic::{AtomicU64, Ordering};

use flannel_core::Revision;

/// The cluster that was heard last; zero before.
#[derive(Debug, Default)]
pub(crate) struct LastCluster(AtomicU64);

impl LastCluster {
    /// Takes note of where an answer came from.
    pub(crate) fn heard(&self, position: &Position) {
        if let Some(cluster) = position.cluster {
            self.0.store(cluster, Ordering::Relaxed);
        }
    }

    /// Its id, as etcd writes it; both interfaces of a cluster have the same.
    pub(crate) fn id(&self) -> Option<String> {
        let id = self.0.load(Ordering::Relaxed);
        (id != 0).then(|| format!("{id:x}"))
    }
}

/// A point in the history of one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// The cluster; `None` if it is not known which.
    pub(crate) cluster: Option<u64>,
    /// How many times the cluster had chosen a leader.
    pub(crate) term: u64,
    /// All changes up to this revision are known.
    pub(crate) revision: u64,
}

impl Position {
    /// The point after a revision of a store that is not known yet.
    pub(crate) fn after(revision: Revision) -> Self {
        Self { revision: revision.0, ..Self::default() }
    }

    /// Tells whether a member that stands at `other` can lead on from here. It cannot if it belongs to another
    /// cluster, if its time went back, as after a restore from a backup, or if it lags behind.
    pub(crate) fn leads_on_at(&self, other: &Self) -> bool {
        let same = self.cluster.is_none() || self.cluster == other.cluster;
        same && self.term <= other.term && self.revision <= other.revision
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_member_of_the_same_store_that_is_as_far_leads_on() {
        let known = Position { cluster: Some(7), term: 3, revision: 100 };
        assert!(known.leads_on_at(&Position { term: 4, revision: 140, ..known }));
        assert!(Position::after(Revision(100)).leads_on_at(&known));
        for other in [
            Position { cluster: Some(8), ..known },
            Position { term: 2, revision: 900, ..known },
            Position { revision: 99, ..known },
        ] {
            assert!(!known.leads_on_at(&other), "{other:?}");
        }
    }
}
