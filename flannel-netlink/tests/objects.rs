//! Addresses, routes, neighbours and forwarding entries, one at a time.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::cloned_ref_to_slice_refs,
    reason = "a failed step or an unexpected result fails the test"
)]

mod common;

use common::*;
use flannel_netlink::{
    Address, Error, FdbEntry, IpFamily, Neighbour, NeighbourState, Netlink, NewLink, NewLinkKind, Route,
    RouteFilter, RouteKind, WriteRequest,
};

/// Applies writes and checks that all succeed.
fn apply(netlink: &mut Netlink, writes: &[WriteRequest]) {
    for (result, write) in netlink.apply(writes).into_iter().zip(writes) {
        result.unwrap_or_else(|error| panic!("{write}: {error:?}"));
    }
}

fn routes_on(netlink: &mut Netlink, index: u32, family: IpFamily) -> Vec<Route> {
    let filter = RouteFilter {
        family: Some(family),
        index: Some(index),
        protocol: Some(Route::PROTOCOL_BOOT),
        ..RouteFilter::default()
    };
    netlink.routes(&filter).unwrap()
}

#[test]
fn an_address_of_either_family_is_added_read_and_deleted() {
    let (_namespace, mut netlink, index) = namespace_with_vxlan();
    for text in ["10.5.1.0/32", "fd99:30:0:1::/128"] {
        let address = Address { flags: Address::NO_DAD, ..Address::new(index, net(text)) };
        netlink.add_address(&address).unwrap();
        let found = netlink.addresses(index).unwrap().into_iter().find(|found| found.net == address.net);
        let found = found.expect("the address");
        assert_eq!((found.index, found.scope, found.peer), (index, 0, None));
        assert!(found.is_usable());

        assert!(netlink.add_address(&address).unwrap_err().is_exists());
        apply(&mut netlink, &[WriteRequest::PutAddress(address.clone())]);
        netlink.delete_address(&found).unwrap();
        assert!(netlink.addresses(index).unwrap().iter().all(|found| found.net != address.net));
        netlink.delete_address(&found).unwrap();
    }
}

#[test]
fn a_tentative_ipv6_address_is_not_usable() {
    let (_namespace, mut netlink, index) = namespace_with_ethernet();
    netlink.add_address(&Address::new(index, net("fd88::1/64"))).unwrap();
    let find = |netlink: &mut Netlink| {
        netlink.addresses(index).unwrap().into_iter().find(|found| found.net == net("fd88::1/64")).unwrap()
    };
    assert!(!find(&mut netlink).is_usable());
    eventually("the end of duplicate address detection", || find(&mut netlink).is_usable().then_some(()));
}

#[test]
fn addresses_are_read_by_link() {
    let (_namespace, mut netlink, index) = namespace_with_ethernet();
    let other = netlink.link("eth0-far").unwrap().unwrap().index;
    netlink.add_address(&Address::new(index, net("10.1.0.1/24"))).unwrap();
    netlink.add_address(&Address::new(other, net("10.2.0.1/24"))).unwrap();
    let of = |netlink: &mut Netlink, index| -> Vec<String> {
        let mut found: Vec<_> = netlink.addresses(index).unwrap().iter().map(|found| found.net).collect();
        found.retain(|net| net.addr().is_ipv4() && !net.addr().is_loopback());
        found.sort();
        found.iter().map(ToString::to_string).collect()
    };
    assert_eq!(of(&mut netlink, index), ["10.1.0.1/24"]);
    assert_eq!(of(&mut netlink, 0), ["10.1.0.1/24", "10.2.0.1/24"]);
    assert_eq!(of(&mut netlink, 999), [""; 0]);
}

