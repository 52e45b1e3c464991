//! The revisions of records, which a renewal does not change though etcd's index of the record does. Pure.
//!
//! To renew is to `refresh`: etcd gives the record a new time to live and tells no watcher. It gives it a new
//! `modifiedIndex` too, and keeps `createdIndex` and value. So a registry remembers for each lease the index that it
//! told as the revision, and takes a record that it meets again with the same `createdIndex`, value and term, and a
//! later `modifiedIndex`, for renewed. A watch shows every write with the index of its own, and no renewal.
//!
//! What this cannot tell from a renewal is that somebody else, through another registry, compared and wrote the same
//! words again, before a watch told it. Nothing that anybody decided about the record is wrong then.
//!
//! Two registries may name one record by different revisions, if one of them met it after a renewal. Each is right
//! about what it told itself, and a revision means nothing to another registry.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};

use flannel_core::{Lease, Revision, SubnetKey, Term};

use super::answer::Node;

/// The revisions that were told, by subnet.
#[derive(Debug, Default)]
pub(super) struct Revisions {
    told: HashMap<SubnetKey, Known>,
    hasher: RandomState,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    what: What,
    /// The index that was told as the revision.
    revision: u64,
    /// The index at which the record was met last.
    index: u64,
}

/// What a renewal leaves as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct What {
    created: u64,
    term: Term,
    /// A hash of the value.
    value: u64,
}

impl Revisions {
    /// Tells the revision of a record that was read.
    pub(super) fn read(&mut self, lease: &Lease, node: &Node<'_>) -> Revision {
        let (what, index) = (self.what(node), node.modified_index);
        match self.told.get_mut(&lease.subnet) {
            Some(known) if known.what == what && known.revision <= index => {
                known.index = known.index.max(index);
                Revision(known.revision)
            }
            // Answers overtake each other.
            Some(known) if known.index > index => Revision(index),
            Some(_) | None => self.wrote(lease.subnet, node),
        }
    }

    /// Tells the revision of a record whose write was heard: the index of the write, unless the record was read
    /// later and told already.
    pub(super) fn hear(&mut self, lease: &Lease, node: &Node<'_>) -> Revision {
        let (what, index) = (self.what(node), node.modified_index);
        match self.told.get_mut(&lease.subnet) {
            Some(known) if known.index >= index && known.what == what => {
                known.revision = known.revision.max(index);
                Revision(known.revision)
            }
            Some(known) if known.index > index => Revision(index),
            Some(_) | None => self.wrote(lease.subnet, node),
        }
    }

    /// Tells the revision of a record that was just written.
    pub(super) fn wrote(&mut self, subnet: SubnetKey, node: &Node<'_>) -> Revision {
        let index = node.modified_index;
        self.told.insert(subnet, Known { what: self.what(node), revision: index, index });
        Revision(index)
    }

    /// Takes note of a renewal.
    pub(super) fn renewed(&mut self, lease: &Lease, node: &Node<'_>) {
        let known = Known { what: self.what(node), revision: lease.revision.0, index: node.modified_index };
        self.told.insert(lease.subnet, known);
    }

    /// The index at which a lease is in etcd, as far as is known.
    pub(super) fn index(&self, lease: &Lease) -> u64 {
        self.known(lease).map_or(lease.revision.0, |known| known.index)
    }

    /// The index at which a lease is in etcd, if what is there is the lease, renewed.
    pub(super) fn renewed_to(&mut self, lease: &Lease, node: &Node<'_>) -> Option<u64> {
        let what = self.what(node);
        let known = self.known(lease)?;
        (known.what == what && known.revision <= node.modified_index).then_some(node.modified_index)
    }

    /// Forgets a record that was removed.
    pub(super) fn forget(&mut self, subnet: &SubnetKey, at: Revision) {
        if self.told.get(subnet).is_some_and(|known| known.index <= at.0) {
            self.told.remove(subnet);
        }
    }

