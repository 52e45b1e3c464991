//! The status of a network.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::condition::Condition;
use super::probe::{MeshStatus, PeerProbe};
use crate::event::Phase;
use crate::facts::{DeviceFacts, PeerFacts, PeerTraffic, TrafficStatus};
use crate::lease::{NodeId, PublicAddrs, Revision};
use crate::registry::BadRecord;
use crate::report::ObjectFailure;
use crate::seconds;
use crate::subnet::SubnetKey;

/// The state of a network on this host at one moment.
///
/// ```
/// use flannel_core::NetworkStatus;
///
/// let status: NetworkStatus = serde_json::from_str(r#"{"ready": true, "peers": {"known": 3}, "added_later": "ignored"}"#)?;
/// assert_eq!((status.ready, status.peers.known, status.lease), (true, 3, None));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct NetworkStatus {
    /// The time since the network was created.
    #[serde(rename = "age_seconds", with = "seconds")]
    pub age: Duration,
    /// Whether all peers were known, from the registry or a cache, and the host was reconciled. Once true it stays true;
    /// `conditions` lists current faults.
    pub ready: bool,
    /// Why the network's task ended; `None` while it runs.
    pub ended: Option<String>,
    /// The current faults.
    pub conditions: Vec<Condition>,
    /// What the start waits for.
    pub waiting_for: Option<Waiting>,
    /// The network configuration, once it is known.
    pub network: Option<ConfigStatus>,
    /// The host's own lease. A lost lease stays here while the host requests it again.
    pub lease: Option<LeaseStatus>,
    /// The source of the lease and the peers.
    pub registry: RegistryStatus,
    /// The interface through which hosts reach each other.
    pub external: ExternalStatus,
    /// The devices that carry the traffic, if the backend has any.
    pub devices: Vec<DeviceFacts>,
    /// The largest packet that a container may send, in bytes.
    pub mtu: Option<u32>,
    /// The reconcile passes over the host.
    pub kernel: KernelStatus,
    /// The peers.
    pub peers: PeersStatus,
    /// Malformed records in the registry, which are ignored.
    pub bad_records: Vec<BadRecord>,
    /// The counters of the whole traffic, if the backend has any.
    pub traffic: Option<TrafficStatus>,
    /// The recent errors, the newest last, at most [`PAST_ERRORS`](Self::PAST_ERRORS). Repetitions are counted.
    pub errors: Vec<PastError>,
}

impl NetworkStatus {
    /// The number of recent errors kept.
    pub const PAST_ERRORS: usize = 32;

    /// Returns true if containers may start here: the network became ready, and no condition
    /// [prevents it](crate::ConditionName::is_against_readiness).
    ///
    /// An unavailable registry doesn't: traffic continues with the known state, and taking hosts out of service would turn a
    /// degraded state into an outage.
    #[must_use]
    pub fn is_in_order(&self) -> bool {
        self.ready && !self.conditions.iter().any(|condition| condition.name.is_against_readiness())
    }
}

/// The obstacle that a start waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Waiting {
    /// The step that failed.
    pub phase: Phase,
    /// The cause.
    pub reason: String,
}

/// A summary of the network configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ConfigStatus {
    /// The network of each family, such as `10.5.0.0/16`, IPv4 first.
    pub networks: Vec<String>,
    /// The backend's name as configured.
    pub backend: String,
    /// Whether the firewall rules use nftables.
    pub nftables: bool,
    /// Why the registry's current configuration isn't applied; `None` if it is the one above.
    pub refused: Option<String>,
}

/// The host's own lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LeaseStatus {
    /// The subnet.
    #[serde(rename = "subnets")]
    pub subnet: SubnetKey,
    /// The addresses to which peers send.
    #[serde(rename = "public_addresses")]
    pub public: PublicAddrs,
    /// The backend's name in the lease; empty for backends that omit it, such as `udp`.
    pub backend: String,
    /// The ID of this host, if it has one.
    pub node: Option<NodeId>,
    /// The name of this host, if the lease manager knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The revision of the record.
    pub revision: Revision,
    /// Whether the lease is a reservation, which doesn't expire.
    pub permanent: bool,
    /// Why the lease is lost; `None` while the host holds it.
    pub lost: Option<String>,
    /// The time until the next renewal, if one is scheduled.
    #[serde(rename = "renewal_in_seconds", with = "seconds::optional")]
    pub renewal_in: Option<Duration>,
    /// The time until the lease expires, once it was renewed.
    #[serde(rename = "ends_in_seconds", with = "seconds::optional")]
    pub ends_in: Option<Duration>,
    /// The number of times that another host or program wrote the record and the host restored it.
    pub disputes: u64,
    /// The last such change.
    pub last_dispute: Option<String>,
}

