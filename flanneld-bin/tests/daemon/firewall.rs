//! The firewall rules: what they do to traffic, and that they stay.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flannel_testing::{Capture, Ipv4Packet, PingOptions, Pod, Transport, eventually, ping, write_program};

use crate::cluster::{
    Cluster, DUAL, NFTABLES, PATIENCE, SWITCH, UDP, VXLAN, check_ping, quick, running_ping,
};

const BOTH_MODES: [&str; 2] = [VXLAN, NFTABLES];

/// With an audit each second, a daemon that has done nothing for so long has verified what it wrote.
const SETTLED: Duration = Duration::from_secs(2);

impl Cluster {
    /// All rules of a host in iptables, and our tables in nftables, without what differs from one listing to the next.
    fn rules(&self, host: usize) -> String {
        let text = self.shell(
            host,
            "{ iptables-save; ip6tables-save; } | grep -e '^-A' -e '^:FLANNEL'
            nft list tables | grep flannel- | while read -r _ family name; do nft list table $family $name || true; done",
        );
        let plain = |line: &str| line.split(" [").next().unwrap_or_default().to_owned();
        text.lines().filter(|line| !line.contains("packets")).map(plain).collect::<Vec<_>>().join("\n")
    }

    /// Waits until the rules of a host are these.
    fn wait_for_rules(&self, host: usize, expected: &str, after: &str) {
        let healed = eventually(PATIENCE, || {
            let now = self.rules(host);
            if now == expected { Ok(()) } else { Err(now) }
        });
        healed.unwrap_or_else(|error| panic!("after {after}: {error}\nexpected {expected}"));
    }
}

/// The source addresses of the echo requests that pass a link while one pod pings an address.
fn source_of_ping(from: &Pod, to: &str, place: (&flannel_netlink::Namespace, &str)) -> Vec<String> {
    let to: std::net::Ipv4Addr = to.parse().unwrap();
    let capture = Capture::start(place.0, place.1).unwrap();
    eventually(PATIENCE, || ping(&from.namespace, to.into(), &PingOptions::default())).unwrap();
    let packets = capture.stop().unwrap();
    // Nothing else: a gateway that does not know the way yet says so.
    let is_request = |packet: &&Ipv4Packet| matches!(&packet.transport, Transport::Icmp(message) if message.is_echo_request());
    let requests = packets.iter().filter_map(|packet| packet.frame.ipv4()).filter(is_request);
    let mut sources: Vec<_> =
        requests.filter(|packet| packet.destination == to).map(|packet| packet.source.to_string()).collect();
    sources.dedup();
    sources
}