    /// Forgets what a list at a revision contradicts: records that are not in it, and those of a later time, which
    /// belong to a store that was replaced by this one.
    pub(super) fn keep(&mut self, leases: &[Lease], at: u64) {
        let there: BTreeSet<_> = leases.iter().map(|lease| lease.subnet).collect();
        self.told.retain(|subnet, known| known.index <= at && there.contains(subnet));
    }

    fn known(&self, lease: &Lease) -> Option<&Known> {
        self.told.get(&lease.subnet).filter(|known| known.revision == lease.revision.0)
    }

    fn what(&self, node: &Node<'_>) -> What {
        What { created: node.created_index, term: node.term(), value: self.hasher.hash_one(&node.value) }
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::LeaseAttrs;

    use super::*;

    /// A node as etcd tells it, and the lease that is in it.
    fn met(created: u64, index: u64, value: &str) -> (Lease, Node<'static>) {
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

    fn read(revisions: &mut Revisions, created: u64, index: u64, value: &str) -> u64 {
        let (lease, node) = met(created, index, value);
        revisions.read(&lease, &node).0
    }

    fn hear(revisions: &mut Revisions, created: u64, index: u64, value: &str) -> u64 {
        let (lease, node) = met(created, index, value);
        revisions.hear(&lease, &node).0
    }

    #[test]
    fn a_record_that_was_only_renewed_keeps_its_revision() {
        let mut revisions = Revisions::default();
        assert_eq!(read(&mut revisions, 4, 4, "a"), 4);
        assert_eq!(read(&mut revisions, 4, 9, "a"), 4);
        assert_eq!(revisions.index(&met(4, 4, "a").0), 9);
        assert_eq!(read(&mut revisions, 4, 10, "b"), 10, "another value");
        assert_eq!(read(&mut revisions, 12, 12, "b"), 12, "another record");
    }

    #[test]
    fn a_write_that_is_heard_is_no_renewal_even_of_the_same_words() {
        let mut revisions = Revisions::default();
        assert_eq!(read(&mut revisions, 4, 4, "a"), 4);
        assert_eq!(hear(&mut revisions, 4, 6, "a"), 6);
        assert_eq!(read(&mut revisions, 4, 8, "a"), 6);
        // Read before it was heard, the write was taken for a renewal.
        assert_eq!(read(&mut revisions, 4, 9, "a"), 6);
        assert_eq!(hear(&mut revisions, 4, 9, "a"), 9);
        assert_eq!(read(&mut revisions, 4, 9, "a"), 9);
    }

    #[test]
    fn a_write_that_is_heard_after_its_renewal_was_read_has_the_revision_that_was_told() {
        let mut revisions = Revisions::default();
        assert_eq!(read(&mut revisions, 4, 7, "a"), 7);
        assert_eq!(hear(&mut revisions, 4, 4, "a"), 7);
    }

    #[test]
    fn answers_that_overtake_each_other_leave_what_is_newer() {
        let mut revisions = Revisions::default();
        assert_eq!(read(&mut revisions, 4, 10, "b"), 10);
        assert_eq!(read(&mut revisions, 4, 4, "a"), 4);
        assert_eq!(hear(&mut revisions, 4, 5, "a"), 5);
        assert_eq!(read(&mut revisions, 4, 12, "b"), 10);
        let (lease, _) = met(4, 10, "b");
        revisions.forget(&lease.subnet, Revision(11));
        assert_eq!(revisions.index(&lease), 12, "it was removed before it was written");
    }

    #[test]
    fn what_a_list_contradicts_is_forgotten() {
        let mut revisions = Revisions::default();
        read(&mut revisions, 4, 4, "a");
        read(&mut revisions, 4, 9, "a");
        let (lease, node) = met(4, 4, "a");
        revisions.keep(std::slice::from_ref(&lease), 9);
        assert_eq!(revisions.renewed_to(&lease, &node), Some(4));
        revisions.keep(std::slice::from_ref(&lease), 8);
        assert_eq!(revisions.renewed_to(&lease, &node), None, "the store is another one");
    }
}
