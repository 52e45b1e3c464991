//! Neighbours: the MAC addresses of IP addresses on a link (ARP and IPv6 ND).

use std::fmt;
use std::net::IpAddr;

use netlink_packet_core::{DecodeError, ErrorContext, NlasIterator, parse_ip};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourHeader, NeighbourMessage};
use netlink_packet_route::route::RouteType;

use crate::error::Error;
use crate::family::IpFamily;
use crate::mac::Mac;
use crate::message::Message;
use crate::netlink::Netlink;
use crate::request_writer::RequestWriter;

/// `sizeof(struct ndmsg)`.
pub(crate) const HEADER_LEN: usize = 12;

// `enum` in `linux/neighbour.h`.
pub(crate) const NDA_DST: u16 = 1;
pub(crate) const NDA_LLADDR: u16 = 2;

/// The state of a neighbour or forwarding entry (`NUD_*`, `linux/neighbour.h`).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum NeighbourState {
    /// Set by a program; it is neither probed nor expired.
    Permanent,
    /// Valid without probing; `bridge fdb` calls it static.
    NoArp,
    /// Confirmed recently.
    Reachable,
    /// Confirmed on the next use.
    Stale,
    /// Used while stale; an upper layer may confirm it.
    Delay,
    /// Being probed.
    Probe,
    /// Being resolved.
    Incomplete,
    /// Resolution failed.
    Failed,
    /// No state.
    None,
    /// Another combination of bits.
    Other(u16),
}

impl NeighbourState {
    /// Returns whether the permanent bit is set. Programs may set further bits, and the kernel keeps the
    /// entry all the same.
    pub(crate) fn is_permanent(self) -> bool {
        u16::from(self) & u16::from(Self::Permanent) != 0
    }
}

/// A neighbour on a link.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Neighbour {
    /// The link's index.
    pub index: u32,
    /// The neighbour's address. With the index it is the key of the entry.
    pub address: IpAddr,
    /// The MAC address. `None` if it is unknown, or not an Ethernet address.
    pub mac: Option<Mac>,
    /// The state.
    pub state: NeighbourState,
}

impl Neighbour {
    /// Describes a neighbour that stays until it is deleted.
    pub fn permanent(index: u32, address: IpAddr, mac: Mac) -> Self {
        Self { index, address, mac: Some(mac), state: NeighbourState::Permanent }
    }

    /// Returns whether the entry is permanent.
    pub fn is_permanent(&self) -> bool {
        self.state.is_permanent()
    }

    /// Writes the body of the requests that put and delete the neighbour.
    pub(crate) fn write(&self, request: &mut RequestWriter<'_>) {
        request.header(&NeighbourHeader {
            family: IpFamily::of(self.address).into(),
            ifindex: self.index,
            state: u16::from(self.state).into(),
            kind: RouteType::Unicast,
            ..NeighbourHeader::default()
        });
        request.address(NDA_DST, self.address);
        if let Some(mac) = self.mac {
            request.attribute(NDA_LLADDR, &mac.0);
        }
    }

    /// Reads a neighbour; `None` if it is neither IPv4 nor IPv6.
    pub(crate) fn read(message: Message<'_>) -> Result<Option<Self>, DecodeError> {
        let header = NeighbourHeader::parse(message.payload)?;
        if IpFamily::of_message(header.family).is_none() {
            return Ok(None);
        }
        let (mut address, mut mac) = (None, None);
        for attribute in NlasIterator::new(message.payload.get(HEADER_LEN..).unwrap_or_default()) {
            let attribute = attribute?;
            match attribute.kind() {
                NDA_DST => address = Some(parse_ip(attribute.value()).context("NDA_DST")?),
                NDA_LLADDR => mac = Mac::from_bytes(attribute.value()),
                _ => {}
            }
        }
        let address = address.ok_or("a neighbour without an address")?;
        Ok(Some(Self { index: header.ifindex, address, mac, state: u16::from(header.state).into() }))
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "neighbour {}", self.address)?;
        if let Some(mac) = self.mac {
            write!(f, " lladdr {mac}")?;
        }
        write!(f, " dev {}", self.index)
    }
}

