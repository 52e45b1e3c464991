//! What a network is doing, at one moment.
//!
//! [`Network::status`](crate::Network::status) puts a [`NetworkStatus`] together when it is asked and at no other time, so a
//! network of any size pays nothing for it. Its JSON form, which serde writes and reads, is for other programs: members
//! keep their names and their meaning, new ones may come, and whoever reads ignores those that it does not know. Times
//! are ages in seconds, which a clock that is set does not move.

mod conditions;
mod probe;
pub(crate) mod serial;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::{DeviceFacts, ObjectFailure};
use crate::event::Phase;
use crate::registry::BadRecord;
use crate::{NodeId, PublicAddrs, Revision, SubnetKey};

pub(crate) use conditions::conditions;
pub use conditions::{Condition, ConditionName};
pub use probe::{MeshStatus, PeerProbe, ProbeMeans, ProbeSide, ProbeVerdict, ProbedPath};

/// The state of a network on this host.
///
/// ```
/// use flannel_core::NetworkStatus;
///
/// let status: NetworkStatus = serde_json::from_str(r#"{"ready": true, "peers": {"known": 3}, "news": "ignored"}"#)?;
/// assert_eq!((status.ready, status.peers.known, status.lease), (true, 3, None));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct NetworkStatus {
    /// For how long the network has been there.
    #[serde(rename = "age_seconds", with = "serial::seconds")]
    pub age: Duration,
    /// Whether all peers are known, or remembered, and the host was made as it should be for them. Once true it stays
    /// so; what is wrong at the moment is in `conditions`.
    pub ready: bool,
    /// What is not as it should be; empty if nothing is.
    pub conditions: Vec<Condition>,
    /// What keeps the network from going on, while it is starting.
    pub waiting_for: Option<Waiting>,
    /// The network's configuration, once it is known.
    pub network: Option<ConfigStatus>,
    /// The host's own lease. It stays here while a lost one is being asked for again.
    pub lease: Option<LeaseStatus>,
    /// Where the lease and the peers come from.
    pub registry: RegistryStatus,
    /// The interface through which the hosts reach each other.
    pub external: ExternalStatus,
    /// The devices through which the traffic goes, if the backend has any.
    pub devices: Vec<DeviceFacts>,
    /// The largest packet, in bytes, that a container may send.
    pub mtu: Option<u32>,
    /// The objects of the host, as far as the backend looks after them.
    pub kernel: KernelStatus,
    /// The other hosts.
    pub peers: PeersStatus,
    /// Records in the registry that cannot be read, and are not used.
    pub bad_records: Vec<BadRecord>,
    /// What the backend counts of the traffic as a whole, if it counts.
    pub traffic: Option<TrafficStatus>,
    /// What went wrong lately, the newest last; the same again is counted and not repeated. At most
    /// [`PAST_ERRORS`](Self::PAST_ERRORS).
    pub errors: Vec<PastError>,
}

impl NetworkStatus {
    /// How many of the last errors are kept.
    pub const PAST_ERRORS: usize = 32;

    /// Tells whether lease, peers and kernel are in order, so that containers may be started here: the network became
    /// ready, and no condition [stands against it](ConditionName::is_against_readiness).
    ///
    /// A registry that does not answer does not: traffic goes on with what is known, and to take hosts out of service
    /// because of it would make an outage of a nuisance.
    #[must_use]
    pub fn is_in_order(&self) -> bool {
        self.ready && !self.conditions.iter().any(|condition| condition.name.is_against_readiness())
    }
}

/// What a network waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Waiting {
    /// In which step.
    pub phase: Phase,
    /// What is in the way.
    pub reason: String,
}

/// The configuration of a network, in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ConfigStatus {
    /// The network of each family, such as `10.5.0.0/16`, IPv4 first.
    pub networks: Vec<String>,
    /// The backend's name, as it was written.
    pub backend: String,
    /// Whether firewall rules go to nftables.
    pub nftables: bool,
    /// Why what the registry has for a configuration now is not used; nothing if it is the one above.
    pub refused: Option<String>,
}

