//! Evaluates rulesets that `nft` and iptables loaded into the kernel.

use flannel_core::TransportProtocol;
use flannel_netlink::Namespace;

use super::super::{Packet, PacketPath, Ruleset};

const FIREWALLD: &str = "
table inet firewalld {
  chain filter_INPUT { type filter hook input priority 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname \"lo\" accept
    ct state invalid drop
    jump filter_INPUT_ZONES
    reject with icmpx type admin-prohibited
  }
  chain filter_INPUT_ZONES {
    iifname \"eth0\" goto filter_IN_public
    goto filter_IN_public
  }
  chain filter_IN_public {
    tcp dport 22 ct state { new, untracked } accept
    meta l4proto { icmp, ipv6-icmp } accept
  }
  chain filter_FORWARD { type filter hook forward priority 10; policy accept;
    ct state { established, related } accept
    ip6 daddr { ::/96, ::ffff:0.0.0.0/96 } reject with icmpv6 type addr-unreachable
    iifname vmap { \"lo\" : accept, \"docker0\" : jump filter_docker }
    reject with icmpx type admin-prohibited
  }
  chain filter_docker { accept; }
}";

/// Returns what stops a tunnel datagram, and a packet between pods, on a host with these tables.
fn stopped(script: &str) -> [Vec<String>; 2] {
    let namespace = namespace();
    load(&namespace, script);
    blocking_rules(&namespace)
}

/// Returns what stops them in a namespace.
fn blocking_rules(namespace: &Namespace) -> [Vec<String>; 2] {
    let (ruleset, failures) = runtime().block_on(Ruleset::read(namespace));
    assert!(failures.is_empty(), "{failures:?}");
    [datagram(), forwarded()].map(|packet| {
        let blocking_rules = ruleset.blocking_rules(&packet);
        blocking_rules.iter().map(|blocking| format!("{}: {}", blocking.location, blocking.rule)).collect()
    })
}

fn namespace() -> Namespace {
    Namespace::create().expect("these tests create network namespaces: run them as root")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

fn load(namespace: &Namespace, script: &str) {
    runtime().block_on(crate::nftables::NFT.run(namespace, &["-f", "-"], script)).expect("a script");
}

fn run(namespace: &Namespace, line: &str) {
    let mut words = line.split(' ');
    let mut command = std::process::Command::new(words.next().expect("a program"));
    command.args(words);
    assert!(namespace.run(|| command.status()).expect("namespace").expect("iptables").success(), "{line}");
}

fn datagram() -> Packet {
    Packet {
        path: PacketPath::Input,
        incoming: Some("eth0".to_owned()),
        outgoing: None,
        source: "192.168.64.2".parse().expect("address"),
        destination: "192.168.64.1".parse().expect("address"),
        transport: TransportProtocol::Udp,
        port: 8472,
    }
}

fn forwarded() -> Packet {
    Packet {
        path: PacketPath::Forward,
        incoming: Some("flannel.1".to_owned()),
        outgoing: Some("cni0".to_owned()),
        source: "10.5.2.2".parse().expect("address"),
        destination: "10.5.1.2".parse().expect("address"),
        transport: TransportProtocol::Tcp,
        port: 33_333,
    }
}

#[test]
fn firewalld_zones_are_followed_to_their_rejections() {
    let [input, forward] = stopped(FIREWALLD);
    assert_eq!(input, ["nftables, table inet firewalld: chain filter_INPUT { … reject }"]);
    assert_eq!(forward, ["nftables, table inet firewalld: chain filter_FORWARD { … reject }"]);

    let opened = FIREWALLD
        .replace("tcp dport 22", "udp dport { 53, 8000-9000 } accept\n tcp dport 22")
        .replace("\"lo\" : accept", "\"lo\" : accept, \"flannel.1\" : accept");
    assert_eq!(stopped(&opened), [Vec::<String>::new(), Vec::new()]);
}

#[test]
fn policies_sets_and_conditions_are_evaluated_as_the_kernel_does() {
    let table = |rules: &str| {
        format!(
            "table ip f {{
               set hosts {{ type ipv4_addr; flags interval; elements = {{ 10.5.2.0/24, 192.168.64.2 }}; }}
               chain input {{ type filter hook input priority 0; policy drop; {rules}\n }}
               chain forward {{ type filter hook forward priority 0; policy drop; {rules}\n }}
             }}"
        )
    };
    let nothing: [Vec<String>; 2] = [Vec::new(), Vec::new()];
    for accepting in [
        "accept",
        "ip saddr @hosts accept",
        "ip saddr != 10.9.0.0/16 accept",
        "ct state new accept",
        "ip saddr { 10.5.0.0/16, 192.168.64.0/24 } counter accept",
        "meta mark 0 accept",
        "meta l4proto vmap { tcp : accept, udp : accept }",
        // These may accept.
        "limit rate 5/second accept",
        "ip dscp cs1 accept",
        "meta mark set 1; meta mark 1 accept",
        "ct mark set 1; ct mark 1 accept",
        "limit rate 5/second meta mark set meta mark or 1; meta mark and 1 == 1 accept",
    ] {
        assert_eq!(stopped(&table(accepting)), nothing, "{accepting}");
    }
    for stopping in [
        "",
        "ip saddr 10.9.0.0/16 accept",
        "ct state established accept",
        "iifname \"docker*\" accept",
        "meta mark 1 accept",
        "iifname \"docker*\" meta mark set 1; meta mark 1 accept",
    ] {
        let [input, forward] = stopped(&table(stopping));
        assert_eq!(input, ["nftables, table ip f: chain input { … policy drop; }"], "{stopping}");
        assert_eq!(forward, ["nftables, table ip f: chain forward { … policy drop; }"], "{stopping}");
    }
    let [input, forward] =
        stopped(&table("udp dport 8472 drop; ip saddr 10.5.2.2 tcp dport 33333 reject; accept"));
    assert_eq!(input, ["nftables, table ip f: chain input { … udp dport 8472 drop }"]);
    assert_eq!(
        forward,
        ["nftables, table ip f: chain forward { … ip saddr 10.5.2.2 tcp dport 33333 reject }"]
    );
}

