//! The selection of the external interface on hosts with real links, addresses and routes, as the log and the lease record
//! show it.

use std::cell::Cell;
use std::process::{Command, Output};
use std::time::Duration;

use flannel_netlink::{Namespace, Netlink, NewLink, NewLinkKind, VethPeer};
use flannel_testing::{Directory, Etcd, EtcdOptions, Process, eventually, output_in, program};
use serde_json::Value;

/// Long, because many daemons start one after the other on a machine under load.
const PATIENCE: Duration = Duration::from_secs(120);

/// An IPv4, an IPv6 and a dual-stack network, with a backend whose device disappears with the daemon.
const V4: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#;
const V6: &str =
    r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd05::/48","Backend":{"Type":"udp"}}"#;
const DUAL: &str =
    r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48","Backend":{"Type":"udp"}}"#;

/// A host with `eth0`, `eth1` and `wlan0`, connected to another namespace, and an etcd.
struct Host {
    etcd: Etcd,
    directory: Directory,
    runs: Cell<usize>,
    namespace: Namespace,
    _far: Namespace,
}

/// The addresses of every host.
const ADDRESSES: &[&str] = &[
    "addr add 192.168.9.1/24 dev eth0",
    "addr add fd00::1/64 dev eth0",
    "addr add 10.0.0.5/24 dev eth1",
    "addr add 10.0.0.6/24 dev eth1",
    "addr add fd01::1/64 dev eth1",
];
/// The default routes, via `eth0`.
const ROUTES: &[&str] = &["route add default via 192.168.9.254", "-6 route add default via fd00::fe"];

impl Host {
    fn new(setup: &[&[&str]]) -> Self {
        let (namespace, far) = (Namespace::create().unwrap(), Namespace::create().unwrap());
        // No duplicate address detection, and no link-local addresses.
        namespace.write_sysctl("net/ipv6/conf/default/accept_dad", "0").unwrap();
        namespace.write_sysctl("net/ipv6/conf/default/addr_gen_mode", "1").unwrap();
        let mut netlink = Netlink::open_in(&namespace).unwrap();
        for name in ["eth0", "eth1", "wlan0"] {
            let peer = VethPeer { name: name.to_owned(), mac: None, namespace: Some(far.clone()) };
            netlink
                .create_link(&NewLink { up: true, ..NewLink::new(name, NewLinkKind::Veth(peer)) })
                .unwrap();
        }
        let inside = Some((namespace.clone(), "127.0.0.1".parse().unwrap()));
        ip(&namespace, "link set lo up");
        for name in ["eth0", "eth1", "wlan0"] {
            ip(&far, &format!("link set {name} up"));
        }
        let etcd = Etcd::start_with(EtcdOptions { inside, ..EtcdOptions::default() }).unwrap();
        let directory = Directory::new().unwrap();
        let host = Self { etcd, directory, runs: Cell::new(0), namespace, _far: far };
        setup.iter().copied().flatten().for_each(|command| host.ip(command));
        host
    }

    /// Runs `ip`.
    fn ip(&self, command: &str) {
        ip(&self.namespace, command);
    }

    /// Replaces the default routes.
    fn routes(&self, commands: &[&str]) {
        while try_ip(&self.namespace, "route del default") || try_ip(&self.namespace, "-6 route del default")
        {
        }
        commands.iter().for_each(|command| self.ip(command));
    }

