//! The action for each record of the v2 store. Pure.
//!
//! | subnet in v3 | action |
//! |---|---|
//! | free | copy, unless it overlaps another subnet or its host already uses v3 |
//! | copy of the same record with the same TTL | leave |
//! | older copy | replace |
//! | leased by the same host | leave |
//! | leased by another host, or a bad record | leave and report a conflict |

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flannel_core::{BadRecord, Lease, PublicAddrs, SubnetKey, Term};

use super::record::{MigrationOutcome, RecordAuthor, SourceRecord, TargetRecord};

/// The tolerated difference between the TTLs of a record and its copy, which are read one after the other in whole
/// seconds.
const SLACK: Duration = Duration::from_secs(10);

/// The action for one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MigrationAction {
    /// Create the record in v3.
    Copy,
    /// Replace this copy in v3.
    Replace(Lease),
    /// Write nothing.
    Leave(MigrationOutcome),
}

/// The content of the v3 store.
#[derive(Debug)]
pub(super) struct TargetStore {
    records: BTreeMap<SubnetKey, TargetRecord>,
    unreadable: BTreeSet<SubnetKey>,
    /// The subnets of hosts that already use v3, by public address.
    moved: BTreeMap<PublicAddrs, SubnetKey>,
    /// All subnets that are in use.
    taken: BTreeSet<SubnetKey>,
}

impl TargetStore {
    pub(super) fn new(records: Vec<TargetRecord>, bad: &[BadRecord]) -> Self {
        let unreadable: BTreeSet<_> = bad.iter().filter_map(|record| record.subnet).collect();
        let held = records.iter().filter(|record| record.author == RecordAuthor::Host);
        let moved = held.map(|record| (record.lease.attrs.public, record.lease.subnet)).collect();
        let records: BTreeMap<_, _> =
            records.into_iter().map(|record| (record.lease.subnet, record)).collect();
        let taken = records.keys().chain(&unreadable).copied().collect();
        Self { records, unreadable, moved, taken }
    }

    /// Marks a copied subnet as in use.
    pub(super) fn reserve(&mut self, subnet: &SubnetKey) {
        self.taken.insert(*subnet);
    }

    /// Chooses the action according to the table above.
    pub(super) fn action(&self, source: &SourceRecord) -> MigrationAction {
        let SourceRecord { lease, ttl, .. } = source;
        let public = lease.attrs.public;
        if ttl.is_some_and(|ttl| ttl.is_zero()) {
            return MigrationAction::Leave(MigrationOutcome::Expiring);
        }
        let conflict = |reason: String| MigrationAction::Leave(MigrationOutcome::Conflict(reason));
        if self.unreadable.contains(&lease.subnet) {
            return conflict("the v3 record is invalid".to_owned());
        }
        if let Some(target) = self.records.get(&lease.subnet) {
            let owner = target.lease.attrs.public;
            return match target.author {
                RecordAuthor::Host if owner == public => {
                    MigrationAction::Leave(MigrationOutcome::AlreadyMoved(lease.subnet))
                }
                RecordAuthor::Host => conflict(format!("{owner} holds the subnet in v3")),
                RecordAuthor::Migration if is_up_to_date(source, target) => {
                    MigrationAction::Leave(MigrationOutcome::UpToDate)
                }
                // A host does not rewrite a reservation, so it may use this one already.
                RecordAuthor::Migration if target.lease.term == Term::Permanent && owner != public => {
                    conflict(format!("the subnet is reserved for {owner} in v3"))
                }
                RecordAuthor::Migration => MigrationAction::Replace(target.lease.clone()),
            };
        }
        if let Some(moved) = self.moved.get(&public) {
            return MigrationAction::Leave(MigrationOutcome::AlreadyMoved(*moved));
        }
        match self.taken.iter().find(|other| other.overlaps(&lease.subnet)) {
            Some(other) => conflict(format!("the subnet overlaps {other} in v3")),
            None => MigrationAction::Copy,
        }
    }
}

