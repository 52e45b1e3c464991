//! What a host remembers of its network, for whoever only looks.

use std::path::Path;
use std::sync::Arc;

use flannel_core::{BoxError, Lease, NetworkConfig};

use crate::cache::Cache;
use crate::cached::read_cache;

/// A network as the file says that a [`CachedLeaseManager`](crate::CachedLeaseManager) keeps.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CachedNetwork {
    /// The configuration.
    pub config: NetworkConfig,
    /// The lease that the host held.
    pub own: Lease,
    /// The peers there were.
    pub peers: Vec<Arc<Lease>>,
}

impl CachedNetwork {
    /// Reads the file, if there is one, for the network of this name.
    ///
    /// # Errors
    ///
    /// Why the file is no memory of that network.
    pub fn read(path: &Path, network: &str) -> Result<Option<Self>, BoxError> {
        let cache = read_cache(path, network)?;
        Ok(cache.map(|Cache { config, own, peers, .. }| Self { config, own, peers }))
    }
}
