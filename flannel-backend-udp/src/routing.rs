//! Computes next hops from leases. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use flannel_core::{BackendType, Lease, NetworkConfig, PeerFailure, PeerSet, SubnetKey};
use ipnet::IpNet;

use crate::counters::UdpCounters;
use crate::peers::Hop;

/// The peer and the UDP address of each subnet.
pub(crate) type Hops = BTreeMap<IpNet, (SubnetKey, SocketAddr)>;

/// Computes the next hops, and the reason for each peer that has none.
pub(crate) fn next_hops(
    config: &NetworkConfig,
    own: &SubnetKey,
    port: u16,
    accepts_vxlan: bool,
    peers: &PeerSet,
) -> (Hops, Vec<PeerFailure>) {
    let (mut hops, mut unreachable) = (Hops::new(), Vec::new());
    for lease in peers.iter() {
        let mut refuse = |reason: String| {
            unreachable.push(PeerFailure::new(lease.subnet, reason));
        };
        if let Err(reason) = check(lease, own, accepts_vxlan) {
            refuse(reason);
            continue;
        }
        for subnet in lease.subnet.nets() {
            match public_address(config, lease, subnet) {
                Ok(Some(public)) => {
                    hops.entry(subnet.trunc()).or_insert((lease.subnet, SocketAddr::new(public, port)));
                }
                Ok(None) => {}
                Err(reason) => refuse(reason),
            }
        }
    }
    (hops, unreachable)
}

/// Returns the entries of the peer table.
pub(crate) fn entries(hops: &Hops, counters: &UdpCounters) -> Vec<Hop> {
    let entry = |(subnet, (peer, address)): (&IpNet, &(SubnetKey, SocketAddr))| Hop {
        subnet: *subnet,
        address: *address,
        counters: counters.peer(*peer),
    };
    hops.iter().map(entry).collect()
}

fn check(lease: &Lease, own: &SubnetKey, accepts_vxlan: bool) -> Result<(), String> {
    let backend = &lease.attrs.backend_type;
    let carries_both = accepts_vxlan && *backend == BackendType::VXLAN && lease.attrs.node.is_some();
    if *backend != BackendType::UNNAMED && backend.as_str() != "udp" && !carries_both {
        return Err(format!("ignoring non-udp subnet({}): type={backend}", lease.subnet));
    }
    if lease.subnet.overlaps(own) {
        return Err(format!("its subnet overlaps this host's {own}"));
    }
    Ok(())
}

/// Returns the underlay address for a subnet; `None` if the network lacks its address family.
fn public_address(config: &NetworkConfig, lease: &Lease, subnet: IpNet) -> Result<Option<IpAddr>, String> {
    let public = &lease.attrs.public;
    let (pool, public) = match subnet {
        IpNet::V4(_) => (config.ipv4, public.v4.map(IpAddr::V4)),
        IpNet::V6(_) => (config.ipv6, public.v6.map(IpAddr::V6)),
    };
    let Some(pool) = pool else { return Ok(None) };
    if !pool.network().contains(&subnet) {
        return Err(format!("its subnet {subnet} is outside the network {}", pool.network()));
    }
    public.map(Some).ok_or_else(|| "its lease has no public address of this address family".to_owned())
}

#[cfg(test)]
mod tests;
