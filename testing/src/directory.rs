//! A directory of a test.

use crate::sys;
use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// How the names of all of them begin.
const PREFIX: &str = "flannel-testing-files-";

/// A directory that is removed with its handle.
///
/// While the handle lives it holds a lock (`flock(2)`), which the kernel releases however this process ends. So a directory
/// without a holder was left by a killed process, and the next one removes it.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Creates an empty directory where temporary files are, and removes abandoned ones.
    ///
    /// # Errors
    /// Says why there can be none.
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
                // Somebody found it before we held the lock, and removes it as abandoned.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a file in it is, or would be.
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

/// A number that differs between processes and calls; the standard library seeds its hash maps with such numbers.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_left_by_a_killed_process_is_removed_and_a_held_one_is_not() {
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
