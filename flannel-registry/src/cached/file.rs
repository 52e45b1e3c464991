//! The file in which a network is remembered.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use flannel_core::{BoxError, PublicAddrs, chain};

use crate::atomic_file::write_atomically;
use crate::cache::Cache;

/// More bytes are no memory of a network: 100 000 peers have less than half of it.
const LONGEST: u64 = 64 << 20;

/// Only for the host's own daemon.
const MODE: u32 = 0o600;

#[derive(Debug)]
pub(super) struct CacheFile {
    path: PathBuf,
    network: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The network was left, and a late write must not bring the file back.
    removed: bool,
    /// The failure was told.
    failed: bool,
}

impl CacheFile {
    pub(super) fn new(path: PathBuf, network: String) -> Self {
        Self { path, network, state: Mutex::default() }
    }

    /// Reads what is remembered of this network and host; whatever is wrong with it is told and ignored.
    pub(super) fn read(&self, public: &PublicAddrs) -> Option<Cache> {
        let why = match read_cache(&self.path, &self.network) {
            Ok(Some(cache)) if !cache.own.is_held_by(public) => {
                format!("it is of a host at {}", cache.own.attrs.public)
            }
            Ok(cache) => return cache,
            Err(error) => error.to_string(),
        };
        tracing::warn!("Ignoring the cache {}: {why}", self.path.display());
        None
    }

    /// Writes what is to be remembered. A failure is told once, until a write succeeds.
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
            tracing::warn!("The cache cannot be written: {}", chain(error));
        }
        state.failed = written.is_err();
    }

    /// Removes the file for good.
    pub(super) fn remove(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).removed = true;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!("The cache {} cannot be removed: {error}", self.path.display());
            }
            _ => {}
        }
    }
}

/// Reads the file of a network, if there is one, as far as it can be a memory.
pub(crate) fn read_cache(path: &Path, network: &str) -> Result<Option<Cache>, BoxError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(Some(Cache::read(&bytes, network)?))
}
