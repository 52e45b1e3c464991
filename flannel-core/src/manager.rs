//! The seam to whatever says who this host is and who its peers are.

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::lease_set::LeaseChange;
use crate::registry::{BadRecord, LastContact, RegistryError, StoreIdentity};
use crate::{ConfigError, Lease, LeaseAttrs, NetworkConfig, PublicAddrs, SubnetKey};

/// Gets and keeps this host's lease, and tells about the peers.
///
/// One manager over a [`SubnetRegistry`](crate::SubnetRegistry) serves every store; an orchestrator that gives out
/// subnets by itself implements this trait directly. Every implementation keeps these promises; the contract suite in
/// `flannel-testing` checks them on any of them:
///
/// 1. **One lease.** `acquire` answers with a subnet that the configuration offers. Called again with the same public
///    addresses, also after a new start, it answers with the same one, as long as the configuration offers it.
/// 2. **Attributes are published.** When `acquire` has answered, the record says what the request's attributes say. A
///    manager that answers from memory because its store does not publishes them as soon as the store answers.
/// 3. **Nothing is stolen.** `acquire` never takes a subnet that overlaps the lease of another host. An answer from
///    memory names only a subnet that this host held; `keep` loses it if the store gave it away meanwhile.
/// 4. **Keeping lasts.** A lease lasts while `keep` is followed, and `keep` goes on until the lease is lost; a store
///    that does not answer is no loss. What the store says of a loss is told at once if `watch` is followed too.
/// 5. **Peers are others.** `watch` never names the own subnet.
/// 6. **A watch never lies.** No error removes a peer: a removal comes only from the store's own word. After
///    [`PeerEvent::Complete`] the changes told so far give exactly the peers there are. A record that cannot be read is
///    named and hides no other.
/// 7. **Memory is named.** Peers that are told from memory because the store does not answer are followed by
///    [`PeerEvent::FromCache`], at most once and before `Complete`. `Complete` comes only from the store's own word.
/// 8. **Publishing changes words only.** `publish` never changes subnet or term, and never overwrites the record of
///    another host.
/// 9. **The same again.** A host whose lease ended, and that asks for its previous subnet, gets it if it is free.
/// 10. **Giving back is complete.** After `release` the subnet is free at once, and a lease that is gone already is none
///     to give back. A reservation stays, and so does the lease of another host. Where somebody else decides who has
///     which subnet, it is for them to take it back.
/// 11. **Errors are to be acted on.** A configuration that is missing or wrong, and a network without a free subnet, are
///     errors of their own, which name the place, the field and the cure.
///
/// What a network asks of a manager, here of one that is told everything by calls:
///
/// ```
/// use flannel_core::{StaticLeaseManager, LeaseAttrs, LeaseManager, LeaseRequest, NetworkConfig, PeerEvent};
/// use futures::StreamExt;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#)?;
/// let told = StaticLeaseManager::new(config, "10.5.1.0-24".parse()?)?;
/// told.set_peers(Vec::<flannel_core::Lease>::new());
/// let manager: &dyn LeaseManager = &told;
///
/// let (config, attrs) = (manager.config().await?, LeaseAttrs::from_record(r#"{"PublicIP":"192.168.64.1"}"#)?);
/// let own = manager.acquire(LeaseRequest::new(&config, &attrs)).await?;
/// assert_eq!(own.subnet.to_string(), "10.5.1.0-24");
/// assert!(matches!(manager.watch(own.subnet).next().await, Some(PeerEvent::Complete)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[async_trait]
pub trait LeaseManager: Send + Sync + 'static {
    /// Names the manager for logs and status. Holds no secret.
    fn describe(&self) -> String;

    /// Tells which store the leases are in, as far as is known yet; nothing if there is none.
    fn store(&self) -> StoreIdentity {
        StoreIdentity::default()
    }

    /// Tells when the store was last heard, and up to where; nothing if that is not known.
    fn last_contact(&self) -> Option<LastContact> {
        None
    }

    /// Reads the configuration of the network.
    ///
    /// # Errors
    ///
    /// [`ManagerError::NotConfigured`], [`ManagerError::Config`] or [`ManagerError::Registry`]: try again later.
    async fn config(&self) -> Result<NetworkConfig, ManagerError>;

    /// Says whenever the configuration may be another one than before this call, and not which: whoever hears it reads
    /// it, while it follows the peers as well. The stream never ends. A manager that cannot tell never says anything.
    fn config_changes(&self) -> BoxStream<'static, ()> {
        stream::pending().boxed()
    }

    /// Looks up the lease that this host held before, without changing it. A backend uses it to look to its peers as
    /// it did.
    ///
    /// # Errors
    ///
    /// [`ManagerError::Registry`]: try again later.
    async fn previous_lease(&self, public: PublicAddrs) -> Result<Option<Lease>, ManagerError>;

    /// Gets a lease, or takes over the one that this host holds.
    ///
    /// # Errors
    ///
    /// [`ManagerError::OutOfSubnets`], or [`ManagerError::Registry`]: try again later.
    async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError>;

    /// Lets the record of a lease say something else about this host, perhaps that it has other addresses. No other
    /// stream keeps the lease meanwhile.
    ///
    /// # Errors
    ///
    /// [`ManagerError::Registry`]; with [`RegistryError::Gone`] or [`RegistryError::Changed`] the lease is lost,
    /// otherwise try again later.
    async fn publish(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, ManagerError>;

    /// Says that addresses of this host changed, so that connections made before may be dead.
    fn reconnect(&self) {}

    /// Keeps a lease. The stream ends after [`KeepEvent::Lost`]; to drop it is to stop renewing.
    fn keep(&self, own: Lease) -> BoxStream<'static, KeepEvent>;

    /// Follows the peers of the host that holds `own`. The stream never ends.
    fn watch(&self, own: SubnetKey) -> BoxStream<'static, PeerEvent>;

    /// Gives the lease back.
    ///
    /// # Errors
    ///
    /// [`ManagerError::Registry`]; the lease then ends by itself.
    async fn release(&self, own: &Lease) -> Result<(), ManagerError>;
}

