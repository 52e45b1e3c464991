//! Cases of what becomes of a choice.

use super::*;
use crate::external::select::{AddressFact, DefaultRoute, Pattern, Way};

fn fact(text: &str) -> AddressFact {
    let address = text.parse().expect("address");
    AddressFact { address, permanent: true, deprecated: false, temporary: false }
}

fn link_fact(index: u32, name: &str, addresses: &[&str]) -> LinkFact {
    let addresses = addresses.iter().map(|text| fact(text)).collect();
    LinkFact { index, name: name.to_owned(), mtu: 1500, addresses }
}

fn facts(links: &[LinkFact], default_route: Option<u32>) -> Facts {
    let routes: Vec<_> = default_route.map(|index| DefaultRoute { index: Some(index) }).into_iter().collect();
    Facts { links: links.to_vec(), default_routes_v4: routes.clone(), default_routes_v6: routes, way: None }
}

const DUAL: Families = Families { v4: true, v6: true };

/// The interface of a host that has both families.
fn known() -> ExternalInterface {
    let (v4, v6) = ("192.168.9.1".parse().ok(), "fd00::1".parse().ok());
    ExternalInterface::new("eth0", 2, 1500, PublicAddrs { v4, v6 })
}

/// What becomes of it, as `name index v4 v6`, and what is missing.
fn followed(basis: Basis, facts: &Facts) -> (String, Option<String>) {
    let Followed { external, missing } = follow(facts, &Wishes::default(), DUAL, basis, &known());
    let ExternalInterface { name, index, v4, v6, public, .. } = external;
    assert_eq!(public, PublicAddrs { v4, v6 });
    (format!("{name} {index} {} {}", v4.expect("IPv4"), v6.expect("IPv6")), missing)
}

const SAME: &str = "eth0 2 192.168.9.1 fd00::1";

#[test]
fn an_address_is_kept_as_long_as_it_is_there() {
    let more = link_fact(2, "eth0", &["10.0.0.9", "192.168.9.1", "fd00::9", "fd00::1", "fe80::2"]);
    for basis in [Basis::Name, Basis::DefaultRoute] {
        assert_eq!(followed(basis, &facts(std::slice::from_ref(&more), Some(2))), (SAME.to_owned(), None));
    }
}

#[test]
fn an_address_that_went_is_replaced_by_the_one_that_is_there() {
    let others = facts(&[link_fact(2, "eth0", &["192.168.9.77", "fd00::77", "fe80::2"])], Some(2));
    for basis in [Basis::Name, Basis::DefaultRoute] {
        assert_eq!(followed(basis, &others), ("eth0 2 192.168.9.77 fd00::77".to_owned(), None));
    }
    let mut deprecated = fact("192.168.9.1");
    deprecated.deprecated = true;
    let mut link = link_fact(2, "eth0", &["192.168.9.77", "fd00::1"]);
    link.addresses.insert(0, deprecated);
    assert_eq!(followed(Basis::Name, &facts(&[link], None)).0, "eth0 2 192.168.9.77 fd00::1");
}

#[test]
fn without_an_address_the_last_one_stays_and_that_is_said() {
    for addresses in [&[][..], &["fd00::1"], &["169.254.3.3", "fd00::1"]] {
        let (now, missing) = followed(Basis::Name, &facts(&[link_fact(2, "eth0", addresses)], None));
        assert_eq!(now, SAME, "{addresses:?}");
        assert_eq!(missing.as_deref(), Some("eth0 has no IPv4 address that can be used"), "{addresses:?}");
    }
    let (now, missing) =
        followed(Basis::Name, &facts(&[link_fact(2, "eth0", &["192.168.9.5", "fe80::2"])], None));
    assert_eq!(now, "eth0 2 192.168.9.5 fd00::1", "each family by itself");
    assert_eq!(missing.as_deref(), Some("eth0 has no IPv6 address that can be used"));
}

#[test]
fn a_name_is_followed_to_the_interface_that_has_it_now() {
    let host = facts(
        &[link_fact(3, "lan0", &["192.168.9.1", "fd00::1"]), link_fact(9, "eth0", &["10.1.1.1", "fd01::1"])],
        Some(3),
    );
    assert_eq!(followed(Basis::Name, &host).0, "eth0 9 10.1.1.1 fd01::1");
    let (now, missing) = followed(Basis::Name, &facts(&[link_fact(3, "lan0", &["192.168.9.1"])], Some(3)));
    assert_eq!((now.as_str(), missing.as_deref()), (SAME, Some("there is no interface eth0")));
}

