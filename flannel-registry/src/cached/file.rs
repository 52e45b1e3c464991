//! The cache file of a host.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use flannel_core::{PublicAddrs, chain};

use crate::atomic_file::write_atomically;
use crate::cache::{Cache, read_cache};

/// Readable by the owner only.
const MODE: u32 = 0o600;

#[derive(Debug)]
pub(super) struct CacheFile {
    path: PathBuf,
    network: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The file was removed, and a late write must not restore it.
    removed: bool,
    /// The last write failed, and the failure was logged.
    failed: bool,
}

impl CacheFile {
    pub(super) fn new(path: PathBuf, network: String) -> Self {
        Self { path, network, state: Mutex::default() }
    }

    /// Reads the cache of this network and host. Logs and ignores a file that cannot be used.
    pub(super) fn read(&self, public: &PublicAddrs) -> Option<Cache> {
        let why = match read_cache(&self.path, &self.network) {
            Ok(Some(cache)) if !cache.own.is_held_by(public) => {
                format!("belongs to a host at {}", cache.own.attrs.public)
            }
            Ok(cache) => return cache,
            Err(error) => error.to_string(),
        };
        tracing::warn!("ignoring cache {}: {why}", self.path.display());
        None
    }

    /// Writes the file. Logs the first of consecutive failures.
    pub(super) fn write(&self, cache: &Cache) {
        let text = cache.write(&self.network);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.removed {
            return;
        }
        let written = write_atomically(&self.path, text.as_bytes(), MODE);
        if let Err(error) = &written
            && !state.failed
        {
            tracing::warn!("cannot write the cache: {}; retrying at the next change", chain(error));
        }
        state.failed = written.is_err();
    }

    /// Removes the file for good.
    pub(super) fn remove(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).removed = true;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!("cannot remove the cache {}: {error}", self.path.display());
            }
            _ => {}
        }
    }
}
