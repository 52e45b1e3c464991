//! The interface to whatever assigns subnets and knows the peers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::config::{ConfigError, NetworkConfig};
use crate::lease::{Lease, LeaseAttrs, PublicAddrs};
use crate::lease_set::LeaseChange;
use crate::peers::PeerChange;
use crate::registry::{BadRecord, LastContact, RegistryError, StoreIdentity};
use crate::subnet::SubnetKey;

/// Acquires and keeps the host's lease, and follows its peers.
///
/// One manager over a [`SubnetRegistry`](crate::SubnetRegistry) serves every store. An orchestrator that assigns subnets
/// itself implements this trait directly, or drives a [`StaticLeaseManager`](crate::StaticLeaseManager). Implementations
/// use [`#[async_trait]`](macro@crate::async_trait): without it an `async fn` in the `impl` block doesn't compile.
///
/// The manager decides what identifies the host: its public addresses, an ID that it stores, or a name that the
/// orchestrator gave it. It also decides which subnet the host gets. A subnet may have any length and lie outside the
/// configured range, as long as it is [inside the network](NetworkConfig::contains_subnet).
///
/// Each implementation keeps the following promises, which the contract suite in `flannel-testing` checks:
///
/// 1. **One lease.** `acquire` returns a subnet inside the network, and one that the configuration
///    [offers](NetworkConfig::offers) if the manager chose it. Called again for the same host, even after a restart, it
///    returns the same subnet while that holds.
/// 2. **Attributes are published.** Once `acquire` has returned, the record contains the attributes of the request. The
///    manager may override the public addresses; the returned lease contains the addresses that it published. A manager that
///    answers from a cache publishes the attributes as soon as its store responds.
/// 3. **No theft.** `acquire` never takes a subnet that overlaps the lease of another host. An answer from a cache is a
///    subnet that this host held, and `keep` loses it if the store assigned it to another host meanwhile.
/// 4. **Leases last.** A lease lasts while `keep` is polled, and `keep` continues until the lease is lost; an unavailable
///    store is no loss. If `watch` is polled too, `keep` reports a loss as soon as the store does.
/// 5. **Peers are other hosts.** `watch` never yields the host's own subnet.
/// 6. **A watch is truthful.** Errors remove no peer: a removal comes only from the store. After [`PeerEvent::Complete`] the
///    changes so far add up to exactly the current peers. A malformed record is reported and hides no other record.
/// 7. **Cached peers are marked.** Peers from a cache are followed by [`PeerEvent::FromCache`], at most once and before
///    `Complete`. `Complete` comes only from the store.
/// 8. **Publishing changes attributes only.** `publish` changes neither subnet nor term, and never overwrites the record of
///    another host.
/// 9. **Same subnet after expiry.** A host whose lease expired and that requests its previous subnet gets it if it is free.
/// 10. **Release is complete.** After `release` the subnet is free at once. Releasing a lease that no longer exists
///     succeeds. Reservations and leases of other hosts stay. Where another authority assigns subnets, freeing the subnet
///     is up to it.
/// 11. **Errors are actionable.** A missing or invalid configuration, a full network, and a host without a subnet have
///     errors of their own, which name the place, the field and the fix.
///
/// The calls that a network makes, here on a static manager:
///
/// ```
/// use flannel_core::{LeaseAttrs, LeaseManager, LeaseRequest, NetworkConfig, PeerEvent, StaticLeaseManager};
/// use flannel_core::futures::StreamExt;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#)?;
/// let manager = StaticLeaseManager::new(config, "10.5.1.0/24".parse()?)?;
/// manager.set_peers(Vec::<flannel_core::Lease>::new());
/// let manager: Box<dyn LeaseManager> = Box::new(manager);
///
/// let (config, attrs) = (manager.config().await?, LeaseAttrs::from_record(r#"{"PublicIP":"192.168.64.1"}"#)?);
/// let own = manager.acquire(LeaseRequest::new(&config, &attrs)).await?;
/// assert_eq!(own.subnet, "10.5.1.0/24".parse()?);
/// assert!(matches!(manager.watch(own.subnet).next().await, Some(PeerEvent::Complete)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[async_trait]
pub trait LeaseManager: Send + Sync + 'static {
    /// Names the manager for logs and status, without secrets.
    fn describe(&self) -> String;

    /// Returns the name under which the manager knows this host, if it has one, such as the name of a Kubernetes node.
    fn host_name(&self) -> Option<String> {
        None
    }

    /// Returns the names of the peers, if the manager knows any. The network reads them when a status lists the peers.
    fn peer_names(&self) -> BTreeMap<SubnetKey, String> {
        BTreeMap::new()
    }

    /// Returns what is known so far about the store that holds the leases.
    fn store(&self) -> StoreIdentity {
        StoreIdentity::default()
    }

    /// Returns the time of the last response or event from the store, if it is known.
    fn last_contact(&self) -> Option<LastContact> {
        None
    }

    /// Reads the network configuration.
    ///
    /// # Errors
    ///
    /// [`ManagerError::NotConfigured`], [`ManagerError::Config`] or [`ManagerError::Registry`]; retry later.
    async fn config(&self) -> Result<NetworkConfig, ManagerError>;

    /// Yields `()` whenever the configuration may have changed since this call; the caller re-reads it. The caller polls
    /// [`watch`](Self::watch) at the same time. The stream never ends. By default it never yields anything, and the host
    /// notices a change when it is asked to [reload](crate::Network::reload).
    fn config_changes(&self) -> BoxStream<'static, ()> {
        stream::pending().boxed()
    }

    /// Looks up the lease that this host held before, without changing it. A backend that keeps its attributes looks the
    /// same to its peers after a restart. A manager that identifies the host otherwise ignores the addresses.
    ///
    /// # Errors
    ///
    /// [`ManagerError::Registry`]; retry later.
    async fn previous_lease(&self, public: PublicAddrs) -> Result<Option<Lease>, ManagerError>;

    /// Acquires a lease, or takes over the one that this host holds.
    ///
    /// # Errors
    ///
    /// [`ManagerError::OutOfSubnets`]; or [`ManagerError::NotAssigned`] or [`ManagerError::Registry`], then retry later.
    async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError>;

    /// Replaces the attributes of this host's lease, for example because its addresses changed. No other stream keeps the
    /// lease meanwhile.
    ///
    /// # Errors
    ///
    /// [`ManagerError::Registry`]; with [`RegistryError::Gone`] or [`RegistryError::Changed`] the lease is lost, otherwise
    /// retry later.
    async fn publish(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, ManagerError>;

    /// Notes that the host carries traffic under this lease: the peers are known and the first pass is complete. The network
    /// calls it once per subnet. It must return at once; a manager that writes this to a store retries in the background.
    fn host_ready(&self, own: &Lease) {
        let _ = own;
    }

    /// Notes changes of the peers that the network uses, after damping. A manager that caches the peers stores these, and not
    /// what it yielded: so it keeps the ones that the network holds.
    fn peers_in_use(&self, changes: &[PeerChange]) {
        let _ = changes;
    }

    /// Notes that addresses of this host changed, so that existing connections may be dead.
    fn reconnect(&self) {}

    /// Keeps a lease. The stream ends after [`KeepEvent::Lost`]. Dropping it stops the renewals.
    fn keep(&self, own: Lease) -> BoxStream<'static, KeepEvent>;

    /// Follows the peers of the host that holds `own`. The stream never ends.
    fn watch(&self, own: SubnetKey) -> BoxStream<'static, PeerEvent>;

    /// Releases the lease.
    ///
    /// # Errors
    ///
    /// [`ManagerError::Registry`]; the lease then expires.
    async fn release(&self, own: &Lease) -> Result<(), ManagerError>;
}

