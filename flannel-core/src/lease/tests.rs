use super::*;
use proptest::prelude::*;

/// Records of flannel v0.11 and v0.28. This crate writes the latter form.
const V0_11: [&str; 2] = [
    r#"{"PublicIP":"172.27.137.240","BackendType":"vxlan","BackendData":{"VtepMAC":"ce:9c:a9:08:50:03"}}"#,
    r#"{"PublicIP":"192.168.9.1"}"#,
];
const V0_28: [&str; 5] = [
    r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
    r#"{"PublicIP":"1.2.3.4","PublicIPv6":"fd00::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:45"}}"#,
    r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"host-gw"}"#,
    r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#,
    r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd00::1","BackendType":"extension","BackendData":"\u003ca \u0026 b\u003e"}"#,
];

#[test]
fn records_of_flannel_v0_28_are_written_byte_for_byte() {
    for record in V0_28 {
        assert_eq!(LeaseAttrs::from_record(record).unwrap().to_record(), record);
    }
}

#[test]
fn the_host_id_comes_last_and_a_malformed_one_is_ignored() {
    let id = NodeId::from_bytes([0xab; 16]);
    let attrs = LeaseAttrs::from_record(V0_28[2]).unwrap().with_node(Some(id));
    let record = r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"host-gw","NodeID":"abababababababababababababababab"}"#;
    assert_eq!(attrs.to_record(), record);
    assert_eq!(LeaseAttrs::from_record(record).unwrap(), attrs);
    for other in ["5", "\"\"", "null", "\"+babababababababababababababababa\""] {
        let record = format!(r#"{{"PublicIP":"1.2.3.4","NodeID":{other}}}"#);
        assert_eq!(LeaseAttrs::from_record(&record).unwrap().node, None, "{record}");
    }
}

#[test]
fn an_id_match_outranks_an_address_match() {
    let lease = |node: Option<u8>| Lease {
        subnet: "10.5.1.0-24".parse().unwrap(),
        attrs: LeaseAttrs {
            node: node.map(|node| NodeId::from_bytes([node; 16])),
            ..LeaseAttrs::from_record(V0_28[2]).unwrap()
        },
        revision: Revision(1),
        term: Term::Limited,
    };
    let (here, there) = (Ipv4Addr::new(1, 2, 3, 4).into(), Ipv4Addr::new(1, 2, 3, 5).into());
    let me = Some(NodeId::from_bytes([1; 16]));
    assert_eq!(lease(Some(1)).match_host(&there, me), Some(LeaseMatch::Id));
    assert_eq!(lease(Some(2)).match_host(&here, me), Some(LeaseMatch::AddressOfOtherId));
    assert_eq!(lease(Some(2)).match_host(&there, me), None);
    assert_eq!(lease(None).match_host(&here, me), Some(LeaseMatch::Address));
    assert_eq!(lease(Some(1)).match_host(&here, None), Some(LeaseMatch::Address));
    assert_eq!(lease(None).match_host(&there, None), None);
}

