//! The firewall rules: their effect on traffic, and their repair.

mod programs;
mod tunnel_port;

use std::fs;

use flannel_testing::{Capture, Ipv4Packet, PingOptions, Pod, Transport, eventually, ping};

use crate::cluster::{Cluster, DUAL, NFTABLES, PATIENCE, SWITCH, VXLAN, check_ping, quick, running_ping};

const BOTH_MODES: [&str; 2] = [VXLAN, NFTABLES];

impl Cluster {
    /// All iptables rules and our nftables tables of a host, without counters.
    fn rules(&self, host: usize) -> String {
        let text = self.shell(
            host,
            "{ iptables-save; ip6tables-save; } | grep -e '^-A' -e '^:FLANNEL'
            nft list tables | grep flannel- | while read -r _ family name; do nft list table $family $name || true; done",
        );
        let plain = |line: &str| line.split(" [").next().unwrap_or_default().to_owned();
        text.lines().filter(|line| !line.contains("packets")).map(plain).collect::<Vec<_>>().join("\n")
    }

    /// Waits until the host has these rules.
    fn wait_for_rules(&self, host: usize, expected: &str, after: &str) {
        let healed = eventually(PATIENCE, || {
            let now = self.rules(host);
            if now == expected { Ok(()) } else { Err(now) }
        });
        healed.unwrap_or_else(|error| panic!("after {after}: {error}\nexpected {expected}"));
    }
}

/// Pings an address from a pod and returns the source addresses of the echo requests on a link.
fn source_of_ping(from: &Pod, to: &str, place: (&flannel_netlink::Namespace, &str)) -> Vec<String> {
    let to: std::net::Ipv4Addr = to.parse().unwrap();
    let capture = Capture::start(place.0, place.1).unwrap();
    eventually(PATIENCE, || ping(&from.namespace, to.into(), &PingOptions::default())).unwrap();
    let packets = capture.stop().unwrap();
    // Only echo requests: a gateway without a route sends ICMP errors.
    let is_request = |packet: &&Ipv4Packet| matches!(&packet.transport, Transport::Icmp(message) if message.is_echo_request());
    let requests = packets.iter().filter_map(|packet| packet.frame.ipv4()).filter(is_request);
    let mut sources: Vec<_> =
        requests.filter(|packet| packet.destination == to).map(|packet| packet.source.to_string()).collect();
    sources.dedup();
    sources
}

#[test]
fn traffic_out_of_the_network_is_masqueraded_and_traffic_between_pods_is_not() {
    for config in BOTH_MODES {
        let (cluster, pods) = Cluster::with_pods(2, config, &["-ip-masq"]);
        let outside = source_of_ping(&pods[0], SWITCH, (cluster.lab.switch(), "port1"));
        assert_eq!(outside, [cluster.public(0)], "{config}");
        let other = pods[1].addresses[0].to_string();
        let inside = source_of_ping(&pods[0], &other, (&pods[1].namespace, "eth0"));
        assert_eq!(inside, [pods[0].addresses[0].to_string()], "{config}");
        assert_eq!(cluster.subnet_env(0, "FLANNEL_IPMASQ"), "true");
    }
}

#[test]
fn without_ip_masq_nothing_is_masqueraded() {
    let (cluster, pods) = Cluster::with_pods(1, VXLAN, &[]);
    let capture = Capture::start(cluster.lab.switch(), "port1").unwrap();
    let path = (pods[0].addresses[0], SWITCH.parse().unwrap());
    let came = eventually(PATIENCE, || {
        assert!(ping(&pods[0].namespace, path.1, &quick()).is_err(), "the switch knows no way back");
        capture.packets().iter().any(|packet| packet.frame.addresses() == Some(path))
    });
    came.expect("the switch sees the address of the pod");
    assert_eq!(cluster.subnet_env(0, "FLANNEL_IPMASQ"), "false");
}

