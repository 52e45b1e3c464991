//! The health port and the status socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use flannel_testing::{eventually, output_in};

use crate::cluster::{Cluster, PATIENCE, VXLAN};
use crate::outage::wait_until_cached;

const PORT: u16 = 8090;

/// The record of a host that does not exist.
const RECORD: &str = r#"{"PublicIP":"172.31.0.1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:02:00:00:00:01"}}"#;

/// Starts a daemon with a health port.
fn start(cluster: &mut Cluster, host: usize) {
    start_with(cluster, host, &[]);
}

/// Starts a daemon with a health port and more flags.
pub(crate) fn start_with(cluster: &mut Cluster, host: usize, options: &[&str]) {
    let port = format!("-healthz-port={PORT}");
    cluster.start_with(host, &[&["-healthz-ip=127.0.0.1", &port], options].concat());
}

/// Sends a request to a host and returns status and body of the response.
fn get(cluster: &Cluster, host: usize, path: &str) -> Result<(u16, String), String> {
    let address = SocketAddr::from(([127, 0, 0, 1], PORT));
    let stream = cluster.lab.hosts[host].namespace.run(|| TcpStream::connect(address)).unwrap();
    request(stream.map_err(|error| error.to_string())?, path)
}

fn request(mut stream: impl Read + Write, path: &str) -> Result<(u16, String), String> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| answer.clone())?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(|| answer.clone())?, body.to_owned()))
}

/// Waits until `/readyz` returns this status with one line with this prefix, if any.
pub(crate) fn wait_for_readiness(cluster: &Cluster, expected: u16, line: Option<&str>) -> String {
    let ready = eventually(PATIENCE, || {
        let (status, body) = get(cluster, 0, "/readyz")?;
        let mut lines = body.lines().skip(1);
        let is_said = match line {
            Some(line) => lines.next().is_some_and(|first| first.starts_with(line)),
            None => true,
        };
        if status == expected && is_said && lines.next().is_none() {
            return Ok(body);
        }
        Err(format!("{status}: {body}"))
    });
    ready.unwrap()
}

/// Waits until `/metrics` has all of these lines.
pub(crate) fn wait_for_metrics(cluster: &Cluster, lines: &[&str]) {
    let seen = eventually(PATIENCE, || {
        let (_, text) = get(cluster, 0, "/metrics")?;
        let missing: Vec<_> =
            lines.iter().filter(|line| !text.lines().any(|other| other == **line)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} in\n{text}")) }
    });
    seen.unwrap();
}

#[test]
fn conditions_are_listed_by_name_until_they_are_cured() {
    let mut cluster = Cluster::new(3);
    cluster.configure(VXLAN);
    (0..3).for_each(|host| start(&mut cluster, host));
    (0..3).for_each(|host| cluster.wait_until_ready(host));
    let healthy = ["flannel_ready 1", "flannel_peers{state=\"programmed\"} 2", "flannel_registry_up 1"];
    wait_for_metrics(&cluster, &healthy);
    assert_eq!(wait_for_readiness(&cluster, 200, None), "flanneld is ready");

    // A malformed record of another host does not affect readiness.
    let bad = "/coreos.com/network/subnets/10.5.250.0-24";
    cluster.etcd.etcdctl(&["put", bad, "nonsense"]).unwrap();
    wait_for_readiness(&cluster, 200, Some("bad_records: record \"10.5.250.0-24\": "));
    wait_for_metrics(
        &cluster,
        &["flannel_bad_records 1", "flannel_condition{name=\"bad_records\"} 1", "flannel_ready 1"],
    );
    cluster.etcd.etcdctl(&["del", bad]).unwrap();
    wait_for_readiness(&cluster, 200, None);
    wait_for_metrics(&cluster, &["flannel_bad_records 0", "flannel_condition{name=\"bad_records\"} 0"]);

    // A route via an address of the host itself is invalid.
    cluster.change(0, "ip address add 10.5.251.0/32 dev lo");
    let peer = "/coreos.com/network/subnets/10.5.251.0-24";
    cluster.etcd.etcdctl(&["put", peer, RECORD]).unwrap();
    wait_for_readiness(&cluster, 503, Some("objects_failed: route 10.5.251.0/24 via 10.5.251.0: "));
    wait_for_metrics(
        &cluster,
        &[
            "flannel_ready 0",
            "flannel_objects_failed 1",
            "flannel_condition{name=\"objects_failed\"} 1",
            "flannel_peers{state=\"programmed\"} 2",
            "flannel_peers{state=\"pending\"} 1",
        ],
    );
    cluster.change(0, "ip address del 10.5.251.0/32 dev lo");
    wait_for_readiness(&cluster, 200, None);
    wait_for_metrics(&cluster, &["flannel_objects_failed 0", "flannel_peers{state=\"programmed\"} 3"]);
    cluster.etcd.etcdctl(&["del", peer]).unwrap();
    wait_for_metrics(&cluster, &healthy);

    // Without its registry a host stays ready and reports for how long.
    cluster.etcd.stop().unwrap();
    let body = wait_for_readiness(&cluster, 200, Some("registry_unavailable: for "));
    assert!(body.starts_with("flanneld is ready\n"), "{body}");
    wait_for_metrics(
        &cluster,
        &["flannel_registry_up 0", "flannel_condition{name=\"registry_unavailable\"} 1", "flannel_ready 1"],
    );
    cluster.etcd.restart().unwrap();
    wait_for_readiness(&cluster, 200, None);
    wait_for_metrics(&cluster, &healthy);
    assert_eq!(get(&cluster, 0, "/healthz"), Ok((200, "flanneld is running".to_owned())));
}

