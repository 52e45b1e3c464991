//! The changes that a backend would make to a host.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::NetworkConfig;
use crate::external::ExternalInterface;
use crate::lease::Lease;
use crate::peers::PeerSet;
use crate::report::PeerFailure;

/// The changes that a start and one pass would make to a host in its current state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// The changes, in the order in which they would be made.
    pub changes: Vec<PlannedChange>,
    /// The peers that would not be reachable.
    pub unreachable: Vec<PeerFailure>,
}

impl Plan {
    /// Adds the changes of another part.
    pub fn merge(&mut self, other: Self) {
        self.changes.extend(other.changes);
        self.unreachable.extend(other.unreachable);
    }
}

/// One planned write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PlannedChange {
    /// The kind of write.
    pub action: PlannedAction,
    /// The object, such as `route 10.5.3.0/24 via 10.5.3.0`.
    pub object: String,
    /// The existing object that it would replace.
    pub instead_of: Option<String>,
}

impl PlannedChange {
    /// Plans to write an object, and to replace an existing one, if there is one.
    #[must_use]
    pub fn put(object: impl Into<String>, instead_of: Option<String>) -> Self {
        Self { action: PlannedAction::Put, object: object.into(), instead_of }
    }

    /// Plans to remove an object.
    #[must_use]
    pub fn remove(object: impl Into<String>) -> Self {
        Self { action: PlannedAction::Remove, object: object.into(), instead_of: None }
    }
}

/// The kind of a planned write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PlannedAction {
    /// Create or change the object.
    Put,
    /// Remove the object.
    Remove,
}

/// The network and the peers to plan for.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct PlanRequest<'a> {
    /// The network configuration.
    pub config: &'a NetworkConfig,
    /// The interface that carries the traffic between hosts.
    pub external: &'a ExternalInterface,
    /// The host's lease.
    pub own: &'a Lease,
    /// The peers. The plan removes nothing unless they are complete.
    pub peers: &'a PeerSet,
    /// The directory that the backend would be [opened](crate::OpenRequest::state_dir) with.
    pub state_dir: Option<&'a Path>,
}

impl<'a> PlanRequest<'a> {
    /// Creates a request without a state directory.
    #[must_use]
    pub fn new(
        config: &'a NetworkConfig,
        external: &'a ExternalInterface,
        own: &'a Lease,
        peers: &'a PeerSet,
    ) -> Self {
        Self { config, external, own, peers, state_dir: None }
    }

    /// Adds the backend's state directory, if it has one.
    #[must_use]
    pub fn with_state_dir(self, state_dir: Option<&'a Path>) -> Self {
        Self { state_dir, ..self }
    }
}
