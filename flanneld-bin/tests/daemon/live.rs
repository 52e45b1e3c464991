//! Changes of the network config while the daemons run and pods communicate.

use flannel_netlink::Netlink;
use flannel_testing::{Pod, RunningPing, eventually};

use crate::cluster::{
    Cluster, HOST_GW, Notifications, PATIENCE, UDP, VXLAN, check_ping, running_ping, wait_for_replies,
};
use crate::observed::run;

const SIGHUP: i32 = 1;
const APPLIED: &str = "Network config changed - Backend type";
const REJECTED: &str = "Network config changed but was rejected";

fn has_device(cluster: &Cluster, host: usize, name: &str) -> bool {
    Netlink::open_in(&cluster.lab.hosts[host].namespace).unwrap().link(name).unwrap().is_some()
}

/// Waits until a host's lease names this backend; `None` for `udp`, as upstream writes it.
fn wait_for_lease(cluster: &Cluster, host: usize, backend: Option<&str>) {
    let public = format!(r#"{{"PublicIP":"{}""#, cluster.public(host));
    let check = || {
        let leases = cluster.leases();
        let own = leases.iter().find(|(_, record)| record.starts_with(&public)).map(|(_, record)| record);
        let names_backend = own.is_some_and(|record| match backend {
            Some(name) => record.contains(&format!(r#""BackendType":"{name}""#)),
            None => !record.contains("BackendType"),
        });
        if names_backend { Ok(()) } else { Err(format!("{leases:#?}")) }
    };
    eventually(PATIENCE, check).unwrap();
}

/// Waits until the daemon has logged this text so many times.
fn wait_for_lines(cluster: &mut Cluster, host: usize, text: &str, times: usize) {
    let daemon = cluster.daemon(host);
    let count = || daemon.lines().iter().filter(|line| line.contains(text)).count();
    eventually(PATIENCE, || if count() >= times { Ok(()) } else { Err(daemon.lines().join("\n")) }).unwrap();
}

/// The number of lost packets so far.
fn lost(pings: &[RunningPing]) -> u64 {
    pings.iter().map(|ping| ping.report().lost_count()).sum()
}

/// Three hosts whose daemons apply a config only on SIGHUP, and a ping from each to the next.
fn rolling(config: &str) -> (Cluster, Vec<Pod>, Vec<RunningPing>) {
    let mut cluster = Cluster::new(3);
    cluster.configure(config);
    for host in 0..3 {
        start(&mut cluster, host);
    }
    let pods: Vec<_> = (0..3).map(|host| cluster.add_pod(host)).collect();
    for from in 0..3 {
        check_ping(&pods[from], &pods[(from + 1) % 3]);
    }
    let pings = (0..3).map(|from| running_ping(&pods[from], &pods[(from + 1) % 3])).collect();
    (cluster, pods, pings)
}

fn start(cluster: &mut Cluster, host: usize) {
    cluster.start_with(host, &["-follow-config=false"]);
    cluster.wait_until_ready(host);
}

/// Migrates one host after the other by SIGHUP, and returns the loss at each.
fn roll(
    cluster: &mut Cluster,
    pings: &[RunningPing],
    config: &str,
    backend: Option<&str>,
    changes: usize,
) -> Vec<u64> {
    cluster.configure(config);
    let mut steps = Vec::new();
    for host in 0..3 {
        let before = lost(pings);
        // The change waits for SIGHUP.
        wait_for_lines(cluster, host, REJECTED, changes);
        cluster.daemon(host).signal(SIGHUP).unwrap();
        wait_for_lines(cluster, host, APPLIED, changes);
        wait_for_lease(cluster, host, backend);
        wait_for_replies(pings, 20);
        // The mixed state persists without disconnecting a host.
        wait_for_replies(pings, 20);
        // Packets in flight count as lost, so the count may have been higher before.
        steps.push(lost(pings).saturating_sub(before));
    }
    steps
}

#[test]
fn a_cluster_migrates_from_udp_to_vxlan_and_back_host_by_host_without_disconnection() {
    let (mut cluster, pods, pings) = rolling(UDP);
    let there = roll(&mut cluster, &pings, VXLAN, Some("vxlan"), 1);
    for host in 0..3 {
        eventually(PATIENCE, || cluster.routes(host).len() == 2).unwrap();
        assert_eq!(cluster.subnet_env(host, "FLANNEL_MTU"), "1450");
    }
    let back = roll(&mut cluster, &pings, UDP, None, 2);
    for host in 0..3 {
        // The tunnel still receives from late hosts, but sends to none.
        eventually(PATIENCE, || cluster.routes(host).is_empty()).unwrap();
        assert_eq!(cluster.subnet_env(host, "FLANNEL_MTU"), "1472");
        let (_, status, _) = run(&cluster, host, &["status"]);
        assert!(status.contains("\nin order\n"), "{status}");
    }
    for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1), (0, 2), (2, 0)] {
        check_ping(&pods[from], &pods[to]);
    }
    let reports: Vec<_> = pings.into_iter().map(RunningPing::stop).collect();
    let losses = reports.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    println!("packets lost, host by host: {there:?} to vxlan, {back:?} back to udp\n{losses}");
    // On an idle machine at most two packets are lost. A disconnected host loses hundreds.
    let (all, gone): (u64, u64) =
        (reports.iter().map(|r| r.sent).sum(), reports.iter().map(|r| r.lost_count()).sum());
    assert!(gone * 20 < all, "{gone} of {all} were lost: {losses}");
}

#[test]
fn a_host_restarted_with_vxlan_reaches_hosts_that_still_use_udp() {
    let (mut cluster, pods, pings) = rolling(UDP);
    cluster.configure(VXLAN);
    cluster.daemon(0).terminate(PATIENCE).unwrap();
    start(&mut cluster, 0);
    wait_for_lease(&cluster, 0, Some("vxlan"));
    wait_for_replies(&pings, 20);
    assert!(has_device(&cluster, 0, "flannel0") && has_device(&cluster, 0, "flannel.1"));
    assert_eq!(cluster.routes(0), [""; 0], "nobody else has a tunnel");
    let (code, status, _) = run(&cluster, 0, &["status"]);
    assert_eq!(code, Some(0), "{status}");
    cluster.daemon(1).terminate(PATIENCE).unwrap();
    start(&mut cluster, 1);
    eventually(PATIENCE, || cluster.routes(0).len() == 1).unwrap();
    wait_for_replies(&pings, 20);
    for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1), (0, 2), (2, 0)] {
        check_ping(&pods[from], &pods[to]);
    }
}

