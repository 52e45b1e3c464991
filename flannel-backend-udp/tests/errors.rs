//! ICMP errors, and paths with an MTU below the device's.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use std::net::UdpSocket;
use std::time::Duration;

use common::{DEADLINE, Overlay, address, ip};
use flannel_testing::{Capture, Captured, PingError, PingOptions, Transport, datagrams, ping, transfer};

fn short() -> PingOptions {
    PingOptions { timeout: Duration::from_millis(700), ..PingOptions::default() }
}

/// Captures in a pod while `send` runs, and waits for an ICMP message of a type and code.
fn icmp_answer(overlay: &Overlay, kind: u8, code: u8, send: impl FnOnce()) -> Captured {
    let capture = Capture::start(&overlay.pods[0].namespace, "eth0").unwrap();
    send();
    let is_it = |packet: &Captured| {
        let Some(ip) = packet.frame.ipv4() else { return false };
        matches!(&ip.transport, Transport::Icmp(icmp) if (icmp.kind, icmp.code) == (kind, code))
    };
    let found = capture.wait_for(DEADLINE, |packet| !packet.outgoing && is_it(packet));
    found.unwrap_or_else(|| panic!("no ICMP message of type {kind}: {:?}", capture.stop()))
}

#[test]
fn an_unknown_destination_is_answered_as_unreachable() {
    let overlay = Overlay::new(2);
    let outcome = ping(&overlay.pods[0].namespace, address("10.5.200.7"), &short());
    assert!(matches!(outcome, Err(PingError::Unreachable { .. })), "{outcome:?}");
    let answer = icmp_answer(&overlay, 3, 0, || {
        drop(ping(&overlay.pods[0].namespace, address("10.5.201.7"), &short()))
    });
    assert_eq!(answer.frame.ipv4().unwrap().source.to_string(), "10.5.1.0");
    // Packets for an unused address of the own subnet don't loop either.
    ip(&overlay.stations[0].namespace, "link set cni0 down");
    assert!(ping(&overlay.stations[0].namespace, address("10.5.1.200"), &short()).is_err());
}

#[test]
fn every_hop_of_a_traceroute_answers() {
    let overlay = Overlay::new(2);
    for (ttl, from) in [(1, "10.5.1.1"), (2, "10.5.1.0"), (3, "10.5.2.0"), (4, "10.5.2.0")] {
        let socket = overlay.pods[0].namespace.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        socket.set_ttl(ttl).unwrap();
        let answer =
            icmp_answer(&overlay, 11, 0, || drop(socket.send_to(b"?", (address("10.5.2.2"), 33_434))));
        assert_eq!(answer.frame.ipv4().unwrap().source.to_string(), from, "ttl {ttl}");
    }
    let socket = overlay.pods[0].namespace.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    socket.set_ttl(5).unwrap();
    icmp_answer(&overlay, 3, 3, || drop(socket.send_to(b"?", (address("10.5.2.2"), 33_434))));
}

#[test]
fn multicast_is_dropped_without_an_icmp_error() {
    let overlay = Overlay::new(2);
    let host = &overlay.stations[0].namespace;
    ip(host, "route add 239.1.2.3/32 dev flannel0");
    let socket = host.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    let capture = Capture::start(host, "flannel0").unwrap();
    socket.send_to(b"all", ("239.1.2.3", 9)).unwrap();
    flannel_testing::eventually(DEADLINE, || {
        overlay.stations[0].counts().drops.get(&flannel_backend_udp::DropReason::Group).copied()
    })
    .unwrap();
    assert!(capture.stop().unwrap().iter().all(|packet| packet.outgoing));
}

#[test]
fn a_path_with_a_smaller_mtu_carries_everything_and_the_source_learns_the_mtu() {
    let overlay = Overlay::narrow();
    let [one, other] = [0, 1].map(|pod: usize| overlay.pods[pod].namespace.clone());
    // The source of a burst that doesn't fit learns the path MTU: 1300 less the 28 bytes of the datagram's headers.
    let answer = icmp_answer(&overlay, 3, 4, || {
        transfer(&one, &other, address("10.5.2.2"), 8 << 20).unwrap();
    });
    assert_eq!(answer.bytes[14 + 20 + 6..][..2], 1272u16.to_be_bytes());
    let report =
        datagrams(&one, &other, address("10.5.2.2"), &[100, 1200, 1444, 1400, 9000, 60_000], DEADLINE)
            .unwrap();
    assert!(report.is_perfect(), "{report:?}");
    assert_eq!(overlay.stations[0].counts().drops, [].into());
}
