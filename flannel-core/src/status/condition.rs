//! Faults of a network, by name.

use serde::{Deserialize, Serialize};

/// A fault that currently applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Condition {
    /// The kind of fault.
    pub name: ConditionName,
    /// The details, in one line.
    pub detail: String,
}

impl Condition {
    /// Creates a condition.
    #[must_use]
    pub fn new(name: ConditionName, detail: impl Into<String>) -> Self {
        Self { name, detail: detail.into() }
    }
}

/// The kinds of faults.
///
/// The names are stable; scripts and alerts may rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ConditionName {
    /// The network's task ended.
    Ended,
    /// The network hasn't carried traffic yet in this run.
    Starting,
    /// The lease was lost, and the host requests it again.
    LeaseLost,
    /// The external interface or its only address is gone; peers can't reach this host.
    ExternalLost,
    /// An object on the host couldn't be written, and will be retried.
    ObjectsFailed,
    /// The last pass was too long ago: the event loop doesn't run.
    Stalled,
    /// The firewall rules of the network aren't in place, and will be retried.
    FirewallFailed,
    /// The file with the subnet for the container runtime can't be written.
    SubnetFileFailed,
    /// The registry doesn't respond; traffic continues with the known state.
    RegistryUnavailable,
    /// The peers come from a cache, because the registry hasn't responded since the start.
    PeersFromCache,
    /// Records in the registry are malformed. Their hosts are unreachable, or keep their previous leases.
    BadRecords,
    /// The registry's configuration differs from the active one and can't be applied, or not without a restart.
    ConfigRefused,
    /// The backend can't reach some peers.
    PeersUnreachable,
    /// Many peers disappeared at once (suspected registry fault) and are held.
    PeersHeld,
    /// Probes: the underlay responds and the tunnel doesn't, for some peers.
    TunnelBlocked,
    /// Probes: some peers respond neither inside nor outside the tunnel.
    PeersSilent,
    /// Probes: packets to some peers, or their replies, are lost.
    PacketsLost,
    /// Probes: packets as large as the tunnel's device allows don't reach some peers.
    PathMtuSmall,
    /// A fault that this version doesn't know, reported by a newer one.
    #[serde(other)]
    Other,
}

impl ConditionName {
    /// All names, the most severe first.
    pub const ALL: [Self; 18] = [
        Self::Ended,
        Self::Starting,
        Self::LeaseLost,
        Self::ExternalLost,
        Self::ObjectsFailed,
        Self::Stalled,
        Self::FirewallFailed,
        Self::SubnetFileFailed,
        Self::RegistryUnavailable,
        Self::PeersFromCache,
        Self::BadRecords,
        Self::ConfigRefused,
        Self::PeersUnreachable,
        Self::PeersHeld,
        Self::TunnelBlocked,
        Self::PeersSilent,
        Self::PacketsLost,
        Self::PathMtuSmall,
    ];

    /// Returns the name as it is serialized.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Starting => "starting",
            Self::LeaseLost => "lease_lost",
            Self::ExternalLost => "external_lost",
            Self::ObjectsFailed => "objects_failed",
            Self::Stalled => "stalled",
            Self::FirewallFailed => "firewall_failed",
            Self::SubnetFileFailed => "subnet_file_failed",
            Self::RegistryUnavailable => "registry_unavailable",
            Self::PeersFromCache => "peers_from_cache",
            Self::BadRecords => "bad_records",
            Self::ConfigRefused => "config_refused",
            Self::PeersUnreachable => "peers_unreachable",
            Self::PeersHeld => "peers_held",
            Self::TunnelBlocked => "tunnel_blocked",
            Self::PeersSilent => "peers_silent",
            Self::PacketsLost => "packets_lost",
            Self::PathMtuSmall => "path_mtu_small",
            Self::Other => "other",
        }
    }

    /// Returns true if the host shouldn't start containers. Faults that only an operator at the registry or at another host
    /// can repair don't count, while this host carries all the traffic that it can.
    #[must_use]
    pub const fn is_against_readiness(self) -> bool {
        matches!(
            self,
            Self::Ended
                | Self::Starting
                | Self::LeaseLost
                | Self::ExternalLost
                | Self::ObjectsFailed
                | Self::Stalled
                | Self::FirewallFailed
                | Self::SubnetFileFailed
        )
    }
}

impl std::fmt::Display for ConditionName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
