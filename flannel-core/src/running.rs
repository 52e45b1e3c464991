//! The state that a network shares with its handles, and how it ends.

use std::sync::Arc;

use crate::backend::BackendError;
use crate::config::NetworkConfig;
use crate::lease::Lease;
use crate::manager::ManagerError;
use crate::status::Waiting;

/// The parameters of a network that carries traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Running {
    /// The host's lease.
    pub lease: Lease,
    /// The largest packet that a container may send, in bytes.
    pub mtu: u32,
    /// The network configuration.
    pub config: Arc<NetworkConfig>,
}

/// The progress of the task, for those who wait for it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// The number of requested reloads that are complete.
    pub(crate) reloaded: u64,
    /// Why and how the task ended.
    pub(crate) ended: Option<Ended>,
}

/// The end of a network's task.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    /// A handle shut it down, or all handles are gone.
    Shutdown,
    /// It failed with this error.
    Failed(String),
    /// It was dropped before it returned.
    Dropped,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shutdown => f.write_str("the network was shut down"),
            Self::Failed(reason) => f.write_str(reason),
            Self::Dropped => f.write_str("the task of the network was dropped"),
        }
    }
}

/// What remains on the host when a network ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shutdown {
    /// Keeps device, routes and lease: traffic continues, and the next start finds everything in place.
    Keep,
    /// Removes everything and releases the lease.
    Remove,
}

/// The reasons why a network never becomes ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotReady {
    /// The network's task failed; the text contains all causes.
    #[error("the network failed: {0}")]
    Failed(String),
    /// The network was shut down, or its task was dropped, before it was ready.
    #[error("{reason} before it was ready{}", waiting(.waiting_for.as_ref()))]
    Ended {
        /// The cause of the end.
        reason: String,
        /// What the network was waiting for at that time.
        waiting_for: Option<Waiting>,
    },
}

fn waiting(waiting_for: Option<&Waiting>) -> String {
    waiting_for.map_or_else(String::new, |waiting| format!(", while {}: {}", waiting.phase, waiting.reason))
}

/// The reasons why a network's task fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The backend can't work on this host or with this configuration.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// No interface meets the requirements of the configuration: see
    /// [`NetworkOptions::choose_external`](crate::NetworkOptions::choose_external).
    #[error("{0}")]
    External(String),
    /// No lease is available.
    #[error("failed to acquire lease")]
    Lease(#[source] ManagerError),
    /// Everything on the host was removed, but the lease was not released; it will expire.
    #[error("failed to release the lease")]
    Release(#[source] ManagerError),
}
