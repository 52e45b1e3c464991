//! What a network does with what it hears of its peers.

use tokio::time::Instant;

use super::{Node, news};
use crate::event::NetworkEvent;
use crate::lease_set::LeaseChange;
use crate::manager::PeerEvent;
use crate::peers::{Dirty, PeerChange};
use crate::registry::BadRecord;

impl Node {
    pub(super) fn on_peers(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Changed(changes) => self.on_changes(changes),
            PeerEvent::FromCache(reason) => {
                self.note(|state| state.peers_from_cache = Some(reason.clone()));
                self.tell(NetworkEvent::PeersFromCache(reason));
                self.soon();
            }
            PeerEvent::CacheRejected(subnets) => {
                let mut changes = Vec::new();
                self.note(|state| changes = state.damping.disown(&subnets));
                self.apply(changes);
            }
            PeerEvent::Complete => self.on_complete(),
            PeerEvent::Bad(bad) => self.on_bad(bad),
            PeerEvent::RegistryUnavailable(reason) => {
                let now = Instant::now().into_std();
                // A registry may give another reason later in the same outage.
                self.note(|state| {
                    let since = state.unavailable.as_ref().map_or(now, |(_, since)| *since);
                    state.unavailable = Some((reason.clone(), since));
                });
                self.tell(NetworkEvent::RegistryUnavailable(reason));
            }
            PeerEvent::RegistryAvailable => {
                self.note(|state| state.unavailable = None);
                self.tell(NetworkEvent::RegistryAvailable);
            }
        }
    }

    /// Tells whether the peers are known well enough to carry traffic. To remove anything more is needed.
    pub(super) fn are_peers_known(&self) -> bool {
        let state = self.read();
        state.damping.peers().is_complete() || state.peers_from_cache.is_some()
    }

    /// Lets the peers go that were held for long enough.
    pub(super) fn let_go(&mut self) {
        let mut changes = Vec::new();
        self.note(|state| changes = state.damping.expire(Instant::now().into_std()));
        let gone = changes.len();
        self.apply(changes);
        self.tell(NetworkEvent::HoldEnded { gone });
    }

    fn on_complete(&mut self) {
        let mut was_from_cache = false;
        self.note(|state| {
            state.damping.complete();
            state.dirty = Dirty::All;
            was_from_cache = state.peers_from_cache.take().is_some();
        });
        if was_from_cache {
            self.tell(NetworkEvent::PeersConfirmed);
        }
        self.soon();
    }

    fn on_changes(&mut self, changes: Vec<LeaseChange>) {
        let (mut passed, mut held_before, mut held) = (Vec::new(), 0, 0);
        self.note(|state| {
            held_before = state.damping.held();
            passed = state.damping.filter(changes, Instant::now().into_std());
            held = state.damping.held();
        });
        self.apply(passed);
        if held == held_before {
            return;
        }
        if held_before == 0 {
            self.tell(NetworkEvent::PeersHeld { peers: held, at_most: self.options.damping.hold });
        } else if held == 0 {
            self.tell(NetworkEvent::HoldEnded { gone: 0 });
        }
    }

    fn apply(&mut self, changes: Vec<PeerChange>) {
        for change in changes {
            self.on_peer(change);
        }
        self.soon();
    }

    fn on_peer(&mut self, change: PeerChange) {
        self.note(|state| state.note_peer(&change, Instant::now().into_std()));
        self.tell(match change {
            PeerChange::Joined(lease) => NetworkEvent::PeerJoined(lease),
            PeerChange::Changed(lease) => NetworkEvent::PeerChanged(lease),
            PeerChange::Left(subnet) => NetworkEvent::PeerLeft(subnet),
        });
    }

    /// Tells each bad record once: when it was not there before, or is bad in another way.
    fn on_bad(&mut self, bad: Vec<BadRecord>) {
        let told: Vec<_> = news(&bad, &self.read().bad_records).cloned().collect();
        told.into_iter().for_each(|record| self.tell(NetworkEvent::BadRecord(record)));
        self.note(|state| state.bad_records = bad);
    }
}
