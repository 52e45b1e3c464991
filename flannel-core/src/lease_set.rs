//! The leases of a network, folded from what a registry tells.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::lease_map::LeaseMap;
use crate::registry::{BadRecord, RegistryEvent, Snapshot};
use crate::{Lease, Revision, SubnetKey};

/// All leases as last heard. Pure: it holds no connection and knows no time.
///
/// - A lease that is written again without a change of its attributes is not a change.
/// - A record that cannot be read is set aside; a lease under the same key that could be read before stays as it was.
/// - An event that is older than what is known is not believed; a snapshot always is.
#[derive(Clone, Debug, Default)]
pub struct LeaseSet {
    leases: LeaseMap,
    bad: BTreeMap<String, BadRecord>,
    revision: Revision,
}

/// How one lease changed; there is no other way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// It is new, or says something new.
    Put(Arc<Lease>),
    /// It is gone.
    Removed(SubnetKey),
}

impl LeaseSet {
    /// Returns the leases, in the order of their subnets.
    pub fn leases(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.leases.iter()
    }

    /// Returns one lease.
    #[must_use]
    pub fn lease(&self, subnet: &SubnetKey) -> Option<&Arc<Lease>> {
        self.leases.get(subnet)
    }

    /// Returns the records that cannot be read.
    pub fn bad(&self) -> impl Iterator<Item = &BadRecord> {
        self.bad.values()
    }

    /// Returns the subnets that nobody may take: those of all leases, and of bad records whose key can be read.
    pub fn taken(&self) -> impl Iterator<Item = SubnetKey> {
        self.leases
            .iter()
            .map(|lease| lease.subnet)
            .chain(self.bad.values().filter_map(|record| record.subnet))
    }