/// The host's own lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LeaseStatus {
    /// What is leased.
    #[serde(rename = "subnets")]
    pub subnet: SubnetKey,
    /// Where other hosts send this host's traffic.
    #[serde(rename = "public_addresses")]
    pub public: PublicAddrs,
    /// The name of the backend in the lease; empty for those that leave it out, such as `udp`.
    pub backend: String,
    /// The id of this host, if it has one.
    pub node: Option<NodeId>,
    /// When the registry last changed the record.
    pub revision: Revision,
    /// Whether it is a reservation, which has no end.
    pub permanent: bool,
    /// Why it is not held at the moment; nothing if it is.
    pub lost: Option<String>,
    /// The time until the next renewal, as far as it is planned.
    #[serde(rename = "renewal_in_seconds", with = "serial::maybe_seconds")]
    pub renewal_in: Option<Duration>,
    /// The time that is left of it, once it was renewed.
    #[serde(rename = "ends_in_seconds", with = "serial::maybe_seconds")]
    pub ends_in: Option<Duration>,
    /// How many times somebody else wrote its record, which the host put right.
    pub disputes: u64,
    /// What was found in it the last time.
    pub last_dispute: Option<String>,
}

/// The registry, as this host hears it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RegistryStatus {
    /// Its name, such as `etcd v3 at http://10.0.0.1:2379`.
    pub name: String,
    /// What the store calls itself, once it has answered, such as the id of an etcd cluster.
    pub id: Option<String>,
    /// Under which addresses it is asked.
    pub addresses: Vec<String>,
    /// Up to which revision it was heard, if the registry tells.
    pub revision: Option<Revision>,
    /// How long ago it gave its last word, if the registry tells. A healthy one is asked for a word every few seconds
    /// though nothing happens.
    #[serde(rename = "last_contact_seconds_ago", with = "serial::maybe_seconds")]
    pub last_contact_age: Option<Duration>,
    /// Why it is not heard at the moment; nothing if it is.
    pub unavailable: Option<String>,
    /// For how long it has not been heard.
    #[serde(rename = "unavailable_for_seconds", with = "serial::maybe_seconds")]
    pub unavailable_for: Option<Duration>,
    /// Whether it told all peers.
    pub complete: bool,
    /// Why the peers are those that are remembered, and not those that the registry knows; nothing if they are its own.
    pub peers_from_cache: Option<String>,
}

/// The external interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ExternalStatus {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// The addresses that peers use, which differ behind a NAT.
    #[serde(rename = "public_addresses")]
    pub public: PublicAddrs,
    /// Why it can't be used at the moment, such as a deleted address; the members above are the last ones known.
    pub lost: Option<String>,
}

/// What the passes over the host found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct KernelStatus {
    /// How many times the host was compared with what it should be.
    pub passes: u64,
    /// How long the last pass took.
    #[serde(rename = "last_pass_took_seconds", with = "serial::seconds")]
    pub last_pass_took: Duration,
    /// How long ago the last pass ended.
    #[serde(rename = "last_pass_seconds_ago", with = "serial::maybe_seconds")]
    pub last_pass_age: Option<Duration>,
    /// How many objects were written.
    pub written: u64,
    /// How many objects were removed.
    pub removed: u64,
    /// How many objects were found changed by somebody else and put right.
    pub repaired: u64,
    /// The last time that something was.
    pub last_repair: Option<Repair>,
    /// Objects that are not as they should be, and are tried again.
    pub failed: Vec<ObjectFailure>,
}

/// Something that was put right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Repair {
    /// How long ago.
    #[serde(rename = "seconds_ago", with = "serial::seconds")]
    pub age: Duration,
    /// How many objects.
    pub objects: usize,
    /// What drew the attention to it.
    pub noticed: String,
}

