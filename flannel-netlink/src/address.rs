//! Addresses of links.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    DecodeError, ErrorContext, NLM_F_CREATE, NLM_F_EXCL, NlasIterator, parse_ip, parse_u32,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeader, AddressHeaderFlags, AddressMessage, AddressScope,
};

use crate::error::Error;
use crate::family::IpFamily;
use crate::message::Message;
use crate::netlink::Netlink;
use crate::socket::none_if_gone;

/// `sizeof(struct ifaddrmsg)`.
const HEADER_LEN: usize = 8;

// `enum` in `linux/if_addr.h`.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;

/// An address of a link.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Address {
    /// The link's index.
    pub index: u32,
    /// The address and its prefix length.
    pub net: IpNet,
    /// The address of the other end of a point-to-point link, if it differs.
    pub peer: Option<IpAddr>,
    /// The scope (`rt_scope`): 0 global, 253 link, 254 host.
    pub scope: u8,
    /// `IFA_F_*` flags (`linux/if_addr.h`).
    pub flags: u32,
}

impl Address {
    /// `IFA_F_NODAD`: no duplicate address detection (RFC 4862, 5.4); the IPv6 address is usable at once.
    pub const NO_DAD: u32 = 0x02;
    /// `IFA_F_DADFAILED`: another host on the link has this IPv6 address.
    pub const DAD_FAILED: u32 = 0x08;
    /// `IFA_F_DEPRECATED`: not used as the source of new connections.
    pub const DEPRECATED: u32 = 0x20;
    /// `IFA_F_TENTATIVE`: duplicate address detection of the IPv6 address is still running.
    pub const TENTATIVE: u32 = 0x40;

    /// Describes a global address without flags.
    pub fn new(index: u32, net: IpNet) -> Self {
        Self { index, net, peer: None, scope: 0, flags: 0 }
    }

    /// Returns whether the prefix covers only the address (/32, /128) and the link has no other end.
    pub fn is_single_host(&self) -> bool {
        self.net.prefix_len() == self.net.max_prefix_len() && self.peer.is_none()
    }

    /// Returns whether packets can be sent from the address: it is neither a duplicate, nor tentative, nor
    /// deprecated.
    pub fn is_usable(&self) -> bool {
        self.flags & (Self::DAD_FAILED | Self::DEPRECATED | Self::TENTATIVE) == 0
    }

    /// Returns the message that adds and deletes the address.
    pub(crate) fn message(&self) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header = AddressHeader {
            family: IpFamily::of(self.net.addr()).into(),
            prefix_len: self.net.prefix_len(),
            flags: AddressHeaderFlags::empty(),
            scope: AddressScope::from(self.scope),
            index: self.index,
        };
        message.attributes = vec![
            AddressAttribute::Local(self.net.addr()),
            AddressAttribute::Address(self.peer.unwrap_or(self.net.addr())),
        ];
        if self.flags != 0 {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::from_bits_retain(self.flags)));
        }
        message
    }

    /// Reads an address; `None` if it is neither IPv4 nor IPv6.
    pub(crate) fn read(message: Message<'_>) -> Result<Option<Self>, DecodeError> {
        let header = AddressHeader::parse(message.payload)?;
        if IpFamily::of_message(header.family).is_none() {
            return Ok(None);
        }
        let (mut local, mut address) = (None, None);
        let mut flags = u32::from(header.flags.bits());
        for attribute in NlasIterator::new(message.payload.get(HEADER_LEN..).unwrap_or_default()) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                IFA_LOCAL => local = Some(parse_ip(value).context("IFA_LOCAL")?),
                IFA_ADDRESS => address = Some(parse_ip(value).context("IFA_ADDRESS")?),
                IFA_FLAGS => flags = parse_u32(value).context("IFA_FLAGS")?,
                _ => {}
            }
        }
        let own = local.or(address).ok_or("an address message without an address")?;
        let net = IpNet::new(own, header.prefix_len).map_err(|_| DecodeError::from("prefix too long"))?;
        Ok(Some(Self {
            index: header.index,
            net,
            peer: address.filter(|address| *address != own),
            scope: u8::from(header.scope),
            flags,
        }))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "address {}", self.net)?;
        if let Some(peer) = self.peer {
            write!(f, " peer {peer}")?;
        }
        write!(f, " dev {}", self.index)
    }
}

impl Netlink {
    /// Reads the addresses of a link, or of all links when `index` is 0. Returns nothing for a link that
    /// does not exist.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when they kept changing, and errors of the socket.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<Address>, Error> {
        let mut found = Vec::new();
        for family in IpFamily::BOTH {
            let mut request = AddressMessage::default();
            request.header.family = family.into();
            request.header.index = index;
            let request = RouteNetlinkMessage::GetAddress(request);
            let read = |message: Message<'_>| {
                Ok(Address::read(message)?.filter(|address| {
                    IpFamily::of(address.net.addr()) == family && (index == 0 || address.index == index)
                }))
            };
            found.extend(none_if_gone(self.socket.dump_with("addresses", &request, read))?);
        }
        Ok(found)
    }

    /// Adds an address.
    ///
    /// # Errors
    /// [`Error::is_exists`] is true when the link has the address already.
    pub fn add_address(&mut self, address: &Address) -> Result<(), Error> {
        let request = RouteNetlinkMessage::NewAddress(address.message());
        self.socket.execute_request(format_args!("add {address}"), &request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Deletes an address. Succeeds if it does not exist.
    ///
    /// With the last IPv4 address of a link, the kernel deletes its IPv4 routes without notifications
    /// (`fib_disable_ip` in `net/ipv4/fib_frontend.c`).
    ///
    /// # Errors
    /// Errors of the kernel and the socket.
    pub fn delete_address(&mut self, address: &Address) -> Result<(), Error> {
        let request = RouteNetlinkMessage::DelAddress(address.message());
        match self.socket.execute_request(format_args!("delete {address}"), &request, 0) {
            Err(error) if error.is_not_found() => Ok(()),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{encode, read_back};

    #[test]
    fn an_address_is_read_as_it_is_written() {
        for text in ["10.5.1.0/32", "fd99:30:0:1::/128"] {
            let plain = Address::new(7, text.parse().unwrap());
            let peer = plain.net.network();
            for address in [
                Address { flags: Address::NO_DAD | 0x200, scope: 253, ..plain.clone() },
                Address { peer: (peer != plain.net.addr()).then_some(peer), ..plain.clone() },
                plain,
            ] {
                let request = RouteNetlinkMessage::NewAddress(address.message());
                assert_eq!(read_back(&encode(&request), Address::read), Some(address));
            }
        }
    }
}
