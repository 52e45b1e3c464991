//! Changes of the peers.

use tokio::time::Instant;

use super::{Node, added};
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
                self.update_state(|state| state.peers_from_cache = Some(reason.clone()));
                self.emit(NetworkEvent::PeersFromCache(reason));
                self.request_pass();
            }
            PeerEvent::CacheRejected(subnets) => {
                let mut changes = Vec::new();
                self.update_state(|state| changes = state.damping.remove(&subnets));
                self.apply(changes);
            }
            PeerEvent::Complete => self.on_complete(),
            PeerEvent::Bad(bad) => self.on_bad(bad),
            PeerEvent::RegistryUnavailable(reason) => {
                let now = Instant::now().into_std();
                // The reason may change during an outage.
                self.update_state(|state| {
                    let since = state.unavailable.as_ref().map_or(now, |(_, since)| *since);
                    state.unavailable = Some((reason.clone(), since));
                });
                self.emit(NetworkEvent::RegistryUnavailable(reason));
            }
            PeerEvent::RegistryAvailable => {
                self.update_state(|state| state.unavailable = None);
                self.emit(NetworkEvent::RegistryAvailable);
            }
        }
    }

    /// Returns true if the peers are known well enough to carry traffic. Removing anything requires complete peers.
    pub(super) fn are_peers_known(&self) -> bool {
        let state = self.state();
        state.damping.peers().is_complete() || state.peers_from_cache.is_some()
    }

    /// Removes the peers that were held for the whole time.
    pub(super) fn end_hold(&mut self) {
        let mut changes = Vec::new();
        self.update_state(|state| changes = state.damping.expire(Instant::now().into_std()));
        let gone = changes.len();
        self.apply(changes);
        self.emit(NetworkEvent::HoldEnded { gone });
    }

    fn on_complete(&mut self) {
        let mut was_from_cache = false;
        self.update_state(|state| {
            state.damping.complete();
            state.dirty = Dirty::All;
            was_from_cache = state.peers_from_cache.take().is_some();
        });
        if was_from_cache {
            self.emit(NetworkEvent::PeersConfirmed);
        }
        self.request_pass();
    }

    fn on_changes(&mut self, changes: Vec<LeaseChange>) {
        let (mut passed, mut held_before, mut held) = (Vec::new(), 0, 0);
        self.update_state(|state| {
            held_before = state.damping.held();
            passed = state.damping.filter(changes, Instant::now().into_std());
            held = state.damping.held();
        });
        self.apply(passed);
        if held == held_before {
            return;
        }
        if held_before == 0 {
            self.emit(NetworkEvent::PeersHeld { peers: held, at_most: self.options.damping.hold });
        } else if held == 0 {
            self.emit(NetworkEvent::HoldEnded { gone: 0 });
        }
    }

    fn apply(&mut self, changes: Vec<PeerChange>) {
        self.options.manager.peers_in_use(&changes);
        for change in changes {
            self.update_state(|state| state.record_peer(&change));
            self.emit(match change {
                PeerChange::Joined(lease) => NetworkEvent::PeerJoined(lease),
                PeerChange::Changed(lease) => NetworkEvent::PeerChanged(lease),
                PeerChange::Held { lease, .. } => NetworkEvent::PeerHeld(lease),
                PeerChange::Left(subnet) => NetworkEvent::PeerLeft(subnet),
            });
        }
        self.request_pass();
    }

    /// Reports each malformed record once: when it is new, or malformed in another way.
    fn on_bad(&mut self, bad: Vec<BadRecord>) {
        let new: Vec<_> = added(&bad, &self.state().bad_records).cloned().collect();
        new.into_iter().for_each(|record| self.emit(NetworkEvent::BadRecord(record)));
        self.update_state(|state| state.bad_records = bad);
    }
}
