//! The messages in `docs/troubleshooting.md`, each produced by its fault.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use flannel_testing::{eventually, program};

use crate::certificates::Certificates;
use crate::cluster::{Cluster, HOST_GW, PATIENCE, SWITCH, VXLAN};
use crate::wildcard;

const PAGE: &str = include_str!("../../../docs/troubleshooting.md");

/// Every heading of the page with the number of messages below it.
const HEADINGS: &[(&str, usize)] = &[
    ("etcd without its v2 interface", 1),
    ("Network config not found", 1),
    ("Invalid network config", 2),
    ("Untrusted server certificate", 2),
    ("Rejected client certificate", 3),
    ("Unreadable file", 1),
    ("http instead of https", 1),
    ("etcd unreachable", 1),
    ("No matching interface", 2),
    ("Duplicate public address", 1),
    ("Missing capability", 1),
    ("Pods unreachable although hosts are reachable", 2),
    ("Device in use", 1),
    ("Unreachable peer", 3),
    ("Host behind NAT", 1),
    ("Unknown backend", 1),
];

/// The messages below a heading.
fn quoted(heading: &str) -> Vec<&'static str> {
    let part = PAGE.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no {heading:?}")).1;
    let part = part.split("\n## ").next().unwrap();
    part.split("```text\n").skip(1).map(|block| block.split("\n```").next().unwrap()).collect()
}

#[test]
fn every_message_of_the_page_is_tested() {
    let headings: Vec<&str> = PAGE.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(headings, HEADINGS.iter().map(|(heading, _)| *heading).collect::<Vec<_>>());
    for (heading, messages) in HEADINGS {
        assert_eq!(quoted(heading).len(), *messages, "{heading}");
    }
    assert_eq!(PAGE.matches("```text").count(), HEADINGS.iter().map(|(_, messages)| messages).sum::<usize>());
}

/// Whether a log line is this message, in which `...` stands for any text.
fn is(line: &str, message: &str) -> bool {
    // Time and source line precede the message.
    wildcard::matches(message, line.split_once("] ").map_or(line, |(_, message)| message))
}

/// Waits until the daemon logs this message of the page.
fn wait_for_message(cluster: &mut Cluster, host: usize, heading: &str, which: usize) {
    let message = quoted(heading)[which];
    let daemon = cluster.daemon(host);
    let check = || {
        let lines = daemon.lines();
        if lines.iter().any(|line| is(line, message)) { Ok(()) } else { Err(lines.join("\n")) }
    };
    eventually(PATIENCE, check).unwrap_or_else(|error| panic!("{message}\nis not logged: {error}"));
}

#[test]
fn an_etcd_without_the_api_or_the_config_is_logged() {
    let mut cluster = Cluster::new(1);
    cluster.start_with(0, &["-etcd-api=v2"]);
    wait_for_message(&mut cluster, 0, "etcd without its v2 interface", 0);
    // Written under the prefix of a guide, and read under the default one.
    cluster.etcd.etcdctl(&["put", "/kube-centos/network/config", VXLAN]).unwrap();
    cluster.start(0);
    wait_for_message(&mut cluster, 0, "Network config not found", 0);
    cluster.start_with(0, &["-etcd-prefix=/kube-centos/network"]);
    cluster.wait_until_ready(0);
}

