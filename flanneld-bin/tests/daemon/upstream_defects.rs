//! Defects of upstream flannel (v0.28.9) with its registry that hosts see. Tests without a kernel are in
//! `flannel-registry/tests/etcd3/upstream_defects.rs`.

use std::process::Command;

use flannel_testing::{Process, eventually, program};

use crate::certificates::Certificates;
use crate::cluster::{Cluster, PATIENCE, VXLAN};
use crate::interfaces;

const GARBAGE: &str = "/coreos.com/network/subnets/garbage";

/// Records every change of the host's routes.
fn watch_routes(cluster: &Cluster, host: usize) -> Process {
    let mut command = Command::new(program("sh", "dash").unwrap());
    // `Process` collects standard error.
    command.args(["-c", "exec ip monitor route >&2"]);
    let monitor = Process::spawn_in(&cluster.lab.hosts[host].namespace, command).unwrap();
    let marker = "blackhole 203.0.113.7";
    eventually(PATIENCE, || {
        cluster.lines(host, &format!("ip route add {marker}"));
        cluster.lines(host, &format!("ip route del {marker}"));
        monitor.lines().iter().any(|line| line.contains(marker))
    })
    .unwrap();
    monitor
}

/// The recorded changes of routes to peers.
fn changes(monitor: &Process) -> Vec<String> {
    monitor.lines().into_iter().filter(|line| line.contains("flannel.1")).collect()
}

/// Writes a key that is no lease next to those of three hosts, and lets a fourth host join and leave.
fn garbage_changes_nothing(cluster: &mut Cluster, put: impl Fn(&Cluster), remove: impl Fn(&Cluster, &str)) {
    (0..3).for_each(|host| cluster.start(host));
    (0..3).for_each(|host| cluster.wait_until_ready(host));
    (0..3).for_each(|host| eventually(PATIENCE, || cluster.routes(host).len() == 2).unwrap());
    let before: Vec<_> = (0..3).map(|host| cluster.tunnel(host)).collect();
    let monitors: Vec<_> = (0..3).map(|host| watch_routes(cluster, host)).collect();

    put(cluster);
    for host in 0..3 {
        cluster.daemon(host).wait_for_line("garbage", PATIENCE).unwrap();
    }
    put(cluster);
    assert_eq!((0..3).map(|host| cluster.tunnel(host)).collect::<Vec<_>>(), before);

    cluster.start(3);
    cluster.wait_until_ready(3);
    let joined = cluster.subnet(3);
    let all_reach = |cluster: &Cluster, peers| (0..3).all(|host| cluster.routes(host).len() == peers);
    eventually(PATIENCE, || all_reach(cluster, 3)).expect("peers still come");
    cluster.daemon(3).terminate(PATIENCE).unwrap();
    remove(cluster, &format!("/coreos.com/network/subnets/{}-24", joined.addr()));
    eventually(PATIENCE, || all_reach(cluster, 2)).expect("peers still go");

    for (host, monitor) in monitors.iter().enumerate() {
        eventually(PATIENCE, || changes(monitor).len() == 2).unwrap();
        let changes = changes(monitor);
        assert!(changes.iter().all(|line| line.contains(&joined.to_string())), "{changes:?}");
        let lines = cluster.daemon(host).lines();
        let named: Vec<_> = lines.iter().filter(|line| line.contains("garbage")).collect();
        assert_eq!(named.len(), 1, "{named:?}");
    }
}

#[test]
fn u1_a_malformed_record_changes_no_route_and_is_logged_once() {
    let mut cluster = Cluster::new(4);
    cluster.configure(VXLAN);
    let put = |cluster: &Cluster| drop(cluster.etcd.etcdctl(&["put", GARBAGE, "x"]).unwrap());
    let remove = |cluster: &Cluster, key: &str| drop(cluster.etcd.etcdctl(&["del", key]).unwrap());
    garbage_changes_nothing(&mut cluster, put, remove);
}

#[test]
fn u1_a_malformed_record_in_v2_changes_no_route_and_is_logged_once() {
    let mut cluster = interfaces::cluster(4);
    interfaces::configure_v2(&cluster);
    let put = |cluster: &Cluster| drop(cluster.etcdctl_v2(&["set", GARBAGE, "x"]));
    let remove = |cluster: &Cluster, key: &str| drop(cluster.etcdctl_v2(&["rm", key]));
    garbage_changes_nothing(&mut cluster, put, remove);
}

