//! Packets as one line each, in the manner of tcpdump.

use super::packet::{
    ArpPacket, Frame, FrameContent, IcmpMessage, TcpSegment, Transport, UdpContent, UdpDatagram, VxlanPacket,
};
use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

/// Writes hardware addresses and everything inside.
impl Display for Frame {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {} ", self.source, self.destination)?;
        match &self.content {
            FrameContent::Ipv4(packet) => {
                let (source, destination) = (packet.source.into(), packet.destination.into());
                write!(f, "IP {}", Ends(source, destination, &packet.transport))?;
                write!(f, " (ttl {}", packet.ttl)?;
                for (set, name) in [(packet.dont_fragment, "DF"), (packet.more_fragments, "MF")] {
                    if set {
                        write!(f, ", {name}")?;
                    }
                }
                if packet.fragment_offset > 0 {
                    write!(f, ", offset {}", packet.fragment_offset)?;
                }
                write!(f, ", length {}) {}", packet.total_length, Inside(packet.protocol, &packet.transport))
            }
            FrameContent::Ipv6(packet) => {
                let (source, destination) = (packet.source.into(), packet.destination.into());
                write!(f, "IP6 {}", Ends(source, destination, &packet.transport))?;
                write!(f, " (hlim {}, length {}) ", packet.hop_limit, packet.payload_length)?;
                Inside(packet.next_header, &packet.transport).fmt(f)
            }
            FrameContent::Arp(packet) => packet.fmt(f),
            FrameContent::Bytes(bytes) => {
                write!(f, "ethertype 0x{:04x}, {} bytes", self.ether_type, bytes.len())
            }
        }
    }
}

impl Display for ArpPacket {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.operation {
            1 => write!(f, "ARP who-has {} tell {}", self.target, self.sender),
            2 => write!(f, "ARP {} is-at {}", self.sender, self.sender_hardware),
            other => write!(f, "ARP operation {other}"),
        }
    }
}

impl Display for UdpDatagram {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "UDP")?;
        if self.checksum == 0 {
            write!(f, " no cksum")?;
        }
        match &self.content {
            UdpContent::Vxlan(packet) => write!(f, ", {packet}"),
            UdpContent::Bytes(bytes) => write!(f, ", {} bytes", bytes.len()),
        }
    }
}

impl Display for VxlanPacket {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "VXLAN flags 0x{:02x} vni {}: {}", self.flags, self.vni, self.inner)
    }
}

impl Display for TcpSegment {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "TCP [")?;
        // The bits from the lowest, with tcpdump's letters.
        for (bit, letter) in ["F", "S", "R", "P", ".", "U", "E", "W"].iter().enumerate() {
            if self.flags >> bit & 1 == 1 {
                write!(f, "{letter}")?;
            }
        }
        write!(f, "] seq {} ack {} win {}", self.sequence, self.acknowledgement, self.window)?;
        write!(f, ", {} bytes", self.payload.len())
    }
}

impl Display for IcmpMessage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let echo = if self.is_echo_request() {
            "request"
        } else if self.is_echo_reply() {
            "reply"
        } else {
            return write!(f, "ICMP type {} code {}", self.kind, self.code);
        };
        write!(
            f,
            "ICMP echo {echo} id {} seq {}, {} bytes",
            self.identifier,
            self.sequence,
            self.payload.len()
        )
    }
}

/// Source and destination, with ports where there are some.
struct Ends<'a>(IpAddr, IpAddr, &'a Transport);

impl Display for Ends<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(source, destination, transport) = self;
        match transport {
            Transport::Udp(udp) => {
                write!(f, "{source}.{} > {destination}.{}", udp.source_port, udp.destination_port)
            }
            Transport::Tcp(tcp) => {
                write!(f, "{source}.{} > {destination}.{}", tcp.source_port, tcp.destination_port)
            }
            Transport::Icmp(_) | Transport::Bytes(_) => write!(f, "{source} > {destination}"),
        }
    }
}

/// What an IP packet carries, with the number of a protocol that the decoder does not know.
struct Inside<'a>(u8, &'a Transport);

impl Display for Inside<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.1 {
            Transport::Udp(datagram) => datagram.fmt(f),
            Transport::Tcp(segment) => segment.fmt(f),
            Transport::Icmp(message) => message.fmt(f),
            Transport::Bytes(bytes) => write!(f, "protocol {}, {} bytes", self.0, bytes.len()),
        }
    }
}
