//! The options of a network.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::backend::OpenBackend;
use crate::backoff::Backoff;
use crate::config::NetworkConfig;
use crate::damping::DampingOptions;
use crate::external::{ExternalChoice, ExternalInterface, ExternalUpdate};
use crate::family::IpFamilies;
use crate::manager::LeaseManager;
use crate::subnet::SubnetKey;

/// The parts and settings of a [`Network`](crate::Network).
#[non_exhaustive]
pub struct NetworkOptions {
    /// Provides the lease and the peers.
    pub manager: Arc<dyn LeaseManager>,
    /// Opens the backend that carries the traffic.
    pub backend: Box<dyn OpenBackend>,
    /// The interface through which hosts reach each other.
    pub external: ExternalInterface,
    /// Chooses that interface again once the configuration is known, which determines the required address families.
    pub choose_external: Option<ChooseExternal>,
    /// The changes of that interface, which the lease and the host follow. The changes of `choose_external` replace them.
    pub external_changes: BoxStream<'static, ExternalUpdate>,
    /// Whether the network applies a changed configuration at once. Otherwise it waits for
    /// [`Network::reload`](crate::Network::reload).
    pub follow_config: bool,
    /// A directory for secrets of the backend that persist across restarts; see
    /// [`OpenRequest::state_dir`](crate::OpenRequest::state_dir).
    pub state_dir: Option<PathBuf>,
    /// The subnet that this host held before, if it is known.
    pub previous: Option<SubnetKey>,
    /// The delays between attempts to start, and to reacquire a lost lease.
    pub retry: Backoff,
    /// The interval of full comparisons with the kernel, which don't depend on notifications.
    pub audit_every: Duration,
    /// When and for how long the network keeps peers that disappear in large numbers at once.
    pub damping: DampingOptions,
    /// The number of events that a slow receiver may lag behind before it misses the oldest. Each takes about 200 bytes of
    /// memory, used or not.
    pub event_backlog: usize,
    /// Seeds the random choices, for reproducible tests.
    pub seed: Option<u64>,
}

/// Chooses the external interface for a configuration and the address families that its backend needs, or returns the
/// reason why no interface fits.
pub type ChooseExternal =
    Box<dyn FnOnce(&NetworkConfig, IpFamilies) -> Result<ExternalChoice, String> + Send>;

impl NetworkOptions {
    /// Creates options from the required parts, with defaults for the rest.
    pub fn new(
        manager: impl LeaseManager,
        backend: impl OpenBackend + 'static,
        external: ExternalInterface,
    ) -> Self {
        Self {
            manager: Arc::new(manager),
            backend: Box::new(backend),
            external,
            choose_external: None,
            external_changes: stream::pending().boxed(),
            follow_config: true,
            state_dir: None,
            previous: None,
            // Upstream polls for its configuration every second. The longest delay stays acceptable to an operator who
            // waits after repairing the registry.
            retry: Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(30) },
            audit_every: Duration::from_secs(60),
            damping: DampingOptions::default(),
            event_backlog: 4096,
            seed: None,
        }
    }
}

impl std::fmt::Debug for NetworkOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetworkOptions")
            .field("manager", &self.manager.describe())
            .field("external", &self.external)
            .finish_non_exhaustive()
    }
}