/// The registry as seen by this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RegistryStatus {
    /// The name, such as `etcd v3 at http://10.0.0.1:2379`.
    pub name: String,
    /// The ID that the store reports, such as that of an etcd cluster. Unknown until the first response.
    pub id: Option<String>,
    /// The configured addresses.
    pub addresses: Vec<String>,
    /// The largest revision received, if the registry has revisions.
    pub revision: Option<Revision>,
    /// The time since the last response or event, if it is known. An idle registry is probed every few seconds.
    #[serde(rename = "last_contact_seconds_ago", with = "seconds::optional")]
    pub last_contact_age: Option<Duration>,
    /// Why the registry is unavailable; `None` while it responds.
    pub unavailable: Option<String>,
    /// The time since it became unavailable.
    #[serde(rename = "unavailable_for_seconds", with = "seconds::optional")]
    pub unavailable_for: Option<Duration>,
    /// Whether it listed all peers.
    pub complete: bool,
    /// Why the peers come from a cache; `None` if they come from the registry.
    pub peers_from_cache: Option<String>,
}

/// The external interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ExternalStatus {
    /// The name.
    pub name: String,
    /// The interface index.
    pub index: u32,
    /// The MTU, in bytes.
    pub mtu: u32,
    /// The IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// The addresses that peers use. They differ from the interface's behind a NAT.
    #[serde(rename = "public_addresses")]
    pub public: PublicAddrs,
    /// Why the interface is unusable, such as a deleted address. The other members are the last known values.
    pub lost: Option<String>,
}

/// The reconcile passes over the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct KernelStatus {
    /// The number of passes.
    pub passes: u64,
    /// The duration of the last pass.
    #[serde(rename = "last_pass_took_seconds", with = "seconds")]
    pub last_pass_took: Duration,
    /// The time since the last pass ended.
    #[serde(rename = "last_pass_seconds_ago", with = "seconds::optional")]
    pub last_pass_age: Option<Duration>,
    /// The number of objects written.
    pub written: u64,
    /// The number of objects removed.
    pub removed: u64,
    /// The number of objects repaired after another program changed them.
    pub repaired: u64,
    /// The last repair.
    pub last_repair: Option<Repair>,
    /// The objects that couldn't be written, and will be retried.
    pub failed: Vec<ObjectFailure>,
}

/// A repair of drifted objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Repair {
    /// The time since then.
    #[serde(rename = "seconds_ago", with = "seconds")]
    pub age: Duration,
    /// The number of objects.
    pub objects: usize,
    /// The cause of the check.
    pub noticed: String,
}

/// The peers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PeersStatus {
    /// The number of peers.
    pub known: usize,
    /// The number of peers for which everything is in place.
    pub programmed: usize,
    /// The number of peers for which an object is missing and will be retried.
    pub pending: usize,
    /// The number of peers that the backend can't reach.
    pub unreachable: usize,
    /// The number of peers that are held, because too many disappeared at once.
    pub held: usize,
    /// The summary of the probes, if the peers are probed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<MeshStatus>,
    /// Each peer, in the order of their subnets. A [summary](crate::Network::summary) omits it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub each: Option<Vec<PeerStatus>>,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PeerStatus {
    /// The subnet.
    #[serde(rename = "subnets")]
    pub subnet: SubnetKey,
    /// The addresses in its lease.
    #[serde(rename = "public_addresses")]
    pub public: PublicAddrs,
    /// The backend's name in the lease; empty for backends that omit it, such as `udp`.
    pub backend: String,
    /// The ID of the host, if it has one; hosts that run upstream's daemon have none.
    pub node: Option<NodeId>,
    /// The name of the host, if the lease manager knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The time since it joined, in this run.
    #[serde(rename = "known_for_seconds", with = "seconds")]
    pub known_for: Duration,
    /// Whether it is reachable.
    pub state: PeerState,
    /// Why it isn't reachable; `None` if it is.
    pub reason: Option<String>,
    /// Whether the peer is held although its lease disappeared.
    pub held: bool,
    /// The traffic counters, if the backend has any.
    pub traffic: Option<PeerTraffic>,
    /// What else the backend knows about the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_facts: Option<PeerFacts>,
    /// The result of the probes, if the peer is probed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<PeerProbe>,
}

/// Whether a peer is reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PeerState {
    /// All objects for the peer are in place.
    Programmed,
    /// An object is missing and will be retried.
    Pending,
    /// The backend can't reach the peer with the attributes in its lease.
    Unreachable,
}

/// A recent error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PastError {
    /// The time since the last occurrence.
    #[serde(rename = "seconds_ago", with = "seconds")]
    pub age: Duration,
    /// The number of occurrences.
    pub times: u64,
    /// The error, in one line.
    pub what: String,
}
