//! What the kernel's tables should hold for a set of peers. Pure.
//!
//! A peer whose subnet is `10.5.3.0/24` and whose tunnel device has the address `M` at the public address `P` is
//! reached by three objects, looked up in this order by the kernel for a packet to `10.5.3.7`:
//!
//! 1. the route `10.5.3.0/24 via 10.5.3.0`: the packet goes to the peer's own address on the overlay;
//! 2. the neighbour `10.5.3.0 → M`: that address is the device `M`;
//! 3. the forwarding entry `M → P`: frames for `M` are wrapped and sent to `P`.
//!
//! A peer on the same link may be reached without the tunnel. Then there is one object only, the direct route
//! `10.5.3.0/24 via P`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flannel_core::reconcile::Tracker;
use flannel_core::{BackendType, Dirty, Lease, ObjectFailure, PeerFailure, PeerSet, SubnetKey};
use flannel_netlink::{IpFamily, Mac, Route};
use ipnet::IpNet;

use crate::attrs;
use flannel_dataplane::Hop;
use flannel_dataplane::OverlayRoute;

/// One peer in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its subnet.
    pub(crate) subnet: IpNet,
    /// The address of its tunnel device.
    pub(crate) mac: Mac,
    /// Where its tunnel ends.
    pub(crate) public: IpAddr,
    /// The way to it without the tunnel, if it is to be reached so.
    pub(crate) hop: Option<Hop>,
}

impl Peer {
    /// Reads a lease; `None` if it has no subnet of this family.
    pub(crate) fn of(lease: &Lease, own: &SubnetKey, family: IpFamily) -> Option<Result<Self, String>> {
        Some(Self::at(net(&lease.subnet, family)?, lease, own, family))
    }

    fn at(subnet: IpNet, lease: &Lease, own: &SubnetKey, family: IpFamily) -> Result<Self, String> {
        let attrs = &lease.attrs;
        if attrs.backend_type != BackendType::VXLAN {
            return Err(format!("ignoring non-vxlan subnet({subnet}): type={}", attrs.backend_type));
        }
        if lease.subnet.overlaps(own) {
            return Err(format!("its subnet overlaps the own one, {own}"));
        }
        let (data, public) = match family {
            IpFamily::V4 => (&attrs.backend_data, attrs.public.v4.map(IpAddr::V4)),
            IpFamily::V6 => (&attrs.backend_v6_data, attrs.public.v6.map(IpAddr::V6)),
        };
        let public = public.ok_or("its lease has no public address of this family")?;
        let mac = attrs::read(data.as_ref()).map_err(|error| error.to_string())?;
        Ok(Self { subnet, mac, public, hop: None })
    }

    /// The peer's own address on the overlay.
    pub(crate) fn gateway(&self) -> IpAddr {
        self.subnet.network()
    }
}

/// The subnet of one family.
fn net(subnet: &SubnetKey, family: IpFamily) -> Option<IpNet> {
    subnet.nets().find(|net| IpFamily::of(net.addr()) == family)
}

/// The objects that the tables should hold.
#[derive(Debug, Default)]
struct Objects {
    neighbours: Vec<(IpAddr, Mac)>,
    fdb: Vec<(Mac, IpAddr)>,
    routes: Vec<(IpNet, OverlayRoute)>,
    direct: Vec<(IpNet, Route)>,
}

/// The peers of one family, as the tables were last told of them.
#[derive(Debug, Default)]
pub(crate) struct Desired {
    /// The host's own subnet, which no peer may have.
    own: Option<SubnetKey>,
    peers: BTreeMap<SubnetKey, Reached>,
    unreachable: BTreeMap<SubnetKey, PeerFailure>,
    /// Whether two peers want the same object, so that one peer's change may change what another one gets.
    contested: bool,
}

/// How a peer is reached: what must be known of it when it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    /// Through the tunnel, to this device.
    Tunnel(Mac),
    /// By a direct route.
    Direct,
}

impl From<&Peer> for Reached {
    fn from(peer: &Peer) -> Self {
        if peer.hop.is_some() { Self::Direct } else { Self::Tunnel(peer.mac) }
    }
}

/// Who is asked, and where the tables are told what they should hold.
pub(crate) struct Wanted<'a> {
    /// Finds the way to a subnet behind a public address without the tunnel.
    pub(crate) hop: &'a mut dyn FnMut(IpNet, IpAddr) -> Option<Hop>,
    pub(crate) direct: &'a mut Tracker<IpNet, Route>,
    pub(crate) neighbours: &'a mut Tracker<IpAddr, Mac>,
    pub(crate) fdb: &'a mut Tracker<Mac, IpAddr>,
    pub(crate) routes: &'a mut Tracker<IpNet, OverlayRoute>,
}

