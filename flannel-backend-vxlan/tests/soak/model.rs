//! The peers of the soak test, and the kernel objects that they need.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_backend_vxlan::RouteProtocol;
use flannel_core::{BackendAttrs, BackendType, Json, PublicAddrs, SubnetKey};
use flannel_netlink::{IpFamily, Mac, Route};
use flannel_registry::MemoryRegistry;
use flannel_testing::{DeviceState, OverlayState};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The largest number of peers: more than have routes without a metric.
const MAX_PEERS: usize = 330;
/// The smallest number of peers.
const MIN_PEERS: usize = 10;

/// The number of subnets, from 10.4.0.0/24 and fd10::/64.
pub(crate) const SUBNETS: u16 = 1000;
/// The number of the host's own subnet.
pub(crate) const OWN: u16 = 1;

#[derive(Clone, Debug)]
pub(crate) struct SoakPeer {
    pub(crate) mac: Mac,
    pub(crate) mac6: Mac,
    /// The last part of its public addresses, and whether they are on the host's link.
    location: (u16, bool),
}

pub(crate) struct Model {
    has_direct_routing: bool,
    peers: BTreeMap<u16, SoakPeer>,
    /// The number of MAC addresses used so far; none is used twice.
    macs: u32,
}

impl Model {
    pub(crate) fn new(has_direct_routing: bool) -> Self {
        Self { has_direct_routing, peers: BTreeMap::new(), macs: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.peers.len()
    }

    /// Returns a random peer.
    pub(crate) fn any(&self, random: &mut fastrand::Rng) -> Option<(u16, &SoakPeer)> {
        let n = random.usize(..self.len().max(1));
        self.peers.iter().nth(n).map(|(subnet, peer)| (*subnet, peer))
    }

    /// Makes a peer join, change or leave.
    pub(crate) fn change(&mut self, random: &mut fastrand::Rng, registry: &MemoryRegistry) -> &'static str {
        let subnet = match self.any(random) {
            Some((subnet, _)) if self.len() > MIN_PEERS => subnet,
            Some(_) | None => return self.join(random, registry),
        };
        let mut peer = self.peers[&subnet].clone();
        let event = match random.u8(..10) {
            0..3 if self.len() < MAX_PEERS => return self.join(random, registry),
            0..5 => {
                self.peers.remove(&subnet);
                registry.remove_raw(&key(subnet).to_string());
                return "peer left";
            }
            5 => {
                (peer.mac, peer.mac6) = self.new_macs();
                "peer device replaced"
            }
            6 => {
                peer.location = location(random);
                "peer address changed"
            }
            7 => {
                (peer.mac, peer.mac6) = self.new_macs();
                peer.location = location(random);
                "peer host replaced"
            }
            8 => {
                self.peers.remove(&subnet);
                registry.remove_raw(&key(subnet).to_string());
                let free = self.free(random);
                write(registry, free, &peer);
                self.peers.insert(free, peer);
                return "peer subnet changed";
            }
            _ => "peer lease renewed",
        };
        write(registry, subnet, &peer);
        self.peers.insert(subnet, peer);
        event
    }

    fn join(&mut self, random: &mut fastrand::Rng, registry: &MemoryRegistry) -> &'static str {
        let (mac, mac6) = self.new_macs();
        let peer = SoakPeer { mac, mac6, location: location(random) };
        let subnet = self.free(random);
        write(registry, subnet, &peer);
        self.peers.insert(subnet, peer);
        "peer joined"
    }

    fn free(&self, random: &mut fastrand::Rng) -> u16 {
        let mut any = || random.u16(..SUBNETS);
        let is_free = |n: &u16| *n != OWN && !self.peers.contains_key(n);
        std::iter::repeat_with(&mut any).find(is_free).unwrap()
    }

    fn new_macs(&mut self) -> (Mac, Mac) {
        self.macs += 1;
        let [_, a, b, c] = self.macs.to_be_bytes();
        (Mac([0x0e, 4, 0, a, b, c]), Mac([0x0e, 6, 0, a, b, c]))
    }

    /// Returns the desired objects of one family.
    pub(crate) fn desired(&self, family: IpFamily, external: u32, device: DeviceState) -> OverlayState {
        let own = net(OWN, family).network();
        let mut desired = OverlayState {
            device: Some(device),
            addresses: [IpNet::from(own)].into(),
            ..OverlayState::default()
        };
        for (subnet, peer) in &self.peers {
            let (net, public) = (net(*subnet, family), peer.public(family));
            if self.has_direct_routing && peer.location.1 {
                let protocol = RouteProtocol::default().number();
                let route = Route { protocol, index: Some(external), ..Route::by_gateway(net, public) };
                desired.routes.push(route);
            } else {
                let mac = if family == IpFamily::V4 { peer.mac } else { peer.mac6 };
                desired.neighbours.insert((net.network(), mac));
                desired.fdb.insert((mac, public));
                let route = Route { onlink: true, ..Route::by_gateway(net, net.network()) };
                desired.routes.push(route);
            }
        }
        desired.routes.sort_by_key(|route| (route.destination, route.gateway, route.index));
        desired
    }
}

impl SoakPeer {
    fn public(&self, family: IpFamily) -> IpAddr {
        let (n, is_near) = self.location;
        match (family, is_near) {
            (IpFamily::V4, true) => Ipv4Addr::new(192, 168, 64, 2 + (n % 250) as u8).into(),
            (IpFamily::V4, false) => {
                Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 1)) + u32::from(n)).into()
            }
            (IpFamily::V6, true) => Ipv6Addr::new(0xfd00, 0x64, 0, 0, 0, 0, 1, n).into(),
            (IpFamily::V6, false) => Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 1, n).into(),
        }
    }

    fn record(&self) -> String {
        let data = |mac| Json::parse(&format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)).ok();
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (self.public(IpFamily::V4), self.public(IpFamily::V6)) else {
            panic!("each family has its address");
        };
        let attrs =
            BackendAttrs::new(BackendType::VXLAN).with_data(data(self.mac)).with_v6_data(data(self.mac6));
        attrs.at(PublicAddrs { v4: Some(v4), v6: Some(v6) }).to_record()
    }
}

fn location(random: &mut fastrand::Rng) -> (u16, bool) {
    (random.u16(1..60_000), random.bool())
}

fn write(registry: &MemoryRegistry, subnet: u16, peer: &SoakPeer) {
    registry.put_raw(&key(subnet).to_string(), peer.record().as_bytes());
}

pub(crate) fn key(n: u16) -> SubnetKey {
    let (IpNet::V4(v4), IpNet::V6(v6)) = (net(n, IpFamily::V4), net(n, IpFamily::V6)) else {
        panic!("each family has its subnet");
    };
    SubnetKey::new(Some(v4), Some(v6)).unwrap()
}

pub(crate) fn net(n: u16, family: IpFamily) -> IpNet {
    let start = u32::from(Ipv4Addr::new(10, 4, 0, 0)) + (u32::from(n) << 8);
    match family {
        IpFamily::V4 => Ipv4Net::new(start.into(), 24).unwrap().into(),
        IpFamily::V6 => Ipv6Net::new(Ipv6Addr::new(0xfd10, 0, 0, n, 0, 0, 0, 0), 64).unwrap().into(),
    }
}
