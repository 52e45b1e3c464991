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
            PeerEvent::Recalled(reason) => {
                self.status(|status| status.recalled = Some(reason.clone()));
                self.tell(NetworkEvent::Recalled(reason));
                self.soon();
            }
            PeerEvent::Disowned(subnets) => {
                let changes = self.damping.disown(&subnets);
                let held = self.damping.held();
                self.status(|status| status.held_peers = held);
                self.apply(changes);
            }
            PeerEvent::Complete => self.on_complete(),
            PeerEvent::Bad(bad) => self.on_bad(bad),
            PeerEvent::Silent(reason) => {
                self.status(|status| status.registry_silent = Some(reason.clone()));
                self.tell(NetworkEvent::RegistrySilent(reason));
            }
            PeerEvent::Heard => {
                self.status(|status| status.registry_silent = None);
                self.tell(NetworkEvent::RegistryHeard);
            }
        }
    }

    /// Tells whether the peers are known well enough to carry traffic. To remove anything more is needed.
    pub(super) fn are_peers_known(&self) -> bool {
        self.damping.peers().is_complete() || self.shared.borrow().status.recalled.is_some()
    }

    /// Lets the peers go that were held for long enough.
    pub(super) fn let_go(&mut self) {
        let changes = self.damping.expire(Instant::now().into_std());
        let gone = changes.len();
        self.apply(changes);
        self.status(|status| status.held_peers = 0);
        self.tell(NetworkEvent::HoldEnded { gone });
    }

    fn on_complete(&mut self) {
        self.damping.complete();
        self.dirty = Dirty::All;
        if self.shared.borrow().status.recalled.is_some() {
            self.status(|status| status.recalled = None);
            self.tell(NetworkEvent::Confirmed);
        }
        self.soon();
    }

    fn on_changes(&mut self, changes: Vec<LeaseChange>) {
        let held_before = self.damping.held();
        let changes = self.damping.filter(changes, Instant::now().into_std());
        self.apply(changes);
        let held = self.damping.held();
        if held == held_before {
            return;
        }
        self.status(|status| status.held_peers = held);
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
        self.dirty.add(change.subnet());
        self.tell(match change {
            PeerChange::Joined(lease) => NetworkEvent::PeerJoined(lease),
            PeerChange::Changed(lease) => NetworkEvent::PeerChanged(lease),
            PeerChange::Left(subnet) => NetworkEvent::PeerLeft(subnet),
        });
    }

    /// Tells each bad record once: when it was not there before, or is bad in another way.
    fn on_bad(&mut self, bad: Vec<BadRecord>) {
        let known = self.shared.borrow().status.bad_records.clone();
        for record in news(&bad, &known) {
            self.tell(NetworkEvent::BadRecord(record.clone()));
        }
        self.status(|status| status.bad_records = bad);
    }
}