impl Wanted<'_> {
    fn want(&mut self, peer: &Peer, others: usize) {
        if let Some(hop) = peer.hop {
            return self.direct.set_desired(peer.subnet, hop.route(peer.subnet, others));
        }
        self.neighbours.set_desired(peer.gateway(), peer.mac);
        self.fdb.set_desired(peer.mac, peer.public);
        self.routes.set_desired(peer.subnet, OverlayRoute::to(peer.subnet, others));
    }

    fn forget(&mut self, subnet: IpNet, reached: Reached) {
        match reached {
            Reached::Direct => self.direct.unset_desired(&subnet),
            Reached::Tunnel(mac) => {
                self.neighbours.unset_desired(&subnet.network());
                self.fdb.unset_desired(&mac);
                self.routes.unset_desired(&subnet);
            }
        }
    }

    fn set_all_desired(&mut self, objects: Objects) {
        self.neighbours.set_all_desired(objects.neighbours);
        self.fdb.set_all_desired(objects.fdb);
        self.routes.set_all_desired(objects.routes);
        self.direct.set_all_desired(objects.direct);
    }

    /// Tells whether another peer has what this one wants.
    fn is_taken(&self, peer: &Peer) -> bool {
        let subnet =
            self.routes.desired(&peer.subnet).is_some() || self.direct.desired(&peer.subnet).is_some();
        let tunnel =
            || self.fdb.desired(&peer.mac).is_some() || self.neighbours.desired(&peer.gateway()).is_some();
        subnet || (peer.hop.is_none() && tunnel())
    }
}

impl Desired {
    /// Takes in the peers. Where only some changed, and no two want the same object, that costs work for these only.
    pub(crate) fn update(
        &mut self,
        peers: &PeerSet,
        dirty: &Dirty,
        own: &SubnetKey,
        family: IpFamily,
        wanted: &mut Wanted<'_>,
    ) {
        let done = match dirty {
            Dirty::Some(dirty) if self.own == Some(*own) && !self.contested => {
                self.change(peers, dirty, own, family, wanted)
            }
            Dirty::Some(_) | Dirty::All => false,
        };
        if !done {
            let objects = self.all(peers, own, family, wanted.hop);
            wanted.set_all_desired(objects);
        }
    }

    /// Takes in some peers, unless one of them wants what another one has.
    fn change(
        &mut self,
        peers: &PeerSet,
        dirty: &BTreeSet<SubnetKey>,
        own: &SubnetKey,
        family: IpFamily,
        wanted: &mut Wanted<'_>,
    ) -> bool {
        for subnet in dirty {
            self.unreachable.remove(subnet);
            if let Some(reached) = self.peers.remove(subnet)
                && let Some(net) = net(subnet, family)
            {
                wanted.forget(net, reached);
            }
        }
        for lease in dirty.iter().filter_map(|subnet| peers.peer(subnet)) {
            let Some(peer) = self.take(lease, own, family, wanted.hop) else {
                continue;
            };
            if wanted.is_taken(&peer) {
                return false;
            }
            wanted.want(&peer, self.peers.len());
            self.peers.insert(lease.subnet, Reached::from(&peer));
        }
        true
    }

    /// Works out everything anew; of two peers that want the same, the first in the order of their subnets gets it.
    fn all(
        &mut self,
        peers: &PeerSet,
        own: &SubnetKey,
        family: IpFamily,
        hop: &mut dyn FnMut(IpNet, IpAddr) -> Option<Hop>,
    ) -> Objects {
        *self = Self { own: Some(*own), ..Self::default() };
        let mut taken = Vec::with_capacity(peers.len());
        for lease in peers.iter() {
            taken.extend(self.take(lease, own, family, hop).map(|peer| (lease.subnet, peer)));
        }
        let refused = conflicts(&taken);
        self.contested = !refused.is_empty();
        let mut position = 0..;
        taken.retain(|(subnet, _)| {
            let reason = position.next().and_then(|i| refused.get(&i));
            reason.map(|reason| self.refuse(*subnet, reason.clone())).is_none()
        });
        let objects = Objects::of(&taken);
        // They are in order, and lie more closely than if they were added one by one.
        self.peers = taken.iter().map(|(subnet, peer)| (*subnet, Reached::from(peer))).collect();
        objects
    }

    /// Reads what a lease says, and finds the way to its host.
    fn take(
        &mut self,
        lease: &Lease,
        own: &SubnetKey,
        family: IpFamily,
        hop: &mut dyn FnMut(IpNet, IpAddr) -> Option<Hop>,
    ) -> Option<Peer> {
        match Peer::of(lease, own, family)? {
            Ok(peer) => Some(Peer { hop: hop(peer.subnet, peer.public), ..peer }),
            Err(reason) => {
                self.refuse(lease.subnet, reason);
                None
            }
        }
    }

    fn refuse(&mut self, subnet: SubnetKey, reason: String) {
        self.unreachable.insert(subnet, PeerFailure::new(subnet, reason));
    }

