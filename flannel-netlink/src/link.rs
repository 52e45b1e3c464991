//! Links: network devices of all kinds.

use netlink_packet_core::{DecodeError, ErrorContext, NlasIterator, parse_string, parse_u8, parse_u32};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkHeader, LinkMessage};

use crate::attributes::attributes;
use crate::error::Error;
use crate::link_name::check_name;
use crate::mac::Mac;
use crate::message::Message;
use crate::netlink::Netlink;
use crate::vxlan::Vxlan;

/// `sizeof(struct ifinfomsg)`.
const HEADER_LEN: usize = 16;

// `enum` in `linux/if_link.h`.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const AF_INET6: u16 = libc::AF_INET6 as u16;

/// A link as the kernel reports it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// The index of the link; never 0.
    pub index: u32,
    /// The name.
    pub name: String,
    /// The alternative names (`ip link property add … altname`).
    pub alternative_names: Vec<String>,
    /// The hardware address, if it is an Ethernet one.
    pub mac: Option<Mac>,
    /// The MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
    /// Whether it can carry packets (`IFF_RUNNING`).
    pub running: bool,
    /// Whether it is a loopback link.
    pub loopback: bool,
    /// The length of the transmit queue in packets.
    pub txqlen: u32,
    /// The kind.
    pub kind: LinkKind,
    /// The index of the bridge (or bond) that it is a port of.
    pub master: Option<u32>,
    /// The index of the lower link, or of a veth's peer; in that link's namespace.
    pub lower: Option<u32>,
    /// How the kernel generates the link-local IPv6 address. `None` without IPv6.
    pub address_generation: Option<AddressGeneration>,
}

/// The kind of a link.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum LinkKind {
    /// A VXLAN device.
    Vxlan(Vxlan),
    /// One end of a veth pair.
    Veth,
    /// A bridge.
    Bridge,
    /// A TUN or TAP device.
    Tun,
    /// A physical device, loopback, or another link without a kind.
    Physical,
    /// Another kind, by its name in the kernel.
    Other(String),
}

/// How the kernel generates the link-local IPv6 address (`enum in6_addr_gen_mode`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum AddressGeneration {
    /// From the MAC address (RFC 4291, appendix A).
    Eui64,
    /// It generates none.
    None,
    /// From a secret (RFC 7217).
    StablePrivacy,
    /// At random.
    Random,
    /// Another mode.
    Other(u8),
}

