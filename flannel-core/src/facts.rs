//! What a backend reports about its devices, its traffic and its peers.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::seconds;
use crate::subnet::SubnetKey;

/// A network device that carries the traffic of a network.
///
/// ```
/// use flannel_core::DeviceFacts;
///
/// let mut device = DeviceFacts::new("flannel.1", "vxlan");
/// device.mtu = 1450;
/// assert_eq!((device.name.as_str(), device.vni), ("flannel.1", None));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct DeviceFacts {
    /// The name.
    pub name: String,
    /// The kind, such as `vxlan` or `tun`.
    pub kind: String,
    /// The interface index.
    pub index: u32,
    /// The MTU, in bytes.
    pub mtu: u32,
    /// The hardware address, if the device has one.
    pub mac: Option<String>,
    /// The VXLAN network identifier.
    pub vni: Option<u32>,
    /// The UDP port on which the device receives packets from peers.
    pub port: Option<u16>,
    /// The local address to which peers send.
    pub local: Option<IpAddr>,
}

impl DeviceFacts {
    /// Creates the description of a device from its name and kind.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: impl Into<String>) -> Self {
        Self { name: name.into(), kind: kind.into(), ..Self::default() }
    }
}

/// The traffic of one peer since it joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PeerTraffic {
    /// Packets sent to the peer.
    pub sent_packets: u64,
    /// Bytes sent to the peer.
    pub sent_bytes: u64,
    /// Packets to the peer that couldn't be sent.
    pub send_errors: u64,
    /// Packets accepted from the peer.
    pub received_packets: u64,
    /// Bytes accepted from the peer.
    pub received_bytes: u64,
}

/// The traffic of a network as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct TrafficStatus {
    /// Dropped packets by reason. Reasons that didn't occur are left out.
    pub drops: BTreeMap<String, u64>,
}

/// What a backend knows about a peer besides its traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct PeerFacts {
    /// The endpoint to which the backend sends. It differs from the address in the lease after the peer roamed.
    pub endpoint: Option<SocketAddr>,
    /// The time since the last handshake.
    #[serde(rename = "last_handshake_seconds_ago", with = "seconds::optional")]
    pub last_handshake_age: Option<Duration>,
    /// Other facts, by name.
    pub other: BTreeMap<String, String>,
}

/// The counters and per-peer facts of a backend. Read from any thread, on demand, while packets flow.
///
/// ```
/// use std::collections::BTreeMap;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use flannel_core::{PeerTraffic, SubnetKey, TrafficCounters, TrafficStatus};
///
/// #[derive(Default)]
/// struct Counters {
///     unknown_source: AtomicU64,
/// }
///
/// impl TrafficCounters for Counters {
///     fn total(&self) -> TrafficStatus {
///         let mut total = TrafficStatus::default();
///         total.drops.insert("unknown_source".to_owned(), self.unknown_source.load(Ordering::Relaxed));
///         total
///     }
///     fn by_peer(&self) -> BTreeMap<SubnetKey, PeerTraffic> {
///         BTreeMap::new()
///     }
/// }
///
/// let counters = Counters::default();
/// counters.unknown_source.fetch_add(2, Ordering::Relaxed);
/// assert_eq!(counters.total().drops["unknown_source"], 2);
/// ```
pub trait TrafficCounters: Send + Sync {
    /// Reads the counters of the whole traffic.
    fn total(&self) -> TrafficStatus;

    /// Reads the counters of each peer.
    fn by_peer(&self) -> BTreeMap<SubnetKey, PeerTraffic>;

    /// Reads what else the backend knows about each peer. By default nothing.
    fn peer_facts(&self) -> BTreeMap<SubnetKey, PeerFacts> {
        BTreeMap::new()
    }
}
