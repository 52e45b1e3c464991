//! Parsing and editing of IP headers (RFC 791, RFC 8200).
//!
//! Pure, and trusts no length that a packet states.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) mod checksum;
pub(crate) mod icmp;

use checksum::after_ttl_decrement;

pub(crate) const IPV4_HEADER: usize = 20;
pub(crate) const IPV6_HEADER: usize = 40;

// Protocol numbers (IANA, "Assigned Internet Protocol Numbers").
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const ICMPV6: u8 = 58;

/// The header fields that forwarding uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Bytes of the header with options, without extension headers.
    pub(crate) len: usize,
    /// Bytes of the whole packet, as stated in the header.
    pub(crate) total: usize,
    /// The TTL or hop limit.
    pub(crate) ttl: u8,
    /// The protocol after the header.
    pub(crate) protocol: u8,
    /// Whether the packet is a fragment.
    pub(crate) is_fragment: bool,
    /// Whether the packet is a fragment other than the first.
    pub(crate) is_later_fragment: bool,
    /// Whether the packet must not be fragmented; always true for IPv6 (RFC 8200, section 5).
    pub(crate) dont_fragment: bool,
}

impl Header {
    /// Parses the header of a packet; `None` if it is missing or inconsistent.
    pub(crate) fn read(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::read_v4(packet),
            6 => Self::read_v6(packet),
            _ => None,
        }
    }

    fn read_v4(packet: &[u8]) -> Option<Self> {
        let fixed: &[u8; IPV4_HEADER] = packet.first_chunk()?;
        let len = usize::from(fixed[0] & 0xf) * 4;
        let total = usize::from(u16_at(fixed, 2));
        if len < IPV4_HEADER || total < len || packet.len() < len {
            return None;
        }
        let fragment = u16_at(fixed, 6);
        Some(Self {
            source: IpAddr::V4(Ipv4Addr::from_bits(u32_at(fixed, 12))),
            destination: IpAddr::V4(Ipv4Addr::from_bits(u32_at(fixed, 16))),
            len,
            total,
            ttl: fixed[8],
            protocol: fixed[9],
            is_fragment: fragment & 0x3fff != 0,
            is_later_fragment: fragment & 0x1fff != 0,
            dont_fragment: fragment & 0x4000 != 0,
        })
    }

    fn read_v6(packet: &[u8]) -> Option<Self> {
        let fixed: &[u8; IPV6_HEADER] = packet.first_chunk()?;
        let address = |at: usize| {
            let mut octets = [0; 16];
            octets.copy_from_slice(&fixed[at..at + 16]);
            IpAddr::V6(Ipv6Addr::from(octets))
        };
        let is_fragment = fixed[6] == FRAGMENT;
        // The fragment offset field (RFC 8200, section 4.5).
        let is_later = is_fragment && packet.len() >= IPV6_HEADER + 4 && u16_at(packet, 42) & 0xfff8 != 0;
        Some(Self {
            source: address(8),
            destination: address(24),
            len: IPV6_HEADER,
            total: IPV6_HEADER + usize::from(u16_at(fixed, 4)),
            ttl: fixed[7],
            protocol: fixed[6],
            is_fragment,
            is_later_fragment: is_later,
            dont_fragment: true,
        })
    }
}

/// Decrements the TTL of a packet that [`Header::read`] accepted and whose TTL is above one.
pub(crate) fn decrement_ttl(packet: &mut [u8]) {
    match packet {
        [version, _, _, _, _, _, _, hop_limit, ..] if *version >> 4 == 6 => {
            *hop_limit = hop_limit.saturating_sub(1);
        }
        [_, _, _, _, _, _, _, _, ttl, _, high, low, ..] => {
            *ttl = ttl.saturating_sub(1);
            [*high, *low] = after_ttl_decrement(u16::from_be_bytes([*high, *low])).to_be_bytes();
        }
        _ => {}
    }
}

/// Reads two bytes, which must exist.
#[inline]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Reads four bytes, which must exist.
#[inline]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Writes two bytes, which must exist.
#[inline]
pub(crate) fn set_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Writes four bytes, which must exist.
#[inline]
pub(crate) fn set_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
