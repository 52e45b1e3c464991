//! Creates and changes links.

use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use crate::error::Error;
use crate::link::AddressGeneration;
use crate::link_name::check_name;
use crate::mac::Mac;
use crate::namespace::Namespace;
use crate::netlink::Netlink;
use crate::vxlan::{NewVxlan, VxlanChange};

/// A link to create.
#[derive(Clone, Debug)]
pub struct NewLink {
    /// The name.
    pub name: String,
    /// The MAC address; for `None` the kernel chooses one.
    pub mac: Option<Mac>,
    /// The MTU in bytes; for `None` the kernel chooses one.
    pub mtu: Option<u32>,
    /// The length of the transmit queue in packets; 0 means no queue, `None` the kernel's default.
    pub txqlen: Option<u32>,
    /// The index of the bridge that it becomes a port of.
    pub master: Option<u32>,
    /// Whether to create it in the state up.
    pub up: bool,
    /// The kind.
    pub kind: NewLinkKind,
}

/// The kinds of link that can be created.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum NewLinkKind {
    /// A VXLAN device.
    Vxlan(NewVxlan),
    /// A veth pair: the new link and its peer.
    Veth(VethPeer),
    /// A bridge.
    Bridge,
    /// Another kind, such as `wireguard` or `ipip`.
    Other {
        /// The kernel's name of the kind (`IFLA_INFO_KIND`).
        kind: String,
        /// Attributes of the kind (`IFLA_INFO_DATA`), as [`AttributeWriter`](crate::AttributeWriter)
        /// writes them; may be empty.
        data: Vec<u8>,
    },
}

/// The other end of a veth pair.
#[derive(Clone, Debug)]
pub struct VethPeer {
    /// Its name.
    pub name: String,
    /// Its MAC address; for `None` the kernel chooses one.
    pub mac: Option<Mac>,
    /// The namespace to create it in; `None` means that of the first end.
    pub namespace: Option<Namespace>,
}

/// A change of a link; fields that are `None` stay unchanged.
#[derive(Clone, Debug, Default)]
pub struct LinkChange {
    /// Sets it up or down.
    pub up: Option<bool>,
    /// The MTU in bytes.
    pub mtu: Option<u32>,
    /// The MAC address.
    pub mac: Option<Mac>,
    /// The name.
    pub name: Option<String>,
    /// The index of the bridge that it becomes a port of; 0 removes it from its bridge.
    pub master: Option<u32>,
    /// The length of the transmit queue in packets.
    pub txqlen: Option<u32>,
    /// How the kernel generates the link-local IPv6 address.
    pub address_generation: Option<AddressGeneration>,
    /// The namespace to move it to; the index may change there.
    pub namespace: Option<Namespace>,
    /// The underlay of a VXLAN device. Other kinds refuse it.
    pub vxlan: Option<VxlanChange>,
}

impl Netlink {
    /// Creates a link.
    ///
    /// # Errors
    /// [`Error::is_exists`] is true when the name is taken, or when another VXLAN device has the same
    /// network identifier, port and family.
    pub fn create_link(&mut self, link: &NewLink) -> Result<(), Error> {
        check_name(&link.name)?;
        if let NewLinkKind::Veth(peer) = &link.kind {
            check_name(&peer.name)?;
        }
        let request = RouteNetlinkMessage::NewLink(link.message());
        let object = format!("create link {}", link.name);
        match self.socket.execute_request(&object, &request, NLM_F_CREATE | NLM_F_EXCL) {
            Err(Error::Kernel { source, message, .. }) if source.raw_os_error() == Some(libc::EEXIST) => {
                let other = self.link_by_any_name(&link.name)?.filter(|other| other.name != link.name);
                let alternative = other.map(|other| format!("it is an alternative name of {}", other.name));
                Err(Error::Kernel { object, message: alternative.or(message), source })
            }
            result => result,
        }
    }

    /// Changes a link.
    ///
    /// When it is set down, the kernel deletes its routes without notifications; setting it up does not
    /// restore them.
    ///
    /// # Errors
    /// [`Error::is_not_found`] is true when the link does not exist.
    pub fn change_link(&mut self, index: u32, change: &LinkChange) -> Result<(), Error> {
        if let Some(name) = &change.name {
            check_name(name)?;
        }
        let request = RouteNetlinkMessage::NewLink(change.message(index));
        self.socket.execute_request(format_args!("change link {index}"), &request, 0)
    }
}

impl NewLink {
    /// Describes a link that is down, with the kernel's defaults.
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
            Self::Other { kind, data } => {
                let data = (!data.is_empty()).then(|| LinkInfo::Data(InfoData::Other(data.clone())));
                [LinkInfo::Kind(InfoKind::Other(kind.clone()))].into_iter().chain(data).collect()
            }
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
        attributes.extend(self.vxlan.as_ref().map(|vxlan| {
            let data = LinkInfo::Data(InfoData::Vxlan(vxlan.attributes()));
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), data])
        }));
        message
    }
}

fn mac_attribute(mac: Mac) -> LinkAttribute {
    LinkAttribute::Address(mac.0.to_vec())
}

fn namespace_attribute(namespace: &Namespace) -> LinkAttribute {
    LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{Link, LinkKind};
    use crate::message::{encode, read_back};

    #[test]
    fn a_vxlan_device_is_created_down_with_an_explicit_queue_length() {
        let vxlan = NewVxlan { vni: 7, lower: Some(2), ..NewVxlan::default() };
        let new = NewLink {
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            mtu: Some(1450),
            txqlen: Some(0),
            ..NewLink::new("flannel.7", NewLinkKind::Vxlan(vxlan))
        };
        let message = new.message();
        assert_eq!(message.header, Default::default(), "all zero");
        let order: Vec<u16> = message.attributes.iter().map(netlink_packet_core::Nla::kind).collect();
        // IFNAME, ADDRESS, MTU, TXQLEN, LINKINFO.
        assert_eq!(order, [3, 1, 4, 13, 18]);

        let link = read_back(&encode(&RouteNetlinkMessage::NewLink(message)), Link::read);
        assert_eq!((link.name.as_str(), link.mac, link.mtu, link.txqlen), ("flannel.7", new.mac, 1450, 0));
        assert!(!link.up);
        let vxlan = link.vxlan().expect("a vxlan device");
        assert_eq!((vxlan.vni, vxlan.lower), (7, Some(2)));
    }

    #[test]
    fn setting_a_link_up_changes_nothing_else() {
        let change = LinkChange { up: Some(true), ..LinkChange::default() };
        let message = change.message(7);
        assert_eq!((message.header.flags, message.header.change_mask), (LinkFlags::Up, LinkFlags::Up));
        assert!(message.attributes.is_empty());
        let down = LinkChange { up: Some(false), ..LinkChange::default() }.message(7);
        assert_eq!((down.header.flags, down.header.change_mask), (LinkFlags::empty(), LinkFlags::Up));
    }

    #[test]
    fn all_changes_are_encoded() {
        let change = LinkChange {
            up: Some(true),
            mtu: Some(1400),
            name: Some("renamed".to_owned()),
            master: Some(9),
            address_generation: Some(AddressGeneration::None),
            ..LinkChange::default()
        };
        let link = read_back(&encode(&RouteNetlinkMessage::NewLink(change.message(7))), Link::read);
        assert_eq!((link.index, link.up, link.mtu, link.master), (7, true, 1400, Some(9)));
        assert_eq!(link.address_generation, Some(AddressGeneration::None));
        assert_eq!(link.kind, LinkKind::Physical);
    }
}