/// Writes the record of a host that does not exist.
fn put_peer(cluster: &Cluster, subnet: &str, mac: &str) {
    let record = format!(
        r#"{{"PublicIP":"192.168.64.99","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    );
    cluster.etcd.etcdctl(&["put", &format!("/coreos.com/network/subnets/{subnet}"), &record]).unwrap();
}

/// Makes changes while the first host's watch is compacted, so that it must list.
fn with_compacted_watch(cluster: &mut Cluster, meanwhile: impl Fn(&Cluster)) {
    cluster.daemon(0).signal(libc::SIGSTOP).unwrap();
    cluster.etcd.restart().unwrap();
    meanwhile(cluster);
    let answer = cluster.etcd.etcdctl(&["put", "/other", "value", "-w", "fields"]).unwrap();
    let revision = answer.lines().find_map(|line| line.strip_prefix("\"Revision\" : ")).unwrap();
    cluster.etcd.etcdctl(&["compact", revision]).unwrap();
    cluster.daemon(0).signal(libc::SIGCONT).unwrap();
}

#[test]
fn u2_and_u3_further_lists_change_only_the_changed_peer() {
    let mut cluster = Cluster::new(2);
    cluster.configure(VXLAN);
    let subnet = "10.5.250.0-24";
    put_peer(&cluster, subnet, "0e:00:00:00:00:01");
    cluster.start_all();
    let knows = |cluster: &Cluster, mac: &str| {
        let entries = cluster.lines(0, "bridge fdb show dev flannel.1");
        let peer: Vec<_> = entries.iter().filter(|line| line.contains("192.168.64.99")).collect();
        peer.len() == 1 && peer[0].starts_with(mac)
    };
    eventually(PATIENCE, || knows(&cluster, "0e:00:00:00:00:01")).unwrap();
    eventually(PATIENCE, || cluster.routes(0).len() == 2).unwrap();
    let (own, routes, device) = (cluster.subnet(0), cluster.routes(0), cluster.device(0));
    let monitor = watch_routes(&cluster, 0);
    for mac in ["0e:00:00:00:00:02", "0e:00:00:00:00:03"] {
        with_compacted_watch(&mut cluster, |cluster| put_peer(cluster, subnet, mac));
        eventually(PATIENCE, || knows(&cluster, mac)).expect("the list has the change that the watch missed");
    }
    assert_eq!((cluster.subnet(0), cluster.routes(0), cluster.device(0)), (own, routes, device));
    assert_eq!(changes(&monitor), [""; 0]);
    let lines = cluster.daemon(0).lines();
    let own = own.to_string();
    let word_of_loss =
        |line: &&String| line.contains(&own) && (line.contains("lost") || line.contains("emoved"));
    assert_eq!(lines.iter().find(word_of_loss), None);
}

#[test]
fn u9_a_host_that_lost_device_and_files_gets_the_same_mac() {
    let mut cluster = Cluster::running(2);
    // The lost files include the ID, so it changes.
    let records = |cluster: &Cluster| {
        let without_id =
            |(key, record): (String, String)| (key, record.split(r#","NodeID""#).next().map(str::to_owned));
        cluster.leases().into_iter().map(without_id).collect::<Vec<_>>()
    };
    let before = (cluster.mac(0), cluster.subnet(0), records(&cluster));
    let peer = cluster.tunnel(1);
    cluster.daemon(0).kill().unwrap();
    cluster.lines(0, "ip link del flannel.1");
    std::fs::remove_dir_all(cluster.subnet_file(0).parent().unwrap()).unwrap();
    cluster.start(0);
    cluster.wait_until_ready(0);
    assert_eq!((cluster.mac(0), cluster.subnet(0), records(&cluster)), before);
    assert_eq!(cluster.tunnel(1), peer);
}

#[test]
fn u12_a_ca_file_suffices_and_is_reread_when_replaced() {
    let files = Certificates::new();
    let mut cluster = Cluster::with_etcd(1, files.one_sided());
    cluster.configure(VXLAN);
    cluster.start_with(0, &[format!("-etcd-cafile={}", files.path("ca.pem").display())]);
    cluster.wait_until_ready(0);

    files.issue();
    cluster.etcd.restart().unwrap();
    put_peer(&cluster, "10.5.250.0-24", "0e:00:00:00:00:01");
    eventually(PATIENCE, || cluster.routes(0).len() == 1).expect("the daemon trusts the new authority");
}
