//! Descriptors that outlive the process in a descriptor store.

use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use flannel_core::DescriptorStore;

/// The configured store, if any. A failure of the store is logged; the next restart then creates new objects.
#[derive(Clone, Debug, Default)]
pub(crate) struct OptionalStore(pub(crate) Option<Arc<dyn DescriptorStore>>);

impl OptionalStore {
    /// Returns this store, or else that of the request.
    pub(crate) fn or(&self, descriptors: Option<&Arc<dyn DescriptorStore>>) -> Self {
        Self(self.0.as_ref().or(descriptors).cloned())
    }

    /// Restores the first stored descriptor that `take` accepts. Rejected ones are closed here, and by the store when
    /// another descriptor replaces them.
    pub(crate) fn restore<T>(
        &self,
        slot: DescriptorSlot,
        mut take: impl FnMut(OwnedFd) -> Result<T, String>,
    ) -> Option<T> {
        let kept = self.0.as_ref().map(|store| store.kept(slot.name())).unwrap_or_default();
        for descriptor in kept {
            match take(descriptor) {
                Ok(taken) => return Some(taken),
                Err(reason) => tracing::info!(name = slot.name(), reason, "stored descriptor rejected"),
            }
        }
        None
    }

    pub(crate) fn keep(&self, slot: DescriptorSlot, descriptor: BorrowedFd<'_>) {
        if let Some(store) = &self.0
            && let Err(error) = store.keep(slot.name(), descriptor)
        {
            tracing::warn!(name = slot.name(), %error, "failed to store the descriptor; the next restart creates a new object");
        }
    }

    pub(crate) fn remove(&self, slot: DescriptorSlot) {
        if let Some(store) = &self.0
            && let Err(error) = store.remove(slot.name())
        {
            tracing::warn!(name = slot.name(), %error, "failed to remove the descriptor from the store");
        }
    }
}

/// The identity of a stored descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DescriptorSlot {
    /// The queue of the TUN device.
    Tun,
    /// The IPv4 socket.
    SocketV4,
    /// The IPv6 socket.
    SocketV6,
}

impl DescriptorSlot {
    pub(crate) const SOCKETS: [Self; 2] = [Self::SocketV4, Self::SocketV6];

    /// Returns the slot of the socket bound to an address.
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
