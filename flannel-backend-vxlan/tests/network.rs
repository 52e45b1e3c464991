//! A whole network with the VXLAN backend.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use std::time::Duration;

use common::{DEADLINE, ip, lab, lease, numbered};
use flannel_backend_vxlan::{OpenVxlan, external_interface};
use flannel_core::{ConditionName, NetworkOptions, PeerState, Shutdown};
use flannel_registry::{MemoryRegistry, RegistryLeaseManager};
use flannel_testing::{Member, eventually};

/// The kernel refuses one of thousands of objects. Only that one waits, and the status names it and the reason.
#[test]
fn one_refused_object_among_thousands_is_named_and_delays_no_other() {
    const PEERS: u32 = 2000;
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let registry = MemoryRegistry::new();
    registry.set_config(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#);
    let put = |lease: &flannel_core::Lease| {
        registry.put_raw(&lease.subnet.to_string(), lease.attrs.to_record().as_bytes());
    };
    (0..PEERS).for_each(|n| put(&numbered(n)));
    // The host's own address cannot be a gateway.
    ip(host, "address add 10.200.0.0/32 dev lo");
    let refused = lease("10.200.0.0-24", "172.31.0.1", "0e:02:00:00:00:01");
    put(&refused);
    let external = external_interface(host, "eth0").unwrap();
    let mut options = NetworkOptions::new(
        RegistryLeaseManager::new(registry.clone()),
        OpenVxlan::new(host.clone()),
        external,
    );
    options.audit_every = Duration::from_secs(3600);
    let member = Member::start(options).unwrap();
    member.wait_for_peers(PEERS as usize, DEADLINE).unwrap();
    let status = member.status();
    let [failure] = &status.kernel.failed[..] else { panic!("{:?}", status.kernel.failed) };
    assert_eq!(failure.object, "route 10.200.0.0/24 via 10.200.0.0");
    assert!(failure.reason.contains("invalid gateway"), "{}", failure.reason);
    assert_eq!((status.peers.known, status.peers.pending), (PEERS as usize + 1, 1));
    let each = status.peers.each.unwrap();
    let pending: Vec<_> = each.iter().filter(|peer| peer.state != PeerState::Programmed).collect();
    assert_eq!((pending.len(), pending[0].subnet, pending[0].state), (1, refused.subnet, PeerState::Pending));
    let reason = pending[0].reason.as_deref().unwrap();
    assert!(reason.starts_with("route 10.200.0.0/24 via 10.200.0.0: "), "{reason}");
    assert_eq!(status.conditions[0].name, ConditionName::ObjectsFailed);
    assert_eq!(ip(host, "route show dev flannel.1").len(), PEERS as usize);
    // Other peers are not affected.
    put(&numbered(PEERS));
    eventually(DEADLINE, || ip(host, "route show dev flannel.1").len() == PEERS as usize + 1).unwrap();
    assert_eq!(member.status().kernel.failed.len(), 1);
    // Once it is unblocked, the object is retried automatically.
    ip(host, "address del 10.200.0.0/32 dev lo");
    eventually(DEADLINE * 3, || member.status().kernel.failed.is_empty()).unwrap();
    let status = member.status();
    assert_eq!((status.peers.programmed, status.is_in_order()), (PEERS as usize + 2, true));
    let [device] = &status.devices[..] else { panic!("{:?}", status.devices) };
    assert_eq!((device.name.as_str(), device.vni, device.port), ("flannel.1", Some(1), Some(8472)));
    assert_eq!(ip(host, "route show dev flannel.1").len(), PEERS as usize + 2);
    member.stop(Shutdown::Remove).unwrap();
    assert_eq!(ip(host, "link show type vxlan"), [] as [&str; 0]);
}
