use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::*;
use crate::event::Phase;
use crate::facts::{DeviceFacts, PeerFacts, PeerTraffic, TrafficStatus};
use crate::lease::{NodeId, PublicAddrs, Revision};
use crate::registry::BadRecord;
use crate::report::ObjectFailure;
use crate::subnet::SubnetKey;

/// Every member of a status, in the JSON form that other programs rely on: changing a line breaks them.
const GOLDEN: &str = include_str!("golden.json");

/// Returns a status with all members.
fn full() -> NetworkStatus {
    let subnet: SubnetKey = "10.5.1.0-24&fc00:0:0:1::-64".parse().unwrap();
    let public = PublicAddrs { v4: "192.168.0.1".parse().ok(), v6: "fd00::1".parse().ok() };
    let peer = |n: u8, state, reason: Option<&str>| PeerStatus {
        subnet: format!("10.5.{n}.0-24").parse().unwrap(),
        public: Ipv4Addr::new(192, 168, 0, n).into(),
        backend: "vxlan".to_owned(),
        node: (n == 2).then(|| NodeId::from_bytes([n; 16])),
        name: (n == 2).then(|| "worker-2".to_owned()),
        known_for: Duration::from_secs(60),
        state,
        reason: reason.map(str::to_owned),
        held: n == 3,
        traffic: (n == 2).then_some(PeerTraffic {
            sent_packets: 1,
            sent_bytes: 2,
            send_errors: 3,
            received_packets: 4,
            received_bytes: 5,
        }),
        backend_facts: (n == 2).then(|| PeerFacts {
            endpoint: "192.168.0.2:51820".parse().ok(),
            last_handshake_age: Some(Duration::from_secs(9)),
            other: BTreeMap::from([("public_key".to_owned(), "abc=".to_owned())]),
        }),
        probe: (n == 2).then(probe),
    };
    let why = "route 10.5.3.0/24 via 10.5.3.0: not permitted";
    let mut device = DeviceFacts::new("flannel.1", "vxlan");
    (device.index, device.mtu, device.vni, device.port) = (7, 1450, Some(1), Some(8472));
    (device.mac, device.local) = (Some("0e:00:00:00:00:01".to_owned()), "192.168.0.1".parse().ok());
    let mut status = NetworkStatus {
        age: Duration::from_millis(61_500),
        ready: true,
        ended: None,
        conditions: Vec::new(),
        waiting_for: Some(Waiting { phase: Phase::Lease, reason: "etcd is away".to_owned() }),
        network: Some(ConfigStatus {
            networks: vec!["10.5.0.0/16".to_owned(), "fc00::/48".to_owned()],
            backend: "vxlan".to_owned(),
            nftables: true,
            refused: None,
        }),
        lease: Some(LeaseStatus {
            subnet,
            public,
            backend: "vxlan".to_owned(),
            node: Some(NodeId::from_bytes([1; 16])),
            name: Some("worker-1".to_owned()),
            revision: Revision(12),
            permanent: false,
            lost: Some("somebody removed it".to_owned()),
            renewal_in: Some(Duration::from_secs(28_800)),
            ends_in: Some(Duration::from_secs(86_400)),
            disputes: 1,
            last_dispute: Some("another host wrote it".to_owned()),
        }),
        registry: RegistryStatus {
            name: "etcd v3 at http://10.0.0.1:2379".to_owned(),
            id: Some("cdf818194e3a8c32".to_owned()),
            addresses: vec!["http://10.0.0.1:2379".to_owned()],
            revision: Some(Revision(40)),
            last_contact_age: Some(Duration::from_millis(4_200)),
            unavailable: Some("connection refused".to_owned()),
            unavailable_for: Some(Duration::from_secs(4)),
            complete: true,
            peers_from_cache: Some("etcd was away at the start".to_owned()),
        },
        external: ExternalStatus {
            name: "eth0".to_owned(),
            index: 2,
            mtu: 1500,
            v4: public.v4,
            v6: public.v6,
            public,
            lost: None,
        },
        devices: vec![device],
        mtu: Some(1450),
        kernel: KernelStatus {
            passes: 9,
            last_pass_took: Duration::from_millis(3),
            last_pass_age: Some(Duration::from_secs(5)),
            written: 8,
            removed: 1,
            repaired: 2,
            last_repair: Some(Repair {
                age: Duration::from_secs(5),
                objects: 2,
                noticed: "a route was removed".to_owned(),
            }),
            failed: vec![ObjectFailure::new("route 10.5.3.0/24 via 10.5.3.0", "not permitted")],
        },
        peers: PeersStatus {
            known: 3,
            programmed: 1,
            pending: 1,
            unreachable: 1,
            held: 1,
            mesh: Some(MeshStatus {
                verdicts: BTreeMap::from([(ProbeVerdict::TunnelBlocked, 1)]),
                round: Duration::from_secs(30),
                sent: 9,
                lost: 3,
                longest_round_trip_microseconds: Some(400),
            }),
            each: Some(vec![
                peer(2, PeerState::Programmed, None),
                peer(3, PeerState::Pending, Some(why)),
                peer(4, PeerState::Unreachable, Some("ignoring non-vxlan subnet")),
            ]),
        },
        bad_records: vec![BadRecord::new("10.5.9.0-24", "10.5.9.0-24".parse().ok(), "not a JSON object")],
        traffic: Some(TrafficStatus { drops: BTreeMap::from([("stranger".to_owned(), 3)]) }),
        errors: vec![PastError {
            age: Duration::from_secs(2),
            times: 3,
            what: "registry unavailable: connection refused".to_owned(),
        }],
    };
    status.conditions = conditions(&status, Duration::from_secs(60));
    status
}

