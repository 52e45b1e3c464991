//! The tracked state of a selected interface.

use std::net::Ipv4Addr;

use super::*;
use crate::external::facts::{AddressFacts, DefaultRoute, RouteLookup};
use crate::external::pattern::InterfacePattern;

fn fact(text: &str) -> AddressFacts {
    let address = text.parse().expect("address");
    AddressFacts { address, permanent: true, deprecated: false, temporary: false, single_host: false }
}

fn link_fact(index: u32, name: &str, addresses: &[&str]) -> LinkFacts {
    let addresses = addresses.iter().map(|text| fact(text)).collect();
    LinkFacts { index, name: name.to_owned(), alternative_names: Vec::new(), mtu: 1500, addresses }
}

fn facts(links: &[LinkFacts], default_route: Option<u32>) -> HostFacts {
    let routes: Vec<_> = default_route.map(|index| DefaultRoute { index: Some(index) }).into_iter().collect();
    HostFacts {
        links: links.to_vec(),
        default_routes_v4: routes.clone(),
        default_routes_v6: routes,
        lookup: None,
    }
}

const DUAL: IpFamilies = IpFamilies::BOTH;

/// An interface with both families.
fn known() -> ExternalInterface {
    let (v4, v6) = ("192.168.9.1".parse().ok(), "fd00::1".parse().ok());
    ExternalInterface::new("eth0", 2, 1500, PublicAddrs { v4, v6 })
}

/// Returns its current state, as `name index v4 v6`, and what is missing.
fn tracked(selected_by: SelectedBy, facts: &HostFacts) -> (String, Option<String>) {
    let TrackedState { external, missing, .. } =
        track(facts, &Criteria::default(), DUAL, selected_by, &known(), PublicAddrs::default());
    let ExternalInterface { name, index, v4, v6, public, .. } = external;
    assert_eq!(public, PublicAddrs { v4, v6 });
    (format!("{name} {index} {} {}", v4.expect("IPv4"), v6.expect("IPv6")), missing)
}

const SAME: &str = "eth0 2 192.168.9.1 fd00::1";

#[test]
fn an_address_is_kept_while_it_exists() {
    let more = link_fact(2, "eth0", &["10.0.0.9", "192.168.9.1", "fd00::9", "fd00::1", "fe80::2"]);
    for selected_by in [SelectedBy::Name, SelectedBy::DefaultRoute] {
        assert_eq!(
            tracked(selected_by, &facts(std::slice::from_ref(&more), Some(2))),
            (SAME.to_owned(), None)
        );
    }
}

#[test]
fn a_returned_address_is_preferred_to_the_one_that_replaced_it() {
    let home = PublicAddrs { v4: "192.168.9.1".parse().ok(), v6: "fd00::1".parse().ok() };
    let known =
        ExternalInterface::new("eth0", 2, 1500, "192.168.9.100".parse::<Ipv4Addr>().expect("address"));
    let now = |addresses: &[&str]| {
        let facts = facts(&[link_fact(2, "eth0", addresses)], None);
        let by = SelectedBy::Name;
        track(&facts, &Criteria::default(), IpFamilies::V4, by, &known, home).external.v4
    };
    assert_eq!(now(&["192.168.9.100"]), known.v4);
    assert_eq!(now(&["192.168.9.100", "192.168.9.7"]), known.v4, "others are not");
    assert_eq!(now(&["192.168.9.100", "192.168.9.1"]), home.v4);
}

#[test]
fn a_removed_address_is_replaced() {
    let others = facts(&[link_fact(2, "eth0", &["192.168.9.77", "fd00::77", "fe80::2"])], Some(2));
    for selected_by in [SelectedBy::Name, SelectedBy::DefaultRoute] {
        assert_eq!(tracked(selected_by, &others), ("eth0 2 192.168.9.77 fd00::77".to_owned(), None));
    }
    let mut deprecated = fact("192.168.9.1");
    deprecated.deprecated = true;
    let mut link = link_fact(2, "eth0", &["192.168.9.77", "fd00::1"]);
    link.addresses.insert(0, deprecated);
    assert_eq!(tracked(SelectedBy::Name, &facts(&[link], None)).0, "eth0 2 192.168.9.77 fd00::1");
}