#[test]
fn an_overlay_route_reads_back_as_it_was_put() {
    let (_namespace, mut netlink, index) = namespace_with_vxlan();
    let v4 = Route::onlink(net("10.5.3.0/24"), ip("10.5.3.0"), index).with_metric(77);
    let v6 = Route::onlink(net("fd99:30:0:3::/64"), ip("fd99:30:0:3::"), index).with_metric(78);
    apply(&mut netlink, &[WriteRequest::PutRoute(v4.clone()), WriteRequest::PutRoute(v6.clone())]);
    assert_eq!(routes_on(&mut netlink, index, IpFamily::V4), [v4.clone()]);
    assert_eq!(routes_on(&mut netlink, index, IpFamily::V6), [v6.clone()]);

    // Repeated writes and deletes succeed.
    apply(&mut netlink, &[WriteRequest::PutRoute(v4.clone()), WriteRequest::PutRoute(v6.clone())]);
    let delete = [WriteRequest::DeleteRoute(v4), WriteRequest::DeleteRoute(v6)];
    apply(&mut netlink, &delete);
    assert!(routes_on(&mut netlink, index, IpFamily::V4).is_empty());
    assert!(routes_on(&mut netlink, index, IpFamily::V6).is_empty());
    apply(&mut netlink, &delete);
}

#[test]
fn a_route_without_a_metric_gets_the_kernels_default() {
    let (_namespace, mut netlink, index) = namespace_with_vxlan();
    let v4 = Route::onlink(net("10.5.3.0/24"), ip("10.5.3.0"), index);
    let v6 = Route::onlink(net("fd99:30:0:3::/64"), ip("fd99:30:0:3::"), index);
    apply(&mut netlink, &[WriteRequest::PutRoute(v4.clone()), WriteRequest::PutRoute(v6.clone())]);
    assert_eq!(routes_on(&mut netlink, index, IpFamily::V4), [v4]);
    assert_eq!(routes_on(&mut netlink, index, IpFamily::V6), [v6.clone().with_metric(1024)]);
    apply(&mut netlink, &[WriteRequest::DeleteRoute(v6)]);
    assert!(routes_on(&mut netlink, index, IpFamily::V6).is_empty(), "no metric matches any");
}

#[test]
fn a_route_is_replaced_in_place() {
    let (_namespace, mut netlink, index) = namespace_with_vxlan();
    for (family, subnet, old, new) in [
        (IpFamily::V4, "10.5.3.0/24", "10.5.3.0", "10.5.3.9"),
        (IpFamily::V6, "fd99:30:0:3::/64", "fd99:30:0:3::", "fd99:30:0:3::9"),
    ] {
        let route = |gateway| Route::onlink(net(subnet), ip(gateway), index).with_metric(5);
        apply(&mut netlink, &[WriteRequest::PutRoute(route(old)), WriteRequest::PutRoute(route(new))]);
        assert_eq!(routes_on(&mut netlink, index, family), [route(new)]);
    }
}

#[test]
fn routes_are_read_by_table_protocol_and_link() {
    let (_namespace, mut netlink, index) = namespace_with_vxlan();
    let main = Route::onlink(net("10.5.1.0/24"), ip("10.5.1.0"), index);
    let marked = Route { protocol: 99, ..Route::onlink(net("10.5.2.0/24"), ip("10.5.2.0"), index) };
    let far = Route { table: 1000, ..Route::onlink(net("10.5.3.0/24"), ip("10.5.3.0"), index) };
    let far6 = Route { table: 1000, ..Route::onlink(net("fd99::/64"), ip("fd99::"), index) };
    let puts = [&main, &marked, &far, &far6].map(|route| WriteRequest::PutRoute(route.clone()));
    apply(&mut netlink, &puts);

    let all = RouteFilter::default();
    let mut read = |filter: RouteFilter| netlink.routes(&filter).unwrap();
    assert_eq!(read(RouteFilter { protocol: Some(99), ..all }), [marked.clone()]);
    assert_eq!(read(RouteFilter { table: Some(1000), ..all }), [far.clone(), far6.clone().with_metric(1024)]);
    assert_eq!(
        read(RouteFilter {
            table: Some(Route::MAIN_TABLE),
            index: Some(index),
            family: Some(IpFamily::V4),
            protocol: None,
            kind: None,
        }),
        [main.clone(), marked]
    );
    assert!(read(RouteFilter { table: Some(4711), ..all }).is_empty(), "no such table");
    assert!(read(RouteFilter { index: Some(4711), ..all }).is_empty(), "no such link");
    let everything = read(all);
    assert!([&main, &far].iter().all(|route| everything.contains(route)));
}

