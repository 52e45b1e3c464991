//! Probes of the paths to peers: `flanneld ping`, the mesh probes, and faults on the paths.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use flannel_testing::eventually;
use serde_json::Value;

use crate::cluster::{Cluster, DUAL, PATIENCE, VXLAN};
use crate::observed::{run, start_with, wait_for_metrics, wait_for_readiness};

/// The port on which hosts answer probes.
const PORT: u16 = 8473;

/// Makes the switch drop some forwarded packets.
fn drop_forwarded(cluster: &Cluster, what: &str) {
    let chain = format!("type filter hook forward priority 0; policy accept; {what} drop;");
    cluster.shell_on_switch(&format!("nft 'table inet cut {{ chain forward {{ {chain} }}; }}'"));
}

fn cure(cluster: &Cluster) {
    cluster.shell_on_switch("nft delete table inet cut");
}

/// Runs `flanneld ping` on a host and returns exit status and JSON.
fn ping(cluster: &Cluster, host: usize, arguments: &[&str]) -> (Option<i32>, Value) {
    let arguments = [&["ping", "-json"], arguments].concat();
    let (status, text, stderr) = run(cluster, host, &arguments);
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{stderr}")))
}

/// Runs `flanneld ping` until exit status and verdicts match, and returns the JSON.
fn wait_for_verdicts(
    cluster: &Cluster,
    host: usize,
    arguments: &[&str],
    status: Option<i32>,
    expected: &[&str],
) -> Value {
    let report = eventually(PATIENCE, || {
        let (code, report) = ping(cluster, host, arguments);
        if code == status && verdicts(&report) == expected { Ok(report) } else { Err(format!("{report:#}")) }
    });
    report.unwrap()
}

/// The verdicts of all peers.
fn verdicts(report: &Value) -> Vec<&str> {
    report["peers"].as_array().unwrap().iter().map(|peer| peer["verdict"].as_str().unwrap()).collect()
}

#[test]
fn a_dropped_tunnel_port_is_reported_everywhere_until_it_is_cured() {
    let mut cluster = Cluster::on_segments(3, 3);
    cluster.configure(VXLAN);
    (0..3).for_each(|host| start_with(&mut cluster, host, &["-mesh-probe-interval=1s"]));
    (0..3).for_each(|host| cluster.wait_until_ready(host));
    let healthy =
        ["flannel_probed_peers{verdict=\"reachable\"} 2", "flannel_condition{name=\"tunnel_blocked\"} 0"];
    wait_for_metrics(&cluster, &healthy);

    drop_forwarded(&cluster, "udp dport 8472");
    let blocked = [
        "flannel_probed_peers{verdict=\"tunnel_blocked\"} 2",
        "flannel_condition{name=\"tunnel_blocked\"} 1",
    ];
    wait_for_metrics(&cluster, &blocked);
    let why = "the underlay answers and the tunnel does not: UDP port 8472 is likely dropped between ";
    // It does not affect readiness: every host sees the same fault.
    let body = wait_for_readiness(&cluster, 200, Some("tunnel_blocked: 2 of 2 peers; "));
    assert!(body.contains(why), "{body}");
    let (_, page, _) = run(&cluster, 0, &["status"]);
    assert!(page.contains("tunnel_blocked  2 of 2 peers; ") && page.contains(why), "{page}");
    let (_, page, _) = run(&cluster, 0, &["peers"]);
    assert_eq!(page.matches("  tunnel_blocked").count(), 2, "{page}");
    let (status, text, _) = run(&cluster, 0, &["ping", "-count=2"]);
    assert_eq!((status, text.matches(why).count()), (Some(3), 2), "{text}");
    assert!(text.contains(&format!("between {} and {}", cluster.public(0), cluster.public(1))), "{text}");
    let (status, text, _) = run(&cluster, 0, &["ping", "-mesh", "-count=1"]);
    assert!(status == Some(3) && text.contains("  TT\n"), "{text}");

    cure(&cluster);
    wait_for_metrics(&cluster, &healthy);
    wait_for_readiness(&cluster, 200, None);
    let cured = eventually(PATIENCE, || {
        let (status, report) = ping(&cluster, 0, &["-count=2"]);
        let paths = report["peers"][0]["paths"].as_array().unwrap().iter();
        let means = paths.map(|way| (way["side"].as_str().unwrap(), way["by"].as_str().unwrap()));
        let are_right = means.eq([("inside", "udp"), ("outside", "icmp")]);
        if status == Some(0) && are_right { Ok(report) } else { Err(format!("{report:#}")) }
    });
    let cured = cured.unwrap();
    let paths = cured["peers"][0]["paths"].as_array().unwrap();
    assert_eq!((&paths[0]["path_mtu"], &paths[1]["path_mtu"]), (&1450.into(), &1500.into()), "{cured:#}");
    assert!(paths[0]["round_trip_microseconds"].as_u64().is_some_and(|time| time > 0), "{cured:#}");

    only_peers_are_answered(&cluster);
}