    /// Lists the peers that cannot be reached, and why.
    pub(crate) fn unreachable(&self) -> impl Iterator<Item = &PeerFailure> {
        self.unreachable.values()
    }

    /// Lists the peers that something is missing for, which is among the objects that failed. Costs a look at all peers
    /// if there is any.
    pub(crate) fn pending(&self, family: IpFamily, failed: &Failed<'_>) -> Vec<PeerFailure> {
        if failed.is_empty() {
            return Vec::new();
        }
        let pending = |(subnet, reached): (&SubnetKey, &Reached)| {
            let failure = failed.of(net(subnet, family)?, *reached)?;
            Some(PeerFailure::new(*subnet, format!("{}: {}", failure.object, failure.reason)))
        };
        self.peers.iter().filter_map(pending).collect()
    }

    /// Lists the peers that are reached through the tunnel, when it is not there.
    pub(crate) fn cut_off(&self, reason: &str) -> Vec<PeerFailure> {
        let tunneled = self.peers.iter().filter(|(_, reached)| **reached != Reached::Direct);
        tunneled.map(|(subnet, _)| PeerFailure::new(*subnet, reason)).collect()
    }
}

/// The objects that failed, by their keys.
#[derive(Debug, Default)]
pub(crate) struct Failed<'a> {
    pub(crate) neighbours: BTreeMap<IpAddr, &'a ObjectFailure>,
    pub(crate) fdb: BTreeMap<Mac, &'a ObjectFailure>,
    pub(crate) routes: BTreeMap<IpNet, &'a ObjectFailure>,
    pub(crate) direct: BTreeMap<IpNet, &'a ObjectFailure>,
}

impl<'a> Failed<'a> {
    fn is_empty(&self) -> bool {
        let Self { neighbours, fdb, routes, direct } = self;
        neighbours.is_empty() && fdb.is_empty() && routes.is_empty() && direct.is_empty()
    }

    /// The first one that leads to a peer.
    fn of(&self, subnet: IpNet, reached: Reached) -> Option<&'a ObjectFailure> {
        match reached {
            Reached::Direct => self.direct.get(&subnet).copied(),
            Reached::Tunnel(mac) => self
                .fdb
                .get(&mac)
                .or_else(|| self.neighbours.get(&subnet.network()))
                .or_else(|| self.routes.get(&subnet))
                .copied(),
        }
    }
}

impl Objects {
    /// Puts together what leads to peers of whom no two want the same object.
    fn of(peers: &[(SubnetKey, Peer)]) -> Self {
        let mut objects = Self::default();
        for (others, (_, peer)) in peers.iter().enumerate() {
            if let Some(hop) = peer.hop {
                objects.direct.push((peer.subnet, hop.route(peer.subnet, others)));
                continue;
            }
            objects.neighbours.push((peer.gateway(), peer.mac));
            objects.fdb.push((peer.mac, peer.public));
            objects.routes.push((peer.subnet, OverlayRoute::to(peer.subnet, others)));
        }
        objects
    }
}

/// Finds the peers that want what one before them gets, by their positions, and says what that is.
fn conflicts(peers: &[(SubnetKey, Peer)]) -> BTreeMap<usize, String> {
    let mut refused = BTreeMap::new();
    if !may_conflict(peers) {
        return refused;
    }
    let (mut subnets, mut gateways, mut devices) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    for (i, (_, peer)) in peers.iter().enumerate() {
        let (subnet, gateway) = (peer.subnet, peer.gateway());
        // A peer that is reached directly needs neither.
        let device = devices.get(&peer.mac).filter(|_| peer.hop.is_none());
        let has_gateway = peer.hop.is_none() && gateways.contains(&gateway);
        let reason = match device {
            _ if subnets.contains(&subnet) => format!("another peer has the subnet {subnet} too"),
            Some(other) => format!("{} is the device of {other} already", peer.mac),
            None if has_gateway => format!("another peer's subnet starts at {gateway} too"),
            None => {
                subnets.insert(subnet);
                if peer.hop.is_none() {
                    gateways.insert(gateway);
                    devices.insert(peer.mac, peer.public);
                }
                continue;
            }
        };
        refused.insert(i, reason);
    }
    refused
}

/// Tells whether two peers have the same device, or subnets that begin at the same address. To sort them is much faster
/// than to look each one up among those before it.
fn may_conflict(peers: &[(SubnetKey, Peer)]) -> bool {
    let mut devices: Vec<Mac> = peers.iter().map(|(_, peer)| peer.mac).collect();
    let mut gateways: Vec<IpAddr> = peers.iter().map(|(_, peer)| peer.gateway()).collect();
    devices.sort_unstable();
    gateways.sort_unstable();
    !(devices.is_sorted_by(|one, other| one < other) && gateways.is_sorted_by(|one, other| one < other))
}

#[cfg(test)]
mod tests;
