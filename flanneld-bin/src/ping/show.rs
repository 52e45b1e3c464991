//! What `flanneld ping` shows: a table, a map, JSON. Pure.

use std::collections::BTreeMap;

use flannel_core::{PeerProbe, ProbeSide, ProbeVerdict, ProbedPath};
use flannel_node::probe::{ProbedPeer, weight};
use serde::Serialize;

use crate::show::format::{Cell, Paint, Table, list, plain};

/// What was pinged.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Pinged {
    /// Who told of the peers.
    pub(super) source: Source,
    pub(super) peers: Vec<ProbedPeer>,
}

/// Who told of the peers.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Source {
    /// The daemon on this host.
    Daemon,
    /// What this host remembers; no daemon runs.
    Cache,
    /// The registry; this host remembers nothing.
    Registry,
}

/// Shows a line for each family of each peer.
pub(super) fn table(pinged: &Pinged, paint: Paint) -> String {
    let mut text = whence(pinged);
    if pinged.peers.is_empty() {
        return text + "no other host is known\n";
    }
    let mut table = Table::default();
    let names = ["SUBNET", "ADDRESS", "INSIDE", "OUTSIDE", "LOST", "MTU", "VERDICT"];
    table.row(names.map(|name| Cell::painted(name, |name| paint.faint(name))));
    for peer in &pinged.peers {
        let families: Vec<_> = peer.subnet.nets().collect();
        for (at, net) in families.iter().enumerate() {
            let way = |side| {
                let is_it =
                    |way: &&ProbedPath| way.side == side && way.address.is_ipv4() == net.addr().is_ipv4();
                peer.probe.paths.iter().find(is_it)
            };
            let paths = [way(ProbeSide::Inside), way(ProbeSide::Outside)];
            let verdict = if at == 0 { line(&peer.probe) } else { String::new() };
            table.row([
                Cell::new(net.to_string()),
                Cell::new(paths[1].map_or_else(|| "-".to_owned(), |way| way.address.to_string())),
                Cell::new(time(paths[0])),
                Cell::new(time(paths[1])),
                Cell::new(paths.map(lost).join("/")),
                Cell::new(paths.map(mtu).join("/")),
                Cell::painted(verdict, |text| painted(peer.probe.verdict, paint, text)),
            ]);
        }
    }
    text.push_str(&table.write());
    text
}

/// So many signs stand in a row of the map.
const ROW: usize = 50;

/// So many lines below the map tell what is wrong.
const LINES: usize = 20;

/// What the signs of the map mean, the best first.
const SIGNS: &[(char, &str)] = &[
    ('.', "below 1 ms"),
    (':', "below 10 ms"),
    ('+', "below 100 ms"),
    ('*', "more"),
    ('u', "no tunnel, the underlay answers"),
    ('m', "MTU too small"),
    ('%', "losses"),
    ('T', "the tunnel is blocked"),
    ('X', "silent"),
    ('?', "not probed"),
];

/// Shows a sign for each peer, in the order of the subnets: this host's row of the mesh.
pub(super) fn map(pinged: &Pinged, paint: Paint) -> String {
    let mut text = whence(pinged);
    let mut table = Table::default();
    for row in pinged.peers.chunks(ROW) {
        let first = row.first().map(|peer| list(peer.subnet.nets().take(1))).unwrap_or_default();
        let signs: String = row.iter().map(|peer| sign(&peer.probe)).collect();
        let coloured =
            row.iter().map(|peer| painted(peer.probe.verdict, paint, &sign(&peer.probe).to_string()));
        let coloured: String = coloured.collect();
        table.row([Cell::painted(first, |first| paint.faint(first)), Cell::painted(signs, |_| coloured)]);
    }
    text.push_str(&table.write());
    let mut counts = BTreeMap::new();
    for peer in &pinged.peers {
        *counts.entry(sign(&peer.probe)).or_insert(0) += 1;
    }
    text.push('\n');
    let used =
        SIGNS.iter().filter_map(|(sign, meaning)| Some(format!("{sign}  {} {meaning}\n", counts.get(sign)?)));
    text.extend(used);
    let mut faults: Vec<_> = pinged.peers.iter().filter(|peer| peer.probe.verdict.is_fault()).collect();
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

/// Says where the peers are known from, if not from where one expects.
fn whence(pinged: &Pinged) -> String {
    match pinged.source {
        Source::Daemon => "",
        Source::Cache => "no flanneld runs here; these are the peers that this host remembers\n",
        Source::Registry => {
            "no flanneld runs here, and this host remembers no network; these are the leases in etcd\n"
        }
    }
    .to_owned()
}

fn line(probe: &PeerProbe) -> String {
    match probe.detail.as_str() {
        "" => probe.verdict.to_string(),
        detail => format!("{}: {}", probe.verdict, plain(detail)),
    }
}

/// Colours what tells of a verdict.
pub(crate) fn painted(verdict: ProbeVerdict, paint: Paint, text: &str) -> String {
    if verdict == ProbeVerdict::Reachable {
        paint.good(text)
    } else if matches!(verdict, ProbeVerdict::TunnelBlocked | ProbeVerdict::Silent) {
        paint.bad(text)
    } else {
        paint.doubtful(text)
    }
}

fn time(way: Option<&ProbedPath>) -> String {
    match way {
        None => "-".to_owned(),
        Some(way) => match way.round_trip_microseconds {
            Some(micros) => format!("{}.{:02}ms", micros / 1000, micros % 1000 / 10),
            None => "silent".to_owned(),
        },
    }
}

fn lost(way: Option<&ProbedPath>) -> String {
    match way.filter(|way| way.sent > 0) {
        Some(way) => format!("{}%", u64::from(way.lost) * 100 / u64::from(way.sent)),
        None => "-".to_owned(),
    }
}

fn mtu(way: Option<&ProbedPath>) -> String {
    way.and_then(|way| way.path_mtu).map_or_else(|| "-".to_owned(), |mtu| mtu.to_string())
}

fn sign(probe: &PeerProbe) -> char {
    match probe.verdict {
        ProbeVerdict::Reachable | ProbeVerdict::UnderlaySilent => {
            let times = probe.paths.iter().filter(|way| way.side == ProbeSide::Inside);
            match times.filter_map(|way| way.round_trip_microseconds).max().unwrap_or_default() {
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
        // One that the core will have some day.
        _ => '?',
    }
}
