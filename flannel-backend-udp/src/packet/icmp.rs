//! Error messages about packets that cannot go on (RFC 792, RFC 4443).

use std::net::IpAddr;

use super::checksum::Sum;
use super::{Header, ICMP, ICMPV6, IPV4_HEADER, IPV6_HEADER, set_u16, set_u32};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// No peer has the destination.
    NoRoute,
    /// The packet has been through too many hosts.
    TimeExceeded,
    /// The packet is larger than the path carries, which is so many bytes.
    TooBig(u16),
}

/// The largest error messages: 576 bytes (RFC 1812, section 4.3.2.3) and the smallest MTU of IPv6 (RFC 4443,
/// section 2.4 (c)).
const MAX_V4: usize = 576;
const MAX_V6: usize = 1280;

/// Bytes of an ICMP header.
const ICMP_HEADER: usize = 8;

/// The time to live of what this host sends.
const TTL: u8 = 64;

/// Room for any error message.
pub(crate) type Message = [u8; MAX_V6];

/// Writes the error message to the source of a packet, and returns its length; `None` if there must not be one
/// (RFC 1122, section 3.2.2; RFC 4443, section 2.4 (e)).
pub(crate) fn write(message: &mut Message, own: IpAddr, trouble: Trouble, packet: &[u8]) -> Option<usize> {
    let header = Header::read(packet)?;
    if header.is_later_fragment || is_error(&header, packet) || !is_one_host(header.source) {
        return None;
    }
    // A packet to a group may be told to be too big, as its path is looked for with it in IPv6.
    let is_to_group = header.destination.is_multicast() || header.destination == IpAddr::from([255; 4]);
    if is_to_group {
        return None;
    }
    match (own, header.source) {
        (IpAddr::V4(own), IpAddr::V4(to)) => {
            Some(write_v4(message, own.octets(), to.octets(), trouble, packet))
        }
        (IpAddr::V6(own), IpAddr::V6(to)) => {
            Some(write_v6(message, own.octets(), to.octets(), trouble, packet))
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

fn write_v4(message: &mut Message, own: [u8; 4], to: [u8; 4], trouble: Trouble, packet: &[u8]) -> usize {
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
    (icmp[0], icmp[1]) = match trouble {
        Trouble::NoRoute => (3, 0),
        Trouble::TimeExceeded => (11, 0),
        Trouble::TooBig(mtu) => {
            // RFC 1191, section 4.
            set_u16(icmp, 6, mtu);
            (3, 4)
        }
    };
    icmp[ICMP_HEADER..].copy_from_slice(&packet[..quoted]);
    set_u16(icmp, 2, Sum::of(icmp).checksum());
    total
}

fn write_v6(message: &mut Message, own: [u8; 16], to: [u8; 16], trouble: Trouble, packet: &[u8]) -> usize {
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
    (icmp[0], icmp[1]) = match trouble {
        Trouble::NoRoute => (1, 0),
        Trouble::TimeExceeded => (3, 0),
        Trouble::TooBig(mtu) => {
            set_u32(icmp, 4, u32::from(mtu));
            (2, 0)
        }
    };
    icmp[ICMP_HEADER..].copy_from_slice(&packet[..quoted]);
    let pseudo = Sum::of(&ip[8..40]).word(u16::from(ICMPV6)).double(icmp.len() as u32);
    set_u16(icmp, 2, pseudo.and(Sum::of(icmp)).checksum());
    total
}

/// Tells whether a packet is an error message itself, or may be one.
fn is_error(header: &Header, packet: &[u8]) -> bool {
    let kind = packet.get(header.len).copied();
    match header.protocol {
        // Echo, router discovery, timestamp and information are questions and answers; all others are errors.
        ICMP => !kind.is_some_and(|kind| matches!(kind, 0 | 8..=10 | 13..=18)),
        ICMPV6 => kind.is_none_or(|kind| kind < 128),
        _ => false,
    }
}

/// Tells whether an address can be that of one host that is not this one.
fn is_one_host(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast() || v4.octets()[0] >= 240);
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_broadcast)
}
