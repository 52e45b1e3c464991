//! The tunnel device: created, adopted, corrected, replaced and removed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use common::{DEVICE, Station, StationExt, assert_idle, change, config, foreign_vxlan, ip, lab, open, peer};
use flannel_core::{Backend, BackendError, OpenBackend, OpenRequest};
use flannel_netlink::{
    Address, LinkChange, LinkKind, Mac, Namespace, Netlink, NewLink, NewLinkKind, Vxlan, WriteRequest,
};
use flannel_testing::{CAP_NET_ADMIN, CAP_SYS_ADMIN, with_capabilities};

/// `IFA_F_PERMANENT` (`linux/if_addr.h`).
const IFA_F_PERMANENT: u32 = 0x80;

#[test]
fn the_device_equals_upstreams() {
    let lab = lab(1);
    let host = &lab.hosts[0];
    let mut station = Station::start(&host.namespace, "10.5.1.0-24");
    let link = station.device();
    let expected = Vxlan {
        vni: 1,
        lower: Some(station.external.index),
        local: Some("192.168.64.1".parse().unwrap()),
        port: 8472,
        ageing: 300,
        udp_checksum: true,
        ..Vxlan::default()
    };
    assert_eq!(link.kind, LinkKind::Vxlan(expected));
    assert_eq!((link.mtu, link.txqlen, link.up), (1450, 0, true));
    let Mac([first, ..]) = link.mac.unwrap();
    assert_eq!(first & 0b11, 0b10, "a local address of one device");
    let addresses = station.netlink.addresses(link.index).unwrap();
    let v4: Vec<_> = addresses.iter().filter(|a| a.net.addr().is_ipv4()).collect();
    let address =
        Address { flags: IFA_F_PERMANENT, ..Address::new(link.index, "10.5.1.0/32".parse().unwrap()) };
    assert_eq!(v4, [&address]);
    let accept_ra = host.namespace.read_sysctl("net/ipv6/conf/flannel.1/accept_ra");
    assert_eq!(accept_ra.unwrap(), "0");
    assert_eq!(station.backend.mtu(), 1450);
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, link.mac.unwrap());
    assert_eq!(station.backend.attrs().data.unwrap().as_str(), data);
    assert_eq!(station.backend.attrs().v6_data, None);
}

#[test]
fn ip_shows_the_device_and_its_address_as_upstreams() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = Station::start(host, "10.5.1.0-24");
    let (index, mac) = (station.device().index, station.device().mac.unwrap());
    let lines = ip(host, "-d link show flannel.1");
    let [first, second, third] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(
        *first,
        format!(
            "{index}: flannel.1: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue state UNKNOWN mode DEFAULT group default "
        )
    );
    let ether = format!("    link/ether {mac} brd ff:ff:ff:ff:ff:ff promiscuity 0 ");
    assert!(second.starts_with(&ether), "{second}");
    let vxlan = "    vxlan id 1 local 192.168.64.1 dev eth0 srcport 0 0 dstport 8472 nolearning ttl auto ageing 300 udpcsum noudp6zerocsumtx noudp6zerocsumrx ";
    assert!(third.starts_with(vxlan), "{third}");
    let lines = ip(host, "-4 address show flannel.1");
    assert_eq!(lines[1], "    inet 10.5.1.0/32 scope global flannel.1");
    // The source address of this host on the overlay.
    station.complete([peer(2)]);
    let route = ip(host, "route get 10.5.2.7");
    let expected = "10.5.2.7 via 10.5.2.0 dev flannel.1 src 10.5.1.0 ";
    assert!(route[0].starts_with(expected), "{route:?}");
}

#[test]
fn the_options_of_the_network_apply_to_the_device() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let options = r#","VNI":7,"Port":4789,"GBP":true,"Learning":true,"MTU":1400"#;
    let station = Station::start_with(host, "10.5.1.0-24", &config(options));
    let lines = ip(host, "-d link show flannel.7");
    assert!(lines[0].contains(" mtu 1350 "), "{lines:?}");
    let vxlan =
        "    vxlan id 7 local 192.168.64.1 dev eth0 srcport 0 0 dstport 4789 ttl auto ageing 300 udpcsum ";
    assert!(lines[2].starts_with(vxlan) && lines[2].contains(" gbp "), "{lines:?}");
    assert_eq!(station.backend.mtu(), 1350);
}

