//! Watch responses, and the reaction to each. Pure.

use etcd_client::{ResponseHeader, WatchResponse};
use flannel_core::RegistryEvent;

use super::keys::{Keys, revision, unsigned};
use crate::etcd::Position;

impl Position {
    /// Reads the position of the member that responded.
    pub(super) fn of(header: &ResponseHeader) -> Self {
        Self {
            // `etcd grpc-proxy` sends zero for what it does not know.
            cluster: Some(header.cluster_id()).filter(|id| *id != 0),
            term: header.raft_term(),
            revision: unsigned(header.revision()),
        }
    }

    /// Returns the revision in the wire format.
    pub(super) fn signed_revision(&self) -> i64 {
        i64::try_from(self.revision).unwrap_or(i64::MAX)
    }
}

/// A watch response.
#[derive(Debug)]
pub(super) enum WatchNotice {
    /// The watch is open at a member at this position.
    Created(Position),
    /// Changed records, each with its revision.
    Changed(Vec<(u64, RegistryEvent)>),
    /// No changes up to this position.
    Progress(Position),
    /// A response without information about the watch.
    Alive,
    /// etcd ended the watch.
    Canceled {
        /// The history before this revision is compacted; zero if the watch ended for another reason.
        compacted: u64,
        /// The reason that etcd gives.
        reason: String,
    },
}

impl WatchNotice {
    /// Parses a response.
    pub(super) fn read(keys: &Keys, response: &WatchResponse) -> Self {
        let position = response.header().map(Position::of).unwrap_or_default();
        if response.canceled() || response.compact_revision() > 0 {
            Self::Canceled {
                compacted: unsigned(response.compact_revision()),
                reason: response.cancel_reason().to_owned(),
            }
        } else if response.created() {
            Self::Created(position)
        } else if !response.events().is_empty() {
            let records = response.events().iter().filter_map(etcd_client::Event::kv);
            Self::Changed(records.map(|record| (revision(record).0, keys.read_change(record))).collect())
        } else if response.watch_id() < 0 {
            // A response to a progress request. Up to etcd 3.5.7 it may carry a revision whose events have not been
            // sent yet (etcd-io/etcd#15220).
            Self::Alive
        } else {
            Self::Progress(position)
        }
    }
}

/// The reaction to a watch response.
#[derive(Debug)]
pub(super) enum WatchAction {
    /// Yield these events and continue from this position.
    Continue(Position, Vec<RegistryEvent>),
    /// Events may be missing, for this reason: read all leases.
    Relist(String),
    /// The watch failed for this reason; open it again at the same position.
    Reopen(String),
}

/// Chooses the reaction to a response for a watch that knows everything up to a position.
pub(super) fn react(known: Position, notice: WatchNotice) -> WatchAction {
    match notice {
        WatchNotice::Created(member) if known.can_continue_at(&member) => {
            WatchAction::Continue(known.at_member(&member), Vec::new())
        }
        WatchNotice::Created(member) => WatchAction::Relist(format!(
            "the store was replaced or is at revision {}, known revision: {}",
            member.revision, known.revision
        )),
        WatchNotice::Changed(mut changes) => {
            // A member may repeat events (etcd-io/etcd#20221).
            changes.retain(|(revision, _)| *revision > known.revision);
            let revision = changes.iter().map(|(revision, _)| *revision).fold(known.revision, u64::max);
            let events = changes.into_iter().map(|(_, event)| event).collect();
            WatchAction::Continue(Position { revision, ..known }, events)
        }
        WatchNotice::Progress(member) => {
            let revision = known.revision.max(member.revision);
            WatchAction::Continue(Position { revision, ..known }, Vec::new())
        }
        WatchNotice::Alive => WatchAction::Continue(known, Vec::new()),
        WatchNotice::Canceled { compacted: 0, reason } => {
            WatchAction::Reopen(format!("etcd canceled the watch: {reason}"))
        }
        WatchNotice::Canceled { compacted, .. } => WatchAction::Relist(format!(
            "etcd compacted the history before revision {compacted}; known revision: {}",
            known.revision
        )),
    }
}

#[cfg(test)]
mod tests {
    use flannel_core::Revision;

    use super::*;

    const KNOWN: Position = Position { cluster: Some(7), term: 3, revision: 100 };

    fn deleted(revision: u64) -> (u64, RegistryEvent) {
        let subnet = "10.5.1.0-24".parse().unwrap();
        (revision, RegistryEvent::Deleted(subnet, Revision(revision)))
    }

    fn continues(action: WatchAction) -> (u64, usize) {
        match action {
            WatchAction::Continue(position, events) => (position.revision, events.len()),
            WatchAction::Relist(reason) | WatchAction::Reopen(reason) => panic!("{reason}"),
        }
    }

    #[test]
    fn a_watch_continues_at_an_up_to_date_member_of_the_same_store() {
        let member = Position { term: 4, revision: 140, ..KNOWN };
        assert_eq!(
            continues(react(KNOWN, WatchNotice::Created(member))),
            (100, 0),
            "events up to 140 have not arrived yet"
        );
        let joined = Position::after(Revision(101));
        match react(KNOWN, WatchNotice::Created(joined)) {
            WatchAction::Continue(position, _) => {
                assert_eq!(position, KNOWN, "a proxy omits cluster and term")
            }
            other @ (WatchAction::Relist(_) | WatchAction::Reopen(_)) => panic!("{other:?}"),
        }
        let unknown = Position::after(Revision(100));
        assert_eq!(continues(react(unknown, WatchNotice::Created(member))), (100, 0));
    }

    #[test]
    fn a_restored_emptied_or_lagging_store_is_listed_again() {
        for member in [
            Position { cluster: Some(8), ..KNOWN },
            Position { term: 2, revision: 900, ..KNOWN },
            Position { revision: 99, ..KNOWN },
        ] {
            let action = react(KNOWN, WatchNotice::Created(member));
            assert!(matches!(action, WatchAction::Relist(_)), "{member:?}");
        }
        let action = react(Position::after(Revision(5)), WatchNotice::Created(Position::default()));
        assert!(matches!(action, WatchAction::Relist(_)));
    }

    #[test]
    fn repeated_events_are_dropped() {
        let notice =
            WatchNotice::Changed(vec![deleted(99), deleted(100), deleted(101), deleted(101), deleted(105)]);
        assert_eq!(continues(react(KNOWN, notice)), (105, 3));
        assert_eq!(continues(react(KNOWN, WatchNotice::Changed(vec![deleted(3)]))), (100, 0));
    }

    #[test]
    fn progress_advances_the_position_and_a_bare_response_does_not() {
        let member = Position { revision: 500, ..KNOWN };
        assert_eq!(continues(react(KNOWN, WatchNotice::Progress(member))), (500, 0));
        assert_eq!(continues(react(KNOWN, WatchNotice::Alive)), (100, 0));
    }

    #[test]
    fn a_compacted_watch_lists_and_a_canceled_watch_reopens() {
        let canceled = |compacted| WatchNotice::Canceled { compacted, reason: "why".to_owned() };
        assert!(matches!(react(KNOWN, canceled(120)), WatchAction::Relist(_)));
        assert!(matches!(react(KNOWN, canceled(0)), WatchAction::Reopen(reason) if reason.contains("why")));
    }
}
