//! What outlives the process: copies of its descriptors, kept by whoever starts it again.

use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use flannel_core::DescriptorStore;

/// The store, if there is one. That it cannot be reached is told and costs no more than the next restart.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keeper(pub(crate) Option<Arc<dyn DescriptorStore>>);

impl Keeper {
    /// Uses this store, or else the one of the request.
    pub(crate) fn or(&self, descriptors: Option<&Arc<dyn DescriptorStore>>) -> Self {
        Self(self.0.as_ref().or(descriptors).cloned())
    }

    /// Finds what is fit to be taken back, by trying. What is not is closed here, and by the store as soon as something
    /// else is kept under the same name.
    pub(crate) fn take_back<T>(
        &self,
        slot: Slot,
        mut take: impl FnMut(OwnedFd) -> Result<T, String>,
    ) -> Option<T> {
        let kept = self.0.as_ref().map(|store| store.kept(slot.name())).unwrap_or_default();
        for descriptor in kept {
            match take(descriptor) {
                Ok(taken) => return Some(taken),
                Err(reason) => tracing::info!(name = slot.name(), reason, "not taken back"),
            }
        }
        None
    }

    pub(crate) fn keep(&self, slot: Slot, descriptor: BorrowedFd<'_>) {
        if let Some(store) = &self.0
            && let Err(error) = store.keep(slot.name(), descriptor)
        {
            tracing::warn!(name = slot.name(), %error, "not kept: the next restart makes it anew");
        }
    }

    pub(crate) fn forget(&self, slot: Slot) {
        if let Some(store) = &self.0
            && let Err(error) = store.forget(slot.name())
        {
            tracing::warn!(name = slot.name(), %error, "may still be kept");
        }
    }
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// The device's queue.
    Tun,
    /// The socket for IPv4.
    SocketV4,
    /// The socket for IPv6.
    SocketV6,
}

impl Slot {
    pub(crate) const SOCKETS: [Self; 2] = [Self::SocketV4, Self::SocketV6];

    /// That of the socket with a local address.
    pub(crate) fn of(local: &SocketAddr) -> Self {
        if local.is_ipv4() { Self::SocketV4 } else { Self::SocketV6 }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Tun => "flannel-tun",
            Self::SocketV4 => "flannel-udp-ipv4",
            Self::SocketV6 => "flannel-udp-ipv6",
        }
    }
}