/// The other hosts of the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PeersStatus {
    /// How many there are.
    pub known: usize,
    /// How many of them the host was made as it should be for.
    pub programmed: usize,
    /// How many of them something is still missing for.
    pub pending: usize,
    /// How many of them this host's backend cannot reach.
    pub unreachable: usize,
    /// How many of them are kept although they are said to have left, because too many left at once.
    pub held: usize,
    /// What the probes of the ways to them found together, where somebody probes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<MeshStatus>,
    /// Each of them, in the order of their subnets. Left out of a [summary](crate::Network::summary).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub each: Option<Vec<PeerStatus>>,
}

/// One of the other hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PeerStatus {
    /// What it leases.
    #[serde(rename = "subnets")]
    pub subnet: SubnetKey,
    /// Where its traffic is sent.
    #[serde(rename = "public_addresses")]
    pub public: PublicAddrs,
    /// The name of its backend; empty for those that leave it out, such as `udp`.
    pub backend: String,
    /// Its id, if it has one; upstream's hosts have none.
    pub node: Option<NodeId>,
    /// How long ago this host first heard of it, in this run.
    #[serde(rename = "known_for_seconds", with = "serial::seconds")]
    pub known_for: Duration,
    /// How far it is reached.
    pub state: PeerState,
    /// Why it is not reached; nothing if it is.
    pub reason: Option<String>,
    /// Whether it is kept although it is said to have left.
    pub held: bool,
    /// What was sent and received, if the backend counts it.
    pub traffic: Option<PeerTraffic>,
    /// What probes of the ways to it found, where somebody probes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<PeerProbe>,
}

/// How far a peer is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PeerState {
    /// Everything that leads to it is in place.
    Programmed,
    /// Something is missing and is tried again.
    Pending,
    /// This host's backend cannot reach it, whatever it tries: its lease must say something else.
    Unreachable,
}

/// The traffic to and from one peer, since it has been one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PeerTraffic {
    /// Packets sent to it.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets for it that could not be sent.
    pub send_errors: u64,
    /// Packets that came from it and were let in.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
}

/// The traffic as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct TrafficStatus {
    /// Packets that were dropped, by reason; reasons that did not occur are left out.
    pub drops: BTreeMap<String, u64>,
}

/// Counts the traffic of a backend. Read from any thread, while packets flow.
///
/// ```
/// use std::collections::BTreeMap;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use flannel_core::{TrafficCounters, PeerTraffic, SubnetKey, TrafficStatus};
///
/// #[derive(Default)]
/// struct Strangers(AtomicU64);
///
/// impl TrafficCounters for Strangers {
///     fn total(&self) -> TrafficStatus {
///         let mut total = TrafficStatus::default();
///         total.drops.insert("stranger".to_owned(), self.0.load(Ordering::Relaxed));
///         total
///     }
///     fn by_peer(&self) -> BTreeMap<SubnetKey, PeerTraffic> {
///         BTreeMap::new()
///     }
/// }
///
/// let counters = Strangers::default();
/// counters.0.fetch_add(2, Ordering::Relaxed);
/// assert_eq!(counters.total().drops["stranger"], 2);
/// ```
pub trait TrafficCounters: Send + Sync {
    /// Reads the counters of the traffic as a whole.
    fn total(&self) -> TrafficStatus;

    /// Reads the counters of each peer.
    fn by_peer(&self) -> BTreeMap<SubnetKey, PeerTraffic>;
}

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PastError {
    /// How long ago, the last time.
    #[serde(rename = "seconds_ago", with = "serial::seconds")]
    pub age: Duration,
    /// How many times.
    pub times: u64,
    /// What, in one line.
    pub what: String,
}

impl DeviceFacts {
    /// Begins to describe a device by its name and its kind, such as `vxlan`.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: impl Into<String>) -> Self {
        Self { name: name.into(), kind: kind.into(), ..Self::default() }
    }
}

#[cfg(test)]
mod tests;
