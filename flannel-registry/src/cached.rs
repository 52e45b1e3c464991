//! A lease manager with a cache file, so that a host can start without its registry.
//!
//! ```text
//!                 the inner manager answers            it does not answer, and there is a cache
//!  config,   ───▶ its answer                           the cached config and lease
//!  acquire
//!  keep      ───▶ its renewal                          retry until it answers; then its renewal, or lost
//!  watch     ───▶ its events, and the removal          the cached peers, `FromCache`, then its events that differ
//!                 of cached peers that are gone        from the cache
//! ```
//!
//! Cached peers from another registry are rejected, with `CacheRejected` if they were yielded before: a host that moved to
//! another registry does not keep the peers of the first.
//!
//! The file is written after changes, at most once a second, on another thread.

mod confirm;
mod file;
mod shared;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use flannel_core::{
    Backoff, KeepEvent, LastContact, Lease, LeaseAttrs, LeaseManager, LeaseRequest, ManagerError,
    NetworkConfig, PeerChange, PeerEvent, PeerSet, PublicAddrs, StoreIdentity, SubnetKey, chain,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::Notify;

use crate::cache::Cache;
use file::CacheFile;
use shared::{Shared, State, is_no_answer, may_hold};

/// A wrapper of a lease manager that caches the network in a file.
///
/// If the inner manager does not answer at the start, the config, lease and peers come from the file if it belongs to this
/// network and host. The network carries traffic at once, and is corrected when the registry answers. A missing or
/// invalid file is not an error.
///
/// The file contains the peers that the network uses, as it reports them with
/// [`peers_in_use`](LeaseManager::peers_in_use).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use flannel_core::{LeaseAttrs, LeaseManager, LeaseRequest};
/// use flannel_registry::{CacheOptions, CachedLeaseManager, RegistryLeaseManager, MemoryRegistry};
/// use std::net::Ipv4Addr;
///
/// let registry = MemoryRegistry::new();
/// registry.set_config(r#"{"Network": "10.5.0.0/16"}"#);
/// let attrs = LeaseAttrs::new(Ipv4Addr::new(192, 168, 0, 1).into());
/// let path = std::env::temp_dir().join("cached-manager-example");
/// let options = CacheOptions::new(path, "/coreos.com/network", attrs.public);
/// let manager = CachedLeaseManager::open(RegistryLeaseManager::new(registry), options);
/// let config = manager.config().await?;
/// let lease = manager.acquire(LeaseRequest::new(&config, &attrs)).await?;
/// manager.release(&lease).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct CachedLeaseManager<M> {
    shared: Arc<Shared<M>>,
}

/// Options of a [`CachedLeaseManager`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CacheOptions {
    /// The path of the file, which no other process writes.
    pub path: PathBuf,
    /// The name of the network, such as its key in the registry. A file of another network is ignored.
    pub network: String,
    /// The host's public addresses. A file of a host with other addresses is ignored.
    pub public: PublicAddrs,
    /// The backoff between attempts to confirm a cached lease.
    pub retry: Backoff,
}

impl CacheOptions {
    /// Creates options with defaults for everything else.
    pub fn new(path: impl Into<PathBuf>, network: impl Into<String>, public: PublicAddrs) -> Self {
        use std::time::Duration;
        Self {
            path: path.into(),
            network: network.into(),
            public,
            retry: Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(30) },
        }
    }
}

impl<M: LeaseManager> CachedLeaseManager<M> {
    /// Reads the file and wraps `inner`.
    pub fn open(inner: M, options: CacheOptions) -> Self {
        let CacheOptions { path, network, public, retry } = options;
        let file = CacheFile::new(path, network);
        let cache = file.read(&public);
        let peers = PeerSet::all_of(cache.iter().flat_map(|cache| cache.peers.iter().cloned()));
        let cache_store = cache.as_ref().map(|cache| cache.store.clone());
        let state = State {
            cache,
            cache_store,
            unavailable: None,
            unconfirmed: false,
            config: None,
            own: None,
            peers,
        };
        let shared = Shared {
            inner,
            file: Arc::new(file),
            retry,
            state: Mutex::new(state),
            changed: Notify::new(),
            registry_reached: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }
}

#[async_trait]
impl<M: LeaseManager> LeaseManager for CachedLeaseManager<M> {
    fn describe(&self) -> String {
        self.shared.inner.describe()
    }

