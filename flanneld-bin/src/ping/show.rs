//! The output of `flanneld ping`: a table, a map, or JSON.

use std::collections::BTreeMap;

use flannel_core::{PeerProbe, ProbeSide, ProbeVerdict, ProbedPath};
use flannel_node::probe::{ProbedPeer, weight};
use serde::Serialize;

use crate::format::{Cell, Paint, TextTable, list, plain};

/// The probed peers.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PingReport {
    pub(super) source: PeerSource,
    pub(super) peers: Vec<ProbedPeer>,
}

/// Where the list of peers comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PeerSource {
    /// The daemon on this host.
    Daemon,
    /// The cache of the daemon, which does not run.
    Cache,
    /// The registry: no daemon runs, and there is no cache.
    Registry,
}

/// Formats a line for each address family of each peer.
pub(super) fn table(report: &PingReport, paint: Paint) -> String {
    let mut text = source_notice(report);
    if report.peers.is_empty() {
        return text + "no peers\n";
    }
    let mut table = TextTable::default();
    let names = ["SUBNET", "ADDRESS", "INSIDE", "OUTSIDE", "LOST", "MTU", "VERDICT"];
    table.row(names.map(|name| Cell::painted(name, |name| paint.faint(name))));
    for peer in &report.peers {
        let families: Vec<_> = peer.subnet.nets().collect();
        for (at, net) in families.iter().enumerate() {
            let path = |side| {
                let is_wanted =
                    |path: &&ProbedPath| path.side == side && path.address.is_ipv4() == net.addr().is_ipv4();
                peer.probe.paths.iter().find(is_wanted)
            };
            let paths = [path(ProbeSide::Inside), path(ProbeSide::Outside)];
            let verdict = if at == 0 { line(&peer.probe) } else { String::new() };
            table.row([
                Cell::new(net.to_string()),
                Cell::new(paths[1].map_or_else(|| "-".to_owned(), |path| path.address.to_string())),
                Cell::new(time(paths[0])),
                Cell::new(time(paths[1])),
                Cell::new(paths.map(lost).join("/")),
                Cell::new(paths.map(mtu).join("/")),
                Cell::painted(verdict, |text| paint.verdict(peer.probe.verdict, text)),
            ]);
        }
    }
    text.push_str(&table.write());
    text
}

/// The number of peers in a row of the map.
const ROW: usize = 50;

/// The number of faults listed below the map.
const LINES: usize = 20;

/// The signs of the map and their meanings, the best first.
const SIGNS: &[(char, &str)] = &[
    ('.', "below 1 ms"),
    (':', "below 10 ms"),
    ('+', "below 100 ms"),
    ('*', "100 ms or more"),
    ('u', "underlay only"),
    ('m', "MTU too small"),
    ('%', "lossy"),
    ('T', "tunnel blocked"),
    ('X', "silent"),
    ('?', "not probed"),
];

/// Formats a sign for each peer, in the order of their subnets.
pub(super) fn map(report: &PingReport, paint: Paint) -> String {
    let mut text = source_notice(report);
    let mut table = TextTable::default();
    for row in report.peers.chunks(ROW) {
        let first = row.first().map(|peer| list(peer.subnet.nets().take(1))).unwrap_or_default();
        let signs: String = row.iter().map(|peer| sign(&peer.probe)).collect();
        let coloured =
            row.iter().map(|peer| paint.verdict(peer.probe.verdict, &sign(&peer.probe).to_string()));
        let coloured: String = coloured.collect();
        table.row([Cell::painted(first, |first| paint.faint(first)), Cell::painted(signs, |_| coloured)]);
    }
    text.push_str(&table.write());
    let mut counts = BTreeMap::new();
    for peer in &report.peers {
        *counts.entry(sign(&peer.probe)).or_insert(0) += 1;
    }
    text.push('\n');
    let used =
        SIGNS.iter().filter_map(|(sign, meaning)| Some(format!("{sign}  {} {meaning}\n", counts.get(sign)?)));
    text.extend(used);
    let mut faults: Vec<_> = report.peers.iter().filter(|peer| peer.probe.verdict.is_fault()).collect();
    faults.sort_by_key(|peer| std::cmp::Reverse(weight(peer.probe.verdict)));
    for peer in faults.iter().take(LINES) {
        text.push_str(&format!("\n{}  {}", list(peer.subnet.nets()), line(&peer.probe)));
    }
    match faults.len() {
        0 => {}
        some if some > LINES => text.push_str(&format!("\nand {} more\n", some - LINES)),
        _ => text.push('\n'),
    }
    text
}

/// Names the source of the peers unless it is the daemon.
fn source_notice(report: &PingReport) -> String {
    match report.source {
        PeerSource::Daemon => "",
        PeerSource::Cache => "flanneld does not run here; probing the peers in its cache\n",
        PeerSource::Registry => "flanneld does not run here and has no cache; probing the peers in etcd\n",
    }
    .to_owned()
}

fn line(probe: &PeerProbe) -> String {
    match probe.detail.as_str() {
        "" => probe.verdict.to_string(),
        detail => format!("{}: {}", probe.verdict, plain(detail)),
    }
}

fn time(path: Option<&ProbedPath>) -> String {
    match path {
        None => "-".to_owned(),
        Some(path) => match path.round_trip_microseconds {
            Some(micros) => format!("{}.{:02}ms", micros / 1000, micros % 1000 / 10),
            None => "silent".to_owned(),
        },
    }
}

fn lost(path: Option<&ProbedPath>) -> String {
    match path.filter(|path| path.sent > 0) {
        Some(path) => format!("{}%", u64::from(path.lost) * 100 / u64::from(path.sent)),
        None => "-".to_owned(),
    }
}

fn mtu(path: Option<&ProbedPath>) -> String {
    path.and_then(|path| path.path_mtu).map_or_else(|| "-".to_owned(), |mtu| mtu.to_string())
}

fn sign(probe: &PeerProbe) -> char {
    match probe.verdict {
        ProbeVerdict::Reachable | ProbeVerdict::UnderlaySilent => {
            let inside = probe.paths.iter().filter(|path| path.side == ProbeSide::Inside);
            match inside.filter_map(|path| path.round_trip_microseconds).max().unwrap_or_default() {
                0..1_000 => '.',
                1_000..10_000 => ':',
                10_000..100_000 => '+',
                _ => '*',
            }
        }
        ProbeVerdict::UnderlayOnly => 'u',
        ProbeVerdict::MtuSmall => 'm',
        ProbeVerdict::Lossy => '%',
        ProbeVerdict::TunnelBlocked => 'T',
        ProbeVerdict::Silent => 'X',
        ProbeVerdict::Unknown => '?',
        // A verdict that a later version adds.
        _ => '?',
    }
}
