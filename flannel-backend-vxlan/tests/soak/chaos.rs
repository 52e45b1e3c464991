//! Chaos: random changes of the overlay's kernel objects, as other programs could make them.

use flannel_netlink::{
    Address, Error, FdbEntry, IpFamily, LinkChange, Mac, Namespace, Neighbour, Netlink, NewLink, NewLinkKind,
    NewVxlan, Route, RouteFilter, WriteRequest,
};
use flannel_testing::INTERFACE;
use ipnet::IpNet;

use crate::host::{FAMILIES, SoakHost, is_direct};
use crate::model::{Model, OWN, SUBNETS, net};

/// More changes than the monitor's buffer has room for.
const BURST: u32 = 30_000;

pub(crate) struct Chaos {
    netlink: Netlink,
    namespace: Namespace,
}

/// The target of one change.
struct Target {
    device: &'static str,
    family: IpFamily,
    index: u32,
    /// A peer's subnet, or a free one.
    subnet: IpNet,
    mac: Mac,
    foreign_mac: Mac,
}

impl Chaos {
    pub(crate) fn new(host: &SoakHost) -> Self {
        let namespace = host.lab.hosts[0].namespace.clone();
        Self { netlink: Netlink::open_in(&namespace).unwrap(), namespace }
    }

    /// Makes one change. If its target is missing, nothing happens.
    pub(crate) fn act(&mut self, random: &mut fastrand::Rng, model: &Model) -> &'static str {
        let act = random.u8(..100);
        // Drawn in any case, so that the sequence doesn't depend on the kernel.
        let (family, device) = FAMILIES[usize::from(random.bool())];
        let free = random.u16(SUBNETS..1024);
        let foreign_mac = Mac([0x0e, 0x66, 0, 0, 0, random.u8(..)]);
        let peer = model
            .any(random)
            .map(|(subnet, peer)| (subnet, if family == IpFamily::V4 { peer.mac } else { peer.mac6 }));
        let (subnet, mac) = peer.unwrap_or((free, foreign_mac));
        let index = self.netlink.link(device).ok().flatten().map_or(0, |link| link.index);
        let target = Target { device, family, index, subnet: net(subnet, family), mac, foreign_mac };
        let own = net(OWN, family);
        if index == 0 && act < 98 {
            // The kernel takes index 0 for all devices.
            return "nothing: no device";
        }
        match act {
            0..36 => self.change_object(act, &target, net(free, family)),
            36..54 => self.empty_table(act, &target),
            54..66 => self.change_address(act, &target, own, net(free, family)),
            66..98 => self.change_link_state(act, &target),
            _ => self.burst(),
        }
    }

    fn change_object(&mut self, act: u8, target: &Target, free: IpNet) -> &'static str {
        let Target { index, subnet, mac, foreign_mac, family, .. } = *target;
        let far: std::net::IpAddr =
            if family == IpFamily::V4 { [172, 31, 0, 66].into() } else { "fd99::66".parse().unwrap() };
        let gateway = subnet.network();
        let (what, write) = match act {
            0..4 => (
                "route deleted",
                WriteRequest::DeleteRoute(Route { metric: None, ..Route::onlink(subnet, gateway, index) }),
            ),
            4..7 => ("route changed", WriteRequest::PutRoute(Route::onlink(subnet, free.network(), index))),
            7..10 => {
                ("foreign route added", WriteRequest::PutRoute(Route::onlink(free, free.network(), index)))
            }
            10..12 => (
                "second route added",
                WriteRequest::PutRoute(Route::onlink(subnet, gateway, index).with_metric(77)),
            ),
            12..16 => (
                "neighbour deleted",
                WriteRequest::DeleteNeighbour(Neighbour::permanent(index, gateway, mac)),
            ),
            16..19 => (
                "neighbour changed",
                WriteRequest::PutNeighbour(Neighbour::permanent(index, gateway, foreign_mac)),
            ),
            19..22 => (
                "foreign neighbour added",
                WriteRequest::PutNeighbour(Neighbour::permanent(index, free.network(), foreign_mac)),
            ),
            22..26 => ("FDB entry deleted", self.delete_entry(index, mac, far)),
            26..30 => ("FDB entry changed", WriteRequest::PutFdb(FdbEntry::permanent(index, mac, far))),
            _ => (
                "foreign FDB entry added",
                WriteRequest::PutFdb(FdbEntry::permanent(index, foreign_mac, far)),
            ),
        };
        self.write(vec![write]);
        what
    }

    /// Returns the deletion of an FDB entry, which must name all its attributes.
    fn delete_entry(&mut self, index: u32, mac: Mac, otherwise: std::net::IpAddr) -> WriteRequest {
        let entries = self.netlink.fdb(index).unwrap_or_default();
        let entry = entries.into_iter().find(|entry| entry.mac == mac);
        WriteRequest::DeleteFdb(entry.unwrap_or_else(|| FdbEntry::permanent(index, mac, otherwise)))
    }

    fn empty_table(&mut self, act: u8, target: &Target) -> &'static str {
        let Target { index, family, .. } = *target;
        let filter =
            RouteFilter { family: Some(family), table: Some(Route::MAIN_TABLE), ..RouteFilter::default() };
        let routes = self.netlink.routes(&filter).unwrap_or_default().into_iter();
        let routes = routes.filter(|route| route.protocol != Route::PROTOCOL_KERNEL);
        let (what, writes): (_, Vec<_>) = match act {
            36..41 => {
                let ours = routes.filter(|route| route.index == Some(index));
                ("overlay routes deleted", ours.map(WriteRequest::DeleteRoute).collect())
            }
            41..46 => {
                ("direct routes deleted", routes.filter(is_direct).map(WriteRequest::DeleteRoute).collect())
            }
            46..50 => {
                let neighbours = self.netlink.neighbours(index, Some(family)).unwrap_or_default();
                ("neighbours deleted", neighbours.into_iter().map(WriteRequest::DeleteNeighbour).collect())
            }
            _ => {
                let entries = self.netlink.fdb(index).unwrap_or_default();
                ("FDB emptied", entries.into_iter().map(WriteRequest::DeleteFdb).collect())
            }
        };
        self.write(writes);
        what
    }

    fn change_address(&mut self, act: u8, target: &Target, own: IpNet, free: IpNet) -> &'static str {
        let address = |net: IpNet| Address {
            flags: Address::NO_DAD,
            ..Address::new(target.index, IpNet::from(net.network()))
        };
        let (what, write) = match act {
            54..60 => ("address deleted", WriteRequest::DeleteAddress(address(own))),
            _ => ("second address added", WriteRequest::PutAddress(address(free))),
        };
        self.write(vec![write]);
        what
    }

    fn change_link_state(&mut self, act: u8, target: &Target) -> &'static str {
        let Target { index, device, foreign_mac, .. } = *target;
        let same = LinkChange::default;
        match act {
            66..71 => {
                self.change(index, &LinkChange { up: Some(false), ..same() });
                "device down"
            }
            71..76 => {
                self.change(index, &LinkChange { up: Some(false), ..same() });
                self.change(index, &LinkChange { up: Some(true), ..same() });
                "device down and up"
            }
            76..79 => {
                self.change(index, &LinkChange { mtu: Some(1300), ..same() });
                "MTU changed"
            }
            79..82 => {
                self.change(index, &LinkChange { mac: Some(foreign_mac), ..same() });
                "MAC address changed"
            }
            82..84 => {
                self.change(index, &LinkChange { txqlen: Some(500), ..same() });
                "queue length changed"
            }
            84..88 => {
                drop(self.netlink.delete_link(index));
                "device deleted"
            }
            88..90 => {
                drop(self.netlink.delete_link(index));
                drop(
                    self.netlink
                        .create_link(&NewLink { up: true, ..NewLink::new(device, NewLinkKind::Bridge) }),
                );
                "device replaced by a bridge"
            }
            90..92 => {
                drop(self.netlink.delete_link(index));
                let vxlan = NewVxlan { vni: 9, port: Some(4789), ..NewVxlan::default() };
                drop(self.netlink.create_link(&NewLink::new(device, NewLinkKind::Vxlan(vxlan))));
                "device replaced by another tunnel"
            }
            _ => self.bounce(),
        }
    }

    /// Sets the external interface down and up, and restores the IPv6 addresses that it loses.
    fn bounce(&mut self) -> &'static str {
        let index = self.netlink.link(INTERFACE).unwrap().unwrap().index;
        let addresses = self.netlink.addresses(index).unwrap().into_iter();
        let lost = addresses.filter(|address| address.scope == 0 && address.net.addr().is_ipv6());
        let again =
            lost.map(|address| Address { flags: Address::NO_DAD, ..Address::new(index, address.net) });
        let writes = again.map(WriteRequest::PutAddress).collect();
        for up in [false, true] {
            self.change(index, &LinkChange { up: Some(up), ..LinkChange::default() });
        }
        self.write(writes);
        "external interface down and up"
    }

    /// Changes so many unrelated objects that notifications are lost.
    fn burst(&mut self) -> &'static str {
        let mut netlink = Netlink::open_in(&self.namespace).unwrap();
        let index = netlink.link("lo").unwrap().unwrap().index;
        let route = Route::attached("10.200.0.0/24".parse().unwrap(), index);
        let burst: Vec<_> = (0..BURST)
            .map(|n| {
                let route = route.clone().with_metric(1 + n / 2);
                if n % 2 == 0 { WriteRequest::PutRoute(route) } else { WriteRequest::DeleteRoute(route) }
            })
            .collect();
        netlink.apply(&burst).into_iter().for_each(Result::unwrap);
        "burst of notifications"
    }

    fn write(&mut self, writes: Vec<WriteRequest>) {
        self.netlink.apply(&writes).into_iter().for_each(ignore_missing_target);
    }

    fn change(&mut self, index: u32, change: &LinkChange) {
        ignore_missing_target(self.netlink.change_link(index, change));
    }
}

/// The target may be gone, down, or of another kind.
fn ignore_missing_target(result: Result<(), Error>) {
    if let Err(error) = result {
        tracing::trace!(%error, "change failed");
    }
}
