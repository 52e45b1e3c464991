//! Traffic counters by peer, and drops by reason.
//!
//! The packet threads add once per burst; only drops are counted one by one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use flannel_core::{PeerTraffic, SubnetKey, TrafficCounters, TrafficStatus};

/// A counter that packet threads increment and any thread reads.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one peer.
#[derive(Debug, Default)]
pub(crate) struct PeerCounters {
    pub(crate) sent_packets: Counter,
    pub(crate) sent_bytes: Counter,
    pub(crate) sent_bursts: Counter,
    pub(crate) send_errors: Counter,
    pub(crate) received_packets: Counter,
    pub(crate) received_bytes: Counter,
    pub(crate) refused_packets: Counter,
}

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DropReason {
    /// From the host: no peer's subnet contains the destination.
    NoRoute,
    /// From the host: multicast or broadcast, which the overlay doesn't carry.
    Group,
    /// From the host: not a valid IP packet.
    MalformedOut,
    /// The TTL or hop limit expired.
    TimeExceeded,
    /// The kernel refused it: the send buffer was full, or the peer's host is unreachable.
    SendFailed,
    /// From the network: the sender isn't a peer.
    Stranger,
    /// From the network: the inner source isn't in the sender's subnet.
    WrongSource,
    /// From the network: not a valid IP packet, or truncated.
    MalformedIn,
    /// From the network: the device refused it.
    WriteFailed,
}

impl DropReason {
    const ALL: [Self; 9] = [
        Self::NoRoute,
        Self::Group,
        Self::MalformedOut,
        Self::TimeExceeded,
        Self::SendFailed,
        Self::Stranger,
        Self::WrongSource,
        Self::MalformedIn,
        Self::WriteFailed,
    ];

    /// Returns the name of the reason in status and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::Group => "group",
            Self::MalformedOut => "malformed_out",
            Self::TimeExceeded => "time_exceeded",
            Self::SendFailed => "send_failed",
            Self::Stranger => "stranger",
            Self::WrongSource => "wrong_source",
            Self::MalformedIn => "malformed_in",
            Self::WriteFailed => "write_failed",
        }
    }
}

/// A handle to the counters of a UDP backend. It outlives the backend; clones share the counters.
#[derive(Clone, Debug, Default)]
pub struct UdpCounters {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    drops: [Counter; DropReason::ALL.len()],
    /// The drops of sockets that have been closed.
    kernel_drops: Counter,
    reads: Counter,
    writes: Counter,
    peers: Mutex<BTreeMap<SubnetKey, Arc<PeerCounters>>>,
}

/// A snapshot of all counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UdpCounts {
    /// Counters by peer. They disappear when the peer leaves.
    pub peers: BTreeMap<SubnetKey, PeerCounts>,
    /// Dropped packets by reason.
    pub drops: BTreeMap<DropReason, u64>,
    /// Datagrams that the kernel dropped: from strangers, by the socket filter, or because the receive buffer was full.
    pub kernel_drops: u64,
    /// Reads from the device, each of up to 64 KiB.
    pub reads: u64,
    /// Writes to the device.
    pub writes: u64,
}

/// The counters of one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerCounts {
    /// Packets sent to the peer.
    pub sent_packets: u64,
    /// Bytes of these packets.
    pub sent_bytes: u64,
    /// Bursts sent, one system call each.
    pub sent_bursts: u64,
    /// Packets that the kernel refused to send.
    pub send_errors: u64,
    /// Packets received from the peer and accepted.
    pub received_packets: u64,
    /// Bytes of these packets.
    pub received_bytes: u64,
    /// Datagrams from the peer's address that were dropped, for any reason.
    pub refused_packets: u64,
}

impl UdpCounters {
    /// Reads all counters.
    #[must_use]
    pub fn read(&self) -> UdpCounts {
        let shared = &self.shared;
        let drops = DropReason::ALL.iter().zip(&shared.drops).map(|(reason, n)| (*reason, n.get()));
        UdpCounts {
            peers: self.lock().iter().map(|(subnet, peer)| (*subnet, peer.read())).collect(),
            drops: drops.filter(|(_, n)| *n > 0).collect(),
            kernel_drops: shared.kernel_drops.get(),
            reads: shared.reads.get(),
            writes: shared.writes.get(),
        }
    }

    /// Returns the counters of a peer, which stay the same while it is one.
    pub(crate) fn peer(&self, subnet: SubnetKey) -> Arc<PeerCounters> {
        Arc::clone(self.lock().entry(subnet).or_default())
    }

    /// Removes the counters of peers that left.
    pub(crate) fn retain(&self, stays: impl Fn(&SubnetKey) -> bool) {
        self.lock().retain(|subnet, _| stays(subnet));
    }

    pub(crate) fn dropped(&self, reason: DropReason, n: u64) {
        self.shared.drops[reason as usize].add(n);
    }

    pub(crate) fn kernel_dropped(&self, n: u64) {
        self.shared.kernel_drops.add(n);
    }

    pub(crate) fn was_read(&self, n: u64) {
        self.shared.reads.add(n);
    }

    pub(crate) fn was_written(&self, n: u64) {
        self.shared.writes.add(n);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SubnetKey, Arc<PeerCounters>>> {
        self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TrafficCounters for UdpCounters {
    fn total(&self) -> TrafficStatus {
        let shared = &self.shared;
        let drops = DropReason::ALL.iter().zip(&shared.drops).map(|(reason, n)| (reason.name(), n.get()));
        let kernel = ("kernel", shared.kernel_drops.get());
        let drops = drops.chain([kernel]).filter(|(_, n)| *n > 0);
        let mut total = TrafficStatus::default();
        total.drops = drops.map(|(reason, n)| (reason.to_owned(), n)).collect();
        total
    }

    fn by_peer(&self) -> BTreeMap<SubnetKey, PeerTraffic> {
        let traffic = |peer: &PeerCounters| {
            let counts = peer.read();
            let mut traffic = PeerTraffic::default();
            traffic.sent_packets = counts.sent_packets;
            traffic.sent_bytes = counts.sent_bytes;
            traffic.send_errors = counts.send_errors;
            traffic.received_packets = counts.received_packets;
            traffic.received_bytes = counts.received_bytes;
            traffic
        };
        self.lock().iter().map(|(subnet, peer)| (*subnet, traffic(peer))).collect()
    }
}

impl PeerCounters {
    fn read(&self) -> PeerCounts {
        PeerCounts {
            sent_packets: self.sent_packets.get(),
            sent_bytes: self.sent_bytes.get(),
            sent_bursts: self.sent_bursts.get(),
            send_errors: self.send_errors.get(),
            received_packets: self.received_packets.get(),
            received_bytes: self.received_bytes.get(),
            refused_packets: self.refused_packets.get(),
        }
    }
}