impl Netlink {
    /// Reads the neighbours on a link, or on all links when `index` is 0, of one family or both. Returns
    /// nothing for a link that does not exist.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when they kept changing, and errors of the socket.
    pub fn neighbours(&mut self, index: u32, family: Option<IpFamily>) -> Result<Vec<Neighbour>, Error> {
        let mut found = Vec::new();
        for family in IpFamily::selected(family) {
            let mut request = NeighbourMessage::default();
            request.header.family = family.into();
            if index != 0 {
                // Strict checking demands the index here and zero in the header.
                request.attributes.push(NeighbourAttribute::IfIndex(index));
            }
            let request = RouteNetlinkMessage::GetNeighbour(request);
            let read = |message: Message<'_>| {
                Ok(Neighbour::read(message)?.filter(|neighbour| {
                    IpFamily::of(neighbour.address) == family && (index == 0 || neighbour.index == index)
                }))
            };
            found.extend(self.socket.dump_with("neighbours", &request, read)?);
        }
        Ok(found)
    }
}

impl From<u16> for NeighbourState {
    fn from(bits: u16) -> Self {
        match bits {
            0x00 => Self::None,
            0x01 => Self::Incomplete,
            0x02 => Self::Reachable,
            0x04 => Self::Stale,
            0x08 => Self::Delay,
            0x10 => Self::Probe,
            0x20 => Self::Failed,
            0x40 => Self::NoArp,
            0x80 => Self::Permanent,
            other => Self::Other(other),
        }
    }
}

impl From<NeighbourState> for u16 {
    fn from(state: NeighbourState) -> Self {
        match state {
            NeighbourState::None => 0x00,
            NeighbourState::Incomplete => 0x01,
            NeighbourState::Reachable => 0x02,
            NeighbourState::Stale => 0x04,
            NeighbourState::Delay => 0x08,
            NeighbourState::Probe => 0x10,
            NeighbourState::Failed => 0x20,
            NeighbourState::NoArp => 0x40,
            NeighbourState::Permanent => 0x80,
            NeighbourState::Other(bits) => bits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::read_back;
    use crate::request_writer::append;
    use crate::rtm::RTM_NEWNEIGH;

    fn encoded(neighbour: &Neighbour) -> Vec<u8> {
        let mut bytes = Vec::new();
        append(&mut bytes, RTM_NEWNEIGH, 0, 1, |request| neighbour.write(request));
        bytes
    }

    #[test]
    fn a_neighbour_is_read_as_it_is_written() {
        for address in ["10.5.3.0", "fd99:30:0:3::"] {
            let known = Neighbour::permanent(7, address.parse().unwrap(), Mac([2, 0, 0, 0, 0, 3]));
            let unknown = Neighbour { mac: None, state: NeighbourState::Failed, ..known.clone() };
            for neighbour in [known, unknown] {
                assert_eq!(read_back(&encoded(&neighbour), Neighbour::read), Some(neighbour));
            }
        }
    }

    #[test]
    fn a_permanent_neighbour_is_written_byte_for_byte_as_flannel_does() {
        let neighbour = Neighbour::permanent(7, "10.5.3.0".parse().unwrap(), Mac([2, 0, 0, 0, 0, 3]));
        let bytes = encoded(&neighbour);
        let [i, ..] = 7_u32.to_le_bytes();
        #[rustfmt::skip]
        let expected = [
            libc::AF_INET as u8, 0, 0, 0,  i, 0, 0, 0,
            0x80, 0, 0, 1,                                  // permanent, no flags, unicast
            8, 0, 1, 0,  10, 5, 3, 0,                       // NDA_DST
            10, 0, 2, 0,  2, 0, 0, 0, 0, 3,  0, 0,          // NDA_LLADDR and padding
        ];
        #[cfg(target_endian = "little")]
        assert_eq!(bytes[16..], expected);
        assert_eq!(bytes.len(), 16 + expected.len());
    }

    #[test]
    fn every_state_survives_its_number() {
        for bits in 0..=0x101 {
            assert_eq!(u16::from(NeighbourState::from(bits)), bits);
        }
    }
}
