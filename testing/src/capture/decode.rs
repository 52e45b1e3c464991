//! Turns bytes into packets. Pure; any bytes will do.

use super::packet::{
    ArpPacket, Frame, FrameContent, IcmpMessage, Ipv4Packet, Ipv6Packet, TcpSegment, Transport, UdpContent,
    UdpDatagram, VxlanPacket,
};
use super::reader::Reader;

/// The deepest nesting of VXLAN packets that is decoded; anything deeper stays bytes.
const MAX_NESTING: u8 = 4;

/// Decodes the layers of one packet. A method returns `None` if it cannot read its layer; the layer above
/// keeps the bytes then.
pub(super) struct Decoder<'a> {
    vxlan_ports: &'a [u16],
    nesting: u8,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(vxlan_ports: &'a [u16]) -> Self {
        Self { vxlan_ports, nesting: 0 }
    }
}

impl Decoder<'_> {
    pub(super) fn frame(&self, bytes: &[u8]) -> Option<Frame> {
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