#[test]
fn replies_to_traffic_forwarded_by_another_host_return_through_it() {
    for config in BOTH_MODES {
        let (cluster, pods) = Cluster::with_pods(2, config, &["-ip-masq"]);
        // The switch routes to the pod of host 0 through host 1, as a load balancer does.
        cluster.shell_on_switch(&format!("ip route add {} via {}", cluster.subnet(0), cluster.public(1)));
        let capture = Capture::start(&pods[0].namespace, "eth0").unwrap();
        let to = pods[0].addresses[0];
        eventually(PATIENCE, || ping(cluster.lab.switch(), to, &PingOptions::default()))
            .unwrap_or_else(|error| panic!("{config}: {error}"));
        let tunnel = cluster.subnet(1).addr().to_string();
        let sources: Vec<_> =
            capture.stop().unwrap().iter().filter_map(|packet| packet.frame.addresses()).collect();
        assert!(sources.iter().any(|(source, _)| source.to_string() == tunnel), "{config}: {sources:?}");
    }
}

#[test]
fn pods_reach_each_other_with_dockers_drop_policy() {
    let (cluster, pods) = Cluster::with_pods(2, VXLAN, &[]);
    (0..2).for_each(|host| drop(cluster.shell(host, "iptables -P FORWARD DROP")));
    check_ping(&pods[0], &pods[1]);

    let (cluster, pods) = Cluster::with_pods(2, VXLAN, &["-iptables-forward-rules=false"]);
    check_ping(&pods[0], &pods[1]);
    drop(cluster.shell(0, "iptables -P FORWARD DROP"));
    assert!(
        ping(&pods[0].namespace, pods[1].addresses[0], &quick()).is_err(),
        "who wants no rules gets none"
    );
}

