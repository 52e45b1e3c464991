//! The events of a network.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::NetworkConfig;
use crate::external::ExternalInterface;
use crate::lease::Lease;
use crate::registry::BadRecord;
use crate::report::{ObjectFailure, PeerFailure};
use crate::subnet::SubnetKey;

/// A change that an operator or an orchestrator may want to know.
///
/// The network emits each event once, when it happens, and a slow receiver may miss some. Programs that act on the state
/// read [`NetworkStatus`](crate::NetworkStatus) or follow [`Network::running`](crate::Network::running) instead.
///
/// ```
/// use std::time::Duration;
/// use flannel_core::NetworkEvent;
///
/// let event = NetworkEvent::LeaseRenewed(Duration::from_secs(86_400));
/// assert_eq!(event.to_string(), "lease renewed for 86400s");
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum NetworkEvent {
    /// The start or the acquisition of a lease failed and will be retried, for example because there is no configuration or
    /// the registry doesn't respond.
    Waiting {
        /// The step that failed.
        phase: Phase,
        /// The cause.
        reason: String,
        /// The time until the next attempt.
        retry_in: Duration,
    },
    /// The network read its configuration.
    Configured(Arc<NetworkConfig>),
    /// The configuration changed and the network applied it; see [`Running::config`](crate::Running::config).
    Reconfigured(Arc<NetworkConfig>),
    /// The registry's configuration changed and can't be applied, for this reason: it is malformed, invalid, or requires a
    /// restart. The previous one stays in effect.
    ConfigRefused(String),
    /// The host acquired a lease: its first, or a new one after it lost one.
    LeaseAcquired(Lease),
    /// The lease is valid; the time until its next renewal.
    RenewalIn(Duration),
    /// The lease is a reservation, which needs no renewal.
    LeasePermanent,
    /// The lease was renewed, for this time.
    LeaseRenewed(Duration),
    /// A renewal failed and will be retried.
    RenewalFailed {
        /// The cause.
        reason: String,
        /// The time until the next attempt.
        retry_in: Duration,
    },
    /// Another host or program wrote the record of the lease. The host restores it and keeps its subnet.
    LeaseDisputed(String),
    /// The lease was lost, for this reason. Traffic continues, and the host requests the same subnet again.
    LeaseLost(String),
    /// The external interface, its address or its MTU changed.
    ExternalChanged(ExternalInterface),
    /// The external interface or its only address is gone, for this reason. The network continues with what it knew.
    ExternalLost(String),
    /// The record of the lease changed; peers receive it.
    LeasePublished(Lease),
    /// The largest packet that a container may send changed, in bytes; see [`Running::mtu`](crate::Running::mtu).
    MtuChanged(u32),
    /// All peers are known, from the registry or a cache, and the host was reconciled for the first time.
    Ready,
    /// The registry doesn't respond, for this reason, and the network runs with cached peers.
    PeersFromCache(String),
    /// The registry listed all peers after the network had run with cached ones.
    PeersConfirmed,
    /// So many peers disappeared at once that a registry fault is likely. The network keeps them until they reappear, at
    /// most for a time. A [`PeerHeld`](Self::PeerHeld) for each peer precedes this event.
    PeersHeld {
        /// The number of held peers.
        peers: usize,
        /// The longest time for which the network keeps them.
        at_most: Duration,
    },
    /// No peer is held any more.
    HoldEnded {
        /// The number of peers that didn't reappear in time and were removed.
        gone: usize,
    },
    /// A host joined the network.
    PeerJoined(Arc<Lease>),
    /// The lease of a peer changed.
    PeerChanged(Arc<Lease>),
    /// A peer left the network.
    PeerLeft(SubnetKey),
    /// The lease of a peer disappeared, and the network keeps the peer because too many disappeared at once. If the peer
    /// was reported as left before, it is back in use.
    PeerHeld(Arc<Lease>),
    /// A record in the registry is malformed and ignored.
    BadRecord(BadRecord),
    /// Objects on the host had drifted and were repaired.
    Repaired {
        /// The number of objects.
        objects: usize,
        /// The cause of the check.
        noticed: String,
    },
    /// An object can't be written; the network retries it.
    ObjectFailed(ObjectFailure),
    /// The backend can't reach a peer.
    PeerUnreachable(PeerFailure),
    /// The registry stopped responding, for this reason. Traffic continues with the known state.
    RegistryUnavailable(String),
    /// The registry responds again.
    RegistryAvailable,
    /// The receiver was too slow and missed this many events.
    Missed(u64),
}

