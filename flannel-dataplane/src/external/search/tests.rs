//! The search on a small host, which each test changes as it needs.

use super::super::address::preferred;
use super::super::facts::AddressFacts;
use super::*;

mod criteria;

fn address(text: &str) -> AddressFacts {
    let address = text.parse().expect("address");
    AddressFacts { address, permanent: true, deprecated: false, temporary: false, single_host: false }
}

fn link(index: u32, name: &str, addresses: &[&str]) -> LinkFacts {
    let addresses = addresses.iter().map(|text| address(text)).collect();
    LinkFacts { index, name: name.to_owned(), alternative_names: Vec::new(), mtu: 1500, addresses }
}

fn via(index: u32) -> DefaultRoute {
    DefaultRoute { index: Some(index) }
}

/// A route that rejects packets.
const UNREACHABLE: DefaultRoute = DefaultRoute { index: None };

/// A host with a default route over `eth0`.
fn host() -> HostFacts {
    HostFacts {
        links: vec![
            link(1, "lo", &["127.0.0.1", "::1"]),
            link(2, "eth0", &["192.168.9.1", "fd00::1", "fe80::2"]),
            link(3, "eth1", &["10.0.0.5", "10.0.0.6", "fd01::1"]),
            link(4, "wlan0", &[]),
        ],
        default_routes_v4: vec![via(2), via(3)],
        default_routes_v6: vec![via(2)],
        lookup: None,
    }
}

/// Returns the texts of log lines.
fn texts(lines: Vec<LogLine>) -> Vec<String> {
    let text = |line| match line {
        LogLine::Info(line) | LogLine::Warning(line) => line,
    };
    lines.into_iter().map(text).collect()
}

const V4: IpFamilies = IpFamilies::V4;
const DUAL: IpFamilies = IpFamilies::BOTH;

/// Criteria with interfaces and a public address.
fn criteria(items: &[&str], public_ip: Option<&str>) -> Criteria {
    let interfaces = items.iter().map(ToString::to_string).collect();
    let public_v4 = public_ip.map(|text| text.parse().expect("address"));
    Criteria { interfaces, public_v4, ..Criteria::default() }
}

/// Returns the selected interface and the log lines.
fn selected(
    facts: &HostFacts,
    families: IpFamilies,
    items: &[&str],
    public_ip: Option<&str>,
) -> (Result<ExternalInterface, String>, Vec<String>) {
    let criteria = criteria(items, public_ip);
    let outcome = search(facts, &criteria, families);
    let logged = texts(outcome.lines(&criteria, None));
    let external = outcome.selection.map(|selection| selection.external);
    (external.map_err(|error| error.to_string()), logged)
}

/// Returns the interface that is selected for IPv4, as `name own-address public-address`.
fn summary(facts: &HostFacts, items: &[&str], public_ip: Option<&str>) -> Result<String, String> {
    selected(facts, V4, items, public_ip).0.map(|chosen| {
        let (own, public) = (chosen.v4.expect("IPv4"), chosen.public.v4.expect("IPv4"));
        format!("{} {own} {public}", chosen.name)
    })
}

#[test]
fn interfaces_are_tried_in_order_and_the_default_route_is_the_fallback() {
    for (items, public_ip, expected) in [
        (&[][..], None, "eth0 192.168.9.1 192.168.9.1"),
        (&["eth1"], None, "eth1 10.0.0.5 10.0.0.5"),
        (&["10.0.0.6"], None, "eth1 10.0.0.6 10.0.0.6"),
        (&["fd01::1"], None, "eth1 10.0.0.5 10.0.0.5"),
        (&["eth9", "10.9.9.9", "eth1", "eth0"], None, "eth1 10.0.0.5 10.0.0.5"),
        (&["wlan0", "eth1"], None, "eth1 10.0.0.5 10.0.0.5"),
        (&["lo", "eth1"], None, "eth1 10.0.0.5 10.0.0.5"),
        (&["127.0.0.1"], None, "lo 127.0.0.1 127.0.0.1"),
        (&[""], None, "eth0 192.168.9.1 192.168.9.1"),
        (&["eth1"], Some("203.0.113.7"), "eth1 10.0.0.5 203.0.113.7"),
        (&["eth0"], Some("10.0.0.5"), "eth0 192.168.9.1 10.0.0.5"),
        (&[], Some("10.0.0.6"), "eth1 10.0.0.6 10.0.0.6"),
        (&[], Some("203.0.113.7"), "eth0 192.168.9.1 203.0.113.7"),
    ] {
        assert_eq!(summary(&host(), items, public_ip).as_deref(), Ok(expected), "{items:?} {public_ip:?}");
    }
}

