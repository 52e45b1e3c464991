//! What becomes of each record of the v2 store. Pure.
//!
//! | over v3 the subnet is | then |
//! |---|---|
//! | free | copy, unless it overlaps another one, or its host has another one there already |
//! | a copy of the same record, which lasts as long | leave |
//! | an older copy | replace |
//! | held by its host, which lives there already | leave |
//! | held by another host, or a record that cannot be read | leave, and say so: two hosts want one subnet |

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flannel_core::{BadRecord, Lease, PublicAddrs, SubnetKey, Term};

use super::{Author, Found, MigrationOutcome, Original};

/// How much longer an original may last than its copy before that counts: both are told in whole seconds, one after
/// the other.
const SLACK: Duration = Duration::from_secs(10);

/// What is to be done about one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Write it where nothing is.
    Copy,
    /// Write it in place of this one.
    Replace(Lease),
    /// Write nothing.
    Leave(MigrationOutcome),
}

/// What is known of the v3 store.
#[derive(Debug)]
pub(super) struct Known {
    found: BTreeMap<SubnetKey, Found>,
    unreadable: BTreeSet<SubnetKey>,
    /// The subnets that hosts hold over v3, by their addresses.
    moved: BTreeMap<PublicAddrs, SubnetKey>,
    /// The subnets that nobody else may have.
    taken: BTreeSet<SubnetKey>,
}

impl Known {
    pub(super) fn new(found: Vec<Found>, bad: &[BadRecord]) -> Self {
        let unreadable: BTreeSet<_> = bad.iter().filter_map(|record| record.subnet).collect();
        let held = found.iter().filter(|found| found.author == Author::Host);
        let moved = held.map(|found| (found.lease.attrs.public, found.lease.subnet)).collect();
        let found: BTreeMap<_, _> = found.into_iter().map(|found| (found.lease.subnet, found)).collect();
        let taken = found.keys().chain(&unreadable).copied().collect();
        Self { found, unreadable, moved, taken }
    }

    /// Takes note that a subnet was copied.
    pub(super) fn took(&mut self, subnet: &SubnetKey) {
        self.taken.insert(*subnet);
    }

    /// Decides by the table above.
    pub(super) fn action(&self, original: &Original) -> Action {
        let Original { lease, left, .. } = original;
        let public = lease.attrs.public;
        if left.is_some_and(|left| left.is_zero()) {
            return Action::Leave(MigrationOutcome::Expiring);
        }
        let conflict = |reason: String| Action::Leave(MigrationOutcome::Conflict(reason));
        if self.unreadable.contains(&lease.subnet) {
            return conflict("its record over v3 cannot be read".to_owned());
        }
        if let Some(found) = self.found.get(&lease.subnet) {
            let holder = found.lease.attrs.public;
            return match found.author {
                Author::Host if holder == public => {
                    Action::Leave(MigrationOutcome::AlreadyMoved(lease.subnet))
                }
                Author::Host => conflict(format!("over v3 {holder} holds it, and keeps it")),
                Author::Migration if is_up_to_date(original, found) => {
                    Action::Leave(MigrationOutcome::UpToDate)
                }
                // Its host leaves a reservation as it is, so it may have taken this one over.
                Author::Migration if found.lease.term == Term::Permanent && holder != public => {
                    conflict(format!("over v3 it is reserved for {holder}"))
                }
                Author::Migration => Action::Replace(found.lease.clone()),
            };
        }
        if let Some(moved) = self.moved.get(&public) {
            return Action::Leave(MigrationOutcome::AlreadyMoved(*moved));
        }
        match self.taken.iter().find(|other| other.overlaps(&lease.subnet)) {
            Some(other) => conflict(format!("it overlaps {other}, which is there over v3")),
            None => Action::Copy,
        }
    }
}

