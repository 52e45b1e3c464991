//! The seam to whatever carries the traffic.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::descriptor_store::DescriptorStore;
use crate::external::ExternalInterface;
use crate::family::IpFamilies;
use crate::peers::{Dirty, PeerSet};
use crate::plan::{Plan, PlanRequest};
use crate::registry::BoxError;
use crate::status::TrafficCounters;
use crate::{BackendType, Json, Lease, LeaseAttrs, NetworkConfig, PublicAddrs, SubnetKey};

/// Carries traffic between hosts, for one network on one host.
///
/// A backend is opened before there is a lease, because what it says in [`attrs`](Self::attrs) goes into the lease.
/// Every implementation keeps these promises; the contract suite in `flannel-testing` checks them on any of them:
///
/// 1. **Level, not edge.** After `sync` the host is as it should be for exactly these peers, whatever it was before,
///    as far as the report names no failure. What somebody undoes is noticed by `wait_for_drift`, and made again.
/// 2. **Idempotent.** A `sync` that finds everything in order writes nothing; that holds too for what an earlier run
///    left. A backend that cannot look, or whose objects end with it, says so in its docs and makes them again.
/// 3. **The hint is a hint.** `Dirty::All` is always right, and has the whole host looked at again; any other value
///    names every peer that changed since the last call.
/// 4. **Nothing early.** Before the peers are complete nothing is removed that could still be right.
/// 5. **One failure is one failure.** An object that cannot be written delays no other one. It is in every report until
///    it is written, with the peers that wait for it, is tried again with growing pauses, and the report says when. So
///    is a peer in every report that cannot be reached at all.
/// 6. **Nothing foreign.** What the backend did not make, by the rules of ownership in its docs, is never touched.
/// 7. **Dropping keeps.** To drop a backend removes nothing that can outlive it; only `remove` does, and leaves nothing.
/// 8. **Words stand.** What `attrs` and `mtu` say changes by `update_interface` only, and is the same again for a host that
///    starts anew with what its lease said before. `mtu` is no larger than the interface's.
/// 9. **Wrong options are named.** An option that cannot be used is a [`BackendError::Config`] that names it, and
///    nothing is made with it.
///
/// One that carries nothing, and only counts whom it would reach:
///
/// ```
/// use std::time::Instant;
/// use flannel_core::{
///     Backend, BackendAttrs, BackendError, BackendType, Dirty, ExternalInterface, Lease, LeaseAttrs, PeerSet,
///     SyncReport, SyncRequest,
/// };
///
/// #[derive(Default)]
/// struct Counting(usize);
///
/// #[async_trait::async_trait]
/// impl Backend for Counting {
///     fn attrs(&self) -> BackendAttrs {
///         BackendAttrs::new(BackendType::UNNAMED)
///     }
///     fn mtu(&self) -> u32 {
///         1500
///     }
///     fn update_interface(&mut self, _: &ExternalInterface) -> Result<(), BackendError> {
///         Ok(())
///     }
///     fn configure(&mut self, _own: &Lease) -> Result<(), BackendError> {
///         Ok(())
///     }
///     fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
///         let mut report = SyncReport::default();
///         report.written = request.peers.len().abs_diff(std::mem::replace(&mut self.0, request.peers.len()));
///         report
///     }
///     async fn wait_for_drift(&mut self) -> String {
///         std::future::pending().await
///     }
///     fn remove(&mut self) -> Result<(), BackendError> {
///         Ok(())
///     }
/// }
///
/// let peer = Lease::new("10.5.2.0-24".parse()?, LeaseAttrs::from_record(r#"{"PublicIP":"192.168.64.2"}"#)?);
/// let peers = PeerSet::all_of([peer]);
/// let mut backend: Box<dyn Backend> = Box::new(Counting::default());
/// let mut sync = || backend.sync(SyncRequest::new(&peers, &Dirty::All, Instant::now()));
/// assert_eq!(sync().written, 1);
/// assert_eq!(sync().written, 0, "promise 2");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[async_trait]
pub trait Backend: Send {
    /// Says what goes into the lease.
    fn attrs(&self) -> BackendAttrs;

    /// Returns the largest packet, in bytes, that a container may send.
    fn mtu(&self) -> u32;

    /// Takes in that the interface, its address or its MTU is another one than the backend was opened with. From now
    /// on `attrs` and `mtu` answer for it; the next `sync` makes the host so, without losing a peer for longer than it
    /// must.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the backend cannot work with it; then everything stays as it was.
    fn update_interface(&mut self, external: &ExternalInterface) -> Result<(), BackendError>;

    /// Takes in that the network has another configuration than the backend was opened with, for the same families.
    /// What the new one asks for is made before what only the old one asked for is removed, where the kernel allows
    /// both at once. `configure` and a `sync` with all peers follow.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the backend cannot work with it, or cannot come to it without a restart, as one cannot that
    /// does not implement this; then everything stays as it was.
    fn reconfigure(&mut self, request: OpenRequest<'_>) -> Result<(), BackendError> {
        let name = &request.config.backend.name;
        Err(BackendError::Host(format!("to go to this configuration of {name} takes a restart")))
    }

