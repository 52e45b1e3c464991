//! Somebody who changes by hand whatever can be changed of the overlay.

use flannel_netlink::{
    Address, Error, FdbEntry, IpFamily, LinkChange, Mac, Namespace, Neighbour, Netlink, NewLink, NewLinkKind,
    NewVxlan, Route, RouteFilter, WriteRequest,
};
use flannel_testing::INTERFACE;
use ipnet::IpNet;

use crate::model::{Model, OWN, SUBNETS, net};
use crate::site::{FAMILIES, Site, is_direct};

/// More changes than the monitor's buffer holds notifications of.
const STORM: u32 = 30_000;

pub(crate) struct Vandal {
    netlink: Netlink,
    namespace: Namespace,
}

/// What one act is about.
struct Target {
    device: &'static str,
    family: IpFamily,
    index: u32,
    /// A peer's subnet, or one that nobody has.
    subnet: IpNet,
    mac: Mac,
    stranger: Mac,
}

impl Vandal {
    pub(crate) fn new(site: &Site) -> Self {
        let namespace = site.lab.hosts[0].namespace.clone();
        Self { netlink: Netlink::open_in(&namespace).unwrap(), namespace }
    }

    /// One act. What it is to be done to may be gone or not be there yet: then nothing happens.
    pub(crate) fn act(&mut self, random: &mut fastrand::Rng, model: &Model) -> &'static str {
        let act = random.u8(..100);
        // Drawn whether or not they are used, so that the order does not depend on the kernel.
        let (family, device) = FAMILIES[usize::from(random.bool())];
        let free = random.u16(SUBNETS..1024);
        let stranger = Mac([0x0e, 0x66, 0, 0, 0, random.u8(..)]);
        let peer = model
            .any(random)
            .map(|(subnet, peer)| (subnet, if family == IpFamily::V4 { peer.mac } else { peer.mac6 }));
        let (subnet, mac) = peer.unwrap_or((free, stranger));
        let index = self.netlink.link(device).ok().flatten().map_or(0, |link| link.index);
        let target = Target { device, family, index, subnet: net(subnet, family), mac, stranger };
        let own = net(OWN, family);
        if index == 0 && act < 98 {
            // To the kernel that would be every device.
            return "nothing, for there is no device";
        }
        match act {
            0..36 => self.touch_an_object(act, &target, net(free, family)),
            36..54 => self.touch_a_table(act, &target),
            54..66 => self.touch_addresses(act, &target, own, net(free, family)),
            66..98 => self.touch_a_link(act, &target),
            _ => self.storm(),
        }
    }

    fn touch_an_object(&mut self, act: u8, target: &Target, free: IpNet) -> &'static str {
        let Target { index, subnet, mac, stranger, family, .. } = *target;
        let far: std::net::IpAddr =
            if family == IpFamily::V4 { [172, 31, 0, 66].into() } else { "fd99::66".parse().unwrap() };
        let gateway = subnet.network();
        let (what, write) = match act {
            0..4 => (
                "a route goes",
                WriteRequest::DeleteRoute(Route { metric: None, ..Route::onlink(subnet, gateway, index) }),
            ),
            4..7 => (
                "a route leads elsewhere",
                WriteRequest::PutRoute(Route::onlink(subnet, free.network(), index)),
            ),
            7..10 => {
                ("a stranger's route", WriteRequest::PutRoute(Route::onlink(free, free.network(), index)))
            }
            10..12 => (
                "a second route to a peer",
                WriteRequest::PutRoute(Route::onlink(subnet, gateway, index).with_metric(77)),
            ),
            12..16 => {
                ("a neighbour goes", WriteRequest::DeleteNeighbour(Neighbour::permanent(index, gateway, mac)))
            }
            16..19 => (
                "a neighbour is another one",
                WriteRequest::PutNeighbour(Neighbour::permanent(index, gateway, stranger)),
            ),
            19..22 => (
                "a stranger's neighbour",
                WriteRequest::PutNeighbour(Neighbour::permanent(index, free.network(), stranger)),
            ),
            22..26 => ("a forwarding entry goes", self.delete_entry(index, mac, far)),
            26..30 => (
                "a forwarding entry leads elsewhere",
                WriteRequest::PutFdb(FdbEntry::permanent(index, mac, far)),
            ),
            _ => (
                "a stranger's forwarding entry",
                WriteRequest::PutFdb(FdbEntry::permanent(index, stranger, far)),
            ),
        };
        self.write(vec![write]);
        what
    }

    /// An entry is deleted by all that it says.
    fn delete_entry(&mut self, index: u32, mac: Mac, otherwise: std::net::IpAddr) -> WriteRequest {
        let entries = self.netlink.fdb(index).unwrap_or_default();
        let entry = entries.into_iter().find(|entry| entry.mac == mac);
        WriteRequest::DeleteFdb(entry.unwrap_or_else(|| FdbEntry::permanent(index, mac, otherwise)))
    }

    fn touch_a_table(&mut self, act: u8, target: &Target) -> &'static str {
        let Target { index, family, .. } = *target;
        let filter =
            RouteFilter { family: Some(family), table: Some(Route::MAIN_TABLE), ..RouteFilter::default() };
        let routes = self.netlink.routes(&filter).unwrap_or_default().into_iter();
        let routes = routes.filter(|route| route.protocol != Route::PROTOCOL_KERNEL);
        let (what, writes): (_, Vec<_>) = match act {
            36..41 => {
                let ours = routes.filter(|route| route.index == Some(index));
                ("all routes go", ours.map(WriteRequest::DeleteRoute).collect())
            }
            41..46 => {
                ("all direct routes go", routes.filter(is_direct).map(WriteRequest::DeleteRoute).collect())
            }
            46..50 => {
                let neighbours = self.netlink.neighbours(index, Some(family)).unwrap_or_default();
                ("all neighbours go", neighbours.into_iter().map(WriteRequest::DeleteNeighbour).collect())
            }
            _ => {
                let entries = self.netlink.fdb(index).unwrap_or_default();
                ("all forwarding entries go", entries.into_iter().map(WriteRequest::DeleteFdb).collect())
            }
        };
        self.write(writes);
        what
    }

    fn touch_addresses(&mut self, act: u8, target: &Target, own: IpNet, free: IpNet) -> &'static str {
        let address = |net: IpNet| Address {
            flags: Address::NO_DAD,
            ..Address::new(target.index, IpNet::from(net.network()))
        };
        let (what, write) = match act {
            54..60 => ("the device's address goes", WriteRequest::DeleteAddress(address(own))),
            _ => ("a second address", WriteRequest::PutAddress(address(free))),
        };
        self.write(vec![write]);
        what
    }

    fn touch_a_link(&mut self, act: u8, target: &Target) -> &'static str {
        let Target { index, device, stranger, .. } = *target;
        let same = LinkChange::default;
        match act {
            66..71 => {
                self.change(index, &LinkChange { up: Some(false), ..same() });
                "the device goes down"
            }
            71..76 => {
                self.change(index, &LinkChange { up: Some(false), ..same() });
                self.change(index, &LinkChange { up: Some(true), ..same() });
                "the device goes down and up"
            }
            76..79 => {
                self.change(index, &LinkChange { mtu: Some(1300), ..same() });
                "the MTU changes"
            }
            79..82 => {
                self.change(index, &LinkChange { mac: Some(stranger), ..same() });
                "the hardware address changes"
            }
            82..84 => {
                self.change(index, &LinkChange { txqlen: Some(500), ..same() });
                "the device gets a queue"
            }
            84..88 => {
                drop(self.netlink.delete_link(index));
                "the device goes"
            }
            88..90 => {
                drop(self.netlink.delete_link(index));
                drop(
                    self.netlink
                        .create_link(&NewLink { up: true, ..NewLink::new(device, NewLinkKind::Bridge) }),
                );
                "a bridge has the device's name"
            }
            90..92 => {
                drop(self.netlink.delete_link(index));
                let vxlan = NewVxlan { vni: 9, port: Some(4789), ..NewVxlan::default() };
                drop(self.netlink.create_link(&NewLink::new(device, NewLinkKind::Vxlan(vxlan))));
                "another tunnel has the device's name"
            }
            _ => self.bounce(),
        }
    }

    /// The external interface loses its IPv6 address when it goes down, and whoever gave it one gives it again.
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
        "the external interface goes down and up"
    }

    /// So many changes elsewhere that notifications are lost.
    fn storm(&mut self) -> &'static str {
        let mut netlink = Netlink::open_in(&self.namespace).unwrap();
        let index = netlink.link("lo").unwrap().unwrap().index;
        let route = Route::attached("10.200.0.0/24".parse().unwrap(), index);
        let storm: Vec<_> = (0..STORM)
            .map(|n| {
                let route = route.clone().with_metric(1 + n / 2);
                if n % 2 == 0 { WriteRequest::PutRoute(route) } else { WriteRequest::DeleteRoute(route) }
            })
            .collect();
        netlink.apply(&storm).into_iter().for_each(Result::unwrap);
        "a storm of notifications"
    }

    fn write(&mut self, writes: Vec<WriteRequest>) {
        self.netlink.apply(&writes).into_iter().for_each(may_be_too_late);
    }

    fn change(&mut self, index: u32, change: &LinkChange) {
        may_be_too_late(self.netlink.change_link(index, change));
    }
}

/// What is to be changed may just have gone, be down, or be a device of another kind.
fn may_be_too_late(result: Result<(), Error>) {
    if let Err(error) = result {
        tracing::trace!(%error, "nothing happened");
    }
}
