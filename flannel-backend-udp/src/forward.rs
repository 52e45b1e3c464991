//! Forwards packets: chooses the next hop, drops what can't be forwarded, and groups packets to one peer into bursts.
//!
//! ```text
//!  from the device   split ─▶ next hop ─▶ TTL ─▶ Outbox: bursts by peer ─▶ one send for each
//!  from the network  cut at the datagrams ─▶ source check ─▶ Coalescer ─▶ one write for each
//! ```
//!
//! Pure: no I/O and no clock.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use crate::counters::DropReason;
use crate::offload::split::{MAX_PACKET, Segments};
use crate::packet::icmp::IcmpError;
use crate::packet::{Header, decrement_ttl};
use crate::peers::Routing;

/// Why a packet is dropped, and the ICMP error for its source, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: DropReason,
    pub(crate) icmp_error: Option<IcmpError>,
}

impl Refusal {
    fn silent(reason: DropReason) -> Self {
        Self { reason, icmp_error: None }
    }
}

/// Finds the next hop of a packet from the host and decrements its TTL.
pub(crate) fn outbound(routing: &Routing, packet: &mut [u8]) -> Result<usize, Refusal> {
    let header = Header::read(packet).ok_or(Refusal::silent(DropReason::MalformedOut))?;
    // A GSO packet states its whole length.
    if header.total != packet.len() {
        return Err(Refusal::silent(DropReason::MalformedOut));
    }
    let Some(hop) = routing.peers.lookup(header.destination) else {
        let is_to_group = header.destination.is_multicast() || header.destination == IpAddr::from([255; 4]);
        return Err(if is_to_group {
            Refusal::silent(DropReason::Group)
        } else {
            Refusal { reason: DropReason::NoRoute, icmp_error: Some(IcmpError::NoRoute) }
        });
    };
    if header.ttl <= 1 {
        return Err(Refusal { reason: DropReason::TimeExceeded, icmp_error: Some(IcmpError::TimeExceeded) });
    }
    decrement_ttl(packet);
    Ok(hop)
}

/// Checks a datagram from a peer. Returns the inner source address, the peer's hop and the length of the inner packet.
/// Doesn't decrement the TTL.
///
/// `known` is the last accepted inner source of the same sender.
pub(crate) fn inbound(
    routing: &Routing,
    from: IpAddr,
    datagram: &[u8],
    known: Option<(IpAddr, usize)>,
) -> Result<(IpAddr, usize, usize), Refusal> {
    let header = Header::read(datagram).filter(|header| header.total <= datagram.len());
    let header = header.ok_or(Refusal::silent(DropReason::MalformedIn))?;
    let hop = match known {
        Some((source, hop)) if source == header.source => Some(hop),
        _ => {
            routing.peers.lookup(header.source).filter(|hop| routing.peers.hops()[*hop].address.ip() == from)
        }
    };
    let hop = hop.ok_or(Refusal::silent(DropReason::WrongSource))?;
    if header.ttl <= 1 {
        return Err(Refusal { reason: DropReason::TimeExceeded, icmp_error: Some(IcmpError::TimeExceeded) });
    }
    Ok((header.source, hop, header.total))
}

/// Outgoing packets, grouped into bursts by peer. Packets to one peer stay in order.
#[derive(Debug)]
pub(crate) struct Outbox {
    arena: Box<[u8]>,
    used: usize,
    /// The first `active` bursts are in use; the others keep their memory.
    bursts: Vec<Burst>,
    active: usize,
    /// The most packets in a burst.
    pub(crate) max_segments: usize,
}

/// Packets of equal length to one peer; only the last may be shorter.
#[derive(Debug, Default)]
pub(crate) struct Burst {
    pub(crate) hop: usize,
    /// Bytes of each packet except the last.
    pub(crate) segment: usize,
    pub(crate) packets: usize,
    pub(crate) bytes: usize,
    pieces: Vec<Range<usize>>,
    closed: bool,
}

/// Room for two packets of 64 KiB and their headers. With more, the first bytes have left the cache when they are sent.
const ARENA: usize = 4 * 65_536;

