//! Converts registry events into changes of the peers of one host.

use std::sync::Arc;
use std::task::Poll;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use tokio::sync::watch;

use flannel_core::{
    BadRecord, Lease, LeaseChange, LeaseSet, PeerEvent, RegistryEvent, Revision, Snapshot, SubnetKey,
};

/// The state of this host's own record as a watch saw it.
#[derive(Clone, Debug)]
pub(super) struct OwnRecord {
    pub(super) subnet: SubnetKey,
    /// The record; `None` if it was removed.
    pub(super) lease: Option<Arc<Lease>>,
    /// The revision of the write or removal.
    pub(super) revision: Revision,
    pub(super) hint: RevisionHint,
}

/// How to interpret an [`OwnRecord::revision`] that is lower than that of the last own write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RevisionHint {
    /// A delayed event from before the write.
    Delayed,
    /// A list from before the write, or from after a restore of the store. The watch may have missed events since before
    /// the write, so it cannot distinguish the two.
    Uncertain,
    /// The store was restored, and the write is undone.
    RolledBack,
}

/// The maximum number of pending events that are handled together, so that an endless burst is passed on in parts.
const BURST: usize = 1024;

/// Watches the peers, starting from an earlier snapshot if there is one.
pub(super) fn stream(
    events: BoxStream<'static, RegistryEvent>,
    snapshot: Option<Snapshot>,
    own: SubnetKey,
    own_record: watch::Sender<Option<OwnRecord>>,
) -> BoxStream<'static, PeerEvent> {
    let mut peers =
        PeerView { own, own_record: None, leases: LeaseSet::default(), complete: false, bad: Vec::new() };
    let first = snapshot.map(|snapshot| peers.fold([RegistryEvent::Snapshot(snapshot)]));
    // The lease was acquired after the snapshot, so the snapshot's own record is outdated.
    peers.own_record = Some(own_record);
    let rest = bursts(events).map(move |events| peers.fold(events));
    stream::iter(first).chain(rest).flat_map(stream::iter).boxed()
}

/// Groups events that are pending at the same time. Most groups have one event, so no capacity is reserved.
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

struct PeerView {
    own: SubnetKey,
    own_record: Option<watch::Sender<Option<OwnRecord>>>,
    leases: LeaseSet,
    complete: bool,
    /// The bad records as last reported.
    bad: Vec<BadRecord>,
}

impl PeerView {
    /// Applies events and returns the resulting changes of the peers.
    fn fold(&mut self, events: impl IntoIterator<Item = RegistryEvent>) -> Vec<PeerEvent> {
        let (mut output, mut changes) = (Vec::new(), Vec::new());
        let was_complete = self.complete;
        for event in events {
            match event {
                RegistryEvent::Unavailable(reason) => output.push(PeerEvent::RegistryUnavailable(reason)),
                RegistryEvent::Available => output.push(PeerEvent::RegistryAvailable),
                event @ (RegistryEvent::Snapshot(_)
                | RegistryEvent::Put(_)
                | RegistryEvent::Deleted(..)
                | RegistryEvent::Released(..)
                | RegistryEvent::Bad(_)
                | RegistryEvent::BadDeleted(_)) => {
                    self.update_own_record(&event);
                    self.complete |= matches!(event, RegistryEvent::Snapshot(_));
                    changes.extend(self.leases.apply(event));
                }
            }
        }
        changes.retain(|change| subnet(change) != self.own);
        if !changes.is_empty() {
            output.push(PeerEvent::Changed(changes));
        }
        if self.complete && !was_complete {
            output.push(PeerEvent::Complete);
        }
        if !self.leases.bad().eq(&self.bad) {
            self.bad = self.leases.bad().cloned().collect();
            output.push(PeerEvent::Bad(self.bad.clone()));
        }
        output
    }

    /// Passes on the state of the own record if the event contains it.
    fn update_own_record(&self, event: &RegistryEvent) {
        let Some(own_record) = &self.own_record else {
            return;
        };
        let (lease, revision, hint) = match event {
            RegistryEvent::Put(lease) if lease.subnet == self.own => {
                (Some(lease), lease.revision, RevisionHint::Delayed)
            }
            RegistryEvent::Deleted(subnet, revision) | RegistryEvent::Released(subnet, revision)
                if *subnet == self.own =>
            {
                (None, *revision, RevisionHint::Delayed)
            }
            RegistryEvent::Snapshot(snapshot) => {
                let unreadable = |record: &BadRecord| record.subnet == Some(self.own);
                if snapshot.bad.iter().any(unreadable) {
                    return;
                }
                let own = snapshot.leases.iter().find(|lease| lease.subnet == self.own);
                let revision = own.map_or(snapshot.revision, |lease| lease.revision);
                // A restored store may have reached its former revision again. Then its record is older than the known
                // one, or missing although the list is not newer than the known record.
                let is_older = self.leases.lease(&self.own).is_some_and(|known| match own {
                    Some(own) => own.revision < known.revision,
                    None => snapshot.revision <= known.revision,
                });
                let rolled_back = is_older || snapshot.revision < self.leases.revision();
                let hint = if rolled_back { RevisionHint::RolledBack } else { RevisionHint::Uncertain };
                (own, revision, hint)
            }
            RegistryEvent::Put(_)
            | RegistryEvent::Deleted(..)
            | RegistryEvent::Released(..)
            | RegistryEvent::Bad(_)
            | RegistryEvent::BadDeleted(_)
            | RegistryEvent::Unavailable(_)
            | RegistryEvent::Available => return,
        };
        let record = OwnRecord { subnet: self.own, lease: lease.cloned(), revision, hint };
        own_record.send_modify(|pending| {
            let earlier = pending.take().filter(|earlier| earlier.subnet == record.subnet);
            let hint = earlier.map_or(hint, |earlier| earlier.hint.max(hint));
            *pending = Some(OwnRecord { hint, ..record });
        });
    }
}

fn subnet(change: &LeaseChange) -> SubnetKey {
    match change {
        LeaseChange::Put(lease) => lease.subnet,
        LeaseChange::Removed(subnet) | LeaseChange::Released(subnet) => *subnet,
    }
}