    /// Makes the host ready for its own lease. Called once before the first `sync`, and again when the lease changes.
    ///
    /// # Errors
    ///
    /// [`BackendError`]; the caller decides whether to try again.
    fn configure(&mut self, own: &Lease) -> Result<(), BackendError>;

    /// Makes the host as it should be for these peers. Blocks while the kernel works.
    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport;

    /// Waits until something on the host may have changed that the backend looks after, and says what. The next
    /// `sync` looks again. May be dropped at any time without losing a change.
    async fn wait_for_drift(&mut self) -> String;

    /// Describes the devices through which the traffic goes, for whoever looks at the host. Asked after each pass.
    fn devices(&self) -> Vec<DeviceFacts> {
        Vec::new()
    }

    /// Returns what counts the traffic, if anything does. Asked after each pass, like `devices`.
    fn traffic(&self) -> Option<Arc<dyn TrafficCounters>> {
        None
    }

    /// Removes everything that the backend made.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if something is left.
    fn remove(&mut self) -> Result<(), BackendError>;
}

/// What a backend says in the lease of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendAttrs {
    /// Its name there.
    pub backend_type: BackendType,
    /// What peers need to know for IPv4.
    pub data: Option<Json>,
    /// What peers need to know for IPv6.
    pub v6_data: Option<Json>,
}

impl BackendAttrs {
    /// A backend of this name that peers need to know nothing of.
    #[must_use]
    pub fn new(backend_type: BackendType) -> Self {
        Self { backend_type, data: None, v6_data: None }
    }

    /// Adds what peers need to know for IPv4, if there is anything.
    #[must_use]
    pub fn with_data(self, data: Option<Json>) -> Self {
        Self { data, ..self }
    }

    /// Adds what peers need to know for IPv6, if there is anything.
    #[must_use]
    pub fn with_v6_data(self, v6_data: Option<Json>) -> Self {
        Self { v6_data, ..self }
    }

    /// Completes them to what the lease of a host says.
    #[must_use]
    pub fn at(self, public: PublicAddrs) -> LeaseAttrs {
        LeaseAttrs {
            public,
            backend_type: self.backend_type,
            backend_data: self.data,
            backend_v6_data: self.v6_data,
            node: None,
        }
    }
}

/// What `sync` is asked for.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SyncRequest<'a> {
    /// Who there is.
    pub peers: &'a PeerSet,
    /// Who may have changed since the last call.
    pub dirty: &'a Dirty,
    /// The time, for the pauses between attempts.
    pub now: Instant,
}

impl<'a> SyncRequest<'a> {
    /// Asks for these peers.
    #[must_use]
    pub fn new(peers: &'a PeerSet, dirty: &'a Dirty, now: Instant) -> Self {
        Self { peers, dirty, now }
    }
}

/// What `sync` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SyncReport {
    /// How many objects were written.
    pub written: usize,
    /// How many objects were removed.
    pub removed: usize,
    /// How many objects were not as they had been left.
    pub drifted: usize,
    /// What could not be done, and waits.
    pub failed: Vec<ObjectFailure>,
    /// Peers for whom something is missing that is tried again, and what. All of them, not only those that changed.
    pub pending: Vec<PeerFailure>,
    /// Peers that this backend cannot reach, and why. All of them, not only those that changed.
    pub unreachable: Vec<PeerFailure>,
    /// How long until the first of the failed objects may be tried again.
    pub retry_in: Option<Duration>,
}

impl SyncReport {
    /// Adds up what two parts of a pass did.
    pub fn merge(&mut self, other: Self) {
        self.written += other.written;
        self.removed += other.removed;
        self.drifted += other.drifted;
        self.failed.extend(other.failed);
        self.pending.extend(other.pending);
        self.unreachable.extend(other.unreachable);
        self.retry_in = [self.retry_in, other.retry_in].into_iter().flatten().min();
    }
}

/// One object that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ObjectFailure {
    /// The object, such as `route 10.5.3.0/24 via 10.5.3.0`.
    pub object: String,
    /// What is wrong.
    pub reason: String,
}

impl ObjectFailure {
    /// Says what is wrong with an object.
    #[must_use]
    pub fn new(object: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { object: object.into(), reason: reason.into() }
    }
}

/// One peer that is not reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct PeerFailure {
    /// Which one.
    pub peer: SubnetKey,
    /// What is wrong.
    pub reason: String,
}

impl PeerFailure {
    /// Says why a peer is not reached.
    #[must_use]
    pub fn new(peer: SubnetKey, reason: impl Into<String>) -> Self {
        Self { peer, reason: reason.into() }
    }
}