#[test]
fn without_an_address_the_last_one_is_kept_and_reported() {
    for addresses in [&[][..], &["fd00::1"], &["169.254.3.3", "fd00::1"]] {
        let (now, missing) = tracked(SelectedBy::Name, &facts(&[link_fact(2, "eth0", addresses)], None));
        assert_eq!(now, SAME, "{addresses:?}");
        assert_eq!(missing.as_deref(), Some("eth0 has no usable IPv4 address"), "{addresses:?}");
    }
    let (now, missing) =
        tracked(SelectedBy::Name, &facts(&[link_fact(2, "eth0", &["192.168.9.5", "fe80::2"])], None));
    assert_eq!(now, "eth0 2 192.168.9.5 fd00::1", "each family is tracked on its own");
    assert_eq!(missing.as_deref(), Some("eth0 has no usable IPv6 address"));
}

#[test]
fn a_name_is_tracked_to_its_current_interface() {
    let host = facts(
        &[link_fact(3, "lan0", &["192.168.9.1", "fd00::1"]), link_fact(9, "eth0", &["10.1.1.1", "fd01::1"])],
        Some(3),
    );
    assert_eq!(tracked(SelectedBy::Name, &host).0, "eth0 9 10.1.1.1 fd01::1");
    let (now, missing) =
        tracked(SelectedBy::Name, &facts(&[link_fact(3, "lan0", &["192.168.9.1"])], Some(3)));
    assert_eq!((now.as_str(), missing.as_deref()), (SAME, Some("there is no interface eth0")));
}

#[test]
fn an_address_is_tracked_to_its_current_interface() {
    let selected_by = SelectedBy::Address("192.168.9.1".parse().expect("address"));
    let mut bridge = link_fact(7, "br0", &["192.168.9.1", "fd00::1"]);
    let eth0 = link_fact(2, "eth0", &["10.0.0.1"]);
    assert_eq!(
        tracked(selected_by, &facts(&[eth0.clone(), bridge.clone()], None)).0,
        "br0 7 192.168.9.1 fd00::1"
    );
    let (now, missing) = tracked(selected_by, &facts(std::slice::from_ref(&eth0), Some(2)));
    assert_eq!((now.as_str(), missing.as_deref()), (SAME, Some("no interface has the address 192.168.9.1")));
    // An address that was named explicitly may be deprecated.
    bridge.addresses[0].deprecated = true;
    assert_eq!(tracked(selected_by, &facts(&[eth0, bridge], None)).0, "br0 7 192.168.9.1 fd00::1");
}

#[test]
fn the_default_route_is_tracked_to_an_interface_with_the_same_families() {
    let links =
        |eth1: &[&str]| [link_fact(2, "eth0", &["192.168.9.1", "fd00::1"]), link_fact(3, "eth1", eth1)];
    let selected_by = SelectedBy::DefaultRoute;
    let both = links(&["10.0.0.1", "fd01::1"]);
    assert_eq!(tracked(selected_by, &facts(&both, Some(3))).0, "eth1 3 10.0.0.1 fd01::1");
    let (now, missing) = tracked(selected_by, &facts(&links(&["10.0.0.1"]), Some(3)));
    assert_eq!((now.as_str(), missing.as_deref()), (SAME, Some("eth1 has no usable IPv6 address")));
    assert_eq!(
        tracked(selected_by, &facts(&both, None)),
        (SAME.to_owned(), None),
        "no default route for a moment"
    );
}

#[test]
fn a_given_public_address_is_kept_and_the_mtu_is_tracked() {
    let mut link = link_fact(2, "eth0", &["192.168.9.77", "fd00::1"]);
    link.mtu = 9000;
    let criteria = Criteria { public_v4: "203.0.113.7".parse().ok(), ..Criteria::default() };
    let now =
        track(&facts(&[link], None), &criteria, DUAL, SelectedBy::Name, &known(), PublicAddrs::default())
            .external;
    assert_eq!((now.v4, now.mtu), ("192.168.9.77".parse().ok(), 9000));
    assert_eq!(now.public.v4, "203.0.113.7".parse().ok());
}

