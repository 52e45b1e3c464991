//! Packets as typed values: Ethernet, ARP, IPv4, IPv6, UDP, TCP, ICMP, VXLAN and what is inside it.
//!
//! What could not be read, because it is cut short, of an unknown protocol or not the first fragment, is a
//! sequence of bytes at that layer.

use super::decode::Decoder;
use flannel_netlink::Mac;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// UDP ports behind which the decoder looks for VXLAN: the Linux default and RFC 7348's.
pub const VXLAN_PORTS: [u16; 2] = [8472, 4789];

/// An Ethernet frame.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Frame {
    /// Hardware address it goes to.
    pub destination: Mac,
    /// Hardware address it comes from.
    pub source: Mac,
    /// Protocol of its content, such as 0x0800 for IPv4.
    pub ether_type: u16,
    /// What it carries.
    pub content: FrameContent,
}

/// What an Ethernet frame carries.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum FrameContent {
    /// An IPv4 packet.
    Ipv4(Ipv4Packet),
    /// An IPv6 packet.
    Ipv6(Ipv6Packet),
    /// An ARP question or answer for IPv4.
    Arp(ArpPacket),
    /// Bytes that the decoder does not know or that are cut short.
    Bytes(Vec<u8>),
}

/// An ARP packet for Ethernet and IPv4 (RFC 826).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ArpPacket {
    /// 1 for a request, 2 for a reply.
    pub operation: u16,
    /// Hardware address of the sender.
    pub sender_hardware: Mac,
    /// Address of the sender.
    pub sender: Ipv4Addr,
    /// Hardware address of the target, zero in a request.
    pub target_hardware: Mac,
    /// Address of the target.
    pub target: Ipv4Addr,
}

/// An IPv4 packet (RFC 791).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Ipv4Packet {
    /// Address it comes from.
    pub source: Ipv4Addr,
    /// Address it goes to.
    pub destination: Ipv4Addr,
    /// Type of service: DSCP and ECN.
    pub tos: u8,
    /// Hops it may still take.
    pub ttl: u8,
    /// Bytes of header and payload, as the header says.
    pub total_length: u16,
    /// Number that its fragments share.
    pub identification: u16,
    /// Whether routers may not fragment it (DF).
    pub dont_fragment: bool,
    /// Whether it is a fragment that others follow (MF).
    pub more_fragments: bool,
    /// Where in the whole packet this fragment starts, in bytes.
    pub fragment_offset: u16,
    /// Protocol of its payload, such as 17 for UDP.
    pub protocol: u8,
    /// What it carries.
    pub transport: Transport,
}

/// An IPv6 packet without extension headers (RFC 8200).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Ipv6Packet {
    /// Address it comes from.
    pub source: Ipv6Addr,
    /// Address it goes to.
    pub destination: Ipv6Addr,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Label of its flow, 20 bits.
    pub flow_label: u32,
    /// Hops it may still take.
    pub hop_limit: u8,
    /// Bytes of payload, as the header says.
    pub payload_length: u16,
    /// Protocol of its payload, such as 17 for UDP.
    pub next_header: u8,
    /// What it carries.
    pub transport: Transport,
}

/// What an IP packet carries.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Transport {
    /// A UDP datagram.
    Udp(UdpDatagram),
    /// A TCP segment.
    Tcp(TcpSegment),
    /// An ICMP message of either family.
    Icmp(IcmpMessage),
    /// Bytes that the decoder does not know, that are cut short, or that are a later fragment.
    Bytes(Vec<u8>),
}

/// A UDP datagram (RFC 768).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct UdpDatagram {
    /// Port it comes from.
    pub source_port: u16,
    /// Port it goes to.
    pub destination_port: u16,
    /// Bytes of header and payload, as the header says.
    pub length: u16,
    /// Checksum as captured; zero means no checksum. On a virtual link it is often not yet complete.
    pub checksum: u16,
    /// What it carries.
    pub content: UdpContent,
}

/// What a UDP datagram carries.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum UdpContent {
    /// A frame of an overlay.
    Vxlan(Box<VxlanPacket>),
    /// Anything else.
    Bytes(Vec<u8>),
}

