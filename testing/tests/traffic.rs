//! Traffic over real links, and what the reports say about links that drop, delay or change packets.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed expectation is how a test fails")]

use flannel_netlink::{LinkChange, Netlink};
use flannel_testing::{
    Lab, LabOptions, PingError, PingOptions, RunningPing, TransferError, datagrams, datagrams_in_flight,
    ping, throughput, transfer,
};
use std::net::IpAddr;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(5);

#[test]
fn a_ping_without_an_answer_times_out() {
    let lab = Lab::new(&LabOptions::default()).unwrap();
    lab.hosts[1].unplug().unwrap();
    let timeout = Duration::from_millis(50);
    let options = PingOptions { timeout, ..PingOptions::default() };
    for to in addresses(&lab) {
        let outcome = ping(&lab.hosts[0].namespace, to, &options);
        assert!(matches!(outcome, Err(PingError::Timeout { .. })), "{outcome:?}");
    }
}

#[test]
fn a_ping_uses_the_given_source_address() {
    let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap();
    let host = &lab.hosts[0];
    let pod = host.add_pod(&["10.5.3.0/24".parse().unwrap()], 1450).unwrap();
    let from = |from| PingOptions { from: Some(from), ..PingOptions::default() };
    let gateway = IpAddr::from([10, 5, 3, 1]);
    ping(&host.namespace, pod.addresses[0], &from(gateway)).unwrap();
    // An address that the host lacks cannot be the source.
    assert!(matches!(
        ping(&host.namespace, pod.addresses[0], &from([10, 5, 3, 9].into())),
        Err(PingError::Socket(_))
    ));
}

#[test]
fn a_running_ping_over_a_healthy_link_loses_nothing() {
    let lab = Lab::new(&LabOptions::default()).unwrap();
    for to in addresses(&lab) {
        let options = PingOptions { payload: 1000, ..PingOptions::default() };
        let running = RunningPing::start(&lab.hosts[0].namespace, to, INTERVAL, &options).unwrap();
        running.wait_for_replies(60, LIMIT).unwrap();
        let report = running.stop();
        assert_eq!(report.lost_count(), 0, "{report}");
        assert_eq!((report.altered, report.duplicates), (0, 0), "{report}");
        assert!(report.sent >= 60, "{report}");
        assert!(report.longest_gap >= INTERVAL / 2, "{report}");
        assert!(
            report.round_trip.is_some_and(|times| times.min <= times.average && times.average <= times.max)
        );
    }
}

#[test]
fn a_running_ping_lists_the_packets_lost_during_an_outage() {
    let lab = Lab::new(&LabOptions::default()).unwrap();
    let running =
        RunningPing::start(&lab.hosts[0].namespace, addresses(&lab)[0], INTERVAL, &quick()).unwrap();
    running.wait_for_replies(10, LIMIT).unwrap();
    lab.hosts[1].unplug().unwrap();
    let outage = std::time::Instant::now();
    let before = running.report().sent;
    // The outage itself is measured, so it has to last.
    while outage.elapsed() < Duration::from_millis(200) || running.report().sent < before + 25 {
        std::thread::sleep(INTERVAL);
    }
    let outage = outage.elapsed();
    lab.hosts[1].plug().unwrap();
    running.wait_for_replies(10, LIMIT).unwrap();
    let report = running.stop();
    let silence = report.lost.iter().map(|range| range.end() - range.start() + 1).max();
    assert!(silence >= Some(20), "{report}");
    assert_eq!(
        report.lost.iter().map(|range| range.end() - range.start() + 1).sum::<u64>(),
        report.lost_count()
    );
    assert!(*report.lost[0].start() >= 10, "{report}");
    // Packets that arrived just before are read a moment later.
    assert!(report.longest_gap >= outage / 2, "{report} of {outage:?}");
}

