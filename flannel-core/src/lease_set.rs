//! The leases of a network, accumulated from registry events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::lease::{Lease, Revision};
use crate::lease_map::LeaseMap;
use crate::registry::{BadRecord, RegistryEvent, Snapshot};
use crate::subnet::SubnetKey;

/// All leases as last reported. Pure: it has neither a connection nor a clock.
///
/// - Rewriting a lease without changing its attributes is no change.
/// - A malformed record is set aside; the previous lease under the same key stays.
/// - An event that is older than the known state is ignored; a snapshot never is.
#[derive(Clone, Debug, Default)]
pub struct LeaseSet {
    leases: LeaseMap,
    bad: BTreeMap<String, BadRecord>,
    revision: Revision,
}

/// A change of one lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// The lease is new, or its attributes changed.
    Put(Arc<Lease>),
    /// The lease is gone: it expired, or the store can't tell why. [Damping](crate::Damping) counts it.
    Removed(SubnetKey),
    /// The lease was released by its host, or removed on purpose.
    Released(SubnetKey),
}

impl LeaseSet {
    /// Returns the leases, in the order of their subnets.
    pub fn leases(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.leases.iter()
    }

    /// Returns the lease of a subnet.
    #[must_use]
    pub fn lease(&self, subnet: &SubnetKey) -> Option<&Arc<Lease>> {
        self.leases.get(subnet)
    }

    /// Returns the malformed records.
    pub fn bad(&self) -> impl Iterator<Item = &BadRecord> {
        self.bad.values()
    }

    /// Returns the subnets that are taken: those of all leases, and of malformed records with a readable key.
    pub fn taken(&self) -> impl Iterator<Item = SubnetKey> {
        self.leases
            .iter()
            .map(|lease| lease.subnet)
            .chain(self.bad.values().filter_map(|record| record.subnet))
    }

    /// Returns the revision up to which the state is complete.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Applies an event, and returns the changes.
    pub fn apply(&mut self, event: RegistryEvent) -> Vec<LeaseChange> {
        match event {
            RegistryEvent::Snapshot(snapshot) => self.replace(snapshot),
            RegistryEvent::Put(lease) => self.put(lease).into_iter().collect(),
            RegistryEvent::Deleted(subnet, revision) => {
                self.delete(subnet, revision, LeaseChange::Removed).into_iter().collect()
            }
            RegistryEvent::Released(subnet, revision) => {
                self.delete(subnet, revision, LeaseChange::Released).into_iter().collect()
            }
            RegistryEvent::Bad(record) => {
                self.bad.insert(record.key.clone(), record);
                Vec::new()
            }
            RegistryEvent::BadDeleted(key) => {
                self.bad.remove(&key);
                Vec::new()
            }
            RegistryEvent::Unavailable(_) | RegistryEvent::Available => Vec::new(),
        }
    }

    fn replace(&mut self, snapshot: Snapshot) -> Vec<LeaseChange> {
        // A snapshot counts even if its revision went back, as after a restore from a backup.
        self.revision = snapshot.revision;
        self.bad = snapshot.bad.into_iter().map(|record| (record.key.clone(), record)).collect();
        let unreadable: BTreeSet<_> = self.bad.values().filter_map(|record| record.subnet).collect();
        let (mut changes, mut gone) = (Vec::new(), Vec::new());
        // Both sides are ordered by subnet, so one walk finds all pairs.
        let mut before = std::mem::take(&mut self.leases).into_leases().peekable();
        let mut leases = sorted(snapshot.leases);
        for lease in &mut leases {
            gone.extend(std::iter::from_fn(|| before.next_if(|known| known.subnet < lease.subnet)));
            let known = before.next_if(|known| known.subnet == lease.subnet);
            keep_attrs(known.as_ref(), lease);
            if is_changed(known.as_ref(), lease) {
                changes.push(LeaseChange::Put(Arc::clone(lease)));
            }
        }
        gone.extend(before);
        self.leases = leases.into_iter().collect();
        for mut lease in gone {
            let subnet = lease.subnet;
            if unreadable.contains(&subnet) {
                // If the revision went back, the old revision would make all later events look outdated.
                if lease.revision > snapshot.revision {
                    Arc::make_mut(&mut lease).revision = snapshot.revision;
                }
                self.leases.insert(lease, ());
            } else {
                changes.push(LeaseChange::Removed(subnet));
            }
        }
        changes
    }

