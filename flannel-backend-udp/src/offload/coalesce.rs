//! Coalesces consecutive packets of a flow into one GSO packet, as the kernel's GRO does.
//!
//! Packets between two hosts stay in order by construction: a packet can only extend the newest packet of its flow, and a
//! packet that can't be coalesced closes all others between the same two hosts. Checksums are verified; a packet with an
//! invalid checksum passes unchanged, so that the kernel drops and counts it.
//!
//! Payloads stay in the receive buffer. A coalesced packet consists of its own headers and pieces of that buffer:
//!
//! ```text
//!  headers' payload | headers payload | headers payload   ──▶   headers' ─ payload ─ payload ─ payload
//! ```
//!
//! Packets can be coalesced (`net/ipv4/tcp_offload.c`, `net/ipv4/udp_offload.c`) if they are TCP with only ACK, PSH and FIN
//! set, the next sequence number, equal acknowledgement, window, options, TTL, TOS and DF, and payloads of one size; UDP
//! likewise. A shorter payload, PSH or FIN ends the packet.

use std::ops::Range;

use super::split::{FIN, MAX_PACKET, PSH, TCP_HEADER, UDP_HEADER};
use super::virtio::{Gso, GsoKind, VIRTIO_HEADER, VirtioHeader};
use crate::packet::checksum::Sum;
use crate::packet::{IPV4_HEADER, IPV6_HEADER, TCP, UDP, decrement_ttl, set_u16, u16_at, u32_at};

/// The most open packets. More flows in one burst are rare, and cost one write each.
const SLOTS: usize = 16;

/// The kernel's limit for a UDP GSO packet (`UDP_MAX_SEGMENTS`, `include/linux/udp.h`, before Linux 6.9).
const UDP_SEGMENTS: usize = 64;

const ACK: u8 = 0x10;

/// Bytes for the virtio header and all headers of the first packet (RFC 791, RFC 8200, RFC 9293: at most 40 bytes of IP
/// without extension headers, and 60 of TCP).
const HEAD: usize = 128;

/// The most pieces of one packet; with large packets they fill 64 KiB.
pub(crate) const PIECES: usize = 64;

/// The packets to write to the device, in order.
#[derive(Debug)]
pub(crate) struct Coalescer {
    slots: Vec<Slot>,
    used: usize,
    /// The last opened or extended packet, which is the newest of its flow.
    last: usize,
    pub(crate) joins_tcp: bool,
    pub(crate) joins_udp: bool,
}

/// One open packet.
#[derive(Debug)]
struct Slot {
    /// The virtio header and the start of the first packet.
    head: [u8; HEAD],
    /// Used bytes of `head`.
    head_len: usize,
    /// The rest of the packet, as ranges of the receive buffer.
    pieces: Vec<Range<usize>>,
    /// Bytes of the packet so far.
    len: usize,
    /// The flow, if packets can be added; `None` passes the packet unchanged.
    flow: Option<Flow>,
    /// Whether no packet may be added any more.
    closed: bool,
}

/// The state of a flow.
#[derive(Clone, Copy, Debug)]
struct Flow {
    is_v6: bool,
    is_tcp: bool,
    /// The offsets of the transport header and the payload.
    transport: usize,
    payload: usize,
    /// Payload bytes of each packet.
    size: usize,
    count: usize,
    /// The next sequence number (TCP) and identification (IPv4).
    next_sequence: u32,
    next_identification: u16,
    /// The sum of the pseudo-header without the length.
    pseudo: Sum,
}

/// A packet to write, after its virtio header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joined<'a> {
    head: &'a [u8],
    buffer: &'a [u8],
    pieces: &'a [Range<usize>],
}

impl<'a> Joined<'a> {
    /// Returns its bytes in at most [`PIECES`] + 1 parts.
    pub(crate) fn parts(self) -> impl Iterator<Item = &'a [u8]> {
        std::iter::once(self.head).chain(self.pieces.iter().map(move |piece| &self.buffer[piece.clone()]))
    }

    /// Returns whether it consists of several packets.
    pub(crate) fn is_joined(self) -> bool {
        VirtioHeader::read(self.head).is_some_and(|header| header.gso.is_some())
    }
}

impl Coalescer {
    pub(crate) fn new() -> Self {
        let slot = || Slot {
            head: [0; HEAD],
            head_len: 0,
            pieces: Vec::with_capacity(PIECES),
            len: 0,
            flow: None,
            closed: true,
        };
        Self {
            slots: (0..SLOTS).map(|_| slot()).collect(),
            used: 0,
            last: 0,
            joins_tcp: true,
            joins_udp: true,
        }
    }

    /// Returns whether another packet fits.
    pub(crate) fn has_room(&self) -> bool {
        self.used < SLOTS
    }

