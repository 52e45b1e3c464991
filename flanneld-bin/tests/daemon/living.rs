//! A healthy cluster, and restarts.

use std::time::Duration;

use flannel_testing::{PingOptions, eventually, ping, transfer};
use ipnet::IpNet;

use crate::cluster::{Cluster, DUAL, Notifications, PATIENCE, check_ping, running_ping};

#[test]
fn pods_of_three_hosts_reach_each_other() {
    let cluster = Cluster::running(3);
    let pods: Vec<_> = (0..3).map(|host| cluster.add_pod(host)).collect();
    for from in &pods {
        for to in &pods {
            check_ping(from, to);
        }
    }
    let transfer = transfer(&pods[0].namespace, &pods[1].namespace, pods[1].addresses[0], 8 << 20);
    assert_eq!(transfer.unwrap().bytes, 8 << 20);
}

#[test]
fn the_kernel_objects_are_those_of_upstream() {
    let cluster = Cluster::running(3);
    let others = [1, 2].map(|host| (cluster.subnet(host), cluster.public(host), cluster.mac(host)));

    let mut expected =
        others.each_ref().map(|(net, _, _)| format!("{net} via {} dev flannel.1 onlink", net.addr()));
    expected.sort();
    let mut routes = cluster.routes(0);
    routes.sort();
    assert_eq!(routes, expected);

    let mut expected =
        others.each_ref().map(|(net, _, mac)| format!("{} lladdr {mac} PERMANENT", net.addr()));
    expected.sort();
    let mut neighbours = cluster.lines(0, "ip -4 neigh show dev flannel.1");
    neighbours.sort();
    assert_eq!(neighbours, expected);

    let mut expected = others.each_ref().map(|(_, public, mac)| format!("{mac} dst {public} self permanent"));
    expected.sort();
    let mut entries = cluster.lines(0, "bridge fdb show dev flannel.1");
    entries.sort();
    assert_eq!(entries, expected);

    let link = cluster.lines(0, "ip -d link show flannel.1").join(" ");
    assert!(link.contains("<BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue"), "{link}");
    let vxlan = "vxlan id 1 local 192.168.64.1 dev eth0 srcport 0 0 dstport 8472 nolearning";
    assert!(link.contains(vxlan), "{link}");
    assert!(!link.contains("qlen"), "{link}");

    let address = format!("inet {}/32 scope global flannel.1", cluster.subnet(0).addr());
    let addresses = cluster.lines(0, "ip -4 addr show dev flannel.1");
    assert!(addresses.contains(&address), "{addresses:?}");
}

#[test]
fn the_records_and_the_subnet_file_are_those_of_upstream() {
    let cluster = Cluster::running(2);
    let mut expected = [0, 1].map(|host| {
        let subnet = cluster.subnet(host);
        let key = format!("/coreos.com/network/subnets/{}-24", subnet.addr());
        let record = format!(
            r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{}"}},"NodeID":"{}"}}"#,
            cluster.public(host),
            cluster.mac(host),
            std::fs::read_to_string(cluster.node_id(host)).unwrap().trim()
        );
        (key, record)
    });
    expected.sort();
    assert_eq!(cluster.leases(), expected);

    let first = cluster.subnet(0).hosts().next().unwrap();
    let text = std::fs::read_to_string(cluster.subnet_file(0)).unwrap();
    let expected = format!(
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET={first}/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    );
    assert_eq!(text, expected);
}

#[test]
fn systemd_is_notified_once_the_subnet_file_exists() {
    let mut cluster = Cluster::new(1);
    cluster.configure(crate::cluster::VXLAN);
    let (mut notifications, command) = (Notifications::new(), cluster.command(0));
    notifications.start(&mut cluster, 0, &command);
    notifications.wait_for("READY=1\n");
    assert!(cluster.subnet_file(0).exists());
}