    fn put(&mut self, mut lease: Arc<Lease>) -> Option<LeaseChange> {
        let known = self.leases.get(&lease.subnet);
        if known.is_some_and(|known| known.revision > lease.revision) {
            return None;
        }
        keep_attrs(known, &mut lease);
        let is_changed = is_changed(known, &lease);
        self.revision = self.revision.max(lease.revision);
        self.bad.retain(|_, record| record.subnet != Some(lease.subnet));
        self.leases.insert(Arc::clone(&lease), ());
        is_changed.then_some(LeaseChange::Put(lease))
    }

    fn delete(
        &mut self,
        subnet: SubnetKey,
        revision: Revision,
        change: fn(SubnetKey) -> LeaseChange,
    ) -> Option<LeaseChange> {
        if self.leases.get(&subnet).is_some_and(|known| known.revision > revision) {
            return None;
        }
        self.revision = self.revision.max(revision);
        self.bad.retain(|_, record| record.subnet != Some(subnet));
        self.leases.remove(&subnet).map(|_| change(subnet))
    }
}

/// Returns true if the attributes differ from the known ones.
fn is_changed(known: Option<&Arc<Lease>>, lease: &Arc<Lease>) -> bool {
    known.is_none_or(|known| !Arc::ptr_eq(known, lease) && known.attrs != lease.attrs)
}

/// Makes a lease that was only rewritten share the texts of the previous one, which others may still hold.
fn keep_attrs(known: Option<&Arc<Lease>>, lease: &mut Arc<Lease>) {
    if let Some(known) = known
        && let Some(lease) = Arc::get_mut(lease)
        && lease.attrs == known.attrs
    {
        lease.attrs.clone_from(&known.attrs);
    }
}

