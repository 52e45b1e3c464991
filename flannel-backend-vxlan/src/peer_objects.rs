//! The kernel objects of a set of peers, in one family. Pure.
//!
//! A peer with the subnet `10.5.3.0/24`, a tunnel device with the MAC address `M` and the endpoint `P` has three objects,
//! which the kernel looks up in this order for a packet to `10.5.3.7`:
//!
//! 1. the route `10.5.3.0/24 via 10.5.3.0` leads to the peer's address on the overlay;
//! 2. the neighbour `10.5.3.0 → M` resolves that address to the device `M`;
//! 3. the FDB entry `M → P` encapsulates frames for `M` and sends them to `P`.
//!
//! With direct routing, a peer on the same link has one object instead: the direct route `10.5.3.0/24 via P`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flannel_core::reconcile::Tracker;
use flannel_core::{BackendType, Dirty, Lease, ObjectFailure, PeerFailure, PeerSet, SubnetKey};
use flannel_dataplane::{NextHop, OverlayRoute};
use flannel_netlink::{IpFamily, Mac, Route};
use ipnet::IpNet;

use crate::attrs;

/// One peer in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TunnelPeer {
    /// Its subnet.
    pub(crate) subnet: IpNet,
    /// The MAC address of its tunnel device.
    pub(crate) mac: Mac,
    /// Its endpoint.
    pub(crate) public: IpAddr,
    /// The next hop of its direct route, if it has one.
    pub(crate) next_hop: Option<NextHop>,
}

impl TunnelPeer {
    /// Reads a lease. Returns `None` if it has no subnet of this family.
    pub(crate) fn from_lease(
        lease: &Lease,
        own: &SubnetKey,
        family: IpFamily,
    ) -> Option<Result<Self, String>> {
        Some(Self::with_subnet(subnet_of(&lease.subnet, family)?, lease, own, family))
    }

    fn with_subnet(subnet: IpNet, lease: &Lease, own: &SubnetKey, family: IpFamily) -> Result<Self, String> {
        let attrs = &lease.attrs;
        if attrs.backend_type != BackendType::VXLAN {
            return Err(format!("ignoring non-vxlan subnet({subnet}): type={}", attrs.backend_type));
        }
        if lease.subnet.overlaps(own) {
            return Err(format!("its subnet overlaps this host's subnet {own}"));
        }
        let (data, public) = match family {
            IpFamily::V4 => (&attrs.backend_data, attrs.public.v4.map(IpAddr::V4)),
            IpFamily::V6 => (&attrs.backend_v6_data, attrs.public.v6.map(IpAddr::V6)),
        };
        let public = public.ok_or("its lease has no public address of this family")?;
        let mac = attrs::read(data.as_ref()).map_err(|error| error.to_string())?;
        Ok(Self { subnet, mac, public, next_hop: None })
    }

    /// Returns the peer's address on the overlay.
    pub(crate) fn gateway(&self) -> IpAddr {
        self.subnet.network()
    }
}

fn subnet_of(subnet: &SubnetKey, family: IpFamily) -> Option<IpNet> {
    subnet.nets().find(|net| IpFamily::of(net.addr()) == family)
}

/// The path to a peer, which identifies its objects after the lease is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PeerPath {
    /// Through the tunnel, to the device with this MAC address.
    Tunnel(Mac),
    /// By a direct route.
    Direct,
}

impl From<&TunnelPeer> for PeerPath {
    fn from(peer: &TunnelPeer) -> Self {
        if peer.next_hop.is_some() { Self::Direct } else { Self::Tunnel(peer.mac) }
    }
}

/// The trackers of the kernel tables, and the lookup of next hops.
pub(crate) struct ObjectTrackers<'a> {
    /// Returns the next hop to a subnet behind a public address, if it has a direct route.
    pub(crate) next_hop: &'a mut dyn FnMut(IpNet, IpAddr) -> Option<NextHop>,
    /// Returns why packets to the public address of the peer with a subnet don't leave this host.
    pub(crate) path_problem: &'a mut dyn FnMut(IpNet, IpAddr) -> Option<String>,
    pub(crate) direct: &'a mut Tracker<IpNet, Route>,
    pub(crate) neighbours: &'a mut Tracker<IpAddr, Mac>,
    pub(crate) fdb: &'a mut Tracker<Mac, IpAddr>,
    pub(crate) routes: &'a mut Tracker<IpNet, OverlayRoute>,
}

