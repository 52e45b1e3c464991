//! Links: network devices of every kind.

use std::os::fd::AsRawFd;

use netlink_packet_core::{
    DecodeError, ErrorContext, NLM_F_CREATE, NLM_F_EXCL, NlasIterator, parse_string, parse_u8, parse_u32,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkHeader, LinkInfo,
    LinkMessage,
};

use crate::error::Error;
use crate::mac::Mac;
use crate::message::Message;
use crate::namespace::Namespace;
use crate::socket::Netlink;
use crate::vxlan::{NewVxlan, Vxlan};

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
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const AF_INET6: u16 = libc::AF_INET6 as u16;

/// `IFNAMSIZ` without the NUL at the end.
const NAME_MAX: usize = 15;

/// A link as the kernel reports it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// The number by which the kernel knows the link; never 0.
    pub index: u32,
    /// The name.
    pub name: String,
    /// The hardware address, on links that have an Ethernet one.
    pub mac: Option<Mac>,
    /// The largest packet in bytes, without the link's own header.
    pub mtu: u32,
    /// Whether it was set up (`IFF_UP`).
    pub up: bool,
    /// Whether it is up and can carry packets (`IFF_RUNNING`).
    pub running: bool,
    /// Whether it is a loopback link.
    pub loopback: bool,
    /// The length of the transmit queue in packets.
    pub txqlen: u32,
    /// What it is.
    pub kind: LinkKind,
    /// The index of the bridge (or bond) that it is a port of.
    pub master: Option<u32>,
    /// The index of the link below it, or of a veth's other end; in another namespace, if that
    /// is where that link is.
    pub lower: Option<u32>,
    /// How the kernel makes the link's own IPv6 address. `None` without IPv6.
    pub address_generation: Option<AddressGeneration>,
}

/// What a link is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LinkKind {
    /// A VXLAN device.
    Vxlan(Vxlan),
    /// One end of a pair.
    Veth,
    /// A bridge.
    Bridge,
    /// A TUN or TAP device.
    Tun,
    /// A real device, loopback, or another one without a kind.
    Physical,
    /// Another kind, by the kernel's name for it.
    Other(String),
}

/// How the kernel makes a link's own IPv6 address (`enum in6_addr_gen_mode`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AddressGeneration {
    /// From the MAC address (RFC 4291, appendix A).
    Eui64,
    /// Not at all.
    None,
    /// From a secret (RFC 7217).
    StablePrivacy,
    /// At random.
    Random,
    /// Another way.
    Other(u8),
}

/// A link to be created; it is down unless `up` says otherwise.
#[derive(Clone, Debug)]
pub struct NewLink {
    /// The name.
    pub name: String,
    /// The MAC address; the kernel makes one up for `None`.
    pub mac: Option<Mac>,
    /// The largest packet in bytes; `None` leaves it to the kernel.
    pub mtu: Option<u32>,
    /// The length of the transmit queue in packets; 0 is no queue, `None` the kernel's default.
    pub txqlen: Option<u32>,
    /// The index of the bridge to be a port of.
    pub master: Option<u32>,
    /// Whether to set it up at once.
    pub up: bool,
    /// What it is to be.
    pub kind: NewLinkKind,
}

/// The kinds of link that can be created.
#[derive(Clone, Debug)]
pub enum NewLinkKind {
    /// A VXLAN device.
    Vxlan(NewVxlan),
    /// A pair: the new link and its peer.
    Veth(VethPeer),
    /// A bridge.
    Bridge,
}

/// The other end of a veth pair.
#[derive(Clone, Debug)]
pub struct VethPeer {
    /// Its name.
    pub name: String,
    /// Its MAC address; the kernel makes one up for `None`.
    pub mac: Option<Mac>,
    /// The namespace to create it in; `None` is the one of the first end.
    pub namespace: Option<Namespace>,
}

/// A change of a link; what is `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct LinkChange {
    /// Sets it up or down.
    pub up: Option<bool>,
    /// The largest packet in bytes.
    pub mtu: Option<u32>,
    /// The MAC address.
    pub mac: Option<Mac>,
    /// The name.
    pub name: Option<String>,
    /// The index of the bridge to be a port of; 0 is none.
    pub master: Option<u32>,
    /// The length of the transmit queue in packets.
    pub txqlen: Option<u32>,
    /// How the kernel makes the link's own IPv6 address.
    pub address_generation: Option<AddressGeneration>,
    /// The namespace to move it to, where it may get another index.
    pub namespace: Option<Namespace>,
}

