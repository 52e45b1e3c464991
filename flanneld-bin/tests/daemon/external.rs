//! Changes of the external interface while the daemons run: its address, its MTU, the interface itself.

use std::time::{Duration, Instant};

use flannel_netlink::{LinkChange, Netlink};
use flannel_testing::{PingOptions, eventually, ping};

use crate::cluster::{Cluster, DUAL, HOST_GW, PATIENCE, VXLAN, check_ping, running_ping, wait_for_replies};

/// On an idle machine it takes the three seconds in which the address may return; with dead connections it would take more
/// than ten.
const FOLLOWED: Duration = Duration::from_secs(10);

/// Three running hosts with this config and routes to each other.
fn running(config: &str) -> Cluster {
    let mut cluster = Cluster::new(3);
    cluster.configure(config);
    cluster.start_all();
    for host in 0..3 {
        let to_peers = |line: &&String| line.starts_with("10.5.") && line.contains(" via ");
        let known = || (cluster.lines(host, "ip route").iter().filter(to_peers).count() == 2).then_some(());
        eventually(PATIENCE, known).unwrap();
    }
    cluster
}

fn subnet_file(cluster: &Cluster, host: usize) -> String {
    std::fs::read_to_string(cluster.subnet_file(host)).unwrap()
}

/// Waits until the lease of a host has this public address, and checks that there is no additional lease.
fn check_lease(cluster: &Cluster, host: usize, public: &str) {
    let key = format!("/coreos.com/network/subnets/{}-24", cluster.subnet(host).addr());
    let expected = format!(r#"{{"PublicIP":"{public}","#);
    let written = eventually(PATIENCE, || {
        let leases = cluster.leases();
        let is_written = |(there, record): &(String, String)| *there == key && record.starts_with(&expected);
        if leases.iter().any(is_written) { Ok(leases) } else { Err(format!("{leases:#?}")) }
    });
    let leases = written.unwrap();
    assert_eq!(leases.len(), 3, "no other lease was taken: {leases:#?}");
}

fn address_replaced(config: &str, steps: &[&str]) {
    let mut cluster = running(config);
    let pods = [cluster.add_pod(0), cluster.add_pod(1), cluster.add_pod(2)];
    // As on hosts with systemd: without it, an address takes the later ones of its subnet with it.
    let host = &cluster.lab.hosts[0].namespace;
    host.write_sysctl("net/ipv4/conf/eth0/promote_secondaries", "1").unwrap();
    let (file, mtu) = (subnet_file(&cluster, 0), cluster.subnet_env(0, "FLANNEL_MTU"));
    let pings = [running_ping(&pods[1], &pods[0]), running_ping(&pods[0], &pods[2])];
    let started = Instant::now();
    for step in steps {
        cluster.change(0, step);
    }
    wait_for_replies(&pings, 20);
    let out = started.elapsed();
    check_lease(&cluster, 0, "192.168.64.77");
    assert_eq!((subnet_file(&cluster, 0), cluster.subnet_env(0, "FLANNEL_MTU")), (file, mtu));
    check_ping(&pods[2], &pods[0]);
    let line = cluster.daemon(0).wait_for_line("using eth0 with address 192.168.64.77", PATIENCE).unwrap();
    assert!(line.starts_with('I'), "{line}");
    assert!(out < FOLLOWED, "{out:?}");
}

#[test]
fn a_replaced_address_is_followed_and_the_subnet_kept() {
    address_replaced(
        VXLAN,
        &["ip address add 192.168.64.77/24 dev eth0", "ip address del 192.168.64.1/24 dev eth0"],
    );
}

#[test]
fn an_address_removed_before_the_new_one_is_added_is_followed() {
    address_replaced(
        VXLAN,
        &["ip address del 192.168.64.1/24 dev eth0", "ip address add 192.168.64.77/24 dev eth0"],
    );
}

#[test]
fn a_replaced_address_is_followed_by_host_gw() {
    address_replaced(
        HOST_GW,
        &["ip address add 192.168.64.77/24 dev eth0", "ip address del 192.168.64.1/24 dev eth0"],
    );
}

#[test]
fn replaced_addresses_of_both_families_are_followed() {
    let mut cluster = running(DUAL);
    let pods = [cluster.add_dual_pod(0), cluster.add_dual_pod(1)];
    for step in [
        "ip address del 192.168.64.1/24 dev eth0",
        "ip -6 address del fd00:64::1/64 dev eth0",
        "ip address add 192.168.64.77/24 dev eth0",
        "ip -6 address add fd00:64::77/64 dev eth0 nodad",
    ] {
        cluster.change(0, step);
    }
    for to in &pods[0].addresses {
        let answered = eventually(PATIENCE, || ping(&pods[1].namespace, *to, &PingOptions::default()));
        answered.unwrap_or_else(|error| panic!("{to}: {error}"));
    }
    let leases = cluster.leases();
    assert_eq!(leases.len(), 3);
    let moved = r#"{"PublicIP":"192.168.64.77","PublicIPv6":"fd00:64::77","#;
    assert!(leases.iter().any(|(_, record)| record.starts_with(moved)), "{leases:#?}");
    cluster.daemon(0).wait_for_line(" and fd00:64::77, MTU", PATIENCE).unwrap();
}

/// Returns the lease of the first host.
fn lease(cluster: &Cluster) -> String {
    let key = format!("/coreos.com/network/subnets/{}-24", cluster.subnet(0).addr());
    cluster.leases().into_iter().find(|(there, _)| there.starts_with(&key)).unwrap().1
}

#[test]
fn a_floating_address_never_takes_the_lease_of_the_own_one() {
    let mut cluster = running(DUAL);
    for family in
        ["ip address add 192.168.64.100/32 dev eth0", "ip -6 address add fd00:64::100/128 dev eth0 nodad"]
    {
        cluster.change(0, family);
    }
    let (away, back) = (
        ["ip address del 192.168.64.1/24 dev eth0", "ip -6 address del fd00:64::1/64 dev eth0"],
        ["ip address add 192.168.64.1/24 dev eth0", "ip -6 address add fd00:64::1/64 dev eth0 nodad"],
    );
    let own = lease(&cluster);
    assert!(own.starts_with(r#"{"PublicIP":"192.168.64.1","PublicIPv6":"fd00:64::1","#), "{own}");
    // A link flap.
    away.iter().for_each(|step| cluster.change(0, step));
    std::thread::sleep(Duration::from_millis(300));
    back.iter().for_each(|step| cluster.change(0, step));
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(lease(&cluster), own);
    let lines = cluster.daemon(0).lines();
    assert!(!lines.iter().any(|line| line.contains("using eth0 with address 192.168.64.100")), "{lines:#?}");
    // A longer loss is followed, and the daemon returns.
    away.iter().for_each(|step| cluster.change(0, step));
    cluster.daemon(0).wait_for_line("using eth0 with address 192.168.64.100", PATIENCE).unwrap();
    back.iter().for_each(|step| cluster.change(0, step));
    eventually(PATIENCE, || (lease(&cluster) == own).then_some(())).unwrap();
}

#[test]
fn a_restart_prefers_the_address_of_the_lease_to_a_permanent_one() {
    let mut cluster = Cluster::new(3);
    cluster.configure(VXLAN);
    cluster.change(0, "ip address del 192.168.64.1/24 dev eth0");
    cluster.change(0, "ip address add 192.168.64.1/24 dev eth0 valid_lft 3600 preferred_lft 3600");
    cluster.change(0, "ip address add 192.168.64.100/32 dev eth0");
    cluster.start_all();
    check_lease(&cluster, 0, "192.168.64.1");
    // An address of the same prefix that floats, as keepalived may configure it.
    cluster.change(0, "ip address add 192.168.64.101/24 dev eth0");
    let cache = cluster.subnet_file(0).with_extension("env.cache");
    eventually(PATIENCE, || cache.exists().then_some(())).unwrap();
    cluster.daemon(0).kill().unwrap();
    cluster.start(0);
    cluster.wait_until_ready(0);
    check_lease(&cluster, 0, "192.168.64.1");
}

#[test]
fn without_an_address_the_host_waits_for_one_also_after_a_restart() {
    let mut cluster = running(VXLAN);
    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    let (mac, subnet) = (cluster.mac(0), cluster.subnet(0));
    cluster.change(0, "ip address flush dev eth0");
    let line = cluster.daemon(0).wait_for_line("eth0 has no usable IPv4 address", PATIENCE).unwrap();
    assert!(line.starts_with('W') && line.contains("; continuing with eth0 at 192.168.64.1"), "{line}");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(cluster.daemon(0).exit_status().unwrap(), None, "it goes on");
    assert_eq!(cluster.routes(0).len(), 2, "and so would the traffic");
    cluster.change(0, "ip address add 192.168.64.77/24 dev eth0");
    check_ping(&pods[1], &pods[0]);
    check_lease(&cluster, 0, "192.168.64.77");
    cluster.daemon(0).kill().unwrap();
    cluster.start(0);
    cluster.wait_until_ready(0);
    check_lease(&cluster, 0, "192.168.64.77");
    assert_eq!((cluster.mac(0), cluster.subnet(0)), (mac, subnet));
    check_ping(&pods[1], &pods[0]);
}

#[test]
fn a_recreated_interface_with_another_address_is_followed() {
    let cluster = running(VXLAN);
    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    let (mac, file) = (cluster.mac(0), subnet_file(&cluster, 0));
    cluster.change(0, "ip link del eth0");
    cluster.connect(0, "eth0");
    cluster.change(0, "ip address add 192.168.64.77/24 dev eth0");
    check_ping(&pods[1], &pods[0]);
    check_lease(&cluster, 0, "192.168.64.77");
    assert_eq!((cluster.mac(0), subnet_file(&cluster, 0)), (mac, file));
}

#[test]
fn the_default_route_is_followed_to_another_interface() {
    let mut cluster = Cluster::new(3);
    cluster.configure(VXLAN);
    cluster.change(0, "ip route add default via 192.168.64.254");
    cluster.start_as(0, cluster.command_without_interface(0));
    (1..3).for_each(|host| cluster.start(host));
    (0..3).for_each(|host| cluster.wait_until_ready(host));
    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    let before = cluster.device(0);
    cluster.connect(0, "eth1");
    cluster.change(0, "ip address add 192.168.64.77/24 dev eth1");
    cluster.change(0, "ip route replace default via 192.168.64.254 dev eth1");
    cluster
        .daemon(0)
        .wait_for_line("the route moved from eth0 to eth1; following it if it stays there", PATIENCE)
        .unwrap();
    cluster.daemon(0).wait_for_line("using eth1 with address 192.168.64.77", PATIENCE).unwrap();
    cluster.change(0, "ip link set eth0 down");
    check_ping(&pods[1], &pods[0]);
    check_lease(&cluster, 0, "192.168.64.77");
    let after = cluster.device(0);
    assert_eq!((after.index, after.mac), (before.index, before.mac), "the device was moved, not replaced");
}

/// Sets the MTU on both ends of a host's link.
fn set_mtu(cluster: &Cluster, host: usize, mtu: u32) {
    let ends = [
        (&cluster.lab.hosts[host].namespace, "eth0".to_owned()),
        (cluster.lab.switch(), format!("port{}", host + 1)),
    ];
    for (namespace, name) in ends {
        let mut netlink = Netlink::open_in(namespace).unwrap();
        let link = netlink.link(&name).unwrap().unwrap();
        netlink.change_link(link.index, &LinkChange { mtu: Some(mtu), ..LinkChange::default() }).unwrap();
    }
}

/// Waits until the subnet file and the device of the first host have these MTUs.
fn wait_for_mtu(cluster: &Cluster, file: &str, device: Option<u32>) {
    eventually(PATIENCE, || {
        let now = (cluster.subnet_env(0, "FLANNEL_MTU"), device.map(|_| cluster.device(0).mtu));
        if now == (file.to_owned(), device) { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .unwrap();
}

#[test]
fn an_mtu_change_is_followed_by_device_and_subnet_file() {
    let mut cluster = running(VXLAN);
    let before = subnet_file(&cluster, 0);
    let peers = cluster.tunnel(0);
    set_mtu(&cluster, 0, 1400);
    wait_for_mtu(&cluster, "1350", Some(1350));
    assert_eq!(subnet_file(&cluster, 0), before.replace("MTU=1450", "MTU=1350"), "the rest stays");
    assert_eq!(cluster.tunnel(0), peers);
    let line = cluster.daemon(0).wait_for_line("Network MTU changed to 1350", PATIENCE).unwrap();
    assert!(line.starts_with('I'), "{line}");
    set_mtu(&cluster, 0, 9000);
    wait_for_mtu(&cluster, "8950", Some(8950));
    assert_eq!(cluster.leases().len(), 3);
}

#[test]
fn an_mtu_set_in_the_config_stays() {
    let mut cluster = running(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":1300}}"#);
    for mtu in [1400, 9000] {
        set_mtu(&cluster, 0, mtu);
        cluster.daemon(0).wait_for_line(&format!(", MTU {mtu}"), PATIENCE).unwrap();
        wait_for_mtu(&cluster, "1250", Some(1250));
    }
    let lines = cluster.daemon(0).lines();
    assert!(!lines.iter().any(|line| line.contains("Network MTU changed")), "{lines:#?}");
}

#[test]
fn an_mtu_change_is_followed_by_host_gw() {
    let cluster = running(HOST_GW);
    set_mtu(&cluster, 0, 1400);
    wait_for_mtu(&cluster, "1400", None);
}