#[test]
fn a_family_that_is_not_in_use_is_ignored() {
    let links = [link_fact(2, "eth0", &["192.168.9.1"]), link_fact(3, "eth1", &["10.0.0.1"])];
    let (criteria, by) = (Criteria::default(), SelectedBy::DefaultRoute);
    let tracked = |route| {
        track(&facts(&links, Some(route)), &criteria, IpFamilies::V4, by, &known(), PublicAddrs::default())
    };
    assert_eq!(tracked(2), TrackedState { external: known(), missing: None, is_lost: false });
    let moved = tracked(3);
    assert_eq!((moved.external.name.as_str(), moved.missing), ("eth1", None));
}

#[test]
fn a_pattern_decides_again_once_the_matching_address_is_gone() {
    let patterns = InterfacePattern::new(r"^192\.168\.9\.").into_iter().collect();
    let criteria = Criteria { patterns, ..Criteria::default() };
    let now = |links: &[LinkFacts]| {
        let TrackedState { external, missing, .. } = track(
            &facts(links, None),
            &criteria,
            IpFamilies::V4,
            SelectedBy::Pattern,
            &known(),
            PublicAddrs::default(),
        );
        (format!("{} {}", external.name, external.v4.expect("IPv4")), missing)
    };
    let eth0 = |addresses: &[&str]| link_fact(2, "eth0", addresses);
    let eth1 = link_fact(1, "eth1", &["10.0.0.1", "192.168.9.7"]);
    assert_eq!(
        now(&[eth1.clone(), eth0(&["192.168.9.1"])]),
        ("eth0 192.168.9.1".to_owned(), None),
        "it is kept"
    );
    assert_eq!(now(&[eth0(&["10.0.0.2", "192.168.9.9"])]), ("eth0 192.168.9.9".to_owned(), None));
    assert_eq!(now(&[eth1, eth0(&["10.0.0.2"])]), ("eth1 192.168.9.7".to_owned(), None));
    let why = Some("no interface has an address that matches -iface-regex".to_owned());
    assert_eq!(now(&[eth0(&["10.0.0.2"])]), ("eth0 192.168.9.1".to_owned(), why));
}

#[test]
fn the_route_to_an_address_is_tracked_and_the_interface_kept_without_one() {
    let links = [link_fact(2, "eth0", &["192.168.9.1"]), link_fact(3, "eth1", &["10.0.0.1", "10.0.0.2"])];
    let now = |lookup: Result<RouteLookup, String>| {
        let facts = HostFacts { lookup: Some(lookup), ..facts(&links, None) };
        let (criteria, by) = (Criteria::default(), SelectedBy::Reachability);
        let now = track(&facts, &criteria, IpFamilies::V4, by, &known(), PublicAddrs::default()).external;
        format!("{} {}", now.name, now.v4.expect("IPv4"))
    };
    assert_eq!(now(Ok(RouteLookup { index: 3, source: "10.0.0.2".parse().ok() })), "eth1 10.0.0.2");
    assert_eq!(now(Ok(RouteLookup { index: 2, source: None })), "eth0 192.168.9.1");
    assert_eq!(now(Err("unreachable".to_owned())), "eth0 192.168.9.1");
}

#[test]
fn an_interface_is_lost_once_the_host_has_none_of_its_addresses() {
    let is_lost = |links: &[LinkFacts], route| {
        let (criteria, by) = (Criteria::default(), SelectedBy::DefaultRoute);
        track(&facts(links, route), &criteria, DUAL, by, &known(), PublicAddrs::default()).is_lost
    };
    let whole = link_fact(2, "eth0", &["192.168.9.1", "fd00::1"]);
    assert!(!is_lost(std::slice::from_ref(&whole), None));
    assert!(is_lost(&[link_fact(2, "eth0", &["fd00::1"])], Some(2)), "a family is gone");
    assert!(is_lost(&[], None), "the interface is gone");
    let incomplete = link_fact(3, "eth1", &["10.0.0.1"]);
    assert!(!is_lost(&[whole, incomplete], Some(3)), "the old interface is still complete");
}
