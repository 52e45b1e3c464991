//! Changes of the external interface.

use super::Node;
use crate::event::NetworkEvent;
use crate::external::ExternalInterface;

impl Node {
    /// Switches to a changed interface. If the backend can't use it, the previous one stays in effect.
    pub(super) fn on_external(&mut self, external: ExternalInterface) {
        let was_lost = self.state().external_lost.is_some();
        let Some(backend) = self.backend.as_mut().filter(|_| was_lost || external != self.options.external)
        else {
            return;
        };
        if let Err(error) = backend.update_interface(&external) {
            return self.emit_failure(format!("interface {}", external.name), &error);
        }
        let before = std::mem::replace(&mut self.options.external, external.clone());
        self.update_state(|state| {
            state.external = external.clone();
            state.external_lost = None;
        });
        if was_lost || (before.index, before.v4, before.v6) != (external.index, external.v4, external.v6) {
            self.options.manager.reconnect();
        }
        self.look_again(format!("the external interface {} changed", external.name));
        self.emit(NetworkEvent::ExternalChanged(external));
    }

    /// Records that the interface or its only address is gone. Removes nothing, because it may come back.
    pub(super) fn on_external_lost(&mut self, reason: String) {
        if self.state().external_lost.as_ref() == Some(&reason) {
            return;
        }
        self.update_state(|state| state.external_lost = Some(reason.clone()));
        self.emit(NetworkEvent::ExternalLost(reason));
    }

    /// Reports a changed MTU for containers.
    pub(super) fn follow_mtu(&mut self) {
        let Some(mtu) = self.backend.as_ref().map(|backend| backend.mtu()) else {
            return;
        };
        if self.state().mtu == Some(mtu) {
            return;
        }
        self.update_state(|state| state.mtu = Some(mtu));
        self.update_running(|running| running.mtu = mtu);
        self.emit(NetworkEvent::MtuChanged(mtu));
    }
}