/// Reports whether a copy has the text of its source and about the same TTL.
fn is_up_to_date(source: &SourceRecord, copy: &TargetRecord) -> bool {
    let lasts = match source.ttl {
        Some(ttl) => ttl <= copy.ttl + SLACK,
        None => true,
    };
    source.lease.term == copy.lease.term && source.record.as_bytes() == copy.record && lasts
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_core::{LeaseAttrs, Revision};

    const HOUR: Duration = Duration::from_secs(3600);

    fn lease(subnet: &str, host: u8, term: Term) -> Lease {
        let attrs = LeaseAttrs::new(std::net::Ipv4Addr::new(192, 168, 0, host).into());
        Lease { subnet: subnet.parse().unwrap(), attrs, revision: Revision(7), term }
    }

    fn source(subnet: &str, host: u8, ttl: Option<Duration>) -> SourceRecord {
        let term = if ttl.is_some() { Term::Limited } else { Term::Permanent };
        let lease = lease(subnet, host, term);
        SourceRecord { record: lease.attrs.to_record(), lease, ttl }
    }

    fn target(subnet: &str, host: u8, author: RecordAuthor, ttl: Option<Duration>) -> TargetRecord {
        let term = if ttl.is_some() { Term::Limited } else { Term::Permanent };
        let lease = lease(subnet, host, term);
        TargetRecord { record: lease.attrs.to_record().into(), lease, author, ttl: ttl.unwrap_or_default() }
    }

    fn action(source: &SourceRecord, targets: Vec<TargetRecord>) -> MigrationAction {
        TargetStore::new(targets, &[]).action(source)
    }

    const A: &str = "10.5.1.0-24";

    #[test]
    fn a_missing_record_is_copied_unless_it_is_expiring() {
        assert_eq!(action(&source(A, 1, Some(HOUR)), vec![]), MigrationAction::Copy);
        assert_eq!(action(&source(A, 1, None), vec![]), MigrationAction::Copy);
        assert_eq!(
            action(&source(A, 1, Some(Duration::ZERO)), vec![]),
            MigrationAction::Leave(MigrationOutcome::Expiring)
        );
    }

    #[test]
    fn a_copy_is_replaced_only_if_the_text_or_ttl_of_its_source_differs() {
        let copy = |host, ttl| target(A, host, RecordAuthor::Migration, ttl);
        let up_to_date = MigrationAction::Leave(MigrationOutcome::UpToDate);
        let replace = |copy: TargetRecord| MigrationAction::Replace(copy.lease);
        for (source, copy, expected) in [
            (source(A, 1, Some(HOUR)), copy(1, Some(HOUR)), up_to_date.clone()),
            (source(A, 1, Some(HOUR)), copy(1, Some(HOUR - SLACK)), up_to_date.clone()),
            (source(A, 1, Some(HOUR)), copy(1, Some(HOUR * 2)), up_to_date.clone()),
            (source(A, 1, None), copy(1, None), up_to_date),
            (source(A, 1, Some(HOUR * 2)), copy(1, Some(HOUR)), replace(copy(1, Some(HOUR)))),
            (source(A, 2, Some(HOUR)), copy(1, Some(HOUR)), replace(copy(1, Some(HOUR)))),
            (source(A, 1, None), copy(1, Some(HOUR)), replace(copy(1, Some(HOUR)))),
            (source(A, 1, Some(HOUR)), copy(1, None), replace(copy(1, None))),
        ] {
            assert_eq!(action(&source, vec![copy]), expected, "{source:?}");
        }
    }

    #[test]
    fn a_record_of_a_v3_host_is_left_alone() {
        let held = |subnet, host| vec![target(subnet, host, RecordAuthor::Host, Some(HOUR))];
        let moved =
            |subnet: &str| MigrationAction::Leave(MigrationOutcome::AlreadyMoved(subnet.parse().unwrap()));
        let later = Some(HOUR * 9);
        assert_eq!(action(&source(A, 1, later), held(A, 1)), moved(A));
        assert_eq!(action(&source(A, 1, None), held(A, 1)), moved(A));
        assert_eq!(action(&source(A, 1, later), held("10.5.9.0-24", 1)), moved("10.5.9.0-24"));
        let conflict = |action: MigrationAction| match action {
            MigrationAction::Leave(MigrationOutcome::Conflict(reason)) => reason,
            other @ (MigrationAction::Copy | MigrationAction::Replace(_) | MigrationAction::Leave(_)) => {
                panic!("{other:?}")
            }
        };
        assert!(conflict(action(&source(A, 1, later), held(A, 2))).contains("192.168.0.2"));
        let reserved = vec![target(A, 2, RecordAuthor::Migration, None)];
        assert!(conflict(action(&source(A, 1, None), reserved)).contains("reserved for 192.168.0.2"));
        assert!(conflict(action(&source(A, 1, later), held("10.5.0.0-20", 2))).contains("10.5.0.0-20"));
        let bad = BadRecord::new(A, A.parse().ok(), "garbage");
        assert!(conflict(TargetStore::new(vec![], &[bad]).action(&source(A, 1, later))).contains("invalid"));
    }

    #[test]
    fn overlapping_records_are_not_both_copied() {
        let mut target = TargetStore::new(vec![], &[]);
        let (wide, narrow) = (source("10.5.0.0-20", 1, Some(HOUR)), source(A, 2, Some(HOUR)));
        assert_eq!(target.action(&wide), MigrationAction::Copy);
        target.reserve(&wide.lease.subnet);
        assert!(matches!(target.action(&narrow), MigrationAction::Leave(MigrationOutcome::Conflict(_))));
    }
}