#[test]
fn options_that_can_change_live_are_applied_and_others_are_rejected() {
    let mut cluster = Cluster::new(2);
    cluster.configure(VXLAN);
    let (mut manager, mut command) = (Notifications::new(), cluster.command(0));
    command.arg("-ip-masq");
    manager.start(&mut cluster, 0, &command);
    cluster.wait_until_ready(0);
    manager.wait_for("READY=1\n");
    cluster.start(1);
    cluster.wait_until_ready(1);
    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    check_ping(&pods[0], &pods[1]);
    let ping = running_ping(&pods[0], &pods[1]);
    cluster.change(0, "ip link add foreign type bridge");
    cluster.change(0, "ip link set foreign up");
    cluster.change(0, "ip route add 10.5.240.0/24 dev foreign");
    let subnet = cluster.subnet(0);

    // Another VNI, another port, a smaller MTU, and a larger network.
    cluster
        .configure(r#"{"Network":"10.4.0.0/15","Backend":{"Type":"vxlan","VNI":7,"Port":8473,"MTU":1400}}"#);
    manager.wait_for("RELOADING=1\nMONOTONIC_USEC=");
    manager.wait_for("READY=1\n");
    assert_eq!(cluster.subnet_env(0, "FLANNEL_NETWORK"), "10.4.0.0/15");
    eventually(PATIENCE, || cluster.subnet_env(0, "FLANNEL_MTU") == "1350").unwrap();
    wait_for_lines(&mut cluster, 1, APPLIED, 1);
    assert!(has_device(&cluster, 0, "flannel.7") && !has_device(&cluster, 0, "flannel.1"));
    assert!(cluster.lines(0, "ip -d link show flannel.7").join(" ").contains("dstport 8473"));
    ping.wait_for_replies(20, PATIENCE).unwrap();
    assert_eq!(cluster.subnet(0), subnet);
    assert_eq!(cluster.lines(0, "ip route show dev foreign").len(), 1, "it is nobody's business");

    // Without a tunnel, and back.
    cluster.configure(HOST_GW);
    eventually(PATIENCE, || (0..2).all(|host| !has_device(&cluster, host, "flannel.7"))).unwrap();
    eventually(PATIENCE, || {
        cluster.lines(0, "ip route").iter().any(|line| line.contains("via 192.168.64.2 "))
    })
    .unwrap();
    manager.wait_for("RELOADING=1\nMONOTONIC_USEC=");
    manager.wait_for("READY=1\n");
    ping.wait_for_replies(20, PATIENCE).unwrap();
    cluster.configure(VXLAN);
    eventually(PATIENCE, || (0..2).all(|host| cluster.routes(host).len() == 1)).unwrap();
    manager.wait_for("RELOADING=1\nMONOTONIC_USEC=");
    manager.wait_for("READY=1\n");
    ping.wait_for_replies(20, PATIENCE).unwrap();
    println!("to another VNI and port, to host-gw, and back: {}", ping.stop());

    // Rejected: containers have addresses of this subnet.
    let (_, _, before) = run(&cluster, 0, &["status"]);
    assert_eq!(before, "");
    cluster.configure(r#"{"Network":"10.77.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let line = cluster.daemon(0).wait_for_line(REJECTED, PATIENCE).unwrap();
    assert!(
        line.contains(&format!("the host's subnet {subnet} is outside 10.77.0.0/16: restart"))
            || line.contains("is outside 10.77.0.0/16; restart"),
        "{line}"
    );
    let (code, status, _) = run(&cluster, 0, &["status"]);
    assert!(status.contains("config_refused"), "{status}");
    assert_eq!(code, Some(0), "the host carries all its traffic: {status}");
    assert_eq!(cluster.subnet(0), subnet);
    check_ping(&pods[0], &pods[1]);
    cluster.etcd.etcdctl(&["del", "/coreos.com/network/config"]).unwrap();
    wait_for_lines(&mut cluster, 0, "flannel config not found in", 1);
    check_ping(&pods[0], &pods[1]);

    // SIGHUP without a change: the service manager is notified of the end.
    cluster.configure(VXLAN);
    cluster.daemon(0).signal(SIGHUP).unwrap();
    manager.wait_for("RELOADING=1\nMONOTONIC_USEC=");
    manager.wait_for("READY=1\n");
    let in_order = || {
        let (_, status, _) = run(&cluster, 0, &["status"]);
        if status.contains("\nin order\n") { Ok(()) } else { Err(status) }
    };
    eventually(PATIENCE, in_order).unwrap();
}

#[test]
fn the_udp_port_changes_without_recreating_the_device() {
    let mut cluster = Cluster::new(2);
    cluster.configure(UDP);
    cluster.start_all();
    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    check_ping(&pods[0], &pods[1]);
    let index = || cluster.lines(0, "ip -o link show flannel0")[0].split(':').next().map(str::to_owned);
    let before = index();
    cluster.configure(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":7890}}"#);
    for host in 0..2 {
        eventually(PATIENCE, || cluster.udp_ports(host) == [7890]).unwrap();
    }
    check_ping(&pods[0], &pods[1]);
    assert_eq!(index(), before);
}

#[test]
fn a_host_started_without_its_registry_applies_a_config_changed_meanwhile() {
    let mut cluster = Cluster::new(1);
    cluster.configure(VXLAN);
    cluster.start_all();
    assert_eq!(cluster.subnet_env(0, "FLANNEL_MTU"), "1450");
    cluster.daemon(0).terminate(PATIENCE).unwrap();
    cluster.configure(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}"#);
    cluster.etcd.stop().unwrap();
    cluster.start(0);
    cluster.wait_until_ready(0);
    assert_eq!(cluster.subnet_env(0, "FLANNEL_MTU"), "1450", "from the cache");
    cluster.etcd.restart().unwrap();
    eventually(PATIENCE, || cluster.subnet_env(0, "FLANNEL_MTU") == "1350").unwrap();
}
