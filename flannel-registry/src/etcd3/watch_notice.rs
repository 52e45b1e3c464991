//! What a watch makes of what etcd says. Pure.

use etcd_client::{ResponseHeader, WatchResponse};
use flannel_core::RegistryEvent;

use super::keys::{Keys, revision, unsigned};
use crate::etcd::Position;

impl Position {
    /// Reads where the member that answered stands.
    pub(super) fn of(header: &ResponseHeader) -> Self {
        Self {
            cluster: Some(header.cluster_id()),
            term: header.raft_term(),
            revision: unsigned(header.revision()),
        }
    }

    /// The revision as it is on the wire.
    pub(super) fn signed_revision(&self) -> i64 {
        i64::try_from(self.revision).unwrap_or(i64::MAX)
    }
}

/// What etcd says about a watch.
#[derive(Debug)]
pub(super) enum Notice {
    /// The watch begins, at a member that stands here.
    Created(Position),
    /// These records changed, each at its revision.
    Changed(Vec<(u64, RegistryEvent)>),
    /// Nothing changed up to this point.
    Quiet(Position),
    /// The member answers; what it says has no bearing on the watch.
    Alive,
    /// The watch is over.
    Canceled {
        /// The history before this revision is gone; zero if that is not why.
        compacted: u64,
        /// Why, in etcd's words.
        reason: String,
    },
}

impl Notice {
    /// Reads one response.
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
            // An answer to a request for progress. Up to etcd 3.5.7 it may name a revision whose events are still
            // to come (etcd-io/etcd#15220).
            Self::Alive
        } else {
            Self::Quiet(position)
        }
    }
}

/// What follows from a notice.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The watch goes on from here, after these events.
    Follow(Position, Vec<RegistryEvent>),
    /// Nobody can tell what was missed, for this reason: a list must.
    List(String),
    /// The watch broke for this reason, and may be opened again where it was.
    Reopen(String),
}

/// Decides what follows from a notice to a watch that knows everything up to a position.
pub(super) fn judge(known: Position, notice: Notice) -> Verdict {
    match notice {
        Notice::Created(member) if known.leads_on_at(&member) => {
            let revision = known.revision;
            Verdict::Follow(Position { revision, ..member }, Vec::new())
        }
        Notice::Created(member) => Verdict::List(format!(
            "the store is not the one known up to revision {}: it is at {}",
            known.revision, member.revision
        )),
        Notice::Changed(mut changes) => {
            // A member may repeat what it told before (etcd-io/etcd#20221).
            changes.retain(|(revision, _)| *revision > known.revision);
            let revision = changes.iter().map(|(revision, _)| *revision).fold(known.revision, u64::max);
            let events = changes.into_iter().map(|(_, event)| event).collect();
            Verdict::Follow(Position { revision, ..known }, events)
        }
        Notice::Quiet(member) => {
            let revision = known.revision.max(member.revision);
            Verdict::Follow(Position { revision, ..known }, Vec::new())
        }
        Notice::Alive => Verdict::Follow(known, Vec::new()),
        Notice::Canceled { compacted: 0, reason } => {
            Verdict::Reopen(format!("etcd ends the watch: {reason}"))
        }
        Notice::Canceled { compacted, .. } => Verdict::List(format!(
            "the history before revision {compacted} is gone, known is it up to {}",
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

    fn follows(verdict: Verdict) -> (u64, usize) {
        match verdict {
            Verdict::Follow(position, events) => (position.revision, events.len()),
            Verdict::List(reason) | Verdict::Reopen(reason) => panic!("{reason}"),
        }
    }

    #[test]
    fn a_watch_goes_on_at_a_member_of_the_same_store_that_is_as_far() {
        let member = Position { term: 4, revision: 140, ..KNOWN };
        assert_eq!(
            follows(judge(KNOWN, Notice::Created(member))),
            (100, 0),
            "events up to 140 are still to come"
        );
        let unknown = Position::after(Revision(100));
        assert_eq!(follows(judge(unknown, Notice::Created(member))), (100, 0));
    }

    #[test]
    fn a_restored_emptied_or_lagging_store_is_listed_anew() {
        for member in [
            Position { cluster: Some(8), ..KNOWN },
            Position { term: 2, revision: 900, ..KNOWN },
            Position { revision: 99, ..KNOWN },
        ] {
            let verdict = judge(KNOWN, Notice::Created(member));
            assert!(matches!(verdict, Verdict::List(_)), "{member:?}");
        }
        let verdict = judge(Position::after(Revision(5)), Notice::Created(Position::default()));
        assert!(matches!(verdict, Verdict::List(_)));
    }

    #[test]
    fn events_that_were_told_before_are_not_told_again() {
        let notice =
            Notice::Changed(vec![deleted(99), deleted(100), deleted(101), deleted(101), deleted(105)]);
        assert_eq!(follows(judge(KNOWN, notice)), (105, 3));
        assert_eq!(follows(judge(KNOWN, Notice::Changed(vec![deleted(3)]))), (100, 0));
    }

    #[test]
    fn quiet_moves_a_watch_on_and_mere_life_does_not() {
        let member = Position { revision: 500, ..KNOWN };
        assert_eq!(follows(judge(KNOWN, Notice::Quiet(member))), (500, 0));
        assert_eq!(follows(judge(KNOWN, Notice::Alive)), (100, 0));
    }

    #[test]
    fn a_compacted_watch_lists_and_a_canceled_one_opens_again() {
        let canceled = |compacted| Notice::Canceled { compacted, reason: "why".to_owned() };
        assert!(matches!(judge(KNOWN, canceled(120)), Verdict::List(_)));
        assert!(matches!(judge(KNOWN, canceled(0)), Verdict::Reopen(reason) if reason.contains("why")));
    }
}
