//! The interface to a data plane.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;

use crate::config::{BackendConfig, NetworkConfig};
use crate::descriptor_store::DescriptorStore;
use crate::external::ExternalInterface;
use crate::facts::{DeviceFacts, TrafficCounters};
use crate::family::IpFamilies;
use crate::json::Json;
use crate::lease::{BackendType, Lease, LeaseAttrs, PublicAddrs};
use crate::peers::{Dirty, PeerSet};
use crate::plan::{Plan, PlanRequest};
use crate::registry::BoxError;
use crate::report::SyncReport;

/// Carries the traffic of one network on one host.
///
/// A network opens its backend before it acquires a lease, because [`attrs`](Self::attrs) becomes part of the lease.
/// Implementations use [`#[async_trait]`](macro@crate::async_trait): without it an `async fn` in the `impl` block doesn't compile. Each
/// implementation keeps the following promises, which the contract suite in `flannel-testing` checks:
///
/// 1. **Level-triggered.** After `sync` the host matches exactly these peers, whatever its state was before, except for
///    the failures in the report. `wait_for_drift` detects changes made by others, and the next `sync` repairs them.
/// 2. **Idempotent.** A `sync` that finds everything in order writes nothing, even after a restart. A backend that can't
///    read its objects back, or whose objects end with the process, documents it and creates them again.
/// 3. **Dirty peers are a hint.** `Dirty::All` is always correct and makes the backend compare the whole host; any other
///    value names each peer that changed since the last call.
/// 4. **No early removal.** While the peers are incomplete the backend removes nothing that could still be right.
/// 5. **Failures are isolated.** A failed object doesn't delay others. Each report lists it, and the peers that wait for
///    it, until it is written; the backend retries it with growing delays and reports the next attempt. Each report also
///    lists the peers that can't be reached at all.
/// 6. **Ownership.** The backend never touches objects that it doesn't own; its docs define what it owns.
/// 7. **Drop keeps.** Dropping the backend removes nothing that can outlive it. Only `remove` does, and it leaves
///    nothing.
/// 8. **Attributes are stable.** `attrs` and `mtu` change only through `update_interface`, and stay the same after a
///    restart with the attributes of the previous lease. `mtu` doesn't exceed the interface's.
/// 9. **Option errors are named.** An unusable option is a [`BackendError::Config`] that names it, and nothing is created.
///
/// A backend that only counts peers:
///
/// ```
/// use std::time::Instant;
/// use flannel_core::{
///     Backend, BackendAttrs, BackendError, BackendType, Dirty, ExternalInterface, Lease, LeaseAttrs, PeerSet,
///     SyncReport, SyncRequest, async_trait,
/// };
///
/// #[derive(Default)]
/// struct Counting(usize);
///
/// #[async_trait]
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
    /// Returns what the backend adds to the host's lease.
    fn attrs(&self) -> BackendAttrs;

    /// Returns the largest packet that a container may send, in bytes.
    fn mtu(&self) -> u32;

    /// Switches to another interface, or to another address or MTU of the same one. `attrs` and `mtu` reflect it at once.
    /// The next `sync` updates the host and interrupts each peer as briefly as possible.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the backend can't use the interface; its state doesn't change.
    fn update_interface(&mut self, external: &ExternalInterface) -> Result<(), BackendError>;

    /// Switches to another configuration with the same address families. The backend creates what the new one needs before
    /// it removes what only the old one needed, where the kernel allows both at once. The network then calls `configure`,
    /// and `sync` with all peers. By default a backend requires a restart.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the backend can't use the configuration, or requires a restart; its state doesn't change.
    fn reconfigure(&mut self, request: OpenRequest<'_>) -> Result<(), BackendError> {
        let name = &request.config.backend.name;
        Err(BackendError::Host(format!("the backend {name} requires a restart to apply this network config")))
    }

    /// Prepares the host for its own lease. The network calls it before the first `sync`, and again when the lease
    /// changes. The lease may contain other addresses than the interface has, if the manager overrides them.
    ///
    /// # Errors
    ///
    /// [`BackendError`]; the caller decides whether to retry.
    fn configure(&mut self, own: &Lease) -> Result<(), BackendError>;

    /// Reconciles the host with these peers. Blocks while the kernel works.
    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport;

    /// Waits until an object of the backend may have changed on the host, and describes the change. The next `sync` checks
    /// it. Cancel safe: dropping the future loses no change.
    async fn wait_for_drift(&mut self) -> String;

    /// Describes the devices that carry the traffic. The network calls it after each pass.
    fn devices(&self) -> Vec<DeviceFacts> {
        Vec::new()
    }

    /// Returns the counters and per-peer facts, if the backend has any. The network calls it after each pass.
    fn traffic(&self) -> Option<Arc<dyn TrafficCounters>> {
        None
    }

    /// Removes everything that the backend created.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if an object remains.
    fn remove(&mut self) -> Result<(), BackendError>;
}

/// The part of a lease that the backend provides.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendAttrs {
    /// The backend's name in the lease.
    pub backend_type: BackendType,
    /// The data that peers need for IPv4.
    pub data: Option<Json>,
    /// The data that peers need for IPv6.
    pub v6_data: Option<Json>,
}

impl BackendAttrs {
    /// Creates the attributes of a backend whose peers need no data.
    #[must_use]
    pub fn new(backend_type: BackendType) -> Self {
        Self { backend_type, data: None, v6_data: None }
    }