#[test]
fn records_of_flannel_v0_11_are_read() {
    let vxlan = LeaseAttrs::from_record(V0_11[0]).unwrap();
    assert_eq!(vxlan.public, PublicAddrs::from(Ipv4Addr::new(172, 27, 137, 240)));
    assert_eq!(vxlan.backend_type, BackendType::VXLAN);
    assert_eq!(vxlan.backend_data.unwrap().as_str(), r#"{"VtepMAC":"ce:9c:a9:08:50:03"}"#);
    assert_eq!(LeaseAttrs::from_record(V0_11[1]).unwrap().backend_type, BackendType::UNNAMED);
}

#[test]
fn member_names_ignore_case_and_unknown_members_are_ignored() {
    let attrs = LeaseAttrs::from_record(r#"{"publicip":"1.2.3.4","x":[1],"BACKENDTYPE":"vxlan"}"#).unwrap();
    assert_eq!((attrs.public.v4, attrs.backend_type), (Some(Ipv4Addr::new(1, 2, 3, 4)), BackendType::VXLAN));
    assert_eq!(LeaseAttrs::from_record("{}").unwrap().public, PublicAddrs::default());
}

#[test]
fn an_error_names_the_malformed_member() {
    for (record, reason) in [
        (r#"{"PublicIP":""}"#, r#"PublicIP is not an address of its family: """#),
        (r#"{"PublicIP":"::1"}"#, r#"PublicIP is not an address of its family: "::1""#),
        (r#"{"PublicIP":5}"#, "json: cannot unmarshal number 5 into PublicIP, which must be a string"),
        (r#"{"PublicIPv6":"1.2.3.4"}"#, r#"PublicIPv6 is not an address of its family: "1.2.3.4""#),
        ("", "unexpected end of JSON input"),
    ] {
        assert_eq!(LeaseAttrs::from_record(record).unwrap_err().to_string(), reason);
    }
}

#[test]
fn a_lease_matches_by_ipv4_address_or_without_one_by_ipv6_address() {
    let held = |record: &str, public: PublicAddrs| {
        let attrs = LeaseAttrs::from_record(record).unwrap();
        let subnet = "10.5.1.0-24".parse().unwrap();
        Lease { subnet, attrs, revision: Revision(1), term: Term::Limited }.is_held_by(&public)
    };
    let v4 = Some(Ipv4Addr::new(1, 2, 3, 4));
    let v6 = Some("fd00::1".parse().unwrap());
    assert!(held(r#"{"PublicIP":"1.2.3.4"}"#, PublicAddrs { v4, v6 }));
    assert!(held(r#"{"PublicIPv6":"fd00::1"}"#, PublicAddrs { v4: None, v6 }));
    assert!(!held(r#"{"PublicIPv6":"fd00::2"}"#, PublicAddrs { v4: None, v6 }));
    assert!(!held("{}", PublicAddrs::default()));
}

#[test]
fn a_lease_contains_only_the_addresses_of_its_families() {
    let both = PublicAddrs { v4: Some(Ipv4Addr::new(1, 2, 3, 4)), v6: Some("fd00::1".parse().unwrap()) };
    let used = |config: &str| both.used_by(&NetworkConfig::parse(config).unwrap());
    assert_eq!(used(r#"{"Network":"10.5.0.0/16"}"#), PublicAddrs { v6: None, ..both });
    let v6 = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48"}"#;
    assert_eq!(used(v6), PublicAddrs { v4: None, ..both });
}

proptest! {
    #[test]
    fn the_reader_never_panics(record: String) {
        let _ = LeaseAttrs::from_record(&record);
    }

    #[test]
    fn a_record_survives_a_round_trip(v4: Option<u32>, v6: Option<u128>, name: String, data: Option<String>) {
        let public = PublicAddrs {
            v4: v4.map(Ipv4Addr::from).filter(|v4| !v4.is_unspecified()),
            v6: v6.map(Ipv6Addr::from).filter(|v6| !v6.is_unspecified()),
        };
        let attrs = LeaseAttrs { backend_type: name.into(), ..LeaseAttrs::new(public) };
        prop_assert_eq!(&LeaseAttrs::from_record(&attrs.to_record()).unwrap(), &attrs);
        let data = data.map(|data| Json::parse(&serde_json::Value::from(data).to_string()).unwrap());
        let with_data = LeaseAttrs { backend_data: data, ..attrs };
        let read = LeaseAttrs::from_record(&with_data.to_record()).unwrap();
        // The escapes in the data may differ.
        let meaning = |attrs: &LeaseAttrs| attrs.backend_data.as_ref().map(|d| serde_json::from_str::<String>(d.as_str()).unwrap());
        prop_assert_eq!(meaning(&read), meaning(&with_data));
    }
}
