//! ICMP errors for packets that can't be forwarded (RFC 792, RFC 4443).

use std::net::IpAddr;

use super::checksum::Sum;
use super::{Header, ICMP, ICMPV6, IPV4_HEADER, IPV6_HEADER, set_u16, set_u32};

/// An error to report to a packet's source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IcmpError {
    /// No peer's subnet contains the destination.
    NoRoute,
    /// The TTL or hop limit expired.
    TimeExceeded,
    /// The packet exceeds the path MTU, in bytes.
    TooBig(u16),
}

/// The largest ICMP errors: 576 bytes (RFC 1812, section 4.3.2.3), and the minimum MTU of IPv6 (RFC 4443,
/// section 2.4 (c)).
const MAX_V4: usize = 576;
const MAX_V6: usize = 1280;

/// Bytes of an ICMP header.
const ICMP_HEADER: usize = 8;

/// The TTL of errors that this host sends.
const TTL: u8 = 64;

/// A buffer for the largest error.
pub(crate) type Message = [u8; MAX_V6];

/// Writes the ICMP error for a packet and returns its length; `None` if the RFCs forbid an error for it (RFC 1122,
/// section 3.2.2; RFC 4443, section 2.4 (e)).
pub(crate) fn write(message: &mut Message, own: IpAddr, error: IcmpError, packet: &[u8]) -> Option<usize> {
    let header = Header::read(packet)?;
    if header.is_later_fragment || is_error(&header, packet) || !is_one_host(header.source) {
        return None;
    }
    // Path MTU discovery of IPv6 needs "packet too big" for multicast too.
    let is_to_group = header.destination.is_multicast() || header.destination == IpAddr::from([255; 4]);
    if is_to_group {
        return None;
    }
    match (own, header.source) {
        (IpAddr::V4(own), IpAddr::V4(to)) => {
            Some(write_v4(message, own.octets(), to.octets(), error, packet))
        }
        (IpAddr::V6(own), IpAddr::V6(to)) => {
            Some(write_v6(message, own.octets(), to.octets(), error, packet))
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

fn write_v4(message: &mut Message, own: [u8; 4], to: [u8; 4], error: IcmpError, packet: &[u8]) -> usize {
    let quoted = packet.len().min(MAX_V4 - IPV4_HEADER - ICMP_HEADER);
    let total = IPV4_HEADER + ICMP_HEADER + quoted;
    message[..total].fill(0);
    let (ip, icmp) = message[..total].split_at_mut(IPV4_HEADER);
    ip[0] = 0x45;
    set_u16(ip, 2, total as u16);
    ip[8] = TTL;
    ip[9] = ICMP;
    ip[12..16].copy_from_slice(&own);
    ip[16..20].copy_from_slice(&to);
    set_u16(ip, 10, Sum::of(ip).checksum());
    (icmp[0], icmp[1]) = match error {
        IcmpError::NoRoute => (3, 0),
        IcmpError::TimeExceeded => (11, 0),
        IcmpError::TooBig(mtu) => {
            // RFC 1191, section 4.
            set_u16(icmp, 6, mtu);
            (3, 4)
        }
    };
    icmp[ICMP_HEADER..].copy_from_slice(&packet[..quoted]);
    set_u16(icmp, 2, Sum::of(icmp).checksum());
    total
}

fn write_v6(message: &mut Message, own: [u8; 16], to: [u8; 16], error: IcmpError, packet: &[u8]) -> usize {
    let quoted = packet.len().min(MAX_V6 - IPV6_HEADER - ICMP_HEADER);
    let total = IPV6_HEADER + ICMP_HEADER + quoted;
    message[..total].fill(0);
    let (ip, icmp) = message[..total].split_at_mut(IPV6_HEADER);
    ip[0] = 0x60;
    set_u16(ip, 4, icmp.len() as u16);
    ip[6] = ICMPV6;
    ip[7] = TTL;
    ip[8..24].copy_from_slice(&own);
    ip[24..40].copy_from_slice(&to);
    (icmp[0], icmp[1]) = match error {
        IcmpError::NoRoute => (1, 0),
        IcmpError::TimeExceeded => (3, 0),
        IcmpError::TooBig(mtu) => {
            set_u32(icmp, 4, u32::from(mtu));
            (2, 0)
        }
    };
    icmp[ICMP_HEADER..].copy_from_slice(&packet[..quoted]);
    let pseudo = Sum::of(&ip[8..40]).word(u16::from(ICMPV6)).double(icmp.len() as u32);
    set_u16(icmp, 2, pseudo.and(Sum::of(icmp)).checksum());
    total
}

/// Returns whether a packet is or may be an ICMP error.
fn is_error(header: &Header, packet: &[u8]) -> bool {
    let kind = packet.get(header.len).copied();
    match header.protocol {
        // Echo, router discovery, timestamp and information messages aren't errors; all others are.
        ICMP => !kind.is_some_and(|kind| matches!(kind, 0 | 8..=10 | 13..=18)),
        ICMPV6 => kind.is_none_or(|kind| kind < 128),
        _ => false,
    }
}

/// Returns whether an address can belong to a single remote host.
fn is_one_host(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast() || v4.octets()[0] >= 240);
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_broadcast)
}
