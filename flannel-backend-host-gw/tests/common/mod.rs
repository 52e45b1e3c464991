//! Shared by the kernel tests: a host of the lab with the host-gw backend on it.

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use flannel_backend_host_gw::{OpenHostGw, external_interface};
use flannel_core::{BackendAttrs, BackendType, Lease, NetworkConfig, PublicAddrs, Revision, SubnetKey, Term};
pub(crate) use flannel_testing::harness::{assert_idle, ip};
use flannel_testing::{BackendHarness, Lab, LabOptions};
use ipnet::IpNet;

pub(crate) const DEADLINE: Duration = BackendHarness::DEADLINE;
pub(crate) const QUIET: Duration = BackendHarness::QUIET;

pub(crate) fn config() -> NetworkConfig {
    let text = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetLen":64,
        "Backend":{"Type":"host-gw"}}"#;
    NetworkConfig::parse(text).unwrap()
}

pub(crate) fn subnet(n: u8) -> String {
    format!("10.5.{n}.0-24&fd00:5:0:{n}::-64")
}

pub(crate) fn peer(n: u8, segment: u8) -> Lease {
    let public = PublicAddrs {
        v4: format!("192.168.{}.{n}", 64 + segment).parse().ok(),
        v6: format!("fd00:64:0:{segment}::{n}").parse().ok(),
    };
    let attrs = BackendAttrs::new(BackendType::HOST_GW).at(public);
    Lease { subnet: key(&subnet(n)), attrs, revision: Revision(1), term: Term::Limited }
}

pub(crate) fn station(lab: &Lab, n: u8) -> BackendHarness {
    let namespace = &lab.hosts[usize::from(n) - 1].namespace;
    let external = external_interface(namespace, "eth0").unwrap();
    let opener = Arc::new(OpenHostGw::new(namespace.clone()));
    BackendHarness::open(opener, namespace, external, &config(), &subnet(n))
}

pub(crate) fn lab(hosts: usize) -> Lab {
    Lab::new(&LabOptions { hosts, ..LabOptions::default() }).unwrap()
}

/// A lab with two routed segments: the first and the third host are on one link, the second one is not.
pub(crate) fn routed_lab(hosts: usize) -> Lab {
    Lab::new(&LabOptions { hosts, segments: 2, ..LabOptions::default() }).unwrap()
}

pub(crate) fn key(subnet: &str) -> SubnetKey {
    subnet.parse().unwrap()
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}
