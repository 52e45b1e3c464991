//! The effects of the packet filters on packets of the network.

use std::net::IpAddr;

use flannel_core::{TransportProtocol, chain};
use flannel_firewall::{
    FirewallError, FirewallNetwork, IptablesError, Packet, PacketPath, Ruleset, missing_rules,
};
use flannel_netlink::Namespace;
use ipnet::IpNet;

use crate::doctor::facts::{Facts, FirewallFacts, NetworkFacts};

/// The maximum number of peers whose packets are evaluated.
const MOST_PEERS: usize = 256;
/// A port without rules.
const SOME_PORT: u16 = 33_333;

/// Reads all rules, and evaluates them for packets of the network.
pub(super) async fn read(namespace: &Namespace, facts: &Facts) -> FirewallFacts {
    let mut firewall = FirewallFacts::default();
    let (ruleset, failures) = Ruleset::read(namespace).await;
    firewall.failures = failures.iter().map(|failure| chain(failure)).collect();
    firewall.has_kube_proxy = ruleset.has_chain("KUBE-SERVICES");
    firewall.has_ufw = ruleset.has_chain("ufw-before-input");
    let Some(network) = &facts.network else { return firewall };
    for packet in packets(facts, network) {
        for blocking in ruleset.blocking_rules(&packet) {
            firewall.blocking_rules.push((packet.clone(), blocking));
        }
    }
    look_for_own_rules(namespace, facts, network, &mut firewall).await;
    firewall
}

async fn look_for_own_rules(
    namespace: &Namespace,
    facts: &Facts,
    network: &NetworkFacts,
    firewall: &mut FirewallFacts,
) {
    let agent = &facts.options;
    let own = network.own.as_ref();
    let running = own.map(|own| {
        let ports = facts.backends.restrictable_ports(&network.config);
        FirewallNetwork::new(&network.config, &own.subnet, ports)
    });
    let running = running.unwrap_or_default();
    match missing_rules(namespace, &agent.rules, &running).await {
        Ok(missing) => firewall.missing = missing,
        Err(error) if error.is_not_installed() => firewall.lacks = Some(package(&error).to_owned()),
        Err(error @ FirewallError::Iptables(_, IptablesError::NotShown { .. })) => {
            firewall.not_shown = Some(chain(&error));
        }
        Err(error) => firewall.failures.push(chain(&error)),
    }
    // Without a lease no rules are expected.
    let (program, package) = match network.config.enable_nftables {
        false => ("iptables-restore", "iptables"),
        true => ("nft", "nftables"),
    };
    let wants_rules = agent.rules.masquerade || agent.rules.forward;
    if running.prefixes.is_empty() && wants_rules && !flannel_firewall::is_installed(program) {
        firewall.lacks = Some(package.to_owned());
    }
}

fn package(error: &FirewallError) -> &'static str {
    if let FirewallError::Iptables(..) = error { "iptables" } else { "nftables" }
}

/// Returns sample packets: the tunnel's datagrams and packets between pods, to and from each peer.
fn packets(facts: &Facts, network: &NetworkFacts) -> Vec<Packet> {
    let (Some(own), Ok(external)) = (&network.own, &facts.external) else {
        return Vec::new();
    };
    let mut packets = Vec::new();
    let bridge = facts.pod_bridges().next().map(|link| link.name.clone());
    for peer in facts.peers.iter().take(MOST_PEERS) {
        let underlay = external.addresses().zip_family(peer.lease.attrs.public.addresses());
        for (port, (local, remote)) in network.ports.iter().zip(underlay.into_iter().cycle()) {
            let datagram = |path, source, destination| {
                Packet::new(path, source, destination, TransportProtocol::Udp, *port)
            };
            let name = Some(external.name.clone());
            packets.push(datagram(PacketPath::Input, remote, local).with_incoming(name.clone()));
            packets.push(datagram(PacketPath::Output, local, remote).with_outgoing(name));
        }
        for (ours, theirs) in own.subnet.nets().filter_map(|net| {
            let same = |other: &IpNet| other.addr().is_ipv4() == net.addr().is_ipv4();
            Some((net, peer.lease.subnet.nets().find(same)?))
        }) {
            let (Some(ours), Some(theirs)) = (some_pod(ours), some_pod(theirs)) else { continue };
            let outside = facts.outgoing_link(theirs).or_else(|| Some(external.name.clone()));
            let packet = |incoming, outgoing, source, destination| {
                let packet =
                    Packet::new(PacketPath::Forward, source, destination, TransportProtocol::Tcp, SOME_PORT);
                packet.with_incoming(incoming).with_outgoing(outgoing)
            };
            packets.push(packet(outside.clone(), bridge.clone(), theirs, ours));
            packets.push(packet(bridge.clone(), outside, ours, theirs));
        }
    }
    packets
}

/// Returns the second host address of a subnet, which a pod may have.
fn some_pod(net: IpNet) -> Option<IpAddr> {
    match net {
        IpNet::V4(net) => net.hosts().nth(1).map(IpAddr::V4),
        IpNet::V6(net) => net.hosts().nth(1).map(IpAddr::V6),
    }
}

/// Finds a pair of addresses of the same family in two lists.
trait ZipFamily: Iterator<Item = IpAddr> + Sized {
    fn zip_family(self, others: impl Iterator<Item = IpAddr>) -> Option<(IpAddr, IpAddr)> {
        let others: Vec<IpAddr> = others.collect();
        let mut pairs = self
            .filter_map(|one| Some((one, *others.iter().find(|other| other.is_ipv4() == one.is_ipv4())?)));
        pairs.next()
    }
}

impl<T: Iterator<Item = IpAddr>> ZipFamily for T {}
