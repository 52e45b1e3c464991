//! The leases of this host and of others.

use std::net::IpAddr;

use flannel_core::Lease;
use ipnet::IpNet;

use super::daemons;
use crate::doctor::facts::{Facts, HostResponse, Peer, leftover};
use crate::doctor::finding::{Cure, Fault, Finding};

pub(super) const EXPIRED: Fault = Fault::error(
    "lease-expired",
    "pods still have addresses of the subnet, no other host sends to them, and another host may lease it",
);
pub(super) const TAKEN: Fault = Fault::error(
    "lease-taken",
    "pods have addresses that belong to another host, to which all other hosts send",
);

/// Compares the cached lease with the registry. A running agent does so itself.
pub(in crate::doctor) fn own(facts: &Facts) -> Vec<Finding> {
    let (Some(snapshot), false) = (&facts.registry.leases, facts.is_running()) else {
        return Vec::new();
    };
    let Some(cached) = &facts.cached.network else { return Vec::new() };
    let subnet = cached.own.subnet;
    if facts.own().is_some_and(|own| own.subnet == subnet) {
        return Vec::new();
    }
    match snapshot.leases.iter().find(|lease| lease.subnet.overlaps(&subnet)) {
        None => {
            let what = format!("the lease {subnet} that this host had is no longer in the registry");
            vec![EXPIRED.found(what, daemons::start())]
        }
        Some(other) => {
            let holder = other
                .attrs
                .public
                .addresses()
                .next()
                .map_or_else(|| "another host".to_owned(), |it| it.to_string());
            let what =
                format!("the subnet {subnet} that this host had is leased by {holder} as {}", other.subnet);
            vec![TAKEN.found(what, daemons::start())]
        }
    }
}

pub(super) const OVERLAP: Fault = Fault::error(
    "lease-overlap",
    "packets to the common addresses reach only one of the hosts; each sender decides on its own which",
);

/// Overlapping subnets are adjacent when sorted by their first addresses.
pub(in crate::doctor) fn overlap(facts: &Facts) -> Vec<Finding> {
    let leases = facts.registry.leases.iter().flat_map(|snapshot| &snapshot.leases);
    let mut nets: Vec<(IpNet, &Lease)> =
        leases.flat_map(|lease| lease.subnet.nets().map(move |net| (net, lease.as_ref()))).collect();
    nets.sort_by_key(|(net, _)| (net.network(), net.prefix_len()));
    let mut found = Vec::new();
    let mut widest: Option<(IpNet, &Lease)> = None;
    for (net, lease) in nets {
        match widest {
            Some((around, other)) if around.contains(&net) && other.subnet != lease.subnet => {
                let goes = leftover(facts, lease, other);
                let what = format!("the subnets of the leases {} and {} overlap", other.subnet, lease.subnet);
                let remove = facts.registry.commands.remove_record(&goes.subnet.to_string());
                found.push(OVERLAP.found(what, Cure::run([remove])));
            }
            _ => widest = Some((net, lease)),
        }
    }
    found
}

pub(super) const UNREACHABLE_HOST: Fault = Fault::warning(
    "host-unreachable",
    "its pods are unreachable; if the host is gone for good, removing the record frees its subnet",
);
pub(super) const NO_ROUTE: Fault =
    Fault::error("host-no-route", "no packet can be sent to that host, so its pods are unreachable");
/// The maximum number of findings.
const MOST: usize = 10;

pub(in crate::doctor) fn hosts(facts: &Facts) -> Vec<Finding> {
    let judge = |peer: &Peer| -> Option<Finding> {
        let public = peer.lease.attrs.public.addresses().next()?;
        let subnet = peer.lease.subnet;
        if peer.leaves_by.is_none() {
            let what = format!("there is no route to {public}, which has the lease {subnet}");
            return Some(NO_ROUTE.found(what, Cure::run([route_to(facts, public)])));
        }
        (peer.answer == HostResponse::NoHost).then(|| {
            let term = match peer.lease.term {
                flannel_core::Term::Limited => "expires",
                flannel_core::Term::Permanent => "never expires",
            };
            let what = format!("no host answers at {public}, which has the lease {subnet}; the lease {term}");
            let remove = facts.registry.commands.remove_record(&subnet.to_string());
            UNREACHABLE_HOST.found(what, Cure::run([remove]))
        })
    };
    facts.peers.iter().filter_map(judge).take(MOST).collect()
}

/// Suggests the router of the external interface, if there is one.
fn route_to(facts: &Facts, address: IpAddr) -> String {
    let gateway = facts.routes.iter().find_map(|route| {
        route.gateway.filter(|gateway| {
            gateway.is_ipv4() == address.is_ipv4()
                && facts.external.as_ref().is_ok_and(|external| route.index == Some(external.index))
        })
    });
    let gateway = gateway.map_or_else(|| "GATEWAY".to_owned(), |gateway| gateway.to_string());
    format!("ip route add {} via {gateway}", IpNet::from(address))
}
