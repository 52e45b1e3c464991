//! Repair of manual changes, made with the usual programs.

use std::time::Duration;

use flannel_testing::{Pod, eventually};

use crate::cluster::{Cluster, HOST_GW, PATIENCE, check_ping};

/// The longest time for a repair: half the interval between audits.
const REPAIR_TIME: Duration = Duration::from_secs(30);

/// Foreign objects: another overlay, a route, a neighbour and a bridge.
const FOREIGN: [&str; 9] = [
    "ip link add br9 type bridge",
    "ip link set br9 up",
    "ip addr add 10.99.0.1/24 dev br9",
    "ip route add 10.98.0.0/16 via 10.99.0.9 dev br9",
    "ip neigh add 10.99.0.9 lladdr 0e:99:00:00:00:09 dev br9 nud permanent",
    "ip link add vx9 up type vxlan id 9 dstport 8472 nolearning",
    "bridge fdb add 0e:99:00:00:00:01 dev vx9 dst 172.31.0.1 self permanent",
    "ip neigh add 10.97.1.0 lladdr 0e:99:00:00:00:01 dev vx9 nud permanent",
    "ip route add 10.97.1.0/24 via 10.97.1.0 dev vx9 onlink",
];

fn make_foreign(cluster: &Cluster) {
    for command in FOREIGN {
        cluster.change(0, command);
    }
    // A link-local address is tentative for a moment.
    let is_settled = || !foreign(cluster).join(" ").contains(" tentative");
    eventually(PATIENCE, is_settled).unwrap();
}

fn foreign(cluster: &Cluster) -> Vec<String> {
    [
        "ip link show br9",
        "ip -d link show vx9",
        "ip addr show br9",
        "ip route show dev br9",
        "ip route show dev vx9",
        "ip neigh show dev br9 nud permanent",
        "ip neigh show dev vx9 nud permanent",
        "bridge fdb show dev vx9",
    ]
    .iter()
    .flat_map(|command| cluster.lines(0, command))
    .collect()
}

/// All overlay objects of the first host, except the index of the device.
fn overlay(cluster: &Cluster) -> Vec<String> {
    let without_index =
        |line: String| line.split_once(": ").map_or(line.clone(), |(_, rest)| rest.to_owned());
    let ours = ["ip -d -o link show flannel.1", "ip -4 -o addr show flannel.1"];
    let mut lines: Vec<_> =
        ours.iter().flat_map(|command| cluster.lines(0, command)).map(without_index).collect();
    for command in [
        "ip route show dev flannel.1",
        "ip -4 neigh show nud permanent dev flannel.1",
        "bridge fdb show dev flannel.1",
        "ip route show proto 241",
    ] {
        let mut table = cluster.lines(0, command);
        table.sort();
        lines.extend(table);
    }
    lines
}

/// Damages the first host and waits for the repair, which notifications trigger: audits run once a minute.
fn check_repair(cluster: &mut Cluster, pods: &[Pod], before: &[String], damage: &[String]) {
    let repairs = |cluster: &mut Cluster| {
        let lines = cluster.daemon(0).lines();
        lines.iter().filter(|line| line.contains("Repaired ")).count()
    };
    let repaired = repairs(cluster);
    for command in damage {
        // The daemon may repair the first half of the damage before the second.
        cluster.lines(0, command);
    }
    eventually(REPAIR_TIME, || {
        let now = overlay(cluster);
        if now == before { Ok(()) } else { Err(format!("{now:#?} instead of {before:#?}")) }
    })
    .unwrap_or_else(|error| panic!("after {damage:?}: {error}"));
    check_ping(&pods[0], &pods[1]);
    // The kernel restores what depends on the external interface alone.
    if !damage.iter().any(|command| command.contains("eth0")) {
        eventually(PATIENCE, || repairs(cluster) > repaired)
            .unwrap_or_else(|error| panic!("after {damage:?} no repair is logged: {error}"));
    }
}

fn check_no_audit_repaired(cluster: &mut Cluster) {
    let lines = cluster.daemon(0).lines();
    assert!(!lines.iter().any(|line| line.contains("detected by an audit")), "{lines:#?}");
}

