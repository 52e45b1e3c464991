//! Network namespaces: kept open by a descriptor, entered on a separate thread.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::panic;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::thread;

use crate::sys;

/// The namespace of the calling *thread*; `/proc/self` is that of the main thread (`namespaces(7)`).
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace, kept alive by this handle. Clones share one descriptor.
#[derive(Clone, Debug)]
pub struct Namespace {
    file: Arc<File>,
    inode: u64,
}

impl Namespace {
    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// Errors of opening `/proc/thread-self/ns/net`.
    pub fn current() -> io::Result<Self> {
        Self::open(OWN)
    }

    /// Opens a namespace by path, such as `/run/netns/blue` or `/proc/1234/ns/net`.
    ///
    /// # Errors
    /// Errors of opening the file. Whether it is a network namespace is checked on first use.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::from_file(File::open(path)?)
    }

    /// Opens the namespace of a socket, which never changes.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_ADMIN` there, `ENOTTY` when the descriptor is no socket.
    pub fn of_socket(socket: impl AsFd) -> io::Result<Self> {
        Self::from_file(sys::socket_namespace(socket.as_fd())?.into())
    }

    pub(crate) fn from_file(file: File) -> io::Result<Self> {
        let inode = file.metadata()?.ino();
        Ok(Self { file: Arc::new(file), inode })
    }

    /// Creates a namespace without a name. The kernel deletes it when its last handle, socket and thread are
    /// gone. Its loopback link is down.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`; `ENOSPC` at the limit of namespaces.
    pub fn create() -> io::Result<Self> {
        on_own_thread(|| {
            sys::unshare_network()?;
            Self::current()
        })?
    }

    /// Runs `f` in the namespace on a new thread, and returns its result. Sockets that `f` opens stay in the
    /// namespace. A panic in `f` propagates to the caller.
    ///
    /// No capability is needed if the calling thread is in the namespace already.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` when this is not a network namespace. `f` did not run.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        // A thread starts in the namespace of its parent.
        let is_here = Self::current().is_ok_and(|here| here == *self);
        on_own_thread(|| {
            if !is_here {
                sys::enter_network(self.as_fd())?;
            }
            Ok(f())
        })?
    }

    /// Reads a sysctl of the namespace by its path below `/proc/sys`, such as `net/ipv4/ip_forward`. Returns
    /// it without the line end.
    ///
    /// # Errors
    /// Errors of [`run`](Self::run) and of reading the file; `InvalidInput` when the path leaves
    /// `/proc/sys`.
    pub fn read_sysctl(&self, name: &str) -> io::Result<String> {
        let path = sysctl_path(name)?;
        let value = self.run(|| fs::read_to_string(path))??;
        Ok(value.trim_end().to_owned())
    }

    /// Writes a sysctl of the namespace by its path below `/proc/sys`.
    ///
    /// # Errors
    /// Errors of [`run`](Self::run) and of writing the file; `InvalidInput` when the path leaves
    /// `/proc/sys`.
    pub fn write_sysctl(&self, name: &str, value: &str) -> io::Result<()> {
        let path = sysctl_path(name)?;
        self.run(|| fs::write(path, value))?
    }

    /// Returns the inode number, which identifies the namespace (`namespaces(7)`).
    pub fn inode(&self) -> u64 {
        self.inode
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl PartialEq for Namespace {
    fn eq(&self, other: &Self) -> bool {
        self.inode == other.inode
    }
}

impl Eq for Namespace {}

/// Runs `f` on a thread that ends with it, so that a changed namespace cannot leak.
fn on_own_thread<T: Send>(f: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("namespace".to_owned()).spawn_scoped(scope, f)?;
        worker.join().or_else(|payload| panic::resume_unwind(payload))
    })
}

/// Returns the path of a sysctl. The contents of `/proc/sys/net` depend on the thread that opens it, so the
/// path is the same in every namespace (`proc_sys(5)`).
fn sysctl_path(name: &str) -> io::Result<PathBuf> {
    let name = Path::new(name);
    if name.components().all(|part| matches!(part, Component::Normal(_))) {
        Ok(Path::new("/proc/sys").join(name))
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a sysctl name must be a relative path below /proc/sys",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_name_cannot_leave_proc_sys() {
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.5/rp_filter").unwrap(),
            Path::new("/proc/sys/net/ipv4/conf/eth0.5/rp_filter")
        );
        assert!(sysctl_path("net/../../self/comm").is_err());
        assert!(sysctl_path("/etc/passwd").is_err());
    }
}