#[test]
fn the_selection_has_index_and_mtu() {
    let mut facts = host();
    facts.links[2].mtu = 9000;
    let chosen = selected(&facts, V4, &["eth1"], None).0.expect("found");
    assert_eq!((chosen.index, chosen.mtu), (3, 9000));
}

#[test]
fn the_first_default_route_with_an_interface_decides() {
    for (routes, expected) in
        [(vec![via(3), via(2)], "eth1"), (vec![UNREACHABLE, via(3)], "eth1"), (vec![via(2), via(3)], "eth0")]
    {
        let facts = HostFacts { default_routes_v4: routes, ..host() };
        assert_eq!(selected(&facts, V4, &[], None).0.map(|chosen| chosen.name).as_deref(), Ok(expected));
    }
}

#[test]
fn an_error_without_a_default_route_is_one_line() {
    let has = "-iface can name one; this host has lo (127.0.0.1 ::1), eth0 (192.168.9.1 fd00::1 fe80::2), \
               eth1 (10.0.0.5 10.0.0.6 fd01::1), wlan0 (no address)";
    for (routes, why) in [
        (vec![], "failed to get default interface: unable to find default route"),
        (
            vec![UNREACHABLE],
            "failed to get default interface: found default route but could not determine interface",
        ),
        (vec![via(77)], "failed to get default interface: interface 77 of the default route does not exist"),
        (vec![via(4)], "failed to find IPv4 address for interface wlan0"),
    ] {
        let facts = HostFacts { default_routes_v4: routes, ..host() };
        let line = format!("Failed to find any valid interface to use: {why}; {has}");
        assert_eq!(summary(&facts, &[], None), Err(line));
    }
    let empty = summary(&HostFacts::default(), &[], None).expect_err("nothing there");
    assert!(empty.ends_with("this host has no interface"), "{empty}");
}

#[test]
fn an_error_names_each_rule_and_the_interfaces_of_the_host() {
    let mut facts = host();
    facts.links.truncate(2);
    facts.links[1].mtu = 0;
    let error = summary(&facts, &["eth9", "10.9.9.9", "lo", "eth0"], None).expect_err("nothing fits");
    assert_eq!(
        error,
        "Failed to find interface to use that matches the interfaces and/or regexes provided: \
         -iface=eth9: error looking up interface eth9: route ip+net: no such network interface; \
         -iface=10.9.9.9: error looking up interface 10.9.9.9: No interface with given IP found; \
         -iface=lo: failed to find IPv4 address for interface lo; \
         -iface=eth0: failed to determine MTU for 192.168.9.1 interface; \
         this host has lo (127.0.0.1 ::1), eth0 (192.168.9.1 fd00::1 fe80::2)"
    );
}

#[test]
fn an_error_on_a_host_with_many_interfaces_is_short() {
    let links = (1..=1000).map(|index| link(index, &format!("veth{index}"), &[])).collect();
    let error =
        summary(&HostFacts { links, ..HostFacts::default() }, &["eth0"], None).expect_err("not there");
    assert!(error.contains("veth20 (no address), 980 more") && !error.contains("veth21"), "{error}");
}

