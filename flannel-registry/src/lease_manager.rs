//! A lease manager for any [`SubnetRegistry`].
//!
//! ```text
//!  previous_lease ──list──▶ last list ──▶ acquire ──▶ watch, from the revision of the list
//!                                           │           │ state of the own record
//!                                           ▼           ▼
//!                                         keep ◀──── own record: ends at once if the lease is gone
//! ```
//!
//! Without errors a host costs its registry one read of the config, one list, one write and one watch when it starts,
//! and one write per renewal. It makes no calls per peer or event.

mod acquire;
mod options;
mod peer_view;
mod publish;
mod renewal;
mod shared;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use flannel_core::{
    KeepEvent, LastContact, Lease, LeaseAttrs, LeaseManager, LeaseRequest, ManagerError, NetworkConfig,
    PeerEvent, PublicAddrs, RegistryError, StoreIdentity, SubnetKey, SubnetRegistry, Term,
};
use futures::stream::BoxStream;
use tokio::sync::watch;

pub use options::RegistryLeaseManagerOptions;
use renewal::LeaseRenewal;
use shared::{LastList, Shared, State};

/// Acquires, renews and watches leases in a registry, for one host of one network.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::net::Ipv4Addr;
/// use flannel_core::{LeaseAttrs, LeaseManager, LeaseRequest};
/// use flannel_registry::{RegistryLeaseManager, MemoryRegistry};
///
/// let registry = MemoryRegistry::new();
/// registry.set_config(r#"{"Network": "10.5.0.0/16"}"#);
/// let manager = RegistryLeaseManager::new(registry);
/// let config = manager.config().await?;
/// let attrs = LeaseAttrs::new(Ipv4Addr::new(192, 168, 0, 1).into());
/// let request = LeaseRequest::new(&config, &attrs);
/// let lease = manager.acquire(request).await?;
/// assert!(config.offers(&lease.subnet));
/// assert_eq!(manager.acquire(request).await?.subnet, lease.subnet, "one host, one lease");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RegistryLeaseManager<R> {
    shared: Arc<Shared<R>>,
}

impl<R: SubnetRegistry> RegistryLeaseManager<R> {
    /// Creates a manager over a registry, which may be an `Arc` of one.
    pub fn new(registry: R) -> Self {
        Self::with_options(registry, RegistryLeaseManagerOptions::default())
    }

    /// Creates a manager with options.
    pub fn with_options(registry: R, options: RegistryLeaseManagerOptions) -> Self {
        let random = options.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        let state = State {
            random,
            last_list: None,
            granted: options.ttl,
            held: None,
            taken_from: None,
            others: BTreeSet::new(),
        };
        let shared =
            Shared { registry, options, state: Mutex::new(state), own_record: watch::Sender::new(None) };
        Self { shared: Arc::new(shared) }
    }
}

#[async_trait]
impl<R: SubnetRegistry> LeaseManager for RegistryLeaseManager<R> {
    fn describe(&self) -> String {
        self.shared.registry.describe()
    }

    fn store(&self) -> StoreIdentity {
        self.shared.registry.store()
    }

    fn last_contact(&self) -> Option<LastContact> {
        self.shared.registry.last_contact()
    }

    async fn config(&self) -> Result<NetworkConfig, ManagerError> {
        let registry = &self.shared.registry;
        let text = registry.config().await?;
        let (place, how) = (registry.describe(), registry.how_to_configure());
        match text {
            None => Err(ManagerError::NotConfigured { place, how }),
            Some(text) => {
                NetworkConfig::parse(&text).map_err(|error| ManagerError::Config { error, place, how })
            }
        }
    }

    fn config_changes(&self) -> BoxStream<'static, ()> {
        self.shared.registry.config_changes()
    }

    async fn previous_lease(&self, public: PublicAddrs) -> Result<Option<Lease>, ManagerError> {
        let snapshot = self.shared.registry.list().await?;
        let node = self.shared.node();
        // A lease with the own id at another address may belong to the host that this one was cloned from, whose MAC
        // address must not be reused.
        let here = |lease: &&Arc<Lease>| lease.is_held_by(&public);
        let mut own: Vec<_> = snapshot
            .leases
            .iter()
            .filter(here)
            .filter_map(|lease| Some((lease.match_host(&public, node)?, lease)))
            .collect();
        // The choice must not depend on the order of the list.
        own.sort_by_key(|(tie, lease)| (*tie, lease.subnet));
        let own = own.first().map(|(_, lease)| Lease::clone(lease));
        self.shared.state().last_list = Some(LastList { snapshot, fresh: true });
        Ok(own)
    }

    async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError> {
        self.shared.acquire(request).await
    }

    async fn publish(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, ManagerError> {
        Ok(self.shared.publish(own, attrs).await?)
    }

    fn reconnect(&self) {
        self.shared.registry.reconnect();
    }

    fn keep(&self, own: Lease) -> BoxStream<'static, KeepEvent> {
        LeaseRenewal::stream(Arc::clone(&self.shared), own)
    }

    fn watch(&self, own: SubnetKey) -> BoxStream<'static, PeerEvent> {
        let snapshot = self.shared.state().last_list.take().map(|list| list.snapshot);
        let events = self.shared.registry.watch(snapshot.as_ref().map(|snapshot| snapshot.revision));
        peer_view::stream(events, snapshot, own, self.shared.own_record.clone())
    }

    /// Removes the lease; succeeds if it no longer exists. A reservation stays.
    async fn release(&self, own: &Lease) -> Result<(), ManagerError> {
        let held = self.shared.state().held.take().filter(|held| held.subnet == own.subnet);
        let own = held.unwrap_or_else(|| own.clone());
        if own.term == Term::Permanent {
            return Ok(());
        }
        match self.shared.registry.delete(&own).await {
            Ok(()) | Err(RegistryError::Gone(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