    /// Adds a packet that [`Header`](crate::packet::Header) accepted, given as its range in the buffer without trailing bytes.
    /// The buffer must not change before [`finish`](Self::finish), and there must be room.
    pub(crate) fn push(&mut self, buffer: &[u8], place: Range<usize>) {
        let packet = &buffer[place.clone()];
        let joins = |is_tcp| if is_tcp { self.joins_tcp } else { self.joins_udp };
        let Some(flow) = Flow::of(packet).filter(|flow| joins(flow.is_tcp)) else {
            self.close_between(packet);
            self.open(packet, place, None);
            return;
        };
        // All packets of a flow have the same addresses and the same sum of them.
        let is_right = flow.pseudo_sum(packet.len()).and(Sum::of(&packet[flow.transport..])).fold() == 0xffff;
        if let Some(newest) = self.newest_of(packet, &flow) {
            if is_right && self.slots[newest].join(packet, place.clone(), &flow) {
                self.last = newest;
                return;
            }
            self.slots[newest].closed = true;
        }
        if !is_right {
            self.close_between(packet);
        }
        self.open(packet, place, is_right.then_some(flow));
    }

    /// Returns the packets to write, in order and with a decremented TTL.
    pub(crate) fn finish<'a>(&'a mut self, buffer: &'a [u8]) -> impl Iterator<Item = Joined<'a>> {
        let used = std::mem::take(&mut self.used);
        self.slots.iter_mut().take(used).map(|slot| slot.finish(buffer))
    }

    /// Returns the newest packet of the same flow if it is still open.
    fn newest_of(&self, packet: &[u8], flow: &Flow) -> Option<usize> {
        let used = &self.slots[..self.used];
        let newest = match used.get(self.last) {
            Some(last) if last.is_of_flow(packet, flow) => self.last,
            _ => used.iter().rposition(|slot| slot.is_of_flow(packet, flow))?,
        };
        (!self.slots[newest].closed).then_some(newest)
    }

    /// Closes all packets between the same two hosts, which must stay ahead of this one.
    fn close_between(&mut self, packet: &[u8]) {
        for slot in &mut self.slots[..self.used] {
            if addresses(slot.beginning()) == addresses(packet) {
                slot.closed = true;
            }
        }
    }

    fn open(&mut self, packet: &[u8], place: Range<usize>, flow: Option<Flow>) {
        let Some(slot) = self.slots.get_mut(self.used) else { return };
        self.last = self.used;
        self.used += 1;
        slot.open(packet, place, flow);
    }
}

impl Slot {
    fn open(&mut self, packet: &[u8], place: Range<usize>, flow: Option<Flow>) {
        let beginning = packet.len().min(HEAD - VIRTIO_HEADER);
        self.head_len = VIRTIO_HEADER + beginning;
        self.head[VIRTIO_HEADER..self.head_len].copy_from_slice(&packet[..beginning]);
        self.pieces.clear();
        if beginning < packet.len() {
            self.pieces.push(place.start + beginning..place.end);
        }
        self.len = packet.len();
        self.closed = flow.is_none_or(|flow| flow.is_last(packet));
        self.flow = flow;
    }

    /// Returns the start of the first packet, with all of its headers.
    fn beginning(&self) -> &[u8] {
        &self.head[VIRTIO_HEADER..self.head_len]
    }

    fn is_of_flow(&self, packet: &[u8], flow: &Flow) -> bool {
        let mine = self.beginning();
        self.flow.is_some_and(|own| {
            (own.is_v6, own.is_tcp) == (flow.is_v6, flow.is_tcp)
                && mine[own.transport..own.transport + 4] == packet[flow.transport..flow.transport + 4]
                && addresses(mine) == addresses(packet)
        })
    }

    /// Adds a packet of the same flow if it is the next one and fits; returns whether it did.
    fn join(&mut self, packet: &[u8], place: Range<usize>, new: &Flow) -> bool {
        let there = &mut self.head[VIRTIO_HEADER..self.head_len];
        let Some(flow) = &mut self.flow else { return false };
        let part = packet.len() - new.payload;
        if !flow.continues_with(there, packet, new)
            || self.len + part > MAX_PACKET
            || self.pieces.len() == PIECES
        {
            return false;
        }
        if flow.is_tcp {
            there[flow.transport + 13] |= packet[new.transport + 13];
        }
        self.pieces.push(place.start + new.payload..place.end);
        self.len += part;
        flow.count += 1;
        flow.next_sequence = new.next_sequence;
        flow.next_identification = new.next_identification;
        self.closed = part < flow.size || new.is_last(packet) || (!flow.is_tcp && flow.count == UDP_SEGMENTS);
        true
    }