#[test]
fn routes_can_be_attached_blackhole_or_via_the_other_family() {
    let (_namespace, mut netlink, index) = namespace_with_ethernet();
    netlink.add_address(&Address::new(index, net("10.1.0.1/24"))).unwrap();
    let on_link = Route { source: Some(ip("10.1.0.1")), ..Route::attached(net("10.6.0.0/16"), index) };
    let direct = Route::by_gateway(net("10.7.0.0/16"), ip("10.1.0.7"));
    let by_v6 = Route::onlink(net("10.8.0.0/16"), ip("fe80::8"), index);
    let hole = Route { kind: RouteKind::Blackhole, ..Route::by_gateway(net("10.9.0.0/16"), ip("10.1.0.9")) };
    let hole = Route { gateway: None, ..hole };
    let puts = [&on_link, &direct, &by_v6, &hole].map(|route| WriteRequest::PutRoute(route.clone()));
    apply(&mut netlink, &puts);

    let filter = RouteFilter { protocol: Some(Route::PROTOCOL_BOOT), ..RouteFilter::default() };
    let found = netlink.routes(&filter).unwrap();
    assert_eq!(found, [on_link, Route { index: Some(index), ..direct }, by_v6, hole]);
    let deletes: Vec<_> = found.into_iter().map(WriteRequest::DeleteRoute).collect();
    apply(&mut netlink, &deletes);
    assert!(netlink.routes(&filter).unwrap().is_empty());
}

#[test]
fn a_route_lookup_returns_link_gateway_and_source() {
    let (_namespace, mut netlink, index) = namespace_with_ethernet();
    netlink.add_address(&Address::new(index, net("10.1.0.1/24"))).unwrap();
    let v6 = Address { flags: Address::NO_DAD, ..Address::new(index, net("fd88::1/64")) };
    netlink.add_address(&v6).unwrap();
    apply(
        &mut netlink,
        &[
            WriteRequest::PutRoute(Route::by_gateway(net("0.0.0.0/0"), ip("10.1.0.254"))),
            WriteRequest::PutRoute(Route::by_gateway(net("::/0"), ip("fd88::ff"))),
        ],
    );
    let near = netlink.route_to(ip("10.1.0.9")).unwrap();
    assert_eq!((near.gateway, near.index, near.source), (None, Some(index), Some(ip("10.1.0.1"))));
    let far = netlink.route_to(ip("192.0.2.1")).unwrap();
    assert_eq!(
        (far.gateway, far.index, far.source),
        (Some(ip("10.1.0.254")), Some(index), Some(ip("10.1.0.1")))
    );
    let far = netlink.route_to(ip("2001:db8::1")).unwrap();
    assert_eq!((far.gateway, far.source), (Some(ip("fd88::ff")), Some(ip("fd88::1"))));
    assert_eq!(netlink.route_to(ip("10.1.0.1")).unwrap().kind, RouteKind::Local);
    assert_eq!(far.destination, net("2001:db8::1/128"));
}

#[test]
fn an_address_without_a_route_is_unreachable() {
    let (_namespace, mut netlink) = namespace();
    for address in ["192.0.2.1", "2001:db8::1"] {
        let error = netlink.route_to(ip(address)).unwrap_err();
        assert!(error.is_unreachable(), "{error:?}");
    }
}

