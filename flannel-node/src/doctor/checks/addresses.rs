//! The external interface and the public address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use flannel_core::Lease;
use flannel_netlink::{Link, LinkKind};

use crate::doctor::facts::{Facts, leftover};
use crate::doctor::finding::{Cure, Fault, Finding};

pub(super) const INTERFACE: Fault =
    Fault::error("interface", "the daemon exits: without an address other hosts cannot reach it");

pub(in crate::doctor) fn interface(facts: &Facts) -> Vec<Finding> {
    let Err(why) = &facts.external else { return Vec::new() };
    vec![INTERFACE.found(why.clone(), name_one(facts))]
}

/// Suggests the most likely interface.
fn name_one(facts: &Facts) -> Cure {
    let is_likely = |link: &&Link| {
        link.up
            && !link.loopback
            && matches!(link.kind, LinkKind::Physical | LinkKind::Veth | LinkKind::Other(_))
            && link.master.is_none()
            && facts.addresses.iter().any(|it| it.index == link.index && is_plausible(it.net.addr()))
    };
    let name = facts.links.iter().find(is_likely).map_or("INTERFACE", |link| &link.name);
    Cure::start_with([format!("-iface={name}")])
}

fn is_plausible(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(is_link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

pub(super) const PUBLIC_ADDRESS: Fault =
    Fault::error("public-address", "peers send to this address, and no other host can reach it");

pub(in crate::doctor) fn public_address(facts: &Facts) -> Vec<Finding> {
    let Ok(external) = &facts.external else { return Vec::new() };
    let public = external.public;
    let addresses = public.addresses();
    let judge = |address: IpAddr| {
        let holder = facts.addresses.iter().find(|it| it.net.addr() == address);
        let bridge = holder
            .and_then(|it| facts.links.iter().find(|link| link.index == it.index))
            .filter(|link| is_of_containers(facts, link));
        let why = match bridge {
            _ if address.is_loopback() => "is a loopback address".to_owned(),
            _ if !is_plausible(address) => "is valid only on its own link".to_owned(),
            Some(bridge) => format!("is that of the bridge {}, which is inside this host", bridge.name),
            None => return None,
        };
        Some(PUBLIC_ADDRESS.found(format!("the public address {address} {why}"), name_one(facts)))
    };
    addresses.filter_map(judge).collect()
}

/// Returns whether a bridge has no port that leads out of the host.
fn is_of_containers(facts: &Facts, link: &Link) -> bool {
    let mut ports = facts.links.iter().filter(|port| port.master == Some(link.index));
    link.kind == LinkKind::Bridge && ports.all(|port| matches!(port.kind, LinkKind::Veth | LinkKind::Tun))
}

pub(super) const SHARED: Fault = Fault::error(
    "public-address-shared",
    "packets for the pods of one host arrive at the other; one lease is stale, or two hosts have the same \
     address",
);

pub(in crate::doctor) fn shared(facts: &Facts) -> Vec<Finding> {
    let Some(snapshot) = &facts.registry.leases else { return Vec::new() };
    let (mut holders, mut found) = (BTreeMap::<IpAddr, &Arc<Lease>>::new(), Vec::new());
    for lease in &snapshot.leases {
        let Some(address) = lease.attrs.public.addresses().next() else { continue };
        let Some(other) = holders.insert(address, lease) else { continue };
        let goes = leftover(facts, lease, other);
        let what = format!("the leases {} and {} both name {address}", other.subnet, lease.subnet);
        let remove = facts.registry.commands.remove_record(&goes.subnet.to_string());
        found.push(SHARED.found(what, Cure::run([remove])));
    }
    found
}