impl ObjectTrackers<'_> {
    fn set_desired(&mut self, peer: &TunnelPeer, position: usize) {
        if let Some(next_hop) = peer.next_hop {
            return self.direct.set_desired(peer.subnet, next_hop.route(peer.subnet, position));
        }
        self.neighbours.set_desired(peer.gateway(), peer.mac);
        self.fdb.set_desired(peer.mac, peer.public);
        self.routes.set_desired(peer.subnet, OverlayRoute::to(peer.subnet, position));
    }

    fn unset_desired(&mut self, subnet: IpNet, path: PeerPath) {
        match path {
            PeerPath::Direct => self.direct.unset_desired(&subnet),
            PeerPath::Tunnel(mac) => {
                self.neighbours.unset_desired(&subnet.network());
                self.fdb.unset_desired(&mac);
                self.routes.unset_desired(&subnet);
            }
        }
    }

    /// Replaces all desired objects by those of peers without conflicts.
    fn set_all_desired(&mut self, peers: &[(SubnetKey, TunnelPeer)]) {
        let (mut neighbours, mut fdb, mut routes, mut direct) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (position, (_, peer)) in peers.iter().enumerate() {
            if let Some(next_hop) = peer.next_hop {
                direct.push((peer.subnet, next_hop.route(peer.subnet, position)));
                continue;
            }
            neighbours.push((peer.gateway(), peer.mac));
            fdb.push((peer.mac, peer.public));
            routes.push((peer.subnet, OverlayRoute::to(peer.subnet, position)));
        }
        self.neighbours.set_all_desired(neighbours);
        self.fdb.set_all_desired(fdb);
        self.routes.set_all_desired(routes);
        self.direct.set_all_desired(direct);
    }

    /// Returns true if another peer has an object that this one needs.
    fn conflicts_with(&self, peer: &TunnelPeer) -> bool {
        let subnet =
            self.routes.desired(&peer.subnet).is_some() || self.direct.desired(&peer.subnet).is_some();
        let tunnel =
            || self.fdb.desired(&peer.mac).is_some() || self.neighbours.desired(&peer.gateway()).is_some();
        subnet || (peer.next_hop.is_none() && tunnel())
    }
}

/// The peers of one family whose objects the trackers desire.
#[derive(Debug, Default)]
pub(crate) struct PeerObjects {
    /// The host's own subnet, which no peer may have.
    own: Option<SubnetKey>,
    peers: BTreeMap<SubnetKey, PeerPath>,
    unreachable: BTreeMap<SubnetKey, PeerFailure>,
    /// Whether two peers need the same object, so that a change of one may affect the other.
    has_conflicts: bool,
}

impl PeerObjects {
    /// Updates the trackers. If only some peers changed and none conflict, the cost is proportional to the change.
    pub(crate) fn update(
        &mut self,
        peers: &PeerSet,
        dirty: &Dirty,
        own: &SubnetKey,
        family: IpFamily,
        trackers: &mut ObjectTrackers<'_>,
    ) {
        let is_done = match dirty {
            Dirty::Some(dirty) if self.own == Some(*own) && !self.has_conflicts => {
                self.update_some(peers, dirty, own, family, trackers)
            }
            Dirty::Some(_) | Dirty::All => false,
        };
        if !is_done {
            self.update_all(peers, own, family, trackers);
        }
    }

    /// Updates some peers. Returns false if one of them conflicts with another peer; then everything must be updated.
    fn update_some(
        &mut self,
        peers: &PeerSet,
        dirty: &BTreeSet<SubnetKey>,
        own: &SubnetKey,
        family: IpFamily,
        trackers: &mut ObjectTrackers<'_>,
    ) -> bool {
        for subnet in dirty {
            self.unreachable.remove(subnet);
            if let Some(path) = self.peers.remove(subnet)
                && let Some(net) = subnet_of(subnet, family)
            {
                trackers.unset_desired(net, path);
            }
        }
        for lease in dirty.iter().filter_map(|subnet| peers.peer(subnet)) {
            let Some(peer) = self.read(lease, own, family, trackers) else {
                continue;
            };
            if trackers.conflicts_with(&peer) {
                return false;
            }
            trackers.set_desired(&peer, self.peers.len());
            self.peers.insert(lease.subnet, PeerPath::from(&peer));
        }
        true
    }

    /// Updates all peers. Of two peers that need the same object, the first in the order of subnets gets it.
    fn update_all(
        &mut self,
        peers: &PeerSet,
        own: &SubnetKey,
        family: IpFamily,
        trackers: &mut ObjectTrackers<'_>,
    ) {
        *self = Self { own: Some(*own), ..Self::default() };
        let mut usable = Vec::with_capacity(peers.len());
        for lease in peers.iter() {
            usable.extend(self.read(lease, own, family, trackers).map(|peer| (lease.subnet, peer)));
        }
        let conflicts = find_conflicts(&usable);
        self.has_conflicts = !conflicts.is_empty();
        let mut position = 0..;
        usable.retain(|(subnet, _)| {
            let reason = position.next().and_then(|i| conflicts.get(&i));
            reason.map(|reason| self.refuse(*subnet, reason.clone())).is_none()
        });
        trackers.set_all_desired(&usable);
        // Built from sorted pairs the map is more compact than after single insertions.
        self.peers = usable.iter().map(|(subnet, peer)| (*subnet, PeerPath::from(peer))).collect();
    }

