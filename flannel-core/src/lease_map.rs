//! Leases indexed by subnet.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::lease::Lease;
use crate::subnet::SubnetKey;

/// At most one lease per subnet, ordered by subnet, with a note on each.
///
/// An entry is a pointer and the note; the subnet is read from the lease. A host of a large network has several of these
/// maps, and all hosts in one process share the leases.
#[derive(Clone, Debug)]
pub(crate) struct LeaseMap<N = ()> {
    leases: BTreeSet<Entry<N>>,
}

/// A lease that compares like its subnet.
#[derive(Clone, Debug)]
struct Entry<N> {
    lease: Arc<Lease>,
    note: N,
}

impl<N: Copy> LeaseMap<N> {
    pub(crate) fn get(&self, subnet: &SubnetKey) -> Option<&Arc<Lease>> {
        self.leases.get(subnet).map(|entry| &entry.lease)
    }

    pub(crate) fn note(&self, subnet: &SubnetKey) -> Option<N> {
        self.leases.get(subnet).map(|entry| entry.note)
    }

    /// Adds a lease, and returns the one that it replaces.
    pub(crate) fn insert(&mut self, lease: Arc<Lease>, note: N) -> Option<Arc<Lease>> {
        self.leases.replace(Entry { lease, note }).map(|before| before.lease)
    }

    pub(crate) fn remove(&mut self, subnet: &SubnetKey) -> Option<Arc<Lease>> {
        self.leases.take(subnet).map(|entry| entry.lease)
    }

    pub(crate) fn into_leases(self) -> impl Iterator<Item = Arc<Lease>> {
        self.leases.into_iter().map(|entry| entry.lease)
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Lease>> + Clone {
        self.leases.iter().map(|entry| &entry.lease)
    }

    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }
}

impl<N> Default for LeaseMap<N> {
    fn default() -> Self {
        Self { leases: BTreeSet::new() }
    }
}

impl<N: Default> FromIterator<Arc<Lease>> for LeaseMap<N> {
    /// Packs the leases more densely than repeated insertion. The last lease of a subnet wins.
    fn from_iter<I: IntoIterator<Item = Arc<Lease>>>(leases: I) -> Self {
        Self { leases: leases.into_iter().map(|lease| Entry { lease, note: N::default() }).collect() }
    }
}

impl<N> Borrow<SubnetKey> for Entry<N> {
    fn borrow(&self) -> &SubnetKey {
        &self.lease.subnet
    }
}

impl<N> PartialEq for Entry<N> {
    fn eq(&self, other: &Self) -> bool {
        self.lease.subnet == other.lease.subnet
    }
}

impl<N> Eq for Entry<N> {}

impl<N> PartialOrd for Entry<N> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<N> Ord for Entry<N> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.lease.subnet.cmp(&other.lease.subnet)
    }
}
