//! Revisions of records, which stay the same across renewals although etcd's index changes. Pure.
//!
//! A renewal is a `refresh`: etcd sets a new TTL and sends no event, but it also changes `modifiedIndex`; `createdIndex`
//! and value stay. A registry therefore stores the index that it returned as the revision of each lease, and treats a
//! record with the same `createdIndex`, value and term, and a later `modifiedIndex`, as renewed. A watch shows every write
//! with its own index, and no renewals.
//!
//! This cannot distinguish a renewal from a write of the same value by another registry, until a watch shows the write.
//! No decision about the record depends on the difference.
//!
//! Two registries may know a record by different revisions, if one of them first read it after a renewal. A revision is
//! valid only within the registry that returned it.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};

use flannel_core::{Lease, Revision, SubnetKey, Term};

use super::response::Node;

/// The known revisions by subnet.
#[derive(Debug, Default)]
pub(super) struct Revisions {
    records: HashMap<SubnetKey, KnownRecord>,
    hasher: RandomState,
}

#[derive(Clone, Copy, Debug)]
struct KnownRecord {
    fingerprint: Fingerprint,
    /// The index that was returned as the revision.
    revision: u64,
    /// The index at which the record was last seen.
    index: u64,
}

/// The parts of a record that a renewal does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    created: u64,
    term: Term,
    /// A hash of the value.
    value: u64,
}

impl Revisions {
    /// Returns the revision of a record that was read.
    pub(super) fn observe_read(&mut self, lease: &Lease, node: &Node<'_>) -> Revision {
        let (fingerprint, index) = (self.fingerprint(node), node.modified_index);
        match self.records.get_mut(&lease.subnet) {
            Some(known) if known.fingerprint == fingerprint && known.revision <= index => {
                known.index = known.index.max(index);
                Revision(known.revision)
            }
            // Responses may arrive out of order.
            Some(known) if known.index > index => Revision(index),
            Some(_) | None => self.record_write(lease.subnet, node),
        }
    }

    /// Returns the revision of a record whose write a watch showed: the index of the write, unless a later read of the
    /// record was returned already.
    pub(super) fn observe_write(&mut self, lease: &Lease, node: &Node<'_>) -> Revision {
        let (fingerprint, index) = (self.fingerprint(node), node.modified_index);
        match self.records.get_mut(&lease.subnet) {
            Some(known) if known.index >= index && known.fingerprint == fingerprint => {
                known.revision = known.revision.max(index);
                Revision(known.revision)
            }
            Some(known) if known.index > index => Revision(index),
            Some(_) | None => self.record_write(lease.subnet, node),
        }
    }

    /// Records a write of this registry, and returns its revision.
    pub(super) fn record_write(&mut self, subnet: SubnetKey, node: &Node<'_>) -> Revision {
        let index = node.modified_index;
        self.records
            .insert(subnet, KnownRecord { fingerprint: self.fingerprint(node), revision: index, index });
        Revision(index)
    }

    /// Records a renewal by this registry.
    pub(super) fn record_renewal(&mut self, lease: &Lease, node: &Node<'_>) {
        let (fingerprint, index) = (self.fingerprint(node), node.modified_index);
        let known = KnownRecord { fingerprint, revision: lease.revision.0, index };
        self.records.insert(lease.subnet, known);
    }

    /// Returns the last known index of a lease.
    pub(super) fn index(&self, lease: &Lease) -> u64 {
        self.known(lease).map_or(lease.revision.0, |known| known.index)
    }

    /// Returns the index of a record if it is the lease, possibly renewed.
    pub(super) fn index_if_unchanged(&mut self, lease: &Lease, node: &Node<'_>) -> Option<u64> {
        let fingerprint = self.fingerprint(node);
        let known = self.known(lease)?;
        (known.fingerprint == fingerprint && known.revision <= node.modified_index)
            .then_some(node.modified_index)
    }

    /// Removes a record.
    pub(super) fn remove(&mut self, subnet: &SubnetKey, at: Revision) {
        if self.records.get(subnet).is_some_and(|known| known.index <= at.0) {
            self.records.remove(subnet);
        }
    }

    /// Removes what a list at an index contradicts: records that are not in it, and records with a later index, which
    /// are from before a restore of the store.
    pub(super) fn retain_listed(&mut self, leases: &[Lease], at: u64) {
        let there: BTreeSet<_> = leases.iter().map(|lease| lease.subnet).collect();
        self.records.retain(|subnet, known| known.index <= at && there.contains(subnet));
    }