impl fmt::Display for NetworkEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting { phase, reason, retry_in } => {
                write!(f, "{phase}: {reason}; retrying in {retry_in:?}")
            }
            Self::Configured(config) => write!(f, "network config read: backend={}", config.backend.name),
            Self::Reconfigured(config) => {
                write!(f, "network config applied: backend={}", config.backend.name)
            }
            Self::ConfigRefused(reason) => write!(f, "network config refused: {reason}"),
            Self::LeaseAcquired(lease) => write!(f, "lease acquired: {}", lease.subnet),
            Self::RenewalIn(time) => write!(f, "lease renewal in {time:?}"),
            Self::LeasePermanent => f.write_str("lease is a reservation and needs no renewal"),
            Self::LeaseRenewed(time) => write!(f, "lease renewed for {time:?}"),
            Self::RenewalFailed { reason, retry_in } => {
                write!(f, "lease renewal failed: {reason}; retrying in {retry_in:?}")
            }
            Self::LeaseDisputed(what) => write!(f, "lease disputed: {what}"),
            Self::LeaseLost(reason) => write!(f, "lease lost: {reason}"),
            Self::ExternalChanged(external) => {
                write!(f, "external interface changed: {} at {}", external.name, external.public)
            }
            Self::ExternalLost(reason) => write!(f, "external interface lost: {reason}"),
            Self::LeasePublished(lease) => {
                write!(f, "lease published: {} at {}", lease.subnet, lease.attrs.public)
            }
            Self::MtuChanged(mtu) => write!(f, "MTU for containers changed to {mtu}"),
            Self::Ready => f.write_str("network is ready"),
            Self::PeersFromCache(reason) => write!(f, "running with cached peers: {reason}"),
            Self::PeersConfirmed => f.write_str("registry confirmed the peers"),
            Self::PeersHeld { peers, at_most } => write!(
                f,
                "{peers} peers disappeared at once; keeping them for up to {at_most:?} (suspected registry fault)"
            ),
            Self::HoldEnded { gone: 0 } => f.write_str("all held peers reappeared"),
            Self::HoldEnded { gone } => write!(f, "{gone} held peers didn't reappear and were removed"),
            Self::PeerJoined(lease) => write!(f, "peer joined: {} at {}", lease.subnet, lease.attrs.public),
            Self::PeerChanged(lease) => write!(f, "peer changed: {} at {}", lease.subnet, lease.attrs.public),
            Self::PeerLeft(subnet) => write!(f, "peer left: {subnet}"),
            Self::PeerHeld(lease) => write!(f, "peer held: {} at {}", lease.subnet, lease.attrs.public),
            Self::BadRecord(record) => write!(f, "malformed record ignored: {record}"),
            Self::Repaired { objects, noticed } => write!(f, "{objects} objects repaired: {noticed}"),
            Self::ObjectFailed(failure) => write!(f, "{failure}; retrying"),
            Self::PeerUnreachable(failure) => write!(f, "{failure}"),
            Self::RegistryUnavailable(reason) => write!(f, "registry unavailable: {reason}"),
            Self::RegistryAvailable => f.write_str("registry available again"),
            Self::Missed(events) => write!(f, "{events} events missed"),
        }
    }
}

/// A step of the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// Reading the network configuration.
    Configuration,
    /// Looking up the lease that the host held before.
    PreviousLease,
    /// Acquiring a lease.
    Lease,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configuration => "reading the network config",
            Self::PreviousLease => "looking up the previous lease",
            Self::Lease => "acquiring a lease",
        })
    }
}
