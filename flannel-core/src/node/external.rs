//! What a network does when its external interface becomes another one.

use super::Node;
use crate::event::NetworkEvent;
use crate::external::ExternalInterface;

impl Node {
    /// Takes in what the external interface is now. What the backend cannot work with changes nothing: the last one
    /// that was good stays.
    pub(super) fn on_external(&mut self, external: ExternalInterface) {
        let was_lost = self.read().external_lost.is_some();
        let Some(backend) = self.backend.as_mut().filter(|_| was_lost || external != self.options.external)
        else {
            return;
        };
        if let Err(error) = backend.update_interface(&external) {
            return self.tell_failed(format!("interface {}", external.name), &error);
        }
        let before = std::mem::replace(&mut self.options.external, external.clone());
        self.note(|state| {
            state.external = external.clone();
            state.external_lost = None;
        });
        if (before.index, before.v4, before.v6) != (external.index, external.v4, external.v6) {
            self.options.manager.reconnect();
        }
        self.look_again(format!("the external interface {} changed", external.name));
        self.tell(NetworkEvent::ExternalChanged(external));
    }

    /// Records that the interface or its only address is gone. Nothing is removed: it may come back, and so do the
    /// packets of peers that still know the address.
    pub(super) fn on_external_lost(&mut self, reason: String) {
        if self.read().external_lost.as_ref() == Some(&reason) {
            return;
        }
        self.note(|state| state.external_lost = Some(reason.clone()));
        self.tell(NetworkEvent::ExternalLost(reason));
    }

    /// Tells if containers may send larger or smaller packets from now on.
    pub(super) fn follow_mtu(&mut self) {
        let Some(mtu) = self.backend.as_ref().map(|backend| backend.mtu()) else {
            return;
        };
        if self.read().mtu == Some(mtu) {
            return;
        }
        self.note(|state| state.mtu = Some(mtu));
        self.change_running(|running| running.mtu = mtu);
        self.tell(NetworkEvent::MtuChanged(mtu));
    }
}