/// The kernel's limit for one burst (`UDP_MAX_SEGMENTS`, `include/linux/udp.h`, before Linux 6.9).
pub(crate) const MAX_SEGMENTS: usize = 64;

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            arena: vec![0; ARENA].into_boxed_slice(),
            used: 0,
            bursts: Vec::new(),
            active: 0,
            max_segments: MAX_SEGMENTS,
        }
    }

    /// Returns an outbox without buffers, as a placeholder while the real one is borrowed.
    pub(crate) fn empty() -> Self {
        Self { arena: Box::default(), used: 0, bursts: Vec::new(), active: 0, max_segments: MAX_SEGMENTS }
    }

    /// Returns whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.active == 0
    }

    /// Returns whether the outbox should be sent now.
    pub(crate) fn is_worth_sending(&self) -> bool {
        self.used + 2 * MAX_PACKET > self.arena.len()
    }

    /// Adds packets for a peer until the outbox is full, and leaves the rest in `segments`. An empty outbox always has room
    /// for one.
    pub(crate) fn push(&mut self, hop: usize, segments: &mut Segments<'_>) {
        while let Some(len) = segments.write_next(&mut self.arena[self.used..]) {
            let start = self.used;
            self.used += len;
            let burst = match self.burst_for(hop, len) {
                Some(found) => &mut self.bursts[found],
                None => self.begin(hop, len),
            };
            burst.add(start..start + len);
        }
    }

    /// Returns the bursts, in order for each peer.
    pub(crate) fn bursts(&self) -> &[Burst] {
        &self.bursts[..self.active]
    }

    /// Returns the bursts, without the newest one if it can still grow.
    pub(crate) fn full_bursts(&self) -> &[Burst] {
        match self.bursts().split_last() {
            Some((newest, before)) if self.takes(newest, newest.segment) && newest.pieces.len() == 1 => {
                before
            }
            _ => self.bursts(),
        }
    }

    /// Returns the bytes of a burst, in pieces.
    pub(crate) fn pieces(&self, burst: &Burst) -> impl Iterator<Item = &[u8]> {
        burst.pieces.iter().map(|piece| &self.arena[piece.clone()])
    }

    /// Returns the packets of a burst.
    pub(crate) fn packets(&self, burst: &Burst) -> impl Iterator<Item = &[u8]> {
        let segment = burst.segment.max(1);
        self.pieces(burst).flat_map(move |piece| piece.chunks(segment))
    }

    /// Removes all bursts.
    pub(crate) fn clear(&mut self) {
        (self.used, self.active) = (0, 0);
    }

    /// Removes the [full bursts](Self::full_bursts) and moves the rest to the start of the buffer.
    pub(crate) fn clear_full(&mut self) {
        let full = self.full_bursts().len();
        if full == self.active {
            return self.clear();
        }
        self.bursts.swap(0, full);
        (self.used, self.active) = (0, 1);
        if let Some(piece) = self.bursts[0].pieces.first_mut() {
            self.arena.copy_within(piece.clone(), 0);
            *piece = 0..piece.len();
            self.used = piece.end;
        }
    }

    /// Returns the newest burst to a peer if a packet of that length fits.
    fn burst_for(&self, hop: usize, len: usize) -> Option<usize> {
        let newest = self.bursts().iter().rposition(|burst| burst.hop == hop)?;
        self.takes(&self.bursts[newest], len).then_some(newest)
    }

    fn takes(&self, burst: &Burst, len: usize) -> bool {
        !burst.closed
            && len <= burst.segment
            && burst.packets < self.max_segments
            && burst.bytes + len <= crate::sys::socket::MAX_BURST
    }

    fn begin(&mut self, hop: usize, segment: usize) -> &mut Burst {
        if self.active == self.bursts.len() {
            self.bursts.push(Burst::default());
        }
        self.active += 1;
        let burst = &mut self.bursts[self.active - 1];
        burst.pieces.clear();
        (burst.hop, burst.segment, burst.packets, burst.bytes, burst.closed) = (hop, segment, 0, 0, false);
        burst
    }
}

impl Burst {
    fn add(&mut self, piece: Range<usize>) {
        self.packets += 1;
        self.bytes += piece.len();
        self.closed = piece.len() < self.segment;
        match self.pieces.last_mut() {
            Some(last) if last.end == piece.start => last.end = piece.end,
            _ => self.pieces.push(piece),
        }
    }
}

/// Returns the UDP address of a hop.
pub(crate) fn address(routing: &Routing, hop: usize) -> Option<SocketAddr> {
    routing.peers.hops().get(hop).map(|hop| hop.address)
}

#[cfg(test)]
mod tests;