#[test]
fn a_missing_route_shows_as_loss_with_its_reason() {
    let lab = Lab::new(&LabOptions::default()).unwrap();
    let host = &lab.hosts[0].namespace;
    let running = RunningPing::start(host, addresses(&lab)[0], INTERVAL, &quick()).unwrap();
    running.wait_for_replies(10, LIMIT).unwrap();
    let mut netlink = Netlink::open_in(host).unwrap();
    let eth0 = netlink.link("eth0").unwrap().unwrap().index;
    netlink.change_link(eth0, &LinkChange { up: Some(false), ..LinkChange::default() }).unwrap();
    flannel_testing::eventually(LIMIT, || {
        let report = running.report();
        report.last_refusal.filter(|_| report.sent - report.received > 5)
    })
    .unwrap();
    netlink.change_link(eth0, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
    running.wait_for_replies(10, LIMIT).unwrap();
    let report = running.stop();
    assert!(report.lost_count() > 5, "{report}");
    assert!(report.last_refusal.as_ref().is_some_and(|text| text.contains("unreachable")), "{report}");
}

#[test]
fn a_stream_arrives_complete_over_both_families() {
    let lab = Lab::new(&LabOptions::default()).unwrap();
    let [one, two] = &lab.hosts[..] else { panic!("the lab must have two hosts") };
    let mut checksums = Vec::new();
    for to in addresses(&lab) {
        let result = transfer(&one.namespace, &two.namespace, to, 10_000_003).unwrap();
        assert_eq!(result.bytes, 10_000_003);
        checksums.push(result.checksum);
    }
    assert_eq!(checksums[0], checksums[1]);
    let empty = transfer(&one.namespace, &two.namespace, addresses(&lab)[0], 0).unwrap();
    assert_ne!(empty.checksum, checksums[0]);
}

#[test]
fn a_stream_to_an_unused_address_does_not_connect() {
    let lab = Lab::new(&LabOptions::default()).unwrap();
    let [one, two] = &lab.hosts[..] else { panic!("the lab must have two hosts") };
    let refused = transfer(&one.namespace, &two.namespace, [10, 9, 9, 9].into(), 1);
    assert!(matches!(refused, Err(TransferError::NotConnected { .. })), "{refused:?}");
}

#[test]
fn datagrams_of_every_size_arrive_unchanged() {
    let lab = Lab::new(&LabOptions::default()).unwrap();
    let [one, two] = &lab.hosts[..] else { panic!("the lab must have two hosts") };
    // Around the MTU, where fragmentation begins, and up to the largest size.
    let sizes = [1, 2, 3, 4, 5, 100, 1451, 1452, 1453, 1471, 1472, 1473, 3000, 65_507];
    for to in addresses(&lab) {
        let report = datagrams(&one.namespace, &two.namespace, to, &sizes, LIMIT).unwrap();
        assert!(report.is_perfect() && report.sent == sizes.len(), "{report:?}");
        let report = datagrams_in_flight(&one.namespace, &two.namespace, to, &sizes, LIMIT, 4).unwrap();
        assert!(report.is_perfect() && report.sent == sizes.len(), "{report:?}");
    }
    let refused = datagrams(&one.namespace, &two.namespace, addresses(&lab)[0], &[0], LIMIT);
    assert!(matches!(refused, Err(TransferError::Broken(_))));
}

#[test]
fn datagrams_over_a_disconnected_link_are_reported_as_lost() {
    let lab = Lab::new(&LabOptions::default()).unwrap();
    let [one, two] = &lab.hosts[..] else { panic!("the lab must have two hosts") };
    two.unplug().unwrap();
    let limit = Duration::from_millis(20);
    let report = datagrams(&one.namespace, &two.namespace, addresses(&lab)[0], &[10, 20], limit).unwrap();
    assert_eq!((report.sent, report.lost), (2, vec![0, 1]));
}

#[test]
fn throughput_counts_received_bytes() {
    let lab = Lab::new(&LabOptions::default()).unwrap();
    let [one, two] = &lab.hosts[..] else { panic!("the lab must have two hosts") };
    let duration = Duration::from_millis(200);
    let result = throughput(&one.namespace, &two.namespace, addresses(&lab)[0], duration, 2).unwrap();
    assert!(result.elapsed >= duration);
    // Even slow machines move more than a megabit per second between two namespaces.
    assert!(result.bits_per_second() > 1e6, "{result}");
    assert!(result.to_string().ends_with("bit/s"));
}

/// Returns the addresses of the second host, IPv4 first.
fn addresses(lab: &Lab) -> Vec<IpAddr> {
    lab.hosts[1].addresses.iter().map(ipnet::IpNet::addr).collect()
}

/// Limits the wait for answers that will not come.
fn quick() -> PingOptions {
    PingOptions { timeout: Duration::from_millis(100), ..PingOptions::default() }
}