    /// Sets the data that peers need for IPv4.
    #[must_use]
    pub fn with_data(self, data: Option<Json>) -> Self {
        Self { data, ..self }
    }

    /// Sets the data that peers need for IPv6.
    #[must_use]
    pub fn with_v6_data(self, v6_data: Option<Json>) -> Self {
        Self { v6_data, ..self }
    }

    /// Completes the attributes of a lease with the host's public addresses.
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

/// The arguments of [`Backend::sync`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SyncRequest<'a> {
    /// The peers.
    pub peers: &'a PeerSet,
    /// The peers that may have changed since the last call.
    pub dirty: &'a Dirty,
    /// The current time, for the delays between attempts.
    pub now: Instant,
}

impl<'a> SyncRequest<'a> {
    /// Creates a request.
    #[must_use]
    pub fn new(peers: &'a PeerSet, dirty: &'a Dirty, now: Instant) -> Self {
        Self { peers, dirty, now }
    }
}

/// The reasons why a backend can't work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// There is no such backend; change the configuration.
    #[error("unknown backend type: {0}")]
    UnknownType(String),
    /// An option of the backend is invalid; correct the configuration.
    #[error("error decoding {backend} backend config: {reason}")]
    Config {
        /// The backend.
        backend: &'static str,
        /// The cause, with the option's name.
        reason: String,
    },
    /// The host lacks something that the backend needs, such as a capability, an address or a kernel feature.
    #[error("{0}")]
    Host(String),
    /// The kernel refused an operation; the same call may succeed later.
    #[error("{object}")]
    Kernel {
        /// The operation and its object.
        object: String,
        /// The kernel's error.
        source: BoxError,
    },
}

impl BackendConfig {
    /// Checks that the configuration is for the backend of this name, in any case. Openers call this first.
    ///
    /// # Errors
    ///
    /// [`BackendError::UnknownType`] with both names.
    ///
    /// ```
    /// # use flannel_core::NetworkConfig;
    /// let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}"#)?;
    /// config.backend.check_type("udp")?;
    /// let error = config.backend.check_type("vxlan").unwrap_err();
    /// assert_eq!(error.to_string(), "unknown backend type: udp (available: vxlan)");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn check_type(&self, name: &str) -> Result<(), BackendError> {
        if self.name.eq_ignore_ascii_case(name) {
            return Ok(());
        }
        Err(BackendError::UnknownType(format!("{} (available: {name})", self.name)))
    }
}

/// Opens the backend of a network.
///
/// A closure with the right signature is an opener:
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
    /// Opens the backend and creates its device, if it has one. An opener refuses the config of another backend with
    /// [`BackendError::UnknownType`].
    ///
    /// # Errors
    ///
    /// [`BackendError`].
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError>;

    /// Returns the address families in which the backend reaches the peers of this network. The host's lease contains the
    /// addresses of these families. By default they are those of the overlay; a backend that carries one family inside the
    /// other overrides this.
    fn underlay(&self, config: &NetworkConfig) -> IpFamilies {
        config.families()
    }

    /// Returns the changes that a start and one pass would make to this host in its current state. Writes nothing, and
    /// doesn't need a running network.
    ///
    /// # Errors
    ///
    /// [`BackendError`], also if the backend can't predict its changes.
    fn plan(&self, request: PlanRequest<'_>) -> Result<Plan, BackendError> {
        let name = &request.config.backend.name;
        Err(BackendError::Host(format!("the backend {name} can't predict its changes")))
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

/// The arguments of [`OpenBackend::open`] and [`Backend::reconfigure`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct OpenRequest<'a> {
    /// The network configuration.
    pub config: &'a NetworkConfig,
    /// The interface that carries the traffic between hosts.
    pub external: &'a ExternalInterface,
    /// The attributes of the host's previous lease. If the backend can keep them, peers have nothing to update.
    pub before: Option<&'a LeaseAttrs>,
    /// A directory that belongs to this network alone and persists across restarts, for secrets such as a private key. The
    /// caller creates it, accessible by its owner only. Without one the backend stores nothing.
    pub state_dir: Option<&'a Path>,
    /// A store for file descriptors that persist across restarts, such as that of a device. Without one they are closed with
    /// the process.
    pub descriptors: Option<&'a Arc<dyn DescriptorStore>>,
}

impl<'a> OpenRequest<'a> {
    /// Creates a request of a host without a previous lease and without a state directory.
    #[must_use]
    pub fn new(config: &'a NetworkConfig, external: &'a ExternalInterface) -> Self {
        Self { config, external, before: None, state_dir: None, descriptors: None }
    }

    /// Adds the attributes of the host's previous lease, if it had one.
    #[must_use]
    pub fn with_before(self, before: Option<&'a LeaseAttrs>) -> Self {
        Self { before, ..self }
    }

    /// Adds a state directory, if there is one.
    #[must_use]
    pub fn with_state_dir(self, state_dir: Option<&'a Path>) -> Self {
        Self { state_dir, ..self }
    }

    /// Adds a store for file descriptors, if there is one.
    #[must_use]
    pub fn with_descriptors(self, descriptors: Option<&'a Arc<dyn DescriptorStore>>) -> Self {
        Self { descriptors, ..self }
    }
}
