//! Packets for tests, built in the simplest way.

use std::net::IpAddr;

use super::checksum::Sum;
use super::{TCP, UDP, set_u16, set_u32};

/// The parameters of a test packet.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) ttl: u8,
    pub(crate) identification: u16,
    pub(crate) dont_fragment: bool,
    pub(crate) ports: (u16, u16),
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            source: IpAddr::from([10, 5, 2, 7]),
            destination: IpAddr::from([10, 5, 1, 3]),
            ttl: 64,
            identification: 1,
            dont_fragment: true,
            ports: (1000, 2000),
            sequence: 1,
            flags: 0x10,
            options: Vec::new(),
            payload: b"payload".to_vec(),
        }
    }
}

impl Sample {
    /// Switches to IPv6.
    pub(crate) fn v6() -> Self {
        let address = |host: u16| IpAddr::from([0xfd00, 5, host, 0, 0, 0, 0, 9]);
        Self { source: address(2), destination: address(1), ..Self::default() }
    }

    pub(crate) fn tcp(&self) -> Vec<u8> {
        let mut header = vec![0; 20];
        set_u16(&mut header, 0, self.ports.0);
        set_u16(&mut header, 2, self.ports.1);
        set_u32(&mut header, 4, self.sequence);
        set_u32(&mut header, 8, 77);
        header[12] = ((20 + self.options.len()) as u8 / 4) << 4;
        header[13] = self.flags;
        set_u16(&mut header, 14, 512);
        header.extend(&self.options);
        self.packet(TCP, header, 16)
    }

    pub(crate) fn udp(&self) -> Vec<u8> {
        let mut header = vec![0; 8];
        set_u16(&mut header, 0, self.ports.0);
        set_u16(&mut header, 2, self.ports.1);
        set_u16(&mut header, 4, 8 + self.payload.len() as u16);
        self.packet(UDP, header, 6)
    }

    /// Adds the IP header and the checksum.
    pub(crate) fn packet(&self, protocol: u8, header: Vec<u8>, checksum_at: usize) -> Vec<u8> {
        let mut body = header;
        body.extend(&self.payload);
        let mut pseudo = octets(self.source);
        pseudo.extend(octets(self.destination));
        pseudo.extend([0, protocol]);
        pseudo.extend((body.len() as u32).to_be_bytes());
        pseudo.extend(&body);
        let checksum = Sum::of(&pseudo).checksum();
        let none = checksum == 0 && protocol == UDP;
        set_u16(&mut body, checksum_at, if none { 0xffff } else { checksum });
        let mut packet = self.ip_header(protocol, body.len());
        packet.extend(body);
        packet
    }

    fn ip_header(&self, protocol: u8, len: usize) -> Vec<u8> {
        let mut header = if self.source.is_ipv4() { vec![0; 12] } else { vec![0; 8] };
        if self.source.is_ipv4() {
            header[0] = 0x45;
            set_u16(&mut header, 2, 20 + len as u16);
            set_u16(&mut header, 4, self.identification);
            header[6] = if self.dont_fragment { 0x40 } else { 0 };
            (header[8], header[9]) = (self.ttl, protocol);
        } else {
            header[0] = 0x60;
            set_u16(&mut header, 4, len as u16);
            (header[6], header[7]) = (protocol, self.ttl);
        }
        header.extend(octets(self.source));
        header.extend(octets(self.destination));
        if self.source.is_ipv4() {
            let checksum = Sum::of(&header).checksum();
            set_u16(&mut header, 10, checksum);
        }
        header
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Returns whether all checksums of a packet are valid.
pub(crate) fn is_right(packet: &[u8]) -> bool {
    let is_v4 = packet[0] >> 4 == 4;
    let (start, protocol) =
        if is_v4 { (usize::from(packet[0] & 0xf) * 4, packet[9]) } else { (40, packet[6]) };
    let addresses = if is_v4 { &packet[12..20] } else { &packet[8..40] };
    let mut all = addresses.to_vec();
    all.extend([0, protocol]);
    all.extend(((packet.len() - start) as u32).to_be_bytes());
    all.extend(&packet[start..]);
    (!is_v4 || Sum::of(&packet[..start]).fold() == 0xffff) && Sum::of(&all).fold() == 0xffff
}
