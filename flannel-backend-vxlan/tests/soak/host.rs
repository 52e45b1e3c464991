//! The host of the soak test: its network, its kernel, and foreign objects.

use std::time::Duration;

use flannel_backend_vxlan::{OpenVxlan, RouteProtocol, external_interface};
use flannel_core::{NetworkOptions, Shutdown};
use flannel_netlink::{
    Address, FdbEntry, IpFamily, Link, Mac, Namespace, Neighbour, Netlink, NewLink, NewLinkKind, NewVxlan,
    Route, WriteRequest,
};
use flannel_registry::{MemoryRegistry, RegistryLeaseManager};
use flannel_testing::{DeviceState, INTERFACE, Lab, LabOptions, Member, OverlayState, eventually};
use ipnet::IpNet;

use crate::model::{Model, OWN, key};

/// Long enough for a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) const FAMILIES: [(IpFamily, &str); 2] =
    [(IpFamily::V4, "flannel.1"), (IpFamily::V6, "flannel-v6.1")];

/// The device of a foreign overlay.
const FOREIGN_DEVICE: &str = "vxlan77";

pub(crate) struct SoakHost {
    pub(crate) registry: MemoryRegistry,
    pub(crate) lab: Lab,
    netlink: Netlink,
    member: Option<Member>,
    /// The desired devices of both families.
    devices: Vec<OverlayState>,
    foreign: Vec<OverlayState>,
}