#[test]
fn an_invalid_subnet_min_is_logged_until_it_is_corrected() {
    let mut cluster = Cluster::new(1);
    for (which, min) in ["10.5.0.10", "10.6.0.0"].into_iter().enumerate() {
        cluster.configure(&format!(r#"{{"Network":"10.5.0.0/16","SubnetMin":"{min}"}}"#));
        cluster.start(0);
        wait_for_message(&mut cluster, 0, "Invalid network config", which);
    }
    cluster.configure(VXLAN);
    cluster.wait_until_ready(0);
}

#[test]
fn rejected_certificates_are_logged() {
    let (files, stranger) = (Certificates::new(), Certificates::new());
    let mut cluster = Cluster::with_etcd(1, files.options());
    cluster.configure(VXLAN);
    let at = |name: &str| files.path(name).display().to_string();
    let flags = |ca: String, pair: Option<[String; 2]>| {
        let pair = pair.map(|[certificate, key]| {
            [format!("-etcd-certfile={certificate}"), format!("-etcd-keyfile={key}")]
        });
        let ca = format!("-etcd-cafile={ca}");
        ["-etcd-api=v3".to_owned(), ca].into_iter().chain(pair.into_iter().flatten()).collect::<Vec<_>>()
    };
    let client = || Some([at("client.pem"), at("client-key.pem")]);
    let mut try_with = |flags: Vec<String>, heading: &str, which: usize| {
        cluster.start_with(0, &flags);
        wait_for_message(&mut cluster, 0, heading, which);
    };
    let (theirs, own) = ("Untrusted server certificate", "Rejected client certificate");
    try_with(flags(stranger.path("ca.pem").display().to_string(), client()), theirs, 0);
    try_with(flags(at("ca.pem"), None), own, 0);
    try_with(flags(at("ca.pem"), Some([at("late.pem"), at("late-key.pem")])), own, 1);
    fs::create_dir_all(files.path("other")).unwrap();
    fs::copy(stranger.path("client-key.pem"), files.path("other/client-key.pem")).unwrap();
    try_with(flags(at("ca.pem"), Some([at("client.pem"), at("other/client-key.pem")])), own, 2);
    let plain = cluster.etcd.client_url().replace("https", "http");
    cluster.start_with(0, &[format!("-etcd-endpoints={plain}")]);
    wait_for_message(&mut cluster, 0, "http instead of https", 0);
    // The certificate is not for this address of etcd's machine.
    cluster.shell_on_switch(&format!("ip addr add 192.168.64.253/24 dev {}", cluster.switch_device()));
    let redirect = "iptables -t nat -A PREROUTING -d 192.168.64.253 -p tcp -j DNAT --to-destination";
    cluster.shell_on_switch(&format!("{redirect} {SWITCH}"));
    let other = cluster.etcd.client_url().replace(SWITCH, "192.168.64.253");
    let mut all = flags(at("ca.pem"), client());
    all.push(format!("-etcd-endpoints={other}"));
    cluster.start_with(0, &all);
    wait_for_message(&mut cluster, 0, theirs, 1);
}

#[test]
fn a_key_of_another_certificate_is_logged() {
    let files = Certificates::new();
    let key = files.path("client-key.pem");
    std::os::unix::fs::chown(&key, Some(65534), Some(65534)).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let mut cluster = Cluster::with_etcd(1, files.options());
    let daemon = cluster.command(0);
    let mut command = Command::new(program("setpriv", "util-linux").unwrap());
    // As in the sample unit.
    command.args(["--bounding-set=-all,+net_admin,+net_raw", "--"]);
    command.arg(daemon.get_program()).args(daemon.get_args());
    for (flag, file) in
        [("-etcd-cafile", "ca.pem"), ("-etcd-certfile", "client.pem"), ("-etcd-keyfile", "client-key.pem")]
    {
        command.arg(flag).arg(files.path(file));
    }
    cluster.start_as(0, command);
    wait_for_message(&mut cluster, 0, "Unreadable file", 0);
}

#[test]
fn an_unreachable_etcd_is_logged() {
    let mut cluster = Cluster::new(1);
    cluster.etcd.stop().unwrap();
    cluster.start(0);
    wait_for_message(&mut cluster, 0, "etcd unreachable", 0);
}

#[test]
fn a_missing_interface_is_logged() {
    let mut cluster = Cluster::new(1);
    let command = cluster.command_without_interface(0);
    cluster.start_as(0, command);
    wait_for_message(&mut cluster, 0, "No matching interface", 0);
    let mut command = cluster.command_without_interface(0);
    command.arg("-iface=eth9");
    cluster.start_as(0, command);
    wait_for_message(&mut cluster, 0, "No matching interface", 1);
}

#[test]
fn two_hosts_with_one_address_are_logged() {
    let mut cluster = Cluster::new(2);
    cluster.configure(VXLAN);
    for host in 0..2 {
        cluster.start_with(host, &["-public-ip=192.168.64.1"]);
        cluster.wait_until_ready(host);
    }
    for host in 0..2 {
        wait_for_message(&mut cluster, host, "Duplicate public address", 0);
    }
}

#[test]
fn a_missing_capability_is_logged() {
    let mut cluster = Cluster::new(1);
    let daemon = cluster.command(0);
    let mut command = Command::new(program("setpriv", "util-linux").unwrap());
    command.args(["--bounding-set=-net_admin", "--"]).arg(daemon.get_program()).args(daemon.get_args());
    cluster.start_as(0, command);
    wait_for_message(&mut cluster, 0, "Missing capability", 0);
}

#[test]
fn rules_that_block_pods_are_logged() {
    let mut cluster = Cluster::new(1);
    cluster.configure(VXLAN);
    cluster.lab.hosts[0].namespace.write_sysctl("net/ipv4/ip_forward", "0").unwrap();
    cluster.shell(0, "iptables -A FORWARD -j REJECT");
    cluster.start(0);
    for which in 0..2 {
        wait_for_message(&mut cluster, 0, "Pods unreachable although hosts are reachable", which);
    }
}

#[test]
fn a_foreign_device_and_unreachable_peers_are_logged() {
    let mut cluster = Cluster::new(1);
    cluster.configure(VXLAN);
    cluster.change(0, "ip link add other type vxlan id 1 dstport 8472 dev eth0");
    cluster.start(0);
    wait_for_message(&mut cluster, 0, "Device in use", 0);
    cluster.change(0, "ip link del other");
    cluster.change(0, "ip link add bridge type bridge");
    cluster.change(0, "ip link set bridge up");
    cluster.change(0, "ip route add 10.5.78.0/24 dev bridge");
    let record = r#""BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"}}"#;
    for (key, record) in [
        ("garbage", "x".to_owned()),
        ("10.5.77.0-24", r#"{"PublicIP":"192.168.64.9","BackendType":"host-gw"}"#.to_owned()),
        ("10.5.78.0-24", format!(r#"{{"PublicIP":"192.168.64.8",{record}"#)),
    ] {
        cluster.etcd.etcdctl(&["put", &format!("/coreos.com/network/subnets/{key}"), &record]).unwrap();
    }
    cluster.start(0);
    for which in 0..3 {
        wait_for_message(&mut cluster, 0, "Unreachable peer", which);
    }
}

#[test]
fn a_backend_that_cannot_be_opened_is_logged() {
    let mut cluster = Cluster::new(1);
    cluster.configure(HOST_GW);
    cluster.start_with(0, &["-public-ip=203.0.113.7"]);
    wait_for_message(&mut cluster, 0, "Host behind NAT", 0);
    cluster.configure(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}"#);
    cluster.start(0);
    wait_for_message(&mut cluster, 0, "Unknown backend", 0);
}
