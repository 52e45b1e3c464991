//! Names of namespaces in the directory of `ip netns` (`ip-netns(8)`).

use crate::sys;
use flannel_netlink::Namespace;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const DIRECTORY: &str = "/run/netns";

/// The names of a lab, or none if the lab is anonymous.
#[derive(Debug)]
pub(super) struct Names {
    prefix: Option<String>,
    kept: AtomicBool,
}

impl Names {
    pub(super) fn new(named: bool) -> Self {
        Self { prefix: named.then(unique_prefix), kept: AtomicBool::new(false) }
    }

    /// Gives `namespace` a name that ends in `name`, in a lab with names.
    pub(super) fn give(self: &Arc<Self>, name: &str, namespace: &Namespace) -> io::Result<Option<Name>> {
        let Some(prefix) = &self.prefix else {
            return Ok(None);
        };
        let path = Path::new(DIRECTORY).join(format!("{prefix}-{name}"));
        fs::create_dir_all(DIRECTORY)?;
        File::create_new(&path)?;
        // Created before the mount, so that a failure removes the file.
        let name = Name { path, names: Arc::clone(self) };
        namespace.run(|| sys::bind_mount(Path::new("/proc/thread-self/ns/net"), &name.path))??;
        Ok(Some(name))
    }

    pub(super) fn prefix(&self) -> Option<&str> {
        self.prefix.as_deref()
    }

    pub(super) fn keep(&self) {
        self.kept.store(true, Ordering::Release);
    }
}

/// A name that is removed with its handle, unless the lab keeps its names.
#[derive(Debug)]
pub(super) struct Name {
    path: PathBuf,
    names: Arc<Names>,
}

impl Drop for Name {
    fn drop(&mut self) {
        if self.names.kept.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "namespace name could not be removed");
        }
    }
}

/// Removes a name that a lab has kept, as `ip netns delete` does. The namespace ends once nothing else holds it.
///
/// # Errors
/// `InvalidInput` for an invalid name, `NotFound` if it does not exist.
pub fn remove_name(name: &str) -> io::Result<()> {
    if name.is_empty() || name.contains(['/', '\0']) || name.starts_with('.') {
        let message = format!("{name:?} is not the name of a namespace");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    remove(&Path::new(DIRECTORY).join(name))
}

fn remove(path: &Path) -> io::Result<()> {
    match sys::unmount(path) {
        // Nothing is mounted there.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        other => other?,
    }
    fs::remove_file(path)
}

/// Returns a prefix that no other lab on this machine has now.
fn unique_prefix() -> String {
    static LABS: AtomicU32 = AtomicU32::new(1);
    let (process, lab) = (std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
    if lab == 1 { format!("flannel-{process}") } else { format!("flannel-{process}-{lab}") }
}
