//! Packets between pods on different hosts.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use std::time::Duration;

use common::{DEADLINE, Station, StationExt, assert_idle, config, lab, net};
use flannel_core::NetworkConfig;
use flannel_testing::{
    Capture, Captured, Lab, PingError, PingOptions, PingReport, Pod, RunningPing, Transport, eventually,
    ping, transfer,
};

/// Hosts that are peers, with a pod on each.
struct Overlay {
    stations: Vec<Station>,
    pods: Vec<Pod>,
    lab: Lab,
}

impl Overlay {
    fn new(hosts: usize, config: &NetworkConfig) -> Self {
        let lab = lab(hosts);
        let subnet = |host: usize| format!("10.5.{}", host + 1);
        let start = |host: usize| {
            Station::start_with(&lab.hosts[host].namespace, &format!("{}.0-24", subnet(host)), config)
        };
        let mut stations: Vec<_> = (0..hosts).map(start).collect();
        let leases: Vec<_> = stations.iter().map(|station| station.own.clone()).collect();
        for (host, station) in stations.iter_mut().enumerate() {
            let others = leases.iter().enumerate().filter(|(other, _)| *other != host);
            station.complete(others.map(|(_, lease)| lease.clone()));
        }
        let mtu = stations[0].backend.mtu();
        let pods = (0..hosts)
            .map(|host| {
                let subnet = net(&format!("{}.0/24", subnet(host)));
                lab.hosts[host].add_pod(&[subnet], mtu).unwrap()
            })
            .collect();
        Self { stations, pods, lab }
    }

    fn ping(&self, from: usize, to: usize, options: &PingOptions) -> Result<Duration, PingError> {
        let (from, to) = (&self.pods[from], &self.pods[to]);
        ping(&from.namespace, to.addresses[0], options)
    }
}

/// A ping with a packet of this size that must not be fragmented.
fn whole(packet: usize) -> PingOptions {
    PingOptions { payload: packet - 28, dont_fragment: true, ..PingOptions::default() }
}

#[test]
fn pods_of_three_hosts_reach_each_other_and_the_hosts() {
    let overlay = Overlay::new(3, &config(""));
    for from in 0..3 {
        for to in 0..3 {
            overlay.ping(from, to, &PingOptions::default()).unwrap();
            let device = common::address(&format!("10.5.{}.0", to + 1));
            if from != to {
                ping(&overlay.lab.hosts[from].namespace, device, &PingOptions::default()).unwrap();
                ping(&overlay.pods[from].namespace, device, &PingOptions::default()).unwrap();
            }
        }
    }
}

#[test]
fn the_largest_unfragmented_packet_has_the_mtu() {
    let overlay = Overlay::new(2, &config(""));
    overlay.ping(0, 1, &whole(1450)).unwrap();
    let outcome = overlay.ping(0, 1, &whole(1451));
    assert!(matches!(outcome, Err(PingError::TooLarge { .. })), "{outcome:?}");
    // A larger packet arrives in fragments.
    let large = PingOptions { payload: 5000, ..PingOptions::default() };
    overlay.ping(0, 1, &large).unwrap();
}

#[test]
fn a_stream_arrives_unchanged() {
    let overlay = Overlay::new(2, &config(""));
    let (from, to) = (&overlay.pods[0], &overlay.pods[1]);
    let bytes = 16 * 1024 * 1024;
    let sent = transfer(&from.namespace, &to.namespace, to.addresses[0], bytes).unwrap();
    assert_eq!(sent.bytes, bytes);
}

/// Returns the first VXLAN packet of a ping from the first host's device to the second's.
fn captured(overlay: &Overlay) -> Captured {
    let capture = Capture::start(&overlay.lab.hosts[0].namespace, "eth0").unwrap();
    ping(&overlay.lab.hosts[0].namespace, common::address("10.5.2.0"), &PingOptions::default()).unwrap();
    let is_sent = |packet: &Captured| packet.outgoing && packet.frame.vxlan().is_some();
    capture.wait_for(DEADLINE, is_sent).unwrap()
}

#[test]
fn packets_on_the_wire_equal_upstreams() {
    let mut overlay = Overlay::new(2, &config(""));
    let packet = captured(&overlay);
    let outer = packet.frame.ipv4().unwrap();
    let hosts = (overlay.lab.hosts[0].ipv4().unwrap(), overlay.lab.hosts[1].ipv4().unwrap());
    assert_eq!((outer.source, outer.destination), hosts);
    assert_eq!((outer.ttl, outer.tos, outer.dont_fragment), (64, 0, false));
    let udp = packet.frame.udp().unwrap();
    assert_eq!(udp.destination_port, 8472);
    assert!(udp.source_port >= 32_768, "{}", udp.source_port);
    assert_ne!(udp.checksum, 0);
    let vxlan = packet.frame.vxlan().unwrap();
    assert_eq!((vxlan.flags, vxlan.group, vxlan.vni), (0x08, 0, 1));
    let macs = (overlay.stations[0].device().mac.unwrap(), overlay.stations[1].device().mac.unwrap());
    assert_eq!((vxlan.inner.source, vxlan.inner.destination), macs);
    assert_eq!(vxlan.inner.ether_type, 0x0800);
    let inner = vxlan.inner.ipv4().unwrap();
    assert_eq!(
        (inner.source.to_string(), inner.destination.to_string()),
        ("10.5.1.0".to_owned(), "10.5.2.0".to_owned())
    );
    assert!(matches!(&inner.transport, Transport::Icmp(message) if message.is_echo_request()));
}