#[test]
fn a_daemon_that_waits_for_its_config_is_healthy_but_not_ready() {
    let mut cluster = Cluster::new(1);
    start(&mut cluster, 0);
    let body = wait_for_readiness(&cluster, 503, Some("starting: flannel config not found in "));
    assert!(body.starts_with("flanneld is not ready yet\n"), "{body}");
    assert_eq!(get(&cluster, 0, "/healthz"), Ok((200, "flanneld is running".to_owned())));
    for elsewhere in ["/", "/healthz/", "/status", "/summary"] {
        assert_eq!(get(&cluster, 0, elsewhere).unwrap().0, 404, "{elsewhere}");
    }
    cluster.configure(VXLAN);
    wait_for_readiness(&cluster, 200, None);
    assert!(cluster.subnet_file(0).exists(), "it is not ready before");
}

#[test]
fn the_socket_is_private_to_root_and_removed_with_the_daemon() {
    let mut cluster = Cluster::running(2);
    let path = cluster.subnet_file(0).with_extension("env.sock");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let body = |what: &str| {
        let (status, body) = request(UnixStream::connect(&path).unwrap(), what).unwrap();
        assert_eq!(status, 200, "{body}");
        body
    };
    // The daemon reports the route a moment after the kernel has it.
    let status = eventually(PATIENCE, || {
        let status: serde_json::Value = serde_json::from_str(&body("/status")).unwrap();
        let is_done = status["peers"]["each"][0]["state"] == "programmed";
        if is_done { Ok(status) } else { Err(format!("{status:#}")) }
    });
    let status = status.unwrap();
    let peer = &status["peers"]["each"][0];
    assert_eq!(peer["subnets"][0], cluster.subnet(1).to_string());
    assert_eq!(peer["public_addresses"][0], cluster.public(1));
    assert_eq!(
        (&peer["state"], &status["lease"]["subnets"][0]),
        (&"programmed".into(), &cluster.subnet(0).to_string().into())
    );
    assert_eq!(status["devices"][0]["mac"], cluster.mac(0).to_string());
    assert_eq!(status["firewall"]["mode"], "iptables");
    assert!(status["registry"]["last_contact_seconds_ago"].as_f64().unwrap() < 30.0, "{status:#}");
    let summary: serde_json::Value = serde_json::from_str(&body("/summary")).unwrap();
    assert_eq!(
        (&summary["peers"]["known"], &summary["peers"]["each"]),
        (&1.into(), &serde_json::Value::Null)
    );

    // A killed daemon leaves its socket, and the next start replaces it.
    cluster.daemon(0).kill().unwrap();
    assert!(path.exists());
    cluster.start(0);
    cluster.wait_until_ready(0);
    body("/status");
    cluster.daemon(0).terminate(PATIENCE).unwrap();
    assert!(!path.exists());
}