/// Returns the probe of a peer whose tunnel is blocked.
fn probe() -> PeerProbe {
    let inside = ProbedPath::new(ProbeSide::Inside, Ipv4Addr::new(10, 5, 2, 0).into(), ProbeMeans::Udp);
    let outside = ProbedPath::new(ProbeSide::Outside, Ipv4Addr::new(192, 168, 0, 2).into(), ProbeMeans::Icmp);
    PeerProbe {
        verdict: ProbeVerdict::TunnelBlocked,
        detail: "the underlay responds and the tunnel doesn't".to_owned(),
        age: Duration::from_millis(1_500),
        paths: vec![
            ProbedPath { sent: 3, lost: 3, device_mtu: Some(1450), error: Some("no".to_owned()), ..inside },
            ProbedPath {
                answers: true,
                sent: 6,
                round_trip_microseconds: Some(212),
                path_mtu: Some(1500),
                device_mtu: Some(1500),
                ..outside
            },
        ],
    }
}

#[test]
fn an_unknown_verdict_is_read_as_unknown_and_all_lists_each() {
    let read = |text: &str| serde_json::from_str::<ProbeVerdict>(text).unwrap();
    assert_eq!(read("\"made_up_later\""), ProbeVerdict::Unknown);
    for verdict in ProbeVerdict::ALL {
        assert_eq!(serde_json::to_string(&verdict).unwrap(), format!("{:?}", verdict.as_str()));
    }
}

#[test]
fn the_json_of_a_status_is_stable() {
    let written = serde_json::to_string_pretty(&full()).unwrap();
    assert_eq!(written, GOLDEN.trim_end(), "now it is:\n{written}");
    let read: NetworkStatus = serde_json::from_str(GOLDEN).unwrap();
    assert_eq!(read, full());
}

#[test]
fn a_status_of_an_older_or_newer_release_is_readable() {
    let older: NetworkStatus = serde_json::from_str("{}").unwrap();
    assert_eq!(older, NetworkStatus::default());
    let newer = r#"{"conditions": [{"name": "made_up_later", "detail": "x"}], "also": {"new": 1}}"#;
    let newer: NetworkStatus = serde_json::from_str(newer).unwrap();
    assert_eq!(newer.conditions[0].name, ConditionName::Other);
}

#[test]
fn a_malformed_status_is_refused() {
    for text in [
        r#"{"age_seconds": -1}"#,
        r#"{"age_seconds": 1e300}"#,
        r#"{"external": {"public_addresses": ["10.0.0.1", "10.0.0.2", "10.0.0.3"]}}"#,
        r#"{"bad_records": [{"key": "x", "subnets": [], "reason": ""}]}"#,
    ] {
        assert!(serde_json::from_str::<NetworkStatus>(text).is_err(), "{text}");
    }
}

/// Only faults of this host prevent readiness.
#[test]
fn each_fault_has_a_condition() {
    let names = |change: &dyn Fn(&mut NetworkStatus)| {
        let mut status = NetworkStatus { ready: true, ..NetworkStatus::default() };
        change(&mut status);
        status.conditions = conditions(&status, Duration::from_secs(60));
        let names: Vec<_> = status.conditions.iter().map(|condition| condition.name.as_str()).collect();
        (names.join(" "), status.is_in_order())
    };
    let full = full();
    let check = |change: &dyn Fn(&mut NetworkStatus), name: &str, in_order| {
        assert_eq!(names(change), (name.to_owned(), in_order));
    };
    check(&|_| {}, "", true);
    check(&|status| status.ready = false, "starting", false);
    check(&|status| status.ended = Some("failed".to_owned()), "ended", false);
    check(&|status| (status.ready, status.ended) = (false, Some("failed".to_owned())), "ended", false);
    check(&|status| status.external.lost = Some("no address".to_owned()), "external_lost", false);
    check(&|status| status.lease.clone_from(&full.lease), "lease_lost", false);
    check(&|status| status.kernel.failed.clone_from(&full.kernel.failed), "objects_failed", false);
    check(&|status| status.kernel.last_pass_age = Some(Duration::from_secs(119)), "", true);
    check(&|status| status.kernel.last_pass_age = Some(Duration::from_secs(121)), "stalled", false);
    check(
        &|status| status.registry.unavailable.clone_from(&full.registry.unavailable),
        "registry_unavailable",
        true,
    );
    check(
        &|status| status.registry.peers_from_cache.clone_from(&full.registry.peers_from_cache),
        "peers_from_cache",
        true,
    );
    check(&|status| status.bad_records.clone_from(&full.bad_records), "bad_records", true);
    check(&|status| status.peers.unreachable = 1, "peers_unreachable", true);
    check(&|status| status.peers.held = 1, "peers_held", true);
}

#[test]
fn the_names_of_conditions_are_written_as_they_are_called() {
    for name in ConditionName::ALL {
        assert_eq!(serde_json::to_string(&name).unwrap(), format!("{:?}", name.as_str()));
    }
}