/// Sorts leases by subnet. The last lease of a subnet wins.
fn sorted(mut leases: Vec<Arc<Lease>>) -> Vec<Arc<Lease>> {
    leases.sort_by_key(|lease| lease.subnet);
    leases.dedup_by(|later, earlier| {
        let is_again = later.subnet == earlier.subnet;
        if is_again {
            std::mem::swap(later, earlier);
        }
        is_again
    });
    leases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{LeaseAttrs, Term};

    fn lease(subnet: &str, public: [u8; 4], revision: u64) -> Lease {
        Lease {
            subnet: subnet.parse().unwrap(),
            attrs: LeaseAttrs::new(std::net::Ipv4Addr::from(public).into()),
            revision: Revision(revision),
            term: Term::Limited,
        }
    }

    fn snapshot(revision: u64, leases: Vec<Lease>) -> RegistryEvent {
        let leases = leases.into_iter().map(Arc::new).collect();
        RegistryEvent::Snapshot(Snapshot { revision: Revision(revision), leases, bad: Vec::new() })
    }

    fn bad(key: &str) -> BadRecord {
        BadRecord::new(key, key.parse().ok(), "malformed")
    }

    fn subnets(set: &LeaseSet) -> Vec<String> {
        set.leases().map(|lease| lease.subnet.to_string()).collect()
    }

    const A: &str = "10.5.1.0-24";
    const B: &str = "10.5.2.0-24";

    #[test]
    fn a_snapshot_yields_new_changed_and_removed_leases() {
        let mut set = LeaseSet::default();
        set.apply(snapshot(5, vec![lease(A, [1, 1, 1, 1], 3), lease(B, [2, 2, 2, 2], 4)]));
        let changed = lease(A, [9, 9, 9, 9], 7);
        let changes = set.apply(snapshot(8, vec![changed.clone()]));
        assert_eq!(changes, [LeaseChange::Put(changed.into()), LeaseChange::Removed(B.parse().unwrap())]);
    }

    #[test]
    fn rewriting_a_lease_with_the_same_attributes_is_no_change() {
        let mut set = LeaseSet::default();
        set.apply(snapshot(5, vec![lease(A, [1, 1, 1, 1], 3)]));
        assert_eq!(set.apply(RegistryEvent::Put(lease(A, [1, 1, 1, 1], 9).into())), []);
        assert_eq!(set.lease(&A.parse().unwrap()).unwrap().revision, Revision(9));
        assert_eq!(set.apply(snapshot(12, vec![lease(A, [1, 1, 1, 1], 11)])), []);
    }

    #[test]
    fn sets_share_leases_and_rewritten_leases_share_their_texts() {
        let attrs = LeaseAttrs {
            backend_data: Some(crate::Json::parse(r#"{"VNI":1}"#).unwrap()),
            ..LeaseAttrs::new(std::net::Ipv4Addr::LOCALHOST.into())
        };
        let written = |revision| Lease { attrs: attrs.clone(), ..lease(A, [1; 4], revision) };
        let read_again = |revision| {
            let attrs = LeaseAttrs::from_record(&attrs.to_record()).unwrap();
            Lease { attrs, ..written(revision) }
        };
        let text = |set: &LeaseSet| {
            let lease = set.leases().next().unwrap();
            lease.attrs.backend_data.as_ref().unwrap().as_str().as_ptr()
        };
        let mut sets = [LeaseSet::default(), LeaseSet::default()];
        let event = snapshot(1, vec![written(1)]);
        sets.iter_mut().for_each(|set| drop(set.apply(event.clone())));
        let [one, other] = &mut sets;
        assert!(Arc::ptr_eq(one.leases().next().unwrap(), other.leases().next().unwrap()));
        let before = text(one);
        one.apply(RegistryEvent::Put(read_again(2).into()));
        assert_eq!(text(one), before);
        one.apply(snapshot(3, vec![read_again(3)]));
        assert_eq!((text(one), one.leases().next().unwrap().revision), (before, Revision(3)));
    }

    #[test]
    fn an_event_older_than_the_known_state_is_ignored() {
        let mut set = LeaseSet::default();
        set.apply(RegistryEvent::Put(lease(A, [2, 2, 2, 2], 9).into()));
        assert_eq!(set.apply(RegistryEvent::Put(lease(A, [1, 1, 1, 1], 5).into())), []);
        assert_eq!(set.apply(RegistryEvent::Deleted(A.parse().unwrap(), Revision(8))), []);
        assert_eq!(subnets(&set), [A]);
    }

    #[test]
    fn a_snapshot_with_a_smaller_revision_counts() {
        let mut set = LeaseSet::default();
        set.apply(snapshot(50, vec![lease(A, [1, 1, 1, 1], 50)]));
        let changes = set.apply(snapshot(7, vec![lease(A, [3, 3, 3, 3], 6)]));
        assert_eq!(changes.len(), 1);
        assert_eq!(set.revision(), Revision(7));
    }

    #[test]
    fn a_lease_kept_over_a_restore_ends_with_its_malformed_record() {
        let mut set = LeaseSet::default();
        set.apply(snapshot(90, vec![lease("10.5.1.0-24", [192, 168, 0, 1], 90)]));
        let bad = vec![bad("10.5.1.0-24")];
        set.apply(RegistryEvent::Snapshot(Snapshot { revision: Revision(50), leases: Vec::new(), bad }));
        assert_eq!(subnets(&set), ["10.5.1.0-24"], "it was readable before");
        set.apply(RegistryEvent::Deleted("10.5.1.0-24".parse().unwrap(), Revision(51)));
        assert_eq!(subnets(&set), [""; 0]);
    }

    #[test]
    fn a_record_that_becomes_malformed_keeps_its_last_lease() {
        let mut set = LeaseSet::default();
        set.apply(snapshot(5, vec![lease(A, [1, 1, 1, 1], 3), lease(B, [2, 2, 2, 2], 4)]));
        assert_eq!(set.apply(RegistryEvent::Bad(bad(A))), []);
        assert_eq!(set.apply(RegistryEvent::Bad(bad("malformed"))), []);
        assert_eq!(subnets(&set), [A, B]);
        let again = Snapshot {
            revision: Revision(9),
            leases: vec![lease(B, [2, 2, 2, 2], 4).into()],
            bad: vec![bad(A), bad("malformed")],
        };
        assert_eq!(set.apply(RegistryEvent::Snapshot(again)), []);
        assert_eq!(subnets(&set), [A, B]);
        assert_eq!(set.bad().count(), 2);
    }

    #[test]
    fn a_malformed_record_takes_its_subnet_until_it_is_rewritten_or_removed() {
        let mut set = LeaseSet::default();
        set.apply(RegistryEvent::Bad(bad(A)));
        assert_eq!(set.taken().collect::<Vec<_>>(), [A.parse().unwrap()]);
        set.apply(RegistryEvent::Put(lease(A, [1, 1, 1, 1], 3).into()));
        assert_eq!(set.bad().count(), 0);
        set.apply(RegistryEvent::Bad(bad(A)));
        set.apply(RegistryEvent::Deleted(A.parse().unwrap(), Revision(4)));
        assert_eq!((set.bad().count(), set.taken().count()), (0, 0));
        set.apply(RegistryEvent::Bad(bad("malformed")));
        set.apply(RegistryEvent::BadDeleted("malformed".to_owned()));
        assert_eq!(set.bad().count(), 0);
    }
}
