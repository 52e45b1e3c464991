//! What becomes of each packet: where it goes, what is dropped and why, and what bursts packets to one peer make.
//!
//! ```text
//!  from the device   split ─▶ next hop ─▶ TTL ─▶ Outbox: bursts by peer ─▶ one send for each
//!  from the network  cut at the datagrams ─▶ source check ─▶ Coalescer ─▶ one write for each
//! ```
//!
//! Pure: nothing here reads, writes or looks at a clock.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use crate::counters::DropReason;
use crate::offload::split::{MAX_PACKET, Segments};
use crate::packet::icmp::Trouble;
use crate::packet::{Header, decrement_ttl};
use crate::peers::Routing;

/// Why a packet does not go on, and whether its source is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: DropReason,
    pub(crate) trouble: Option<Trouble>,
}

impl Refusal {
    fn silent(reason: DropReason) -> Self {
        Self { reason, trouble: None }
    }
}

/// Finds the peer that a packet from the host goes to, and takes one from its time to live.
pub(crate) fn outward(routing: &Routing, packet: &mut [u8]) -> Result<usize, Refusal> {
    let header = Header::read(packet).ok_or(Refusal::silent(DropReason::MalformedOut))?;
    // What the kernel cuts later states its length as a whole.
    if header.total != packet.len() {
        return Err(Refusal::silent(DropReason::MalformedOut));
    }
    let Some(hop) = routing.peers.lookup(header.destination) else {
        let is_to_group = header.destination.is_multicast() || header.destination == IpAddr::from([255; 4]);
        return Err(if is_to_group {
            Refusal::silent(DropReason::Group)
        } else {
            Refusal { reason: DropReason::NoRoute, trouble: Some(Trouble::NoRoute) }
        });
    };
    if header.ttl <= 1 {
        return Err(Refusal { reason: DropReason::TimeExceeded, trouble: Some(Trouble::TimeExceeded) });
    }
    decrement_ttl(packet);
    Ok(hop)
}

/// Checks a datagram from the network, whose sender is a peer. Returns the source of the packet in it, the peer it is
/// from, and its length. Its time to live is left as it is.
///
/// `known` is a source that was found to be right before, of the same sender.
pub(crate) fn inward(
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
        return Err(Refusal { reason: DropReason::TimeExceeded, trouble: Some(Trouble::TimeExceeded) });
    }
    Ok((header.source, hop, header.total))
}

/// Packets on their way out, in bursts by peer. The order of packets to one peer is kept.
#[derive(Debug)]
pub(crate) struct Outbox {
    arena: Box<[u8]>,
    used: usize,
    /// Those in use are the first `active` ones; the others keep their memory.
    bursts: Vec<Burst>,
    active: usize,
    /// The largest number of packets in a burst.
    pub(crate) max_segments: usize,
}

/// Packets of one length for one peer; only the last may be shorter.
#[derive(Debug, Default)]
pub(crate) struct Burst {
    pub(crate) hop: usize,
    /// Bytes of each packet but the last.
    pub(crate) segment: usize,
    pub(crate) packets: usize,
    pub(crate) bytes: usize,
    pieces: Vec<Range<usize>>,
    closed: bool,
}

/// Room for two packets of 64 KiB and their headers: with more, what is written first has left the cache when it is sent.
const ARENA: usize = 4 * 65_536;

/// The kernel takes no more in one burst (`UDP_MAX_SEGMENTS`, `include/linux/udp.h`, before Linux 6.9).
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

    /// Without room for anything: what stands in for one while it is looked at.
    pub(crate) fn empty() -> Self {
        Self { arena: Box::default(), used: 0, bursts: Vec::new(), active: 0, max_segments: MAX_SEGMENTS }
    }

    /// Whether there is nothing to be sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.active == 0
    }

    /// Whether there is enough for it to be worth to send it now.
    pub(crate) fn is_worth_sending(&self) -> bool {
        self.used + 2 * MAX_PACKET > self.arena.len()
    }

    /// Takes packets for a peer, as many as there is room for; there is always room for one when nothing waits. Some
    /// are left in `segments` if there was no room.
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

    /// The bursts, in order for each peer.
    pub(crate) fn bursts(&self) -> &[Burst] {
        &self.bursts[..self.active]
    }

    /// The bursts without the newest, if more packets of its length would find room in that one.
    pub(crate) fn full_bursts(&self) -> &[Burst] {
        match self.bursts().split_last() {
            Some((newest, before)) if self.takes(newest, newest.segment) && newest.pieces.len() == 1 => {
                before
            }
            _ => self.bursts(),
        }
    }

    /// The bytes of a burst, in pieces.
    pub(crate) fn pieces(&self, burst: &Burst) -> impl Iterator<Item = &[u8]> {
        burst.pieces.iter().map(|piece| &self.arena[piece.clone()])
    }

    /// The packets of a burst, one by one.
    pub(crate) fn packets(&self, burst: &Burst) -> impl Iterator<Item = &[u8]> {
        let segment = burst.segment.max(1);
        self.pieces(burst).flat_map(move |piece| piece.chunks(segment))
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        (self.used, self.active) = (0, 0);
    }

    /// Forgets the [full bursts](Self::full_bursts), and moves what is left to where there is all room behind it.
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

    /// The newest burst to a peer, if a packet of that length can be its next.
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

/// The address to which a peer's datagrams go.
pub(crate) fn address(routing: &Routing, hop: usize) -> Option<SocketAddr> {
    routing.peers.hops().get(hop).map(|hop| hop.address)
}

#[cfg(test)]
mod tests;
