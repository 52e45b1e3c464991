//! Read access to the cache file for tools.

use std::path::Path;
use std::sync::Arc;

use flannel_core::{BoxError, Lease, NetworkConfig};

use crate::cache::{Cache, read_cache};

/// A network as stored in the file of a [`CachedLeaseManager`](crate::CachedLeaseManager).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CachedNetwork {
    /// The network config.
    pub config: NetworkConfig,
    /// The lease of this host.
    pub own: Lease,
    /// The peers.
    pub peers: Vec<Arc<Lease>>,
}

impl CachedNetwork {
    /// Reads the cache file of a network; `None` if there is no file.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read, is corrupt, or belongs to another network.
    pub fn read(path: &Path, network: &str) -> Result<Option<Self>, BoxError> {
        let cache = read_cache(path, network)?;
        Ok(cache.map(|Cache { config, own, peers, .. }| Self { config, own, peers }))
    }
}
