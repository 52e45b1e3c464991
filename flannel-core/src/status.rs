//! What a network is doing, at one moment.

use std::time::Duration;

use crate::Lease;
use crate::backend::ObjectFailure;
use crate::registry::BadRecord;

/// The state of a network on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Which manager the leases come from.
    pub manager: String,
    /// What keeps the network from going on, while it is starting.
    pub waiting_for: Option<String>,
    /// The host's own lease. It stays here while a lost one is being asked for again.
    pub lease: Option<Lease>,
    /// Why the lease is not held at the moment.
    pub lease_lost: Option<String>,
    /// How many times somebody else wrote the record of the lease, which the host put right.
    pub lease_disputes: u64,
    /// What was found in it the last time.
    pub last_dispute: Option<String>,
    /// The largest packet, in bytes, that a container may send.
    pub mtu: Option<u32>,
    /// Whether all peers are known, or remembered, and the host was made as it should be for them.
    pub ready: bool,
    /// Why the peers are those that are remembered, and not those that the registry knows.
    pub recalled: Option<String>,
    /// The number of peers that are kept although they are said to have left, because too many left at once.
    pub held_peers: usize,
    /// The number of peers for which the host was last made as it should be.
    pub peers: usize,
    /// Why the registry is not heard at the moment.
    pub registry_silent: Option<String>,
    /// Records in the registry that cannot be read.
    pub bad_records: Vec<BadRecord>,
    /// Objects of the host that are not as they should be, and are tried again.
    pub failed: Vec<ObjectFailure>,
    /// Peers that the backend cannot reach.
    pub unreachable: Vec<ObjectFailure>,
    /// How many times the host was compared with what it should be.
    pub passes: u64,
    /// How many objects were found changed by somebody else and put right.
    pub repaired: u64,
    /// How long the last pass took.
    pub last_pass: Duration,
}