#[test]
fn a_pod_reaches_the_world_by_its_hosts_address_and_another_pod_by_its_own() {
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
fn without_the_flag_nothing_is_masqueraded() {
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
fn an_outside_host_reaches_the_pod_of_another_host_and_the_answer_comes_back_the_same_way() {
    for config in BOTH_MODES {
        let (cluster, pods) = Cluster::with_pods(2, config, &["-ip-masq"]);
        // The switch sends to host 1 what is for the pod of host 0, as a load balancer does.
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
fn pods_reach_each_other_although_the_policy_is_to_drop_as_docker_sets_it() {
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
fn the_mode_changes_live_and_leaves_nothing_of_the_other_one() {
    let (cluster, pods) = Cluster::with_pods(2, VXLAN, &["-ip-masq"]);
    drop(cluster.shell(0, "iptables -A FORWARD -m comment --comment foreign -j ACCEPT"));
    // Rules of others stay where they are, so ours may come back in another place.
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
fn with_another_port_the_one_before_is_open_again() {
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
fn what_somebody_does_to_the_rules_is_undone_when_the_kernel_tells_of_it() {
    // With an audit once an hour, it is the notice that heals, and faster than a second command would be.
    let flags = ["-ip-masq", "-iptables-resync=3600"];
    let (iptables, nftables) = (
        [
            "iptables -t nat -F",
            "iptables -F FLANNEL-FWD",
            "iptables -t nat -D FLANNEL-POSTRTG 3",
            r"printf '*nat\n-D POSTROUTING 1\n-F FLANNEL-POSTRTG\n-X FLANNEL-POSTRTG\nCOMMIT\n' | iptables-restore --noflush",
            "nft flush ruleset",
            // The second rule now stands first.
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

/// Programs under other names, or that tell of each run, found before the system's.
struct Programs(PathBuf);

impl Programs {
    fn new(name: &str, programs: &[(&str, &str)]) -> Self {
        let directory = std::env::temp_dir().join(format!("flanneld-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        for (program, script) in programs {
            write_program(&directory.join(program), &format!("#!/bin/sh\n{script}\n")).unwrap();
        }
        Self(directory)
    }

    /// Starts the daemon of the first host with these flags, so that it finds them, and waits until it is ready.
    fn start(&self, cluster: &mut Cluster, flags: &[&str]) {
        let mut command = cluster.command(0);
        command.args(flags).env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.0.display()));
        cluster.start_as(0, command);
        cluster.wait_until_ready(0);
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const PROGRAMS: [&str; 7] = [
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
    "nft",
];

#[test]
fn a_change_of_the_legacy_iptables_is_found_by_the_audit() {
    let legacy = PROGRAMS.map(|name| {
        let script = format!("exec {} \"$@\"", name.replacen("tables", "tables-legacy", 1));
        (name, script)
    });
    let legacy: Vec<_> = legacy.iter().map(|(name, script)| (*name, script.as_str())).collect();
    let programs = Programs::new("legacy", &legacy[..6]);
    let (mut cluster, _pods) = Cluster::with_pods(1, VXLAN, &["-iptables-forward-rules=false"]);
    programs.start(&mut cluster, &["-ip-masq", "-iptables-resync=1"]);
    let list = || cluster.shell(0, "iptables-legacy-save | grep -e -A");
    let before = list();
    assert_eq!(before.lines().count(), 10, "{before}");
    for change in ["-t nat -F", "-F", "-t nat -D FLANNEL-POSTRTG 2"] {
        // Until an audit has found everything in order.
        std::thread::sleep(SETTLED);
        // All namespaces of the machine have one lock.
        drop(cluster.shell(0, &format!("iptables-legacy --wait {change}")));
        eventually(PATIENCE, || if list() == before { Ok(()) } else { Err(list()) })
            .unwrap_or_else(|error| panic!("after {change}: {error}"));
    }
}

#[test]
fn while_nothing_changes_no_program_is_started_and_hardly_any_time_used() {
    for (name, config, tables) in [
        ("idle-iptables", VXLAN, "tables"),
        ("idle-nftables", NFTABLES, "tables"),
        ("idle-legacy", VXLAN, "tables-legacy"),
    ] {
        let log = std::env::temp_dir().join(format!("flanneld-{name}-{}.log", std::process::id()));
        let scripts = PROGRAMS.map(|program| {
            let nft = flannel_testing::program("nft", "nftables").unwrap();
            let real = nft.with_file_name(program.replacen("tables", tables, 1));
            (program, format!("echo {program} \"$@\" >> {}\nexec {} \"$@\"", log.display(), real.display()))
        });
        let scripts: Vec<_> = scripts.iter().map(|(name, script)| (*name, script.as_str())).collect();
        let programs = Programs::new(name, &scripts);
        let mut cluster = Cluster::new(1);
        cluster.configure(config);
        programs.start(&mut cluster, &["-ip-masq", "-iptables-resync=1", "-restrict-tunnel-port"]);
        let (runs, used, began) = (at_rest(&log), used(&mut cluster), Instant::now());
        // Several audits.
        std::thread::sleep(Duration::from_secs(5));
        assert_eq!(fs::read_to_string(&log).unwrap(), runs, "{name}");
        let share = (self::used(&mut cluster) - used).as_secs_f64() / began.elapsed().as_secs_f64();
        println!("{name}: {:.4} % of a core", share * 100.0);
        if tables == "tables" {
            // As kube-proxy does all the time, in chains of its own.
            for _ in 0..2 {
                drop(
                    cluster.shell(
                        0,
                        "iptables -t nat -N KUBE-X; iptables -t nat -A KUBE-X -s 192.0.2.1 -j RETURN",
                    ),
                );
                std::thread::sleep(Duration::from_millis(1500));
                drop(cluster.shell(0, "iptables -t nat -F KUBE-X; iptables -t nat -X KUBE-X"));
            }
            assert_eq!(fs::read_to_string(&log).unwrap(), runs, "{name}: somebody else's chains");
        }
        // Five times what is promised, for a machine on which everything takes longer.
        assert!(share < 0.005, "{name}: {share} of a core");
        let _ = fs::remove_file(&log);
    }
}

/// Waits until no program was run for a while, and tells which ones were. Some are: those of the test are used.
fn at_rest(log: &Path) -> String {
    let (mut runs, mut since) = (String::new(), Instant::now());
    let at_rest = eventually(PATIENCE, || {
        let now = fs::read_to_string(log).unwrap_or_default();
        if now != runs {
            (runs, since) = (now, Instant::now());
        }
        if !runs.is_empty() && since.elapsed() > SETTLED { Ok(()) } else { Err(runs.clone()) }
    });
    at_rest.unwrap();
    runs
}

/// How long the daemon of the first host has run on a processor (`/proc/PID/schedstat`, of its only thread).
fn used(cluster: &mut Cluster) -> Duration {
    let pid = cluster.daemon(0).id();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let nanoseconds = tasks.map(|task| {
        let text = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0)
    });
    Duration::from_nanos(nanoseconds.sum())
}

#[test]
fn a_daemon_that_is_killed_and_started_again_changes_no_rule() {
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
        // Long enough for the looks at the rules that come after it said that it is ready.
        ping.wait_for_answers(100, PATIENCE).unwrap();
        let report = ping.stop();
        assert_eq!(report.lost_count(), 0, "{report:?}");
    }
}

#[test]
fn switching_between_iptables_and_nftables_leaves_nothing_of_the_other() {
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
fn what_upstream_and_an_earlier_network_left_goes_and_what_an_operator_wrote_stays() {
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
    // As v0.11 leaves the host: its rules, of this network, and of the one before.
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
fn rules_that_cannot_be_put_are_told_and_tried_again_and_the_network_goes_on() {
    let count = std::env::temp_dir().join(format!("flanneld-refused-{}.count", std::process::id()));
    let _ = fs::remove_file(&count);
    let script = format!(
        "echo >> {0}; [ $(wc -l < {0}) -gt 4 ] && exec /usr/sbin/iptables-restore \"$@\"; cat > /dev/null
        echo 'Another app is currently holding the xtables lock.' >&2; exit 4",
        count.display()
    );
    let programs = Programs::new("refused", &[("iptables-restore", &script)]);
    let mut cluster = Cluster::new(1);
    cluster.configure(VXLAN);
    programs.start(&mut cluster, &["-ip-masq"]);
    let line = "Failed to setup firewall rules: IPv4 rules in iptables: iptables-restore failed (exit status: 4): \
                Another app is currently holding the xtables lock.; it is tried again";
    cluster.daemon(0).wait_for_line(line, PATIENCE).unwrap();
    cluster.daemon(0).wait_for_line("The firewall rules are in order again", PATIENCE).unwrap();
    let told = cluster.daemon(0).lines().iter().filter(|told| told.contains("xtables lock")).count();
    assert_eq!(told, 1, "the same is not told twice");
    assert!(cluster.rules(0).contains("FLANNEL-POSTRTG"));
    let _ = fs::remove_file(&count);
}

#[test]
fn what_stands_in_the_way_is_named() {
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
        let told = cluster.daemon(0).wait_for_line(line, PATIENCE).unwrap();
        assert!(told.starts_with('W') && told.contains("Pods may not reach each other"), "{told}");
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

/// Makes a host that is no peer send into the network, as if it were one: a tunnel to host 0 from an address of the
/// overlay.
fn intrude(cluster: &Cluster, stranger: usize) {
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
    drop(cluster.shell(stranger, &script));
}

#[test]
fn a_stranger_cannot_send_into_the_network_if_the_port_is_for_peers_only() {
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
            // What came before this one has come.
            check_ping(&pods[1], &pods[0]);
            capture.packets().iter().any(|packet| packet.frame.addresses() == Some((intruders, to)))
        };
        if flags.is_empty() {
            eventually(PATIENCE, comes).expect("nobody is kept out");
        } else {
            assert!(!comes(), "{config} {flags:?}");
        }

        // Whoever becomes a peer is let in, and the set heals like the rules.
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
                .wait_for_line("The table for the port of the tunnel was changed", PATIENCE)
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
fn the_port_of_the_udp_backend_is_open_to_peers() {
    let (cluster, pods) = Cluster::with_pods(2, UDP, &["-restrict-tunnel-port", "-ip-masq"]);
    check_ping(&pods[0], &pods[1]);
    let rules = cluster.rules(0);
    assert!(rules.contains("table inet flannel-port-8285") && rules.contains("{ 192.168.64.2 }"), "{rules}");
}

#[test]
fn packets_to_containers_that_do_not_exist_end_in_a_blackhole_if_that_is_wanted() {
    let (mut cluster, pods) = Cluster::with_pods(1, DUAL, &["-ip-blackhole-route", "-iptables-resync=1"]);
    let v6 = cluster.subnet_env(0, "FLANNEL_IPV6_SUBNET").parse::<ipnet::IpNet>().unwrap().trunc();
    let subnet = cluster.subnet(0);
    let is_there = |cluster: &Cluster| {
        let lines = [cluster.lines(0, "ip route"), cluster.lines(0, "ip -6 route")].concat();
        [subnet, v6].iter().all(|net| lines.iter().any(|line| line.starts_with(&format!("blackhole {net} "))))
    };
    eventually(PATIENCE, || is_there(&cluster)).unwrap();
    // The bridge has the same subnet, and goes first.
    cluster.shell(0, &format!("ip route get {} | grep cni0", pods[0].addresses[0]));
    cluster.shell(
        0,
        &format!("ip route del blackhole {subnet}; ip -6 route del blackhole {v6} metric 4294967295"),
    );
    eventually(PATIENCE, || is_there(&cluster)).unwrap();
    let lines = cluster.daemon(0).lines();
    assert!(lines.iter().all(|line| !line.contains("Failed to add the blackhole")), "{lines:#?}");
}
