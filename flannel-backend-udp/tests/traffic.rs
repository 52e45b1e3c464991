//! Traffic between pods on different hosts arrives intact and in order, with any offload disabled and over bad links.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use common::{
    BOTH, DEADLINE, Overlay, Setup, TestHost, address, check, check_with, introduce, lab, mib, net, sizes,
};
use flannel_backend_udp::Offloads;
use flannel_core::Dirty;
use flannel_testing::{
    Capture, Captured, PingError, PingOptions, PlainProxy, PlainProxyOptions, Pod, Transport, Wire,
    WireOptions, datagrams, datagrams_in_flight, eventually, ping, transfer,
};

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
    // A reply may arrive before the sender has counted the request.
    let counted = eventually(DEADLINE, || {
        let counts = overlay.stations[0].counts();
        let all = counts.peers.values().all(|peer| peer.sent_packets >= 6 && peer.received_packets >= 6);
        if all { Ok(counts) } else { Err(format!("{counts:?}")) }
    });
    let counts = counted.unwrap();
    assert_eq!((counts.peers.len(), counts.drops.len()), (2, 0), "{counts:?}");
}

#[test]
fn a_packet_of_mtu_size_passes_and_a_larger_one_does_not() {
    let overlay = Overlay::new(2);
    let (from, to) = (&overlay.pods[0].namespace, overlay.pods[1].addresses[0]);
    let whole =
        |packet: usize| PingOptions { payload: packet - 28, dont_fragment: true, ..PingOptions::default() };
    ping(from, to, &whole(1472)).unwrap();
    let outcome = ping(from, to, &whole(1473));
    assert!(matches!(outcome, Err(PingError::TooLarge { .. })), "{outcome:?}");
    // A packet that may be fragmented arrives in fragments.
    ping(from, to, &PingOptions { payload: 9000, ..PingOptions::default() }).unwrap();
}

#[test]
fn the_wire_format_is_one_packet_per_datagram() {
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
    // Ethernet, IP and UDP; then the inner packet of 84 bytes, whose TTL the kernel (63) and the packet path (62) decrement.
    let inner = &bytes[14 + 20 + 8..];
    assert_eq!((inner.len(), inner[0], inner[8], inner[9]), (84, 0x45, 62, 1));
    assert_eq!((&inner[12..16], &inner[16..20]), (&[10, 5, 1, 2][..], &[10, 5, 2, 2][..]));
    let in_pod = Capture::start(&overlay.pods[1].namespace, "eth0").unwrap();
    ping(&overlay.pods[0].namespace, overlay.pods[1].addresses[0], &PingOptions::default()).unwrap();
    assert_eq!(ttl_of_the_next(&in_pod, Ipv4Addr::new(10, 5, 1, 2)), 60);
}

/// Returns the TTL of the next packet from `source`, and skips others such as IGMP reports.
fn ttl_of_the_next(capture: &Capture, source: Ipv4Addr) -> u8 {
    let from_source = |packet: &Captured| packet.frame.ipv4().is_some_and(|ip| ip.source == source);
    let arrived = capture.wait_for(DEADLINE, |packet| !packet.outgoing && from_source(packet));
    arrived.unwrap().frame.ipv4().unwrap().ttl
}

/// Returns the pods of the first two hosts.
fn pair(overlay: &Overlay) -> [&Pod; 2] {
    [&overlay.pods[0], &overlay.pods[1]]
}

#[test]
fn streams_and_datagrams_arrive_intact_with_every_offload() {
    let overlay = Overlay::new(2);
    check("every offload", pair(&overlay), 0, mib(32), &sizes(300));
    let counts = overlay.stations[0].counts();
    let peer = counts.peers.values().next().unwrap();
    assert!(peer.sent_bursts * 4 < peer.sent_packets, "sent in bursts: {counts:?}");
    assert!(counts.writes * 3 < peer.received_packets, "written in bursts: {counts:?}");
}

#[test]
fn streams_and_datagrams_arrive_intact_with_each_offload_disabled() {
    let all_but = |change: fn(&mut Offloads)| {
        let mut offloads = Offloads::default();
        change(&mut offloads);
        offloads
    };
    for (what, offloads) in [
        ("all but TCP bursts of the device", all_but(|offloads| offloads.device_tcp = false)),
        ("all but UDP bursts of the device", all_but(|offloads| offloads.device_udp = false)),
        ("all but sending bursts", all_but(|offloads| offloads.send_bursts = false)),
        ("all but receiving bursts", all_but(|offloads| offloads.receive_bursts = false)),
        ("no offload", Offloads::NONE),
    ] {
        let overlay = Overlay::with(2, Setup { offloads, ..Setup::default() });
        check(what, pair(&overlay), 0, mib(4), &sizes(50));
    }
}

