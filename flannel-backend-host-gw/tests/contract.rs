//! The host-gw backend keeps the promises of every backend.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use flannel_backend_host_gw::{OpenHostGw, RouteProtocol, external_interface};
use flannel_core::{
    BackendAttrs, BackendType, ExternalInterface, LeaseAttrs, NetworkConfig, OpenBackend, SubnetKey,
};
use flannel_netlink::{IpFamily, Namespace, Netlink, Route, RouteFilter};
use flannel_testing::contract::backend::{BackendSubject, kernel_objects};
use flannel_testing::harness::ip;
use flannel_testing::{Lab, LabOptions};
use ipnet::IpNet;

/// A host of a lab.
struct Host(Lab);

impl Host {
    fn new() -> Self {
        Self(Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap())
    }

    fn namespace(&self) -> &Namespace {
        &self.0.hosts[0].namespace
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
        Box::new(OpenHostGw::new(self.namespace().clone()))
    }

    fn config(&self) -> NetworkConfig {
        NetworkConfig::parse(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#).unwrap()
    }

    fn external(&self) -> ExternalInterface {
        external_interface(self.namespace(), "eth0").unwrap()
    }

    fn peer(&self, _: u8, public: Ipv4Addr) -> LeaseAttrs {
        BackendAttrs::new(BackendType::HOST_GW).at(public.into())
    }

    fn unreachable_peer(&self, public: Ipv4Addr) -> Option<LeaseAttrs> {
        Some(LeaseAttrs::new(public.into()))
    }

    fn peer_destinations(&self) -> BTreeMap<SubnetKey, IpAddr> {
        let mut netlink = Netlink::open_in(self.namespace()).unwrap();
        let filter = RouteFilter {
            family: Some(IpFamily::V4),
            table: Some(Route::MAIN_TABLE),
            ..RouteFilter::default()
        };
        let network: IpNet = "10.5.0.0/16".parse().unwrap();
        let routes = netlink.routes(&filter).unwrap().into_iter();
        let mut reached = BTreeMap::new();
        for route in routes.filter(|route| network.contains(&route.destination)) {
            let is_ours = route.protocol == RouteProtocol::default().number();
            let public = route.gateway.filter(|_| is_ours);
            reached.extend(public.map(|public| (key(route.destination), public)));
        }
        reached
    }

    fn objects(&self) -> Vec<String> {
        kernel_objects(self.namespace()).unwrap()
    }

    fn add_foreign_objects(&self) {
        let host = self.namespace();
        // In the network, by the same link, and with another owner's number.
        ip(host, "route add 10.5.99.0/24 via 192.168.64.254 dev eth0");
        ip(host, "route add 10.5.98.0/24 via 192.168.64.254 dev eth0 proto 242");
        ip(host, "route add 10.77.0.0/24 via 192.168.64.254 dev eth0 proto 241");
        ip(host, "neigh add 192.168.64.253 lladdr 0e:00:00:00:00:77 dev eth0 nud permanent");
    }

    fn undo(&self, subnet: SubnetKey) {
        ip(self.namespace(), &format!("route del {}", net(subnet)));
    }

    fn block(&self, subnet: SubnetKey) {
        ip(self.namespace(), &format!("route add {} via 192.168.64.254 dev eth0 proto static", net(subnet)));
    }

    fn unblock(&self, subnet: SubnetKey) {
        ip(self.namespace(), &format!("route del {} via 192.168.64.254 dev eth0", net(subnet)));
    }

    fn invalid_options(&self) -> Vec<(&'static str, &'static str)> {
        Vec::new()
    }

    fn other_options(&self) -> Vec<&'static str> {
        vec![r#"{"Type":"host-gw"}"#]
    }
}

flannel_testing::backend_contract!(Host::new(), skip: {
    devices = "traffic leaves through the external interface",
    invalid_options = "host-gw has no options",
    traffic = "the kernel does not count the traffic of a route",
});