#[test]
fn the_mtu_is_limited_by_the_external_interface() {
    let lab = lab(1);
    let mut station = Station::start_with(&lab.hosts[0].namespace, "10.5.1.0-24", &config(r#","MTU":9000"#));
    assert_eq!((station.backend.mtu(), station.device().mtu), (1450, 1450));
}

#[test]
fn a_restart_adopts_everything_and_writes_nothing() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.complete((2..=9).map(peer));
    let (before, tables) = (station.device(), station.tables());
    let mut station = station.restart();
    assert_eq!(station.device(), before);
    assert_idle(&station.sync());
    assert_eq!((station.device(), station.tables()), (before, tables));
}

#[test]
fn a_new_device_has_the_mac_address_of_the_previous_lease() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let before = peer(1).attrs;
    let external = flannel_backend_vxlan::external_interface(host, "eth0").unwrap();
    let config = config("");
    let request = OpenRequest::new(&config, &external).with_before(Some(&before));
    let backend = flannel_backend_vxlan::OpenVxlan::new(host.clone()).open(request).unwrap();
    assert_eq!(backend.attrs().data, before.backend_data);
    let mac = Netlink::open_in(host).unwrap().link(DEVICE).unwrap().unwrap().mac;
    assert_eq!(mac, Some(common::mac(1)));
}

#[test]
fn a_device_with_another_immutable_field_is_replaced_and_keeps_its_mac_address() {
    let cases = [
        "link add flannel.1 type vxlan id 2 dev eth0 local 192.168.64.1 dstport 8472 nolearning",
        "link add flannel.1 type vxlan id 1 dev eth0 local 192.168.64.1 dstport 4789 nolearning",
        "link add flannel.1 type vxlan id 1 dev eth0 local 192.168.64.1 dstport 8472 nolearning gbp",
        "link add flannel.1 type vxlan id 1 dev eth0 local 192.168.64.1 dstport 8472 learning",
        "link add flannel.1 type vxlan id 1 dev eth0 local fd00:64::1 dstport 8472 nolearning",
        "link add flannel.1 type vxlan id 1 dev eth0 group 239.1.1.1 dstport 8472 nolearning",
    ];
    for case in cases {
        let lab = lab(1);
        let host = &lab.hosts[0].namespace;
        ip(host, case);
        let mut netlink = Netlink::open_in(host).unwrap();
        let before = netlink.link(DEVICE).unwrap().unwrap();
        let mut station = Station::start(host, "10.5.1.0-24");
        let after = station.device();
        assert_ne!(after.index, before.index, "{case}");
        assert_eq!(after.mac, before.mac, "{case}");
        let data = station.backend.attrs().data.unwrap();
        assert!(data.as_str().contains(&after.mac.unwrap().to_string()), "{case}");
        station.complete([peer(2)]);
        assert_eq!(station.tables(), common::lines_of_all([2]), "{case}");
    }
}

#[test]
fn a_device_on_another_interface_or_address_is_moved_and_keeps_its_objects() {
    let cases = [
        // As upstream creates it with -public-ip.
        "link add flannel.1 type vxlan id 1 dev eth0 local 203.0.113.7 dstport 8472 nolearning",
        "link add flannel.1 type vxlan id 1 local 192.168.64.1 dstport 8472 nolearning",
        "link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 nolearning",
        "link add flannel.1 type vxlan id 1 dev dummy0 local 192.168.64.1 dstport 8472 nolearning",
    ];
    for case in cases {
        let lab = lab(1);
        let host = &lab.hosts[0].namespace;
        ip(host, "link add dummy0 up type bridge");
        ip(host, case);
        ip(host, "link set flannel.1 up");
        ip(host, "route add 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink");
        let mut netlink = Netlink::open_in(host).unwrap();
        let before = netlink.link(DEVICE).unwrap().unwrap();
        let mut station = Station::start(host, "10.5.1.0-24");
        let after = station.device();
        assert_eq!((after.index, after.mac), (before.index, before.mac), "{case}");
        let vxlan = after.vxlan().unwrap();
        let below = (vxlan.lower, vxlan.local);
        assert_eq!(below, (Some(station.external.index), Some(common::address("192.168.64.1"))), "{case}");
        assert_eq!(ip(host, "route show 10.5.2.0/24").len(), 1, "{case}");
        station.complete([peer(2)]);
        assert_idle(&station.sync());
    }
}

