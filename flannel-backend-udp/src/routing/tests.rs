//! Which leases are peers of the UDP backend.

use std::sync::Arc;

use flannel_core::{BackendAttrs, LeaseChange, PublicAddrs, Revision, Term};

use super::*;

fn lease(subnet: &str, public: PublicAddrs, backend_type: BackendType) -> Lease {
    let attrs = BackendAttrs::new(backend_type).at(public);
    Lease { subnet: subnet.parse().unwrap(), attrs, revision: Revision(1), term: Term::Limited }
}

fn v4(last: u8) -> PublicAddrs {
    PublicAddrs { v4: Some([192, 168, 64, last].into()), v6: None }
}

fn routes(config: &str, leases: Vec<Lease>) -> (Vec<String>, Vec<String>) {
    decided_with(config, leases, false)
}

fn decided_with(config: &str, leases: Vec<Lease>, takes_vxlan: bool) -> (Vec<String>, Vec<String>) {
    let config = NetworkConfig::parse(config).unwrap();
    let own = "10.5.1.0-24".parse().unwrap();
    let mut peers = PeerSet::default();
    peers.extend(leases.into_iter().map(|lease| LeaseChange::Put(Arc::new(lease))));
    let (hops, unreachable) = next_hops(&config, &own, 8285, takes_vxlan, &peers);
    let hops = hops.iter().map(|(subnet, (_, address))| format!("{subnet} at {address}")).collect();
    (hops, unreachable.into_iter().map(|failure| failure.reason).collect())
}

const V4: &str = r#"{"Network":"10.5.0.0/16"}"#;

#[test]
fn leases_without_a_backend_type_are_peers() {
    let leases = vec![
        lease("10.5.2.0-24", v4(2), BackendType::UNNAMED),
        lease("10.5.3.0-24", v4(3), BackendType::from("udp".to_owned())),
    ];
    let (hops, refused) = routes(V4, leases);
    assert_eq!(hops, ["10.5.2.0/24 at 192.168.64.2:8285", "10.5.3.0/24 at 192.168.64.3:8285"]);
    assert_eq!(refused, [""; 0]);
}

#[test]
fn a_vxlan_host_with_a_node_id_is_a_peer_during_a_migration() {
    let mut ours = lease("10.5.2.0-24", v4(2), BackendType::VXLAN);
    ours.attrs.node = Some(flannel_core::NodeId::from_bytes([7; 16]));
    let upstreams = lease("10.5.3.0-24", v4(3), BackendType::VXLAN);
    let (hops, refused) = decided_with(V4, vec![ours.clone(), upstreams], true);
    assert_eq!(hops, ["10.5.2.0/24 at 192.168.64.2:8285"]);
    assert_eq!(refused, ["ignoring non-udp subnet(10.5.3.0-24): type=vxlan"]);
    assert_eq!(decided_with(V4, vec![ours], false).0, [""; 0]);
}

#[test]
fn invalid_peers_are_reported_with_the_reason() {
    let leases = vec![
        lease("10.5.1.0-25", v4(2), BackendType::UNNAMED),
        lease("10.5.2.0-24", v4(2), BackendType::VXLAN),
        lease("10.5.3.0-24", PublicAddrs::default(), BackendType::UNNAMED),
        lease("10.6.4.0-24", v4(4), BackendType::UNNAMED),
    ];
    let (hops, refused) = routes(V4, leases);
    assert_eq!(hops, [""; 0]);
    assert_eq!(
        refused,
        [
            "its subnet overlaps this host's 10.5.1.0-24",
            "ignoring non-udp subnet(10.5.2.0-24): type=vxlan",
            "its lease has no public address of this address family",
            "its subnet 10.6.4.0/24 is outside the network 10.5.0.0/16",
        ]
    );
}

#[test]
fn a_peer_without_ipv6_is_reached_by_ipv4_alone() {
    let config = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
    let both = PublicAddrs { v6: Some("fd00:64::3".parse().unwrap()), ..v4(3) };
    let leases = vec![
        lease("10.5.2.0-24", v4(2), BackendType::UNNAMED),
        lease("10.5.3.0-24&fd00:5:0:3::-64", both, BackendType::UNNAMED),
    ];
    let (hops, refused) = routes(config, leases);
    assert_eq!(
        hops,
        [
            "10.5.2.0/24 at 192.168.64.2:8285",
            "10.5.3.0/24 at 192.168.64.3:8285",
            "fd00:5:0:3::/64 at [fd00:64::3]:8285"
        ]
    );
    assert_eq!(refused, [""; 0]);
}