#[test]
fn the_best_address_of_an_interface_is_preferred() {
    let deprecated = AddressFacts { deprecated: true, ..address("10.0.0.1") };
    let from_dhcp = AddressFacts { permanent: false, ..address("10.0.0.2") };
    let secondary = AddressFacts { temporary: true, ..address("10.0.0.3") };
    let permanent = address("10.0.0.4");
    let link_local = address("169.254.0.5");
    let loopback = address("127.0.0.6");
    let useless = [loopback, address("0.0.0.0"), address("224.0.0.7"), address("255.255.255.255")];
    let floating = AddressFacts { single_host: true, ..address("10.0.0.11") };
    let floating_from_dhcp = AddressFacts { single_host: true, permanent: false, ..address("10.0.0.12") };
    for (addresses, best) in [
        (vec![floating, from_dhcp], Some("10.0.0.2")),
        (vec![floating, permanent], Some("10.0.0.4")),
        (vec![floating, floating_from_dhcp], Some("10.0.0.12")),
        (vec![floating, link_local], Some("10.0.0.11")),
        (vec![deprecated, link_local, from_dhcp, secondary, permanent], Some("10.0.0.4")),
        (vec![link_local, from_dhcp, secondary], Some("10.0.0.3")),
        (vec![link_local, from_dhcp], Some("10.0.0.2")),
        (vec![permanent, address("10.0.0.8")], Some("10.0.0.4")),
        (vec![loopback, link_local, address("169.254.0.9")], Some("169.254.0.5")),
        (vec![address("fd00::1"), permanent], Some("10.0.0.4")),
        (useless.to_vec(), None),
        (vec![deprecated], None),
    ] {
        let link = LinkFacts { addresses, ..link(1, "eth0", &[]) };
        assert_eq!(preferred(&link, as_v4), best.map(|text| text.parse().expect("address")), "{link:?}");
    }
}

#[test]
fn the_log_lines_are_those_of_upstream_flannel() {
    for (items, public_ip, expected) in [
        (
            &[][..],
            None,
            &[
                "Determining IP address of default interface",
                "Using interface with name eth0 and address 192.168.9.1",
                "Defaulting external address to interface address (192.168.9.1)",
            ][..],
        ),
        (
            &["eth9", "10.0.0.6"],
            Some("203.0.113.7"),
            &[
                "Could not find valid interface matching eth9: error looking up interface eth9: \
                 route ip+net: no such network interface",
                "Searching for interface using 10.0.0.6",
                "Using interface with name eth1 and address 10.0.0.6",
                "Using 203.0.113.7 as external address",
            ],
        ),
        (
            &[],
            Some("203.0.113.7"),
            &[
                "Searching for interface using 203.0.113.7",
                "no interface has the address 203.0.113.7 of -public-ip; using the interface of the default route",
                "Determining IP address of default interface",
                "Using interface with name eth0 and address 192.168.9.1",
                "Using 203.0.113.7 as external address",
            ],
        ),
    ] {
        assert_eq!(selected(&host(), V4, items, public_ip).1, expected, "{items:?} {public_ip:?}");
    }
}

#[test]
fn a_dual_stack_network_needs_one_interface_with_both_addresses() {
    let both = |facts: &HostFacts, items: &[&str]| {
        selected(facts, DUAL, items, None)
            .0
            .map(|c| format!("{} {} {}", c.name, c.public.v4.expect("IPv4"), c.public.v6.expect("IPv6")))
    };
    assert_eq!(both(&host(), &[]).as_deref(), Ok("eth0 192.168.9.1 fd00::1"));
    assert_eq!(both(&host(), &["fd01::1"]).as_deref(), Ok("eth1 10.0.0.5 fd01::1"));
    let apart = HostFacts { default_routes_v6: vec![via(3)], ..host() };
    let error = both(&apart, &[]).expect_err("two interfaces");
    assert!(
        error.contains(
            "v6 default route interface eth1 must be the same with v4 default route interface eth0"
        ),
        "{error}"
    );
    let mut without = host();
    without.links[2].addresses.truncate(2);
    let error = both(&without, &["eth1"]).expect_err("no IPv6");
    assert!(error.contains("failed to find IPv6 address for interface eth1"), "{error}");
}