impl fmt::Display for PeerFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {}: {}", self.peer, self.reason)
    }
}

/// A device through which the traffic of a network goes.
///
/// ```
/// use flannel_core::DeviceFacts;
///
/// let mut device = DeviceFacts::new("flannel.1", "vxlan");
/// device.mtu = 1450;
/// assert_eq!((device.name.as_str(), device.vni), ("flannel.1", None));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct DeviceFacts {
    /// Its name.
    pub name: String,
    /// Its kind: `vxlan` or `tun`.
    pub kind: String,
    /// Its index.
    pub index: u32,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Its hardware address, if it has one.
    pub mac: Option<String>,
    /// The number of its VXLAN network.
    pub vni: Option<u32>,
    /// The UDP port at which the peers reach it.
    pub port: Option<u16>,
    /// This host's address, to which the peers send.
    pub local: Option<IpAddr>,
}

/// Why a backend cannot work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// There is no such backend; the configuration must name another one.
    #[error("unknown backend type: {0}")]
    UnknownType(String),
    /// An option of the backend is wrong; the configuration must be corrected.
    #[error("error decoding {backend} backend config: {reason}")]
    Config {
        /// The backend.
        backend: &'static str,
        /// What is wrong, with the option's name.
        reason: String,
    },
    /// The host lacks what the backend needs, as the text says: a capability, an address, a kernel feature.
    #[error("{0}")]
    Host(String),
    /// The kernel refused; the same call may succeed later.
    #[error("{object}")]
    Kernel {
        /// What was being done, to which object.
        object: String,
        /// The kernel's answer.
        source: BoxError,
    },
}

/// Opens the backend that a configuration asks for.
///
/// Closures of the right shape are openers:
///
/// ```
/// use flannel_core::{Backend, BackendError, OpenBackend, OpenRequest};
///
/// fn opener() -> impl OpenBackend {
///     |request: OpenRequest<'_>| -> Result<Box<dyn Backend>, BackendError> {
///         Err(BackendError::UnknownType(request.config.backend.name.clone()))
///     }
/// }
/// # let _ = opener();
/// ```
pub trait OpenBackend: Send {
    /// Opens a backend, making its device if it has one.
    ///
    /// # Errors
    ///
    /// [`BackendError`].
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError>;

    /// Returns the address families in which the backend reaches the peers of this network: those of the overlay, unless
    /// the backend can carry one family in the other. The lease then contains the addresses of these families.
    fn underlay(&self, config: &NetworkConfig) -> IpFamilies {
        config.families()
    }

    /// Tells what a start and a pass would do to this host as it is now. Writes nothing, and needs no running network:
    /// what a running one left is there, and counts.
    ///
    /// # Errors
    ///
    /// [`BackendError`], also if the backend cannot tell.
    fn plan(&self, request: PlanRequest<'_>) -> Result<Plan, BackendError> {
        let name = &request.config.backend.name;
        Err(BackendError::Host(format!("the backend {name} cannot tell beforehand what it would do")))
    }
}

impl<F> OpenBackend for F
where
    F: Fn(OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> + Send,
{
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        self(request)
    }
}

/// What a backend is opened with.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct OpenRequest<'a> {
    /// The network.
    pub config: &'a NetworkConfig,
    /// The interface that carries the traffic between hosts.
    pub external: &'a ExternalInterface,
    /// The attributes of the host's previous lease, if it had one. A backend that keeps them costs the peers nothing.
    pub before: Option<&'a LeaseAttrs>,
    /// A directory that belongs to this network alone and lasts across restarts, for what must not change then, such as a
    /// private key. The caller creates it, accessible by its owner only. Without one a backend keeps nothing.
    pub state_dir: Option<&'a Path>,
    /// A store for descriptors that last across restarts, such as those of a device. Without one they end with the process.
    pub descriptors: Option<&'a Arc<dyn DescriptorStore>>,
}

impl<'a> OpenRequest<'a> {
    /// Asks for the network's backend, on a host that had no lease before.
    #[must_use]
    pub fn new(config: &'a NetworkConfig, external: &'a ExternalInterface) -> Self {
        Self { config, external, before: None, state_dir: None, descriptors: None }
    }

    /// Adds what the host's lease said before, if there was one.
    #[must_use]
    pub fn with_before(self, before: Option<&'a LeaseAttrs>) -> Self {
        Self { before, ..self }
    }

    /// Adds a directory that lasts across restarts, if there is one.
    #[must_use]
    pub fn with_state_dir(self, state_dir: Option<&'a Path>) -> Self {
        Self { state_dir, ..self }
    }

    /// Adds a store for descriptors, if there is one.
    #[must_use]
    pub fn with_descriptors(self, descriptors: Option<&'a Arc<dyn DescriptorStore>>) -> Self {
        Self { descriptors, ..self }
    }
}
