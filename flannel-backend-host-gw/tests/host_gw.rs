//! The host-gw backend.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use common::{DEADLINE, QUIET, assert_idle, config, ip, key, lab, net, peer, routed_lab, station, subnet};
use flannel_backend_host_gw::{OpenHostGw, RouteProtocol, external_interface};
use flannel_core::{BackendType, Dirty, NetworkConfig, OpenBackend, OpenRequest};
use flannel_testing::{BackendHarness, PingOptions, eventually, ping};

/// All routes into the overlay, as `ip` shows them.
fn routes(station: &BackendHarness) -> Vec<String> {
    let mut lines = ip(&station.namespace, "-4 route show root 10.5.0.0/16");
    lines.extend(ip(&station.namespace, "-6 route show root fd00:5::/48"));
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

fn routes_to(peers: &[u8]) -> Vec<String> {
    let v4 = |n: &u8| format!("10.5.{n}.0/24 via 192.168.64.{n} dev eth0 proto 241");
    let v6 =
        |n: &u8| format!("fd00:5:0:{n}::/64 via fd00:64::{n} dev eth0 proto 241 metric 1024 pref medium");
    peers.iter().map(v4).chain(peers.iter().map(v6)).collect()
}

#[test]
fn pods_reach_each_other_with_the_mtu_of_the_link() {
    let lab = lab(3);
    let mut stations = [1, 2, 3].map(|n| station(&lab, n));
    let leases = stations.each_ref().map(|station| station.own.clone());
    for (n, station) in stations.iter_mut().enumerate() {
        let others = leases.iter().enumerate().filter(|(other, _)| *other != n);
        station.complete(others.map(|(_, lease)| lease.clone()));
        assert_eq!(station.backend.mtu(), 1500);
    }
    let pods = [1, 2, 3].map(|n: usize| {
        let subnets = [net(&format!("10.5.{n}.0/24")), net(&format!("fd00:5:0:{n}::/64"))];
        lab.hosts[n - 1].add_pod(&subnets, 1500).unwrap()
    });
    for from in &pods {
        for to in pods.iter().filter(|to| to.name != from.name).flat_map(|pod| &pod.addresses) {
            let headers = if to.is_ipv4() { 28 } else { 48 };
            let whole =
                PingOptions { payload: 1500 - headers, dont_fragment: true, ..PingOptions::default() };
            let answered = eventually(DEADLINE, || ping(&from.namespace, *to, &whole));
            answered.unwrap_or_else(|error| panic!("{} to {to}: {error}", from.name));
        }
    }
}

#[test]
fn the_lease_has_the_type_and_no_data() {
    let lab = lab(1);
    let station = station(&lab, 1);
    let record = station.own.attrs.to_record();
    assert_eq!(record, r#"{"PublicIP":"192.168.64.1","PublicIPv6":"fd00:64::1","BackendType":"host-gw"}"#);
}

#[test]
fn routes_are_added_and_removed_with_their_peers() {
    let lab = lab(1);
    let mut station = station(&lab, 1);
    station.complete([peer(2, 0), peer(3, 0)]);
    assert_eq!(routes(&station), routes_to(&[2, 3]));
    station.settle();
    station.remove(&subnet(2));
    let report = station.sync_only(&Dirty::Some([key(&subnet(2))].into()));
    assert_eq!((report.written, report.removed), (0, 2));
    assert_eq!(routes(&station), routes_to(&[3]));
    let mut station = station.restart();
    assert_idle(&station.sync());
    station.remove(&subnet(3));
    let mut station = station.restart();
    station.sync();
    assert_eq!(routes(&station), routes_to(&[]), "the peer left while nobody looked");
}

#[test]
fn a_peer_off_the_link_is_reported_until_it_joins() {
    let lab = routed_lab(1);
    let mut station = station(&lab, 1);
    station.learn([peer(2, 1), peer(3, 0)]);
    station.peers.complete();
    let report = station.sync();
    assert_eq!((report.failed, report.retry_in), (vec![], None));
    let reasons: Vec<_> = report.unreachable.iter().map(|peer| (peer.peer, &*peer.reason)).collect();
    let name = key("10.5.2.0-24&fd00:5:0:2::-64");
    assert_eq!(
        reasons,
        [
            (name, "192.168.65.2 is not on the link of eth0, which host-gw requires"),
            (name, "fd00:64:0:1::2 is not on the link of eth0, which host-gw requires"),
        ]
    );
    assert_eq!(routes(&station), routes_to(&[3]));
    station.settle();
    ip(&station.namespace, "address add 192.168.65.1/24 dev eth0");
    ip(&station.namespace, "-6 address add fd00:64:0:1::1/64 dev eth0 nodad");
    assert_eq!(station.heal().failed, []);
    eventually(DEADLINE, || {
        station.noticed(QUIET);
        let report = station.sync_only(&Dirty::NONE);
        report.unreachable.is_empty()
    })
    .unwrap();
    assert_eq!(routes(&station).len(), 4);
}

#[test]
fn a_peer_whose_public_address_is_this_hosts_own_is_reported() {
    let lab = lab(1);
    let mut station = station(&lab, 1);
    station.learn([peer(2, 0), peer(3, 0)]);
    station.peers.complete();
    assert_eq!(station.sync().unreachable, []);
    station.settle();
    ip(&station.namespace, "address add 192.168.64.2/32 dev lo");
    ip(&station.namespace, "-6 address add fd00:64::3/128 dev lo nodad");
    station.heal();
    let reasons: Vec<_> = eventually(DEADLINE, || {
        station.noticed(QUIET);
        let unreachable = station.sync_only(&Dirty::NONE).unreachable;
        (unreachable.len() == 2).then(|| unreachable.into_iter().map(|peer| peer.reason).collect())
    })
    .unwrap();
    assert_eq!(
        reasons,
        [
            "the public address of 10.5.2.0/24 is this host's own (192.168.64.2)",
            "the public address of fd00:5:0:3::/64 is this host's own (fd00:64::3)",
        ]
    );
    ip(&station.namespace, "address del 192.168.64.2/32 dev lo");
    ip(&station.namespace, "-6 address del fd00:64::3/128 dev lo");
    eventually(DEADLINE, || {
        station.noticed(QUIET);
        station.sync_only(&Dirty::NONE).unreachable.is_empty()
    })
    .unwrap();
    assert_eq!(routes(&station), routes_to(&[2, 3]));
}

#[test]
fn a_peer_with_another_backend_is_reported() {
    let lab = lab(1);
    let mut station = station(&lab, 1);
    let mut other = peer(2, 0);
    other.attrs.backend_type = BackendType::VXLAN;
    station.learn([other]);
    station.peers.complete();
    let report = station.sync();
    assert_eq!(report.unreachable[0].reason, "ignoring non-host-gw subnet(10.5.2.0/24): type=vxlan");
    assert_eq!(routes(&station), routes_to(&[]));
}

#[test]
fn drift_of_the_routes_is_repaired() {
    let lab = lab(1);
    let mut station = station(&lab, 1);
    station.complete([peer(2, 0), peer(3, 0)]);
    station.settle();
    for by_hand in
        ["route del 10.5.2.0/24", "-6 route flush proto 241", "route add 10.5.9.0/24 dev eth0 proto 241"]
    {
        ip(&station.namespace, by_hand);
        assert_eq!(station.heal().failed, [], "{by_hand}");
        assert_eq!(routes(&station), routes_to(&[2, 3]), "{by_hand}");
        assert_idle(&station.sync());
        assert_eq!(station.noticed(QUIET), None, "{by_hand}");
    }
}

#[test]
fn remove_deletes_our_routes_only() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    ip(host, "route add 10.5.9.0/24 via 192.168.64.9");
    ip(host, "route add 10.7.0.0/24 via 192.168.64.9 proto 241");
    let before = ip(host, "route");
    let mut station = station(&lab, 1);
    station.complete([peer(2, 0)]);
    station.backend.remove().unwrap();
    assert_eq!(ip(host, "route"), before);
}

#[test]
fn a_host_behind_a_nat_is_refused_in_upstreams_words() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut external = external_interface(host, "eth0").unwrap();
    external.public.v4 = "203.0.113.7".parse().ok();
    let config = config();
    let request = OpenRequest::new(&config, &external);
    let error = OpenHostGw::new(host.clone()).open(request).err().unwrap();
    assert_eq!(
        error.to_string(),
        "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which is not supported \
         by host-gw backend"
    );
}

