//! Links of all kinds, created and read back.
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
    AddressGeneration, FdbEntry, LinkChange, LinkKind, Namespace, NewLink, NewLinkKind, NewVxlan, Route,
    RouteFilter, Tun, TunOptions, VethPeer, Vxlan, VxlanChange, WriteRequest,
};

#[test]
fn a_vxlan_device_reads_back_field_by_field() {
    let (_namespace, mut netlink) = namespace();
    let lower = create(&mut netlink, &ethernet("eth0"));
    let new = NewVxlan {
        vni: 70_000,
        lower: Some(lower.index),
        local: Some(ip("10.88.0.1")),
        port: Some(4789),
        ..NewVxlan::default()
    };
    let device = create(
        &mut netlink,
        &NewLink {
            mac: Some(mac("0e:2a:00:00:00:01")),
            mtu: Some(1450),
            txqlen: Some(0),
            ..NewLink::new("flannel.70000", NewLinkKind::Vxlan(new))
        },
    );
    assert_eq!(device.mac, Some(mac("0e:2a:00:00:00:01")));
    assert_eq!((device.mtu, device.txqlen, device.up, device.running), (1450, 0, false, false));
    assert_eq!(
        device.kind,
        LinkKind::Vxlan(Vxlan {
            vni: 70_000,
            lower: Some(lower.index),
            local: Some(ip("10.88.0.1")),
            port: 4789,
            ageing: 300,
            udp_checksum: true,
            ..Vxlan::default()
        })
    );
}

#[test]
fn a_vxlan_device_over_ipv6_with_every_option_reads_back() {
    let (_namespace, mut netlink) = namespace();
    let new = NewVxlan {
        vni: 2,
        lower: None,
        local: Some(ip("fd88::1")),
        port: None,
        group: Some(ip("fd88::2")),
        learning: true,
        gbp: true,
        l2_miss: true,
    };
    let device = create(&mut netlink, &NewLink::new("flannel-v6.2", NewLinkKind::Vxlan(new)));
    assert_eq!(
        device.vxlan(),
        Some(&Vxlan {
            vni: 2,
            local: Some(ip("fd88::1")),
            group: Some(ip("fd88::2")),
            port: 8472,
            ageing: 300,
            learning: true,
            gbp: true,
            l2_miss: true,
            // The kernel reports it for IPv4 whatever the device uses.
            udp_checksum: true,
            ..Vxlan::default()
        })
    );
}

#[test]
fn two_vxlan_devices_cannot_share_a_network_identifier() {
    let (_namespace, mut netlink, _index) = namespace_with_vxlan();
    let vxlan = NewVxlan { vni: 1, local: Some(ip("10.88.0.1")), ..NewVxlan::default() };
    let error = netlink.create_link(&NewLink::new("other", NewLinkKind::Vxlan(vxlan))).unwrap_err();
    assert!(error.is_exists(), "{error:?}");
    assert!(error.to_string().starts_with("kernel refused to create link other: "), "{error}");
    assert!(netlink.link("other").unwrap().is_none());
}

#[test]
fn a_veth_pair_spans_two_namespaces() {
    let (_here, mut near) = namespace();
    let (there, mut far) = namespace();
    let peer =
        VethPeer { name: "far0".to_owned(), mac: Some(mac("0e:2a:00:00:00:02")), namespace: Some(there) };
    let end = create(&mut near, &NewLink { up: true, ..NewLink::new("near0", NewLinkKind::Veth(peer)) });
    assert_eq!(end.kind, LinkKind::Veth);
    assert!(end.up && !end.running, "the far end is down");

    let other = far.link("far0").unwrap().expect("the far end");
    assert_eq!(other.mac, Some(mac("0e:2a:00:00:00:02")));
    assert_eq!((end.lower, other.lower), (Some(other.index), Some(end.index)));
    set_up(&mut far, other.index, true);
    assert!(near.link("near0").unwrap().unwrap().running);
}

#[test]
fn a_link_joins_and_leaves_a_bridge() {
    let (_namespace, mut netlink) = namespace();
    let bridge = create(&mut netlink, &NewLink::new("cni0", NewLinkKind::Bridge));
    assert_eq!(bridge.kind, LinkKind::Bridge);
    let port = create(&mut netlink, &NewLink { master: Some(bridge.index), ..ethernet("port0") });
    assert_eq!(port.master, Some(bridge.index));
    netlink.change_link(port.index, &LinkChange { master: Some(0), ..LinkChange::default() }).unwrap();
    assert_eq!(netlink.link_by_index(port.index).unwrap().unwrap().master, None);
}

