//! What a network does when its external interface becomes another one.

use std::sync::Arc;

use futures::stream::BoxStream;

use super::Node;
use crate::backend::{ExternalInterface, ObjectFailure};
use crate::event::NetworkEvent;
use crate::hold::{Hold, HoldEvent};
use crate::{Lease, NetworkConfig};

impl Node {
    /// Takes in what the external interface is now. What the backend cannot work with changes nothing: the last one
    /// that was good stays.
    pub(super) fn on_external(&mut self, external: ExternalInterface) {
        let Some(backend) = self.backend.as_mut().filter(|_| external != self.options.external) else {
            return;
        };
        if let Err(error) = backend.move_to(&external) {
            let (object, reason) = (format!("interface {}", external.name), crate::chain(&error));
            return self.tell(NetworkEvent::ObjectFailed(ObjectFailure { object, reason }));
        }
        let before = std::mem::replace(&mut self.options.external, external.clone());
        self.note(|book| book.external = external.clone());
        if (before.index, before.v4, before.v6) != (external.index, external.v4, external.v6) {
            self.options.manager.reconnect();
        }
        self.look_again(format!("the external interface {} changed", external.name));
        self.tell(NetworkEvent::ExternalChanged(external));
    }

    /// Returns the lease if it shall say something else now than it was last asked to.
    pub(super) fn unpublished(&mut self, config: &NetworkConfig) -> Option<Lease> {
        let public = self.options.external.public.used_by(config);
        let attrs = self.backend.as_ref()?.attrs().at(public);
        if self.attrs.as_ref() == Some(&attrs) {
            return None;
        }
        self.attrs = Some(attrs);
        self.own.clone()
    }

    /// Keeps a lease, and lets it say about the host what it shall.
    pub(super) fn hold(&mut self, config: &Arc<NetworkConfig>, own: Lease) -> BoxStream<'static, HoldEvent> {
        let attrs = self.attrs.clone().unwrap_or_else(|| own.attrs.clone());
        let random = fastrand::Rng::with_seed(self.random.u64(..));
        let (manager, config) = (Arc::clone(&self.options.manager), Arc::clone(config));
        let is_lost = self.read().own.lost.is_some();
        Hold { manager, config, attrs, retry: self.options.retry, random, is_lost }.stream(own)
    }

    pub(super) fn on_published(&mut self, lease: Lease) {
        self.own = Some(lease.clone());
        self.note(|book| book.own.lease = Some(lease.clone()));
        self.shared.send_modify(|shared| {
            if let Some(running) = &mut shared.running {
                running.lease = lease.clone();
            }
        });
        self.tell(NetworkEvent::LeasePublished(lease));
    }

    /// Tells if containers may send larger or smaller packets from now on.
    pub(super) fn follow_mtu(&mut self) {
        let Some(mtu) = self.backend.as_ref().map(|backend| backend.mtu()) else {
            return;
        };
        if self.read().mtu == Some(mtu) {
            return;
        }
        self.note(|book| book.mtu = Some(mtu));
        self.shared.send_modify(|shared| {
            if let Some(running) = &mut shared.running {
                running.mtu = mtu;
            }
        });
        self.tell(NetworkEvent::MtuChanged(mtu));
    }
}