    /// Starts a daemon without state and returns its selection, `interface addresses as published-addresses`, or its last
    /// log line if it exits.
    fn chosen(&self, network: &str, arguments: &[&str]) -> String {
        let run = self.runs.replace(self.runs.get() + 1);
        let prefix = format!("/run-{run}");
        self.etcdctl(&["put", &format!("{prefix}/config"), network]);
        // An address is tentative for a moment even without duplicate address detection, and cannot be bound.
        eventually(PATIENCE, || ip_output(&self.namespace, "-6 -o addr show tentative").is_empty()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_flanneld"));
        command
            .arg(format!("-etcd-endpoints={}", self.etcd.client_url()))
            .args([&format!("-etcd-prefix={prefix}"), "-etcd-api=v3", "-iptables-forward-rules=false"])
            .arg(format!("-subnet-file={}", self.directory.join(format!("{run}.env")).display()))
            .args(arguments);
        let mut daemon = Process::spawn_in(&self.namespace, command).unwrap();
        let ended = eventually(PATIENCE, || {
            let has_lease = daemon.lines().iter().any(|line| line.contains("Allocated lease ("));
            if has_lease { Some(None) } else { daemon.exit_status().unwrap().map(Some) }
        });
        let ended = ended.unwrap_or_else(|_| panic!("{arguments:?}: {:#?}", daemon.lines()));
        daemon.kill().unwrap();
        let lines = daemon.lines();
        if let Some(status) = ended {
            assert_eq!(status.code(), Some(1), "{lines:#?}");
            return message(lines.last().unwrap()).to_owned();
        }
        let text =
            self.etcd.etcdctl(&["get", "--prefix", &format!("{prefix}/subnets/"), "--print-value-only"]);
        let record: Value = serde_json::from_str(&text.unwrap()).unwrap();
        let published =
            ["PublicIP", "PublicIPv6"].map(|member| record[member].as_str().unwrap_or_default().to_owned());
        let published: Vec<_> =
            published.into_iter().filter(|ip| !ip.is_empty() && ip != "0.0.0.0").collect();
        format!("{} as {}", used(&lines, network), published.join(" "))
    }

    fn etcdctl(&self, arguments: &[&str]) -> String {
        eventually(PATIENCE, || self.etcd.etcdctl(arguments)).unwrap()
    }

    fn check(&self, network: &str, cases: &[(&[&str], &str)]) {
        for (arguments, expected) in cases {
            let chosen = self.chosen(network, arguments);
            match expected.strip_prefix("no: ") {
                Some(reason) => assert!(chosen.contains(reason), "{arguments:?}: {chosen}"),
                None => assert_eq!(chosen, *expected, "{arguments:?}"),
            }
        }
    }
}

fn ip(namespace: &Namespace, arguments: &str) {
    assert!(try_ip(namespace, arguments), "ip {arguments}");
}

fn try_ip(namespace: &Namespace, arguments: &str) -> bool {
    run_ip(namespace, arguments).status.success()
}

fn ip_output(namespace: &Namespace, arguments: &str) -> String {
    String::from_utf8(run_ip(namespace, arguments).stdout).unwrap()
}

fn run_ip(namespace: &Namespace, arguments: &str) -> Output {
    let mut command = Command::new(program("ip", "iproute2").unwrap());
    command.args(arguments.split_whitespace());
    output_in(namespace, command).unwrap()
}

fn message(line: &str) -> &str {
    line.split_once("] ").unwrap().1
}

/// The interface and addresses in the last log lines, for the families of the network.
fn used(lines: &[String], network: &str) -> String {
    let last = |word: &str| {
        let words = lines.iter().rev().find_map(|line| {
            let (name, address) =
                message(line).strip_prefix("Using interface with name ")?.split_once(word)?;
            Some((name.to_owned(), address.to_owned()))
        });
        words.unwrap_or_else(|| panic!("no {word:?} in {lines:#?}"))
    };
    let v4 = (!network.contains(r#""EnableIPv4":false"#)).then(|| last(" and address "));
    let v6 = network.contains(r#""EnableIPv6":true"#).then(|| last(" and v6 address "));
    let names: Vec<_> = v4.iter().chain(&v6).map(|(name, _)| name.clone()).collect();
    assert!(names.iter().all(|name| *name == names[0]), "two interfaces: {lines:#?}");
    let addresses: Vec<_> = v4.iter().chain(&v6).map(|(_, address)| address.clone()).collect();
    format!("{} {}", names[0], addresses.join(" "))
}

#[test]
fn flags_select_the_interface_of_an_ipv4_network() {
    let host = Host::new(&[ADDRESSES, ROUTES, &["route add unreachable 198.51.100.0/24"]]);
    let first = "eth1 10.0.0.5 as 10.0.0.5";
    let second = "eth1 10.0.0.6 as 10.0.0.6";
    let default = "eth0 192.168.9.1 as 192.168.9.1";
    host.check(
        V4,
        &[
            (&[], default),
            (&["-iface=eth1"], first),
            (&["-iface", "10.0.0.6"], second),
            (&["-iface=fd01::1"], first),
            (&["-iface=eth9", "-iface=10.9.9.9", "--iface=lo", "--iface", "eth1", "-iface=eth0"], first),
            (&["-iface="], default),
            (
                &["-iface=eth9"],
                "no: -iface=eth9: error looking up interface eth9: route ip+net: no such network interface",
            ),
            (
                &["-iface=10.9.9.9"],
                "no: error looking up interface 10.9.9.9: No interface with given IP found",
            ),
            (&["-iface=lo"], "no: failed to find IPv4 address for interface lo"),
            (&["-iface=wlan0"], "no: failed to find IPv4 address for interface wlan0"),
            (&["-iface=eth0,eth1"], "no: error looking up interface eth0,eth1"),
            (&["-iface-regex=^10\\.0\\.0\\.6$"], second),
            (&["-iface-regex=eth[1-9]"], first),
            (&["-iface-regex=^nothing", "-iface-regex", "^10"], first),
            (&["-iface-regex=eth0", "-iface=eth1"], first),
            (&["-iface=eth9", "-iface-regex=eth1"], first),
            (&["-iface-regex=^wlan"], "no: failed to find IPv4 address for interface wlan0"),
            (
                &["-iface-regex=^nothing"],
                "no: could not match pattern ^nothing to any of the available network interfaces (lo:[], \
                 eth0:[192.168.9.1], eth1:[10.0.0.5 10.0.0.6], wlan0:[])",
            ),
            (&["-iface-can-reach=10.0.0.77"], first),
            (&["-iface-can-reach=192.0.2.1"], default),
            (&["-iface=eth9", "-iface-regex=nothing", "-iface-can-reach=10.0.0.77"], first),
            (&["-iface-can-reach=192.0.2.1", "-iface-regex=eth1"], first),
            (&["-iface-can-reach=198.51.100.1"], "no: -iface-can-reach=198.51.100.1: kernel refused to find the route to 198.51.100.1: No route to host"),
            (&["-iface-can-reach=10.0.0.5"], "no: 10.0.0.5 is an address of this host"),
            (&["-public-ip=10.0.0.6"], second),
            (&["-public-ip=203.0.113.7"], "eth0 192.168.9.1 as 203.0.113.7"),
            (&["-public-ip=203.0.113.7", "-iface=eth1"], "eth1 10.0.0.5 as 203.0.113.7"),
            (&["-public-ip=10.0.0.6", "-iface-regex=eth0"], "eth0 192.168.9.1 as 10.0.0.6"),
        ],
    );
}

#[test]
fn ipv4_is_ignored_in_an_ipv6_network() {
    let host = Host::new(&[
        ADDRESSES,
        &["route add default via 192.168.9.254", "-6 route add default via fd01::fe"],
    ]);
    let second = "eth1 fd01::1 as fd01::1";
    host.check(
        V6,
        &[
            (&[], second),
            (&["-iface=eth0"], "eth0 fd00::1 as fd00::1"),
            (&["-iface=fd01::1"], second),
            (&["-iface-regex=^fd01:"], second),
            (&["-iface-regex=^eth1"], second),
            (&["-iface-can-reach=fd01::77"], second),
            (&["-iface-can-reach=192.168.9.77"], "eth0 fd00::1 as fd00::1"),
            (&["-public-ipv6=fd00::1"], "eth0 fd00::1 as fd00::1"),
            (&["-public-ipv6=2001:db8::7"], "eth1 fd01::1 as 2001:db8::7"),
            (&["-iface=wlan0"], "no: failed to find IPv4 address for interface wlan0"),
        ],
    );
    host.ip("addr flush dev eth1");
    host.ip("addr add fd01::1/64 dev eth1");
    host.check(V6, &[(&["-iface=eth1"], second), (&["-iface-regex=^192", "-iface-regex=^fd01"], second)]);
    host.check(V4, &[(&["-iface=eth1"], "no: failed to find IPv4 address for interface eth1")]);
}

#[test]
fn the_interface_of_a_dual_stack_network_has_both_families() {
    let host = Host::new(&[ADDRESSES, ROUTES]);
    let first = "eth1 10.0.0.5 fd01::1 as 10.0.0.5 fd01::1";
    let second = "eth1 10.0.0.6 fd01::1 as 10.0.0.6 fd01::1";
    let default = "eth0 192.168.9.1 fd00::1 as 192.168.9.1 fd00::1";
    host.check(
        DUAL,
        &[
            (&[], default),
            (&["-iface=eth1"], first),
            (&["-iface=10.0.0.6"], second),
            (&["-iface=10.0.0.6", "-public-ipv6=fd01::1"], second),
            (&["-iface=fd01::1"], first),
            (
                &["-iface=192.168.9.1", "-public-ipv6=fd01::1"],
                "no: v6 interface eth1 must be the same with v4 interface eth0",
            ),
            (&["-iface-regex=^10\\.0\\.0\\.6$|^fd01"], second),
            (&["-iface-regex=^192|^10|^fd01"], first),
            (&["-iface-regex=^192|^fd01"], "no: could not match pattern ^192|^fd01"),
            (&["-iface-regex=^192|^fd01", "-iface-regex=eth1"], first),
            (&["-iface-can-reach=10.0.0.77"], first),
            (&["-iface-can-reach=fd01::77"], first),
            (&["-public-ip=10.0.0.6", "-public-ipv6=fd01::1"], second),
            (&["-public-ipv6=fd01::1"], first),
            (
                &["-public-ip=203.0.113.7", "-public-ipv6=2001:db8::7"],
                "eth0 192.168.9.1 fd00::1 as 203.0.113.7 2001:db8::7",
            ),
        ],
    );
    host.routes(&["route add default via 192.168.9.254", "-6 route add default via fd01::fe"]);
    let apart = "no: v6 default route interface eth1 must be the same with v4 default route interface eth0";
    host.check(DUAL, &[(&[], apart), (&["-iface=eth0"], default)]);
    host.ip("addr del fd00::1/64 dev eth0");
    host.check(DUAL, &[(&["-iface=eth0"], "no: failed to find IPv6 address for interface eth0")]);
}

#[test]
fn every_form_of_default_route_selects_the_interface() {
    let host = Host::new(&[ADDRESSES]);
    let (eth0, eth1) = ("eth0 192.168.9.1 as 192.168.9.1", "eth1 10.0.0.5 as 10.0.0.5");
    for (routes, expected) in [
        (&[][..], "no: failed to get default interface: unable to find default route"),
        (&["route add default via 192.168.9.254 table 100"], "no: unable to find default route"),
        (&["route add 0.0.0.0/1 via 192.168.9.254"], "no: unable to find default route"),
        (&["route add unreachable default"], "no: found default route but could not determine interface"),
        (&["route add default dev eth1"], eth1),
        (
            &[
                "route add default via 192.168.9.254 metric 200",
                "route add default via 10.0.0.254 metric 100",
            ],
            eth1,
        ),
        (&["route add default nexthop via 10.0.0.254 nexthop via 192.168.9.254"], eth1),
        (&["route add default nexthop via 192.168.9.254 nexthop via 10.0.0.254"], eth0),
        (
            &[
                "route add default nexthop via 10.0.0.254 nexthop via 192.168.9.254",
                "route add default via 192.168.9.254 metric 100",
            ],
            eth1,
        ),
        (&["nexthop replace id 7 via 10.0.0.254 dev eth1", "route add default nhid 7"], eth1),
        (&["-6 route add default via fd01::fe"], "no: unable to find default route"),
    ] {
        host.routes(routes);
        host.check(V4, &[(&[], expected)]);
    }
    // Without the compatibility mode a route names only its nexthop object.
    host.namespace.write_sysctl("net/ipv4/nexthop_compat_mode", "0").unwrap();
    host.ip("nexthop replace id 7 via 10.0.0.254 dev eth1");
    host.ip("nexthop replace id 8 via 192.168.9.254 dev eth0");
    host.ip("nexthop replace id 9 group 7/8");
    for nexthop in [7, 9] {
        host.routes(&[&format!("route add default nhid {nexthop}")]);
        host.check(V4, &[(&[], eth1)]);
    }
    host.ip("nexthop replace id 10 via fd01::fe dev eth1");
    host.routes(&["-6 route add default nhid 10"]);
    host.check(V6, &[(&[], "eth1 fd01::1 as fd01::1")]);
    host.namespace.write_sysctl("net/ipv4/nexthop_compat_mode", "1").unwrap();
    host.routes(&["-6 route add default nexthop via fd01::fe nexthop via fd00::fe"]);
    host.check(V6, &[(&[], "eth1 fd01::1 as fd01::1")]);
    host.routes(&["route add default nexthop via 10.0.0.254 nexthop via 192.168.9.254"]);
    host.ip("link set eth1 down");
    host.check(V4, &[(&[], eth0)]);
}

#[test]
fn permanent_global_addresses_are_preferred() {
    let host = Host::new(&[]);
    for (addresses, expected) in [
        (&["169.254.7.7/16"][..], "169.254.7.7"),
        (&["169.254.7.7/16", "10.0.0.1/24"], "10.0.0.1"),
        (&["10.0.0.1/24", "10.0.0.2/24"], "10.0.0.1"),
        (&["10.0.0.1/24 valid_lft 3600 preferred_lft 3600", "10.9.0.2/24"], "10.9.0.2"),
        (&["10.0.0.1/24 valid_lft 3600 preferred_lft 0", "169.254.7.7/16"], "169.254.7.7"),
        (
            &["10.0.0.1/24 valid_lft 3600 preferred_lft 0"],
            "no: failed to find IPv4 address for interface eth0",
        ),
    ] {
        host.ip("addr flush dev eth0");
        addresses.iter().for_each(|address| host.ip(&format!("addr add {address} dev eth0")));
        let expected = if expected.starts_with("no:") {
            expected.to_owned()
        } else {
            format!("eth0 {expected} as {expected}")
        };
        host.check(V4, &[(&["-iface=eth0"], &expected)]);
    }
    for (addresses, expected) in [
        (&["fe80::7/64"][..], "fe80::7"),
        (&["fe80::7/64", "fd00::1/64"], "fd00::1"),
        (&["fd00::1/64 valid_lft 3600 preferred_lft 3600", "fd09::2/64"], "fd09::2"),
        (
            &["fd00::1/64 valid_lft 3600 preferred_lft 0", "fd09::2/64 valid_lft 3600 preferred_lft 3600"],
            "fd09::2",
        ),
    ] {
        host.ip("addr flush dev eth0");
        addresses.iter().for_each(|address| host.ip(&format!("addr add {address} dev eth0")));
        // A UDP socket cannot bind to a link-local address without a scope.
        let network = V6.replace("udp", "host-gw");
        host.check(&network, &[(&["-iface=eth0"], &format!("eth0 {expected} as {expected}"))]);
    }
    host.ip("addr add 10.7.7.7/32 dev lo");
    host.check(V4, &[(&["-iface=lo"], "lo 10.7.7.7 as 10.7.7.7")]);
}
