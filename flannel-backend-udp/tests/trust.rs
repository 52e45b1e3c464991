//! Source checks: datagrams from strangers and forged inner sources are dropped, and peers join and leave under traffic.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{DEADLINE, Overlay, Setup, TestHost, address, lab, peer};
use flannel_backend_udp::DropReason;
use flannel_core::Dirty;
use flannel_netlink::Namespace;
use flannel_testing::{Capture, PingError, PingOptions, eventually, ping, throughput, transfer};

/// Returns a valid echo request packet.
fn echo(from: &str, to: &str) -> Vec<u8> {
    let octets = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let mut packet = vec![0x45, 0, 0, 28, 0, 1, 0x40, 0, 64, 1, 0, 0];
    packet.extend(octets(from));
    packet.extend(octets(to));
    packet.extend([8, 0, 0xf7, 0xfe, 0, 0, 0, 1]);
    let sum: u32 = packet[..20].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn socket(namespace: &Namespace) -> UdpSocket {
    namespace.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap()
}

fn port_of(host: u8) -> SocketAddr {
    SocketAddr::from(([192, 168, 64, host], 8285))
}

/// Two peers, and a third host that is a stranger to both.
fn with_stranger() -> (Overlay, UdpSocket) {
    let mut overlay = Overlay::new(3);
    let stranger = overlay.stations.pop().unwrap();
    for station in &mut overlay.stations {
        station.remove(&stranger.own);
        station.sync();
    }
    let socket = socket(&stranger.namespace);
    (overlay, socket)
}

#[test]
fn packets_from_a_stranger_are_dropped_and_counted() {
    let (mut overlay, stranger) = with_stranger();
    let capture = Capture::start(&overlay.stations[0].namespace, "flannel0").unwrap();
    for _ in 0..100 {
        stranger.send_to(&echo("10.5.3.2", "10.5.1.0"), port_of(1)).unwrap();
        stranger.send_to(&echo("10.5.2.2", "10.5.1.0"), port_of(1)).unwrap();
    }
    let station = &mut overlay.stations[0];
    eventually(DEADLINE, || {
        station.sync_only(&Dirty::NONE);
        let counts = station.counts();
        let dropped = counts.kernel_drops + counts.drops.get(&DropReason::Stranger).copied().unwrap_or(0);
        if dropped == 200 { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .unwrap();
    let came = capture.stop().unwrap();
    assert!(came.iter().all(|packet| packet.outgoing), "{came:?}");
}

#[test]
fn a_peer_cannot_send_from_the_subnet_of_another() {
    let overlay = Overlay::new(3);
    let liar = socket(&overlay.stations[1].namespace);
    let capture = Capture::start(&overlay.stations[0].namespace, "flannel0").unwrap();
    for source in ["10.5.3.2", "10.5.1.5", "9.9.9.9", "0.0.0.0", "127.0.0.1", "224.0.0.1", "192.168.64.2"] {
        liar.send_to(&echo(source, "10.5.1.0"), port_of(1)).unwrap();
    }
    let wrong = || overlay.stations[0].counts().drops.get(&DropReason::WrongSource).copied();
    eventually(DEADLINE, || wrong() == Some(7)).unwrap();
    let refused =
        |n: usize| overlay.stations[0].counts().peers[&overlay.stations[n].own.subnet].refused_packets;
    eventually(DEADLINE, || refused(1) == 7).unwrap();
    assert_eq!(refused(2), 0);
    let came = capture.stop().unwrap();
    assert!(came.iter().all(|packet| packet.outgoing), "{came:?}");
    // The right inner source is accepted from any port.
    liar.send_to(&echo("10.5.2.9", "10.5.1.0"), port_of(1)).unwrap();
    let came = || overlay.stations[0].counts().peers.values().map(|peer| peer.received_packets).sum::<u64>();
    eventually(DEADLINE, || came() == 1).unwrap();
}

#[test]
fn datagrams_without_a_packet_do_no_harm() {
    let overlay = Overlay::new(2);
    let odd = socket(&overlay.stations[1].namespace);
    let mut cut = echo("10.5.2.2", "10.5.1.0");
    cut[3] = 200;
    let with_options = [0x4f; 40].to_vec();
    let ipv6 = [&[0x60, 0, 0, 0, 0, 8, 58, 64][..], &[0xfe; 40]].concat();
    let odd_ones =
        [vec![], vec![0x45], vec![0x45; 19], vec![0; 1473], vec![0x45; 65_507], cut, with_options, ipv6];
    for bytes in &odd_ones {
        odd.send_to(bytes, port_of(1)).unwrap();
    }
    let dropped = || overlay.stations[0].counts().drops.values().sum::<u64>();
    eventually(DEADLINE, || if dropped() >= 8 { Ok(()) } else { Err(dropped()) }).unwrap();
    ping(&overlay.pods[0].namespace, overlay.pods[1].addresses[0], &PingOptions::default()).unwrap();
    transfer(&overlay.pods[0].namespace, &overlay.pods[1].namespace, address("10.5.2.2"), 1 << 20).unwrap();
}

#[test]
fn a_flood_from_ten_strangers_is_dropped_and_streams_continue() {
    let (mut overlay, _) = with_stranger();
    let strangers = &overlay.lab.hosts[2].namespace;
    for n in 0..10 {
        common::ip(strangers, &format!("address add 192.168.64.{}/24 dev eth0", 100 + n));
    }
    let capture = Capture::start(&overlay.stations[1].namespace, "flannel0").unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for n in 0..10u8 {
            let from = SocketAddr::from(([192, 168, 64, 100 + n], 0));
            let flood = strangers.run(|| UdpSocket::bind(from)).unwrap().unwrap();
            let stop = &stop;
            scope.spawn(move || {
                let packet = echo("10.5.1.2", "10.5.2.77");
                while !stop.load(Ordering::Relaxed) {
                    let _ = flood.send_to(&packet, port_of(2));
                    // The test is about what gets in; limit the load on the machine.
                    thread::sleep(Duration::from_micros(50));
                }
            });
        }
        let [from, to] = [0, 1].map(|pod: usize| &overlay.pods[pod].namespace);
        let streamed = transfer(from, to, address("10.5.2.2"), 16 << 20);
        stop.store(true, Ordering::Relaxed);
        streamed.unwrap();
    });
    let is_flood =
        |packet: &flannel_testing::Captured| packet.bytes.windows(4).any(|bytes| bytes == [10, 5, 2, 77]);
    assert!(!capture.stop().unwrap().iter().any(is_flood));
    let station = &mut overlay.stations[1];
    station.sync_only(&Dirty::NONE);
    let counts = station.counts();
    assert!(counts.kernel_drops > 100, "the socket filter drops the flood: {counts:?}");
    assert_eq!(counts.drops, [].into());
}

#[test]
fn peers_join_and_leave_under_traffic() {
    let mut overlay = Overlay::new(3);
    let third = overlay.stations[2].own.clone();
    let [from, to, late] = [0, 1, 2].map(|pod: usize| overlay.pods[pod].namespace.clone());
    let is_reached = || {
        let quick = PingOptions { timeout: Duration::from_millis(200), ..PingOptions::default() };
        match ping(&from, address("10.5.3.2"), &quick) {
            Ok(_) => true,
            Err(PingError::Timeout { .. } | PingError::Unreachable { .. }) => false,
            Err(other) => panic!("{other}"),
        }
    };
    thread::scope(|scope| {
        let load =
            scope.spawn(|| throughput(&from, &to, address("10.5.2.2"), Duration::from_secs(3), 2).unwrap());
        let started = Instant::now();
        let mut turns = 0;
        while started.elapsed() < Duration::from_secs(2) {
            overlay.stations[0].remove(&third);
            overlay.stations[0].sync_only(&Dirty::Some([third.subnet].into()));
            assert!(!is_reached(), "turn {turns}: dropped with the next burst");
            overlay.stations[0].learn([third.clone()]);
            overlay.stations[0].sync_only(&Dirty::Some([third.subnet].into()));
            eventually(DEADLINE, &is_reached).unwrap();
            turns += 1;
        }
        assert!(turns > 0 && load.join().unwrap().bytes > 0);
    });
    drop(late);
}

#[test]
fn an_unreachable_peer_does_not_delay_others() {
    let mut overlay = Overlay::new(2);
    // An on-link address that no host answers for.
    overlay.stations[0].learn([peer(77), peer(78), peer(79)]);
    overlay.stations[0].sync();
    let stop = AtomicBool::new(false);
    let sender = socket(&overlay.pods[0].namespace);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u8;
            while !stop.load(Ordering::Relaxed) {
                n = n.wrapping_add(1);
                let _ = sender.send_to(&[7; 1400], (address(&format!("10.5.{}.2", 77 + n % 3)), 9));
                thread::sleep(Duration::from_micros(100));
            }
        });
        let [from, to] = [0, 1].map(|pod: usize| &overlay.pods[pod].namespace);
        let slow = (0..30).filter(|_| {
            let patient = PingOptions { timeout: Duration::from_millis(900), ..PingOptions::default() };
            thread::sleep(Duration::from_millis(20));
            ping(from, address("10.5.2.2"), &patient).is_err()
        });
        let slow = slow.count();
        let streamed = transfer(from, to, address("10.5.2.2"), 8 << 20);
        stop.store(true, Ordering::Relaxed);
        streamed.unwrap();
        assert_eq!(slow, 0, "pings were lost");
    });
}

#[test]
fn no_peer_is_dropped_before_the_list_is_complete() {
    let lab = lab(1);
    let mut station = TestHost::start(&lab.hosts[0].namespace, 1, Setup::default());
    let put = flannel_core::LeaseChange::Put(std::sync::Arc::new(peer(2)));
    station.peers.apply(put);
    assert_eq!(station.sync().written, 1);
    station.remove(&peer(2));
    assert_eq!(station.sync().removed, 0);
    station.peers.complete();
    assert_eq!(station.sync().removed, 1);
}
