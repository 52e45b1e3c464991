//! Folding what a registry tells into what a host needs to know of its peers.

use std::sync::Arc;
use std::task::Poll;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use tokio::sync::watch;

use flannel_core::{
    BadRecord, Lease, LeaseChange, LeaseSet, PeerEvent, RegistryEvent, Revision, Snapshot, SubnetKey,
};

/// What a watch heard of the own record.
#[derive(Clone, Debug)]
pub(super) struct OwnRecord {
    pub(super) subnet: SubnetKey,
    /// What it says; nothing if it is gone.
    pub(super) lease: Option<Arc<Lease>>,
    /// When it was written or removed.
    pub(super) revision: Revision,
    pub(super) sign: Sign,
}

/// What it means if [`OwnRecord::revision`] is smaller than that of the last own write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sign {
    /// An event that comes late: the write is still to be heard of.
    Late,
    /// A list that was made before the write, or after the store went back in time. This watch may have been silent
    /// since before the write, so it cannot tell.
    Doubtful,
    /// The store went back in time: the write is undone.
    Undone,
}

/// So many events are taken in at once if they are there; bounded, so that a storm without end is told in parts.
const BURST: usize = 1024;

/// Follows the peers, from a snapshot that was taken before if there is one.
pub(super) fn stream(
    events: BoxStream<'static, RegistryEvent>,
    known: Option<Snapshot>,
    own: SubnetKey,
    news: watch::Sender<Option<OwnRecord>>,
) -> BoxStream<'static, PeerEvent> {
    let mut peers = Peers { own, news: None, leases: LeaseSet::default(), complete: false, bad: Vec::new() };
    let first = known.map(|snapshot| peers.fold([RegistryEvent::Snapshot(snapshot)]));
    // Before here the own record is no news: the lease was acquired after that snapshot was taken.
    peers.news = Some(news);
    let rest = bursts(events).map(move |events| peers.fold(events));
    stream::iter(first).chain(rest).flat_map(stream::iter).boxed()
}

/// Takes together what is there at the same time. Nearly always that is one event, so no room is kept for more.
fn bursts(events: BoxStream<'static, RegistryEvent>) -> impl Stream<Item = Vec<RegistryEvent>> {
    let mut events = events.fuse();
    stream::poll_fn(move |cx| {
        let mut burst = Vec::new();
        while burst.len() < BURST {
            match events.poll_next_unpin(cx) {
                Poll::Ready(Some(event)) => burst.push(event),
                Poll::Ready(None) if burst.is_empty() => return Poll::Ready(None),
                Poll::Pending if burst.is_empty() => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Poll::Ready(Some(burst))
    })
}

struct Peers {
    own: SubnetKey,
    news: Option<watch::Sender<Option<OwnRecord>>>,
    leases: LeaseSet,
    complete: bool,
    /// The bad records as last told.
    bad: Vec<BadRecord>,
}

impl Peers {
    /// Takes in events, and tells what they change together.
    fn fold(&mut self, events: impl IntoIterator<Item = RegistryEvent>) -> Vec<PeerEvent> {
        let (mut told, mut changes) = (Vec::new(), Vec::new());
        let was_complete = self.complete;
        for event in events {
            match event {
                RegistryEvent::Unavailable(reason) => told.push(PeerEvent::RegistryUnavailable(reason)),
                RegistryEvent::Available => told.push(PeerEvent::RegistryAvailable),
                event @ (RegistryEvent::Snapshot(_)
                | RegistryEvent::Put(_)
                | RegistryEvent::Deleted(..)
                | RegistryEvent::Bad(_)
                | RegistryEvent::BadDeleted(_)) => {
                    self.hear_own(&event);
                    self.complete |= matches!(event, RegistryEvent::Snapshot(_));
                    changes.extend(self.leases.apply(event));
                }
            }
        }
        changes.retain(|change| subnet(change) != self.own);
        if !changes.is_empty() {
            told.push(PeerEvent::Changed(changes));
        }
        if self.complete && !was_complete {
            told.push(PeerEvent::Complete);
        }
        told.extend(self.bad());
        told
    }

    /// Tells the bad records if they are others than last told.
    fn bad(&mut self) -> Option<PeerEvent> {
        if self.leases.bad().eq(&self.bad) {
            return None;
        }
        self.bad = self.leases.bad().cloned().collect();
        Some(PeerEvent::Bad(self.bad.clone()))
    }

    /// Passes on what an event says of the own record.
    fn hear_own(&self, event: &RegistryEvent) {
        let Some(news) = &self.news else {
            return;
        };
        let heard = match event {
            RegistryEvent::Put(lease) if lease.subnet == self.own => {
                (Some(lease), lease.revision, Sign::Late)
            }
            RegistryEvent::Deleted(subnet, revision) if *subnet == self.own => (None, *revision, Sign::Late),
            RegistryEvent::Snapshot(snapshot) => {
                let unreadable = |record: &BadRecord| record.subnet == Some(self.own);
                if snapshot.bad.iter().any(unreadable) {
                    return;
                }
                let own = snapshot.leases.iter().find(|lease| lease.subnet == self.own);
                let revision = own.map_or(snapshot.revision, |lease| lease.revision);
                // A store that went back may have grown as far as it was. Then its record is older than the one that
                // is known, or is not there, though the list is no younger than what is known.
                let is_older = self.leases.lease(&self.own).is_some_and(|known| match own {
                    Some(own) => own.revision < known.revision,
                    None => snapshot.revision <= known.revision,
                });
                let went_back = is_older || snapshot.revision < self.leases.revision();
                (own, revision, if went_back { Sign::Undone } else { Sign::Doubtful })
            }
            RegistryEvent::Put(_)
            | RegistryEvent::Deleted(..)
            | RegistryEvent::Bad(_)
            | RegistryEvent::BadDeleted(_)
            | RegistryEvent::Unavailable(_)
            | RegistryEvent::Available => return,
        };
        let (lease, revision, sign) = heard;
        let record = OwnRecord { subnet: self.own, lease: lease.cloned(), revision, sign };
        news.send_modify(|heard| {
            let before = heard.take().filter(|before| before.subnet == record.subnet);
            let sign = before.map_or(sign, |before| before.sign.max(sign));
            *heard = Some(OwnRecord { sign, ..record });
        });
    }
}

fn subnet(change: &LeaseChange) -> SubnetKey {
    match change {
        LeaseChange::Put(lease) => lease.subnet,
        LeaseChange::Removed(subnet) => *subnet,
    }
}
