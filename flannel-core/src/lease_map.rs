//! Leases by their subnets.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::{Lease, SubnetKey};

/// At most one lease for each subnet, in the order of the subnets.
///
/// It holds a pointer for each lease and nothing else: the subnet is read where the lease is. A host of a large network
/// has several of these, and all hosts in one process share the leases.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeaseMap {
    leases: BTreeSet<BySubnet>,
}

/// A lease that is equal to, smaller and larger than others as its subnet is.
#[derive(Clone, Debug)]
struct BySubnet(Arc<Lease>);

impl LeaseMap {
    pub(crate) fn get(&self, subnet: &SubnetKey) -> Option<&Arc<Lease>> {
        self.leases.get(subnet).map(|lease| &lease.0)
    }

    /// Adds a lease, and returns the one whose place it takes.
    pub(crate) fn insert(&mut self, lease: Arc<Lease>) -> Option<Arc<Lease>> {
        self.leases.replace(BySubnet(lease)).map(|before| before.0)
    }

    pub(crate) fn remove(&mut self, subnet: &SubnetKey) -> Option<Arc<Lease>> {
        self.leases.take(subnet).map(|lease| lease.0)
    }

    /// Returns the leases, for whoever wants to own them.
    pub(crate) fn into_leases(self) -> impl Iterator<Item = Arc<Lease>> {
        self.leases.into_iter().map(|lease| lease.0)
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Lease>> + Clone {
        self.leases.iter().map(|lease| &lease.0)
    }

    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }
}

/// A time for each lease, in seconds since whoever keeps it began. It holds a pointer and the time, and nothing else.
#[derive(Debug, Default)]
pub(crate) struct LeaseTimes(BTreeMap<BySubnet, u32>);

impl LeaseTimes {
    pub(crate) fn get(&self, subnet: &SubnetKey) -> Option<u32> {
        self.0.get(subnet).copied()
    }

    pub(crate) fn insert(&mut self, lease: &Arc<Lease>, seconds: u32) {
        // The key must go first: a map keeps the one that it has.
        self.0.remove(&lease.subnet);
        self.0.insert(BySubnet(Arc::clone(lease)), seconds);
    }

    /// Lets go of what a lease was before, and keeps its time.
    pub(crate) fn replace(&mut self, lease: &Arc<Lease>) {
        if let Some(seconds) = self.0.remove(&lease.subnet) {
            self.0.insert(BySubnet(Arc::clone(lease)), seconds);
        }
    }

    pub(crate) fn remove(&mut self, subnet: &SubnetKey) {
        self.0.remove(subnet);
    }
}

impl FromIterator<Arc<Lease>> for LeaseMap {
    /// Packs the leases more closely than one call of `insert` after another. Of several for one subnet the last stays.
    fn from_iter<I: IntoIterator<Item = Arc<Lease>>>(leases: I) -> Self {
        Self { leases: leases.into_iter().map(BySubnet).collect() }
    }
}

impl Borrow<SubnetKey> for BySubnet {
    fn borrow(&self) -> &SubnetKey {
        &self.0.subnet
    }
}

impl PartialEq for BySubnet {
    fn eq(&self, other: &Self) -> bool {
        self.0.subnet == other.0.subnet
    }
}

impl Eq for BySubnet {}

impl PartialOrd for BySubnet {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for BySubnet {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.subnet.cmp(&other.0.subnet)
    }
}
