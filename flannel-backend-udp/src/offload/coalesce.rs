//! Joining packets that follow each other into one that stands for them, as the kernel's own receive offload does.
//!
//! The order within each pair of hosts is kept by construction: a packet may only join the newest one of its flow, and
//! whatever cannot be joined closes all others between the same two hosts. Checksums are verified; a packet whose
//! checksum is wrong is passed on as it is, for the kernel to refuse and count.
//!
//! Payloads stay where they were received. What is joined is headers of its own and pieces of that buffer:
//!
//! ```text
//!  headers' payload | headers payload | headers payload   ──▶   headers' ─ payload ─ payload ─ payload
//! ```
//!
//! What may be joined (`net/ipv4/tcp_offload.c`, `net/ipv4/udp_offload.c`): TCP with nothing but ACK, PSH and FIN among
//! its flags, the next sequence number, the same acknowledgement, window, options, time to live, service and bit DF, and
//! payloads of one size; UDP likewise. A shorter payload, PSH or FIN is the last of its packet.

use std::ops::Range;

use super::split::{FIN, MAX_PACKET, PSH, TCP_HEADER, UDP_HEADER};
use super::virtio::{Gso, GsoKind, VIRTIO_HEADER, VirtioHeader};
use crate::packet::checksum::Sum;
use crate::packet::{IPV4_HEADER, IPV6_HEADER, TCP, UDP, decrement_ttl, set_u16, u16_at, u32_at};

/// How many packets may be under way at once. More flows than this in one burst are rare, and cost a write each.
const SLOTS: usize = 16;

/// The kernel cuts no packet of UDP into more (`UDP_MAX_SEGMENTS`, `include/linux/udp.h`, before Linux 6.9).
const UDP_SEGMENTS: usize = 64;

const ACK: u8 = 0x10;

/// The device's header, and so much of the first packet that all its headers are there (RFC 791, RFC 8200, RFC 9293: at
/// most 40 bytes of IP without extension headers, and 60 of TCP).
const HEAD: usize = 128;

/// So many pieces are joined, with which large packets fill 64 KiB.
pub(crate) const PIECES: usize = 64;

/// What is to be written to the device, in order.
#[derive(Debug)]
pub(crate) struct Coalescer {
    slots: Vec<Slot>,
    used: usize,
    /// The packet that was joined to or opened last. It is the newest of its flow: a newer one would be here.
    last: usize,
    pub(crate) joins_tcp: bool,
    pub(crate) joins_udp: bool,
}

/// One packet under way.
#[derive(Debug)]
struct Slot {
    /// The header of the device, then the beginning of the packet, of the one that was first in it.
    head: [u8; HEAD],
    /// Bytes of `head`.
    head_len: usize,
    /// What follows, in the buffer.
    pieces: Vec<Range<usize>>,
    /// Bytes of the packet.
    len: usize,
    /// What can be joined to it, and how it is finished; `None` passes on as it is.
    flow: Option<Flow>,
    /// Whether nothing may be joined any more.
    closed: bool,
}

/// What makes packets of one flow alike.
#[derive(Clone, Copy, Debug)]
struct Flow {
    is_v6: bool,
    is_tcp: bool,
    /// Where the transport header begins, and where the payload does.
    transport: usize,
    payload: usize,
    /// Bytes of payload in each packet.
    size: usize,
    count: usize,
    /// The sequence number that comes next (TCP), and the identification (IPv4).
    next_sequence: u32,
    next_identification: u16,
    /// The sum of the pseudo header without the length.
    pseudo: Sum,
}

/// A packet as it is to be written, behind the header of the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joined<'a> {
    head: &'a [u8],
    buffer: &'a [u8],
    pieces: &'a [Range<usize>],
}

