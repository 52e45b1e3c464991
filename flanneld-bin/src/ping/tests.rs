//! What people and programs see of a cluster in which everything is found.

use std::net::IpAddr;

use flannel_core::{ProbeMeans, ProbeSide, ProbedPath, PublicAddrs};
use flannel_node::probe::{ProbeContext, ProbedPeer, judge};

use super::show::{map, table};
use super::*;
use crate::show::format::Paint;

fn peer(n: u8, inside: Option<bool>, outside: bool, change: impl Fn(&mut Vec<ProbedPath>)) -> ProbedPeer {
    let public = PublicAddrs { v4: format!("192.168.0.{n}").parse().ok(), v6: None };
    let way = |side, address: [u8; 4], answers: bool| {
        let by = if side == ProbeSide::Inside { ProbeMeans::Udp } else { ProbeMeans::Icmp };
        let mut way = ProbedPath::new(side, IpAddr::from(address), by);
        let mtu = if side == ProbeSide::Inside { 1450 } else { 1500 };
        (way.answers, way.sent, way.lost) = (answers, 5, if answers { 0 } else { 5 });
        way.round_trip_microseconds = answers.then_some(400 + u64::from(n));
        (way.path_mtu, way.device_mtu) = (answers.then_some(mtu), Some(mtu));
        way
    };
    let inside = inside.map(|answers| way(ProbeSide::Inside, [10, 5, n, 0], answers));
    let mut paths: Vec<_> = inside.into_iter().collect();
    paths.push(way(ProbeSide::Outside, [192, 168, 0, n], outside));
    change(&mut paths);
    let context = ProbeContext {
        port: Some(8472),
        interface: "eth0".to_owned(),
        own: vec![IpAddr::from([192, 168, 0, 1])],
        no_inside: "its backend is another one, so that only the underlay was asked".to_owned(),
    };
    let mut probe = flannel_core::PeerProbe::default();
    (probe.verdict, probe.detail) = judge(&paths, &context);
    probe.paths = paths;
    ProbedPeer { subnet: format!("10.5.{n}.0-24").parse().expect("a key"), public, probe }
}

fn pinged() -> Pinged {
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
    Pinged { source: Source::Daemon, peers }
}

#[test]
fn the_table_has_a_line_for_each_peer_that_says_what_is_wrong() {
    let text = table(&pinged(), Paint(false));
    assert_eq!(text, include_str!("table.txt"), "now it is:\n{text}");
    let nobody = Pinged { source: Source::Cache, peers: Vec::new() };
    assert_eq!(
        table(&nobody, Paint(false)),
        "no flanneld runs here; these are the peers that this host remembers\nno other host is known\n"
    );
}

#[test]
fn the_map_has_a_sign_for_each_peer_and_says_what_they_mean() {
    let text = map(&pinged(), Paint(false));
    assert_eq!(text, include_str!("map.txt"), "now it is:\n{text}");
    let many = Pinged {
        source: Source::Daemon,
        peers: (0..=120).map(|n| peer(n, Some(false), true, |_| {})).collect(),
    };
    let text = map(&many, Paint(false));
    assert!(
        text.contains("10.5.100.0/24  TTTTTTTTTTTTTTTTTTTTT\n") && text.ends_with("and 101 more\n"),
        "{text}"
    );
}

/// The lines that change here break other programs.
#[test]
fn the_json_of_a_ping_is_what_other_programs_rely_on_and_is_documented() {
    let two = Pinged { peers: pinged().peers.drain(..2).collect(), ..pinged() };
    let text = crate::show::json(&two, false);
    assert_eq!(text, include_str!("ping.json"), "now it is:\n{text}");
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
fn nothing_from_elsewhere_reaches_the_terminal_as_a_command_and_colours_change_nothing_else() {
    let mut evil = pinged();
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
        assert_eq!(strip(&show(&pinged(), Paint(true))), show(&pinged(), Paint(false)));
    }
}

#[test]
fn a_peer_is_named_by_its_subnet_its_address_or_one_of_its_pods() {
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
        chosen(peers.clone(), &names)
            .map(|found| found.iter().map(|peer| peer.subnet.to_string()).collect::<Vec<_>>())
    };
    assert_eq!(pick(&[]).expect("all").len(), 3);
    for name in ["10.5.3.0/24", "10.5.3.1/24", "10.5.3.0", "10.5.3.77", "192.168.0.3"] {
        assert_eq!(pick(&[name]), Ok(vec!["10.5.3.0-24".to_owned()]), "{name}");
    }
    assert_eq!(pick(&["10.5.4.1", "192.168.0.2", "10.5.2.9"]).expect("two").len(), 2);
    assert_eq!(pick(&["10.6.0.1"]), Err("no peer is 10.6.0.1; flanneld peers shows all".to_owned()));
    assert_eq!(pick(&["x"]), Err("\"x\" is no address and no subnet of a peer".to_owned()));
}
