//! What would be done to a host, told beforehand.

use serde::{Deserialize, Serialize};

use crate::backend::PeerFailure;
use crate::external::ExternalInterface;
use crate::peers::PeerSet;
use crate::{Lease, NetworkConfig};

/// What a start and a pass would do to a host as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plan {
    /// The writes, in the order in which they would be made.
    pub changes: Vec<PlannedChange>,
    /// The peers that would not be reached, and why.
    pub unreachable: Vec<PeerFailure>,
}

impl Plan {
    /// Adds what would be done besides.
    pub fn merge(&mut self, other: Self) {
        self.changes.extend(other.changes);
        self.unreachable.extend(other.unreachable);
    }
}

/// One write that would be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PlannedChange {
    /// What would be done.
    pub action: PlannedAction,
    /// To which object, such as `route 10.5.3.0/24 via 10.5.3.0`.
    pub object: String,
    /// What is there in its place, if anything is.
    pub instead_of: Option<String>,
}

impl PlannedChange {
    /// An object that would be put, or set.
    #[must_use]
    pub fn put(object: impl Into<String>, instead_of: Option<String>) -> Self {
        Self { action: PlannedAction::Put, object: object.into(), instead_of }
    }

    /// An object that would be removed.
    #[must_use]
    pub fn remove(object: impl Into<String>) -> Self {
        Self { action: PlannedAction::Remove, object: object.into(), instead_of: None }
    }
}

/// What would be done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PlannedAction {
    /// It would be made, or made so.
    Put,
    /// It would be removed.
    Remove,
}

/// For what a host is looked at.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct PlanRequest<'a> {
    /// The network.
    pub config: &'a NetworkConfig,
    /// The interface that carries the traffic between hosts.
    pub external: &'a ExternalInterface,
    /// The host's lease.
    pub own: &'a Lease,
    /// Who there is. Nothing is removed unless they are complete.
    pub peers: &'a PeerSet,
}

impl<'a> PlanRequest<'a> {
    /// Asks what this network would do.
    #[must_use]
    pub fn new(
        config: &'a NetworkConfig,
        external: &'a ExternalInterface,
        own: &'a Lease,
        peers: &'a PeerSet,
    ) -> Self {
        Self { config, external, own, peers }
    }
}