impl SoakHost {
    pub(crate) fn new(has_direct_routing: bool) -> Self {
        let lab = Lab::new(&LabOptions { hosts: 1, default_route: true, ..LabOptions::default() }).unwrap();
        let registry = MemoryRegistry::new();
        registry.set_config(format!(
            r#"{{"Network":"10.4.0.0/14","EnableIPv6":true,"IPv6Network":"fd10::/48",
                "Backend":{{"Type":"vxlan","DirectRouting":{has_direct_routing}}}}}"#
        ));
        let netlink = Netlink::open_in(&lab.hosts[0].namespace).unwrap();
        let member = Some(start(&lab.hosts[0].namespace, &registry));
        let mut host = Self { registry, lab, netlink, member, devices: Vec::new(), foreign: Vec::new() };
        let member = host.member.as_ref().unwrap();
        member.wait_for_peers(0, TIMEOUT).unwrap();
        assert_eq!(member.lease().unwrap().subnet, key(OWN));
        host.add_foreign_objects();
        host.devices = host.read(FAMILIES.map(|(_, device)| device));
        host.foreign = host.read_foreign();
        host
    }

    /// Stops the network, orderly or not, runs `meanwhile`, and starts the network again.
    pub(crate) fn restart(&mut self, orderly: bool, meanwhile: impl FnOnce()) -> &'static str {
        let member = self.member.take().unwrap();
        if orderly {
            member.stop(Shutdown::Keep).unwrap();
        } else {
            drop(member);
        }
        meanwhile();
        self.member = Some(start(&self.lab.hosts[0].namespace, &self.registry));
        if orderly { "restarted" } else { "killed and started" }
    }

    /// Waits until the kernel has exactly the desired objects and the network reports so.
    pub(crate) fn check(&mut self, model: &Model) {
        let external = self.netlink.link(INTERFACE).unwrap().unwrap().index;
        let devices: Vec<_> = self.devices.iter().map(|state| state.device.clone().unwrap()).collect();
        let rested = eventually(TIMEOUT, || {
            let there = self.read(FAMILIES.map(|(_, device)| device));
            let macs = self.published();
            let desired: Vec<_> = FAMILIES
                .iter()
                .zip(devices.iter().zip(macs))
                .map(|((family, _), (device, mac))| {
                    model.desired(*family, external, DeviceState { mac: Some(mac), ..device.clone() })
                })
                .collect();
            let status = self.member.as_ref().unwrap().summary();
            let is_reported =
                status.ready && status.kernel.failed.is_empty() && status.peers.known == model.len();
            if there == desired && is_reported {
                return Ok(());
            }
            let differences =
                there.iter().zip(&desired).flat_map(|(there, desired)| there.differences(desired));
            let differences: Vec<_> = differences.take(40).collect();
            Err(format!("{differences:#?}, {:?}, {} peers", status.kernel.failed, status.peers.known))
        });
        if let Err(error) = rested {
            let ended = self.member.take().unwrap().stop(Shutdown::Keep);
            panic!("{error}\nthe network ended with {ended:?}");
        }
        let foreign = self.read_foreign();
        for (there, before) in foreign.iter().zip(&self.foreign) {
            assert_eq!(there.differences(before), [] as [&str; 0], "foreign objects are unchanged");
        }
    }

    /// Returns the MAC addresses in the own lease. A change while the network was down is kept.
    fn published(&self) -> [Mac; 2] {
        let Some(lease) = self.member.as_ref().unwrap().lease() else { return [Mac([0; 6]); 2] };
        [lease.attrs.backend_data, lease.attrs.backend_v6_data].map(|data| {
            let data = data.unwrap();
            data.as_str().split('"').nth_back(1).unwrap().parse().unwrap()
        })
    }

    /// Reads the overlay of both families, with its direct routes.
    fn read(&mut self, devices: [&str; 2]) -> Vec<OverlayState> {
        let mut read = |family, device: &str| {
            OverlayState::read(&mut self.netlink, device, family, is_direct).unwrap_or_default()
        };
        vec![read(IpFamily::V4, devices[0]), read(IpFamily::V6, devices[1])]
    }

    /// Reads the foreign overlay.
    fn read_foreign(&mut self) -> Vec<OverlayState> {
        let mut read =
            |family| OverlayState::read(&mut self.netlink, FOREIGN_DEVICE, family, |_| false).unwrap();
        vec![read(IpFamily::V4), read(IpFamily::V6)]
    }

    /// Adds a foreign overlay whose routes have our protocol number.
    fn add_foreign_objects(&mut self) {
        let vxlan = NewVxlan { vni: 77, port: Some(8472), ..NewVxlan::default() };
        let link = NewLink { up: true, ..NewLink::new(FOREIGN_DEVICE, NewLinkKind::Vxlan(vxlan)) };
        self.netlink.create_link(&link).unwrap();
        let Link { index, .. } = self.netlink.link(FOREIGN_DEVICE).unwrap().unwrap();
        let mac = |n: u8| Mac([0x0e, 0x77, 0, 0, 0, n]);
        let mut writes = vec![WriteRequest::PutAddress(Address::new(index, "10.77.0.0/32".parse().unwrap()))];
        for n in 1..=3_u8 {
            let subnet: IpNet = format!("10.77.{n}.0/24").parse().unwrap();
            let subnet6: IpNet = format!("fd77:0:0:{n}::/64").parse().unwrap();
            writes.push(WriteRequest::PutNeighbour(Neighbour::permanent(index, subnet.network(), mac(n))));
            writes.push(WriteRequest::PutFdb(FdbEntry::permanent(index, mac(n), [172, 30, 0, n].into())));
            for subnet in [subnet, subnet6] {
                let route = Route::onlink(subnet, subnet.network(), index);
                writes.push(WriteRequest::PutRoute(Route {
                    protocol: RouteProtocol::default().number(),
                    ..route
                }));
            }
        }
        self.netlink.apply(&writes).into_iter().for_each(Result::unwrap);
    }
}

/// Returns true if a route is a direct route of ours.
pub(crate) fn is_direct(route: &Route) -> bool {
    let networks = ["10.4.0.0/14", "fd10::/48"].map(|net| net.parse::<IpNet>().unwrap());
    route.protocol == RouteProtocol::default().number()
        && networks.iter().any(|network| network.contains(&route.destination))
}

fn start(namespace: &Namespace, registry: &MemoryRegistry) -> Member {
    let external = external_interface(namespace, INTERFACE).unwrap();
    let mut options = NetworkOptions::new(
        RegistryLeaseManager::new(registry.clone()),
        OpenVxlan::new(namespace.clone()),
        external,
    );
    // No damping, since many peers leave at once; no audit, so that a missed notification shows.
    options.damping.hold = Duration::ZERO;
    options.audit_every = Duration::from_secs(3600);
    options.previous = Some(key(OWN));
    Member::start(options).unwrap()
}
