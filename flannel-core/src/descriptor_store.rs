//! Descriptors that outlive the process.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Keeps copies of file descriptors across restarts of the process, as the file descriptor store of systemd does
/// (`sd_notify(3)`). A backend that stores its devices and sockets there loses no packet during a restart.
///
/// A store that lasts as long as the process, for a network that is reopened within it:
///
/// ```
/// use std::collections::BTreeMap;
/// use std::io;
/// use std::os::fd::{BorrowedFd, OwnedFd};
/// use std::sync::Mutex;
/// use flannel_core::DescriptorStore;
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
///     fn remove(&self, name: &str) -> io::Result<()> {
///         self.0.lock().unwrap().remove(name);
///         Ok(())
///     }
/// }
/// ```
pub trait DescriptorStore: fmt::Debug + Send + Sync {
    /// Returns copies of the descriptors stored under `name`.
    fn kept(&self, name: &str) -> Vec<OwnedFd>;

    /// Stores a copy of `descriptor` under `name`, in place of those stored there.
    ///
    /// # Errors
    ///
    /// An I/O error if the store cannot be reached. The backend continues without it.
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()>;

    /// Closes the descriptors stored under `name`.
    ///
    /// # Errors
    ///
    /// An I/O error if the store cannot be reached.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Closes all stored descriptors, which no backend uses. By default they stay.
    fn clear(&self) {}
}