#[test]
fn an_ipv6_network_needs_no_ipv4_address() {
    let v6 = IpFamilies::V6;
    let facts = HostFacts { default_routes_v4: vec![], ..host() };
    let (chosen, logged) = selected(&facts, v6, &[], None);
    let chosen = chosen.expect("found");
    assert_eq!(chosen.v4, "192.168.9.1".parse().ok(), "the selection keeps its other addresses");
    assert_eq!(chosen.public.v6, "fd00::1".parse().ok());
    assert_eq!(
        logged,
        [
            "Determining IP address of default interface",
            "Using interface with name eth0 and v6 address fd00::1",
            "Defaulting external v6 address to interface address (fd00::1)",
        ]
    );
}

#[test]
fn before_the_families_are_known_ipv4_is_preferred_to_ipv6() {
    let any = |facts: &HostFacts, items: &[&str]| {
        let chosen = search_any(facts, &criteria(items, None)).selection.expect("an interface").external;
        assert_eq!((chosen.v4, chosen.v6), (chosen.public.v4, chosen.public.v6));
        (chosen.name, chosen.v4.map(|v4| v4.to_string()), chosen.v6.map(|v6| v6.to_string()))
    };
    let of = |name: &str, v4: &str, v6: Option<&str>| {
        (name.to_owned(), Some(v4.to_owned()).filter(|v4| !v4.is_empty()), v6.map(str::to_owned))
    };
    let mut facts = host();
    assert_eq!(any(&facts, &[]), of("eth0", "192.168.9.1", Some("fd00::1")));
    assert_eq!(any(&facts, &["eth1"]), of("eth1", "10.0.0.5", Some("fd01::1")));
    facts.links[1].addresses.retain(|fact| !is_global(fact.address) || fact.address.is_ipv4());
    assert_eq!(any(&facts, &[]), of("eth0", "192.168.9.1", None), "a link-local address is left out");
    facts.links[2].addresses.retain(|fact| fact.address.is_ipv6());
    assert_eq!(any(&facts, &["eth1"]), of("eth1", "", Some("fd01::1")), "though another interface has IPv4");
    let error = search_any(&facts, &criteria(&["wlan0"], None)).selection.expect_err("no address");
    assert!(error.to_string().contains("failed to find IPv4 address for interface wlan0"), "{error}");
    facts.links[1].addresses.clear();
    let error = search_any(&facts, &criteria(&["wlan0"], None)).selection.expect_err("no address");
    assert!(error.to_string().contains("failed to find IPv6 address for interface wlan0"), "{error}");
}

#[test]
fn only_changes_are_logged_again() {
    let criteria = criteria(&["eth9", "eth0"], None);
    let first = search_any(&host(), &criteria);
    assert_eq!(texts(search(&host(), &criteria, V4).lines(&criteria, Some(&first))), [""; 0]);
    let v6 = [
        "Using interface with name eth0 and v6 address fd00::1",
        "Defaulting external v6 address to interface address (fd00::1)",
    ];
    assert_eq!(texts(search(&host(), &criteria, DUAL).lines(&criteria, Some(&first))), v6);
    let mut moved = host();
    moved.links[1].addresses[0] = address("192.168.9.7");
    let logged = texts(search(&moved, &criteria, V4).lines(&criteria, Some(&first)));
    assert_eq!(logged.len(), 3, "{logged:?}");
    assert!(
        logged[0].contains("matching eth9") && logged[1].ends_with("and address 192.168.9.7"),
        "{logged:?}"
    );
}

#[test]
fn an_interface_is_also_found_by_an_alternative_name() {
    let mut facts = host();
    facts.links[2].alternative_names = vec!["enp3s0".to_owned()];
    let found = search(&facts, &criteria(&["enp3s0"], None), V4).selection.expect("eth1");
    assert_eq!(found.external.name, "eth1");
}