#[test]
fn a_mark_counts_in_any_order_of_tables_and_programs() {
    let accepts = "table inet a { chain forward { type filter hook forward priority 0; policy drop;
        meta mark 1 accept\n }\n }";
    let [_, forward] = stopped(accepts);
    assert_eq!(forward, ["nftables, table inet a: chain forward { … policy drop; }"]);
    let marks = "table inet b { chain first { type filter hook prerouting priority -150;
        iifname \"flannel.1\" meta mark set 1\n }\n }";
    assert_eq!(stopped(&format!("{accepts}\n{marks}"))[1], [""; 0]);

    let namespace = namespace();
    for line in ["iptables -P FORWARD DROP", "iptables -A FORWARD -m mark --mark 1 -j ACCEPT"] {
        run(&namespace, line);
    }
    let stopped = || blocking_rules(&namespace)[1].clone();
    let policy = ["iptables, table filter: -P FORWARD DROP"];
    assert_eq!(stopped(), policy);
    run(&namespace, "iptables -t mangle -A PREROUTING -j MARK --set-mark 1");
    assert_eq!(stopped(), [""; 0]);
    run(&namespace, "iptables -t mangle -F PREROUTING");
    assert_eq!(stopped(), policy);
    load(&namespace, marks);
    assert_eq!(stopped(), [""; 0]);
}

#[test]
fn rules_of_iptables_are_reported_once_and_in_its_syntax() {
    let namespace = namespace();
    for line in ["iptables -P FORWARD DROP", "iptables -A INPUT -p udp -j DROP", "ip6tables -P FORWARD DROP"]
    {
        run(&namespace, line);
    }
    assert_eq!(
        blocking_rules(&namespace),
        [["iptables, table filter: -A INPUT -p udp -j DROP"], ["iptables, table filter: -P FORWARD DROP"]]
    );
}