impl<'a> Joined<'a> {
    /// Its bytes, in at most one part more than there are [`PIECES`].
    pub(crate) fn parts(self) -> impl Iterator<Item = &'a [u8]> {
        std::iter::once(self.head).chain(self.pieces.iter().map(move |piece| &self.buffer[piece.clone()]))
    }

    /// Whether it stands for several.
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

    /// Whether there is room for any packet.
    pub(crate) fn has_room(&self) -> bool {
        self.used < SLOTS
    }

    /// Takes a packet that [`Header`](crate::packet::Header) has read, without anything behind its end: where it is in
    /// the buffer, which is the same until [`finish`](Self::finish). The caller has made sure that there is room.
    pub(crate) fn push(&mut self, buffer: &[u8], place: Range<usize>) {
        let packet = &buffer[place.clone()];
        let joins = |is_tcp| if is_tcp { self.joins_tcp } else { self.joins_udp };
        let Some(flow) = Flow::of(packet).filter(|flow| joins(flow.is_tcp)) else {
            self.close_between(packet);
            self.open(packet, place, None);
            return;
        };
        // The addresses, and with them their sum, are the same in all of a flow.
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

    /// The packets as they are to be written, in order. The time to live of each has lost one.
    pub(crate) fn finish<'a>(&'a mut self, buffer: &'a [u8]) -> impl Iterator<Item = Joined<'a>> {
        let used = std::mem::take(&mut self.used);
        self.slots.iter_mut().take(used).map(|slot| slot.finish(buffer))
    }

    /// The newest packet of the same flow, if it may still be joined.
    fn newest_of(&self, packet: &[u8], flow: &Flow) -> Option<usize> {
        let used = &self.slots[..self.used];
        let newest = match used.get(self.last) {
            Some(last) if last.is_of_flow(packet, flow) => self.last,
            _ => used.iter().rposition(|slot| slot.is_of_flow(packet, flow))?,
        };
        (!self.slots[newest].closed).then_some(newest)
    }

    /// Lets nothing be joined any more to packets between the same two hosts: they are before this one.
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

    /// The first packet, as far as it is here: with all of its headers.
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

    /// Joins a packet of the same flow, if it comes next and there is room; tells whether it did.
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

    /// Makes the headers those of all that was joined.
    fn finish<'a>(&'a mut self, buffer: &'a [u8]) -> Joined<'a> {
        let (head, packet) = self.head[..self.head_len].split_at_mut(VIRTIO_HEADER);
        let mut header = VirtioHeader::default();
        if let Some(flow) = self.flow {
            let checksum_at = flow.transport + if flow.is_tcp { 16 } else { 6 };
            if flow.count > 1 {
                flow.lengthen(packet, self.len);
                header.gso = Some(Gso { kind: flow.kind(), size: flow.size as u16 });
            }
            // The sum of the pseudo header says that the rest was verified (`CHECKSUM_PARTIAL`).
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
    /// Reads what a packet has to be for others to be joined to it; `None` if none may be.
    fn of(packet: &[u8]) -> Option<Self> {
        let is_v6 = packet.first()? >> 4 == 6;
        let (transport, protocol) = if is_v6 {
            (IPV6_HEADER, *packet.get(6)?)
        } else {
            // No options, no fragments, and a header that nothing happened to.
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

    /// Whether a packet, which is of the same addresses and ports, comes right after what is there.
    fn continues_with(&self, there: &[u8], packet: &[u8], new: &Self) -> bool {
        let same = |range: Range<usize>| there[range.clone()] == packet[range];
        let (transport, payload) = (self.transport, self.payload);
        if new.payload != payload || new.size > self.size {
            return false;
        }
        let ip = if self.is_v6 {
            same(0..4) && same(7..8)
        } else {
            // Where nothing may be cut the identification has no meaning (RFC 6864, section 4.1).
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

    /// Whether nothing may follow a packet in the one that it is joined to.
    fn is_last(&self, packet: &[u8]) -> bool {
        self.is_tcp && packet[self.transport + 13] & (PSH | FIN) != 0
    }

    /// The sum of the pseudo header for a packet of so many bytes.
    fn pseudo_sum(&self, len: usize) -> Sum {
        self.pseudo.double((len - self.transport) as u32)
    }

    /// States the length of all that was joined.
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

/// The addresses of a packet whose header was read, with what tells the families apart by length.
fn addresses(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 6 { &packet[8..40] } else { &packet[12..20] }
}

#[cfg(test)]
mod tests;