#[test]
fn a_device_of_another_type_is_replaced() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let bridge = NewLink::new(DEVICE, NewLinkKind::Bridge);
    Netlink::open_in(host).unwrap().create_link(&bridge).unwrap();
    let mut station = Station::start(host, "10.5.1.0-24");
    assert!(station.device().vxlan().is_some());
}

#[test]
fn harmless_tuning_is_kept() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    ip(
        host,
        "link add flannel.1 txqueuelen 0 mtu 1450 type vxlan id 1 dev eth0 local 192.168.64.1 dstport 8472 nolearning ageing 60 ttl 9 tos 1 srcport 1000 2000 noudpcsum",
    );
    let mut netlink = Netlink::open_in(host).unwrap();
    let before = netlink.link(DEVICE).unwrap().unwrap();
    let mut station = Station::start(host, "10.5.1.0-24");
    let after = station.device();
    assert_eq!((after.index, after.kind), (before.index, before.kind));
}

#[test]
fn mutable_fields_are_set_in_place() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.complete([peer(2)]);
    let before = station.device();
    let other = LinkChange { mtu: Some(1300), txqlen: Some(1000), ..LinkChange::default() };
    change(&mut station.netlink, DEVICE, &other);
    let mut station = station.restart();
    assert_eq!(station.device(), before);
    assert_idle(&station.sync());
}

#[test]
fn the_mac_address_of_an_adopted_device_is_published() {
    let lab = lab(1);
    let station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    let mut netlink = Netlink::open_in(&station.namespace).unwrap();
    let mac = LinkChange { mac: Some(common::mac(77)), ..LinkChange::default() };
    change(&mut netlink, DEVICE, &mac);
    let station = station.restart();
    let data = station.backend.attrs().data.unwrap();
    assert_eq!(data.as_str(), r#"{"VNI":1,"VtepMAC":"0e:00:00:00:00:4d"}"#);
}

#[test]
fn a_device_with_the_same_tunnel_is_named_and_kept() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut netlink = Netlink::open_in(host).unwrap();
    // A device of the other family may have the same VNI and port.
    ip(host, "link add six up type vxlan id 1 dev eth0 local fd00:64::1 dstport 8472 nolearning");
    foreign_vxlan(&mut netlink, "docker_swarm", 1, 8472);
    let error = open(host, &config("")).err().unwrap();
    assert!(matches!(error, BackendError::Host(_)), "{error:?}");
    assert_eq!(
        error.to_string(),
        "device flannel.1: the device docker_swarm has VNI 1 on port 8472 already: delete it (ip link del docker_swarm) \
         or choose another VNI or Port in the network config"
    );
    assert!(netlink.link("docker_swarm").unwrap().is_some());
}

#[test]
fn a_device_is_not_deleted_for_one_that_cannot_be_created() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = Station::start(host, "10.5.1.0-24");
    station.complete([peer(2)]);
    let tables = station.tables();
    foreign_vxlan(&mut station.netlink, "other", 1, 4789);
    let error = open(host, &config(r#","Port":4789"#)).err().unwrap();
    assert!(error.to_string().contains("the device other has VNI 1 on port 4789"), "{error}");
    assert_eq!(station.tables(), tables);
}

#[test]
fn an_address_of_an_earlier_lease_is_removed_and_a_foreign_one_kept() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.7.0-24");
    station.complete([peer(2)]);
    let index = station.device().index;
    let foreign = Address::new(index, "10.99.0.1/24".parse().unwrap());
    station.netlink.add_address(&foreign).unwrap();
    drop(station.backend);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    let mut addresses: Vec<String> = station
        .netlink
        .addresses(index)
        .unwrap()
        .iter()
        .filter(|address| address.net.addr().is_ipv4())
        .map(|address| address.net.to_string())
        .collect();
    addresses.sort();
    assert_eq!(addresses, ["10.5.1.0/32", "10.99.0.1/24"]);
    station.complete([peer(2)]);
    assert_eq!(
        common::lines_of(2)[0],
        ip(&station.namespace, "route show 10.5.2.0/24")[0].replace("dev flannel.1 ", "")
    );
}

