//! The page of `flanneld peers`. Pure.

use flannel_core::{PeerState, PeerStatus};

use super::format::{Cell, Paint, Table, bytes, list, plain, time};

pub(super) fn page(peers: &[PeerStatus], paint: Paint) -> String {
    if peers.is_empty() {
        return "no other host is known\n".to_owned();
    }
    let has_traffic = peers.iter().any(|peer| peer.traffic.is_some());
    let mut table = Table::default();
    let traffic: &[&str] = if has_traffic { &["SENT", "RECEIVED"] } else { &[] };
    let names =
        ["SUBNET", "ADDRESS", "BACKEND", "KNOWN FOR", "STATE"].iter().chain(traffic).chain(&["REASON"]);
    table.row(names.map(|name| Cell::painted(*name, |name| paint.faint(name))));
    for peer in peers {
        table.row(row(peer, has_traffic, paint));
    }
    table.write()
}

fn row(peer: &PeerStatus, has_traffic: bool, paint: Paint) -> Vec<Cell> {
    // What leaves its name out is `udp`, or one of the cloud's.
    let backend = if peer.backend.is_empty() { "-".to_owned() } else { plain(&peer.backend) };
    let (state, colour): (_, fn(Paint, &str) -> String) = match peer.state {
        PeerState::Programmed if peer.held => ("programmed, held", Paint::doubtful),
        PeerState::Programmed => ("programmed", Paint::good),
        PeerState::Pending => ("pending", Paint::bad),
        PeerState::Unreachable => ("unreachable", Paint::doubtful),
        _ => ("unknown", Paint::doubtful),
    };
    let mut cells = vec![
        Cell::new(list(peer.subnet.nets())),
        Cell::new(peer.public.to_string()),
        Cell::new(backend),
        Cell::new(time(peer.known_for)),
        Cell::painted(state, |state| colour(paint, state)),
    ];
    if has_traffic {
        let traffic = peer.traffic.unwrap_or_default();
        cells.push(Cell::new(bytes(traffic.sent_bytes)));
        cells.push(Cell::new(bytes(traffic.received_bytes)));
    }
    cells.push(Cell::new(peer.reason.as_deref().map(plain).unwrap_or_default()));
    cells
}