#[test]
fn every_property_of_a_link_can_be_changed() {
    let (_namespace, mut netlink) = namespace();
    let before = create(&mut netlink, &NewLink::new("cni0", NewLinkKind::Bridge));
    assert_eq!(before.address_generation, Some(AddressGeneration::Eui64));
    let change = LinkChange {
        up: Some(true),
        mtu: Some(1400),
        mac: Some(mac("0e:2a:00:00:00:09")),
        name: Some("renamed".to_owned()),
        txqlen: Some(7),
        address_generation: Some(AddressGeneration::None),
        ..LinkChange::default()
    };
    netlink.change_link(before.index, &change).unwrap();
    let after = netlink.link_by_index(before.index).unwrap().unwrap();
    assert_eq!((after.name.as_str(), after.mtu, after.txqlen, after.up), ("renamed", 1400, 7, true));
    assert_eq!(after.mac, Some(mac("0e:2a:00:00:00:09")));
    assert_eq!(after.address_generation, Some(AddressGeneration::None));
    assert!(netlink.addresses(after.index).unwrap().is_empty(), "no address of its own");
    set_up(&mut netlink, after.index, false);
    assert!(!netlink.link("renamed").unwrap().unwrap().up);
}

#[test]
fn a_link_moves_to_another_namespace() {
    let (_here, mut netlink) = namespace();
    let (there, mut far) = namespace();
    let link = create(&mut netlink, &ethernet("eth0"));
    let change = LinkChange { namespace: Some(there), ..LinkChange::default() };
    netlink.change_link(link.index, &change).unwrap();
    assert!(netlink.link("eth0").unwrap().is_none());
    assert!(far.link("eth0").unwrap().is_some());
}

#[test]
fn deleting_a_link_twice_succeeds() {
    let (_namespace, mut netlink, index) = namespace_with_ethernet();
    netlink.delete_link(index).unwrap();
    assert!(netlink.link_by_index(index).unwrap().is_none());
    netlink.delete_link(index).unwrap();
}

#[test]
fn all_links_are_read() {
    let (_namespace, mut netlink) = namespace();
    for number in 0..300 {
        netlink.create_link(&NewLink::new(format!("cni{number}"), NewLinkKind::Bridge)).unwrap();
    }
    let links = netlink.links().unwrap();
    assert_eq!(links.len(), 301, "and loopback");
    assert!(links.iter().any(|link| link.name == "lo" && link.loopback && link.kind == LinkKind::Physical));
    assert!(links.iter().any(|link| link.name == "cni299"));
}

#[test]
fn an_invalid_link_name_is_refused() {
    let (_namespace, mut netlink) = namespace();
    for name in ["", "sixteen-bytes-xx", "a/b", "a b", "a\0b", ".."] {
        let error = netlink.create_link(&NewLink::new(name, NewLinkKind::Bridge)).unwrap_err();
        assert!(matches!(error, flannel_netlink::Error::InvalidName(_)), "{name:?}: {error:?}");
        assert!(netlink.link(name).unwrap().is_none());
    }
    create(&mut netlink, &NewLink::new("fifteen-bytes-x", NewLinkKind::Bridge));
}

#[test]
fn a_tun_device_lives_as_long_as_its_queue() {
    let (namespace, mut netlink) = namespace();
    let tun =
        Tun::open_in(&namespace, &TunOptions { vnet_header: true, ..TunOptions::new("flannel%d") }).unwrap();
    assert_eq!(tun.name, "flannel0");
    let link = netlink.link("flannel0").unwrap().expect("the device");
    assert_eq!((link.index, link.kind, link.mac), (tun.index, LinkKind::Tun, None));
    drop(tun);
    assert!(netlink.link("flannel0").unwrap().is_none());
}

#[test]
fn a_tun_device_can_have_several_queues() {
    let (namespace, _netlink) = namespace();
    let options = TunOptions { multi_queue: true, ..TunOptions::new("flannel0") };
    let first = Tun::open_in(&namespace, &options).unwrap();
    let second = Tun::open_in(&namespace, &options).unwrap();
    assert_eq!(first.index, second.index);
    let single = Tun::open_in(&namespace, &TunOptions::new("flannel0")).unwrap_err();
    assert_eq!(single.errno(), Some(22), "{single:?}");
}

#[test]
fn a_namespace_ends_with_its_last_handle() {
    let (_here, mut near) = namespace();
    let there = own_namespace();
    let second_handle = there.clone();
    let peer = VethPeer { name: "far0".to_owned(), mac: None, namespace: Some(there) };
    create(&mut near, &NewLink::new("near0", NewLinkKind::Veth(peer)));
    // The peer in `NewLink` held the first handle; `second_handle` is the last one.
    assert!(near.link("near0").unwrap().is_some());
    drop(second_handle);
    eventually("the pair to go with the namespace of its far end", || {
        near.link("near0").unwrap().is_none().then_some(())
    });
}

#[test]
fn a_namespace_is_entered_on_a_separate_thread() {
    let before = Namespace::current().unwrap();
    let other = own_namespace();
    let inside = other.run(|| Namespace::current().unwrap()).unwrap();
    assert_eq!(inside, other);
    assert_ne!(before, other);
    assert_eq!(Namespace::current().unwrap(), before);
    let panic = std::panic::catch_unwind(|| other.run(|| panic!("on purpose"))).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
}

