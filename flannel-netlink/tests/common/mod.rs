//! Helpers of the kernel tests: namespaces, links, and waiting with a deadline.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

pub(crate) mod sys;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use flannel_netlink::{Link, LinkChange, Mac, Namespace, Netlink, NewLink, NewLinkKind, NewVxlan, VethPeer};
use ipnet::IpNet;

/// The index of the loopback link (`LOOPBACK_IFINDEX`).
pub(crate) const LOOPBACK: u32 = 1;

/// The time limit for asynchronous work of the kernel.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Creates a namespace, and asserts that it can be entered, so that a test of broken code cannot change
/// the host's network.
pub(crate) fn own_namespace() -> Namespace {
    let namespace = Namespace::create().expect("these tests make network namespaces: run them as root");
    let inside = namespace.run(Namespace::current).unwrap().unwrap();
    assert_eq!(inside, namespace, "inside the namespace");
    assert_ne!(inside, Namespace::current().unwrap(), "not the host's own");
    namespace
}

/// Creates a namespace with loopback up, and opens a socket in it.
pub(crate) fn namespace() -> (Namespace, Netlink) {
    let namespace = own_namespace();
    let mut netlink = Netlink::open_in(&namespace).unwrap();
    set_up(&mut netlink, LOOPBACK, true);
    (namespace, netlink)
}

/// Creates a namespace with a VXLAN device that is up; returns its index.
pub(crate) fn namespace_with_vxlan() -> (Namespace, Netlink, u32) {
    let (namespace, mut netlink) = namespace();
    make_no_addresses(&namespace);
    let vxlan = NewVxlan { vni: 1, local: Some(ip("10.88.0.1")), ..NewVxlan::default() };
    let device =
        create(&mut netlink, &NewLink { up: true, ..NewLink::new("flannel.1", NewLinkKind::Vxlan(vxlan)) });
    (namespace, netlink, device.index)
}

/// Creates a namespace with an Ethernet link that is running; returns its index.
pub(crate) fn namespace_with_ethernet() -> (Namespace, Netlink, u32) {
    let (namespace, mut netlink) = namespace();
    make_no_addresses(&namespace);
    let device = create(&mut netlink, &ethernet("eth0"));
    let far = netlink.link("eth0-far").unwrap().unwrap();
    set_up(&mut netlink, far.index, true);
    // The kernel announces it a moment later (`net/core/link_watch.c`).
    for name in ["eth0", "eth0-far"] {
        eventually("a running link", || netlink.link(name).unwrap().filter(|link| link.running));
    }
    (namespace, netlink, device.index)
}

/// Disables link-local addresses on later links of a namespace; the kernel would announce them a second or two later.
fn make_no_addresses(namespace: &Namespace) {
    namespace.write_sysctl("net/ipv6/conf/default/addr_gen_mode", "1").unwrap();
}

/// Creates an Ethernet link that is up; its peer, which is down, has the same name with `-far`.
pub(crate) fn ethernet(name: &str) -> NewLink {
    let peer = VethPeer { name: format!("{name}-far"), mac: None, namespace: None };
    NewLink { up: true, ..NewLink::new(name, NewLinkKind::Veth(peer)) }
}

/// Creates a link and reads it back.
pub(crate) fn create(netlink: &mut Netlink, link: &NewLink) -> Link {
    netlink.create_link(link).unwrap();
    netlink.link(&link.name).unwrap().expect("the link that was just created")
}

pub(crate) fn set_up(netlink: &mut Netlink, index: u32, up: bool) {
    netlink.change_link(index, &LinkChange { up: Some(up), ..LinkChange::default() }).unwrap();
}

/// Polls until there is a result.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < DEADLINE, "still waiting for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn mac(text: &str) -> Mac {
    text.parse().unwrap()
}

/// Returns a distinct MAC address for each number.
pub(crate) fn numbered_mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([0x0e, 0x2a, a, b, c, d])
}
