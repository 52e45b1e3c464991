//! Points in the history of a store. Pure.

use std::sync::atomic::{AtomicU64, Ordering};

use flannel_core::Revision;

/// The id of the cluster that responded last; zero before the first response.
#[derive(Debug, Default)]
pub(crate) struct LastClusterId(AtomicU64);

impl LastClusterId {
    /// Records the cluster of a response.
    pub(crate) fn record(&self, position: &Position) {
        if let Some(cluster) = position.cluster {
            self.0.store(cluster, Ordering::Relaxed);
        }
    }

    /// Returns the id as etcd prints it, which is the same in both interfaces of a cluster.
    pub(crate) fn get(&self) -> Option<String> {
        let id = self.0.load(Ordering::Relaxed);
        (id != 0).then(|| format!("{id:x}"))
    }
}

/// A point in the history of one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// The cluster; `None` if unknown.
    pub(crate) cluster: Option<u64>,
    /// The Raft term; zero if unknown.
    pub(crate) term: u64,
    /// The revision; all changes up to it are known.
    pub(crate) revision: u64,
}

impl Position {
    /// Returns the position at a revision of a store whose cluster is not known yet.
    pub(crate) fn after(revision: Revision) -> Self {
        Self { revision: revision.0, ..Self::default() }
    }

    /// Returns this position with the cluster and term of a member, as far as the member sent them.
    #[cfg(feature = "etcd-v3")]
    pub(crate) fn at_member(&self, member: &Self) -> Self {
        Self {
            cluster: member.cluster.or(self.cluster),
            term: self.term.max(member.term),
            revision: self.revision,
        }
    }

    /// Reports whether a member at position `other` can continue from here: it belongs to the same cluster, its term
    /// and revision did not go back (as after a restore from a backup), and it does not lag behind.
    pub(crate) fn can_continue_at(&self, other: &Self) -> bool {
        // A proxy may omit cluster and term.
        let is_same_cluster =
            self.cluster.is_none() || other.cluster.is_none() || self.cluster == other.cluster;
        let is_current_term = self.term <= other.term || other.term == 0;
        is_same_cluster && is_current_term && self.revision <= other.revision
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_up_to_date_member_of_the_same_store_can_continue() {
        let known = Position { cluster: Some(7), term: 3, revision: 100 };
        assert!(known.can_continue_at(&Position { term: 4, revision: 140, ..known }));
        assert!(Position::after(Revision(100)).can_continue_at(&known));
        assert!(known.can_continue_at(&Position::after(Revision(100))), "a proxy omits cluster and term");
        for other in [
            Position { cluster: Some(8), ..known },
            Position { term: 2, revision: 900, ..known },
            Position { revision: 99, ..known },
        ] {
            assert!(!known.can_continue_at(&other), "{other:?}");
        }
    }
}