#[test]
fn the_address_follows_the_lease() {
    let lab = lab(1);
    let mut station = Station::start(&lab.hosts[0].namespace, "10.5.1.0-24");
    station.complete([peer(2), peer(3)]);
    // The host and a peer swap their subnets.
    station.own.subnet = common::key("10.5.3.0-24");
    station.backend.configure(&station.own).unwrap();
    let report = station.sync_only(&flannel_core::Dirty::NONE);
    assert_eq!(report.unreachable.len(), 1, "{report:?}");
    assert_eq!(station.tables(), common::lines_of_all([2]));
    station.remove("10.5.3.0-24");
    station.complete([peer(1)]);
    assert_eq!(station.tables(), common::lines_of_all([1, 2]));
    let addresses = ip(&station.namespace, "-4 -o address show flannel.1");
    assert_eq!(addresses.len(), 1, "{addresses:?}");
    assert!(addresses[0].contains(" 10.5.3.0/32 "), "{addresses:?}");
}

#[test]
fn remove_deletes_everything() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let before = ip(host, "link show");
    let mut station = Station::start(host, "10.5.1.0-24");
    station.complete([peer(2)]);
    station.backend.remove().unwrap();
    assert_eq!(ip(host, "link show"), before);
    station.backend.remove().unwrap();
}

#[test]
fn remove_deletes_a_recreated_device() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = Station::start(host, "10.5.1.0-24");
    ip(host, "link del flannel.1");
    foreign_vxlan(&mut station.netlink, DEVICE, 1, 8472);
    station.backend.remove().unwrap();
    assert_eq!(station.netlink.link(DEVICE).unwrap(), None);
}

#[test]
fn an_error_names_the_missing_capability() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let error = with_capabilities(host, &[CAP_SYS_ADMIN], open_here).unwrap().err().unwrap();
    assert!(matches!(error, BackendError::Host(_)), "{error:?}");
    assert_eq!(
        error.to_string(),
        "device flannel.1: not permitted to create it: run as root, or with CAP_NET_ADMIN"
    );
}

/// As in a pod on the host network with this capability only.
#[test]
fn cap_net_admin_is_enough() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut backend = with_capabilities(host, &[CAP_NET_ADMIN], open_here).unwrap().unwrap();
    backend.remove().unwrap();
}

fn open_here() -> Result<Box<dyn Backend>, BackendError> {
    open(&Namespace::current().unwrap(), &config(""))
}

#[test]
fn an_interface_without_an_address_is_refused() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut netlink = Netlink::open_in(host).unwrap();
    let index = netlink.link("eth0").unwrap().unwrap().index;
    for address in netlink.addresses(index).unwrap() {
        if address.net.addr().is_ipv4() {
            netlink.apply(&[WriteRequest::DeleteAddress(address)]).remove(0).unwrap();
        }
    }
    let error = open(host, &config("")).err().unwrap();
    assert_eq!(error.to_string(), "the interface eth0 has no IPv4 address for the tunnel flannel.1");
    let missing = flannel_backend_vxlan::external_interface(host, "eth9").unwrap_err();
    assert_eq!(missing.to_string(), "there is no interface eth9");
}

#[test]
fn a_link_whose_alternative_name_is_the_devices_is_left_alone() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut netlink = Netlink::open_in(host).unwrap();
    netlink.create_link(&NewLink::new("br9", NewLinkKind::Bridge)).unwrap();
    ip(host, "link property add dev br9 altname flannel.1");
    let error = open(host, &config("")).err().unwrap();
    let text = flannel_core::chain(&error);
    assert!(text.contains("an alternative name of br9"), "{text}");
    assert!(netlink.link("br9").unwrap().is_some(), "it is not flannel's to delete");
}

#[test]
fn the_config_of_another_backend_is_refused() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let text = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
    let error = open(host, &flannel_core::NetworkConfig::parse(text).unwrap()).err().unwrap();
    assert_eq!(error.to_string(), "unknown backend type: host-gw (available: vxlan)");
    assert!(Netlink::open_in(host).unwrap().link(DEVICE).unwrap().is_none(), "nothing was created");
}