/// Implements the trait for a pointer to a manager.
macro_rules! delegate {
    ($pointer:ty) => {
        #[async_trait]
        impl<M: LeaseManager + ?Sized> LeaseManager for $pointer {
            fn describe(&self) -> String {
                (**self).describe()
            }

            fn host_name(&self) -> Option<String> {
                (**self).host_name()
            }

            fn peer_names(&self) -> BTreeMap<SubnetKey, String> {
                (**self).peer_names()
            }

            fn store(&self) -> StoreIdentity {
                (**self).store()
            }

            fn last_contact(&self) -> Option<LastContact> {
                (**self).last_contact()
            }

            async fn config(&self) -> Result<NetworkConfig, ManagerError> {
                (**self).config().await
            }

            fn config_changes(&self) -> BoxStream<'static, ()> {
                (**self).config_changes()
            }

            async fn previous_lease(&self, public: PublicAddrs) -> Result<Option<Lease>, ManagerError> {
                (**self).previous_lease(public).await
            }

            async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError> {
                (**self).acquire(request).await
            }

            async fn publish(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, ManagerError> {
                (**self).publish(own, attrs).await
            }

            fn host_ready(&self, own: &Lease) {
                (**self).host_ready(own);
            }

            fn peers_in_use(&self, changes: &[PeerChange]) {
                (**self).peers_in_use(changes);
            }

            fn reconnect(&self) {
                (**self).reconnect();
            }

            fn keep(&self, own: Lease) -> BoxStream<'static, KeepEvent> {
                (**self).keep(own)
            }

            fn watch(&self, own: SubnetKey) -> BoxStream<'static, PeerEvent> {
                (**self).watch(own)
            }

            async fn release(&self, own: &Lease) -> Result<(), ManagerError> {
                (**self).release(own).await
            }
        }
    };
}

