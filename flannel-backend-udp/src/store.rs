//! Descriptors that outlive the process in a descriptor store.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Holds duplicates of descriptors across restarts of the process, as systemd's file descriptor store does
/// (`sd_notify(3)`).
///
/// The device and the sockets then survive a restart: packets wait in their queues until the next process restores them.
/// The backend stores `flannel-tun`, `flannel-udp-ipv4` and `flannel-udp-ipv6`.
///
/// A store within one process, for a network that is opened repeatedly:
///
/// ```
/// use std::collections::BTreeMap;
/// use std::io;
/// use std::os::fd::{BorrowedFd, OwnedFd};
/// use std::sync::{Arc, Mutex};
/// use flannel_backend_udp::{DescriptorStore, OpenUdp};
/// use flannel_netlink::Namespace;
///
/// #[derive(Debug, Default)]
/// struct ProcessStore(Mutex<BTreeMap<String, OwnedFd>>);
///
/// impl DescriptorStore for ProcessStore {
///     fn kept(&self, name: &str) -> Vec<OwnedFd> {
///         let stored = self.0.lock().unwrap();
///         stored.get(name).and_then(|kept| kept.try_clone().ok()).into_iter().collect()
///     }
///     fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
///         self.0.lock().unwrap().insert(name.to_owned(), descriptor.try_clone_to_owned()?);
///         Ok(())
///     }
///     fn forget(&self, name: &str) -> io::Result<()> {
///         self.0.lock().unwrap().remove(name);
///         Ok(())
///     }
/// }
///
/// let store = Arc::new(ProcessStore::default());
/// let opener = OpenUdp::new(Namespace::current()?).with_store(store.clone());
/// # drop(opener);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait DescriptorStore: fmt::Debug + Send + Sync {
    /// Returns duplicates of the descriptors stored under a name.
    fn kept(&self, name: &str) -> Vec<OwnedFd>;

    /// Stores a duplicate of a descriptor and replaces all others under that name.
    ///
    /// # Errors
    ///
    /// The error of the store. The backend continues without it.
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()>;

    /// Removes the descriptors stored under that name.
    ///
    /// # Errors
    ///
    /// The error of the store.
    fn forget(&self, name: &str) -> io::Result<()>;
}

/// The configured store, if any. A failure of the store is logged; the next restart then creates new objects.
#[derive(Clone, Debug, Default)]
pub(crate) struct OptionalStore(pub(crate) Option<Arc<dyn DescriptorStore>>);

impl OptionalStore {
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

    pub(crate) fn forget(&self, slot: DescriptorSlot) {
        if let Some(store) = &self.0
            && let Err(error) = store.forget(slot.name())
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
