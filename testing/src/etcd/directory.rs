//! The files of a test's server, and what identifies it among all others on the machine.

use crate::sys;
use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// How the directories of all servers begin.
const PREFIX: &str = "flannel-testing-etcd-";

/// A directory that is removed with its handle.
///
/// While the handle lives it holds a lock (`flock(2)`), which the kernel releases however this process ends.
/// So a directory without a holder was left by a killed process, and the next one removes it.
#[derive(Debug)]
pub(super) struct DataDirectory {
    path: PathBuf,
    _lock: File,
}

impl DataDirectory {
    /// Creates an empty directory, in memory where there is such a file system, and removes abandoned ones.
    pub(super) fn create() -> io::Result<Self> {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        remove_abandoned(&parent);
        loop {
            let path = parent.join(format!("{PREFIX}{:016x}", random()));
            fs::create_dir(&path)?;
            match File::open(&path) {
                Ok(lock) if sys::try_lock(lock.as_fd())? && path.is_dir() => {
                    return Ok(Self { path, _lock: lock });
                }
                // Somebody found it before we held the lock, and removes it as abandoned.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where the server keeps its data: a directory inside the locked one, made by the server.
    pub(super) fn path(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Where a backup of the data is.
    pub(super) fn backup(&self) -> PathBuf {
        self.path.join("backup")
    }

    /// Removes the server's data.
    pub(super) fn clear(&self) -> io::Result<()> {
        match fs::remove_dir_all(self.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Drop for DataDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "directory could not be removed");
        }
    }
}

/// Chooses an address of 127.0.0.0/8 that nobody else is likely to use.
#[must_use]
pub fn unlikely_loopback_address() -> Ipv4Addr {
    let [a, b, c, ..] = random().to_be_bytes();
    // Neither 127.0.x.x, where people look for services, nor a first or last address.
    Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254))
}

/// Removes the directories that no living process holds; best effort, as others may do the same now.
fn remove_abandoned(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if ours
            && let Ok(directory) = File::open(entry.path())
            && sys::try_lock(directory.as_fd()).unwrap_or(false)
        {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

/// A number that differs between processes and calls; the standard library seeds its hash maps with such
/// numbers.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_left_by_a_killed_process_is_removed_and_a_held_one_is_not() {
        let held = DataDirectory::create().unwrap();
        let parent = held.path.parent().unwrap();
        let left = parent.join(format!("{PREFIX}left-{:x}", random()));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("file"), "data").unwrap();
        let other = DataDirectory::create().unwrap();
        assert!(held.path.is_dir());
        assert!(!left.exists());
        let path = other.path.clone();
        drop(other);
        assert!(!path.exists());
    }
}