#[test]
fn the_mode_changes_live_and_leaves_no_rules_of_the_other() {
    let (cluster, pods) = Cluster::with_pods(2, VXLAN, &["-ip-masq"]);
    drop(cluster.shell(0, "iptables -A FORWARD -m comment --comment foreign -j ACCEPT"));
    // Foreign rules keep their positions, so ours may return at another.
    let sorted = |rules: String| {
        let mut lines: Vec<_> = rules.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let in_iptables = sorted(cluster.rules(0));
    cluster.configure(NFTABLES);
    let nothing_but_foreign = "-A FORWARD -m comment --comment foreign -j ACCEPT";
    let moved = eventually(PATIENCE, || {
        let now = cluster.rules(0);
        let (ours, others): (Vec<_>, Vec<_>) =
            now.lines().partition(|line| !line.starts_with("-A") && !line.starts_with(':'));
        if others == [nothing_but_foreign] && ours.iter().any(|line| line.contains("masquerade")) {
            Ok(())
        } else {
            Err(now)
        }
    });
    moved.unwrap();
    check_ping(&pods[0], &pods[1]);
    cluster.configure(VXLAN);
    let back = || {
        let now = sorted(cluster.rules(0));
        if now == in_iptables { Ok(()) } else { Err(now.join("\n")) }
    };
    eventually(PATIENCE, back).unwrap();
    check_ping(&pods[0], &pods[1]);
}

#[test]
fn iptables_shows_the_rules_of_upstream() {
    let (cluster, _pods) = Cluster::with_pods(1, DUAL, &["-ip-masq"]);
    let v6 = cluster.subnet_env(0, "FLANNEL_IPV6_SUBNET").parse::<ipnet::IpNet>().unwrap().trunc();
    let rules = |program: &str, table: &str| -> Vec<String> {
        let text = cluster.shell(0, &format!("{program}-save -t {table}"));
        text.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect()
    };
    for (program, c, p, m) in [
        ("iptables", "10.5.0.0/16".to_owned(), cluster.subnet(0), "224.0.0.0/4"),
        ("ip6tables", "fd10:5::/48".to_owned(), v6, "ff00::/8"),
    ] {
        let masq = r#"-m comment --comment "flanneld masq" -j"#;
        let expected = [
            format!("-A POSTROUTING {masq} FLANNEL-POSTRTG"),
            format!("-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} RETURN"),
            format!("-A FLANNEL-POSTRTG -s {p} -d {c} {masq} RETURN"),
            format!("-A FLANNEL-POSTRTG -s {c} -d {p} {masq} RETURN"),
            format!("-A FLANNEL-POSTRTG ! -s {c} -d {p} {masq} RETURN"),
            format!("-A FLANNEL-POSTRTG -s {c} ! -d {m} {masq} MASQUERADE --random-fully"),
            format!("-A FLANNEL-POSTRTG ! -s {c} -d {c} {masq} MASQUERADE --random-fully"),
        ];
        assert_eq!(rules(program, "nat"), expected);
        let forward = r#"-m comment --comment "flanneld forward" -j"#;
        let expected = [
            format!("-A FORWARD {forward} FLANNEL-FWD"),
            format!("-A FLANNEL-FWD -s {c} {forward} ACCEPT"),
            format!("-A FLANNEL-FWD -d {c} {forward} ACCEPT"),
        ];
        assert_eq!(rules(program, "filter"), expected);
    }
}

#[test]
fn changed_rules_are_repaired_on_notification() {
    // With an hourly audit, only a notification triggers the repair, faster than a second command.
    let flags = ["-ip-masq", "-iptables-resync=3600"];
    let (iptables, nftables) = (
        [
            "iptables -t nat -F",
            "iptables -F FLANNEL-FWD",
            "iptables -t nat -D FLANNEL-POSTRTG 3",
            r"printf '*nat\n-D POSTROUTING 1\n-F FLANNEL-POSTRTG\n-X FLANNEL-POSTRTG\nCOMMIT\n' | iptables-restore --noflush",
            "nft flush ruleset",
            // The second rule is first now.
            r#"printf '*nat\n-D FLANNEL-POSTRTG 1\n-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN\nCOMMIT\n' | iptables-restore --noflush"#,
            "iptables -A FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD",
        ],
        [
            "nft flush ruleset",
            "nft delete table ip flannel-ipv4",
            "nft flush chain ip flannel-ipv4 postrtg",
            "nft add rule ip flannel-ipv4 forward drop",
            "nft insert rule ip flannel-ipv4 postrtg masquerade",
            "nft add chain ip flannel-ipv4 another",
            "nft add table ip flannel-ipv4 '{ flags dormant; }'",
        ],
    );
    for (config, changes) in BOTH_MODES.into_iter().zip([iptables, nftables]) {
        let (mut cluster, pods) = Cluster::with_pods(1, config, &flags);
        let before = cluster.rules(0);
        assert!(before.contains("10.5.0.0/16"), "{before}");
        for change in changes {
            drop(cluster.shell(0, change));
            cluster.wait_for_rules(0, &before, change);
        }
        let outside = source_of_ping(&pods[0], SWITCH, (cluster.lab.switch(), "port1"));
        assert_eq!(outside, [cluster.public(0)], "{config}");
        let line = if config == VXLAN {
            "Some iptables rules are missing"
        } else {
            "Some nftables rules were changed"
        };
        cluster.daemon(0).wait_for_line(line, PATIENCE).unwrap();
    }
}

#[test]
fn a_restart_after_a_kill_changes_no_rule() {
    for config in BOTH_MODES {
        let (mut cluster, pods) = Cluster::with_pods(2, config, &["-ip-masq"]);
        check_ping(&pods[0], &pods[1]);
        let before = cluster.rules(0);
        let ping = running_ping(&pods[0], &pods[1]);
        cluster.daemon(0).kill().unwrap();
        assert_eq!(cluster.rules(0), before, "nothing is cleaned up");
        cluster.start_with(0, &["-ip-masq"]);
        cluster.wait_until_ready(0);
        assert_eq!(cluster.rules(0), before);
        // Long enough for the checks after the daemon is ready.
        ping.wait_for_replies(100, PATIENCE).unwrap();
        let report = ping.stop();
        assert_eq!(report.lost_count(), 0, "{report:?}");
    }
}

#[test]
fn a_restart_in_the_other_mode_leaves_no_rules_of_the_first() {
    let (mut cluster, _pods) = Cluster::with_pods(1, VXLAN, &["-ip-masq"]);
    let in_iptables = cluster.rules(0);
    for config in [NFTABLES, VXLAN] {
        cluster.daemon(0).terminate(PATIENCE).unwrap();
        cluster.configure(config);
        cluster.start_with(0, &["-ip-masq"]);
        cluster.wait_until_ready(0);
        let rules = cluster.rules(0);
        if config == NFTABLES {
            assert!(!rules.contains("FLANNEL-") && rules.contains("table ip flannel-ipv4"), "{rules}");
        } else {
            assert_eq!(rules, in_iptables);
        }
    }
}

#[test]
fn rules_of_upstream_and_of_an_earlier_network_are_removed_and_foreign_rules_stay() {
    let (mut cluster, _pods) = Cluster::with_pods(1, VXLAN, &["-ip-masq"]);
    let expected = cluster.rules(0);
    let subnet = cluster.subnet(0);
    cluster.daemon(0).terminate(PATIENCE).unwrap();

    let operators = "iptables -t nat -A POSTROUTING -j RETURN
        iptables -t nat -A POSTROUTING ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
        iptables -A FORWARD -s 192.0.2.0/24 -j ACCEPT";
    let upstreams = |network: &str, subnet: &str| {
        format!(
            "iptables -t nat -A POSTROUTING -s {network} -d {network} -j RETURN
            iptables -t nat -A POSTROUTING -s {network} ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
            iptables -t nat -A POSTROUTING ! -s {network} -d {subnet} -j RETURN
            iptables -t nat -A POSTROUTING ! -s {network} -d {network} -j MASQUERADE --random-fully
            iptables -A FORWARD -s {network} -j ACCEPT; iptables -A FORWARD -d {network} -j ACCEPT"
        )
    };
    // The state that v0.11 leaves: its rules for this network and for the previous one.
    drop(cluster.shell(0, &format!("nft flush ruleset; {operators}")));
    let of_the_operator = cluster.shell(0, "iptables-save | grep -e '^-A'");
    drop(cluster.shell(0, &upstreams("10.5.0.0/16", &subnet.to_string())));
    drop(cluster.shell(0, &upstreams("10.77.0.0/16", "10.77.3.0/24")));
    let file =
        "FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET=10.77.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    fs::write(cluster.subnet_file(0), file).unwrap();

    cluster.start_with(0, &["-ip-masq"]);
    cluster.wait_until_ready(0);
    let text = cluster.shell(0, "iptables-save | grep -e '^-A'");
    let (ours, others): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.contains("flanneld masq") || line.contains("flanneld forward"));
    assert_eq!(others, of_the_operator.lines().collect::<Vec<_>>());
    assert_eq!(ours.len(), 10);
    assert!(ours.iter().all(|rule| expected.contains(rule)), "{ours:#?}");
}

