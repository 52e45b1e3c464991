//! A directory for the files of a test.

use crate::sys;
use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// The prefix of all their names.
const PREFIX: &str = "flannel-testing-files-";

/// A directory that is removed when its handle is dropped.
///
/// The handle holds a lock (`flock(2)`), which the kernel releases however the process ends. An unlocked directory was
/// left by a killed process, and the next process removes it.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Creates an empty directory for temporary files, and removes abandoned ones.
    ///
    /// # Errors
    /// Fails if the directory cannot be created or locked.
    pub fn new() -> io::Result<Self> {
        Self::new_in(&std::env::temp_dir())
    }

    pub(crate) fn new_in(parent: &Path) -> io::Result<Self> {
        remove_abandoned(parent);
        loop {
            let path = parent.join(format!("{PREFIX}{:016x}", random()));
            fs::create_dir(&path)?;
            match File::open(&path) {
                Ok(lock) if sys::try_lock(lock.as_fd())? && path.is_dir() => {
                    return Ok(Self { path, _lock: lock });
                }
                // Another process found it before it was locked, and removes it as abandoned.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of a file in it.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "directory could not be removed");
        }
    }
}

/// Removes the directories that no living process holds. Best effort, since other processes may do the same.
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

/// Returns a number that differs between processes and calls, from the seeds of the standard library's hash maps.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abandoned_directories_are_removed_and_held_ones_are_kept() {
        let held = Directory::new().unwrap();
        let parent = held.path.parent().unwrap();
        let left = parent.join(format!("{PREFIX}left-{:x}", random()));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("file"), "data").unwrap();
        let other = Directory::new().unwrap();
        assert!(held.path.is_dir());
        assert!(!left.exists());
        let path = other.path.clone();
        drop(other);
        assert!(!path.exists());
    }
}
