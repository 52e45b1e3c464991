//! What new backends need without a change of this crate: raw sockets, other kinds of link, generic netlink.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use flannel_netlink::{
    AttributeWriter, GenericNetlink, LinkKind, ListenerEvent, Namespace, Netlink, NetlinkListener,
    NetlinkSocket, NewLink, NewLinkKind, RawMessage, attribute,
};

const NETLINK_ROUTE: isize = 0;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
/// `sizeof(struct ifinfomsg)`.
const HEADER: usize = 16;
/// `RTNLGRP_LINK`.
const LINK_GROUP: u32 = 1;

fn namespace() -> Namespace {
    Namespace::create().expect("these tests create network namespaces: run them as root")
}

/// A request about a link, by name.
fn about_link(message_type: u16, name: &str) -> RawMessage {
    let attributes = AttributeWriter::new().string(IFLA_IFNAME, name).finish();
    RawMessage { message_type, payload: [vec![0; HEADER], attributes].concat() }
}

#[test]
fn a_raw_socket_reads_and_deletes_what_another_socket_created() {
    let namespace = namespace();
    let kind = NewLinkKind::Other { kind: "bridge".to_owned(), data: Vec::new() };
    let mut netlink = Netlink::open_in(&namespace).unwrap();
    netlink.create_link(&NewLink::new("cni0", kind)).unwrap();
    assert_eq!(netlink.link("cni0").unwrap().unwrap().kind, LinkKind::Bridge);

    let mut socket = NetlinkSocket::open_in(&namespace, NETLINK_ROUTE).unwrap();
    let reply = socket.query("read link cni0", &about_link(RTM_GETLINK, "cni0")).unwrap();
    assert_eq!(reply.message_type, RTM_NEWLINK);
    assert_eq!(attribute(&reply.payload[HEADER..], IFLA_IFNAME), Some(&b"cni0\0"[..]));
    let all = RawMessage { message_type: RTM_GETLINK, payload: vec![0; HEADER] };
    assert_eq!(socket.dump("links", &all).unwrap().len(), netlink.links().unwrap().len());

    socket.execute("delete link cni0", &about_link(RTM_DELLINK, "cni0"), 0).unwrap();
    let error = socket.execute("delete link cni0", &about_link(RTM_DELLINK, "cni0"), 0).unwrap_err();
    assert!(error.is_not_found() && error.to_string().contains("delete link cni0"), "{error}");
}

#[test]
fn attributes_of_another_kind_of_link_reach_the_kernel() {
    /// `IFLA_BR_FORWARD_DELAY`, in hundredths of a second.
    const FORWARD_DELAY: u16 = 1;
    let namespace = namespace();
    let data = AttributeWriter::new().bytes(FORWARD_DELAY, &700_u32.to_ne_bytes()).finish();
    let kind = NewLinkKind::Other { kind: "bridge".to_owned(), data };
    Netlink::open_in(&namespace).unwrap().create_link(&NewLink::new("cni0", kind)).unwrap();
    let mut socket = NetlinkSocket::open_in(&namespace, NETLINK_ROUTE).unwrap();
    let reply = socket.query("read link cni0", &about_link(RTM_GETLINK, "cni0")).unwrap();
    let info = attribute(&reply.payload[HEADER..], 18).unwrap();
    let delay = attribute(attribute(info, 2).unwrap(), FORWARD_DELAY).unwrap();
    assert_eq!(u32::from_ne_bytes(delay.try_into().unwrap()), 700);
}

#[test]
fn a_listener_receives_notifications_of_its_group() {
    let namespace = namespace();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut listener = NetlinkListener::open_in(&namespace, NETLINK_ROUTE, &[LINK_GROUP]).unwrap();
        let link = NewLink::new("cni0", NewLinkKind::Bridge);
        Netlink::open_in(&namespace).unwrap().create_link(&link).unwrap();
        let event = tokio::time::timeout(Duration::from_secs(5), listener.next()).await.unwrap().unwrap();
        let ListenerEvent::Messages(messages) = event else { panic!("{event:?}") };
        assert_eq!(messages[0].message_type, RTM_NEWLINK);
        assert_eq!(attribute(&messages[0].payload[HEADER..], IFLA_IFNAME), Some(&b"cni0\0"[..]));
    });
}

#[test]
fn generic_netlink_families_are_found_by_name() {
    let mut netlink = GenericNetlink::open_in(&namespace()).unwrap();
    let controller = netlink.family("nlctrl").unwrap().expect("every kernel has the controller");
    assert_eq!((controller.id, controller.name.as_str()), (16, "nlctrl"));
    assert!(controller.groups.iter().any(|(name, _)| name == "notify"), "{controller:?}");
    assert_eq!(netlink.family("no-such-family").unwrap(), None);
    let families = netlink.families().unwrap();
    assert!(families.contains(&controller), "{families:?}");
    for family in &families {
        assert_eq!(netlink.family(&family.name).unwrap().as_ref(), Some(family));
    }
}

#[test]
fn a_generic_family_answers_commands_and_refuses_unknown_ones_by_name() {
    /// `ETHTOOL_MSG_LINKINFO_GET`.
    const LINKINFO_GET: u8 = 2;
    /// `ETHTOOL_A_LINKINFO_HEADER`, and in it `ETHTOOL_A_HEADER_DEV_NAME`.
    const HEADER: u16 = 1;
    const DEVICE_NAME: u16 = 2;
    let namespace = namespace();
    let mut netlink = GenericNetlink::open_in(&namespace).unwrap();
    let Some(ethtool) = netlink.family("ethtool").unwrap() else {
        assert!(netlink.families().unwrap().iter().all(|family| family.name != "ethtool"));
        return;
    };
    let link = NewLink::new("cni0", NewLinkKind::Bridge);
    Netlink::open_in(&namespace).unwrap().create_link(&link).unwrap();
    let device = |name: &str| {
        let name = AttributeWriter::new().string(DEVICE_NAME, name);
        AttributeWriter::new().nested(HEADER, name).finish()
    };
    /// `ETHTOOL_MSG_FEATURES_GET`.
    const FEATURES_GET: u8 = 11;
    let features = netlink.query("read features of cni0", &ethtool, FEATURES_GET, &device("cni0")).unwrap();
    let header = attribute(&features, HEADER).unwrap();
    assert_eq!(attribute(header, DEVICE_NAME), Some(&b"cni0\0"[..]));
    let error = netlink.query("read link info of eth9", &ethtool, LINKINFO_GET, &device("eth9")).unwrap_err();
    assert!(error.is_not_found() && error.to_string().contains("read link info of eth9"), "{error}");
    assert_eq!(netlink.dump("features", &ethtool, FEATURES_GET, &[]).unwrap().len(), 2, "lo and cni0");
    let error = netlink.execute("execute an unknown command", &ethtool, 250, &[]).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EOPNOTSUPP), "{error}");
}