/// A VXLAN header and the frame behind it (RFC 7348, section 5).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct VxlanPacket {
    /// First byte: 0x08 says that the VNI is valid, 0x80 that a group policy is.
    pub flags: u8,
    /// Group policy, zero without that extension.
    pub group: u16,
    /// Number of the overlay, 24 bits.
    pub vni: u32,
    /// The frame it carries.
    pub inner: Frame,
}

/// A TCP segment (RFC 9293), without its options.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct TcpSegment {
    /// Port it comes from.
    pub source_port: u16,
    /// Port it goes to.
    pub destination_port: u16,
    /// Number of its first byte.
    pub sequence: u32,
    /// Number of the next byte that the sender expects.
    pub acknowledgement: u32,
    /// The byte of flags, from CWR (0x80) down to FIN (0x01).
    pub flags: u8,
    /// Window, not scaled.
    pub window: u16,
    /// Bytes behind the header.
    pub payload: Vec<u8>,
}

/// An ICMP message (RFC 792, RFC 4443).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct IcmpMessage {
    /// Type, such as 8 (IPv4) or 128 (IPv6) for an echo request.
    pub kind: u8,
    /// Code within the type.
    pub code: u8,
    /// Identifier, of an echo.
    pub identifier: u16,
    /// Sequence number, of an echo.
    pub sequence: u16,
    /// Bytes behind the header of 8 bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Decodes a frame, with VXLAN behind [`VXLAN_PORTS`]; none if `bytes` are too few for an Ethernet
    /// header.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Self::decode_with(bytes, &VXLAN_PORTS)
    }

    /// Decodes a frame, with VXLAN behind the given UDP destination ports.
    #[must_use]
    pub fn decode_with(bytes: &[u8], vxlan_ports: &[u16]) -> Option<Self> {
        Decoder::new(vxlan_ports).frame(bytes)
    }

    /// The IPv4 packet in it.
    #[must_use]
    pub fn ipv4(&self) -> Option<&Ipv4Packet> {
        if let FrameContent::Ipv4(packet) = &self.content { Some(packet) } else { None }
    }

    /// The IPv6 packet in it.
    #[must_use]
    pub fn ipv6(&self) -> Option<&Ipv6Packet> {
        if let FrameContent::Ipv6(packet) = &self.content { Some(packet) } else { None }
    }

    /// The source and destination of the IP packet in it.
    #[must_use]
    pub fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        match &self.content {
            FrameContent::Ipv4(packet) => Some((packet.source.into(), packet.destination.into())),
            FrameContent::Ipv6(packet) => Some((packet.source.into(), packet.destination.into())),
            FrameContent::Arp(_) | FrameContent::Bytes(_) => None,
        }
    }

    /// What the IP packet in it carries.
    #[must_use]
    pub fn transport(&self) -> Option<&Transport> {
        match &self.content {
            FrameContent::Ipv4(packet) => Some(&packet.transport),
            FrameContent::Ipv6(packet) => Some(&packet.transport),
            FrameContent::Arp(_) | FrameContent::Bytes(_) => None,
        }
    }

    /// The UDP datagram in it.
    #[must_use]
    pub fn udp(&self) -> Option<&UdpDatagram> {
        if let Transport::Udp(datagram) = self.transport()? { Some(datagram) } else { None }
    }

    /// The ICMP message in it.
    #[must_use]
    pub fn icmp(&self) -> Option<&IcmpMessage> {
        if let Transport::Icmp(message) = self.transport()? { Some(message) } else { None }
    }

    /// The VXLAN packet in it.
    #[must_use]
    pub fn vxlan(&self) -> Option<&VxlanPacket> {
        if let UdpContent::Vxlan(packet) = &self.udp()?.content { Some(packet) } else { None }
    }
}

impl IcmpMessage {
    /// Whether it is an echo request of either family.
    #[must_use]
    pub fn is_echo_request(&self) -> bool {
        matches!(self.kind, 8 | 128)
    }

    /// Whether it is an echo reply of either family.
    #[must_use]
    pub fn is_echo_reply(&self) -> bool {
        matches!(self.kind, 0 | 129)
    }
}

#[cfg(test)]
mod tests;
