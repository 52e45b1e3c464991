//! The results of probing the paths to the peers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::seconds;

/// The result of probing one peer.
///
/// ```
/// use flannel_core::{PeerProbe, ProbeVerdict};
///
/// let probe: PeerProbe = serde_json::from_str(r#"{"verdict": "tunnel_blocked"}"#)?;
/// assert!(probe.verdict == ProbeVerdict::TunnelBlocked && probe.verdict.is_fault());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PeerProbe {
    /// The verdict.
    pub verdict: ProbeVerdict,
    /// The fault, its likely cause and how to check it, in one line; empty without a fault.
    pub detail: String,
    /// The time since the last probe ended.
    #[serde(rename = "probed_seconds_ago", with = "seconds")]
    pub age: Duration,
    /// The measured paths: inside the tunnel before outside, IPv4 first.
    pub paths: Vec<ProbedPath>,
}

/// A measured path to a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProbedPath {
    /// Whether the path is inside the tunnel.
    pub side: ProbeSide,
    /// The probed address.
    pub address: IpAddr,
    /// The kind of probe.
    pub by: ProbeMeans,
    /// Whether the last probe was answered.
    pub answers: bool,
    /// The number of recent probes that count.
    pub sent: u32,
    /// The number of those without a reply.
    pub lost: u32,
    /// The round-trip time.
    pub round_trip_microseconds: Option<u64>,
    /// The largest IP packet that passed in both directions, in bytes.
    pub path_mtu: Option<u32>,
    /// The MTU of the first device on the path, if it is known: the largest packet that was tried.
    pub device_mtu: Option<u32>,
    /// Why this host couldn't send.
    pub error: Option<String>,
}

impl ProbedPath {
    /// Creates a path without measurements.
    #[must_use]
    pub fn new(side: ProbeSide, address: IpAddr, by: ProbeMeans) -> Self {
        Self {
            side,
            address,
            by,
            answers: false,
            sent: 0,
            lost: 0,
            round_trip_microseconds: None,
            path_mtu: None,
            device_mtu: None,
            error: None,
        }
    }
}

/// The position of a path relative to the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProbeSide {
    /// Through the tunnel, to the peer's overlay address.
    Inside,
    /// On the underlay, to the peer's public address.
    Outside,
}

/// The kind of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProbeMeans {
    /// A datagram to the peer's responder.
    Udp,
    /// An ICMP echo request, which the peer's kernel answers.
    Icmp,
}

/// The verdict on a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProbeVerdict {
    /// The peer responds inside and outside the tunnel, to packets of full size.
    Reachable,
    /// The tunnel works; outside it the peer doesn't respond, for example because ICMP is filtered.
    UnderlaySilent,
    /// The peer responds outside the tunnel; there is no tunnel address to probe.
    UnderlayOnly,
    /// Packets as large as the device allows don't reach the peer.
    MtuSmall,
    /// Packets are lost.
    Lossy,
    /// The underlay responds and the tunnel doesn't.
    TunnelBlocked,
    /// Neither responds.
    Silent,
    /// The peer wasn't probed, or a newer version reported a verdict that this one doesn't know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl ProbeVerdict {
    /// All verdicts, the least severe first.
    pub const ALL: [Self; 8] = [
        Self::Reachable,
        Self::UnderlaySilent,
        Self::UnderlayOnly,
        Self::Unknown,
        Self::MtuSmall,
        Self::Lossy,
        Self::TunnelBlocked,
        Self::Silent,
    ];

    /// Returns the name as it is serialized.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reachable => "reachable",
            Self::UnderlaySilent => "underlay_silent",
            Self::UnderlayOnly => "underlay_only",
            Self::Unknown => "unknown",
            Self::MtuSmall => "mtu_small",
            Self::Lossy => "lossy",
            Self::TunnelBlocked => "tunnel_blocked",
            Self::Silent => "silent",
        }
    }

    /// Returns true if traffic to the peer is affected.
    #[must_use]
    pub const fn is_fault(self) -> bool {
        matches!(self, Self::MtuSmall | Self::Lossy | Self::TunnelBlocked | Self::Silent)
    }
}

impl std::fmt::Display for ProbeVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The summary of the probes of all peers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct MeshStatus {
    /// The number of peers per verdict.
    pub verdicts: BTreeMap<ProbeVerdict, usize>,
    /// The time in which each peer is probed once.
    #[serde(rename = "round_seconds", with = "seconds")]
    pub round: Duration,
    /// The number of probes sent.
    pub sent: u64,
    /// The number of probes without a reply.
    pub lost: u64,
    /// The longest recent round trip inside the tunnel.
    pub longest_round_trip_microseconds: Option<u64>,
}