#[test]
fn manual_changes_are_repaired_on_notification_and_foreign_objects_are_untouched() {
    let mut cluster = Cluster::running(3);
    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    check_ping(&pods[0], &pods[1]);
    make_foreign(&cluster);
    let (before, untouched) = (overlay(&cluster), foreign(&cluster));
    assert_eq!(before.len(), 2 + 6, "device, address, and three objects for each peer: {before:#?}");
    assert!(untouched.len() > 10, "{untouched:#?}");

    let entries = cluster.lines(0, "bridge fdb show dev flannel.1").into_iter();
    let macs = entries.filter_map(|line| line.split(' ').next().map(str::to_owned));
    let all_entries = macs.map(|mac| format!("bridge fdb del {mac} dev flannel.1")).collect();
    let one = |command: &str| vec![command.to_owned()];
    let two = |first: &str, second: &str| vec![first.to_owned(), second.to_owned()];
    let damages: [Vec<String>; 15] = [
        one("ip route flush dev flannel.1"),
        one("ip neigh flush nud permanent dev flannel.1"),
        all_entries,
        one("ip addr flush dev flannel.1"),
        one(&format!("ip addr del {}/32 dev flannel.1", cluster.subnet(0).addr())),
        one("ip link set flannel.1 down"),
        two("ip link set flannel.1 down", "ip link set flannel.1 up"),
        two("ip link set flannel.1 down", "ip link set flannel.1 name somebody"),
        one("ip link set flannel.1 mtu 1300"),
        one("ip link set flannel.1 address 0e:00:00:00:00:99"),
        one("ip link set flannel.1 txqueuelen 1000"),
        one("ip link del flannel.1"),
        two("ip link del flannel.1", "ip link add flannel.1 type bridge"),
        two("ip link del flannel.1", "ip link add flannel.1 type vxlan id 9 dstport 4789"),
        two("ip link set eth0 down", "ip link set eth0 up"),
    ];
    for damage in damages {
        check_repair(&mut cluster, &pods, &before, &damage);
    }
    // Entries that are not permanent belong to the kernel, and stay.
    cluster.lines(0, "ip neigh flush dev flannel.1");
    check_ping(&pods[0], &pods[1]);
    assert_eq!((overlay(&cluster), foreign(&cluster)), (before, untouched));
    check_no_audit_repaired(&mut cluster);
}

#[test]
fn removed_direct_routes_are_restored_on_notification() {
    let mut cluster = Cluster::new(3);
    cluster.configure(HOST_GW);
    cluster.start_all();
    eventually(PATIENCE, || overlay(&cluster).len() == 2).unwrap();
    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    make_foreign(&cluster);
    // With our protocol number, but outside of our network.
    cluster.lines(0, "ip route add 10.96.0.0/16 via 10.99.0.9 dev br9 proto 241");
    let (before, untouched) = (overlay(&cluster), foreign(&cluster));
    let peer = cluster.subnet(1);
    for damage in [
        vec![format!("ip route del {peer}")],
        vec!["ip route flush proto 241 root 10.5.0.0/16".to_owned()],
        vec!["ip link set eth0 down".to_owned(), "ip link set eth0 up".to_owned()],
        vec!["ip addr flush dev eth0".to_owned(), "ip addr add 192.168.64.1/24 dev eth0".to_owned()],
    ] {
        check_repair(&mut cluster, &pods, &before, &damage);
    }
    assert_eq!(foreign(&cluster), untouched);
    check_no_audit_repaired(&mut cluster);
}

/// The warnings and errors of the first daemon that contain a text.
fn complaints(cluster: &mut Cluster, words: &str) -> Vec<String> {
    let lines = cluster.daemon(0).lines().into_iter();
    lines.filter(|line| line.starts_with(['W', 'E']) && line.contains(words)).collect()
}

/// The daemon runs as nobody with the two capabilities that it needs.
#[test]
fn an_unprivileged_daemon_with_two_capabilities_repairs_everything() {
    let mut cluster = Cluster::new(2);
    cluster.configure(crate::cluster::VXLAN);
    for host in 0..2 {
        let command = cluster.command_of_nobody(host);
        cluster.start_as(host, command);
    }
    (0..2).for_each(|host| cluster.wait_until_ready(host));
    eventually(PATIENCE, || cluster.routes(0).len() == 1).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", cluster.daemon(0).id())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    let capabilities = [field("CapEff:"), field("CapPrm:"), field("CapBnd:")];
    assert_eq!((field("Uid:").as_str(), capabilities), ("65534", ["0000000000003000"; 3].map(str::to_owned)));

    assert_eq!(complaints(&mut cluster, ""), [] as [&str; 0]);

    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    check_ping(&pods[0], &pods[1]);
    let before = overlay(&cluster);
    for damage in ["ip route flush dev flannel.1", "ip link set flannel.1 down", "ip link del flannel.1"] {
        check_repair(&mut cluster, &pods, &before, &[damage.to_owned()]);
    }
    let setting = cluster.lab.hosts[0].namespace.read_sysctl("net/ipv6/conf/flannel.1/accept_ra").unwrap();
    assert_eq!(setting, "0");
    let status = cluster.daemon(0).terminate(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(complaints(&mut cluster, "permi"), [] as [&str; 0]);
}