    /// Reads a lease and finds the path to its host.
    fn read(
        &mut self,
        lease: &Lease,
        own: &SubnetKey,
        family: IpFamily,
        trackers: &mut ObjectTrackers<'_>,
    ) -> Option<TunnelPeer> {
        match TunnelPeer::from_lease(lease, own, family)? {
            Ok(peer) => {
                // Its objects stay, so that it is reachable once the route is gone.
                if let Some(reason) = (trackers.path_problem)(peer.subnet, peer.public) {
                    self.refuse(lease.subnet, reason);
                }
                Some(TunnelPeer { next_hop: (trackers.next_hop)(peer.subnet, peer.public), ..peer })
            }
            Err(reason) => {
                self.refuse(lease.subnet, reason);
                None
            }
        }
    }

    fn refuse(&mut self, subnet: SubnetKey, reason: String) {
        self.unreachable.insert(subnet, PeerFailure::new(subnet, reason));
    }

    /// Returns the peers that cannot be reached, with the reasons.
    pub(crate) fn unreachable(&self) -> impl Iterator<Item = &PeerFailure> {
        self.unreachable.values()
    }

    /// Returns the peers that lack an object because it failed. Looks at all peers if any object failed.
    pub(crate) fn pending(&self, family: IpFamily, failed: &FailedObjects<'_>) -> Vec<PeerFailure> {
        if failed.is_empty() {
            return Vec::new();
        }
        let pending = |(subnet, path): (&SubnetKey, &PeerPath)| {
            let failure = failed.of_peer(subnet_of(subnet, family)?, *path)?;
            Some(PeerFailure::new(*subnet, format!("{}: {}", failure.object, failure.reason)))
        };
        self.peers.iter().filter_map(pending).collect()
    }

    /// Returns the peers behind the tunnel, all of them pending while there is no device.
    pub(crate) fn pending_without_device(&self, reason: &str) -> Vec<PeerFailure> {
        let tunneled = self.peers.iter().filter(|(_, path)| **path != PeerPath::Direct);
        tunneled.map(|(subnet, _)| PeerFailure::new(*subnet, reason)).collect()
    }
}

/// The objects that failed, by key.
#[derive(Debug, Default)]
pub(crate) struct FailedObjects<'a> {
    pub(crate) neighbours: BTreeMap<IpAddr, &'a ObjectFailure>,
    pub(crate) fdb: BTreeMap<Mac, &'a ObjectFailure>,
    pub(crate) routes: BTreeMap<IpNet, &'a ObjectFailure>,
    pub(crate) direct: BTreeMap<IpNet, &'a ObjectFailure>,
}

impl<'a> FailedObjects<'a> {
    fn is_empty(&self) -> bool {
        let Self { neighbours, fdb, routes, direct } = self;
        neighbours.is_empty() && fdb.is_empty() && routes.is_empty() && direct.is_empty()
    }

    /// Returns the first failure among a peer's objects.
    fn of_peer(&self, subnet: IpNet, path: PeerPath) -> Option<&'a ObjectFailure> {
        match path {
            PeerPath::Direct => self.direct.get(&subnet).copied(),
            PeerPath::Tunnel(mac) => self
                .fdb
                .get(&mac)
                .or_else(|| self.neighbours.get(&subnet.network()))
                .or_else(|| self.routes.get(&subnet))
                .copied(),
        }
    }
}

/// Finds the peers that need an object of a peer before them. Returns their positions with the reasons.
fn find_conflicts(peers: &[(SubnetKey, TunnelPeer)]) -> BTreeMap<usize, String> {
    let mut conflicts = BTreeMap::new();
    if !may_conflict(peers) {
        return conflicts;
    }
    let (mut subnets, mut gateways, mut devices) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    for (i, (_, peer)) in peers.iter().enumerate() {
        let (subnet, gateway) = (peer.subnet, peer.gateway());
        // A peer with a direct route needs neither neighbour nor FDB entry.
        let device = devices.get(&peer.mac).filter(|_| peer.next_hop.is_none());
        let has_gateway = peer.next_hop.is_none() && gateways.contains(&gateway);
        let reason = match device {
            _ if subnets.contains(&subnet) => format!("another peer has the subnet {subnet} too"),
            Some(other) => format!("the peer {other} has a device with the MAC address {} too", peer.mac),
            None if has_gateway => format!("the subnet of another peer starts at {gateway} too"),
            None => {
                subnets.insert(subnet);
                if peer.next_hop.is_none() {
                    gateways.insert(gateway);
                    devices.insert(peer.mac, peer.public);
                }
                continue;
            }
        };
        conflicts.insert(i, reason);
    }
    conflicts
}

/// Returns false if all devices and all first addresses differ. Sorting is much faster than looking up each peer among
/// those before it.
fn may_conflict(peers: &[(SubnetKey, TunnelPeer)]) -> bool {
    let mut devices: Vec<Mac> = peers.iter().map(|(_, peer)| peer.mac).collect();
    let mut gateways: Vec<IpAddr> = peers.iter().map(|(_, peer)| peer.gateway()).collect();
    devices.sort_unstable();
    gateways.sort_unstable();
    !(devices.is_sorted_by(|one, other| one < other) && gateways.is_sorted_by(|one, other| one < other))
}

#[cfg(test)]
mod tests;