    fn known(&self, lease: &Lease) -> Option<&KnownRecord> {
        self.records.get(&lease.subnet).filter(|known| known.revision == lease.revision.0)
    }

    fn fingerprint(&self, node: &Node<'_>) -> Fingerprint {
        Fingerprint {
            created: node.created_index,
            term: node.term(),
            value: self.hasher.hash_one(&node.value),
        }
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::LeaseAttrs;

    use super::*;

    /// Returns a node as etcd sends it, and its lease.
    fn record(created: u64, index: u64, value: &str) -> (Lease, Node<'static>) {
        let text =
            format!(r#"{{"value":{value:?},"ttl":9,"modifiedIndex":{index},"createdIndex":{created}}}"#);
        let node: Node<'static> = serde_json::from_str(Box::leak(text.into_boxed_str())).unwrap();
        let lease = Lease {
            subnet: "10.5.1.0-24".parse().unwrap(),
            attrs: LeaseAttrs::new(std::net::Ipv4Addr::LOCALHOST.into()),
            revision: Revision(index),
            term: Term::Limited,
        };
        (lease, node)
    }

    fn observe_read(revisions: &mut Revisions, created: u64, index: u64, value: &str) -> u64 {
        let (lease, node) = record(created, index, value);
        revisions.observe_read(&lease, &node).0
    }

    fn observe_write(revisions: &mut Revisions, created: u64, index: u64, value: &str) -> u64 {
        let (lease, node) = record(created, index, value);
        revisions.observe_write(&lease, &node).0
    }

    #[test]
    fn a_renewed_record_keeps_its_revision() {
        let mut revisions = Revisions::default();
        assert_eq!(observe_read(&mut revisions, 4, 4, "a"), 4);
        assert_eq!(observe_read(&mut revisions, 4, 9, "a"), 4);
        assert_eq!(revisions.index(&record(4, 4, "a").0), 9);
        assert_eq!(observe_read(&mut revisions, 4, 10, "b"), 10, "another value");
        assert_eq!(observe_read(&mut revisions, 12, 12, "b"), 12, "another record");
    }

    #[test]
    fn an_observed_write_of_the_same_value_is_no_renewal() {
        let mut revisions = Revisions::default();
        assert_eq!(observe_read(&mut revisions, 4, 4, "a"), 4);
        assert_eq!(observe_write(&mut revisions, 4, 6, "a"), 6);
        assert_eq!(observe_read(&mut revisions, 4, 8, "a"), 6);
        // A write that is read before the watch shows it is taken for a renewal.
        assert_eq!(observe_read(&mut revisions, 4, 9, "a"), 6);
        assert_eq!(observe_write(&mut revisions, 4, 9, "a"), 9);
        assert_eq!(observe_read(&mut revisions, 4, 9, "a"), 9);
    }

    #[test]
    fn a_write_observed_after_its_renewal_was_read_keeps_the_returned_revision() {
        let mut revisions = Revisions::default();
        assert_eq!(observe_read(&mut revisions, 4, 7, "a"), 7);
        assert_eq!(observe_write(&mut revisions, 4, 4, "a"), 7);
    }

    #[test]
    fn out_of_order_responses_keep_the_newer_state() {
        let mut revisions = Revisions::default();
        assert_eq!(observe_read(&mut revisions, 4, 10, "b"), 10);
        assert_eq!(observe_read(&mut revisions, 4, 4, "a"), 4);
        assert_eq!(observe_write(&mut revisions, 4, 5, "a"), 5);
        assert_eq!(observe_read(&mut revisions, 4, 12, "b"), 10);
        let (lease, _) = record(4, 10, "b");
        revisions.remove(&lease.subnet, Revision(11));
        assert_eq!(revisions.index(&lease), 12, "the removal precedes the write");
    }

    #[test]
    fn records_that_contradict_a_list_are_removed() {
        let mut revisions = Revisions::default();
        observe_read(&mut revisions, 4, 4, "a");
        observe_read(&mut revisions, 4, 9, "a");
        let (lease, node) = record(4, 4, "a");
        revisions.retain_listed(std::slice::from_ref(&lease), 9);
        assert_eq!(revisions.index_if_unchanged(&lease, &node), Some(4));
        revisions.retain_listed(std::slice::from_ref(&lease), 8);
        assert_eq!(revisions.index_if_unchanged(&lease, &node), None, "the store was replaced");
    }
}