/// Runs a subcommand on a host, and returns exit status, standard output and standard error.
pub(crate) fn run(cluster: &Cluster, host: usize, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flanneld"));
    command.args(arguments).arg("-subnet-file").arg(cluster.subnet_file(host));
    let output = output_in(&cluster.lab.hosts[host].namespace, command).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn status_and_peers_work_without_the_registry_and_fail_without_a_daemon() {
    let mut cluster = Cluster::with_spare(3, 1);
    // The daemon reports the routes a moment after the kernel has them.
    let all_programmed = eventually(PATIENCE, || {
        let outcome = run(&cluster, 0, &["status"]);
        if outcome.1.contains("2 programmed") { Ok(outcome) } else { Err(format!("{outcome:?}")) }
    });
    let (status, page, stderr) = all_programmed.unwrap();
    assert_eq!((status, stderr.as_str()), (Some(0), ""), "{page}");
    for line in [
        "network    10.5.0.0/16, backend vxlan".to_owned(),
        format!("lease      {} of {}, renewed in ", cluster.subnet(0), cluster.public(0)),
        format!("device     flannel.1, vxlan, VNI 1, port 8472, {}, MTU 1450", cluster.mac(0)),
        "peers      2 known, 2 programmed".to_owned(),
        "in order".to_owned(),
    ] {
        assert!(page.lines().any(|other| other.starts_with(&line)), "{line:?} is missing in\n{page}");
    }
    assert!(!page.contains('\u{1b}'), "this is no terminal: {page}");
    assert!(run(&cluster, 0, &["status", "-color=always"]).1.contains('\u{1b}'));
    let (status, page, _) = run(&cluster, 0, &["peers"]);
    let lines: Vec<Vec<&str>> = page.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((status, lines.len()), (Some(0), 3), "{page}");
    let mut others = [1, 2].map(|host| (cluster.subnet(host).to_string(), cluster.public(host)));
    others.sort();
    for (line, (subnet, public)) in lines[1..].iter().zip(&others) {
        assert_eq!(
            (line[0], line[1], line[2], line[4]),
            (&**subnet, &**public, "vxlan", "programmed"),
            "{page}"
        );
    }
    let (_, json, _) = run(&cluster, 0, &["peers", "--json"]);
    let peers: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&peers[0]["subnets"][0], &peers[1]["subnets"][0]),
        (&others[0].0.clone().into(), &others[1].0.clone().into())
    );

    // With -watch, the status is printed repeatedly.
    let mut watch = Command::new(env!("CARGO_BIN_EXE_flanneld"));
    watch.args(["status", "-watch", "-json", "-subnet-file"]).arg(cluster.subnet_file(0));
    let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let ages = [0, 1].map(|_| {
        let status: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        status["age_seconds"].as_f64().unwrap()
    });
    watch.kill().and_then(|()| watch.wait()).unwrap();
    assert!(ages[1] > ages[0], "{ages:?}");

    // Without its registry, the host reports it and stays in order.
    cluster.etcd.stop().unwrap();
    let outcome = eventually(PATIENCE, || {
        let (status, page, _) = run(&cluster, 0, &["status"]);
        if page.contains("  registry_unavailable  for ") { Ok(status) } else { Err(page) }
    });
    assert_eq!(outcome.unwrap(), Some(0));
    assert_eq!(run(&cluster, 0, &["peers"]).0, Some(0));
    let (_, json, _) = run(&cluster, 0, &["status", "-json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["ready"], &json["conditions"][0]["name"]),
        (&true.into(), &"registry_unavailable".into())
    );

    // An unreachable peer has its own exit status.
    cluster.etcd.restart().unwrap();
    cluster.change(0, "ip address add 10.5.251.0/32 dev lo");
    cluster.etcd.etcdctl(&["put", "/coreos.com/network/subnets/10.5.251.0-24", RECORD]).unwrap();
    let shown = eventually(PATIENCE, || {
        let (status, page, _) = run(&cluster, 0, &["peers"]);
        if status == Some(3) { Ok(page) } else { Err(page) }
    });
    let line = shown.unwrap().lines().find(|line| line.starts_with("10.5.251.0/24")).unwrap().to_owned();
    assert!(line.contains("  pending ") && line.contains("route 10.5.251.0/24 via 10.5.251.0: "), "{line}");
    assert_eq!(run(&cluster, 0, &["status"]).0, Some(3));

    // Without a daemon, the error is one line.
    for command in ["status", "peers"] {
        let (status, page, stderr) = run(&cluster, 3, &[command]);
        assert_eq!((status, page.as_str(), stderr.lines().count()), (Some(1), "", 1), "{stderr}");
        assert!(stderr.starts_with("no flanneld runs here: nothing serves the socket "), "{stderr}");
        let (status, _, stderr) = run(&cluster, 0, &[command, "-color=green"]);
        assert_eq!((status, stderr.lines().count()), (Some(2), 1), "{stderr}");
    }
    cluster.daemon(0).kill().unwrap();
    assert_eq!(run(&cluster, 0, &["status"]).0, Some(1), "its socket is still there");
}