#[test]
fn an_address_is_followed_to_the_interface_that_has_it_now() {
    let basis = Basis::Address("192.168.9.1".parse().expect("address"));
    let mut bridge = link_fact(7, "br0", &["192.168.9.1", "fd00::1"]);
    let eth0 = link_fact(2, "eth0", &["10.0.0.1"]);
    assert_eq!(followed(basis, &facts(&[eth0.clone(), bridge.clone()], None)).0, "br0 7 192.168.9.1 fd00::1");
    let (now, missing) = followed(basis, &facts(std::slice::from_ref(&eth0), Some(2)));
    assert_eq!((now.as_str(), missing.as_deref()), (SAME, Some("no interface has the address 192.168.9.1")));
    // The operator named it, so it may be old.
    bridge.addresses[0].deprecated = true;
    assert_eq!(followed(basis, &facts(&[eth0, bridge], None)).0, "br0 7 192.168.9.1 fd00::1");
}

#[test]
fn the_default_route_is_followed_to_another_interface_only_if_that_has_the_same_families() {
    let links =
        |eth1: &[&str]| [link_fact(2, "eth0", &["192.168.9.1", "fd00::1"]), link_fact(3, "eth1", eth1)];
    let basis = Basis::DefaultRoute;
    let both = links(&["10.0.0.1", "fd01::1"]);
    assert_eq!(followed(basis, &facts(&both, Some(3))).0, "eth1 3 10.0.0.1 fd01::1");
    let (now, missing) = followed(basis, &facts(&links(&["10.0.0.1"]), Some(3)));
    assert_eq!((now.as_str(), missing.as_deref()), (SAME, Some("eth1 has no IPv6 address that can be used")));
    assert_eq!(followed(basis, &facts(&both, None)), (SAME.to_owned(), None), "no default route for a while");
}

#[test]
fn a_public_address_that_was_given_stays_and_the_mtu_is_followed() {
    let mut link = link_fact(2, "eth0", &["192.168.9.77", "fd00::1"]);
    link.mtu = 9000;
    let wishes = Wishes { public_v4: "203.0.113.7".parse().ok(), ..Wishes::default() };
    let now = follow(&facts(&[link], None), &wishes, DUAL, Basis::Name, &known()).external;
    assert_eq!((now.v4, now.mtu), ("192.168.9.77".parse().ok(), 9000));
    assert_eq!(now.public.v4, "203.0.113.7".parse().ok());
}

#[test]
fn a_family_that_is_not_in_use_decides_nothing() {
    let links = [link_fact(2, "eth0", &["192.168.9.1"]), link_fact(3, "eth1", &["10.0.0.1"])];
    let (wishes, families) = (Wishes::default(), Families { v4: true, v6: false });
    let followed =
        |route| follow(&facts(&links, Some(route)), &wishes, families, Basis::DefaultRoute, &known());
    assert_eq!(followed(2), Followed { external: known(), missing: None });
    let moved = followed(3);
    assert_eq!((moved.external.name.as_str(), moved.missing), ("eth1", None));
}

#[test]
fn a_pattern_is_followed_when_the_address_that_it_fits_is_gone() {
    let wishes =
        Wishes { patterns: Pattern::new(r"^192\.168\.9\.").into_iter().collect(), ..Wishes::default() };
    let families = Families { v4: true, v6: false };
    let now = |links: &[LinkFact]| {
        let Followed { external, missing } =
            follow(&facts(links, None), &wishes, families, Basis::Pattern, &known());
        (format!("{} {}", external.name, external.v4.expect("IPv4")), missing)
    };
    let eth0 = |addresses: &[&str]| link_fact(2, "eth0", addresses);
    let eth1 = link_fact(1, "eth1", &["10.0.0.1", "192.168.9.7"]);
    assert_eq!(
        now(&[eth1.clone(), eth0(&["192.168.9.1"])]),
        ("eth0 192.168.9.1".to_owned(), None),
        "it stays"
    );
    assert_eq!(now(&[eth0(&["10.0.0.2", "192.168.9.9"])]), ("eth0 192.168.9.9".to_owned(), None));
    assert_eq!(now(&[eth1, eth0(&["10.0.0.2"])]), ("eth1 192.168.9.7".to_owned(), None));
    let why = Some("no interface has an address that -iface-regex fits".to_owned());
    assert_eq!(now(&[eth0(&["10.0.0.2"])]), ("eth0 192.168.9.1".to_owned(), why));
}

#[test]
fn the_way_to_an_address_is_followed_and_kept_while_there_is_none() {
    let links = [link_fact(2, "eth0", &["192.168.9.1"]), link_fact(3, "eth1", &["10.0.0.1", "10.0.0.2"])];
    let families = Families { v4: true, v6: false };
    let now = |way: Result<Way, String>| {
        let facts = Facts { way: Some(way), ..facts(&links, None) };
        let now = follow(&facts, &Wishes::default(), families, Basis::Way, &known()).external;
        format!("{} {}", now.name, now.v4.expect("IPv4"))
    };
    assert_eq!(now(Ok(Way { index: 3, source: "10.0.0.2".parse().ok() })), "eth1 10.0.0.2");
    assert_eq!(now(Ok(Way { index: 2, source: None })), "eth0 192.168.9.1");
    assert_eq!(now(Err("unreachable".to_owned())), "eth0 192.168.9.1");
}