#[test]
fn blocking_rules_are_logged() {
    let ufw = "iptables -N ufw-reject-forward; iptables -A ufw-reject-forward -j REJECT
        iptables -A FORWARD -j ufw-reject-forward";
    let firewalld = "nft 'table inet firewalld { chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state established,related accept; reject with icmpx admin-prohibited; }; }'";
    let docker = "iptables -P FORWARD DROP";
    for (config, rules, line) in [
        (
            VXLAN,
            ufw,
            "`-A ufw-reject-forward -j REJECT --reject-with icmp-port-unreachable` stops forwarded packets of 10.5.0.0/16",
        ),
        (VXLAN, firewalld, "`inet firewalld filter_FORWARD` rejects or drops in its last rule"),
        (NFTABLES, docker, "`ip filter FORWARD` drops by its policy"),
    ] {
        let mut cluster = Cluster::new(1);
        cluster.configure(config);
        drop(cluster.shell(0, rules));
        cluster.start(0);
        let logged = cluster.daemon(0).wait_for_line(line, PATIENCE).unwrap();
        assert!(logged.starts_with('W') && logged.contains("Pods may not reach each other"), "{logged}");
    }
    let mut cluster = Cluster::new(1);
    cluster.configure(VXLAN);
    drop(cluster.shell(0, docker));
    cluster.start(0);
    cluster.wait_until_ready(0);
    let lines = cluster.daemon(0).lines();
    assert!(
        lines.iter().all(|line| !line.contains("may not reach")),
        "Docker's policy is no obstacle: {lines:#?}"
    );
}