/// Runs `flanneld plan` on a host.
fn plan(cluster: &Cluster, host: usize, arguments: &[&str]) -> (Option<i32>, String, String) {
    let endpoints = format!("-etcd-endpoints={}", cluster.etcd.client_url());
    let arguments: Vec<&str> = ["plan", "-iface=eth0", &endpoints].iter().chain(arguments).copied().collect();
    run(cluster, host, &arguments)
}

#[test]
fn a_plan_lists_the_changes_of_a_pass_and_makes_none() {
    let mut cluster = Cluster::with_spare(3, 1);
    wait_until_cached(&cluster, 0, 2);
    let (status, page, stderr) = plan(&cluster, 0, &[]);
    assert_eq!((status, stderr.as_str()), (Some(0), ""), "{page}");
    assert!(page.ends_with("nothing to change\n"), "{page}");

    // The host is damaged while no daemon runs.
    cluster.daemon(0).terminate(PATIENCE).unwrap();
    let whole = cluster.tunnel(0);
    let (subnet, mac) = (cluster.subnet(1), cluster.mac(1));
    cluster.change(0, &format!("ip route del {subnet}"));
    cluster.change(0, "ip route add 10.5.252.0/24 via 10.5.252.0 dev flannel.1 onlink");
    cluster.change(
        0,
        &format!("ip neigh replace {} lladdr 0e:09:09:09:09:09 dev flannel.1 nud permanent", subnet.addr()),
    );
    cluster.change(0, "ip link set flannel.1 mtu 1400");
    let damaged = cluster.tunnel(0);
    let (status, page, _) = plan(&cluster, 0, &[]);
    let neighbour = format!("neighbour {} lladdr", subnet.addr());
    let expected = [
        "+ the MTU 1450 of the device flannel.1, instead of 1400".to_owned(),
        format!("+ {neighbour} {mac}, instead of {neighbour} 0e:09:09:09:09:09"),
        format!("+ route {subnet} via {}", subnet.addr()),
        "- route 10.5.252.0/24 via 10.5.252.0".to_owned(),
        "3 would be written, 1 would be removed".to_owned(),
    ];
    assert_eq!(page.lines().skip(1).collect::<Vec<_>>(), expected, "{page}");
    assert_eq!(status, Some(3));

    // Without the registry the plan uses the cache, and plans no removals.
    cluster.etcd.stop().unwrap();
    let (status, json, _) = plan(&cluster, 0, &["-json"]);
    let found: serde_json::Value = serde_json::from_str(&json).unwrap();
    let changes = found["changes"].as_array().unwrap();
    assert_eq!((status, changes.len(), &found["source"]["kind"]), (Some(3), 3, &"cache".into()), "{json}");
    let route = format!("route {subnet} via {}", subnet.addr());
    let last = serde_json::json!({"action": "put", "object": route, "instead_of": null});
    let own = serde_json::json!([cluster.subnet(0).to_string()]);
    assert_eq!((&changes[2], &found["subnets"], &found["peers"]), (&last, &own, &2.into()));
    let (status, page, stderr) = plan(&cluster, 3, &[]);
    assert_eq!((status, page.as_str(), stderr.lines().count()), (Some(1), "", 1), "{stderr}");
    assert!(stderr.contains("does not answer") && stderr.contains(".cache does not exist"), "{stderr}");
    cluster.etcd.restart().unwrap();

    // A host without state has no lease, and the plan leaves no files.
    let (status, page, stderr) = plan(&cluster, 3, &[]);
    assert_eq!((status, page.as_str()), (Some(1), ""), "{stderr}");
    assert_eq!(
        stderr,
        format!("this host ({}) holds no lease; flanneld acquires one when it starts\n", cluster.public(3))
    );
    assert!(!cluster.subnet_file(3).parent().unwrap().exists());
    assert!(cluster.lines(3, "ip link show type vxlan").is_empty());
    assert_eq!((cluster.tunnel(0), cluster.leases().len()), (damaged, 3), "nothing was written");

    // A start makes the planned changes.
    cluster.start(0);
    cluster.wait_until_ready(0);
    eventually(PATIENCE, || {
        let now = cluster.tunnel(0);
        if now == whole { Ok(()) } else { Err(format!("{now:#?} instead of {whole:#?}")) }
    })
    .unwrap();
    assert_eq!(plan(&cluster, 0, &[]).0, Some(0));
}
