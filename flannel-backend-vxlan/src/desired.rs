//! What the kernel's tables should hold for a set of peers. Pure.
//!
//! A peer whose subnet is `10.5.3.0/24` and whose tunnel device has the address `M` at the public address `P` is
//! reached by three objects, looked up in this order by the kernel for a packet to `10.5.3.7`:
//!
//! 1. the route `10.5.3.0/24 via 10.5.3.0`: the packet goes to the peer's own address on the overlay;
//! 2. the neighbour `10.5.3.0 → M`: that address is the device `M`;
//! 3. the forwarding entry `M → P`: frames for `M` are wrapped and sent to `P`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use flannel_core::{BackendType, Dirty, Lease, ObjectFailure, PeerSet, SubnetKey};
use flannel_netlink::{Family, Mac};
use ipnet::IpNet;

use crate::attrs;
use crate::tables::OverlayRoute;

/// One peer in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its subnet.
    pub(crate) subnet: IpNet,
    /// The address of its tunnel device.
    pub(crate) mac: Mac,
    /// Where its tunnel ends.
    pub(crate) public: IpAddr,
}

impl Peer {
    /// Reads a lease; `None` if it has no subnet of this family.
    pub(crate) fn of(lease: &Lease, own: &SubnetKey, family: Family) -> Option<Result<Self, String>> {
        let subnet = lease.subnet.nets().find(|net| Family::of(net.addr()) == family)?;
        Some(Self::at(subnet, lease, own, family))
    }

    fn at(subnet: IpNet, lease: &Lease, own: &SubnetKey, family: Family) -> Result<Self, String> {
        let attrs = &lease.attrs;
        if attrs.backend_type != BackendType::VXLAN {
            return Err(format!("ignoring non-vxlan subnet({subnet}): type={}", attrs.backend_type));
        }
        if lease.subnet.overlaps(own) {
            return Err(format!("its subnet overlaps the own one, {own}"));
        }
        let (data, public) = match family {
            Family::V4 => (&attrs.backend_data, attrs.public.v4.map(IpAddr::V4)),
            Family::V6 => (&attrs.backend_v6_data, attrs.public.v6.map(IpAddr::V6)),
        };
        let public = public.ok_or("its lease has no public address of this family")?;
        let mac = attrs::read(data.as_ref()).map_err(|error| error.to_string())?;
        Ok(Self { subnet, mac, public })
    }

    /// The peer's own address on the overlay.
    pub(crate) fn gateway(&self) -> IpAddr {
        self.subnet.network()
    }
}

/// The objects that the tables should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Objects {
    pub(crate) neighbours: BTreeMap<IpAddr, Mac>,
    pub(crate) fdb: BTreeMap<Mac, IpAddr>,
    pub(crate) routes: BTreeMap<IpNet, OverlayRoute>,
}

/// The peers of one family, as the tables were last told of them.
#[derive(Debug, Default)]
pub(crate) struct Desired {
    peers: BTreeMap<SubnetKey, Peer>,
    unreachable: BTreeMap<SubnetKey, ObjectFailure>,
    /// Whether two peers want the same object, so that one peer's change may change what another one gets.
    contested: bool,
}

/// What the tables are to be told.
#[derive(Debug)]
pub(crate) enum Update {
    /// Exactly what [`Desired::all`] works out anew.
    Anew,
    /// Without the objects of these peers, then with the objects of those.
    Change {
        /// As they were.
        gone: Vec<Peer>,
        /// As they are.
        come: Vec<Peer>,
    },
}

impl Desired {
    /// Takes in the peers. Where only some changed, and no two want the same object, that costs work for these only.
    pub(crate) fn update(
        &mut self,
        peers: &PeerSet,
        dirty: &Dirty,
        own: &SubnetKey,
        family: Family,
    ) -> Update {
        let Dirty::Some(dirty) = dirty else {
            return Update::Anew;
        };
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        for subnet in dirty {
            gone.extend(self.peers.remove(subnet));
            self.unreachable.remove(subnet);
            let peer = peers.peer(subnet).and_then(|lease| self.take(lease, own, family));
            come.extend(peer);
        }
        if self.contested { Update::Anew } else { Update::Change { gone, come } }
    }

    /// Works out everything anew, as is due also where a peer that came wants what another one has.
    pub(crate) fn all(&mut self, peers: &PeerSet, own: &SubnetKey, family: Family) -> Objects {
        *self = Self::default();
        let mut objects = Objects::default();
        for lease in peers.iter() {
            let Some(peer) = self.take(lease, own, family) else {
                continue;
            };
            if let Some(reason) = objects.add(&peer) {
                self.contested = true;
                self.refuse(lease.subnet, reason);
            }
        }
        objects
    }

    fn take(&mut self, lease: &Lease, own: &SubnetKey, family: Family) -> Option<Peer> {
        match Peer::of(lease, own, family)? {
            Ok(peer) => {
                self.peers.insert(lease.subnet, peer);
                Some(peer)
            }
            Err(reason) => {
                self.refuse(lease.subnet, reason);
                None
            }
        }
    }

    fn refuse(&mut self, subnet: SubnetKey, reason: String) {
        self.unreachable.insert(subnet, ObjectFailure { object: format!("peer {subnet}"), reason });
    }

    /// Returns the number of peers that can be reached.
    pub(crate) fn len(&self) -> usize {
        self.peers.len()
    }

    /// Lists the peers that cannot be reached, and why.
    pub(crate) fn unreachable(&self) -> impl Iterator<Item = &ObjectFailure> {
        self.unreachable.values()
    }
}

impl Objects {
    /// Adds a peer; of two that want the same object the first in the order of their subnets gets it. Returns what
    /// is in the way.
    fn add(&mut self, peer: &Peer) -> Option<String> {
        if let Some(other) = self.fdb.get(&peer.mac) {
            return Some(format!("{} is the device of {other} already", peer.mac));
        }
        if self.neighbours.contains_key(&peer.gateway()) {
            return Some(format!("another peer's subnet starts at {} too", peer.gateway()));
        }
        let route = OverlayRoute::to(peer.subnet, self.routes.len());
        self.neighbours.insert(peer.gateway(), peer.mac);
        self.fdb.insert(peer.mac, peer.public);
        self.routes.insert(peer.subnet, route);
        None
    }
}

#[cfg(test)]
mod tests;