#[test]
fn a_sysctl_belongs_to_its_namespace() {
    let (one, other) = (own_namespace(), own_namespace());
    other.write_sysctl("net/ipv4/ip_forward", "0").unwrap();
    one.write_sysctl("net/ipv4/ip_forward", "1").unwrap();
    assert_eq!(one.read_sysctl("net/ipv4/ip_forward").unwrap(), "1");
    assert_eq!(other.read_sysctl("net/ipv4/ip_forward").unwrap(), "0");
    assert!(one.read_sysctl("net/ipv4/no_such_setting").is_err());
}

#[test]
fn moving_a_vxlan_device_to_another_underlay_keeps_its_entries() {
    let (_namespace, mut netlink) = namespace();
    let [old, new] = ["eth0", "eth1"].map(|name| create(&mut netlink, &ethernet(name)).index);
    for (from, to, other) in [("10.88.0.1", "10.88.0.9", "fd00::9"), ("fd00::1", "fd00::9", "10.88.0.9")] {
        let vxlan = NewVxlan { vni: 7, lower: Some(old), local: Some(ip(from)), ..NewVxlan::default() };
        let device = create(
            &mut netlink,
            &NewLink { up: true, ..NewLink::new("flannel.7", NewLinkKind::Vxlan(vxlan)) },
        );
        let peer = net("10.5.2.0/24");
        let writes = [
            WriteRequest::PutFdb(FdbEntry::permanent(device.index, numbered_mac(2), ip(to))),
            WriteRequest::PutRoute(Route::onlink(peer, peer.network(), device.index)),
        ];
        assert!(netlink.apply(&writes).iter().all(Result::is_ok));
        let moved = |lower, local| LinkChange {
            vxlan: Some(VxlanChange { lower, local: Some(ip(local)) }),
            ..LinkChange::default()
        };
        netlink.change_link(device.index, &moved(Some(new), to)).unwrap();
        let after = netlink.link("flannel.7").unwrap().unwrap();
        let expected = Vxlan { lower: Some(new), local: Some(ip(to)), ..device.vxlan().unwrap().clone() };
        assert_eq!(after.vxlan(), Some(&expected));
        assert_eq!((after.index, after.mac, after.up), (device.index, device.mac, true));
        assert_eq!(netlink.fdb(device.index).unwrap().len(), 1);
        let filter = RouteFilter { index: Some(device.index), ..RouteFilter::default() };
        assert!(netlink.routes(&filter).unwrap().iter().any(|route| route.destination == peer));
        assert!(netlink.change_link(device.index, &moved(None, other)).is_err(), "the other family");
        netlink.delete_link(device.index).unwrap();
    }
}

#[test]
fn the_tx_checksum_offload_can_be_changed() {
    let (_namespace, mut netlink, index) = namespace_with_vxlan();
    let name = netlink.link_by_index(index).unwrap().unwrap().name;
    assert!(netlink.tx_checksum_offload(&name).unwrap(), "as the kernel makes it");
    for leave in [false, true, false] {
        netlink.set_tx_checksum_offload(&name, leave).unwrap();
        assert_eq!(netlink.tx_checksum_offload(&name).unwrap(), leave);
    }
    assert!(netlink.tx_checksum_offload("none").unwrap_err().is_not_found());
}

/// Gives a link an alternative name (`RTM_NEWLINKPROP`).
fn add_alternative_name(namespace: &Namespace, link: &str, name: &str) {
    let mut command = std::process::Command::new("ip");
    command.args(["link", "property", "add", "dev", link, "altname", name]);
    assert!(namespace.run(|| command.status()).unwrap().unwrap().success(), "{link}: {name}");
}

#[test]
fn a_link_is_not_found_by_an_alternative_name_and_no_other_can_take_it() {
    let (namespace, mut netlink) = namespace();
    netlink.create_link(&NewLink::new("eth7", NewLinkKind::Bridge)).unwrap();
    add_alternative_name(&namespace, "eth7", "flannel.1");
    let link = netlink.link("eth7").unwrap().unwrap();
    assert_eq!(link.alternative_names, ["flannel.1"]);
    assert_eq!(netlink.links().unwrap().iter().find(|link| link.name == "eth7"), Some(&link));
    assert_eq!(netlink.link("flannel.1").unwrap(), None, "it is another link");
    let error = netlink.create_link(&NewLink::new("flannel.1", NewLinkKind::Bridge)).unwrap_err();
    assert!(error.is_exists(), "{error:?}");
    assert!(error.to_string().contains("an alternative name of eth7"), "{error}");
}

#[test]
fn a_tun_device_is_not_opened_by_an_alternative_name() {
    let (namespace, _netlink) = namespace();
    let mut command = std::process::Command::new("ip");
    command.args(["tuntap", "add", "mode", "tun", "name", "tun7"]);
    assert!(namespace.run(|| command.status()).unwrap().unwrap().success());
    add_alternative_name(&namespace, "tun7", "flannel0");
    let error = Tun::open_in(&namespace, &TunOptions::new("flannel0")).unwrap_err();
    assert!(error.is_exists() && error.to_string().contains("an alternative name of tun7"), "{error}");
}
