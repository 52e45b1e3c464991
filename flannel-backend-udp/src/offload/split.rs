//! Splits a GSO packet into its segments, each with valid headers and checksums.
//!
//! ```text
//!  headers  payload of up to 64 KiB            headers' payload | headers' payload | headers' rest
//! └───────┘└───────────────────────┘   ──▶    └────────────────┘└────────────────┘└─────────────┘
//! ```
//!
//! The caller provides the buffer for each segment, so the buffer bounds the work, not what a packet states. Per segment
//! (RFC 9293; `net/ipv4/tcp_offload.c`): lengths, the next identification (IPv4), the sequence number, FIN and PSH on the
//! last only, CWR on the first only, and checksums.

use super::virtio::{GsoKind, VirtioHeader};
use crate::packet::checksum::Sum;
use crate::packet::{IPV4_HEADER, IPV6_HEADER, TCP, UDP, set_u16, set_u32, u16_at, u32_at};

// TCP flags at offset 13 (RFC 9293, section 3.1).
pub(crate) const FIN: u8 = 0x01;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const CWR: u8 = 0x80;

pub(crate) const TCP_HEADER: usize = 20;
pub(crate) const UDP_HEADER: usize = 8;

/// The segments of one packet.
#[derive(Debug)]
pub(crate) struct Segments<'a> {
    packet: &'a [u8],
    plan: Plan,
    /// The number of segments written.
    written: usize,
}

#[derive(Debug)]
enum Plan {
    /// One segment, unchanged except for the checksum: the start of the sum, and the offset of the result.
    Whole(Option<(usize, usize)>),
    SegmentTemplate(SegmentTemplate),
}

/// The values that all segments share.
#[derive(Debug)]
struct SegmentTemplate {
    is_v6: bool,
    is_tcp: bool,
    /// The offset of the transport header.
    transport: usize,
    /// The offset of the payload.
    payload: usize,
    size: usize,
    count: usize,
    /// The sum of the IPv4 header without length, identification and checksum.
    ip_sum: Sum,
    /// The sum of pseudo-header and transport header without length, sequence number, flags and checksum.
    transport_sum: Sum,
}

/// The packet doesn't match its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl<'a> Segments<'a> {
    /// Validates a packet, which starts with an IP header that [`Header`](crate::packet::Header) accepted.
    pub(crate) fn new(header: &VirtioHeader, packet: &'a [u8]) -> Result<Self, Malformed> {
        let plan = match header.gso {
            None => Plan::Whole(checksum_place(header, packet)?),
            Some(gso) => {
                Plan::SegmentTemplate(SegmentTemplate::new(header, gso.kind, usize::from(gso.size), packet)?)
            }
        };
        Ok(Self { packet, plan, written: 0 })
    }

    /// Returns the number of segments left to write.
    pub(crate) fn left(&self) -> usize {
        let count = match &self.plan {
            Plan::Whole(_) => 1,
            Plan::SegmentTemplate(cut) => cut.count,
        };
        count - self.written
    }

    /// Writes the next segment and returns its length; `None` after the last one, or if it doesn't fit.
    pub(crate) fn write_next(&mut self, to: &mut [u8]) -> Option<usize> {
        if self.left() == 0 {
            return None;
        }
        let len = match &self.plan {
            Plan::Whole(place) => write_whole(to, self.packet, *place)?,
            Plan::SegmentTemplate(cut) => cut.write(to, self.packet, self.written)?,
        };
        self.written += 1;
        Some(len)
    }
}

/// Validates the checksum offsets of the virtio header.
fn checksum_place(header: &VirtioHeader, packet: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let Some((start, offset)) = header.checksum else { return Ok(None) };
    let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
    if at + 2 > packet.len() || start < IPV4_HEADER { Err(Malformed) } else { Ok(Some((start, at))) }
}

fn write_whole(to: &mut [u8], packet: &[u8], place: Option<(usize, usize)>) -> Option<usize> {
    let to = to.get_mut(..packet.len())?;
    let Some((start, at)) = place else {
        to.copy_from_slice(packet);
        return Some(packet.len());
    };
    to[..start].copy_from_slice(&packet[..start]);
    let checksum = Sum::copy(&mut to[start..], &packet[start..]).checksum();
    // In UDP a checksum of zero means "no checksum" (RFC 768).
    let is_udp = at - start == 6;
    set_u16(to, at, if checksum == 0 && is_udp { 0xffff } else { checksum });
    Some(packet.len())
}

