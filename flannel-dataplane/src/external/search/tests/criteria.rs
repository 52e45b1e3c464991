//! Patterns, reachability and pairs of public addresses.

use super::*;
use crate::external::facts::RouteLookup;

/// Returns the interface that patterns select, as `name v4 v6`.
fn by_pattern(families: IpFamilies, patterns: &[&str]) -> Result<String, String> {
    let patterns = patterns.iter().map(|text| InterfacePattern::new(text).expect("a pattern")).collect();
    let criteria = Criteria { patterns, ..Criteria::default() };
    let selection = search(&host(), &criteria, families).selection;
    let chosen = selection.map(|selection| selection.external).map_err(|error| error.to_string())?;
    let word =
        |address: Option<IpAddr>| address.map_or_else(|| "-".to_owned(), |address| address.to_string());
    Ok(format!("{} {} {}", chosen.name, word(chosen.v4.map(IpAddr::V4)), word(chosen.v6.map(IpAddr::V6))))
}

#[test]
fn patterns_match_addresses_before_names() {
    const V6: IpFamilies = IpFamilies::V6;
    for (families, patterns, expected) in [
        (V4, &[r"10\.0\.0\.6"][..], "eth1 10.0.0.6 fd01::1"),
        (V4, &["^10"], "eth1 10.0.0.5 fd01::1"),
        (V4, &["eth[1-9]"], "eth1 10.0.0.5 fd01::1"),
        (V4, &["ETH9", "(?i)ETH1"], "eth1 10.0.0.5 fd01::1"),
        (V4, &["^e"], "eth0 192.168.9.1 fd00::1"),
        (V4, &[""], "eth0 192.168.9.1 fd00::1"),
        (V4, &["."], "eth0 192.168.9.1 fd00::1"),
        (V6, &["^fd01:"], "eth1 10.0.0.5 fd01::1"),
        (V6, &["^fe80:"], "eth0 192.168.9.1 fe80::2"),
        (DUAL, &[r"^192\.168\.9|^fd01"], "no interface has both, and no name fits"),
        (DUAL, &[r"^192\.168\.9|^10\.0\.0\.6|^fd01"], "eth1 10.0.0.6 fd01::1"),
        (DUAL, &[r"^192\.168\.9", "^eth1$"], "eth1 10.0.0.5 fd01::1"),
    ] {
        match by_pattern(families, patterns) {
            Ok(chosen) => assert_eq!(chosen, expected, "{patterns:?}"),
            Err(why) => {
                assert!(expected.starts_with("no ") && why.contains("could not match"), "{patterns:?} {why}")
            }
        }
    }
    let error = by_pattern(V4, &["^lo$", "^nothing"]).expect_err("neither");
    let tried = "-iface-regex=^lo$: failed to find IPv4 address for interface lo; -iface-regex=^nothing: could not match \
                 pattern ^nothing to any of the available network interfaces (lo:[], eth0:[192.168.9.1], \
                 eth1:[10.0.0.5 10.0.0.6], wlan0:[]); this host has ";
    assert!(error.contains(tried), "{error}");
}

#[test]
fn the_first_matching_name_is_final() {
    // As in upstream flannel: the pattern matches wlan0, which has no address, and no other interface is tried.
    let error = by_pattern(V4, &["^wlan0$|^eth1x$"]).expect_err("wlan0 has no address");
    assert!(error.contains("failed to find IPv4 address for interface wlan0"), "{error}");
}

