//! What is not as it should be, by name. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::NetworkStatus;

/// Something that is not as it should be at the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Condition {
    /// What kind of thing.
    pub name: ConditionName,
    /// What exactly, in one line.
    pub detail: String,
}

impl Condition {
    /// Names something that is not as it should be.
    #[must_use]
    pub fn new(name: ConditionName, detail: impl Into<String>) -> Self {
        Self { name, detail: detail.into() }
    }
}

/// What kinds of things may not be as they should be.
///
/// The names stay; scripts and alerts may rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ConditionName {
    /// The network has not carried traffic yet in this run.
    Starting,
    /// The lease is lost, and is asked for again.
    LeaseLost,
    /// The external interface or its only address is gone; peers can't reach this host.
    ExternalLost,
    /// An object of the host is not as it should be, and is tried again.
    ObjectsFailed,
    /// The host was not compared with what it should be for too long: the loop does not run.
    Stalled,
    /// The firewall rules that the daemon keeps for the network are not in order, and are tried again.
    FirewallFailed,
    /// The file that tells the container runtime its subnet cannot be written.
    SubnetFileFailed,
    /// The registry does not answer; traffic goes on with what is known.
    RegistryUnavailable,
    /// The peers are those that are remembered, because the registry did not answer since the start.
    PeersFromCache,
    /// Records in the registry cannot be read; their hosts are not reached, or are as they were before.
    BadRecords,
    /// The registry's configuration is another one than the network runs by, and cannot be used, or not without a restart.
    ConfigRefused,
    /// This backend cannot reach some peers.
    PeersUnreachable,
    /// Many peers left at once, which is doubted.
    PeersHeld,
    /// The underlay answers and the tunnel does not, for some peers; found by probing them.
    TunnelBlocked,
    /// Some peers answer neither inside nor outside of the tunnel.
    PeersSilent,
    /// Packets to some peers, or their answers, are lost.
    PacketsLost,
    /// Packets as large as the tunnel's device allows do not come through to some peers.
    PathMtuSmall,
    /// Something that this program does not know, written by a newer one.
    #[serde(other)]
    Other,
}

impl ConditionName {
    /// All names there are, in the order of their weight.
    pub const ALL: [Self; 17] = [
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

    /// Returns the name as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
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

    /// Tells whether this is a reason to start no containers here. What only a person at the registry or at another
    /// host can cure, while this host carries all the traffic that it can, is none.
    #[must_use]
    pub const fn is_against_readiness(self) -> bool {
        matches!(
            self,
            Self::Starting
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

/// Finds what is not as it should be in a state whose `conditions` are not known yet. `audit_every` is the longest time
/// between two passes.
pub(crate) fn conditions(status: &NetworkStatus, audit_every: Duration) -> Vec<Condition> {
    let mut found = Vec::new();
    let mut add = |name, detail: String| found.push(Condition { name, detail });
    if !status.ready {
        let what = status.waiting_for.as_ref().map(|waiting| waiting.reason.clone());
        add(ConditionName::Starting, what.unwrap_or_else(|| "the first pass is still to come".to_owned()));
    }
    if let Some(lost) = status.lease.as_ref().and_then(|lease| lease.lost.clone()) {
        add(ConditionName::LeaseLost, lost);
    }
    if let Some(reason) = &status.external.lost {
        add(ConditionName::ExternalLost, reason.clone());
    }
    let failed = status.kernel.failed.iter().map(|failure| format!("{}: {}", failure.object, failure.reason));
    if let Some(detail) = first_of(failed) {
        add(ConditionName::ObjectsFailed, detail);
    }
    let longest = audit_every + STALLED_AFTER;
    if let Some(age) = status.kernel.last_pass_age.filter(|age| *age > longest) {
        add(ConditionName::Stalled, format!("the last pass was {} seconds ago", age.as_secs()));
    }
    if let Some(reason) = &status.registry.unavailable {
        let unavailable_for = status.registry.unavailable_for.unwrap_or_default().as_secs();
        add(ConditionName::RegistryUnavailable, format!("for {unavailable_for} seconds: {reason}"));
    }
    if let Some(reason) = &status.registry.peers_from_cache {
        add(ConditionName::PeersFromCache, reason.clone());
    }
    if let Some(detail) = first_of(status.bad_records.iter().map(ToString::to_string)) {
        add(ConditionName::BadRecords, detail);
    }
    if let Some(reason) = status.network.as_ref().and_then(|network| network.refused.clone()) {
        add(ConditionName::ConfigRefused, reason);
    }
    let peers = &status.peers;
    if peers.unreachable > 0 {
        add(ConditionName::PeersUnreachable, format!("{} of {} peers", peers.unreachable, peers.known));
    }
    if peers.held > 0 {
        add(ConditionName::PeersHeld, format!("{} of {} peers", peers.held, peers.known));
    }
    found
}

/// So much later than it must come a pass has still not stalled: the host may have stood still, or the pass be long.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// Tells the first of several things, and how many more there are.
fn first_of(mut things: impl ExactSizeIterator<Item = String>) -> Option<String> {
    let first = things.next()?;
    Some(match things.len() {
        0 => first,
        more => format!("{first}; and {more} more"),
    })
}