delegate!(Arc<M>);
delegate!(Box<M>);

/// The arguments of [`LeaseManager::acquire`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LeaseRequest<'a> {
    /// The network configuration.
    pub config: &'a NetworkConfig,
    /// The attributes to publish.
    pub attrs: &'a LeaseAttrs,
    /// The subnet that the host held before, which it prefers.
    pub previous: Option<SubnetKey>,
}

impl<'a> LeaseRequest<'a> {
    /// Requests any subnet of the network.
    #[must_use]
    pub fn new(config: &'a NetworkConfig, attrs: &'a LeaseAttrs) -> Self {
        Self { config, attrs, previous: None }
    }

    /// Adds the subnet that the host held before, if it held one.
    #[must_use]
    pub fn with_previous(self, previous: Option<SubnetKey>) -> Self {
        Self { previous, ..self }
    }
}

/// An event of a lease that is being kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeepEvent {
    /// The lease is valid; the time until its next renewal.
    Waiting(Duration),
    /// The lease is a reservation, which needs no renewal.
    Permanent,
    /// The lease was renewed, for this time.
    Renewed(Duration),
    /// A renewal failed and will be retried.
    RenewalFailed {
        /// The cause.
        reason: String,
        /// The time until the next attempt.
        retry_in: Duration,
    },
    /// Another host or program wrote the record; the manager restores it.
    Disputed(String),
    /// The manager changed the attributes of the lease, for example because an operator overrode the public address.
    Overridden(Lease),
    /// The lease was lost, for this reason.
    Lost(String),
}

/// A change of the peers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PeerEvent {
    /// These leases changed.
    Changed(Vec<LeaseChange>),
    /// All peers in the cache have been yielded, because the store is unavailable for this reason. They are good enough to
    /// carry traffic, but no reason to remove anything.
    FromCache(String),
    /// These cached peers turned out to belong to another network. They are removed without damping.
    CacheRejected(Vec<SubnetKey>),
    /// All peers have been yielded.
    Complete,
    /// These records are malformed and ignored; the list replaces the previous one.
    Bad(Vec<BadRecord>),
    /// The store doesn't respond, for this reason; the peers stay as they are.
    RegistryUnavailable(String),
    /// The store responds again.
    RegistryAvailable,
}

/// The reasons why a lease manager fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// There is no configuration yet; an operator must write it.
    #[error("flannel config not found in {place}; write it with: {how}")]
    NotConfigured {
        /// The place where the manager looked for it.
        place: String,
        /// The command that writes it.
        how: String,
    },
    /// The configuration is invalid; an operator must correct it.
    #[error("{error}; correct it in {place} with: {how}")]
    Config {
        /// The fault.
        error: ConfigError,
        /// The place of the configuration.
        place: String,
        /// The command that writes it.
        how: String,
    },
    /// No subnet has been assigned to this host yet; the network waits for one.
    #[error("no subnet for this host in {place} yet: {reason}")]
    NotAssigned {
        /// The place where the manager looked for it, such as `node worker-7`.
        place: String,
        /// The cause or the missing step, such as `spec.podCIDR is empty`.
        reason: String,
    },
    /// No subnet is free; the network needs a larger range, or hosts must leave.
    #[error("out of subnets: all of {0} are leased")]
    OutOfSubnets(String),
    /// The registry failed; the same call may succeed later.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl ManagerError {
    /// Creates a [`NotAssigned`](Self::NotAssigned) error.
    #[must_use]
    pub fn not_assigned(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::NotAssigned { place: place.into(), reason: reason.into() }
    }
}