/// Tells whether a copy says what its original says, and lasts about as long.
fn is_up_to_date(original: &Original, copy: &Found) -> bool {
    let lasts = match original.left {
        Some(left) => left <= copy.left + SLACK,
        None => true,
    };
    original.lease.term == copy.lease.term && original.record.as_bytes() == copy.record && lasts
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

    fn original(subnet: &str, host: u8, left: Option<Duration>) -> Original {
        let term = if left.is_some() { Term::Limited } else { Term::Permanent };
        let lease = lease(subnet, host, term);
        Original { record: lease.attrs.to_record(), lease, left }
    }

    fn found(subnet: &str, host: u8, author: Author, left: Option<Duration>) -> Found {
        let term = if left.is_some() { Term::Limited } else { Term::Permanent };
        let lease = lease(subnet, host, term);
        Found { record: lease.attrs.to_record().into(), lease, author, left: left.unwrap_or_default() }
    }

    fn action(original: &Original, found: Vec<Found>) -> Action {
        Known::new(found, &[]).action(original)
    }

    const A: &str = "10.5.1.0-24";

    #[test]
    fn what_is_not_there_is_copied_unless_it_ends_now() {
        assert_eq!(action(&original(A, 1, Some(HOUR)), vec![]), Action::Copy);
        assert_eq!(action(&original(A, 1, None), vec![]), Action::Copy);
        assert_eq!(
            action(&original(A, 1, Some(Duration::ZERO)), vec![]),
            Action::Leave(MigrationOutcome::Expiring)
        );
    }

    #[test]
    fn a_copy_is_replaced_only_if_its_original_says_or_lasts_something_else() {
        let copy = |host, left| found(A, host, Author::Migration, left);
        let there = Action::Leave(MigrationOutcome::UpToDate);
        let replace = |found: Found| Action::Replace(found.lease);
        for (original, copy, expected) in [
            (original(A, 1, Some(HOUR)), copy(1, Some(HOUR)), there.clone()),
            (original(A, 1, Some(HOUR)), copy(1, Some(HOUR - SLACK)), there.clone()),
            (original(A, 1, Some(HOUR)), copy(1, Some(HOUR * 2)), there.clone()),
            (original(A, 1, None), copy(1, None), there),
            (original(A, 1, Some(HOUR * 2)), copy(1, Some(HOUR)), replace(copy(1, Some(HOUR)))),
            (original(A, 2, Some(HOUR)), copy(1, Some(HOUR)), replace(copy(1, Some(HOUR)))),
            (original(A, 1, None), copy(1, Some(HOUR)), replace(copy(1, Some(HOUR)))),
            (original(A, 1, Some(HOUR)), copy(1, None), replace(copy(1, None))),
        ] {
            assert_eq!(action(&original, vec![copy]), expected, "{original:?}");
        }
    }

    #[test]
    fn what_a_host_holds_over_v3_is_left_alone() {
        let held = |subnet, host| vec![found(subnet, host, Author::Host, Some(HOUR))];
        let moved = |subnet: &str| Action::Leave(MigrationOutcome::AlreadyMoved(subnet.parse().unwrap()));
        let later = Some(HOUR * 9);
        assert_eq!(action(&original(A, 1, later), held(A, 1)), moved(A));
        assert_eq!(action(&original(A, 1, None), held(A, 1)), moved(A));
        assert_eq!(action(&original(A, 1, later), held("10.5.9.0-24", 1)), moved("10.5.9.0-24"));
        let conflict = |action: Action| match action {
            Action::Leave(MigrationOutcome::Conflict(reason)) => reason,
            other @ (Action::Copy | Action::Replace(_) | Action::Leave(_)) => panic!("{other:?}"),
        };
        assert!(conflict(action(&original(A, 1, later), held(A, 2))).contains("192.168.0.2"));
        let reserved = vec![found(A, 2, Author::Migration, None)];
        assert!(conflict(action(&original(A, 1, None), reserved)).contains("reserved for 192.168.0.2"));
        assert!(conflict(action(&original(A, 1, later), held("10.5.0.0-20", 2))).contains("10.5.0.0-20"));
        let bad = BadRecord::new(A, A.parse().ok(), "garbage");
        assert!(conflict(Known::new(vec![], &[bad]).action(&original(A, 1, later))).contains("read"));
    }

    #[test]
    fn two_originals_that_overlap_are_not_both_copied() {
        let mut known = Known::new(vec![], &[]);
        let (wide, narrow) = (original("10.5.0.0-20", 1, Some(HOUR)), original(A, 2, Some(HOUR)));
        assert_eq!(known.action(&wide), Action::Copy);
        known.took(&wide.lease.subnet);
        assert!(matches!(known.action(&narrow), Action::Leave(MigrationOutcome::Conflict(_))));
    }
}