#[test]
fn the_route_protocol_is_configurable() {
    assert_eq!((RouteProtocol::new(4), RouteProtocol::default().number()), (None, 241));
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = station(&lab, 1);
    let other = OpenHostGw::new(host.clone()).with_route_protocol(RouteProtocol::new(77).unwrap());
    let request = OpenRequest::new(&station.config, &station.external);
    station.backend = other.open(request).unwrap();
    station.backend.configure(&station.own).unwrap();
    station.complete([peer(2, 0)]);
    assert_eq!(ip(host, "route show 10.5.2.0/24"), ["10.5.2.0/24 via 192.168.64.2 dev eth0 proto 77 "]);
}

#[test]
fn routes_return_with_a_recreated_interface() {
    let lab = lab(1);
    let mut station = station(&lab, 1);
    station.complete([peer(2, 0)]);
    station.settle();
    ip(&station.namespace, "link del eth0");
    station.heal();
    assert_eq!(routes(&station), routes_to(&[]));
    ip(&station.namespace, "link add eth0 up type bridge");
    ip(&station.namespace, "address add 192.168.64.1/24 dev eth0");
    ip(&station.namespace, "-6 address add fd00:64::1/64 dev eth0 nodad");
    let all_back = eventually(DEADLINE, || {
        station.noticed(QUIET);
        assert_eq!(station.sync_only(&Dirty::NONE).failed, []);
        // A bridge without ports has no carrier.
        routes(&station).iter().map(|line| line.replace(" linkdown", "")).eq(routes_to(&[2]))
    });
    assert!(all_back.is_ok(), "{:?}", routes(&station));
}

