//! The VXLAN backend keeps the promises of every backend.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use common::{DEVICE, bridge, ip, lab, mac};
use flannel_backend_vxlan::{OpenVxlan, RouteProtocol, external_interface};
use flannel_core::{
    BackendAttrs, BackendType, ExternalInterface, Json, LeaseAttrs, NetworkConfig, OpenBackend, SubnetKey,
};
use flannel_netlink::{IpFamily, Namespace, Netlink, Route, RouteFilter};
use flannel_testing::Lab;
use flannel_testing::contract::backend::{BackendSubject, kernel_objects};
use ipnet::IpNet;

/// A host of a lab.
struct Host {
    lab: Lab,
    options: &'static str,
}

fn vxlan(options: &'static str) -> Host {
    Host { lab: lab(1), options }
}

impl Host {
    fn namespace(&self) -> &Namespace {
        &self.lab.hosts[0].namespace
    }

    /// Where what leaves by the tunnel to a gateway ends up.
    fn far_end(&self, netlink: &mut Netlink, index: u32, gateway: IpAddr) -> Option<IpAddr> {
        let neighbours = netlink.neighbours(index, Some(IpFamily::V4)).unwrap();
        let mac = neighbours.iter().find(|neighbour| neighbour.address == gateway)?.mac?;
        netlink.fdb(index).unwrap().iter().find(|entry| entry.mac == mac)?.destination
    }
}

fn key(net: IpNet) -> SubnetKey {
    net.to_string().replace('/', "-").parse().unwrap()
}

fn net(subnet: SubnetKey) -> IpNet {
    subnet.nets().next().unwrap()
}

impl BackendSubject for Host {
    fn opener(&self) -> Box<dyn OpenBackend> {
        Box::new(OpenVxlan::new(self.namespace().clone()))
    }

    fn config(&self) -> NetworkConfig {
        let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"vxlan"{}}}}}"#, self.options);
        NetworkConfig::parse(&text).unwrap()
    }

    fn external(&self) -> ExternalInterface {
        external_interface(self.namespace(), "eth0").unwrap()
    }

    fn peer(&self, n: u8, public: Ipv4Addr) -> LeaseAttrs {
        let data = Json::parse(&format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(n))).unwrap();
        BackendAttrs::new(BackendType::VXLAN).with_data(Some(data)).at(public.into())
    }

    fn unreachable_peer(&self, public: Ipv4Addr) -> Option<LeaseAttrs> {
        Some(LeaseAttrs::new(public.into()))
    }

    fn peer_destinations(&self) -> BTreeMap<SubnetKey, IpAddr> {
        let mut netlink = Netlink::open_in(self.namespace()).unwrap();
        let tunnel = netlink.link(DEVICE).unwrap().map(|link| link.index);
        let filter = RouteFilter {
            family: Some(IpFamily::V4),
            table: Some(Route::MAIN_TABLE),
            ..RouteFilter::default()
        };
        let network: IpNet = "10.5.0.0/16".parse().unwrap();
        let routes = netlink.routes(&filter).unwrap().into_iter();
        let mut reached = BTreeMap::new();
        for route in routes.filter(|route| network.contains(&route.destination)) {
            let Some(gateway) = route.gateway else { continue };
            let public = match route.index {
                Some(index) if Some(index) == tunnel => self.far_end(&mut netlink, index, gateway),
                _ => Some(gateway).filter(|_| route.protocol == RouteProtocol::default().number()),
            };
            reached.extend(public.map(|public| (key(route.destination), public)));
        }
        reached
    }

    fn objects(&self) -> Vec<String> {
        kernel_objects(self.namespace()).unwrap()
    }

    fn add_foreign_objects(&self) {
        let host = self.namespace();
        // In the network, by the same link, on a tunnel of somebody else's, and with another owner's number.
        ip(host, "route add 10.5.99.0/24 via 192.168.64.254 dev eth0");
        ip(host, "route add 10.5.98.0/24 via 192.168.64.254 dev eth0 proto 242");
        ip(host, "route add 10.77.0.0/24 via 192.168.64.254 dev eth0 proto 241");
        ip(host, "neigh add 192.168.64.253 lladdr 0e:00:00:00:00:77 dev eth0 nud permanent");
        ip(host, "link add flannel.7 type vxlan id 7 dstport 8479 nolearning");
        ip(host, "address add 10.7.0.0/32 dev flannel.7");
        ip(host, "link set flannel.7 up");
        ip(host, "route add 10.7.2.0/24 via 10.7.2.0 dev flannel.7 onlink");
        ip(host, "neigh add 10.7.2.0 lladdr 0e:00:00:00:00:02 dev flannel.7 nud permanent");
        bridge(host, "fdb add 0e:00:00:00:00:02 dev flannel.7 dst 192.168.64.2");
    }

    /// Deletes the route, or for one peer the FDB entry that its route needs.
    fn undo(&self, subnet: SubnetKey) {
        let (host, net) = (self.namespace(), net(subnet));
        let [_, _, n, _] = subnet.v4().unwrap().addr().octets();
        if self.options.is_empty() && n == 3 {
            bridge(host, &format!("fdb del {} dev {DEVICE}", mac(n)));
        } else {
            ip(host, &format!("route del {net}"));
        }
    }

    fn block(&self, subnet: SubnetKey) {
        ip(self.namespace(), &format!("route add {} via 192.168.64.254 dev eth0 proto static", net(subnet)));
    }

    fn unblock(&self, subnet: SubnetKey) {
        ip(self.namespace(), &format!("route del {} via 192.168.64.254 dev eth0", net(subnet)));
    }

    fn invalid_options(&self) -> Vec<(&'static str, &'static str)> {
        vec![
            (r#"{"Type":"vxlan","VNI":"1"}"#, "VNI"),
            (r#"{"Type":"vxlan","Port":65536}"#, "Port"),
            (r#"{"Type":"vxlan","MTU":-1}"#, "MTU"),
            (r#"{"Type":"vxlan","DirectRouting":"yes"}"#, "DirectRouting"),
        ]
    }

    fn other_options(&self) -> Vec<&'static str> {
        if !self.options.is_empty() {
            return vec![r#"{"Type":"vxlan"}"#];
        }
        vec![
            r#"{"Type":"vxlan","MTU":1300}"#,
            r#"{"Type":"vxlan","Port":8473}"#,
            r#"{"Type":"vxlan","GBP":true}"#,
            r#"{"Type":"vxlan","DirectRouting":true}"#,
        ]
    }
}

mod of_vxlan {
    flannel_testing::backend_contract!(super::vxlan(""), skip: {
        traffic = "the kernel counts the device's traffic, not each peer's",
    });
}

/// All peers are on the link, and are reached without the tunnel.
mod of_vxlan_with_direct_routes {
    flannel_testing::backend_contract!(super::vxlan(r#","DirectRouting":true"#), skip: {
        traffic = "the kernel counts the device's traffic, not each peer's",
    });
}
