//! This host and its peers as the ends of paths.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use flannel_core::{Lease, NetworkConfig, NetworkStatus, ProbeMeans, ProbeSide, PublicAddrs, SubnetKey};
use flannel_netlink::Netlink;
use ipnet::IpNet;

use super::path::ProbePlan;
use super::verdict::ProbeContext;
use crate::backends::BackendRegistry;

/// This host as the start of all paths.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ProbeSource {
    /// The overlay addresses of its devices, with the MTUs of the devices.
    pub inside: BTreeMap<IpAddr, u32>,
    /// The MTU of its external interface, if that is known.
    pub external_mtu: Option<u32>,
    /// The names for the details of verdicts.
    pub context: ProbeContext,
}

/// A peer as the end of its paths.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProbeTarget {
    /// The subnets.
    pub subnet: SubnetKey,
    /// The public addresses.
    pub public: PublicAddrs,
    /// The overlay addresses that this host has a tunnel to, IPv4 first.
    pub inside: Vec<IpAddr>,
    /// The public addresses in the families of its subnets, IPv4 first.
    pub outside: Vec<IpAddr>,
    /// Whether it may run a responder; upstream's hosts don't.
    pub is_ours: bool,
}

/// This host and its peers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Site {
    /// This host.
    pub own: ProbeSource,
    /// The peers.
    pub peers: Vec<ProbeTarget>,
}

/// A host as its lease describes it.
#[derive(Clone, Debug)]
pub(super) struct HostRecord {
    pub(super) subnet: SubnetKey,
    pub(super) public: PublicAddrs,
    pub(super) backend: String,
    pub(super) is_ours: bool,
}

impl From<&Lease> for HostRecord {
    fn from(lease: &Lease) -> Self {
        let attrs = &lease.attrs;
        let (backend, is_ours) = (attrs.backend_type.to_string(), attrs.node.is_some());
        Self { subnet: lease.subnet, public: attrs.public, backend, is_ours }
    }
}

impl Site {
    /// Reads the hosts from the status of a network; `None` if it has no lease yet.
    pub fn of_status(status: &NetworkStatus, backends: &BackendRegistry) -> Option<Self> {
        let lease = status.lease.as_ref()?;
        let backend =
            status.network.as_ref().map(|network| network.backend.to_lowercase()).unwrap_or_default();
        let port = status.devices.iter().find_map(|device| device.port);
        let context = ProbeContext {
            port: port.or_else(|| Some(backends.default_ports(&backend).first()?.port)),
            interface: status.external.name.clone(),
            ..ProbeContext::default()
        };
        let own = HostRecord {
            subnet: lease.subnet,
            public: lease.public,
            backend: lease.backend.clone(),
            is_ours: true,
        };
        let peers = status.peers.each.iter().flatten().map(|peer| HostRecord {
            subnet: peer.subnet,
            public: peer.public,
            backend: peer.backend.clone(),
            is_ours: peer.node.is_some(),
        });
        let mtu = Some(status.external.mtu).filter(|mtu| *mtu > 0);
        Some(Self::new(Some(&own), peers, mtu, context, &local_addresses()))
    }

    /// Reads the hosts from leases. Without `own`, finds the host's lease by the addresses of its devices.
    pub fn of_leases(
        config: &NetworkConfig,
        backends: &BackendRegistry,
        own: Option<&Lease>,
        leases: &[Arc<Lease>],
    ) -> Self {
        let local = local_addresses();
        let is_own = |lease: &&Arc<Lease>| overlay(&lease.subnet).any(|address| local.contains_key(&address));
        let own =
            own.map(HostRecord::from).or_else(|| leases.iter().find(is_own).map(|lease| (&**lease).into()));
        let others = leases.iter().map(|lease| HostRecord::from(&**lease));
        let others = others.filter(|other| own.as_ref().is_none_or(|own| own.subnet != other.subnet));
        let first = leases.iter().flat_map(|lease| lease.attrs.public.addresses()).next();
        let (interface, mtu) = first.and_then(leaves_by).unzip();
        let context = ProbeContext {
            port: backends.tunnel_ports(config).first().map(|port| port.port),
            interface: interface.unwrap_or_else(|| "any".to_owned()),
            ..ProbeContext::default()
        };
        Self::new(own.as_ref(), others, mtu, context, &local)
    }

    fn new(
        own: Option<&HostRecord>,
        peers: impl IntoIterator<Item = HostRecord>,
        external_mtu: Option<u32>,
        context: ProbeContext,
        local: &BTreeMap<IpAddr, u32>,
    ) -> Self {
        let inside: BTreeMap<IpAddr, u32> = own
            .iter()
            .flat_map(|own| overlay(&own.subnet))
            .filter_map(|address| Some((address, *local.get(&address)?)))
            .collect();
        let backend = own.map(|own| own.backend.to_lowercase()).unwrap_or_default();
        let peer = |record: HostRecord| {
            let is_like_us = record.backend.to_lowercase() == backend;
            let is_here = |address: &IpAddr| inside.keys().any(|own| own.is_ipv4() == address.is_ipv4());
            let families: Vec<bool> = record.subnet.nets().map(|net| net.addr().is_ipv4()).collect();
            ProbeTarget {
                subnet: record.subnet,
                public: record.public,
                inside: overlay(&record.subnet).filter(|address| is_like_us && is_here(address)).collect(),
                outside: record.public.addresses().filter(|it| families.contains(&it.is_ipv4())).collect(),
                is_ours: record.is_ours,
            }
        };
        let peers: Vec<ProbeTarget> = peers.into_iter().map(peer).collect();
        let no_inside = match (own, inside.is_empty()) {
            (None, _) => "this host has no lease, so only the underlay was probed",
            (Some(_), true) => "this host has no tunnel device, so only the underlay was probed",
            (Some(_), false) => "the peer uses a different backend, so only the underlay was probed",
        };
        let own_addresses = own.iter().flat_map(|own| own.public.addresses()).collect();
        let context = ProbeContext { own: own_addresses, no_inside: no_inside.to_owned(), ..context };
        Self { own: ProbeSource { inside, external_mtu, context }, peers }
    }
}

