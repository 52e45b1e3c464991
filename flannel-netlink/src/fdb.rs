//! Forwarding entries (FDB): the tunnel endpoints of MAC addresses on a VXLAN device.

use std::fmt;
use std::net::IpAddr;

use netlink_packet_core::{DecodeError, ErrorContext, NlasIterator, parse_ip, parse_u16_be, parse_u32};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourHeader, NeighbourMessage};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::Error;
use crate::mac::Mac;
use crate::message::Message;
use crate::neighbour::{HEADER_LEN, NDA_DST, NDA_LLADDR, NeighbourState};
use crate::netlink::Netlink;
use crate::request_writer::RequestWriter;

// `enum` in `linux/neighbour.h`.
const NDA_PORT: u16 = 6;
const NDA_VNI: u16 = 7;
const NDA_MASTER: u16 = 9;

/// A forwarding entry of a device, or of the bridge whose port the device is.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct FdbEntry {
    /// The device's index.
    pub index: u32,
    /// The MAC address. With the index it is the key of the entry: putting an entry with another destination
    /// replaces it.
    pub mac: Mac,
    /// The tunnel endpoint.
    pub destination: Option<IpAddr>,
    /// The state: permanent, or learned from traffic.
    pub state: NeighbourState,
    /// The UDP port of the endpoint, if it differs from the device's.
    pub port: Option<u16>,
    /// The VXLAN network identifier, if it differs from the device's.
    pub vni: Option<u32>,
    /// The index of the bridge that holds the entry; `None` if the device holds it (`self` in `bridge fdb`).
    pub bridge: Option<u32>,
}

impl FdbEntry {
    /// Describes an entry of the device that stays until it is deleted.
    pub fn permanent(index: u32, mac: Mac, destination: IpAddr) -> Self {
        Self {
            index,
            mac,
            destination: Some(destination),
            state: NeighbourState::Permanent,
            port: None,
            vni: None,
            bridge: None,
        }
    }

    /// Returns whether the entry is permanent.
    pub fn is_permanent(&self) -> bool {
        self.state.is_permanent()
    }

    /// Writes the body of the requests that put and delete the entry.
    pub(crate) fn write(&self, request: &mut RequestWriter<'_>) {
        request.header(&NeighbourHeader {
            family: AddressFamily::Bridge,
            ifindex: self.index,
            state: u16::from(self.state).into(),
            flags: if self.bridge.is_some() { NeighbourFlags::Controller } else { NeighbourFlags::Own },
            kind: RouteType::Unspec,
        });
        if let Some(destination) = self.destination {
            request.address(NDA_DST, destination);
        }
        request.attribute(NDA_LLADDR, &self.mac.0);
        if let Some(port) = self.port {
            request.attribute(NDA_PORT, &port.to_be_bytes());
        }
        if let Some(vni) = self.vni {
            request.attribute(NDA_VNI, &vni.to_ne_bytes());
        }
    }

    /// Reads an entry; `None` if the message is no forwarding entry, or has no MAC address.
    pub(crate) fn read(message: Message<'_>) -> Result<Option<Self>, DecodeError> {
        let header = NeighbourHeader::parse(message.payload)?;
        if header.family != AddressFamily::Bridge {
            return Ok(None);
        }
        let (mut mac, mut destination, mut port, mut vni, mut bridge) = (None, None, None, None, None);
        for attribute in NlasIterator::new(message.payload.get(HEADER_LEN..).unwrap_or_default()) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                NDA_DST => destination = Some(parse_ip(value).context("NDA_DST")?),
                NDA_LLADDR => mac = Mac::from_bytes(value),
                NDA_PORT => port = Some(parse_u16_be(value).context("NDA_PORT")?),
                NDA_VNI => vni = Some(parse_u32(value).context("NDA_VNI")?),
                NDA_MASTER => bridge = Some(parse_u32(value).context("NDA_MASTER")?),
                _ => {}
            }
        }
        let state = u16::from(header.state).into();
        Ok(mac.map(|mac| Self { index: header.ifindex, mac, destination, state, port, vni, bridge }))
    }
}

impl fmt::Display for FdbEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "forwarding entry {}", self.mac)?;
        if let Some(destination) = self.destination {
            write!(f, " dst {destination}")?;
        }
        write!(f, " dev {}", self.index)
    }
}

impl Netlink {
    /// Reads the forwarding entries of a device, or of all devices when `index` is 0, including those that a
    /// bridge holds for it. Returns nothing for a device that does not exist.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when they kept changing, and errors of the socket.
    pub fn fdb(&mut self, index: u32) -> Result<Vec<FdbEntry>, Error> {
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Bridge;
        request.header.ifindex = index;
        let request = RouteNetlinkMessage::GetNeighbour(request);
        self.socket.dump_with("forwarding entries", &request, |message| {
            Ok(FdbEntry::read(message)?.filter(|entry| index == 0 || entry.index == index))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::read_back;
    use crate::request_writer::append;
    use crate::rtm::RTM_NEWNEIGH;

    fn encoded(entry: &FdbEntry) -> Vec<u8> {
        let mut bytes = Vec::new();
        append(&mut bytes, RTM_NEWNEIGH, 0, 1, |request| entry.write(request));
        bytes
    }

    #[test]
    fn a_forwarding_entry_is_read_as_it_is_written() {
        for destination in ["192.0.2.3", "fd88::3"] {
            let plain = FdbEntry::permanent(7, Mac([2, 0, 0, 0, 0, 3]), destination.parse().unwrap());
            let special = FdbEntry { port: Some(4789), vni: Some(9), ..plain.clone() };
            let learned = FdbEntry { destination: None, state: NeighbourState::Reachable, ..plain.clone() };
            for entry in [plain, special, learned] {
                assert_eq!(read_back(&encoded(&entry), FdbEntry::read), Some(entry));
            }
        }
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_permanent_entry_is_written_byte_for_byte_as_flannel_does() {
        let entry = FdbEntry::permanent(7, Mac([2, 0, 0, 0, 0, 3]), "192.0.2.3".parse().unwrap());
        let bytes = encoded(&entry);
        #[rustfmt::skip]
        let expected = [
            libc::AF_BRIDGE as u8, 0, 0, 0,  7, 0, 0, 0,
            0x80, 0, 2, 0,                                  // permanent, NTF_SELF, no type
            8, 0, 1, 0,  192, 0, 2, 3,                      // NDA_DST
            10, 0, 2, 0,  2, 0, 0, 0, 0, 3,  0, 0,          // NDA_LLADDR and padding
        ];
        assert_eq!(bytes[16..], expected);
    }
}
