//! A pass does what was planned.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;

use common::{DEVICE, Station, StationExt, foreign_vxlan, ip, key, lab, mac, open, routed_lab};
use flannel_backend_vxlan::{OpenVxlan, external_interface};
use flannel_core::{
    BackendAttrs, BackendError, BackendType, Json, Lease, LeaseChange, NetworkConfig, OpenBackend, PeerSet,
    Plan, PlanRequest, PlannedAction, PublicAddrs, Revision, Term,
};
use flannel_netlink::{Namespace, Netlink};

const BACKENDS: [&str; 2] = [r#"{"Type":"vxlan"}"#, r#"{"Type":"vxlan","DirectRouting":true}"#];

fn config(backend: &str) -> NetworkConfig {
    let text = format!(
        r#"{{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetLen":64,"Backend":{backend}}}"#
    );
    NetworkConfig::parse(&text).unwrap()
}

fn subnet(n: u8) -> String {
    format!("10.5.{n}.0-24&fd00:5:0:{n}::-64")
}

/// The lease of host number `n` on the first segment, like this host.
fn lease(n: u8) -> Lease {
    let data = || Json::parse(&format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(n))).ok();
    let public =
        PublicAddrs { v4: format!("192.168.64.{n}").parse().ok(), v6: format!("fd00:64::{n}").parse().ok() };
    let attrs = BackendAttrs::new(BackendType::VXLAN).with_data(data()).with_v6_data(data()).at(public);
    Lease { subnet: key(&subnet(n)), attrs, revision: Revision(1), term: Term::Limited }
}

fn plan(namespace: &Namespace, config: &NetworkConfig, peers: &PeerSet) -> Result<Plan, BackendError> {
    let external = external_interface(namespace, "eth0").unwrap();
    let own = lease(1);
    let request = PlanRequest::new(config, &external, &own, peers);
    OpenVxlan::new(namespace.clone()).plan(request)
}

/// What would be put and removed on the host.
fn planned(namespace: &Namespace, config: &NetworkConfig, peers: &PeerSet) -> (Vec<String>, Vec<String>) {
    let plan = plan(namespace, config, peers).unwrap();
    assert_eq!(plan.unreachable, []);
    let (puts, removals): (Vec<_>, Vec<_>) =
        plan.changes.into_iter().partition(|change| change.action == PlannedAction::Put);
    let names =
        |changes: Vec<flannel_core::PlannedChange>| changes.into_iter().map(|change| change.object).collect();
    (names(puts), names(removals))
}

#[test]
fn a_pass_does_what_was_planned() {
    for backend in BACKENDS {
        let config = config(backend);
        let lab = routed_lab(1);
        let host = &lab.hosts[0].namespace;
        let mut peers = PeerSet::default();
        peers.extend([2, 3].map(|n| LeaseChange::Put(lease(n).into())));
        let before = ip(host, "route show table all");
        let (puts, removals) = planned(host, &config, &peers);
        assert!(puts.iter().any(|put| put == "device flannel.1"), "{backend}: {puts:?}");
        assert_eq!(removals, Vec::<String>::new(), "{backend}");
        assert_eq!(ip(host, "route show table all"), before, "{backend}: only looked");

        let mut station = Station::start_with(host, &subnet(1), &config);
        station.complete([2, 3].map(lease));
        let objects = puts.len() - 2;
        assert!(objects >= 4, "{backend}: {puts:?}");
        assert_eq!(planned(host, &config, &station.peers), (vec![], vec![]), "{backend}");

        // A peer leaves and routes are lost while nobody looks.
        ip(host, "-4 route flush root 10.5.0.0/16");
        station.remove(&subnet(3));
        let (puts, removals) = planned(host, &config, &station.peers);
        assert_eq!(puts.len(), 1, "{backend}: {puts:?}");
        assert!(puts[0].starts_with("route 10.5.2.0/24 via "), "{backend}: {puts:?}");
        assert!(!removals.is_empty(), "{backend}");
        let report = station.sync();
        assert_eq!((report.written, report.removed), (puts.len(), removals.len()), "{backend}: {removals:?}");
        assert_eq!(planned(host, &config, &station.peers), (vec![], vec![]), "{backend}");
    }
}

#[test]
fn a_device_that_cannot_be_created_is_not_planned() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut netlink = Netlink::open_in(host).unwrap();
    let config = common::config("");
    foreign_vxlan(&mut netlink, "other", 1, 8472);
    let refused = |what: &str| {
        let planned = plan(host, &config, &PeerSet::default()).map(|plan| plan.changes).unwrap_err();
        assert_eq!(planned.to_string(), open(host, &config).err().unwrap().to_string(), "{what}");
        assert!(planned.to_string().contains("the device other has VNI 1 on port 8472"), "{what}: {planned}");
    };
    refused("absent");
    foreign_vxlan(&mut netlink, DEVICE, 7, 4789);
    refused("present but different");
}