    /// Updates the headers to cover all added packets.
    fn finish<'a>(&'a mut self, buffer: &'a [u8]) -> Joined<'a> {
        let (head, packet) = self.head[..self.head_len].split_at_mut(VIRTIO_HEADER);
        let mut header = VirtioHeader::default();
        if let Some(flow) = self.flow {
            let checksum_at = flow.transport + if flow.is_tcp { 16 } else { 6 };
            if flow.count > 1 {
                flow.lengthen(packet, self.len);
                header.gso = Some(Gso { kind: flow.kind(), size: flow.size as u16 });
            }
            // The pseudo-header sum marks the checksum as verified (`CHECKSUM_PARTIAL`).
            set_u16(packet, checksum_at, flow.pseudo_sum(self.len).fold());
            header.checksum = Some((flow.transport as u16, (checksum_at - flow.transport) as u16));
            header.header_len = flow.payload as u16;
        }
        decrement_ttl(packet);
        head.copy_from_slice(&header.to_bytes());
        Joined { head: &self.head[..self.head_len], buffer, pieces: &self.pieces }
    }
}

impl Flow {
    /// Returns the flow of a packet that others can be added to; `None` for all other packets.
    fn of(packet: &[u8]) -> Option<Self> {
        let is_v6 = packet.first()? >> 4 == 6;
        let (transport, protocol) = if is_v6 {
            (IPV6_HEADER, *packet.get(6)?)
        } else {
            // No options, no fragments, and a valid header checksum.
            let plain = packet.len() >= IPV4_HEADER && packet[0] == 0x45 && u16_at(packet, 6) & 0x3fff == 0;
            if !plain || Sum::of(&packet[..IPV4_HEADER]).fold() != 0xffff {
                return None;
            }
            (IPV4_HEADER, packet[9])
        };
        let header = packet.get(transport..)?;
        let (is_tcp, header_len, next_sequence) = match protocol {
            TCP if header.len() >= TCP_HEADER => (true, usize::from(header[12] >> 4) * 4, u32_at(header, 4)),
            UDP if header.len() > UDP_HEADER => (false, UDP_HEADER, 0),
            _ => return None,
        };
        let size = header.len().checked_sub(header_len).filter(|size| *size > 0)?;
        let fits = if is_tcp {
            header_len >= TCP_HEADER && header[13] & !(PSH | FIN) == ACK && header[12] & 0xf == 0
        } else {
            usize::from(u16_at(header, 4)) == header.len() && u16_at(header, 6) != 0
        };
        fits.then(|| Self {
            is_v6,
            is_tcp,
            transport,
            payload: transport + header_len,
            size,
            count: 1,
            next_sequence: next_sequence.wrapping_add(size as u32),
            next_identification: u16_at(packet, 4).wrapping_add(1),
            pseudo: Sum::of(addresses(packet)).word(u16::from(protocol)),
        })
    }

    /// Returns whether a packet with the same addresses and ports directly follows.
    fn continues_with(&self, there: &[u8], packet: &[u8], new: &Self) -> bool {
        let same = |range: Range<usize>| there[range.clone()] == packet[range];
        let (transport, payload) = (self.transport, self.payload);
        if new.payload != payload || new.size > self.size {
            return false;
        }
        let ip = if self.is_v6 {
            same(0..4) && same(7..8)
        } else {
            // The identification of atomic datagrams is meaningless (RFC 6864, section 4.1).
            let in_order = packet[6] & 0x40 != 0 || u16_at(packet, 4) == self.next_identification;
            same(1..2) && same(6..9) && in_order
        };
        let transport = !self.is_tcp
            || (u32_at(packet, transport + 4) == self.next_sequence
                && same(transport + 8..transport + 13)
                && same(transport + 14..transport + 16)
                && same(transport + 18..payload));
        ip && transport
    }

    /// Returns whether a packet ends the coalesced one.
    fn is_last(&self, packet: &[u8]) -> bool {
        self.is_tcp && packet[self.transport + 13] & (PSH | FIN) != 0
    }

    /// Returns the pseudo-header sum for a packet of `len` bytes.
    fn pseudo_sum(&self, len: usize) -> Sum {
        self.pseudo.double((len - self.transport) as u32)
    }

    /// Writes the total length into the headers.
    fn lengthen(&self, packet: &mut [u8], len: usize) {
        if self.is_v6 {
            set_u16(packet, 4, (len - IPV6_HEADER) as u16);
        } else {
            set_u16(packet, 2, len as u16);
            set_u16(packet, 10, 0);
            let checksum = Sum::of(&packet[..IPV4_HEADER]).checksum();
            set_u16(packet, 10, checksum);
        }
        if !self.is_tcp {
            set_u16(packet, self.transport + 4, (len - self.transport) as u16);
        }
    }

    fn kind(&self) -> GsoKind {
        match (self.is_tcp, self.is_v6) {
            (true, false) => GsoKind::TcpV4,
            (true, true) => GsoKind::TcpV6,
            (false, _) => GsoKind::Udp,
        }
    }
}

/// Returns the address bytes of a packet; their length distinguishes the address families.
fn addresses(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 6 { &packet[8..40] } else { &packet[12..20] }
}

#[cfg(test)]
mod tests;