#[test]
fn a_permanent_neighbour_reads_back_is_replaced_and_deleted() {
    let (_namespace, mut netlink, index) = namespace_with_vxlan();
    for (family, address) in [(IpFamily::V4, "10.5.3.0"), (IpFamily::V6, "fd99:30:0:3::")] {
        let old = Neighbour::permanent(index, ip(address), numbered_mac(1));
        let new = Neighbour::permanent(index, ip(address), numbered_mac(2));
        let of_family = |netlink: &mut Netlink| {
            let mut found = netlink.neighbours(index, Some(family)).unwrap();
            found.retain(Neighbour::is_permanent);
            found
        };
        apply(&mut netlink, &[WriteRequest::PutNeighbour(old.clone())]);
        assert_eq!(of_family(&mut netlink), [old]);
        apply(&mut netlink, &[WriteRequest::PutNeighbour(new.clone())]);
        assert_eq!(of_family(&mut netlink), [new.clone()]);
        assert!(netlink.neighbours(0, None).unwrap().contains(&new));
        apply(
            &mut netlink,
            &[WriteRequest::DeleteNeighbour(new.clone()), WriteRequest::DeleteNeighbour(new)],
        );
        assert!(of_family(&mut netlink).is_empty());
    }
}

#[test]
fn a_forwarding_entry_has_an_endpoint_of_either_family() {
    let (_namespace, mut netlink, v4) = namespace_with_vxlan();
    let vxlan = flannel_netlink::NewVxlan { vni: 2, local: Some(ip("fd88::1")), ..Default::default() };
    let v6 = create(&mut netlink, &NewLink::new("flannel-v6.2", NewLinkKind::Vxlan(vxlan))).index;
    for (index, old, new) in [(v4, "10.88.0.3", "10.88.0.4"), (v6, "fd88::3", "fd88::4")] {
        let old = FdbEntry::permanent(index, numbered_mac(1), ip(old));
        let new = FdbEntry::permanent(index, numbered_mac(1), ip(new));
        apply(&mut netlink, &[WriteRequest::PutFdb(old.clone())]);
        assert_eq!(netlink.fdb(index).unwrap(), [old.clone()]);
        apply(&mut netlink, &[WriteRequest::PutFdb(new.clone())]);
        assert_eq!(netlink.fdb(index).unwrap(), [new.clone()]);
        assert!(netlink.fdb(0).unwrap().contains(&new));

        apply(&mut netlink, &[WriteRequest::DeleteFdb(old)]);
        assert_eq!(netlink.fdb(index).unwrap(), [new.clone()], "the entry points elsewhere by now");
        apply(&mut netlink, &[WriteRequest::DeleteFdb(new.clone()), WriteRequest::DeleteFdb(new)]);
        assert!(netlink.fdb(index).unwrap().is_empty());
    }
}

#[test]
fn entries_of_a_bridge_and_of_its_port_differ() {
    let (_namespace, mut netlink, index) = namespace_with_vxlan();
    let bridge = create(&mut netlink, &NewLink::new("cni0", NewLinkKind::Bridge)).index;
    let change = flannel_netlink::LinkChange { master: Some(bridge), ..Default::default() };
    netlink.change_link(index, &change).unwrap();
    let own = FdbEntry::permanent(index, numbered_mac(1), ip("10.88.0.3"));
    let held = FdbEntry {
        destination: None,
        state: NeighbourState::NoArp,
        bridge: Some(bridge),
        ..FdbEntry::permanent(index, numbered_mac(2), ip("10.88.0.3"))
    };
    apply(&mut netlink, &[WriteRequest::PutFdb(own.clone()), WriteRequest::PutFdb(held.clone())]);
    let found = netlink.fdb(index).unwrap();
    assert!(found.contains(&own) && found.contains(&held), "{found:?}");
}