#[test]
fn the_routes_move_to_another_interface() {
    let lab = lab(1);
    let mut station = station(&lab, 1);
    station.complete([peer(2, 0)]);
    let host = station.namespace.clone();
    ip(&host, "link add lan0 up mtu 1400 type bridge");
    ip(&host, "address add 192.168.64.9/24 dev lan0");
    ip(&host, "-6 address add fd00:64::9/64 dev lan0 nodad");
    ip(&host, "link set eth0 down");
    let external = external_interface(&host, "lan0").unwrap();
    station.backend.update_interface(&external).unwrap();
    assert_eq!(station.sync_only(&Dirty::NONE).failed, []);
    assert_eq!(station.backend.mtu(), 1400);
    station.sync();
    let route = ip(&host, "route show 10.5.2.0/24");
    assert!(route[0].starts_with("10.5.2.0/24 via 192.168.64.2 dev lan0 proto 241"), "{route:?}");
    let behind_nat = external.with_public(peer(7, 0).attrs.public);
    assert!(station.backend.update_interface(&behind_nat).is_err());
    assert_eq!(station.backend.mtu(), 1400);
}

#[test]
fn the_config_of_another_backend_is_refused() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap();
    let external = external_interface(host, "eth0").unwrap();
    let error = OpenHostGw::new(host.clone()).open(OpenRequest::new(&config, &external)).err().unwrap();
    assert_eq!(error.to_string(), "unknown backend type: vxlan (available: host-gw)");
}

#[test]
fn disabled_forwarding_is_enabled_again() {
    let lab = lab(1);
    let host = &lab.hosts[0].namespace;
    let mut station = station(&lab, 1);
    station.complete([]);
    station.settle();
    for sysctl in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        host.write_sysctl(sysctl, "0").unwrap();
        assert_eq!(station.heal().failed, [], "{sysctl}");
        assert_eq!(host.read_sysctl(sysctl).unwrap(), "1", "{sysctl}");
    }
}