/// Checks that the responder answers only overlay addresses of peers, with as many bytes as the request.
fn only_peers_are_answered(cluster: &Cluster) {
    let mut question = b"FLPR\x01".to_vec();
    question.resize(100, 0);
    let target = SocketAddr::new(cluster.subnet(0).network(), PORT);
    let ask = |from: IpAddr, namespace: &flannel_netlink::Namespace| {
        let asked = namespace.run(|| {
            let socket = UdpSocket::bind(SocketAddr::new(from, 0))?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            socket.send_to(&question, target)?;
            let mut answer = [0; 2000];
            socket.recv(&mut answer).map(|length| answer[..length].to_vec())
        });
        asked.unwrap()
    };
    let answer = eventually(PATIENCE, || {
        ask(cluster.subnet(1).network(), &cluster.lab.hosts[1].namespace).map_err(|error| error.to_string())
    });
    let mut expected = question.clone();
    expected[5] = 1;
    assert_eq!(answer.unwrap(), expected);
    let pod = cluster.add_pod(1);
    assert!(ask(pod.addresses[0], &pod.namespace).is_err(), "a pod is no peer");
}

#[test]
fn a_small_path_mtu_is_measured_to_the_byte_inside_and_outside() {
    let mut cluster = Cluster::on_segments(2, 2);
    cluster.configure(VXLAN);
    cluster.start_all();
    // Each host has its peer by now; the first ready one did not.
    (0..2).for_each(|host| eventually(PATIENCE, || cluster.routes(host).len() == 1).unwrap());
    drop_forwarded(&cluster, "ip length > 1400");
    let found = eventually(PATIENCE, || {
        let (status, report) = ping(&cluster, 0, &["-count=3", &cluster.public(1)]);
        let peer = &report["peers"][0];
        let mtus = (peer["paths"][0]["path_mtu"].as_u64(), peer["paths"][1]["path_mtu"].as_u64());
        // The VXLAN overhead is 50 bytes.
        let is_it = mtus == (Some(1350), Some(1400)) && verdicts(&report) == ["mtu_small"];
        if is_it && status == Some(3) { Ok(()) } else { Err(format!("{status:?} {report:#}")) }
    });
    found.unwrap();
    cure(&cluster);
    drop_forwarded(&cluster, "ip protocol icmp");
    wait_for_verdicts(&cluster, 0, &["-count=1"], Some(0), &["underlay_silent"]);
    cure(&cluster);
    cluster.lab.hosts[1].unplug().unwrap();
    let (status, report) = ping(&cluster, 0, &["-count=1"]);
    assert_eq!((status, verdicts(&report)), (Some(3), vec!["silent"]), "{report:#}");
}

#[test]
fn ping_works_without_etcd_without_a_daemon_and_without_state() {
    let mut cluster = Cluster::new(4);
    cluster.configure(DUAL);
    (0..3).for_each(|host| cluster.start(host));
    (0..3).for_each(|host| cluster.wait_until_ready(host));
    for host in 0..3 {
        eventually(PATIENCE, || cluster.routes(host).len() == 2).unwrap();
    }
    let reached = |cluster: &Cluster, host: usize, source: &str| {
        let report = wait_for_verdicts(cluster, host, &["-count=2"], Some(0), &["reachable"; 2]);
        assert_eq!(report["source"], source);
        report
    };
    // Daemons without mesh probes do not answer, but their kernels do.
    let report = reached(&cluster, 0, "daemon");
    let paths = report["peers"][0]["paths"].as_array().unwrap();
    assert_eq!(paths.len(), 4, "{report:#}");
    assert!(paths.iter().all(|way| way["answers"] == true && way["by"] == "icmp"), "{report:#}");
    assert!(paths.iter().all(|way| way["path_mtu"] == way["device_mtu"]), "{report:#}");

    // The same with an unprivileged ICMP socket.
    cluster.lab.hosts[1].namespace.write_sysctl("net/ipv4/ping_group_range", "0 2147483647").unwrap();
    reached(&cluster, 1, "daemon");

    // A host without state reads the leases from etcd, and has no tunnel.
    let etcd = format!("-etcd-endpoints={}", cluster.etcd.client_url());
    let report = wait_for_verdicts(&cluster, 3, &["-count=1", &etcd], Some(0), &["underlay_only"; 3]);
    assert_eq!(report["source"], "registry");
    let detail = report["peers"][0]["detail"].as_str().unwrap();
    assert!(detail.starts_with("this host has no lease"), "{detail}");

    cluster.etcd.stop().unwrap();
    reached(&cluster, 0, "daemon");
    cluster.daemon(0).terminate(PATIENCE).unwrap();
    reached(&cluster, 0, "cache");
    let (status, page, error) = run(&cluster, 3, &["ping", &etcd]);
    assert_eq!((status, page.as_str(), error.lines().count()), (Some(1), "", 1), "{error}");
    assert!(error.starts_with("nothing to ping: no flanneld runs here: "), "{error}");
    assert!(error.contains(".cache does not exist") && error.contains("etcd"), "{error}");
}
