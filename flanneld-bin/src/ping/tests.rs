//! The output for a cluster with every verdict.

use std::net::IpAddr;

use flannel_core::{ProbeMeans, ProbeSide, ProbedPath, PublicAddrs};
use flannel_node::probe::{ProbeContext, ProbedPeer, judge};

use super::show::{map, table};
use super::*;
use crate::format::Paint;

fn peer(n: u8, inside: Option<bool>, outside: bool, change: impl Fn(&mut Vec<ProbedPath>)) -> ProbedPeer {
    let public = PublicAddrs { v4: format!("192.168.0.{n}").parse().ok(), v6: None };
    let path = |side, address: [u8; 4], answers: bool| {
        let by = if side == ProbeSide::Inside { ProbeMeans::Udp } else { ProbeMeans::Icmp };
        let mut path = ProbedPath::new(side, IpAddr::from(address), by);
        let mtu = if side == ProbeSide::Inside { 1450 } else { 1500 };
        (path.answers, path.sent, path.lost) = (answers, 5, if answers { 0 } else { 5 });
        path.round_trip_microseconds = answers.then_some(400 + u64::from(n));
        (path.path_mtu, path.device_mtu) = (answers.then_some(mtu), Some(mtu));
        path
    };
    let inside = inside.map(|answers| path(ProbeSide::Inside, [10, 5, n, 0], answers));
    let mut paths: Vec<_> = inside.into_iter().collect();
    paths.push(path(ProbeSide::Outside, [192, 168, 0, n], outside));
    change(&mut paths);
    let context = ProbeContext {
        port: Some(8472),
        interface: "eth0".to_owned(),
        own: vec![IpAddr::from([192, 168, 0, 1])],
        no_inside: "the peer uses a different backend, so only the underlay was probed".to_owned(),
    };
    let mut probe = flannel_core::PeerProbe::default();
    (probe.verdict, probe.detail) = judge(&paths, &context);
    probe.paths = paths;
    ProbedPeer { subnet: format!("10.5.{n}.0-24").parse().expect("a key"), public, probe }
}

fn report() -> PingReport {
    let peers = vec![
        peer(2, Some(true), true, |_| {}),
        peer(3, Some(false), true, |_| {}),
        peer(4, Some(false), false, |_| {}),
        peer(5, Some(true), true, |paths| (paths[0].path_mtu, paths[1].path_mtu) = (Some(1350), Some(1400))),
        peer(6, Some(true), true, |paths| paths[0].lost = 2),
        peer(7, Some(true), false, |_| {}),
        peer(8, None, true, |_| {}),
        peer(9, Some(true), true, |paths| paths[0].round_trip_microseconds = Some(23_450)),
    ];
    PingReport { source: PeerSource::Daemon, peers }
}

#[test]
fn the_table_has_a_line_for_each_peer_with_its_verdict() {
    let text = table(&report(), Paint(false));
    assert_eq!(text, include_str!("table.txt"), "actual:\n{text}");
    let nobody = PingReport { source: PeerSource::Cache, peers: Vec::new() };
    assert_eq!(
        table(&nobody, Paint(false)),
        "flanneld does not run here; probing the peers in its cache\nno peers\n"
    );
}

#[test]
fn the_map_has_a_sign_for_each_peer_and_a_legend() {
    let text = map(&report(), Paint(false));
    assert_eq!(text, include_str!("map.txt"), "actual:\n{text}");
    let many = PingReport {
        source: PeerSource::Daemon,
        peers: (0..=120).map(|n| peer(n, Some(false), true, |_| {})).collect(),
    };
    let text = map(&many, Paint(false));
    assert!(
        text.contains("10.5.100.0/24  TTTTTTTTTTTTTTTTTTTTT\n") && text.ends_with("and 101 more\n"),
        "{text}"
    );
}

/// Other programs rely on these members.
#[test]
fn the_json_is_stable_and_documented() {
    let two = PingReport { peers: report().peers.drain(..2).collect(), ..report() };
    let text = crate::show::json(&two, false);
    assert_eq!(text, include_str!("ping.json"), "actual:\n{text}");
    let docs = include_str!("../../../docs/ping.md");
    for line in text.lines().filter_map(|line| line.trim().strip_prefix('"')) {
        let Some((member, _)) = line.split_once("\": ") else { continue };
        let named = [format!("`{member}`"), format!(".{member}`")];
        assert!(named.iter().any(|name| docs.contains(name)), "{member} is not documented");
    }
    for verdict in ProbeVerdict::ALL {
        assert!(docs.contains(&format!("| `{verdict}` |")), "{verdict} is not documented");
    }
}

#[test]
fn control_characters_do_not_reach_the_terminal_and_colours_do_not_change_the_text() {
    let mut evil = report();
    evil.peers[1].probe.detail = "\u{1b}]0;evil\u{7}\r\n".to_owned();
    for text in [table(&evil, Paint(false)), map(&evil, Paint(false))] {
        assert!(!text.contains(['\u{1b}', '\u{7}', '\r']), "{text:?}");
    }
    let strip = |text: &str| {
        let mut parts = text.split('\u{1b}');
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
    };
    for show in [table, map] {
        assert_eq!(strip(&show(&report(), Paint(true))), show(&report(), Paint(false)));
    }
}

#[test]
fn a_peer_is_selected_by_its_subnet_its_address_or_that_of_a_container() {
    let peers: Vec<ProbeTarget> = (2..5)
        .map(|n| ProbeTarget {
            subnet: format!("10.5.{n}.0-24").parse().expect("a key"),
            public: PublicAddrs { v4: format!("192.168.0.{n}").parse().ok(), v6: None },
            inside: Vec::new(),
            outside: Vec::new(),
            is_ours: false,
        })
        .collect();
    let pick = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        select(peers.clone(), &names)
            .map(|selected| selected.iter().map(|peer| peer.subnet.to_string()).collect::<Vec<_>>())
    };
    assert_eq!(pick(&[]).expect("all").len(), 3);
    for name in ["10.5.3.0/24", "10.5.3.1/24", "10.5.3.0", "10.5.3.77", "192.168.0.3"] {
        assert_eq!(pick(&[name]), Ok(vec!["10.5.3.0-24".to_owned()]), "{name}");
    }
    assert_eq!(pick(&["10.5.4.1", "192.168.0.2", "10.5.2.9"]).expect("two").len(), 2);
    assert_eq!(pick(&["10.6.0.1"]), Err("no peer matches 10.6.0.1; flanneld peers lists all".to_owned()));
    assert_eq!(pick(&["x"]), Err("\"x\" is neither an address nor a subnet".to_owned()));
}
