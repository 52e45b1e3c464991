use super::*;
use proptest::prelude::*;

fn v4(text: &str) -> (u8, String) {
    let pool = NetworkConfig::parse(text).unwrap().ipv4.unwrap();
    (pool.subnet_len(), pool.to_string())
}

fn v6(text: &str) -> (u8, String) {
    let pool = NetworkConfig::parse(text).unwrap().ipv6.unwrap();
    (pool.subnet_len(), pool.to_string())
}

fn error(text: &str) -> (Option<&'static str>, String) {
    let error = NetworkConfig::parse(text).unwrap_err();
    (error.field(), error.to_string())
}

#[test]
fn default_ranges_follow_from_the_network() {
    for (text, len, range) in [
        (r#"{"Network":"172.30.0.0/16","SubnetLen":21}"#, 21, "172.30.8.0 ... 172.30.248.0"),
        (r#"{"Network":"10.1.0.0/16"}"#, 24, "10.1.1.0 ... 10.1.255.0"),
        (r#"{"Network":"10.1.2.3/16"}"#, 24, "10.1.1.0 ... 10.1.255.0"),
        (r#"{"Network":"10.1.0.0/23"}"#, 25, "10.1.0.128 ... 10.1.1.128"),
        (r#"{"Network":"10.1.0.0/28"}"#, 30, "10.1.0.4 ... 10.1.0.12"),
        (r#"{"Network":"255.255.0.0/16","SubnetLen":0}"#, 24, "255.255.1.0 ... 255.255.255.0"),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0","SubnetLen":28}"#,
            28,
            "10.3.5.0 ... 10.3.8.0",
        ),
        (
            r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.0.0","SubnetMax":"0.0.0.0"}"#,
            24,
            "10.1.0.0 ... 10.1.255.0",
        ),
        (r#"{"NETWORK":"10.1.0.0/16","subnetlen":null}"#, 24, "10.1.1.0 ... 10.1.255.0"),
    ] {
        assert_eq!(v4(text), (len, range.to_owned()), "{text}");
    }
}

#[test]
fn ipv6_has_the_same_defaults() {
    for (rest, len, range) in [
        (r#""IPv6Network":"fc00::/48","Network":"10.1.0.0/16"}"#, 64, "fc00:0:0:1:: ... fc00:0:0:ffff::"),
        (r#""IPv6Network":"fc00::/62","EnableIPv4":false}"#, 64, "fc00:0:0:1:: ... fc00:0:0:3::"),
        (r#""IPv6Network":"fc00::/63","EnableIPv4":false}"#, 65, "fc00::8000:0:0:0 ... fc00:0:0:1:8000::"),
        (r#""IPv6Network":"fc00::/124","EnableIPv4":false}"#, 126, "fc00::4 ... fc00::c"),
        (
            r#""IPv6Network":"fc00::/48","IPv6SubnetMin":null,"IPv6SubnetMax":"fc00:0:0:9::","EnableIPv4":false}"#,
            64,
            "fc00:0:0:1:: ... fc00:0:0:9::",
        ),
        (
            r#""IPv6Network":"ffff::/16","IPv6SubnetLen":64,"EnableIPv4":false}"#,
            64,
            "ffff:0:0:1:: ... ffff:ffff:ffff:ffff::",
        ),
    ] {
        let text = format!(r#"{{"EnableIPv6":true,{rest}"#);
        assert_eq!(v6(&text), (len, range.to_owned()), "{text}");
    }
}

#[test]
fn errors_name_the_member_and_match_upstreams_texts() {
    for (text, field, reason) in [
        ("", None, "unexpected end of JSON input"),
        (r#"{"Network":"10.0.0.0/33"}"#, Some("Network"), "invalid CIDR address: 10.0.0.0/33 (Network)"),
        (r#"{"Network":null}"#, Some("Network"), "invalid CIDR address: null (Network)"),
        (r#"{"Network":5}"#, Some("Network"), "invalid CIDR address: 5 (Network)"),
        (r#"{"Network":"10.1.0.0\/16"}"#, Some("Network"), r"invalid CIDR address: 10.1.0.0\/16 (Network)"),
        (r#"{"Network":"010.1.0.0/16"}"#, Some("Network"), "invalid CIDR address: 010.1.0.0/16 (Network)"),
        (r#"{"Network":"fc00::/48"}"#, Some("Network"), "invalid IPv4 CIDR format: fc00::/48 (Network)"),
        ("{}", Some("Network"), "please define a correct Network parameter in the flannel config"),
        (
            r#"{"Network":"0.0.0.0/0"}"#,
            Some("Network"),
            "please define a correct Network parameter in the flannel config",
        ),
        (
            r#"{"Network":"10.1.0.0/16","SubnetMin":"abc"}"#,
            Some("SubnetMin"),
            r#"invalid IP address format: "abc" (SubnetMin)"#,
        ),
        (
            r#"{"Network":"10.1.0.0/16","SubnetMin":null}"#,
            Some("SubnetMin"),
            r#"invalid IP address format: "null" (SubnetMin)"#,
        ),
        (
            r#"{"Network":"10.1.0.0/16","SubnetMin":"::1"}"#,
            Some("SubnetMin"),
            "invalid IPv4 address format: ::1 (SubnetMin)",
        ),
        (
            r#"{"Network":"10.1.0.0/16","SubnetLen":"24"}"#,
            Some("SubnetLen"),
            "json: cannot unmarshal string into SubnetLen, which must be a whole number, zero or more",
        ),
        (r#"{"Network":"10.1.0.0/16","SubnetLen":31}"#, Some("SubnetLen"), "SubnetLen must be less than /31"),
        (
            r#"{"Network":"10.1.0.0/16","SubnetLen":999999999999}"#,
            Some("SubnetLen"),
            "SubnetLen must be less than /31",
        ),
        (
            r#"{"Network":"10.1.0.0/16","SubnetLen":17}"#,
            Some("SubnetLen"),
            "network must be able to accommodate at least four subnets",
        ),
        (
            r#"{"Network":"10.1.0.0/29"}"#,
            Some("Network"),
            "network is too small. Minimum useful network prefix is /28",
        ),
        (
            r#"{"Network":"10.1.0.0/16","SubnetMin":"10.2.0.0"}"#,
            Some("SubnetMin"),
            "SubnetMin is not in the range of the Network: 10.2.0.0",
        ),
        (
            r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.0.128"}"#,
            Some("SubnetMin"),
            "SubnetMin is not on a SubnetLen boundary: 10.1.0.128",
        ),
        (
            r#"{"Network":"172.22.0.0/16","SubnetMax":"172.22.255.254"}"#,
            Some("SubnetMax"),
            "SubnetMax is not on a SubnetLen boundary: 172.22.255.254",
        ),
        (
            r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.9.0","SubnetMax":"10.1.8.0"}"#,
            Some("SubnetMin"),
            "SubnetMin is after SubnetMax: 10.1.9.0",
        ),
        (r#"{"EnableIPv4":false}"#, None, "none defined stack: both EnableIPv4 and EnableIPv6 are false"),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true}"#,
            Some("IPv6Network"),
            "please define a correct IPv6Network parameter in the flannel config",
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/125"}"#,
            Some("IPv6Network"),
            "IPv6Network is too small. Minimum useful network prefix is /124",
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"10.2.0.0/16"}"#,
            Some("IPv6Network"),
            "invalid IPv6 CIDR format: 10.2.0.0/16 (IPv6Network)",
        ),
        (
            r#"{"Network":"10.1.0.0/16","Backend":"vxlan"}"#,
            Some("Backend"),
            "error decoding Backend property of config: json: invalid type: string \"vxlan\", expected an object at line 1 column 7",
        ),
        (
            r#"{"Network":"10.1.0.0/16","Backend":{"Type":5}}"#,
            Some("Backend"),
            "error decoding Backend property of config: json: cannot unmarshal number 5 into Type, which must be a string",
        ),
    ] {
        assert_eq!(error(text), (field, reason.to_owned()), "{text}");
    }
}

#[test]
fn a_missing_backend_is_udp_and_a_missing_type_is_empty() {
    for (backend, name) in [
        ("", "udp"),
        (r#","Backend":{}"#, ""),
        (r#","Backend":null"#, ""),
        (r#","backend":{"Type":"VXLAN","VNI":7}"#, "VXLAN"),
    ] {
        let config = NetworkConfig::parse(&format!(r#"{{"Network":"10.1.0.0/16"{backend}}}"#)).unwrap();
        assert_eq!(config.backend.name, name, "{backend}");
    }
}

#[test]
fn an_offered_subnet_has_each_enabled_family() {
    let dual = r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#;
    let (dual, single) =
        (NetworkConfig::parse(dual).unwrap(), NetworkConfig::parse(r#"{"Network":"10.1.0.0/16"}"#).unwrap());
    let key = |text: &str| text.parse::<SubnetKey>().unwrap();
    assert!(single.offers(&key("10.1.1.0-24")));
    assert!(!single.offers(&key("10.1.1.0-24&fc00:0:0:1::-64")));
    assert!(!dual.offers(&key("10.1.1.0-24")));
    assert!(dual.offers(&key("10.1.1.0-24&fc00:0:0:1::-64")));
}

proptest! {
    #[test]
    fn the_parser_never_panics(text: String) {
        let _ = NetworkConfig::parse(&text);
    }

    #[test]
    fn a_range_is_inside_its_network(address: u128, len in 0_u8..=128, subnet_len in 0_u64..=130, v6: bool) {
        let text = if v6 {
            let network = Ipv6Addr::from(address);
            format!(r#"{{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"{network}/{len}","IPv6SubnetLen":{subnet_len}}}"#)
        } else {
            let network = Ipv4Addr::from(u32::try_from(address >> 96).unwrap());
            format!(r#"{{"Network":"{network}/{len}","SubnetLen":{subnet_len}}}"#)
        };
        if let Ok(config) = NetworkConfig::parse(&text) {
            let pool = config.pools().next().unwrap();
            prop_assert!(pool.network().contains(&pool.first()) && pool.network().contains(&pool.last()));
            prop_assert!(pool.first() <= pool.last());
            prop_assert_eq!(pool.subnets().next(), Some(pool.first()));
        }
    }
}
