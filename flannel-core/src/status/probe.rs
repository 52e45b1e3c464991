//! What probes of the ways to the peers found, where somebody probes them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::serial;

/// What the probes of one peer found.
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
    /// How the peer is reached.
    pub verdict: ProbeVerdict,
    /// What is wrong, what is likely the cause and how to check it, in one line; empty if all is well.
    pub detail: String,
    /// How long ago the last probe ended.
    #[serde(rename = "probed_seconds_ago", with = "serial::seconds")]
    pub age: Duration,
    /// What each way was measured to be: inside the tunnel and outside, IPv4 first.
    pub paths: Vec<ProbedPath>,
}

/// One way to a peer, as it was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ProbedPath {
    /// Inside the tunnel, or outside.
    pub side: ProbeSide,
    /// The address that was asked.
    pub address: IpAddr,
    /// How it was asked.
    pub by: ProbeMeans,
    /// Whether it answered the last time.
    pub answers: bool,
    /// How many questions count: a small number of the last ones.
    pub sent: u32,
    /// How many of them were not answered.
    pub lost: u32,
    /// How long question and answer took together.
    pub round_trip_microseconds: Option<u64>,
    /// The largest IP packet, in bytes, that came through whole, there and back.
    pub path_mtu: Option<u32>,
    /// The MTU of the device by which the way begins, if it is known: the largest packet that was tried.
    pub device_mtu: Option<u32>,
    /// Why this host could not send.
    pub error: Option<String>,
}

impl ProbedPath {
    /// Begins to describe a way on which nothing was sent yet.
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

/// On which side of the tunnel a way lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProbeSide {
    /// Through the tunnel, to the peer's address in the overlay.
    Inside,
    /// On the underlay, to the peer's public address.
    Outside,
}

/// How a peer is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProbeMeans {
    /// By a datagram to the peer's responder.
    Udp,
    /// By an ICMP echo request, which the peer's kernel answers.
    Icmp,
}

/// How a peer is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProbeVerdict {
    /// Inside and outside of the tunnel, whole.
    Reachable,
    /// The tunnel works; outside of it the peer does not answer, as where ICMP is filtered.
    UnderlaySilent,
    /// Outside; there is no tunnel whose other end could be asked.
    UnderlayOnly,
    /// Packets as large as the device allows do not come through.
    MtuSmall,
    /// Packets are lost.
    Lossy,
    /// The underlay answers and the tunnel does not.
    TunnelBlocked,
    /// Neither answers.
    Silent,
    /// It was not probed, or a newer program found something that this one does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

impl ProbeVerdict {
    /// Those that are known, in the order of their weight.
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

    /// Returns the name as it is written.
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

    /// Tells whether traffic to the peer suffers.
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

/// What the probes of all peers found together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct MeshStatus {
    /// How many peers each verdict was found for.
    pub verdicts: BTreeMap<ProbeVerdict, usize>,
    /// How long it takes until each peer had its turn.
    #[serde(rename = "round_seconds", with = "serial::seconds")]
    pub round: Duration,
    /// How many questions were sent.
    pub sent: u64,
    /// How many of them were not answered.
    pub lost: u64,
    /// The longest round trip inside the tunnel among the last ones.
    pub longest_round_trip_microseconds: Option<u64>,
}
