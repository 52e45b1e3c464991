//! Networks that overlap the overlay.

use std::net::IpAddr;

use flannel_netlink::{Address, LinkKind, Route, RouteKind};
use ipnet::IpNet;

use super::registry::{free_network, with_network};
use crate::doctor::facts::Facts;
use crate::doctor::finding::{Cure, Fault, Finding, quoted};

pub(super) fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// Returns the networks of the overlay.
fn ranges(facts: &Facts) -> Vec<IpNet> {
    facts.network.iter().flat_map(|network| network.config.pools()).map(|pool| pool.network()).collect()
}

fn overlapped(facts: &Facts, net: &IpNet) -> Option<IpNet> {
    ranges(facts).into_iter().find(|range| overlap(range, net))
}

pub(super) const UNDERLAY: Fault = Fault::error(
    "network-overlaps-underlay",
    "packets to another host may match the network and enter the tunnel, which then carries its own packets",
);

pub(in crate::doctor) fn underlay(facts: &Facts) -> Vec<Finding> {
    let (Ok(external), Some(network)) = (&facts.external, &facts.network) else {
        return Vec::new();
    };
    let is_external = |address: &&Address| {
        address.index == external.index && external.addresses().any(|it| it == address.net.addr())
    };
    let nets = facts.addresses.iter().filter(is_external).map(|address| address.net.trunc());
    let peers = facts.peers.iter().flat_map(|peer| peer.lease.attrs.public.addresses()).map(IpNet::from);
    let hit = nets.chain(peers).find_map(|net| Some((net, overlapped(facts, &net)?)));
    let Some((net, range)) = hit else { return Vec::new() };
    let what = format!("the network {range} overlaps {net}, where the hosts are");
    let text = with_network(&network.config, &free_network(facts));
    vec![UNDERLAY.found(what, Cure::run([facts.registry.commands.write_config(&text)]))]
}

pub(super) const ADDRESS: Fault =
    Fault::error("network-overlaps-link", "packets to pods of other hosts leave by that link and are lost");

/// Checks the addresses of foreign links.
pub(in crate::doctor) fn addresses(facts: &Facts) -> Vec<Finding> {
    let is_ours = |address: &Address| {
        facts.devices().any(|device| device.index == address.index)
            || facts.own().is_some_and(|own| own.subnet.nets().any(|subnet| subnet.contains(&address.net)))
            || facts.external.as_ref().is_ok_and(|external| external.index == address.index)
    };
    let found = |address: &Address| {
        let net = address.net.trunc();
        let range = overlapped(facts, &net).filter(|_| !is_ours(address))?;
        let link = facts.link_name(address.index);
        let what = format!("{link} has {}, which overlaps the network {range}", address.net);
        let mut cure = Cure::run([format!("ip address delete {} dev {}", address.net, quoted(link))]);
        if link.starts_with("docker")
            && let Some(bridge) = facts.own().and_then(|own| bridge_address(own.subnet.nets().next()?))
        {
            cure = cure.lasting([format!(
                "printf '{{\"bip\":\"{bridge}\"}}' > /etc/docker/daemon.json && systemctl restart docker"
            )]);
        }
        Some(ADDRESS.found(what, cure))
    };
    facts.addresses.iter().filter_map(found).collect()
}

/// Returns the address of a bridge for pods: the first one of the subnet.
fn bridge_address(subnet: IpNet) -> Option<String> {
    let first: IpAddr = subnet.hosts().next()?;
    Some(format!("{first}/{}", subnet.prefix_len()))
}

pub(super) const ROUTE: Fault =
    Fault::error("network-overlaps-route", "packets to pods in its range take that route and are lost");

/// Checks foreign routes into the overlay.
pub(in crate::doctor) fn routes(facts: &Facts) -> Vec<Finding> {
    let found = |route: &Route| {
        let range = ranges(facts).into_iter().find(|range| range.contains(&route.destination))?;
        if is_known(facts, route) {
            return None;
        }
        let mut words = vec![route.destination.to_string()];
        words.extend(route.gateway.map(|gateway| format!("via {gateway}")));
        words.extend(route.index.map(|index| format!("dev {}", quoted(facts.link_name(index)))));
        words.extend(route.metric.map(|metric| format!("metric {metric}")));
        let words = words.join(" ");
        let what = format!("the route {words} leads into the network {range}");
        Some(ROUTE.found(what, Cure::run([format!("ip route delete {words}")])))
    };
    facts.routes.iter().filter_map(found).collect()
}

fn is_known(facts: &Facts, route: &Route) -> bool {
    let is_ours = facts.devices().any(|device| route.index == Some(device.index));
    let is_beside = route.index.is_some_and(|index| is_secondary_udp(facts, index));
    let is_own_subnet =
        facts.own().is_some_and(|own| own.subnet.nets().any(|subnet| subnet.contains(&route.destination)));
    // Direct routes lead to the peer with the subnet.
    let is_direct = facts.peers.iter().any(|peer| {
        peer.lease.subnet.nets().any(|subnet| subnet == route.destination)
            && route
                .gateway
                .is_some_and(|gateway| peer.lease.attrs.public.addresses().any(|public| public == gateway))
    });
    // The kernel adds them for addresses, which another check covers.
    let is_kernels = route.protocol == Route::PROTOCOL_KERNEL;
    // -ip-blackhole-route adds one for the host's subnet.
    let is_blackhole = route.kind == RouteKind::Blackhole;
    is_ours || is_beside || is_own_subnet || is_direct || is_kernels || is_blackhole
}

/// Returns whether a link is the TUN device of the fallback during a migration.
fn is_secondary_udp(facts: &Facts, index: u32) -> bool {
    let is_tun = facts.links.iter().any(|link| link.index == index && link.kind == LinkKind::Tun);
    let mut addresses = facts.addresses.iter().filter(|address| address.index == index);
    is_tun
        && facts.own().is_some_and(|own| {
            addresses.any(|address| own.subnet.nets().any(|subnet| subnet.contains(&address.net)))
        })
}