#[test]
fn ipv6_goes_in_ipv6() {
    let overlay = Overlay::with(2, Setup { config: BOTH, ..Setup::default() });
    assert_eq!(overlay.stations[0].backend.mtu(), 1452);
    check("IPv6 in IPv6", pair(&overlay), 1, mib(16), &sizes(150));
    check("IPv4 beside it", pair(&overlay), 0, mib(8), &sizes(100));
}

#[test]
fn a_stream_survives_loss_and_reordering() {
    let lab = lab(2);
    let ends = [net("172.16.0.1/24"), net("172.16.0.2/24")];
    let hosts = [0, 1].map(|host: usize| &lab.hosts[host].namespace);
    let bad = WireOptions { loss: 0.01, reordering: 0.02, ..WireOptions::default() };
    let _wire = Wire::join("wire0", [(hosts[0], &ends[..1]), (hosts[1], &ends[1..])], bad).unwrap();
    let setup = Setup { interface: "wire0", ..Setup::default() };
    let mut stations = [1, 2].map(|n| TestHost::start(hosts[usize::from(n) - 1], n, setup));
    introduce(&mut stations);
    transfer(hosts[0], hosts[1], address("10.5.2.0"), mib(2)).unwrap();
    transfer(hosts[1], hosts[0], address("10.5.1.0"), mib(2)).unwrap();
    let report =
        datagrams(hosts[0], hosts[1], address("10.5.2.0"), &vec![1000; 300], Duration::from_millis(100));
    let report = report.unwrap();
    assert_eq!((report.altered, report.duplicates), (0, 0));
    assert!(report.lost.len() < 60, "{report:?}");
    // Small datagrams only: a large one mostly loses a fragment here, and by default the kernel keeps 4 MiB of incomplete
    // fragments for 30 s and drops others in the meantime.
    hosts[1].write_sysctl("net/ipv4/ipfrag_time", "1").unwrap();
    hosts[1].write_sysctl("net/ipv4/ipfrag_high_thresh", "268435456").unwrap();
    let sizes = sizes(200);
    let (to, patience) = (address("10.5.2.0"), Duration::from_millis(2));
    let report = datagrams_in_flight(hosts[0], hosts[1], to, &sizes, patience, 8).unwrap();
    assert_eq!((report.altered, report.duplicates), (0, 0), "{report:?}");
    println!(
        "loss and reordering: {} MiB each way; {} of {} datagrams, none altered",
        mib(2) >> 20,
        sizes.len() - report.lost.len(),
        sizes.len()
    );
}

#[test]
fn a_path_with_a_smaller_mtu_loses_nothing() {
    let overlay = Overlay::narrow();
    check("a path with a smaller MTU", pair(&overlay), 0, mib(4), &sizes(30));
}

#[test]
fn a_peer_whose_public_address_is_this_hosts_own_is_unreachable_while_it_lasts() {
    let lab = lab(1);
    let mut station = TestHost::start(&lab.hosts[0].namespace, 1, Setup::default());
    station.learn([common::peer(2), common::peer(3)]);
    assert_eq!(station.sync().unreachable, []);
    while station.noticed(common::QUIET).is_some() {}
    common::ip(&station.namespace, "address add 192.168.64.2/32 dev lo");
    station.heal();
    let report = station.sync_only(&Dirty::NONE);
    let reasons: Vec<_> = report.unreachable.iter().map(|peer| (peer.peer, &*peer.reason)).collect();
    let reason = "the public address of 10.5.2.0/24 is this host's own (192.168.64.2)";
    assert_eq!(reasons, [(common::peer(2).subnet, reason)]);
    common::ip(&station.namespace, "address del 192.168.64.2/32 dev lo");
    station.heal();
    assert_eq!(station.sync_only(&Dirty::NONE).unreachable, []);
}

#[test]
fn a_host_with_upstreams_backend_is_a_peer() {
    let lab = lab(2);
    let [ours, theirs] = [0, 1].map(|host: usize| &lab.hosts[host]);
    let mut station = TestHost::start(&ours.namespace, 1, Setup::default());
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
    // Upstream's socket buffer holds few large datagrams.
    check_with(1, "to upstream's backend", [&one, &other], 0, mib(2), &sizes(100));
    check_with(1, "from upstream's backend", [&other, &one], 0, mib(2), &sizes(100));
    // The TTL decreases as between two upstream hosts.
    let in_pod = Capture::start(&one.namespace, "eth0").unwrap();
    ping(&other.namespace, one.addresses[0], &PingOptions::default()).unwrap();
    assert_eq!(ttl_of_the_next(&in_pod, Ipv4Addr::new(10, 5, 2, 2)), 60);
}
