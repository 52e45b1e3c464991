//! The lease manager of every store: one host's view of a [`SubnetRegistry`].
//!
//! ```text
//!  recall ──list──▶ known ──▶ acquire ──▶ watch, from where the list ended
//!                               │           │ what happens to the own record
//!                               ▼           ▼
//!                             keep ◀──── news: ends at once if the lease is gone
//! ```
//!
//! In the good case a host costs its registry one configuration, one list, one write and one watch when it starts,
//! and one write for each renewal. No call is made for a peer or for an event.

mod acquire;
mod keep;
mod peers;
mod publish;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{
    Backoff, KeepEvent, LastContact, Lease, LeaseAttrs, LeaseManager, LeaseRequest, ManagerError,
    NetworkConfig, NodeId, PeerEvent, PublicAddrs, RegistryError, Snapshot, StoreIdentity, SubnetKey,
    SubnetRegistry, Term,
};
use futures::stream::BoxStream;
use tokio::sync::watch;

use crate::{BootClock, Clock, NodeIdentity};
use keep::Keep;
use peers::OwnRecord;

/// Gets, keeps and watches leases in a registry, for one host of one network.
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

/// How a [`RegistryLeaseManager`] leases.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegistryLeaseManagerOptions {
    /// How long a lease lasts that is not renewed.
    pub ttl: Duration,
    /// How much of that shall be left at the latest when it is renewed; `None` renews at a third of it, which leaves two
    /// thirds.
    pub renew_margin: Option<Duration>,
    /// The pauses between attempts at a renewal that failed.
    pub retry: Backoff,
    /// By what the time until a renewal is measured.
    pub clock: Arc<dyn Clock>,
    /// By what the host is known besides its public address.
    pub identity: Option<Arc<NodeIdentity>>,
    /// Fixes the random choices, for tests that shall run the same way each time.
    pub seed: Option<u64>,
}

impl Default for RegistryLeaseManagerOptions {
    fn default() -> Self {
        Self {
            // Flannel's own.
            ttl: Duration::from_secs(86_400),
            // Quick, because a registry is often back soon; then as patient as flannel, which waits a minute.
            retry: Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60) },
            renew_margin: None,
            clock: Arc::new(BootClock::new()),
            identity: None,
            seed: None,
        }
    }
}

#[derive(Debug)]
struct Shared<R> {
    registry: R,
    options: RegistryLeaseManagerOptions,
    state: Mutex<State>,
    /// What the watch last heard of the own record.
    own: watch::Sender<Option<OwnRecord>>,
}

#[derive(Debug)]
struct State {
    random: fastrand::Rng,
    /// The list that was made last, until a watch starts from it.
    known: Option<Known>,
    /// How long the lease lasts from its last renewal on.
    granted: Duration,
    /// The lease as it was last read or written: its revision is what the next write compares.
    held: Option<Lease>,
    /// Under what the lease was held before, if that was another id or another address than this host's.
    taken_from: Option<Holder>,
    /// The ids of hosts that were found to live under this host's address.
    others: BTreeSet<NodeId>,
}

/// Who a record names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holder {
    public: PublicAddrs,
    node: Option<NodeId>,
}

impl Holder {
    fn of(attrs: &LeaseAttrs) -> Self {
        Self { public: attrs.public, node: attrs.node }
    }
}

#[derive(Debug)]
struct Known {
    snapshot: Snapshot,
    /// Whether nothing was decided from it yet.
    fresh: bool,
}

impl<R: SubnetRegistry> RegistryLeaseManager<R> {
    /// Manages a host's lease in a registry, or in one that is shared by an `Arc`.
    pub fn new(registry: R) -> Self {
        Self::with_options(registry, RegistryLeaseManagerOptions::default())
    }

    /// Manages a host's lease with options of its own.
    pub fn with_options(registry: R, options: RegistryLeaseManagerOptions) -> Self {
        let random = options.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        let state = State {
            random,
            known: None,
            granted: options.ttl,
            held: None,
            taken_from: None,
            others: BTreeSet::new(),
        };
        let shared = Shared { registry, options, state: Mutex::new(state), own: watch::Sender::new(None) };
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

    async fn recall(&self, public: PublicAddrs) -> Result<Option<Lease>, ManagerError> {
        let snapshot = self.shared.registry.list().await?;
        let node = self.shared.node();
        // A lease of the own id at another address may be that of a host that this one was cloned from, whose hardware
        // address it must not take.
        let here = |lease: &&Arc<Lease>| lease.is_held_by(&public);
        let mut own: Vec<_> = snapshot
            .leases
            .iter()
            .filter(here)
            .filter_map(|lease| Some((lease.tie(&public, node)?, lease)))
            .collect();
        // A store may list in any order; the choice is the same each time.
        own.sort_by_key(|(tie, lease)| (*tie, lease.subnet));
        let own = own.first().map(|(_, lease)| Lease::clone(lease));
        self.shared.state().known = Some(Known { snapshot, fresh: true });
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
        Keep::stream(Arc::clone(&self.shared), own)
    }

    fn watch(&self, own: SubnetKey) -> BoxStream<'static, PeerEvent> {
        let known = self.shared.state().known.take();
        let after = known.as_ref().map(|known| known.snapshot.revision);
        let events = self.shared.registry.watch(after);
        peers::stream(events, known.map(|known| known.snapshot), own, self.shared.own.clone())
    }

    /// Removes the lease; one that is gone already is none to remove. A reservation stays: it is its maker's.
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

impl<R> Shared<R> {
    /// Returns the state. A panic cannot leave it half written, so poison means nothing.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes for how long the registry said that the lease lasts. That it may last longer than was asked for is no
    /// reason to renew it later.
    fn granted(&self, ttl: Duration) {
        self.state().granted = ttl.min(self.options.ttl);
    }

    /// The id of this host, if it has one.
    fn node(&self) -> Option<NodeId> {
        self.options.identity.as_ref().map(|identity| identity.id())
    }

    fn chance(&self) -> f64 {
        self.state().random.f64()
    }
}
