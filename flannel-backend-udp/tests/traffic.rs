//! Packets between pods on different hosts arrive whole and in order, whatever is switched off or in the way.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use common::{BOTH, DEADLINE, Overlay, Setup, Station, address, introduce, lab, net};
use flannel_backend_udp::Offloads;
use flannel_netlink::Namespace;
use flannel_testing::{
    Capture, Captured, PingError, PingOptions, PlainProxy, PlainProxyOptions, Transport, Wire, WireOptions,
    datagrams, ping, transfer,
};

/// Enough for a stream to fill every buffer on its way many times. `UDP_TEST_MIB=1024` sends a GiB.
fn stream_bytes(divisor: u64) -> u64 {
    let mib = std::env::var("UDP_TEST_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(32);
    (mib << 20) / divisor
}

/// Sizes of datagrams, small and large, from the smallest to the largest there is. `UDP_TEST_DATAGRAMS=1000000` sends a
/// million.
fn sizes(count: usize) -> Vec<usize> {
    let count =
        std::env::var("UDP_TEST_DATAGRAMS").ok().and_then(|count| count.parse().ok()).unwrap_or(count);
    // Xorshift (G. Marsaglia, 2003): the same sizes in every run.
    let mut chance = 0x2545_f491_4f6c_dd1du64;
    let mut next = move || {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        chance
    };
    let mut sizes = vec![4, 1443, 1444, 1445, 65_507];
    // Most of them near the MTU or below it, some of any size.
    sizes.extend((0..count).map(|_| 4 + next() as usize % [40, 1500, 3000, 65_504][next() as usize % 4]));
    sizes
}

/// Sends streams both ways and datagrams, and finds that all arrive.
fn check(from: &Namespace, to: &Namespace, there: &str, back: &str, bytes: u64, count: usize) {
    transfer(from, to, address(there), bytes).unwrap();
    transfer(to, from, address(back), bytes).unwrap();
    let report = datagrams(from, to, address(there), &sizes(count), DEADLINE).unwrap();
    assert!(report.is_perfect(), "{report:?}");
}

#[test]
fn pods_of_three_hosts_reach_each_other_and_the_hosts() {
    let overlay = Overlay::new(3);
    for (at, from) in overlay.pods.iter().enumerate() {
        for (other, to) in overlay.pods.iter().enumerate().filter(|(other, _)| *other != at) {
            ping(&from.namespace, to.addresses[0], &PingOptions::default()).unwrap();
            let device = address(&format!("10.5.{}.0", other + 1));
            ping(&from.namespace, device, &PingOptions::default()).unwrap();
            ping(&overlay.stations[at].namespace, device, &PingOptions::default()).unwrap();
        }
    }
    let counts = overlay.stations[0].counts();
    assert_eq!((counts.peers.len(), counts.drops.len()), (2, 0), "{counts:?}");
    assert!(
        counts.peers.values().all(|peer| peer.sent_packets >= 6 && peer.received_packets >= 6),
        "{counts:?}"
    );
}

#[test]
fn a_packet_of_the_mtu_passes_whole_and_a_larger_one_does_not() {
    let overlay = Overlay::new(2);
    let (from, to) = (&overlay.pods[0].namespace, overlay.pods[1].addresses[0]);
    let whole =
        |packet: usize| PingOptions { payload: packet - 28, dont_fragment: true, ..PingOptions::default() };
    ping(from, to, &whole(1472)).unwrap();
    let outcome = ping(from, to, &whole(1473));
    assert!(matches!(outcome, Err(PingError::TooLarge { .. })), "{outcome:?}");
    // One that may be cut arrives in parts.
    ping(from, to, &PingOptions { payload: 9000, ..PingOptions::default() }).unwrap();
}

#[test]
fn on_the_wire_a_packet_is_the_whole_payload_of_a_datagram_between_the_ports() {
    let overlay = Overlay::new(2);
    let capture = Capture::start(&overlay.lab.hosts[1].namespace, "eth0").unwrap();
    ping(&overlay.pods[0].namespace, overlay.pods[1].addresses[0], &PingOptions::default()).unwrap();
    let datagram = |packet: &Captured| {
        let ip = packet.frame.ipv4()?;
        let Transport::Udp(udp) = &ip.transport else { return None };
        Some((ip.clone(), udp.clone(), packet.bytes.clone()))
    };
    let packet = capture.wait_for(DEADLINE, |packet| !packet.outgoing && datagram(packet).is_some()).unwrap();
    let (outer, udp, bytes) = datagram(&packet).unwrap();
    assert_eq!(
        (outer.source.to_string(), outer.destination.to_string()),
        ("192.168.64.1".into(), "192.168.64.2".into())
    );
    assert_eq!((udp.source_port, udp.destination_port), (8285, 8285));
    // Ethernet, IP and UDP; then the packet: 84 bytes, forwarded by the kernel (63) and by the packet path (62).
    let inner = &bytes[14 + 20 + 8..];
    assert_eq!((inner.len(), inner[0], inner[8], inner[9]), (84, 0x45, 62, 1));
    assert_eq!((&inner[12..16], &inner[16..20]), (&[10, 5, 1, 2][..], &[10, 5, 2, 2][..]));
    let in_pod = Capture::start(&overlay.pods[1].namespace, "eth0").unwrap();
    ping(&overlay.pods[0].namespace, overlay.pods[1].addresses[0], &PingOptions::default()).unwrap();
    assert_eq!(ttl_of_the_next(&in_pod, Ipv4Addr::new(10, 5, 1, 2)), 60);
}

/// The TTL with which the next packet of `source` arrives. Others arrive too: a kernel reports its groups by IGMP.
fn ttl_of_the_next(capture: &Capture, source: Ipv4Addr) -> u8 {
    let from_source = |packet: &Captured| packet.frame.ipv4().is_some_and(|ip| ip.source == source);
    let arrived = capture.wait_for(DEADLINE, |packet| !packet.outgoing && from_source(packet));
    arrived.unwrap().frame.ipv4().unwrap().ttl
}

#[test]
fn streams_and_datagrams_arrive_whole_with_every_offload() {
    let overlay = Overlay::new(2);
    let [one, other] = [0, 1].map(|pod: usize| &overlay.pods[pod].namespace);
    check(one, other, "10.5.2.2", "10.5.1.2", stream_bytes(1), 300);
    let counts = overlay.stations[0].counts();
    let peer = counts.peers.values().next().unwrap();
    assert!(peer.sent_bursts * 4 < peer.sent_packets, "sent in bursts: {counts:?}");
    assert!(counts.writes * 3 < peer.received_packets, "written in bursts: {counts:?}");
}

#[test]
fn streams_and_datagrams_arrive_whole_with_each_offload_switched_off() {
    let on = Offloads::default();
    let all_but = |change: fn(&mut Offloads)| {
        let mut offloads = on;
        change(&mut offloads);
        offloads
    };
    for offloads in [
        all_but(|offloads| offloads.device_tcp = false),
        all_but(|offloads| offloads.device_udp = false),
        all_but(|offloads| offloads.send_bursts = false),
        all_but(|offloads| offloads.receive_bursts = false),
        Offloads::NONE,
    ] {
        let overlay = Overlay::with(2, Setup { offloads, ..Setup::default() });
        let [one, other] = [0, 1].map(|pod: usize| &overlay.pods[pod].namespace);
        check(one, other, "10.5.2.2", "10.5.1.2", stream_bytes(8), 50);
    }
}

#[test]
fn ipv6_goes_in_ipv6() {
    let overlay = Overlay::with(2, Setup { config: BOTH, ..Setup::default() });
    let [one, other] = [0, 1].map(|pod: usize| &overlay.pods[pod].namespace);
    assert_eq!(overlay.stations[0].backend.mtu(), 1452);
    check(one, other, "fd00:5:0:2::2", "fd00:5:0:1::2", stream_bytes(2), 150);
    check(one, other, "10.5.2.2", "10.5.1.2", stream_bytes(4), 100);
}

#[test]
fn a_cable_that_loses_and_reorders_packets_costs_no_byte_of_a_stream() {
    let lab = lab(2);
    let ends = [net("172.16.0.1/24"), net("172.16.0.2/24")];
    let hosts = [0, 1].map(|host: usize| &lab.hosts[host].namespace);
    let bad = WireOptions { loss: 0.01, reordering: 0.02, ..WireOptions::default() };
    let _wire = Wire::join("wire0", [(hosts[0], &ends[..1]), (hosts[1], &ends[1..])], bad).unwrap();
    let setup = Setup { interface: "wire0", ..Setup::default() };
    let mut stations = [1, 2].map(|n| Station::start(hosts[usize::from(n) - 1], n, setup));
    introduce(&mut stations);
    transfer(hosts[0], hosts[1], address("10.5.2.0"), stream_bytes(16)).unwrap();
    transfer(hosts[1], hosts[0], address("10.5.1.0"), stream_bytes(16)).unwrap();
    let report =
        datagrams(hosts[0], hosts[1], address("10.5.2.0"), &vec![1000; 300], Duration::from_millis(100));
    let report = report.unwrap();
    assert_eq!((report.altered, report.duplicates), (0, 0));
    assert!(report.lost.len() < 60, "{report:?}");
}

#[test]
fn a_host_with_upstreams_backend_is_a_peer_like_any_other() {
    let lab = lab(2);
    let [ours, theirs] = [0, 1].map(|host: usize| &lab.hosts[host]);
    let mut station = Station::start(&ours.namespace, 1, Setup::default());
    station.learn([common::peer(2)]);
    assert_eq!(station.sync().unreachable, []);
    let _proxy = PlainProxy::start(
        &theirs.namespace,
        PlainProxyOptions {
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.2.0/24".parse().unwrap(),
            local: SocketAddrV4::new(theirs.ipv4().unwrap(), 8285),
            mtu: 1472,
            routes: vec![("10.5.1.0/24".parse().unwrap(), ours.ipv4().unwrap())],
        },
    )
    .unwrap();
    let one = ours.add_pod(&[net("10.5.1.0/24")], 1472).unwrap();
    let other = theirs.add_pod(&[net("10.5.2.0/24")], 1472).unwrap();
    check(&one.namespace, &other.namespace, "10.5.2.2", "10.5.1.2", stream_bytes(16), 100);
    let report =
        datagrams(&other.namespace, &one.namespace, address("10.5.1.2"), &sizes(100), DEADLINE).unwrap();
    assert!(report.is_perfect(), "{report:?}");
    // Hops are counted the same way as between two of upstream.
    let in_pod = Capture::start(&one.namespace, "eth0").unwrap();
    ping(&other.namespace, one.addresses[0], &PingOptions::default()).unwrap();
    assert_eq!(ttl_of_the_next(&in_pod, Ipv4Addr::new(10, 5, 2, 2)), 60);
}
