//! The text of `flanneld peers`.

use flannel_core::{PeerState, PeerStatus};

use crate::format::{Cell, Paint, TextTable, bytes, list, plain, time};

pub(super) fn page(peers: &[PeerStatus], paint: Paint) -> String {
    if peers.is_empty() {
        return "no peers\n".to_owned();
    }
    let has_traffic = peers.iter().any(|peer| peer.traffic.is_some());
    let has_probe = peers.iter().any(|peer| peer.probe.is_some());
    let mut table = TextTable::default();
    let traffic: &[&str] = if has_traffic { &["SENT", "RECEIVED"] } else { &[] };
    let probe: &[&str] = if has_probe { &["PROBE"] } else { &[] };
    let names = ["SUBNET", "ADDRESS", "BACKEND", "KNOWN FOR", "STATE"].iter();
    let names = names.chain(traffic).chain(probe).chain(&["REASON"]);
    table.row(names.map(|name| Cell::painted(*name, |name| paint.faint(name))));
    for peer in peers {
        table.row(row(peer, has_traffic, has_probe, paint));
    }
    table.write()
}

fn row(peer: &PeerStatus, has_traffic: bool, has_probe: bool, paint: Paint) -> Vec<Cell> {
    // Leases of `udp` and of upstream's cloud backends have no name.
    let backend = if peer.backend.is_empty() { "-".to_owned() } else { plain(&peer.backend) };
    let (state, paint_state): (_, fn(Paint, &str) -> String) = match peer.state {
        PeerState::Programmed if peer.held => ("programmed, held", Paint::warning),
        PeerState::Programmed => ("programmed", Paint::good),
        PeerState::Pending => ("pending", Paint::bad),
        PeerState::Unreachable => ("unreachable", Paint::warning),
        _ => ("unknown", Paint::warning),
    };
    let mut cells = vec![
        Cell::new(list(peer.subnet.nets())),
        Cell::new(peer.public.to_string()),
        Cell::new(backend),
        Cell::new(time(peer.known_for)),
        Cell::painted(state, |state| paint_state(paint, state)),
    ];
    if has_traffic {
        let traffic = peer.traffic.unwrap_or_default();
        cells.push(Cell::new(bytes(traffic.sent_bytes)));
        cells.push(Cell::new(bytes(traffic.received_bytes)));
    }
    if has_probe {
        cells.push(peer.probe.as_ref().map_or_else(
            || Cell::new("-"),
            |probe| Cell::painted(probe.verdict.as_str(), |text| paint.verdict(probe.verdict, text)),
        ));
    }
    cells.push(Cell::new(peer.reason.as_deref().map(plain).unwrap_or_default()));
    cells
}