#[test]
fn objects_on_a_deleted_link_are_gone() {
    let (_namespace, mut netlink, index) = namespace_with_vxlan();
    netlink.delete_link(index).unwrap();
    assert_eq!(netlink.addresses(index).unwrap(), []);
    assert_eq!(netlink.neighbours(index, None).unwrap(), []);
    assert_eq!(netlink.fdb(index).unwrap(), []);
    assert!(routes_on(&mut netlink, index, IpFamily::V4).is_empty());
    let subnet = net("10.5.3.0/24");
    apply(
        &mut netlink,
        &[
            WriteRequest::DeleteRoute(Route::onlink(subnet, subnet.addr(), index)),
            WriteRequest::DeleteRoute(Route::onlink(net("fd99::/64"), ip("fd99::"), index)),
            WriteRequest::DeleteNeighbour(Neighbour::permanent(index, subnet.addr(), numbered_mac(1))),
            WriteRequest::DeleteFdb(FdbEntry::permanent(index, numbered_mac(1), ip("10.88.0.3"))),
            WriteRequest::DeleteAddress(Address::new(index, subnet)),
            WriteRequest::DeleteAddress(Address::new(index, net("fd99::/128"))),
        ],
    );
    let put = WriteRequest::PutRoute(Route::onlink(subnet, subnet.addr(), index));
    let error = netlink.apply(&[put]).remove(0).unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
}

#[test]
fn a_write_without_the_capability_is_a_permission_error() {
    let (namespace, _netlink, index) = namespace_with_vxlan();
    let result = namespace
        .run(|| {
            let mut netlink = Netlink::open().unwrap();
            sys::become_ordinary_user();
            netlink
                .apply(&[WriteRequest::PutRoute(Route::onlink(net("10.5.3.0/24"), ip("10.5.3.0"), index))])
                .remove(0)
        })
        .unwrap();
    let error = result.unwrap_err();
    assert!(error.is_permission(), "{error:?}");
    assert!(matches!(error, Error::Kernel { .. }));
}

#[test]
fn ipv6_replaces_a_direct_route_only_after_its_deletion() {
    let (_namespace, mut netlink, overlay) = namespace_with_vxlan();
    let lower = create(&mut netlink, &ethernet("eth0")).index;
    let own = Address { flags: Address::NO_DAD, ..Address::new(lower, net("fd88::1/64")) };
    netlink.add_address(&own).unwrap();
    let direct = Route { index: Some(lower), ..Route::by_gateway(net("fd99:3::/64"), ip("fd88::3")) };
    let tunnelled = Route::onlink(net("fd99:3::/64"), ip("fd99:3::"), overlay);
    apply(&mut netlink, &[WriteRequest::PutRoute(direct.clone())]);
    let refused = netlink.apply(&[WriteRequest::PutRoute(tunnelled.clone())]).remove(0);
    assert_eq!(refused.unwrap_err().errno(), Some(libc::EINVAL));
    apply(&mut netlink, &[WriteRequest::DeleteRoute(direct), WriteRequest::PutRoute(tunnelled.clone())]);
    assert_eq!(routes_on(&mut netlink, overlay, IpFamily::V6), [tunnelled.with_metric(1024)]);
}

#[test]
fn ipv4_replaces_a_direct_route_in_place() {
    let (_namespace, mut netlink, overlay) = namespace_with_vxlan();
    let lower = create(&mut netlink, &ethernet("eth0")).index;
    netlink.add_address(&Address::new(lower, net("192.0.2.1/24"))).unwrap();
    let direct = Route { index: Some(lower), ..Route::by_gateway(net("10.5.3.0/24"), ip("192.0.2.3")) };
    let tunnelled = Route::onlink(net("10.5.3.0/24"), ip("10.5.3.0"), overlay);
    apply(&mut netlink, &[WriteRequest::PutRoute(direct), WriteRequest::PutRoute(tunnelled.clone())]);
    assert_eq!(routes_on(&mut netlink, overlay, IpFamily::V4), [tunnelled]);
    assert!(routes_on(&mut netlink, lower, IpFamily::V4).is_empty());
}