    /// Returns the revision up to which everything was heard.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Takes in one event and tells what it changed.
    pub fn apply(&mut self, event: RegistryEvent) -> Vec<LeaseChange> {
        match event {
            RegistryEvent::Snapshot(snapshot) => self.replace(snapshot),
            RegistryEvent::Put(lease) => self.put(lease).into_iter().collect(),
            RegistryEvent::Deleted(subnet, revision) => self.delete(subnet, revision).into_iter().collect(),
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
        // A snapshot is the truth also where its revision went back, as after a restore from a backup.
        self.revision = snapshot.revision;
        self.bad = snapshot.bad.into_iter().map(|record| (record.key.clone(), record)).collect();
        let unreadable: BTreeSet<_> = self.bad.values().filter_map(|record| record.subnet).collect();
        let (mut changes, mut gone) = (Vec::new(), Vec::new());
        // Both sides are in the order of their subnets, so one walk finds all pairs.
        let mut before = std::mem::take(&mut self.leases).into_leases().peekable();
        let mut leases = sorted(snapshot.leases);
        for lease in &mut leases {
            gone.extend(std::iter::from_fn(|| before.next_if(|known| known.subnet < lease.subnet)));
            let known = before.next_if(|known| known.subnet == lease.subnet);
            keep_attrs(known.as_ref(), lease);
            if is_news(known.as_ref(), lease) {
                changes.push(LeaseChange::Put(Arc::clone(lease)));
            }
        }
        gone.extend(before);
        self.leases = leases.into_iter().collect();
        for mut lease in gone {
            let subnet = lease.subnet;
            if unreadable.contains(&subnet) {
                // Where the revision went back, that of a lease from before would make all that follows look older.
                if lease.revision > snapshot.revision {
                    Arc::make_mut(&mut lease).revision = snapshot.revision;
                }
                self.leases.insert(lease);
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
        let is_news = is_news(known, &lease);
        self.revision = self.revision.max(lease.revision);
        self.bad.retain(|_, record| record.subnet != Some(lease.subnet));
        self.leases.insert(Arc::clone(&lease));
        is_news.then_some(LeaseChange::Put(lease))
    }

    fn delete(&mut self, subnet: SubnetKey, revision: Revision) -> Option<LeaseChange> {
        if self.leases.get(&subnet).is_some_and(|known| known.revision > revision) {
            return None;
        }
        self.revision = self.revision.max(revision);
        self.bad.retain(|_, record| record.subnet != Some(subnet));
        self.leases.remove(&subnet).map(|_| LeaseChange::Removed(subnet))
    }
}

/// Tells whether a lease says anything that was not known before.
fn is_news(known: Option<&Arc<Lease>>, lease: &Arc<Lease>) -> bool {
    known.is_none_or(|known| !Arc::ptr_eq(known, lease) && known.attrs != lease.attrs)
}

/// Lets a lease that was only written again share the texts of the one before, which others may still hold.
fn keep_attrs(known: Option<&Arc<Lease>>, lease: &mut Arc<Lease>) {
    if let Some(known) = known
        && let Some(lease) = Arc::get_mut(lease)
        && lease.attrs == known.attrs
    {
        lease.attrs.clone_from(&known.attrs);
    }
}

/// Brings leases into the order of their subnets. Of several for one subnet the last stays.
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
    use crate::{LeaseAttrs, Term};

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
        BadRecord::new(key, key.parse().ok(), "it is garbage")
    }

    fn subnets(set: &LeaseSet) -> Vec<String> {
        set.leases().map(|lease| lease.subnet.to_string()).collect()
    }

    const A: &str = "10.5.1.0-24";
    const B: &str = "10.5.2.0-24";

    #[test]
    fn a_new_snapshot_tells_who_came_who_left_and_who_changed() {
        let mut set = LeaseSet::default();
        set.apply(snapshot(5, vec![lease(A, [1, 1, 1, 1], 3), lease(B, [2, 2, 2, 2], 4)]));
        let changed = lease(A, [9, 9, 9, 9], 7);
        let changes = set.apply(snapshot(8, vec![changed.clone()]));
        assert_eq!(changes, [LeaseChange::Put(changed.into()), LeaseChange::Removed(B.parse().unwrap())]);
    }

    #[test]
    fn a_renewal_that_says_nothing_new_is_no_change() {
        let mut set = LeaseSet::default();
        set.apply(snapshot(5, vec![lease(A, [1, 1, 1, 1], 3)]));
        assert_eq!(set.apply(RegistryEvent::Put(lease(A, [1, 1, 1, 1], 9).into())), []);
        assert_eq!(set.lease(&A.parse().unwrap()).unwrap().revision, Revision(9));
        assert_eq!(set.apply(snapshot(12, vec![lease(A, [1, 1, 1, 1], 11)])), []);
    }

    #[test]
    fn a_lease_is_kept_once_however_many_sets_hold_it_and_however_often_it_is_written() {
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
    fn an_event_older_than_what_is_known_is_not_believed() {
        let mut set = LeaseSet::default();
        set.apply(RegistryEvent::Put(lease(A, [2, 2, 2, 2], 9).into()));
        assert_eq!(set.apply(RegistryEvent::Put(lease(A, [1, 1, 1, 1], 5).into())), []);
        assert_eq!(set.apply(RegistryEvent::Deleted(A.parse().unwrap(), Revision(8))), []);
        assert_eq!(subnets(&set), [A]);
    }

    #[test]
    fn a_snapshot_from_a_restored_backup_is_believed_although_its_revision_went_back() {
        let mut set = LeaseSet::default();
        set.apply(snapshot(50, vec![lease(A, [1, 1, 1, 1], 50)]));
        let changes = set.apply(snapshot(7, vec![lease(A, [3, 3, 3, 3], 6)]));
        assert_eq!(changes.len(), 1);
        assert_eq!(set.revision(), Revision(7));
    }

    #[test]
    fn a_lease_kept_over_a_restore_does_not_outlive_its_unreadable_record() {
        let mut set = LeaseSet::default();
        set.apply(snapshot(90, vec![lease("10.5.1.0-24", [192, 168, 0, 1], 90)]));
        let bad = vec![bad("10.5.1.0-24")];
        set.apply(RegistryEvent::Snapshot(Snapshot { revision: Revision(50), leases: Vec::new(), bad }));
        assert_eq!(subnets(&set), ["10.5.1.0-24"], "it was good when it was last read");
        set.apply(RegistryEvent::Deleted("10.5.1.0-24".parse().unwrap(), Revision(51)));
        assert_eq!(subnets(&set), [""; 0]);
    }

    #[test]
    fn a_record_that_becomes_unreadable_keeps_its_last_good_lease() {
        let mut set = LeaseSet::default();
        set.apply(snapshot(5, vec![lease(A, [1, 1, 1, 1], 3), lease(B, [2, 2, 2, 2], 4)]));
        assert_eq!(set.apply(RegistryEvent::Bad(bad(A))), []);
        assert_eq!(set.apply(RegistryEvent::Bad(bad("garbage"))), []);
        assert_eq!(subnets(&set), [A, B]);
        let again = Snapshot {
            revision: Revision(9),
            leases: vec![lease(B, [2, 2, 2, 2], 4).into()],
            bad: vec![bad(A), bad("garbage")],
        };
        assert_eq!(set.apply(RegistryEvent::Snapshot(again)), []);
        assert_eq!(subnets(&set), [A, B]);
        assert_eq!(set.bad().count(), 2);
    }

    #[test]
    fn a_bad_record_takes_its_subnet_until_it_is_written_well_or_removed() {
        let mut set = LeaseSet::default();
        set.apply(RegistryEvent::Bad(bad(A)));
        assert_eq!(set.taken().collect::<Vec<_>>(), [A.parse().unwrap()]);
        set.apply(RegistryEvent::Put(lease(A, [1, 1, 1, 1], 3).into()));
        assert_eq!(set.bad().count(), 0);
        set.apply(RegistryEvent::Bad(bad(A)));
        set.apply(RegistryEvent::Deleted(A.parse().unwrap(), Revision(4)));
        assert_eq!((set.bad().count(), set.taken().count()), (0, 0));
        set.apply(RegistryEvent::Bad(bad("garbage")));
        set.apply(RegistryEvent::BadDeleted("garbage".to_owned()));
        assert_eq!(set.bad().count(), 0);
    }
}
