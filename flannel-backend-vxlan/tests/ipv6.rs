//! IPv6, alone and with IPv4.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use common::{DEADLINE, QUIET, Station, StationExt, address, assert_idle, bridge, ip, lab, net};
use flannel_core::{Lease, NetworkConfig};
use flannel_testing::{PingOptions, eventually, ping};

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetLen":64,
    "Backend":{"Type":"vxlan"}}"#;
const ONLY: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetLen":64,
    "Backend":{"Type":"vxlan"}}"#;

/// Two hosts that are peers, with the subnets number 1 and 2.
fn pair(lab: &flannel_testing::Lab, config: &str, subnet: fn(u8) -> String) -> [Station; 2] {
    let config = NetworkConfig::parse(config).unwrap();
    let start = |n: u8| {
        let host = &lab.hosts[usize::from(n) - 1].namespace;
        Station::start_with(host, &subnet(n), &config)
    };
    let (mut one, mut two) = (start(1), start(2));
    one.complete([two.own.clone()]);
    two.complete([one.own.clone()]);
    [one, two]
}

fn both(n: u8) -> String {
    format!("10.5.{n}.0-24&fd00:5:0:{n}::-64")
}

fn six(n: u8) -> String {
    format!("0.0.0.0-0&fd00:5:0:{n}::-64")
}

fn v6_mac(lease: &Lease) -> String {
    let data = lease.attrs.backend_v6_data.clone().unwrap().to_string();
    data.split('"').nth(5).unwrap().to_owned()
}

#[test]
fn pods_reach_each_other_over_both_families() {
    let lab = lab(2);
    let [mut one, mut two] = pair(&lab, DUAL, both);
    let mtu = one.backend.mtu();
    assert_eq!(mtu, 1430);
    let pod = |n: usize| {
        let subnets = [net(&format!("10.5.{n}.0/24")), net(&format!("fd00:5:0:{n}::/64"))];
        lab.hosts[n - 1].add_pod(&subnets, mtu).unwrap()
    };
    let (from, to) = (pod(1), pod(2));
    for to in &to.addresses {
        ping(&from.namespace, *to, &PingOptions::default()).unwrap();
        let headers = if to.is_ipv4() { 28 } else { 48 };
        let whole = PingOptions { payload: 1430 - headers, dont_fragment: true, ..PingOptions::default() };
        ping(&from.namespace, *to, &whole).unwrap();
    }
    for station in [&mut one, &mut two] {
        assert_idle(&station.sync());
        station.settle();
    }
}

#[test]
fn the_ipv6_device_and_its_tables_equal_upstreams() {
    let lab = lab(2);
    let [mut one, two] = pair(&lab, DUAL, both);
    let host = &one.namespace;
    let link = ip(host, "-d link show flannel-v6.1");
    assert!(link[0].contains(" mtu 1430 qdisc noqueue state UNKNOWN "), "{link:?}");
    let vxlan = "    vxlan id 1 local fd00:64::1 dev eth0 srcport 0 0 dstport 8472 nolearning ttl auto ageing 300 udpcsum noudp6zerocsumtx noudp6zerocsumrx ";
    assert!(link[2].starts_with(vxlan), "{link:?}");
    let addresses = ip(host, "-6 -o address show dev flannel-v6.1 scope global");
    assert!(addresses[0].contains(" fd00:5:0:1::/128 "), "{addresses:?}");
    let mac = v6_mac(&two.own);
    assert_eq!(
        ip(host, "-6 route show dev flannel-v6.1 fd00:5:0:2::/64"),
        ["fd00:5:0:2::/64 via fd00:5:0:2:: metric 1024 onlink pref medium"]
    );
    assert_eq!(
        ip(host, "-6 neigh show dev flannel-v6.1 nud permanent"),
        [format!("fd00:5:0:2:: lladdr {mac} PERMANENT ")]
    );
    assert_eq!(bridge(host, "fdb show dev flannel-v6.1"), [format!("{mac} dst fd00:64::2 self permanent")]);
    // A lease with the data of one family is still used for that family.
    let mut half = two.own.clone();
    half.attrs.backend_v6_data = None;
    one.learn([half]);
    let report = one.sync();
    assert_eq!(report.unreachable.len(), 1, "{report:?}");
    assert_eq!(one.tables().len(), 3);
    assert_eq!(bridge(&one.namespace, "fdb show dev flannel-v6.1"), Vec::<String>::new());
}

#[test]
fn ipv6_alone_has_no_ipv4_device() {
    let lab = lab(2);
    let [one, two] = pair(&lab, ONLY, six);
    assert_eq!(one.backend.attrs().data, None);
    // A new IPv6 link needs a moment.
    let reach = || ping(&two.namespace, address("fd00:5:0:1::"), &PingOptions::default());
    eventually(DEADLINE, reach).unwrap();
    assert_eq!(ip(&one.namespace, "-o link show type vxlan").len(), 1);
}

#[test]
fn a_restart_adopts_both_devices() {
    let lab = lab(2);
    let [one, _two] = pair(&lab, DUAL, both);
    let before = ip(&one.namespace, "link show");
    let mut one = one.restart();
    assert_idle(&one.sync());
    assert_eq!(ip(&one.namespace, "link show"), before);
}

#[test]
fn drift_of_the_ipv6_device_is_repaired() {
    let by_hand = [
        "-6 route flush dev flannel-v6.1 proto boot",
        "-6 neigh flush dev flannel-v6.1 nud permanent",
        "-6 address del fd00:5:0:1::/128 dev flannel-v6.1",
        "link set flannel-v6.1 down",
        "link set flannel-v6.1 mtu 1300",
        "link del flannel-v6.1",
        "-6 route replace fd00:5:0:2::/64 via fd00:5:0:3:: dev flannel-v6.1 onlink",
        "-6 route add fd00:5:0:2::/64 dev flannel-v6.1 metric 5",
    ];
    let lab = lab(2);
    let [mut one, two] = pair(&lab, DUAL, both);
    one.settle();
    for command in by_hand {
        ip(&one.namespace, command);
        assert_eq!(one.heal().failed, [], "{command}");
        ping(&one.namespace, address("fd00:5:0:2::"), &PingOptions::default())
            .unwrap_or_else(|error| panic!("{command}: {error}"));
        assert_idle(&one.sync());
        assert_eq!(ip(&one.namespace, "-6 route show fd00:5:0:2::/64").len(), 1, "{command}");
        assert_eq!(one.noticed(QUIET), None, "{command}");
    }
    drop(two);
}