#[test]
fn the_route_to_a_reachable_address_decides() {
    let by_route = |families, lookup: Result<RouteLookup, String>| {
        let criteria = Criteria { can_reach: "10.9.9.9".parse().ok(), ..criteria(&["eth7"], None) };
        let outcome = search(&HostFacts { lookup: Some(lookup), ..host() }, &criteria, families);
        let chosen =
            outcome.selection.as_ref().map(|chosen| chosen.external.clone()).map_err(ToString::to_string);
        (chosen, texts(outcome.lines(&criteria, None)))
    };
    let lookup = RouteLookup { index: 3, source: "10.0.0.6".parse().ok() };
    let chosen = by_route(DUAL, Ok(lookup)).0.expect("eth1");
    assert_eq!(
        (chosen.name.as_str(), chosen.v4, chosen.v6),
        ("eth1", "10.0.0.6".parse().ok(), "fd01::1".parse().ok())
    );
    let chosen = by_route(V4, Ok(RouteLookup { index: 3, source: "fd01::1".parse().ok() })).0.expect("eth1");
    assert_eq!(chosen.v4, "10.0.0.5".parse().ok());
    let (chosen, logged) = by_route(V4, Err("network unreachable".to_owned()));
    let error = chosen.expect_err("no route");
    assert!(error.contains("-iface-can-reach=10.9.9.9: network unreachable; this host has"), "{error}");
    assert_eq!(
        logged[1],
        "Could not find valid interface matching ifaceCanReach: 10.9.9.9: network unreachable"
    );
}

#[test]
fn own_public_addresses_of_both_families_are_on_one_interface() {
    let dual = |items: &[&str], v4: &str, v6: &str| {
        let criteria = Criteria { public_v6: v6.parse().ok(), ..criteria(items, Some(v4)) };
        let chosen = search(&host(), &criteria, DUAL).selection.map_err(|error| error.to_string());
        chosen.map(|chosen| {
            let ExternalInterface { name, v4, v6, .. } = chosen.external;
            format!("{name} {} {}", v4.expect("IPv4"), v6.expect("IPv6"))
        })
    };
    assert_eq!(dual(&[], "10.0.0.6", "fd01::1").as_deref(), Ok("eth1 10.0.0.6 fd01::1"));
    assert_eq!(dual(&[], "10.0.0.6", "2001:db8::1").as_deref(), Ok("eth1 10.0.0.6 fd01::1"), "behind a NAT");
    assert_eq!(dual(&["192.168.9.1"], "203.0.113.7", "fe80::2").as_deref(), Ok("eth0 192.168.9.1 fe80::2"));
    assert_eq!(dual(&["eth0"], "203.0.113.7", "fd01::1").as_deref(), Ok("eth0 192.168.9.1 fd00::1"));
    for (items, v4) in [(&[][..], "192.168.9.1"), (&["192.168.9.1"], "203.0.113.7")] {
        let error = dual(items, v4, "fd01::1").expect_err("two interfaces");
        assert!(error.contains("v6 interface eth1 must be the same with v4 interface eth0"), "{error}");
    }
}

#[test]
fn the_selection_names_the_deciding_rule() {
    let selected_by = |facts: &HostFacts, criteria: &Criteria| {
        search(facts, criteria, V4).selection.expect("an interface").selected_by
    };
    let at = |text: &str| SelectedBy::Address(text.parse().expect("address"));
    for (items, public_ip, expected) in [
        (&[][..], None, SelectedBy::DefaultRoute),
        (&[""], None, SelectedBy::DefaultRoute),
        (&["eth0"], None, SelectedBy::Name),
        (&["eth7", "eth0"], None, SelectedBy::Name),
        (&["192.168.9.1"], None, at("192.168.9.1")),
        (&["10.0.0.1", "fd00::1"], None, at("fd00::1")),
        (&[], Some("192.168.9.1"), at("192.168.9.1")),
        (&[], Some("203.0.113.7"), SelectedBy::DefaultRoute),
        (&["eth0"], Some("192.168.9.1"), SelectedBy::Name),
    ] {
        assert_eq!(selected_by(&host(), &criteria(items, public_ip)), expected, "{items:?} {public_ip:?}");
    }
    for (pattern, expected) in
        [("^10", SelectedBy::Pattern), ("^eth", SelectedBy::Name), ("", SelectedBy::DefaultRoute)]
    {
        let patterns = vec![InterfacePattern::new(pattern).expect("a pattern")];
        assert_eq!(
            selected_by(&host(), &Criteria { patterns, ..Criteria::default() }),
            expected,
            "{pattern}"
        );
    }
    let facts = HostFacts { lookup: Some(Ok(RouteLookup { index: 3, source: None })), ..host() };
    assert_eq!(
        selected_by(&facts, &Criteria { can_reach: "10.9.9.9".parse().ok(), ..Criteria::default() }),
        SelectedBy::Reachability
    );
}
