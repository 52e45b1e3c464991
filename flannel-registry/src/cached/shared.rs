//! The state that a manager and its streams share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flannel_core::{
    Backoff, Lease, LeaseManager, LeaseRequest, ManagerError, NetworkConfig, PeerSet, PublicAddrs,
    RegistryError, StoreIdentity, SubnetKey, chain,
};
use tokio::sync::Notify;

use super::file::CacheFile;
use crate::cache::Cache;

#[derive(Debug)]
pub(super) struct Shared<M> {
    pub(super) inner: M,
    pub(super) file: Arc<CacheFile>,
    pub(super) retry: Backoff,
    pub(super) state: Mutex<State>,
    /// Notified when the own lease or the config changes.
    pub(super) changed: Notify,
    /// Notified when the watch reaches the registry.
    pub(super) registry_reached: Notify,
}

#[derive(Debug)]
pub(super) struct State {
    /// The content of the file, until the inner manager has granted a lease.
    pub(super) cache: Option<Cache>,
    /// The store that the cache is from, until the current store has listed all peers.
    pub(super) cache_store: Option<StoreIdentity>,
    /// Why answers come from the cache.
    pub(super) unavailable: Option<String>,
    /// Whether the own lease is from the cache and the registry has not confirmed it yet.
    pub(super) unconfirmed: bool,
    pub(super) config: Option<NetworkConfig>,
    pub(super) own: Option<Lease>,
    /// The peers that the network uses, to write to the file.
    pub(super) peers: PeerSet,
}

impl<M: LeaseManager> Shared<M> {
    /// Acquires a lease from the inner manager, preferring the cached subnet if the request names none.
    pub(super) async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError> {
        let cached = self.state().cache.as_ref().map(|cache| cache.own.subnet);
        let previous = request.previous.or(cached);
        let own = self.inner.acquire(request.with_previous(previous)).await?;
        self.state().config = Some(request.config.clone());
        self.confirmed(&own);
        Ok(own)
    }

    /// Records a lease that the registry confirmed.
    pub(super) fn confirmed(&self, own: &Lease) {
        let mut state = self.state();
        state.cache = None;
        state.unavailable = None;
        state.unconfirmed = false;
        state.own = Some(own.clone());
        self.changed.notify_one();
    }

    /// Reports whether the cache is from another store than the one that answered. Returns true at most once.
    pub(super) fn is_other_store(&self) -> bool {
        let store = self.inner.store();
        let Some(known) = self.state().cache_store.take() else {
            return false;
        };
        let is_other = store.is_other_than(&known);
        if is_other {
            let addresses = known.addresses.join(", ");
            tracing::warn!("cache is from another registry ({addresses}); ignoring its peers");
        }
        is_other
    }

    /// Returns the cached lease if the registry is unavailable and the lease belongs to this host.
    pub(super) fn cached_lease(&self, public: &PublicAddrs) -> Option<Lease> {
        let state = self.state();
        state.unavailable.as_ref()?;
        let own = &state.cache.as_ref()?.own;
        own.is_held_by(public).then(|| own.clone())
    }

    /// Uses the cached lease until the registry answers, if the host may hold its subnet under the config.
    pub(super) fn reuse(&self, request: &LeaseRequest<'_>) -> Option<Lease> {
        let own = self.cached_lease(&request.attrs.public)?;
        let cached_config = self.state().cache.as_ref().map(|cache| cache.config.clone());
        if !may_hold(request.config, &own.subnet, cached_config.as_ref()) {
            return None;
        }
        let own = Lease { attrs: request.attrs.clone(), ..own };
        let mut state = self.state();
        state.unconfirmed = true;
        state.config.get_or_insert_with(|| request.config.clone());
        state.own = Some(own.clone());
        Some(own)
    }

    /// Records that the registry is unavailable, if the error says so and there is a cache.
    pub(super) fn note_unavailable(&self, error: &ManagerError) {
        let mut state = self.state();
        if is_no_answer(error) && state.cache.is_some() {
            state.unavailable = Some(chain(error));
        }
    }

    /// Returns the state. A panic cannot leave it half written, so poisoning means nothing.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reports whether a host may hold a subnet under a config. `former` is the config under which it got the subnet: if that
/// does not offer the subnet either, an authority other than the config assigned it.
pub(super) fn may_hold(config: &NetworkConfig, subnet: &SubnetKey, former: Option<&NetworkConfig>) -> bool {
    let is_assigned = former.is_some_and(|former| !former.offers(subnet));
    config.offers(subnet) || (is_assigned && config.contains_subnet(subnet))
}

/// Reports whether an error says nothing about the network itself.
pub(super) fn is_no_answer(error: &ManagerError) -> bool {
    use RegistryError::{Refused, Unavailable, Unknown};
    matches!(error, ManagerError::Registry(Unavailable(..) | Refused(..) | Unknown(..)))
}
