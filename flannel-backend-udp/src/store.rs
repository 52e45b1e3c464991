//! What outlives the process: copies of its descriptors, kept by whoever starts it again.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Keeps copies of descriptors while no process has them, as the file descriptor store of systemd does (`sd_notify(3)`).
///
/// The device and the sockets then stay where they are over a restart: packets wait in their queues until the next
/// process takes them back. The backend keeps `flannel-tun`, `flannel-udp-ipv4` and `flannel-udp-ipv6`.
///
/// One that lasts as long as the program, for a network that is opened again and again within it:
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
/// struct Drawer(Mutex<BTreeMap<String, OwnedFd>>);
///
/// impl DescriptorStore for Drawer {
///     fn kept(&self, name: &str) -> Vec<OwnedFd> {
///         let drawer = self.0.lock().unwrap();
///         drawer.get(name).and_then(|kept| kept.try_clone().ok()).into_iter().collect()
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
/// let drawer = Arc::new(Drawer::default());
/// let opener = OpenUdp::new(Namespace::current()?).with_store(drawer.clone());
/// # drop(opener);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait DescriptorStore: fmt::Debug + Send + Sync {
    /// Returns copies of what is kept under a name.
    fn kept(&self, name: &str) -> Vec<OwnedFd>;

    /// Keeps a copy of a descriptor, in place of all that is kept under that name.
    ///
    /// # Errors
    /// Those of reaching the keeper. The backend goes on without.
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()>;

    /// Keeps nothing under that name any longer.
    ///
    /// # Errors
    /// Those of reaching the keeper.
    fn forget(&self, name: &str) -> io::Result<()>;
}

/// The store, if there is one. That it cannot be reached is told and costs no more than the next restart.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keeper(pub(crate) Option<Arc<dyn DescriptorStore>>);

impl Keeper {
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
