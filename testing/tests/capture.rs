//! Captures of a manually configured overlay.

#![allow(clippy::unwrap_used, reason = "a failed expectation is how a test fails")]

use flannel_netlink::{Address, AddressGeneration};
use flannel_netlink::{
    FdbEntry, LinkChange, Mac, Neighbour, Netlink, NewLink, NewLinkKind, NewVxlan, Route, WriteRequest,
};
use flannel_testing::{Capture, Captured, Host, Lab, LabOptions, PingOptions, Pod, Transport, ping};
use ipnet::{IpNet, Ipv4Net};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
const VNI: u32 = 1;
const PORT: u16 = 8472;

#[test]
fn a_pods_packet_crosses_the_underlay_in_vxlan_format() {
    let (lab, pods) = overlay();
    let capture = Capture::start(&lab.hosts[0].namespace, "eth0").unwrap();
    ping(&pods[0].namespace, pods[1].addresses[0], &PingOptions::default()).unwrap();
    let packets = capture.stop().unwrap();
    let request = carried_echo(&packets, true).unwrap();
    let reply = carried_echo(&packets, false).unwrap();
    assert!(!reply.outgoing);

    let frame = &request.frame;
    let outer = frame.ipv4().unwrap();
    assert_eq!((Some(outer.source), Some(outer.destination)), (lab.hosts[0].ipv4(), lab.hosts[1].ipv4()));
    assert_eq!((outer.ttl, outer.tos, outer.dont_fragment, outer.more_fragments), (64, 0, false, false));
    // The ping's 84 bytes, and 50 of overhead without the outer Ethernet header.
    assert_eq!(outer.total_length, 134);
    let udp = frame.udp().unwrap();
    assert_eq!((udp.destination_port, udp.length), (PORT, 114));
    assert!(udp.checksum != 0 && udp.source_port >= 1024, "{udp}");
    let vxlan = frame.vxlan().unwrap();
    assert_eq!((vxlan.flags, vxlan.group, vxlan.vni), (0x08, 0, VNI));
    assert_eq!((vxlan.inner.source, vxlan.inner.destination), (mac(0), mac(1)));
    assert_eq!(vxlan.inner.addresses().unwrap(), (pods[0].addresses[0], pods[1].addresses[0]));
    assert_eq!(vxlan.inner.ipv4().unwrap().ttl, 63);
    let line = request.to_string();
    assert!(line.starts_with("Out ") && line.contains("VXLAN flags 0x08 vni 1: 0e:00"), "{line}");
}

#[test]
fn a_packet_is_captured_on_each_link_that_it_passes() {
    let (lab, pods) = overlay();
    let places = [
        (&pods[0].namespace, "eth0"),
        (&lab.hosts[0].namespace, "cni0"),
        (&lab.hosts[0].namespace, "flannel.1"),
        (lab.switch(), "port1"),
        (lab.switch(), "port2"),
        (&pods[1].namespace, "eth0"),
    ];
    let captures = places.map(|(namespace, link)| Capture::start(namespace, link).unwrap());
    ping(&pods[0].namespace, pods[1].addresses[0], &PingOptions::default()).unwrap();
    for (capture, (_, link)) in captures.iter().zip(places) {
        let request = capture.wait_for(LIMIT, |packet| is_echo(packet, true));
        assert!(request.is_some(), "{link}");
        assert!(capture.wait_for(LIMIT, |packet| is_echo(packet, false)).is_some(), "{link}");
    }
    assert!(captures[0].wait_for(Duration::ZERO, |packet| packet.frame.vxlan().is_some()).is_none());
}