impl Netlink {
    /// Reads a link by its name, or by one of its alternative names. `None` when there is none.
    ///
    /// # Errors
    /// Those of the kernel and of the socket.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        if check_name(name).is_err() {
            return Ok(None);
        }
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.find_link(format_args!("read link {name}"), message)
    }

    /// Reads a link by its index. `None` when there is none.
    ///
    /// # Errors
    /// Those of the kernel and of the socket.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.find_link(format_args!("read link {index}"), message)
    }

    /// Reads all links of the namespace.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when they kept changing, and those of the socket.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.dump("links", &request, |message| Link::read(message).map(Some))
    }

    /// Creates a link.
    ///
    /// # Errors
    /// One for which [`Error::is_exists`] holds when the name is taken, or when another VXLAN
    /// device has the same network identifier, port and family.
    pub fn create_link(&mut self, link: &NewLink) -> Result<(), Error> {
        check_name(&link.name)?;
        if let NewLinkKind::Veth(peer) = &link.kind {
            check_name(&peer.name)?;
        }
        let request = RouteNetlinkMessage::NewLink(link.message());
        self.execute(format_args!("create link {}", link.name), request, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Changes a link.
    ///
    /// Setting it down makes the kernel delete its routes without a notice; setting it up again
    /// does not bring them back.
    ///
    /// # Errors
    /// One for which [`Error::is_not_found`] holds when there is no such link.
    pub fn change_link(&mut self, index: u32, change: &LinkChange) -> Result<(), Error> {
        if let Some(name) = &change.name {
            check_name(name)?;
        }
        let request = RouteNetlinkMessage::NewLink(change.message(index));
        self.execute(format_args!("change link {index}"), request, 0)
    }

    /// Deletes a link; one that is gone already is no error.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for a real device, and those of the socket.
    pub fn delete_link(&mut self, index: u32) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let request = RouteNetlinkMessage::DelLink(message);
        match self.execute(format_args!("delete link {index}"), request, 0) {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    fn find_link(
        &mut self,
        object: impl std::fmt::Display,
        message: LinkMessage,
    ) -> Result<Option<Link>, Error> {
        match self.query(object, RouteNetlinkMessage::GetLink(message), Link::read) {
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
                IFLA_AF_SPEC => link.address_generation = AddressGeneration::read(value),
                _ => {}
            }
        }
        link.lower = link.lower.filter(|lower| *lower != 0);
        Ok(link)
    }

    /// The device's VXLAN attributes, if that is what it is.
    pub fn vxlan(&self) -> Option<&Vxlan> {
        if let LinkKind::Vxlan(vxlan) = &self.kind { Some(vxlan) } else { None }
    }
}

impl LinkKind {
    /// Reads `IFLA_LINKINFO`.
    fn read(info: &[u8]) -> Result<Self, DecodeError> {
        let (mut kind, mut data) = (String::new(), &[][..]);
        let mut rest = info;
        // The iterator lends attributes that do not outlive a turn of the loop, so the data is
        // found by position.
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
    /// Reads `IFLA_AF_SPEC`, which holds attributes of the link by family.
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

    fn number(self) -> u8 {
        match self {
            Self::Eui64 => 0,
            Self::None => 1,
            Self::StablePrivacy => 2,
            Self::Random => 3,
            Self::Other(other) => other,
        }
    }
}

impl NewLink {
    /// A link that is down, with everything else left to the kernel.
    pub fn new(name: impl Into<String>, kind: NewLinkKind) -> Self {
        Self { name: name.into(), mac: None, mtu: None, txqlen: None, master: None, up: false, kind }
    }

    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        if self.up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        let attributes = &mut message.attributes;
        attributes.push(LinkAttribute::IfName(self.name.clone()));
        attributes.extend(self.mac.map(mac_attribute));
        attributes.extend(self.mtu.map(LinkAttribute::Mtu));
        attributes.extend(self.txqlen.map(LinkAttribute::TxQueueLen));
        attributes.extend(self.master.map(LinkAttribute::Controller));
        attributes.push(LinkAttribute::LinkInfo(self.kind.info()));
        message
    }
}

impl NewLinkKind {
    fn info(&self) -> Vec<LinkInfo> {
        match self {
            Self::Vxlan(vxlan) => {
                vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(vxlan.attributes()))]
            }
            Self::Veth(peer) => vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer.message()))),
            ],
            Self::Bridge => vec![LinkInfo::Kind(InfoKind::Bridge)],
        }
    }
}

impl VethPeer {
    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        let attributes = &mut message.attributes;
        attributes.push(LinkAttribute::IfName(self.name.clone()));
        attributes.extend(self.mac.map(mac_attribute));
        attributes.extend(self.namespace.as_ref().map(namespace_attribute));
        message
    }
}

impl LinkChange {
    fn message(&self, index: u32) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        if let Some(up) = self.up {
            message.header.change_mask = LinkFlags::Up;
            message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        }
        let attributes = &mut message.attributes;
        attributes.extend(self.name.clone().map(LinkAttribute::IfName));
        attributes.extend(self.mac.map(mac_attribute));
        attributes.extend(self.mtu.map(LinkAttribute::Mtu));
        attributes.extend(self.txqlen.map(LinkAttribute::TxQueueLen));
        attributes.extend(self.master.map(LinkAttribute::Controller));
        attributes.extend(self.namespace.as_ref().map(namespace_attribute));
        attributes.extend(self.address_generation.map(|mode| {
            let mode = AfSpecInet6::AddrGenMode(mode.number().into());
            LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])
        }));
        message
    }
}

fn mac_attribute(mac: Mac) -> LinkAttribute {
    LinkAttribute::Address(mac.0.to_vec())
}

fn namespace_attribute(namespace: &Namespace) -> LinkAttribute {
    use std::os::fd::AsFd;
    LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd())
}

/// The kernel's rules for names. It would cut a name at a NUL byte and go on with the rest.
fn check_name(name: &str) -> Result<(), Error> {
    let odd =
        |byte: u8| byte == 0 || byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0x0b;
    if name.is_empty() || name.len() > NAME_MAX || name == "." || name == ".." || name.bytes().any(odd) {
        return Err(Error::InvalidName(name.to_owned()));
    }
    Ok(())
}