/// The effort of probing a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Thoroughness {
    pub(super) enough: u32,
    pub(super) most: u32,
    pub(super) pause: std::time::Duration,
    /// Whether to measure the path MTU.
    pub(super) sizes: bool,
}

impl ProbeSource {
    /// Plans the measurement of every path to a peer, those inside of the tunnel first.
    pub(super) fn plans(&self, peer: &ProbeTarget, how: Thoroughness) -> Vec<ProbePlan> {
        let Thoroughness { enough, most, pause, sizes } = how;
        let plan = |side, address: IpAddr, device_mtu: Option<u32>, means| ProbePlan {
            side,
            address,
            means,
            enough,
            most,
            pause,
            device_mtu: device_mtu.filter(|_| sizes),
        };
        let mtu_of = |address: &IpAddr| {
            self.inside.iter().find(|(own, _)| own.is_ipv4() == address.is_ipv4()).map(|(_, mtu)| *mtu)
        };
        let means = match peer.is_ours {
            true => vec![ProbeMeans::Udp, ProbeMeans::Icmp],
            false => vec![ProbeMeans::Icmp],
        };
        let inside = peer
            .inside
            .iter()
            .map(|address| plan(ProbeSide::Inside, *address, mtu_of(address), means.clone()));
        let outside = peer
            .outside
            .iter()
            .map(|address| plan(ProbeSide::Outside, *address, self.external_mtu, vec![ProbeMeans::Icmp]));
        inside.chain(outside).collect()
    }
}

/// Returns the overlay addresses of a host: the first of each of its subnets.
pub(super) fn overlay(subnet: &SubnetKey) -> impl Iterator<Item = IpAddr> + use<> {
    subnet.nets().map(|net: IpNet| net.network())
}

/// Reads this host's addresses with the MTUs of their devices; empty if that fails.
fn local_addresses() -> BTreeMap<IpAddr, u32> {
    let read = || -> Result<BTreeMap<IpAddr, u32>, flannel_netlink::Error> {
        let mut kernel = Netlink::open()?;
        let mtus: BTreeMap<u32, u32> = kernel.links()?.iter().map(|link| (link.index, link.mtu)).collect();
        let addresses = kernel.addresses(0)?;
        let known = addresses.iter().filter_map(|it| Some((it.net.addr(), *mtus.get(&it.index)?)));
        Ok(known.collect())
    };
    read().unwrap_or_default()
}

/// Returns the name and the MTU of the interface that routes to an address.
fn leaves_by(address: IpAddr) -> Option<(String, u32)> {
    let mut kernel = Netlink::open().ok()?;
    let index = kernel.route_to(address).ok()?.index?;
    let link = kernel.link_by_index(index).ok()??;
    Some((link.name, link.mtu))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u8, backend: &str, is_ours: bool) -> HostRecord {
        let public = PublicAddrs { v4: format!("192.168.0.{n}").parse().ok(), v6: "fd00::9".parse().ok() };
        let subnet = format!("10.5.{n}.0-24").parse().expect("a key");
        HostRecord { subnet, public, backend: backend.to_owned(), is_ours }
    }

    fn site(own: Option<&HostRecord>, peers: &[HostRecord], device: bool) -> Site {
        let local = [(IpAddr::from([10, 5, 1, 0]), 1450)].into_iter().filter(|_| device).collect();
        Site::new(own, peers.to_vec(), Some(1500), ProbeContext::default(), &local)
    }

    #[test]
    fn a_peer_is_asked_inside_and_outside_in_the_families_of_its_subnet() {
        let own = record(1, "vxlan", true);
        let Site { own, peers } =
            site(Some(&own), &[record(2, "VXLAN", true), record(3, "vxlan", false)], true);
        let how = Thoroughness { enough: 1, most: 3, pause: std::time::Duration::ZERO, sizes: true };
        let plans = own.plans(&peers[0], how);
        let seen: Vec<_> = plans.iter().map(|plan| (plan.address.to_string(), plan.device_mtu)).collect();
        assert_eq!(seen, [("10.5.2.0".to_owned(), Some(1450)), ("192.168.0.2".to_owned(), Some(1500))]);
        assert_eq!(plans[0].means, [ProbeMeans::Udp, ProbeMeans::Icmp]);
        assert_eq!(own.plans(&peers[1], how)[0].means, [ProbeMeans::Icmp], "upstream's have no responder");
        assert_eq!(own.plans(&peers[0], Thoroughness { sizes: false, ..how })[0].device_mtu, None);
    }

    #[test]
    fn without_a_device_or_with_another_backend_only_the_underlay_is_probed_and_the_reason_given() {
        let own = record(1, "vxlan", true);
        for (own, peer, device, why) in [
            (Some(&own), record(2, "vxlan", true), false, "no tunnel device"),
            (Some(&own), record(2, "", true), true, "different backend"),
            (None, record(2, "vxlan", true), true, "no lease"),
        ] {
            let site = site(own, &[peer], device);
            assert!(site.peers[0].inside.is_empty() && site.peers[0].outside.len() == 1, "{site:?}");
            assert!(site.own.context.no_inside.contains(why), "{site:?}");
        }
    }
}
