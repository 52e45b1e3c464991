//! Packets as typed values: Ethernet, ARP, IPv4, IPv6, UDP, TCP, ICMP, VXLAN and what is inside it.
//!
//! The decoder is pure and takes any bytes. What it cannot read, because it is cut short, of an unknown protocol or
//! not the first fragment, stays a sequence of bytes at that layer.

use super::reader::Reader;
use flannel_netlink::Mac;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// UDP ports behind which the decoder looks for VXLAN: the Linux default and RFC 7348's.
pub const VXLAN_PORTS: [u16; 2] = [8472, 4789];
/// A VXLAN packet may hold another one; deeper nesting than any network has stays bytes.
const MAX_NESTING: u8 = 4;

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
    /// Checksum as captured; zero means that there is none. On a virtual link it is often not yet complete.
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
    /// Decodes a frame, with VXLAN behind [`VXLAN_PORTS`]; none if `bytes` are too few for an Ethernet header.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Self::decode_with(bytes, &VXLAN_PORTS)
    }

    /// Decodes a frame, with VXLAN behind the given UDP destination ports.
    #[must_use]
    pub fn decode_with(bytes: &[u8], vxlan_ports: &[u16]) -> Option<Self> {
        Decoder { vxlan_ports, nesting: 0 }.frame(bytes)
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

/// Decodes the layers of one packet. A method answers none when its layer cannot be read; the layer above keeps the
/// bytes then.
struct Decoder<'a> {
    vxlan_ports: &'a [u16],
    nesting: u8,
}

impl Decoder<'_> {
    fn frame(&self, bytes: &[u8]) -> Option<Frame> {
        let mut reader = Reader::new(bytes);
        let (destination, source, ether_type) = (reader.mac()?, reader.mac()?, reader.u16()?);
        let rest = reader.rest();
        let content = match ether_type {
            0x0800 => self.ipv4(rest).map(FrameContent::Ipv4),
            0x86dd => self.ipv6(rest).map(FrameContent::Ipv6),
            0x0806 => arp(rest).map(FrameContent::Arp),
            _ => None,
        };
        let content = content.unwrap_or_else(|| FrameContent::Bytes(rest.to_vec()));
        Some(Frame { destination, source, ether_type, content })
    }

    fn ipv4(&self, bytes: &[u8]) -> Option<Ipv4Packet> {
        let mut reader = Reader::new(bytes);
        let version = reader.u8()?;
        let (tos, total_length, identification, fragment) =
            (reader.u8()?, reader.u16()?, reader.u16()?, reader.u16()?);
        let (ttl, protocol, _checksum) = (reader.u8()?, reader.u8()?, reader.u16()?);
        let (source, destination) = (reader.array::<4>()?, reader.array::<4>()?);
        let header_length = usize::from(version & 0x0f) * 4;
        if version >> 4 != 4 || header_length < 20 {
            return None;
        }
        // Ethernet pads short packets, so the payload ends where the header says.
        let payload = bytes.get(header_length..usize::from(total_length).min(bytes.len()))?;
        let fragment_offset = (fragment & 0x1fff) * 8;
        let transport = if fragment_offset == 0 {
            self.transport(protocol, payload)
        } else {
            Transport::Bytes(payload.to_vec())
        };
        Some(Ipv4Packet {
            source: source.into(),
            destination: destination.into(),
            tos,
            ttl,
            total_length,
            identification,
            dont_fragment: fragment & 0x4000 != 0,
            more_fragments: fragment & 0x2000 != 0,
            fragment_offset,
            protocol,
            transport,
        })
    }

    fn ipv6(&self, bytes: &[u8]) -> Option<Ipv6Packet> {
        let mut reader = Reader::new(bytes);
        let first = reader.u32()?;
        let (payload_length, next_header, hop_limit) = (reader.u16()?, reader.u8()?, reader.u8()?);
        let (source, destination) = (reader.array::<16>()?, reader.array::<16>()?);
        if first >> 28 != 6 {
            return None;
        }
        let rest = reader.rest();
        let payload = rest.get(..usize::from(payload_length)).unwrap_or(rest);
        Some(Ipv6Packet {
            source: source.into(),
            destination: destination.into(),
            traffic_class: ((first >> 20) & 0xff) as u8,
            flow_label: first & 0xf_ffff,
            hop_limit,
            payload_length,
            next_header,
            transport: self.transport(next_header, payload),
        })
    }

    fn transport(&self, protocol: u8, bytes: &[u8]) -> Transport {
        let transport = match protocol {
            17 => self.udp(bytes).map(Transport::Udp),
            6 => tcp(bytes).map(Transport::Tcp),
            1 | 58 => icmp(bytes).map(Transport::Icmp),
            _ => None,
        };
        transport.unwrap_or_else(|| Transport::Bytes(bytes.to_vec()))
    }

    fn udp(&self, bytes: &[u8]) -> Option<UdpDatagram> {
        let mut reader = Reader::new(bytes);
        let (source_port, destination_port) = (reader.u16()?, reader.u16()?);
        let (length, checksum) = (reader.u16()?, reader.u16()?);
        let payload = reader.rest();
        let vxlan = self.vxlan_ports.contains(&destination_port).then(|| self.vxlan(payload)).flatten();
        let content = match vxlan {
            Some(packet) => UdpContent::Vxlan(Box::new(packet)),
            None => UdpContent::Bytes(payload.to_vec()),
        };
        Some(UdpDatagram { source_port, destination_port, length, checksum, content })
    }

    fn vxlan(&self, bytes: &[u8]) -> Option<VxlanPacket> {
        if self.nesting == MAX_NESTING {
            return None;
        }
        let mut reader = Reader::new(bytes);
        let (flags, _reserved, group, vni) = (reader.u8()?, reader.u8()?, reader.u16()?, reader.u32()?);
        let inside = Decoder { vxlan_ports: self.vxlan_ports, nesting: self.nesting + 1 };
        Some(VxlanPacket { flags, group, vni: vni >> 8, inner: inside.frame(reader.rest())? })
    }
}

fn arp(bytes: &[u8]) -> Option<ArpPacket> {
    let mut reader = Reader::new(bytes);
    // Ethernet addresses of 6 bytes, IPv4 addresses of 4.
    if reader.array::<6>()? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    Some(ArpPacket {
        operation: reader.u16()?,
        sender_hardware: reader.mac()?,
        sender: reader.array::<4>()?.into(),
        target_hardware: reader.mac()?,
        target: reader.array::<4>()?.into(),
    })
}

fn tcp(bytes: &[u8]) -> Option<TcpSegment> {
    let mut reader = Reader::new(bytes);
    let (source_port, destination_port) = (reader.u16()?, reader.u16()?);
    let (sequence, acknowledgement) = (reader.u32()?, reader.u32()?);
    let (offset, flags, window) = (reader.u8()?, reader.u8()?, reader.u16()?);
    let header_length = usize::from(offset >> 4) * 4;
    if header_length < 20 {
        return None;
    }
    let payload = bytes.get(header_length..)?.to_vec();
    Some(TcpSegment { source_port, destination_port, sequence, acknowledgement, flags, window, payload })
}

fn icmp(bytes: &[u8]) -> Option<IcmpMessage> {
    let mut reader = Reader::new(bytes);
    let (kind, code, _checksum) = (reader.u8()?, reader.u8()?, reader.u16()?);
    let (identifier, sequence) = (reader.u16()?, reader.u16()?);
    Some(IcmpMessage { kind, code, identifier, sequence, payload: reader.rest().to_vec() })
}

#[cfg(test)]
mod tests;