/// What a host asks for.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LeaseRequest<'a> {
    /// The network.
    pub config: &'a NetworkConfig,
    /// What the host says about itself.
    pub attrs: &'a LeaseAttrs,
    /// The subnet that it would like to have: the one it had before.
    pub previous: Option<SubnetKey>,
}

impl<'a> LeaseRequest<'a> {
    /// Asks for any subnet of the network.
    #[must_use]
    pub fn new(config: &'a NetworkConfig, attrs: &'a LeaseAttrs) -> Self {
        Self { config, attrs, previous: None }
    }

    /// Adds the subnet that the host had before, if it had one.
    #[must_use]
    pub fn with_previous(self, previous: Option<SubnetKey>) -> Self {
        Self { previous, ..self }
    }
}

/// What happens to a lease that is being kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeepEvent {
    /// It is good; the next renewal comes after this time.
    Waiting(Duration),
    /// It is a reservation, which needs no renewal.
    Permanent,
    /// It was renewed, for this time.
    Renewed(Duration),
    /// It could not be renewed; the next attempt comes after the pause.
    RenewalFailed {
        /// What went wrong.
        reason: String,
        /// How long the next attempt is away.
        retry_in: Duration,
    },
    /// Somebody else wrote its record; it is being put right.
    Disputed(String),
    /// It is lost.
    Lost(String),
}

/// What happens to the peers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PeerEvent {
    /// These changed.
    Changed(Vec<LeaseChange>),
    /// All peers that are remembered from before have been told; the text says why the store cannot be asked. They
    /// are good enough to carry traffic, but no reason to remove anything.
    FromCache(String),
    /// These were told from memory, and turn out to be of another network. They are no peers, which is beyond doubt
    /// however many they are.
    CacheRejected(Vec<SubnetKey>),
    /// All peers have been told.
    Complete,
    /// These records cannot be read and are not used; the list replaces the one before.
    Bad(Vec<BadRecord>),
    /// The store does not answer; the peers stay as they are.
    RegistryUnavailable(String),
    /// The store answers again.
    RegistryAvailable,
}

/// Why a lease manager could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// There is no configuration yet; somebody has to write it.
    #[error("flannel config not found in {place}; write it with: {how}")]
    NotConfigured {
        /// Where it was looked for.
        place: String,
        /// How to write it.
        how: String,
    },
    /// The configuration is wrong; somebody has to correct it.
    #[error("{error}; correct it in {place} with: {how}")]
    Config {
        /// What is wrong.
        error: ConfigError,
        /// Where it is.
        place: String,
        /// How to write it.
        how: String,
    },
    /// No subnet is free; the network needs a larger range, or hosts must leave.
    #[error("out of subnets: all of {0} are leased")]
    OutOfSubnets(String),
    /// The registry failed; the same call may succeed later.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}