impl SegmentTemplate {
    fn new(header: &VirtioHeader, kind: GsoKind, size: usize, packet: &[u8]) -> Result<Self, Malformed> {
        let is_v6 = packet.first().is_some_and(|version| version >> 4 == 6);
        let is_tcp = kind != GsoKind::Udp;
        if (kind == GsoKind::TcpV4 && is_v6) || (kind == GsoKind::TcpV6 && !is_v6) || size == 0 {
            return Err(Malformed);
        }
        let ip_header = if is_v6 { IPV6_HEADER } else { header_len_v4(packet)? };
        // IPv6 may have extension headers; the virtio header gives their end.
        let transport = header.checksum.map_or(ip_header, |(start, _)| usize::from(start));
        let smallest = if is_tcp { TCP_HEADER } else { UDP_HEADER };
        if transport < ip_header || packet.len() < transport + smallest || (!is_v6 && transport != ip_header)
        {
            return Err(Malformed);
        }
        let payload =
            transport + if is_tcp { usize::from(packet[transport + 12] >> 4) * 4 } else { smallest };
        if payload < transport + smallest || packet.len() < payload || payload + size > MAX_PACKET {
            return Err(Malformed);
        }
        let count = (packet.len() - payload).div_ceil(size).max(1);
        let (ip_sum, transport_sum) = sums(packet, is_v6, is_tcp, ip_header, transport, payload);
        Ok(Self { is_v6, is_tcp, transport, payload, size, count, ip_sum, transport_sum })
    }

    /// Writes segment number `index`.
    fn write(&self, to: &mut [u8], packet: &[u8], index: usize) -> Option<usize> {
        let start = self.payload + index * self.size;
        let part = packet.get(start..(start + self.size).min(packet.len()))?;
        let len = self.payload + part.len();
        let to = to.get_mut(..len)?;
        let (headers, payload) = to.split_at_mut(self.payload);
        headers.copy_from_slice(&packet[..self.payload]);
        let payload_sum = Sum::copy(payload, part);
        self.patch_ip(headers, len, index);
        let sum = self.transport_sum.and(payload_sum).double((len - self.transport) as u32);
        if self.is_tcp {
            self.patch_tcp(&mut headers[self.transport..], sum, index);
        } else {
            let udp = &mut headers[self.transport..];
            let udp_len = (len - self.transport) as u16;
            set_u16(udp, 4, udp_len);
            let checksum = sum.word(udp_len).checksum();
            // Zero means that there is no checksum (RFC 768).
            set_u16(udp, 6, if checksum == 0 { 0xffff } else { checksum });
        }
        Some(len)
    }

    fn patch_ip(&self, ip: &mut [u8], len: usize, index: usize) {
        if self.is_v6 {
            set_u16(ip, 4, (len - IPV6_HEADER) as u16);
            return;
        }
        let identification = u16_at(ip, 4).wrapping_add(index as u16);
        set_u16(ip, 2, len as u16);
        set_u16(ip, 4, identification);
        set_u16(ip, 10, self.ip_sum.word(len as u16).word(identification).checksum());
    }

    fn patch_tcp(&self, tcp: &mut [u8], sum: Sum, index: usize) {
        let sequence = u32_at(tcp, 4).wrapping_add((index * self.size) as u32);
        set_u32(tcp, 4, sequence);
        if index + 1 < self.count {
            tcp[13] &= !(FIN | PSH);
        }
        if index > 0 {
            tcp[13] &= !CWR;
        }
        set_u16(tcp, 16, sum.double(sequence).word(u16_at(tcp, 12)).checksum());
    }
}

/// The largest IP packet; its length field has 16 bits.
pub(crate) const MAX_PACKET: usize = 65_535;

fn header_len_v4(packet: &[u8]) -> Result<usize, Malformed> {
    let len = packet.first().map_or(0, |first| usize::from(first & 0xf) * 4);
    if len < IPV4_HEADER || packet.len() < len { Err(Malformed) } else { Ok(len) }
}

/// Computes the header sums without the fields that differ between segments.
fn sums(
    packet: &[u8],
    is_v6: bool,
    is_tcp: bool,
    ip_header: usize,
    transport: usize,
    payload: usize,
) -> (Sum, Sum) {
    let header = &packet[transport..payload];
    let addresses = if is_v6 { &packet[8..40] } else { &packet[12..20] };
    let pseudo = Sum::of(addresses).word(u16::from(if is_tcp { TCP } else { UDP }));
    let transport_sum = if is_tcp {
        // Ports; acknowledgement number; window; urgent pointer and options.
        let parts = [&header[..4], &header[8..12], &header[14..16], &header[18..]];
        parts.iter().fold(pseudo, |sum, part| sum.and(Sum::of(part)))
    } else {
        pseudo.and(Sum::of(&header[..4]))
    };
    if is_v6 {
        return (Sum::default(), transport_sum);
    }
    let parts = [&packet[..2], &packet[6..10], &packet[12..ip_header]];
    (parts.iter().fold(Sum::default(), |sum, part| sum.and(Sum::of(part))), transport_sum)
}

#[cfg(test)]
mod tests;