impl Netlink {
    /// Reads a link by its name. Returns `None` if there is no link of that name, even if it is an
    /// [alternative name](Link::alternative_names) of a link.
    ///
    /// # Errors
    /// Errors of the kernel and the socket.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        Ok(self.link_by_any_name(name)?.filter(|link| link.name == name))
    }

    /// Reads a link by its name or an alternative name, as the kernel looks it up.
    pub(crate) fn link_by_any_name(&mut self, name: &str) -> Result<Option<Link>, Error> {
        if check_name(name).is_err() {
            return Ok(None);
        }
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.find_link(format_args!("read link {name}"), message)
    }

    /// Reads a link by its index. Returns `None` if it does not exist.
    ///
    /// # Errors
    /// Errors of the kernel and the socket.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.find_link(format_args!("read link {index}"), message)
    }

    /// Reads all links of the namespace.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when they kept changing, and errors of the socket.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.socket.dump_with("links", &request, |message| Link::read(message).map(Some))
    }

    /// Deletes a link. Succeeds if it does not exist.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for a physical device, and errors of the socket.
    pub fn delete_link(&mut self, index: u32) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let request = RouteNetlinkMessage::DelLink(message);
        match self.socket.execute_request(format_args!("delete link {index}"), &request, 0) {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    fn find_link(
        &mut self,
        object: impl std::fmt::Display,
        message: LinkMessage,
    ) -> Result<Option<Link>, Error> {
        match self.socket.query_with(object, &RouteNetlinkMessage::GetLink(message), Link::read) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Link {
    /// Reads an `RTM_NEWLINK` or `RTM_DELLINK`.
    pub(crate) fn read(message: Message<'_>) -> Result<Self, DecodeError> {
        let header = LinkHeader::parse(message.payload)?;
        let mut link = Self {
            index: header.index,
            name: String::new(),
            alternative_names: Vec::new(),
            mac: None,
            mtu: 0,
            up: header.flags.contains(LinkFlags::Up),
            running: header.flags.contains(LinkFlags::Running),
            loopback: header.flags.contains(LinkFlags::Loopback),
            txqlen: 0,
            kind: LinkKind::Physical,
            master: None,
            lower: None,
            address_generation: None,
        };
        for attribute in NlasIterator::new(message.payload.get(HEADER_LEN..).unwrap_or_default()) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                IFLA_IFNAME => link.name = parse_string(value).context("IFLA_IFNAME")?,
                IFLA_ADDRESS => link.mac = Mac::from_bytes(value),
                IFLA_MTU => link.mtu = parse_u32(value).context("IFLA_MTU")?,
                IFLA_TXQLEN => link.txqlen = parse_u32(value).context("IFLA_TXQLEN")?,
                IFLA_MASTER => link.master = Some(parse_u32(value).context("IFLA_MASTER")?),
                IFLA_LINK => link.lower = Some(parse_u32(value).context("IFLA_LINK")?),
                IFLA_LINKINFO => link.kind = LinkKind::read(value)?,
                IFLA_PROP_LIST => {
                    let names = attributes(value).filter(|(kind, _)| *kind == IFLA_ALT_IFNAME);
                    link.alternative_names = names.filter_map(|(_, name)| parse_string(name).ok()).collect();
                }
                IFLA_AF_SPEC => link.address_generation = AddressGeneration::read(value),
                _ => {}
            }
        }
        link.lower = link.lower.filter(|lower| *lower != 0);
        Ok(link)
    }

    /// Returns the VXLAN attributes, if it is a VXLAN device.
    pub fn vxlan(&self) -> Option<&Vxlan> {
        if let LinkKind::Vxlan(vxlan) = &self.kind { Some(vxlan) } else { None }
    }
}

impl LinkKind {
    /// Reads `IFLA_LINKINFO`.
    fn read(info: &[u8]) -> Result<Self, DecodeError> {
        let (mut kind, mut data) = (String::new(), &[][..]);
        let mut rest = info;
        // Attributes borrow from the iterator, so the data is located by position.
        while let Some(attribute) = NlasIterator::new(rest).next().transpose()? {
            let len = usize::from(attribute.length());
            match attribute.kind() {
                IFLA_INFO_KIND => kind = parse_string(attribute.value()).context("IFLA_INFO_KIND")?,
                IFLA_INFO_DATA => data = rest.get(4..len).unwrap_or_default(),
                _ => {}
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(match kind.as_str() {
            "" => Self::Physical,
            "vxlan" => Self::Vxlan(Vxlan::read(data)?),
            "veth" => Self::Veth,
            "bridge" => Self::Bridge,
            "tun" => Self::Tun,
            _ => Self::Other(kind),
        })
    }
}

impl AddressGeneration {
    /// Reads `IFLA_AF_SPEC`, which nests attributes by address family.
    fn read(spec: &[u8]) -> Option<Self> {
        let inet6 = NlasIterator::new(spec).flatten().find(|family| family.kind() == AF_INET6)?;
        let mode = NlasIterator::new(inet6.value())
            .flatten()
            .find(|attribute| attribute.kind() == IFLA_INET6_ADDR_GEN_MODE)?;
        Some(match parse_u8(mode.value()).ok()? {
            0 => Self::Eui64,
            1 => Self::None,
            2 => Self::StablePrivacy,
            3 => Self::Random,
            other => Self::Other(other),
        })
    }

    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Eui64 => 0,
            Self::None => 1,
            Self::StablePrivacy => 2,
            Self::Random => 3,
            Self::Other(other) => other,
        }
    }
}
