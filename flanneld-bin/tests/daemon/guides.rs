//! The command lines of common installation guides, verbatim, with an etcd that requires a client certificate, over both
//! APIs.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use flannel_testing::{EtcdOptions, Pod, eventually, program};

use crate::certificates::Certificates;
use crate::cluster::{Cluster, PATIENCE, SWITCH, check_ping};

/// Gives each host its own `/run`, and installs in `/opt` what the guides expect. A guide's script follows.
const INSTALLED: &str = r#"
mount --bind "$RUN" /run
mount -t tmpfs tmpfs /opt
mkdir -p /opt/kubernetes/bin /opt/etcd/ssl
ln -s "$PROGRAM" /opt/kubernetes/bin/flanneld
cp "$CERTIFICATES"/*.pem /opt/etcd/ssl/
"#;

/// A unit for v0.11: all flags with one dash.
const UNIT: &str = "exec /opt/kubernetes/bin/flanneld \
    -etcd-cafile=/opt/etcd/ssl/ca.pem \
    -etcd-certfile=/opt/etcd/ssl/client.pem \
    -etcd-keyfile=/opt/etcd/ssl/client-key.pem \
    -etcd-endpoints=https://192.168.64.254:2379,https://192.168.64.253:2379,https://192.168.64.252:2379 \
    -etcd-prefix=/kubernetes/network \
    -iface=eth0 \
    -ip-masq";

/// A unit with an options file: flags with two dashes, values as separate arguments.
const OPTIONS_FILE: &str = r#"
FLANNEL_ETCD_ENDPOINTS="https://192.168.64.254:2379,https://192.168.64.253:2379,https://192.168.64.252:2379"
FLANNEL_ETCD_PREFIX="/kubernetes/network"
FLANNEL_OPTIONS="--etcd-cafile /opt/etcd/ssl/ca.pem --etcd-certfile /opt/etcd/ssl/client.pem --etcd-keyfile /opt/etcd/ssl/client-key.pem --ip-masq=true --iface eth0"
exec /opt/kubernetes/bin/flanneld -etcd-endpoints=${FLANNEL_ETCD_ENDPOINTS} -etcd-prefix=${FLANNEL_ETCD_PREFIX} $FLANNEL_OPTIONS
"#;

/// Variables only, as in a container.
const VARIABLES: &str = "
export FLANNELD_ETCD_ENDPOINTS=https://192.168.64.254:2379
export FLANNELD_ETCD_PREFIX=/kubernetes/network
export FLANNELD_ETCD_CAFILE=/opt/etcd/ssl/ca.pem
export FLANNELD_ETCD_CERTFILE=/opt/etcd/ssl/client.pem
export FLANNELD_ETCD_KEYFILE=/opt/etcd/ssl/client-key.pem
export FLANNELD_IFACE=eth0
export FLANNELD_IP_MASQ=true
exec /opt/kubernetes/bin/flanneld
";

/// The commands of a guide that write the config and list the leases, for each etcd API.
const OVER_V2: [&str; 2] = [
    r#"ETCDCTL_API=2 etcdctl --ca-file=ca.pem --cert-file=client.pem --key-file=client-key.pem \
    --endpoints=https://192.168.64.254:2379 \
    set /kubernetes/network/config '{"Network":"172.30.0.0/16","SubnetLen":21,"Backend":{"Type":"vxlan"}}'"#,
    "ETCDCTL_API=2 etcdctl --ca-file=ca.pem --cert-file=client.pem --key-file=client-key.pem \
    --endpoints=https://192.168.64.254:2379 ls /kubernetes/network/subnets",
];
const OVER_V3: [&str; 2] = [
    r#"ETCDCTL_API=3 etcdctl --cacert=ca.pem --cert=client.pem --key=client-key.pem \
    --endpoints=https://192.168.64.254:2379 \
    put /kubernetes/network/config '{"Network":"172.30.0.0/16","SubnetLen":21,"Backend":{"Type":"vxlan"}}'"#,
    "ETCDCTL_API=3 etcdctl --cacert=ca.pem --cert=client.pem --key=client-key.pem \
    --endpoints=https://192.168.64.254:2379 get --prefix --keys-only /kubernetes/network/subnets/",
];

/// Runs a guide's command on the switch, where etcd and the certificates are.
fn shell(cluster: &Cluster, files: &Certificates, line: &str) -> String {
    cluster.shell_on_switch(&format!("cd {} && {line}", files.path("").display()))
}

/// Runs a guide's script on a host, with the files that it expects.
fn start(cluster: &mut Cluster, files: &Certificates, host: usize, guide: &str) {
    let subnet_file = cluster.subnet_file(host);
    let run = subnet_file.with_file_name("run");
    fs::create_dir_all(&run).unwrap();
    symlink(run.join("flannel/subnet.env"), &subnet_file).unwrap();
    let mut command = Command::new(program("unshare", "util-linux").unwrap());
    command.args(["--mount", "sh", "-e", "-c", &format!("{INSTALLED}{guide}")]);
    command
        .env("RUN", run)
        .env("PROGRAM", env!("CARGO_BIN_EXE_flanneld"))
        .env("CERTIFICATES", files.path(""));
    cluster.start_as(host, command);
}

/// Log lines of a start that scripts look for, in order.
const STARTED: &[&str] = &[
    "Using interface with name eth0 and address 192.168.64.",
    "Defaulting external address to interface address (192.168.64.",
    "Installing signal handlers",
    "Created subnet manager: Etcd Local Manager with Previous Subnet: None",
    "Found network config - Backend type: vxlan",
    "VXLAN config: VNI=1 Port=0 GBP=false Learning=false DirectRouting=false",
    "Picking subnet in range 172.30.8.0 ... 172.30.248.0",
    "Allocated lease (172.30.",
    "Wrote subnet file to /run/flannel/subnet.env",
    "flannel is ready",
    "Running backend.",
    "watching for new subnet leases",
];
const ENDED: &[&str] = &["Received SIGTERM; stopping", "Stopped monitoring lease", "Exiting cleanly..."];

fn check_order(lines: &[String], texts: &[&str]) {
    let mut rest = lines.iter();
    for text in texts {
        assert!(rest.any(|line| line.contains(text)), "{text:?} is missing or out of order in {lines:#?}");
    }
}

/// Starts three hosts by three guides, on a network configured by the first command.
fn follow_the_guides([configure, list]: [&str; 2]) {
    let files = Certificates::new();
    let mut cluster = Cluster::with_etcd(3, EtcdOptions { enable_v2: true, ..files.options() });
    // Two members of etcd are down.
    for member in ["192.168.64.253", "192.168.64.252"] {
        cluster.shell_on_switch(&format!("ip addr add {member}/24 dev {}", cluster.switch_device()));
    }
    assert_eq!(SWITCH, "192.168.64.254");
    shell(&cluster, &files, configure);
    for (host, guide) in [UNIT, OPTIONS_FILE, VARIABLES].into_iter().enumerate() {
        start(&mut cluster, &files, host, guide);
    }
    for host in 0..3 {
        cluster.wait_until_ready(host);
        cluster.daemon(host).wait_for_line("watching for new subnet leases", PATIENCE).unwrap();
        check_order(&cluster.daemon(host).lines(), STARTED);
        assert_eq!(cluster.subnet_env(host, "FLANNEL_NETWORK"), "172.30.0.0/16");
        assert_eq!(cluster.subnet(host).prefix_len(), 21);
        assert_eq!(cluster.subnet_env(host, "FLANNEL_MTU"), "1450");
        assert_eq!(cluster.subnet_env(host, "FLANNEL_IPMASQ"), "true");
        eventually(PATIENCE, || cluster.routes(host).len() == 2).unwrap();
    }
    let leases = shell(&cluster, &files, list);
    assert_eq!(leases.split_whitespace().count(), 3, "{leases}");
    let pods: Vec<Pod> = (0..3).map(|host| cluster.add_pod(host)).collect();
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        check_ping(&pods[from], &pods[to]);
        check_ping(&pods[to], &pods[from]);
    }
    assert_eq!(cluster.daemon(0).terminate(PATIENCE).unwrap().code(), Some(0));
    check_order(&cluster.daemon(0).lines(), ENDED);
    check_ping(&pods[0], &pods[1]);
}

#[test]
fn hosts_set_up_by_common_guides_reach_each_other_with_etcd_v2() {
    follow_the_guides(OVER_V2);
}

#[test]
fn hosts_set_up_by_common_guides_reach_each_other_with_etcd_v3() {
    follow_the_guides(OVER_V3);
}

#[test]
fn two_daemons_on_a_host_run_two_networks() {
    let mut cluster = Cluster::new(2);
    let put = |prefix: &str, config: &str| {
        cluster.etcd.etcdctl(&["put", &format!("{prefix}/config"), config]).unwrap();
    };
    put("/coreos.com/network", r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#);
    put("/vxlan/network", r#"{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#);
    cluster.start_all();
    let mut others = Vec::new();
    for host in 0..2 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flanneld"));
        command.env("FLANNELD_ETCD_ENDPOINTS", cluster.etcd.client_url()).arg("-subnet-file");
        command.arg(cluster.subnet_file(host).with_file_name("vxlan.env"));
        command.args(["-etcd-prefix=/vxlan/network", "-iface", "eth0"]);
        others.push(flannel_testing::Process::spawn_in(&cluster.lab.hosts[host].namespace, command).unwrap());
    }
    let pods: Vec<[Pod; 2]> = (0..2)
        .map(|host| {
            others[host].wait_for_line("Running backend.", PATIENCE).unwrap();
            let text = fs::read_to_string(cluster.subnet_file(host).with_file_name("vxlan.env")).unwrap();
            let subnet = text.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")).unwrap();
            let subnet = subnet.parse::<ipnet::IpNet>().unwrap().trunc();
            [cluster.add_pod(host), cluster.lab.hosts[host].add_pod(&[subnet], 1450).unwrap()]
        })
        .collect();
    for (near, far) in pods[0].iter().zip(&pods[1]) {
        check_ping(near, far);
        check_ping(far, near);
    }
}
