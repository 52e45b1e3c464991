//! A pass does what was planned.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;

use common::{config, ip, peer, routed_lab, station, subnet};
use flannel_backend_host_gw::{OpenHostGw, external_interface};
use flannel_core::{LeaseChange, OpenBackend, PeerSet, PlanRequest, PlannedAction, PlannedChange};
use flannel_netlink::Namespace;

/// What would be put and removed on the host.
fn planned(namespace: &Namespace, peers: &PeerSet) -> (Vec<String>, Vec<String>) {
    let (config, own) = (config(), peer(1, 0));
    let external = external_interface(namespace, "eth0").unwrap();
    let request = PlanRequest::new(&config, &external, &own, peers);
    let plan = OpenHostGw::new(namespace.clone()).plan(request).unwrap();
    assert_eq!(plan.unreachable, []);
    let (puts, removals): (Vec<_>, Vec<_>) =
        plan.changes.into_iter().partition(|change| change.action == PlannedAction::Put);
    let names = |changes: Vec<PlannedChange>| changes.into_iter().map(|change| change.object).collect();
    (names(puts), names(removals))
}

#[test]
fn a_pass_does_what_was_planned() {
    let lab = routed_lab(1);
    let host = &lab.hosts[0].namespace;
    let mut peers = PeerSet::default();
    peers.extend([2, 3].map(|n| LeaseChange::Put(peer(n, 0).into())));
    let before = ip(host, "route show table all");
    let (puts, removals) = planned(host, &peers);
    assert_eq!((puts.len(), removals), (4, vec![]), "{puts:?}");
    assert_eq!(ip(host, "route show table all"), before, "a read-only command must change nothing");

    let mut station = station(&lab, 1);
    station.complete([2, 3].map(|n| peer(n, 0)));
    assert_eq!(planned(host, &station.peers), (vec![], vec![]));

    // A peer leaves and routes are lost while nobody looks.
    ip(host, "-4 route flush root 10.5.0.0/16");
    station.remove(&subnet(3));
    let (puts, removals) = planned(host, &station.peers);
    assert_eq!(puts.len(), 1, "{puts:?}");
    assert!(puts[0].starts_with("route 10.5.2.0/24 via "), "{puts:?}");
    assert!(!removals.is_empty());
    let report = station.sync();
    assert_eq!((report.written, report.removed), (puts.len(), removals.len()), "{removals:?}");
    assert_eq!(planned(host, &station.peers), (vec![], vec![]));
}
