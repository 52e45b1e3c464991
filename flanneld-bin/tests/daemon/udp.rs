//! The UDP backend, the default of a config without `Backend`.

use flannel_netlink::Netlink;
use flannel_testing::{PingOptions, Pod, ServiceManager, eventually, ping};

use crate::cluster::{Cluster, PATIENCE, UDP, check_ping, running_ping};
use crate::observed::run;

#[test]
fn without_a_backend_member_hosts_use_udp() {
    for config in
        [r#"{"Network":"10.5.0.0/16"}"#, r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":7890}}"#]
    {
        let mut cluster = Cluster::new(2);
        cluster.configure(config);
        cluster.start_all();
        assert_eq!(cluster.subnet_env(0, "FLANNEL_MTU"), "1472");
        for (_, record) in cluster.leases() {
            assert!(
                record.contains(r#"","PublicIPv6":null,"NodeID":""#) && !record.contains("Backend"),
                "{record}"
            );
        }
        let pods = [0, 1].map(|host| cluster.add_pod(host));
        check_ping(&pods[0], &pods[1]);
        check_ping(&pods[1], &pods[0]);

        check_counters(&cluster, &pods[0]);

        // A removed object is restored, and the device disappears with the daemon.
        cluster.lines(0, "ip link del flannel0");
        let routes = |cluster: &Cluster| cluster.lines(0, "ip route show dev flannel0 10.5.0.0/16");
        let is_back = || cluster.lines(0, "ip -o link").iter().any(|line| line.contains("flannel0"));
        eventually(PATIENCE, || is_back() && routes(&cluster).len() == 1).unwrap();
        check_ping(&pods[0], &pods[1]);
        cluster.daemons[0] = None;
        eventually(PATIENCE, || !cluster.lines(0, "ip -o link").iter().any(|line| line.contains("flannel0")))
            .unwrap();
        cluster.start(0);
        cluster.wait_until_ready(0);
        check_ping(&pods[0], &pods[1]);
    }
}

/// Checks the counters of traffic per peer and of drops per reason.
fn check_counters(cluster: &Cluster, pod: &Pod) {
    let nobody = "10.5.255.254".parse().unwrap();
    ping(&pod.namespace, nobody, &PingOptions::default()).expect_err("no host has this subnet");
    let status = eventually(PATIENCE, || {
        let (_, json, _) = run(cluster, 0, &["status", "-json"]);
        let status: serde_json::Value = serde_json::from_str(&json).unwrap();
        let number = |value: &serde_json::Value| value.as_u64().unwrap_or_default();
        let peer = &status["peers"]["each"][0]["traffic"];
        let counted =
            [&peer["sent_packets"], &peer["received_packets"], &status["traffic"]["drops"]["no_route"]];
        if counted.into_iter().all(|value| number(value) > 0) { Ok(status) } else { Err(json) }
    });
    let device = &status.unwrap()["devices"][0];
    assert_eq!((&device["name"], &device["kind"]), (&"flannel0".into(), &"tun".into()));
}

/// The descriptors that the service manager keeps.
const KEPT: [&str; 2] = ["flannel-tun", "flannel-udp-ipv4"];

/// Waits until the service manager keeps exactly these descriptors.
fn wait_until_kept(manager: &ServiceManager) {
    eventually(PATIENCE, || {
        let kept = manager.kept();
        if kept == KEPT { Ok(()) } else { Err(format!("{kept:?}")) }
    })
    .unwrap();
}

/// Starts the daemon of the first host from a service manager, with additional flags.
fn start_by(manager: &ServiceManager, cluster: &mut Cluster, flags: &[&str]) {
    let mut command = cluster.command(0);
    command.args(flags);
    let started = manager.start(&cluster.lab.hosts[0].namespace, &command).unwrap();
    cluster.daemons[0] = Some(started);
    cluster.wait_until_ready(0);
}

/// The index of the first host's device.
fn index(cluster: &Cluster) -> Option<u32> {
    let mut netlink = Netlink::open_in(&cluster.lab.hosts[0].namespace).unwrap();
    netlink.link("flannel0").unwrap().map(|link| link.index)
}

#[test]
fn a_restart_under_a_service_manager_loses_no_packet_and_keeps_the_device() {
    let mut cluster = Cluster::new(2);
    cluster.configure(UDP);
    let manager = ServiceManager::new(3).unwrap();
    start_by(&manager, &mut cluster, &["-keep-udp-device"]);
    cluster.start(1);
    cluster.wait_until_ready(1);
    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    check_ping(&pods[0], &pods[1]);
    wait_until_kept(&manager);
    let (before, ping) = (index(&cluster), running_ping(&pods[0], &pods[1]));

    cluster.daemon(0).kill().unwrap();
    start_by(&manager, &mut cluster, &["-keep-udp-device"]);
    ping.wait_for_replies(20, PATIENCE).unwrap();
    cluster.daemon(0).terminate(PATIENCE).unwrap();
    start_by(&manager, &mut cluster, &["-keep-udp-device"]);
    ping.wait_for_replies(20, PATIENCE).unwrap();
    let report = ping.stop();
    println!("two restarts, one of them after a kill: {report}");
    assert_eq!((report.lost_count(), report.duplicates), (0, 0), "{report}");
    wait_until_kept(&manager);
    assert_eq!(index(&cluster), before);

    // A stopped service leaves nothing.
    cluster.daemon(0).terminate(PATIENCE).unwrap();
    assert_eq!(index(&cluster), before);
    manager.stopped();
    eventually(PATIENCE, || index(&cluster).is_none()).unwrap();
}

#[test]
fn descriptors_kept_for_another_port_or_network_are_closed() {
    let mut cluster = Cluster::new(1);
    cluster.configure(UDP);
    let manager = ServiceManager::new(3).unwrap();
    start_by(&manager, &mut cluster, &["-keep-udp-device"]);
    let first = index(&cluster);
    cluster.daemon(0).kill().unwrap();
    cluster.configure(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":7890}}"#);
    start_by(&manager, &mut cluster, &["-keep-udp-device"]);
    assert_eq!(index(&cluster), first, "the device is still right");
    // The manager closes them while the daemon runs.
    let listens = |cluster: &Cluster| cluster.udp_ports(0);
    let listens_at = |cluster: &Cluster, port| {
        eventually(PATIENCE, || {
            let ports = listens(cluster);
            if ports == [port] { Ok(()) } else { Err(format!("{ports:?}")) }
        })
        .unwrap();
    };
    listens_at(&cluster, 7890);

    cluster.daemon(0).kill().unwrap();
    cluster.configure(r#"{"Network":"10.6.0.0/16","Backend":{"Type":"udp"}}"#);
    start_by(&manager, &mut cluster, &["-keep-udp-device"]);
    assert_ne!(index(&cluster), first);
    assert_eq!(cluster.lines(0, "ip route show dev flannel0"), ["10.6.0.0/16"]);
    listens_at(&cluster, 8285);
    wait_until_kept(&manager);

    // With -release-on-exit the manager closes everything.
    cluster.daemon(0).kill().unwrap();
    start_by(&manager, &mut cluster, &["-keep-udp-device", "-release-on-exit"]);
    cluster.daemon(0).terminate(PATIENCE).unwrap();
    eventually(PATIENCE, || manager.kept().is_empty() && listens(&cluster).is_empty()).unwrap();

    // So does a daemon without -keep-udp-device.
    start_by(&manager, &mut cluster, &["-keep-udp-device"]);
    cluster.daemon(0).kill().unwrap();
    start_by(&manager, &mut cluster, &[]);
    eventually(PATIENCE, || manager.kept().is_empty()).unwrap();
    cluster.daemon(0).kill().unwrap();
    eventually(PATIENCE, || listens(&cluster).is_empty()).unwrap();
}
