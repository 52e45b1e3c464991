//! Network namespaces, held open by a descriptor and entered on a thread of their own.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::panic;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::thread;

use crate::sys;

/// Where the namespace of the calling *thread* is found; `/proc/self` is the main thread's
/// (`namespaces(7)`).
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace, kept alive by this handle. Clones share one descriptor.
#[derive(Clone, Debug)]
pub struct Namespace {
    file: Arc<File>,
    inode: u64,
}

impl Namespace {
    /// Opens the namespace that the calling thread is in.
    ///
    /// # Errors
    /// Those of opening `/proc/thread-self/ns/net`.
    pub fn current() -> io::Result<Self> {
        Self::open(OWN)
    }

    /// Opens a namespace by path, such as `/run/netns/blue` or `/proc/1234/ns/net`.
    ///
    /// # Errors
    /// Those of opening the file. That it is a network namespace shows on the first use.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::from_file(File::open(path)?)
    }

    /// Opens the namespace that a socket is in, which it never leaves.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_ADMIN` there, `ENOTTY` when it is no socket.
    pub fn of_socket(socket: impl AsFd) -> io::Result<Self> {
        Self::from_file(sys::socket_namespace(socket.as_fd())?.into())
    }

    pub(crate) fn from_file(file: File) -> io::Result<Self> {
        let inode = file.metadata()?.ino();
        Ok(Self { file: Arc::new(file), inode })
    }

    /// Creates a namespace without a name. It disappears, with all that is in it, when its last
    /// handle, socket and thread are gone. Its loopback link is down.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`; `ENOSPC` when the limit of namespaces is reached.
    pub fn create() -> io::Result<Self> {
        on_own_thread(|| {
            sys::unshare_network()?;
            Self::current()
        })?
    }

    /// Runs `f` inside the namespace, on a fresh thread, and returns what it returned. Sockets
    /// opened by `f` stay in the namespace for their whole life. A panic in `f` goes on in the
    /// caller.
    ///
    /// To run in the namespace that the caller is in already takes no capability.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` when this is not a network namespace; `f` was
    /// not run then.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        // A thread is born in the namespace of its parent.
        let is_here = Self::current().is_ok_and(|here| here == *self);
        on_own_thread(|| {
            if !is_here {
                sys::enter_network(self.as_fd())?;
            }
            Ok(f())
        })?
    }

    /// Reads a kernel setting of the namespace, given by its path below `/proc/sys`, such as
    /// `net/ipv4/ip_forward`, without the line end.
    ///
    /// # Errors
    /// Those of [`run`](Self::run) and of reading the file; `InvalidInput` when the name leads
    /// out of `/proc/sys`.
    pub fn read_sysctl(&self, name: &str) -> io::Result<String> {
        let path = sysctl_path(name)?;
        let value = self.run(|| fs::read_to_string(path))??;
        Ok(value.trim_end().to_owned())
    }

    /// Writes a kernel setting of the namespace, given by its path below `/proc/sys`.
    ///
    /// # Errors
    /// Those of [`run`](Self::run) and of writing the file; `InvalidInput` when the name leads
    /// out of `/proc/sys`.
    pub fn write_sysctl(&self, name: &str, value: &str) -> io::Result<()> {
        let path = sysctl_path(name)?;
        self.run(|| fs::write(path, value))?
    }

    /// The inode number: equal for two handles exactly if they hold the same namespace
    /// (`namespaces(7)`).
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

/// A thread that changed its namespace is never given back to anybody: it ends with `f`.
fn on_own_thread<T: Send>(f: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("namespace".to_owned()).spawn_scoped(scope, f)?;
        worker.join().or_else(|payload| panic::resume_unwind(payload))
    })
}

/// What lies below `/proc/sys/net` depends on the thread that opens it, so the path is the same
/// in every namespace (`proc_sys(5)`).
fn sysctl_path(name: &str) -> io::Result<PathBuf> {
    let name = Path::new(name);
    if name.components().all(|part| matches!(part, Component::Normal(_))) {
        Ok(Path::new("/proc/sys").join(name))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "the name of a setting is a path below /proc/sys"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_setting_cannot_leave_the_settings() {
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.5/rp_filter").unwrap(),
            Path::new("/proc/sys/net/ipv4/conf/eth0.5/rp_filter")
        );
        assert!(sysctl_path("net/../../self/comm").is_err());
        assert!(sysctl_path("/etc/passwd").is_err());
    }
}