#[test]
fn systemd_gets_status_and_watchdog_notifications() {
    let mut cluster = Cluster::new(1);
    let (mut notifications, mut command) = (Notifications::new(), cluster.command(0));
    command.env("WATCHDOG_USEC", "400000");
    notifications.start(&mut cluster, 0, &command);
    let waits = notifications.wait_for("STATUS=0 peers; starting: flannel config not found in ");
    assert_eq!(waits.lines().count(), 1, "{waits:?}");
    cluster.configure(crate::cluster::VXLAN);
    notifications.wait_for("READY=1\n");
    let rests = notifications.wait_for(&format!("STATUS={}, 0 peers\n", cluster.subnet(0)));
    assert_eq!(rests.lines().count(), 1, "{rests:?}");
    notifications.wait_for("WATCHDOG=1\n");
    notifications.wait_for("WATCHDOG=1\n");
    cluster.etcd.etcdctl(&["put", "/coreos.com/network/subnets/10.5.250.0-24", "nonsense"]).unwrap();
    notifications.wait_for(&format!("STATUS={}, 0 peers; bad_records: ", cluster.subnet(0)));
}

#[test]
fn an_unreachable_service_manager_is_logged_once() {
    const WARNING: &str = "Failed to notify the service manager";
    let mut cluster = Cluster::new(1);
    cluster.configure(crate::cluster::VXLAN);
    let (mut notifications, mut command) = (Notifications::new(), cluster.command(0));
    command.env("WATCHDOG_USEC", "200000");
    notifications.start(&mut cluster, 0, &command);
    notifications.wait_for("READY=1\n");
    drop(notifications);
    let daemon = cluster.daemons[0].as_ref().unwrap();
    daemon.wait_for_line(WARNING, PATIENCE).unwrap();
    // Ten watchdog notifications were due meanwhile.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(daemon.lines().iter().filter(|line| line.contains(WARNING)).count(), 1);
}

#[test]
fn a_restart_after_a_kill_keeps_subnet_and_mac_without_packet_loss() {
    let mut cluster = Cluster::running(2);
    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    check_ping(&pods[0], &pods[1]);
    let before = (cluster.subnet(0), cluster.device(0), cluster.leases().len());
    let ping = running_ping(&pods[0], &pods[1]);

    cluster.daemon(0).kill().unwrap();
    ping.wait_for_replies(20, PATIENCE).unwrap();
    cluster.start(0);
    cluster.wait_until_ready(0);
    // Long enough for the passes after the daemon is ready.
    ping.wait_for_replies(100, PATIENCE).unwrap();

    let report = ping.stop();
    assert_eq!(report.lost_count(), 0, "{report:?}");
    assert_eq!((cluster.subnet(0), cluster.device(0), cluster.leases().len()), before);
    let lines = cluster.daemon(0).lines();
    assert!(lines.iter().any(|line| line.contains("for current IP (192.168.64.1), reusing")), "{lines:#?}");
}

/// Shorter than any timeout that could delay a stop: of etcd, of a socket client, of a program.
const STOP_TIME: Duration = Duration::from_secs(5);

#[test]
fn a_stopped_daemon_exits_at_once_and_traffic_continues() {
    let mut cluster = Cluster::running(2);
    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    check_ping(&pods[0], &pods[1]);
    let ping = running_ping(&pods[0], &pods[1]);
    let status = cluster.daemon(0).terminate(STOP_TIME).unwrap();
    assert_eq!(status.code(), Some(0), "{:#?}", cluster.daemon(0).lines());
    ping.wait_for_replies(50, PATIENCE).unwrap();
    let report = ping.stop();
    assert_eq!(report.lost_count(), 0, "{report:?}");
    assert_eq!(cluster.leases().len(), 2, "the lease stays");
    let lines = cluster.daemon(0).lines();
    assert!(lines.iter().any(|line| line.ends_with("Exiting cleanly...")), "{lines:#?}");
}

