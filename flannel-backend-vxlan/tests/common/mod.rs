//! Shared by the kernel tests: a host of the lab with the VXLAN backend on it, and its kernel tables.

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use flannel_backend_vxlan::{OpenVxlan, external_interface};
use flannel_core::{
    Backend, BackendAttrs, BackendError, BackendType, Json, Lease, NetworkConfig, OpenBackend, OpenRequest,
    Revision, SubnetKey, Term,
};
use flannel_netlink::{Link, LinkChange, Mac, Namespace, Netlink, NewLink, NewLinkKind, NewVxlan};
pub(crate) use flannel_testing::harness::{assert_idle, bridge, ip};
use flannel_testing::{BackendHarness, Lab, LabOptions};
use ipnet::IpNet;

/// How long to wait for something that the kernel does in its own time.
pub(crate) const DEADLINE: Duration = BackendHarness::DEADLINE;

/// How long nothing must happen to count as quiet.
pub(crate) const QUIET: Duration = BackendHarness::QUIET;

/// The name of the device of VNI 1.
pub(crate) const DEVICE: &str = "flannel.1";

/// A host with the VXLAN backend on it.
pub(crate) type Station = BackendHarness;

/// What these tests do with such a host.
pub(crate) trait StationExt {
    /// Opens the backend for 10.5.0.0/16 and configures it for a subnet.
    fn start(namespace: &Namespace, subnet: &str) -> Self;

    /// As [`start`](Self::start), for another network.
    fn start_with(namespace: &Namespace, subnet: &str, config: &NetworkConfig) -> Self;

    fn device(&mut self) -> Link;

    /// The three tables of the device as `ip` and `bridge` show them, sorted.
    fn tables(&self) -> Vec<String>;
}

impl StationExt for Station {
    fn start(namespace: &Namespace, subnet: &str) -> Self {
        Self::start_with(namespace, subnet, &config(""))
    }

    fn start_with(namespace: &Namespace, subnet: &str, config: &NetworkConfig) -> Self {
        let external = external_interface(namespace, "eth0").unwrap();
        Self::open(Arc::new(OpenVxlan::new(namespace.clone())), namespace, external, config, subnet)
    }

    fn device(&mut self) -> Link {
        self.netlink.link(DEVICE).unwrap().unwrap()
    }

    fn tables(&self) -> Vec<String> {
        let mut lines = ip(&self.namespace, "route show dev flannel.1");
        lines.extend(
            ip(&self.namespace, "-4 neigh show dev flannel.1")
                .into_iter()
                .filter(|line| line.contains("PERMANENT")),
        );
        lines.extend(bridge(&self.namespace, "fdb show dev flannel.1"));
        lines.sort();
        lines
    }
}

/// Opens the backend on `eth0`.
pub(crate) fn open(namespace: &Namespace, config: &NetworkConfig) -> Result<Box<dyn Backend>, BackendError> {
    let external = external_interface(namespace, "eth0")?;
    OpenVxlan::new(namespace.clone()).open(OpenRequest::new(config, &external))
}

/// The network 10.5.0.0/16 with options of the backend, such as `,"VNI":7`.
pub(crate) fn config(options: &str) -> NetworkConfig {
    let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"vxlan"{options}}}}}"#);
    NetworkConfig::parse(&text).unwrap()
}

/// A lab with this number of hosts.
pub(crate) fn lab(hosts: usize) -> Lab {
    Lab::new(&LabOptions { hosts, ..LabOptions::default() }).unwrap()
}

/// A lab with two routed segments: the first and the third host are on one link, the second one is not.
pub(crate) fn routed_lab(hosts: usize) -> Lab {
    Lab::new(&LabOptions { hosts, segments: 2, ..LabOptions::default() }).unwrap()
}

/// The lease of a fictitious host.
pub(crate) fn lease(subnet: &str, public: &str, mac: &str) -> Lease {
    let data = Json::parse(&format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)).unwrap();
    let public: Ipv4Addr = public.parse().unwrap();
    let attrs = BackendAttrs::new(BackendType::VXLAN).with_data(Some(data)).at(public.into());
    Lease { subnet: key(subnet), attrs, revision: Revision(1), term: Term::Limited }
}

/// The lease of fictitious host number `n`: 10.5.n.0/24 behind 192.168.64.n, with 0e:00:00:00:00:n.
pub(crate) fn peer(n: u8) -> Lease {
    lease(&format!("10.5.{n}.0-24"), &format!("192.168.64.{n}"), &mac(n).to_string())
}

/// The lease of fictitious host number `n` of many.
pub(crate) fn numbered(n: u32) -> Lease {
    let [_, b, c, d] = (n + 1).to_be_bytes();
    // 10.16.0.0/24 and on, behind 172.16.0.1 and on.
    let subnet = format!("10.{}.{d}.0-24", 16 + c);
    lease(&subnet, &format!("172.{}.{c}.{d}", 16 + b), &format!("0e:01:00:{b:02x}:{c:02x}:{d:02x}"))
}

pub(crate) fn mac(n: u8) -> Mac {
    Mac([0x0e, 0, 0, 0, 0, n])
}

/// The lines that `ip` and `bridge` show for that host.
pub(crate) fn lines_of(n: u8) -> [String; 3] {
    [
        format!("10.5.{n}.0/24 via 10.5.{n}.0 onlink "),
        format!("10.5.{n}.0 lladdr {} PERMANENT ", mac(n)),
        format!("{} dst 192.168.64.{n} self permanent", mac(n)),
    ]
}

/// The lines that `ip` and `bridge` show for those hosts, sorted.
pub(crate) fn lines_of_all(hosts: impl IntoIterator<Item = u8>) -> Vec<String> {
    let mut lines: Vec<_> = hosts.into_iter().flat_map(lines_of).collect();
    lines.sort();
    lines
}

pub(crate) fn key(subnet: &str) -> SubnetKey {
    subnet.parse().unwrap()
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Creates a VXLAN device that is up, as another program would.
pub(crate) fn foreign_vxlan(netlink: &mut Netlink, name: &str, vni: u32, port: u16) -> Link {
    let vxlan = NewVxlan { vni, port: Some(port), ..NewVxlan::default() };
    netlink.create_link(&NewLink { up: true, ..NewLink::new(name, NewLinkKind::Vxlan(vxlan)) }).unwrap();
    netlink.link(name).unwrap().unwrap()
}

pub(crate) fn change(netlink: &mut Netlink, name: &str, change: &LinkChange) {
    let link = netlink.link(name).unwrap().unwrap();
    netlink.change_link(link.index, change).unwrap();
}
