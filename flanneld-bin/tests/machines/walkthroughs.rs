//! The walk-throughs of the pages, command by command.

use flannel_netlink::Netlink;
use flannel_testing::{Lab, LabOptions, PingOptions, RunningPing};
use ipnet::IpNet;
use std::time::Duration;

use crate::machine::{Machine, PATIENCE};
use crate::page;

const INSTALL: &str = include_str!("../../../docs/install.md");
const QUICK: &str = include_str!("../../../docs/quick-start.md");
const MOVING: &str = include_str!("../../../docs/moving-from-upstream.md");

/// A fake Docker that only creates its bridge and sets the FORWARD policy to DROP.
const DOCKERD: &str = r#"#!/bin/sh
set -e
ip link show docker0 >/dev/null 2>&1 || ip link add docker0 type bridge
ip addr flush dev docker0
for option; do
    case $option in
        --bip=*) ip addr add "${option#--bip=}" dev docker0 ;;
        --mtu=*) ip link set docker0 mtu "${option#--mtu=}" ;;
    esac
done
ip link set docker0 up
sysctl -q -w net.ipv4.ip_forward=1
iptables -P FORWARD DROP
systemd-notify --ready
exec sleep infinity
"#;

/// A simulation of upstream's daemon on the host that switches.
const UPSTREAM: &str = include_str!("upstream.sh");

fn boot(hosts: usize) -> (Lab, Vec<Machine>) {
    let lab = Lab::new(&LabOptions { hosts, ..LabOptions::default() }).unwrap();
    let machines: Vec<_> = lab.hosts.iter().map(|host| Machine::boot(&host.namespace, &host.name)).collect();
    (lab, machines)
}

fn with_docker(machine: &Machine) {
    machine.write("/usr/bin/dockerd", DOCKERD);
    machine.get("chmod 755 /usr/bin/dockerd");
    let unit = "[Unit]\nAfter=network-online.target\n[Service]\nType=notify\nNotifyAccess=all\nExecStart=/usr/bin/dockerd -H fd://\n";
    machine.write("/etc/systemd/system/docker.service", unit);
    machine.get("systemctl daemon-reload");
}

#[test]
fn the_quick_start() {
    let (_lab, machines) = boot(3);
    page::run(QUICK, "Three hosts", &machines);
}

#[test]
fn three_hosts_with_etcd_v3_and_docker() {
    let (_lab, machines) = boot(3);
    machines.iter().for_each(with_docker);
    page::run(INSTALL, "Three hosts, etcd's v3 interface, Docker", &machines);
}

#[test]
fn three_hosts_with_etcd_v2_certificates_and_docker() {
    let (_lab, machines) = boot(3);
    machines.iter().for_each(with_docker);
    page::run(INSTALL, "Three hosts, etcd's v2 interface with certificates, legacy unit", &machines);
}

#[test]
fn two_hosts_with_containers_through_cni() {
    let (_lab, machines) = boot(2);
    page::run(INSTALL, "Two hosts, containers through CNI", &machines);
}

#[test]
fn a_running_node_switches_from_upstream_and_back_without_packet_loss() {
    let (lab, machines) = boot(2);
    page::run(MOVING, "Setup", &machines);
    machines[1].get("systemctl start flanneld");
    machines[0].write("/usr/bin/flanneld", UPSTREAM);
    machines[0].get("chmod 755 /usr/bin/flanneld && systemctl start flanneld");
    let pods = [0, 1].map(|host| {
        let env = machines[host].get("cat /run/flannel/subnet.env");
        let subnet = env.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")).unwrap();
        let subnet: IpNet = subnet.parse::<IpNet>().unwrap().trunc();
        lab.hosts[host].add_pod(&[subnet], 1450).unwrap()
    });
    let every = Duration::from_millis(5);
    let ping =
        RunningPing::start(&pods[0].namespace, pods[1].addresses[0], every, &PingOptions::default()).unwrap();
    ping.wait_for_replies(20, PATIENCE).unwrap();
    let device = || Netlink::open_in(&lab.hosts[0].namespace).unwrap().link("flannel.1").unwrap().unwrap();
    let before = device();

    page::run(MOVING, "Switching to flannel-rs", &machines);
    assert_eq!(
        machines[0].get("readlink /proc/$(systemctl show -p MainPID --value flanneld)/exe"),
        "/usr/bin/flanneld"
    );
    assert_eq!(device(), before);
    page::run(MOVING, "Switching back", &machines);
    assert!(machines[0].get("head -c 2 /usr/bin/flanneld") == "#!", "upstream's program is restored");
    assert_eq!(device(), before);

    ping.wait_for_replies(20, PATIENCE).unwrap();
    let report = ping.stop();
    assert_eq!(report.lost_count(), 0, "{report}");
}