#[test]
fn a_capture_loses_no_packet_of_a_burst_and_keeps_their_order() {
    let lab = Lab::new(&LabOptions::default()).unwrap();
    let capture = Capture::start(&lab.hosts[1].namespace, "eth0").unwrap();
    let socket = lab.hosts[0].namespace.run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    let to = (lab.hosts[1].ipv4().unwrap(), 9999);
    // The first packet waits for the neighbour's address, and that queue is short.
    ping(&lab.hosts[0].namespace, to.0.into(), &PingOptions::default()).unwrap();
    for number in 0..5000_u32 {
        socket.send_to(&number.to_be_bytes(), to).unwrap();
    }
    let packets = capture.stop().unwrap();
    let numbers: Vec<u32> = packets
        .iter()
        .filter_map(|packet| packet.frame.udp())
        .filter(|udp| udp.destination_port == 9999)
        .map(|udp| match &udp.content {
            flannel_testing::UdpContent::Bytes(bytes) => u32::from_be_bytes(bytes[..4].try_into().unwrap()),
            flannel_testing::UdpContent::Vxlan(_) => u32::MAX,
        })
        .collect();
    assert_eq!(numbers, (0..5000).collect::<Vec<_>>());
}

#[test]
fn a_capture_on_a_missing_link_fails() {
    let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap();
    let error = Capture::start(&lab.hosts[0].namespace, "flannel.1").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(19), "{error}");
}

/// Creates two hosts with a pod each, and configures a VXLAN device between them.
fn overlay() -> (Lab, Vec<Pod>) {
    let lab = Lab::new(&LabOptions::default()).unwrap();
    for (own, host) in lab.hosts.iter().enumerate() {
        join_overlay(host, own, lab.hosts[1 - own].ipv4().unwrap());
    }
    let pods =
        lab.hosts.iter().enumerate().map(|(n, host)| host.add_pod(&[IpNet::V4(subnet(n))], 1450).unwrap());
    let pods = pods.collect();
    (lab, pods)
}

/// Does the work of a node daemon: creates a device, its address, and the other host as a peer.
fn join_overlay(host: &Host, own: usize, peer: Ipv4Addr) {
    let mut netlink = Netlink::open_in(&host.namespace).unwrap();
    let eth0 = netlink.link("eth0").unwrap().unwrap().index;
    let vxlan = NewVxlan {
        vni: VNI,
        port: Some(PORT),
        lower: Some(eth0),
        local: host.ipv4().map(IpAddr::V4),
        ..NewVxlan::default()
    };
    let device = NewLink { mac: Some(mac(own)), ..NewLink::new("flannel.1", NewLinkKind::Vxlan(vxlan)) };
    netlink.create_link(&device).unwrap();
    let index = netlink.link("flannel.1").unwrap().unwrap().index;
    let quiet = Some(AddressGeneration::None);
    let up = LinkChange { up: Some(true), address_generation: quiet, ..LinkChange::default() };
    netlink.change_link(index, &up).unwrap();
    let net = Ipv4Net::new(subnet(own).network(), 32).unwrap();
    netlink.add_address(&Address::new(index, net.into())).unwrap();
    let gateway = IpAddr::V4(subnet(1 - own).network());
    let writes = [
        WriteRequest::PutNeighbour(Neighbour::permanent(index, gateway, mac(1 - own))),
        WriteRequest::PutFdb(FdbEntry::permanent(index, mac(1 - own), peer.into())),
        WriteRequest::PutRoute(Route::onlink(subnet(1 - own).into(), gateway, index)),
    ];
    for answer in netlink.apply(&writes) {
        answer.unwrap();
    }
}

fn subnet(host: usize) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 5, host as u8, 0), 24)
}

fn mac(host: usize) -> Mac {
    Mac([0x0e, 0, 0, 0, 0, host as u8 + 1])
}

/// Returns the first echo request, or reply, inside VXLAN.
fn carried_echo(packets: &[Captured], request: bool) -> Option<&Captured> {
    packets.iter().find(|packet| packet.frame.vxlan().is_some() && is_echo(packet, request))
}

/// Returns whether a packet is an echo request, or reply, plain or inside VXLAN.
fn is_echo(packet: &Captured, request: bool) -> bool {
    let inner = packet.frame.vxlan().map_or(&packet.frame, |vxlan| &vxlan.inner);
    match inner.transport() {
        Some(Transport::Icmp(message)) if request => message.is_echo_request(),
        Some(Transport::Icmp(message)) => message.is_echo_reply(),
        _ => false,
    }
}
