//! What a network tells the program that runs it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::{ObjectFailure, PeerFailure};
use crate::external::ExternalInterface;
use crate::registry::BadRecord;
use crate::{Lease, NetworkConfig, SubnetKey};

/// Something happened that an operator or orchestrator may want to know.
///
/// Each is told once, when it happens; the state it leads to is in [`NetworkStatus`](crate::NetworkStatus).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum NetworkEvent {
    /// The network cannot go on yet and tries again after the pause: there is no configuration, or the registry does
    /// not answer.
    Waiting {
        /// What it waits for.
        phase: Phase,
        /// What is in the way.
        reason: String,
        /// How long the next attempt is away.
        retry_in: Duration,
    },
    /// The configuration was read.
    Configured(Arc<NetworkConfig>),
    /// The configuration is another one now, and the network runs by it; see [`Running::config`](crate::Running::config).
    Reconfigured(Arc<NetworkConfig>),
    /// The registry's configuration is another one and is not used, for this reason: it cannot be read, is wrong, or
    /// takes a restart. The network runs on by the one before.
    ConfigRefused(String),
    /// The host has a lease: a first one, or another one in place of one that was lost.
    LeaseAcquired(Lease),
    /// The lease is good; the next renewal comes after this time.
    RenewalIn(Duration),
    /// The lease is a reservation, which is not renewed.
    LeasePermanent,
    /// The lease was renewed, for this time.
    LeaseRenewed(Duration),
    /// The lease could not be renewed; the next attempt comes after the pause.
    RenewalFailed {
        /// What went wrong.
        reason: String,
        /// How long the next attempt is away.
        retry_in: Duration,
    },
    /// Somebody else wrote the record of the lease; it is being put right, and the host keeps its subnet.
    LeaseDisputed(String),
    /// The lease is lost. Traffic goes on; the same subnet is asked for again.
    LeaseLost(String),
    /// The external interface, its address or its MTU is another one now.
    ExternalChanged(ExternalInterface),
    /// The external interface or its only address is gone, for this reason. The network continues with what it knew.
    ExternalLost(String),
    /// The lease says something new about the host, which the peers hear.
    LeasePublished(Lease),
    /// The largest packet, in bytes, that a container may send is another one now; see
    /// [`Running::mtu`](crate::Running::mtu).
    MtuChanged(u32),
    /// All peers are known, or remembered, and the host was made as it should be, for the first time.
    Ready,
    /// The registry does not answer, for this reason, and the network runs with the peers that are remembered.
    PeersFromCache(String),
    /// The registry told all peers: the network runs no longer on what was remembered.
    PeersConfirmed,
    /// So many peers are said to have left at once that it is doubted. They are kept until they are told again, at most
    /// for a time.
    PeersHeld {
        /// How many.
        peers: usize,
        /// The longest time.
        at_most: Duration,
    },
    /// No peer is held any more.
    HoldEnded {
        /// How many were let go because their time was over.
        gone: usize,
    },
    /// A host joined the network.
    PeerJoined(Arc<Lease>),
    /// A host says something new about itself.
    PeerChanged(Arc<Lease>),
    /// A host left the network.
    PeerLeft(SubnetKey),
    /// A record in the registry cannot be read and is not used.
    BadRecord(BadRecord),
    /// Something on the host was not as it had been left, and was put right.
    Repaired {
        /// How many objects.
        objects: usize,
        /// What drew the attention to it.
        noticed: String,
    },
    /// An object cannot be made as it should be; it is tried again.
    ObjectFailed(ObjectFailure),
    /// This backend cannot reach a peer.
    PeerUnreachable(PeerFailure),
    /// The registry stopped to answer. Traffic goes on with what is known.
    RegistryUnavailable(String),
    /// The registry answers again.
    RegistryAvailable,
    /// The receiver of the events was too slow and missed this many.
    Missed(u64),
}

/// What a network does before it carries traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// Reading the network configuration.
    Configuration,
    /// Looking for the lease this host held before.
    PreviousLease,
    /// Getting a lease.
    Lease,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configuration => "reading the network configuration",
            Self::PreviousLease => "looking for the lease held before",
            Self::Lease => "getting a lease",
        })
    }
}
