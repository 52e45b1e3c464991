//! `-restrict-tunnel-port`: only peers reach the tunnel port.

use flannel_testing::{Capture, eventually, ping};

use crate::cluster::{Cluster, NFTABLES, PATIENCE, UDP, VXLAN, check_ping, quick};

#[test]
fn a_changed_port_opens_the_previous_one() {
    let (cluster, pods) = Cluster::with_pods(2, VXLAN, &["-restrict-tunnel-port"]);
    let ports = || cluster.shell(0, "nft list tables | grep -o 'flannel-port-.*' || true");
    eventually(PATIENCE, || ports() == "flannel-port-8472\n").unwrap();
    cluster.configure(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","Port":4789}}"#);
    eventually(PATIENCE, || ports() == "flannel-port-4789\n").unwrap();
    check_ping(&pods[0], &pods[1]);
    cluster.configure(UDP);
    eventually(PATIENCE, || ports() == "flannel-port-8285\n").unwrap();
    check_ping(&pods[0], &pods[1]);
}

/// Lets a host that is no peer send into the network: through a tunnel to host 0, from an overlay address.
fn intrude(cluster: &Cluster, outsider: usize) {
    let target = cluster.subnet(0);
    let (mac, public) = (cluster.mac(0), cluster.public(0));
    let script = format!(
        "ip link add intruder type vxlan id 1 dev eth0 dstport 8472 nolearning
        ip addr add 10.5.250.1/32 dev intruder; ip link set intruder up
        bridge fdb append {mac} dev intruder dst {public}
        ip neigh add {0} lladdr {mac} dev intruder nud permanent
        ip route add {target} via {0} dev intruder onlink src 10.5.250.1",
        target.addr()
    );
    drop(cluster.shell(outsider, &script));
}

#[test]
fn only_peers_can_send_to_a_restricted_port() {
    for (config, flags) in [
        (VXLAN, &["-restrict-tunnel-port", "-iptables-resync=3600"][..]),
        (NFTABLES, &["-restrict-tunnel-port", "-iptables-resync=3600"]),
        (VXLAN, &[]),
    ] {
        let mut cluster = Cluster::new(3);
        cluster.configure(config);
        (0..2).for_each(|host| cluster.start_with(host, flags));
        (0..2).for_each(|host| cluster.wait_until_ready(host));
        let pods = [0, 1].map(|host| cluster.add_pod(host));
        check_ping(&pods[0], &pods[1]);
        intrude(&cluster, 2);
        let capture = Capture::start(&pods[0].namespace, "eth0").unwrap();
        let to = pods[0].addresses[0];
        let intruders = "10.5.250.1".parse().unwrap();
        let comes = || {
            let _ = ping(&cluster.lab.hosts[2].namespace, to, &quick());
            // Earlier packets have arrived.
            check_ping(&pods[1], &pods[0]);
            capture.packets().iter().any(|packet| packet.frame.addresses() == Some((intruders, to)))
        };
        if flags.is_empty() {
            eventually(PATIENCE, comes).expect("nobody is kept out");
        } else {
            assert!(!comes(), "{config} {flags:?}");
        }

        // A new peer is admitted, and the set is repaired like the rules.
        drop(cluster.shell(2, "ip link del intruder"));
        cluster.start_with(2, flags);
        cluster.wait_until_ready(2);
        let joined = cluster.add_pod(2);
        check_ping(&joined, &pods[0]);
        if !flags.is_empty() {
            let before = cluster.rules(0);
            for change in [
                "nft delete element inet flannel-port-8472 peers4 '{ 192.168.64.2 }'",
                "nft delete table inet flannel-port-8472",
                "nft add rule inet flannel-port-8472 input accept",
            ] {
                drop(cluster.shell(0, change));
                cluster.wait_for_rules(0, &before, change);
            }
            cluster
                .daemon(0)
                .wait_for_line("The table that restricts a tunnel port was changed", PATIENCE)
                .unwrap();
            cluster.daemon(0).terminate(PATIENCE).unwrap();
            cluster.start(0);
            cluster.wait_until_ready(0);
            let rules = cluster.rules(0);
            assert!(!rules.contains("flannel-port"), "without the flag it is open again: {rules}");
        }
    }
}

#[test]
fn peers_reach_the_restricted_port_of_the_udp_backend() {
    let (cluster, pods) = Cluster::with_pods(2, UDP, &["-restrict-tunnel-port", "-ip-masq"]);
    check_ping(&pods[0], &pods[1]);
    let rules = cluster.rules(0);
    assert!(rules.contains("table inet flannel-port-8285") && rules.contains("{ 192.168.64.2 }"), "{rules}");
}