    fn host_name(&self) -> Option<String> {
        self.shared.inner.host_name()
    }

    fn peer_names(&self) -> BTreeMap<SubnetKey, String> {
        self.shared.inner.peer_names()
    }

    fn store(&self) -> StoreIdentity {
        self.shared.inner.store()
    }

    fn last_contact(&self) -> Option<LastContact> {
        self.shared.inner.last_contact()
    }

    /// Returns the cached config also if the registry's config is missing or invalid: one bad write must not keep hosts
    /// from restarting.
    async fn config(&self) -> Result<NetworkConfig, ManagerError> {
        let answer = self.shared.inner.config().await;
        let mut state = self.shared.state();
        let config = match (answer, &state.cache) {
            (Ok(config), _) => config,
            (Err(error), Some(cache)) => {
                let (config, why) = (cache.config.clone(), chain(&error));
                tracing::warn!("using the cached network config: {why}");
                if is_no_answer(&error) {
                    state.unavailable = Some(why);
                }
                config
            }
            (Err(error), None) => return Err(error),
        };
        // A config under which this host may not hold its subnet is of no use for a restart without the registry.
        let former = state.config.as_ref();
        if state.own.as_ref().is_none_or(|own| may_hold(&config, &own.subnet, former))
            && former != Some(&config)
        {
            state.config = Some(config.clone());
            self.shared.changed.notify_one();
        }
        Ok(config)
    }

    fn config_changes(&self) -> BoxStream<'static, ()> {
        self.shared.inner.config_changes()
    }

    /// Returns the cached lease also if the registry has none, so that the host keeps its subnet and MAC address.
    async fn previous_lease(&self, public: PublicAddrs) -> Result<Option<Lease>, ManagerError> {
        if let Some(own) = self.shared.cached_lease(&public) {
            return Ok(Some(own));
        }
        let answer = self.shared.inner.previous_lease(public).await;
        if let Err(error) = &answer {
            self.shared.note_unavailable(error);
            return self.shared.cached_lease(&public).map_or(answer, |own| Ok(Some(own)));
        }
        let held = |cache: &Cache| cache.own.is_held_by(&public).then(|| cache.own.clone());
        answer.map(|own| own.or_else(|| self.shared.state().cache.as_ref().and_then(held)))
    }

    async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError> {
        if let Some(own) = self.shared.reuse(&request) {
            return Ok(own);
        }
        match self.shared.acquire(request).await {
            Ok(own) => Ok(own),
            Err(error) => {
                self.shared.note_unavailable(&error);
                self.shared.reuse(&request).ok_or(error)
            }
        }
    }

    async fn publish(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, ManagerError> {
        let own = self.shared.inner.publish(own, attrs).await?;
        self.shared.confirmed(&own);
        Ok(own)
    }

    fn host_ready(&self, own: &Lease) {
        self.shared.inner.host_ready(own);
    }

    /// Has the peers that the network uses written to the file, so that those that it holds stay there.
    fn peers_in_use(&self, changes: &[PeerChange]) {
        self.shared.state().peers.extend(changes.iter().map(Into::into));
        self.shared.changed.notify_one();
        self.shared.inner.peers_in_use(changes);
    }

    fn reconnect(&self) {
        self.shared.inner.reconnect();
    }

    fn keep(&self, own: Lease) -> BoxStream<'static, KeepEvent> {
        if self.shared.state().unconfirmed {
            confirm::stream(Arc::clone(&self.shared), own)
        } else {
            self.shared.inner.keep(own)
        }
    }

    fn watch(&self, own: SubnetKey) -> BoxStream<'static, PeerEvent> {
        watch::stream(Arc::clone(&self.shared), own).boxed()
    }

    /// Releases the lease and removes the file.
    async fn release(&self, own: &Lease) -> Result<(), ManagerError> {
        self.shared.state().cache = None;
        self.shared.file.remove();
        self.shared.inner.release(own).await
    }
}