#[test]
fn a_tunnel_with_gbp_on_another_port_sets_header_and_port() {
    let overlay = Overlay::new(2, &config(r#","VNI":1,"Port":4789,"GBP":true"#));
    let packet = captured(&overlay);
    assert_eq!(packet.frame.udp().unwrap().destination_port, 4789);
    // The kernel sets the GBP bit only for packets with a policy.
    assert_eq!(packet.frame.vxlan().unwrap().flags & 0x08, 0x08);
}

/// There is no ARP on the overlay: all neighbours are permanent.
#[test]
fn there_are_no_arp_requests_and_no_flooding() {
    let overlay = Overlay::new(2, &config(""));
    let capture = Capture::start(&overlay.lab.hosts[0].namespace, "flannel.1").unwrap();
    overlay.ping(0, 1, &PingOptions::default()).unwrap();
    overlay.ping(1, 0, &PingOptions::default()).unwrap();
    let packets = capture.stop().unwrap();
    assert!(packets.len() >= 4);
    assert!(packets.iter().all(|packet| packet.frame.ether_type != 0x0806), "{packets:?}");
}

#[test]
fn a_restart_loses_no_packet() {
    let mut overlay = Overlay::new(2, &config(""));
    let running = RunningPing::start(
        &overlay.pods[0].namespace,
        overlay.pods[1].addresses[0],
        Duration::from_millis(2),
        &PingOptions::default(),
    )
    .unwrap();
    for _ in 0..5 {
        running.wait_for_replies(10, DEADLINE).unwrap();
        let station = overlay.stations.remove(0);
        let mut station = station.restart();
        assert_idle(&station.sync());
        overlay.stations.insert(0, station);
    }
    running.wait_for_replies(10, DEADLINE).unwrap();
    let report = running.stop();
    assert_eq!(report.lost_count(), 0, "{report}");
}

#[test]
fn a_deleted_device_is_restored_within_a_second() {
    let mut overlay = Overlay::new(2, &config(""));
    // A loaded machine may take longer once.
    eventually(DEADLINE, || {
        let report = delete_device(&mut overlay);
        if report.longest_gap < Duration::from_secs(1) { Ok(()) } else { Err(report.to_string()) }
    })
    .unwrap();
}

/// Deletes the device of the first host while it passes a packet every 2 ms.
fn delete_device(overlay: &mut Overlay) -> PingReport {
    overlay.stations[0].settle();
    let running = RunningPing::start(
        &overlay.pods[0].namespace,
        overlay.pods[1].addresses[0],
        Duration::from_millis(2),
        &PingOptions { timeout: Duration::from_millis(500), ..PingOptions::default() },
    )
    .unwrap();
    running.wait_for_replies(10, DEADLINE).unwrap();
    let index = overlay.stations[0].device().index;
    overlay.stations[0].netlink.delete_link(index).unwrap();
    assert!(overlay.stations[0].noticed(DEADLINE).is_some());
    overlay.stations[0].sync_only(&flannel_core::Dirty::NONE);
    running.wait_for_replies(10, DEADLINE).unwrap();
    running.stop()
}

/// The peer is reinstalled with a new device; its packets arrive as soon as its lease does.
#[test]
fn a_peer_with_a_new_device_is_reachable_again() {
    let mut overlay = Overlay::new(2, &config(""));
    overlay.ping(0, 1, &PingOptions::default()).unwrap();
    let mut station = overlay.stations.remove(1);
    let (own, namespace) = (station.own.clone(), station.namespace.clone());
    station.backend.remove().unwrap();
    let before = station.own.attrs.clone();
    let mut station = Station::start(&namespace, &own.subnet.to_string());
    assert_ne!(station.own.attrs, before);
    station.complete([overlay.stations[0].own.clone()]);
    let timeout = Duration::from_millis(50);
    let lost = overlay.ping(0, 1, &PingOptions { timeout, ..PingOptions::default() });
    assert!(lost.is_err(), "the old address cannot be right");
    overlay.stations[0].complete([station.own.clone()]);
    eventually(DEADLINE, || overlay.ping(0, 1, &PingOptions::default())).unwrap();
    let fdb = common::bridge(&overlay.stations[0].namespace, "fdb show dev flannel.1");
    assert_eq!(fdb.len(), 1, "{fdb:?}");
}