#[test]
fn the_previous_subnet_is_read_from_the_subnet_file_when_the_lease_is_gone() {
    let mut cluster = Cluster::running(2);
    let subnet = cluster.subnet(0);
    cluster.daemon(0).terminate(PATIENCE).unwrap();
    let key = format!("/coreos.com/network/subnets/{}-24", subnet.addr());
    cluster.etcd.etcdctl(&["del", &key]).unwrap();
    eventually(PATIENCE, || cluster.routes(1).is_empty())
        .expect("a peer that leaves takes its route with it");
    cluster.start(0);
    cluster.wait_until_ready(0);
    assert_eq!(cluster.subnet(0), subnet);
    let lines = cluster.daemon(0).lines();
    let manager = format!("Created subnet manager: Etcd Local Manager with Previous Subnet: {subnet}");
    assert!(lines.iter().any(|line| line.ends_with(&manager)), "{lines:#?}");
}

#[test]
fn dual_stack_pods_reach_each_other_over_both_families() {
    let mut cluster = Cluster::new(2);
    cluster.configure(DUAL);
    let pods = [0, 1].map(|host| {
        cluster.start(host);
        cluster.wait_until_ready(host);
        let v6 = cluster.subnet_env(host, "FLANNEL_IPV6_SUBNET").parse::<IpNet>().unwrap().trunc();
        assert_eq!(cluster.subnet_env(host, "FLANNEL_MTU"), "1430", "IPv6 outside takes 20 bytes more");
        cluster.lab.hosts[host].add_pod(&[cluster.subnet(host), v6], 1430).unwrap()
    });
    for to in pods[1].addresses.clone() {
        let answered = eventually(PATIENCE, || ping(&pods[0].namespace, to, &PingOptions::default()));
        answered.unwrap_or_else(|error| panic!("{to}: {error}"));
    }
}

#[test]
fn ipv6_only_pods_reach_each_other() {
    let mut cluster = Cluster::new(3);
    cluster.configure(
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd10:5::/48","Backend":{"Type":"vxlan"}}"#,
    );
    cluster.start_all();
    let pods: Vec<_> = (0..3)
        .map(|host| {
            let text = std::fs::read_to_string(cluster.subnet_file(host)).unwrap();
            assert!(!text.contains("FLANNEL_SUBNET") && !text.contains("FLANNEL_NETWORK"), "{text}");
            let subnet = cluster.subnet_env(host, "FLANNEL_IPV6_SUBNET").parse::<IpNet>().unwrap().trunc();
            assert_eq!(cluster.lines(host, "ip -o link show type vxlan").len(), 1);
            cluster.lab.hosts[host].add_pod(&[subnet], 1430).unwrap()
        })
        .collect();
    for from in &pods {
        for to in pods.iter().filter(|to| to.name != from.name) {
            check_ping(from, to);
        }
    }
}

#[test]
fn a_blackhole_route_drops_packets_to_missing_containers() {
    let (mut cluster, pods) = Cluster::with_pods(1, DUAL, &["-ip-blackhole-route", "-iptables-resync=1"]);
    let v6 = cluster.subnet_env(0, "FLANNEL_IPV6_SUBNET").parse::<IpNet>().unwrap().trunc();
    let subnet = cluster.subnet(0);
    let is_there = |cluster: &Cluster| {
        let lines = [cluster.lines(0, "ip route"), cluster.lines(0, "ip -6 route")].concat();
        [subnet, v6].iter().all(|net| lines.iter().any(|line| line.starts_with(&format!("blackhole {net} "))))
    };
    eventually(PATIENCE, || is_there(&cluster)).unwrap();
    // The route of the bridge for the same subnet takes precedence.
    cluster.shell(0, &format!("ip route get {} | grep cni0", pods[0].addresses[0]));
    cluster.shell(
        0,
        &format!("ip route del blackhole {subnet}; ip -6 route del blackhole {v6} metric 4294967295"),
    );
    eventually(PATIENCE, || is_there(&cluster)).unwrap();
    let lines = cluster.daemon(0).lines();
    assert!(lines.iter().all(|line| !line.contains("Failed to add the blackhole")), "{lines:#?}");
}
