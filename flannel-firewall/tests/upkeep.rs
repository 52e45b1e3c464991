//! The upkeep of rules, tunnel ports and blackhole routes on the real kernel, as an embedder uses it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use flannel_core::{NetworkConfig, SubnetKey, TransportProtocol};
use flannel_firewall::{
    BlackholeRoutes, Firewall, FirewallMode, FirewallNetwork, FirewallOptions, FirewallStatus,
    OverlayPrefixes, Packet, PacketPath, RuleChange, RuleOptions, Ruleset,
};
use flannel_netlink::Namespace;
use tokio::sync::watch;

#[test]
fn each_tunnel_port_is_restricted_until_the_network_no_longer_uses_it() {
    let namespace = namespace();
    let mut firewall = Firewall::new(
        namespace.clone(),
        FirewallOptions::new(RuleOptions::default())
            .with_restrict_tunnel_ports(true)
            .with_former_tunnel_ports([8472, 51820]),
    );
    block_on(async {
        shell(&namespace, "nft add table inet flannel-port-8472");
        firewall.set_network(network("10.5.1.0/24", &[51820, 51821]));
        firewall.set_peers(peers(&["192.0.2.1", "2001:db8::1"]));
        assert_eq!(firewall.reconcile().await.tunnel_ports, RuleChange::Applied);
        for port in [51820, 51821] {
            let table = shell(&namespace, &format!("nft list table inet flannel-port-{port}"));
            assert!(table.contains("192.0.2.1") && table.contains("2001:db8::1"), "{table}");
        }
        assert_eq!(tables(&namespace), "flannel-port-51820 flannel-port-51821", "8472 was of an earlier run");

        shell(&namespace, "nft flush table inet flannel-port-51821");
        firewall.wait().await;
        assert_eq!(firewall.reconcile().await.tunnel_ports, RuleChange::Repaired);

        firewall.set_network(network("10.5.1.0/24", &[51821]));
        firewall.reconcile().await;
        assert_eq!(tables(&namespace), "flannel-port-51821");
        let failures = Firewall::remove(namespace.clone(), &network("10.5.1.0/24", &[51821])).await;
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(tables(&namespace), "");
    });
}

#[test]
fn run_reports_each_network_once_its_rules_are_in_place() {
    let namespace = namespace();
    let rules = RuleOptions::default().with_masquerade(true);
    let firewall = Firewall::new(namespace.clone(), FirewallOptions::new(rules));
    let (publish, networks) = watch::channel(None);
    let (report, mut reports) = watch::channel((FirewallNetwork::default(), FirewallStatus::default()));
    let (_peers, peers) = watch::channel(BTreeSet::new());
    let on_pass = |network: &FirewallNetwork, status: &FirewallStatus| {
        report.send_replace((network.clone(), status.clone()));
    };
    block_on_both(firewall.run(networks, peers, on_pass), async {
        for subnet in ["10.5.1.0/24", "10.5.2.0/24"] {
            let network = network(subnet, &[]);
            publish.send_replace(Some(network.clone()));
            let reached = reports.wait_for(|(of, _)| *of == network).await.unwrap().clone();
            assert_eq!((reached.1.mode, reached.1.failures), (FirewallMode::Nftables, 0), "{:?}", reached.1);
            let table = shell(&namespace, "nft list table ip flannel-ipv4");
            assert!(table.contains(&format!("ip saddr {subnet} ip daddr 10.5.0.0/16 return")), "{table}");
        }
        let repairs = reports.borrow().1.repairs;
        shell(&namespace, "nft delete table ip flannel-ipv4");
        reports.wait_for(|(_, status)| status.repairs == repairs + 1).await.unwrap();
        assert_eq!(tables(&namespace), "flannel-ipv4");
    });
}

/// The rules of Docker 28 with `--allow-direct-routing`, as far as they concern packets from other hosts.
const DOCKER: &str = "iptables -N DOCKER-USER
    iptables -N DOCKER-FORWARD
    iptables -N DOCKER
    iptables -P FORWARD DROP
    iptables -A FORWARD -j DOCKER-USER
    iptables -A FORWARD -j DOCKER-FORWARD
    iptables -A DOCKER-FORWARD -o docker0 -j DOCKER
    iptables -A DOCKER-FORWARD -i docker0 -j ACCEPT
    iptables -A DOCKER ! -i docker0 -o docker0 -j DROP";

#[test]
fn containers_of_docker_are_reachable_from_other_hosts_also_after_docker_restarts() {
    let namespace = namespace();
    let mut network = network("10.5.1.0/24", &[]);
    network.mode = FirewallMode::Iptables;
    let options = FirewallOptions::new(RuleOptions::default().with_forward(true));
    let mut firewall = Firewall::new(namespace.clone(), options);
    let address = |text: &str| text.parse().unwrap();
    let packet = Packet::new(
        PacketPath::Forward,
        address("10.5.2.2"),
        address("10.5.1.2"),
        TransportProtocol::Tcp,
        80,
    )
    .with_incoming(Some("flannel.1".to_owned()))
    .with_outgoing(Some("docker0".to_owned()));
    block_on(async {
        shell(&namespace, DOCKER);
        let blocking = || async { Ruleset::read(&namespace).await.0.blocking_rules(&packet) };
        assert_eq!(blocking().await.len(), 1, "Docker drops the packet");
        firewall.set_network(network.clone());
        firewall.reconcile().await;
        assert_eq!(blocking().await, []);
        firewall.reconcile().await;

        shell(&namespace, "iptables -F DOCKER-USER; iptables -A DOCKER-USER -j RETURN");
        firewall.wait().await;
        assert_eq!(firewall.reconcile().await.rules, RuleChange::Repaired);
        assert_eq!(blocking().await, []);

        assert!(Firewall::remove(namespace.clone(), &network).await.is_empty());
        assert_eq!(
            shell(&namespace, "iptables -S DOCKER-USER"),
            "-N DOCKER-USER\n-A DOCKER-USER -j RETURN\n"
        );
    });
}

#[test]
fn a_blackhole_route_follows_the_subnet() {
    let namespace = namespace();
    shell(&namespace, "ip link set lo up");
    let (publish, networks) = watch::channel(Some(network("10.5.1.0/24", &[])));
    let routes = || shell(&namespace, "ip -4 route show type blackhole");
    block_on_both(BlackholeRoutes::new(namespace.clone(), Duration::from_millis(20)).run(networks), async {
        eventually(|| routes().contains("10.5.1.0/24 ")).await;
        shell(&namespace, "ip route del blackhole 10.5.1.0/24");
        eventually(|| routes().contains("10.5.1.0/24 ")).await;
        publish.send_replace(Some(network("10.5.2.0/24", &[])));
        eventually(|| routes().contains("10.5.2.0/24 ") && !routes().contains("10.5.1.0/24 ")).await;
    });
    BlackholeRoutes::remove(&namespace, &network("10.5.2.0/24", &[])).unwrap();
    assert_eq!(routes(), "");
}

#[test]
fn blackhole_routes_of_earlier_runs_are_removed_and_those_of_others_stay() {
    let metric = u32::MAX;
    for is_enabled in [true, false] {
        let namespace = namespace();
        shell(
            &namespace,
            &format!(
                "ip link set lo up
                ip route add blackhole 10.5.9.0/24 metric {metric}
                ip route add blackhole 10.9.9.0/24 metric {metric}
                ip route add blackhole 10.5.8.0/24
                ip route add blackhole 192.0.2.0/24 metric {metric}"
            ),
        );
        let routes = || {
            let routes = shell(&namespace, "ip -4 route show type blackhole");
            let nets = routes.split_whitespace().filter(|word| word.contains('/'));
            nets.map(str::to_owned).collect::<Vec<_>>()
        };
        let earlier = OverlayPrefixes::new("10.9.0.0/16".parse().unwrap(), "10.9.9.0/24".parse().unwrap());
        let task = BlackholeRoutes::new(namespace.clone(), Duration::from_millis(20))
            .with_enabled(is_enabled)
            .with_previous(&[earlier.unwrap()]);
        let (_publish, networks) = watch::channel(Some(network("10.5.1.0/24", &[])));
        let own = if is_enabled { &["10.5.1.0/24"][..] } else { &[] };
        let expected = [own, &["10.5.8.0/24", "192.0.2.0/24"]].concat();
        block_on_both(task.run(networks), eventually(|| routes() == expected));
    }
}

#[test]
fn the_status_is_the_same_after_json() {
    let mut status = FirewallStatus::default();
    (status.mode, status.repairs) = (FirewallMode::Nftables, 2);
    let json = serde_json::to_string(&status).unwrap();
    assert!(json.contains(r#""mode":"nftables""#), "{json}");
    assert_eq!(serde_json::from_str::<FirewallStatus>(&json).unwrap(), status);
}

fn namespace() -> Namespace {
    Namespace::create().expect("these tests create network namespaces: run them as root")
}

fn network(subnet: &str, tunnel_ports: &[u16]) -> FirewallNetwork {
    let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "EnableNFTables": true}"#).unwrap();
    let subnet = SubnetKey::new(Some(subnet.parse().unwrap()), None).unwrap();
    FirewallNetwork::new(&config, &subnet, tunnel_ports.iter().copied())
}

fn peers(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

/// The names of flannel's tables.
fn tables(namespace: &Namespace) -> String {
    let tables = shell(namespace, "nft list tables");
    let names = tables.split_whitespace().filter(|word| word.starts_with("flannel-"));
    names.collect::<Vec<_>>().join(" ")
}

fn shell(namespace: &Namespace, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-ec", script]);
    let output = namespace.run(move || command.output()).unwrap().unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

async fn eventually(holds: impl Fn() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not hold after 5 s");
}

/// Runs a test while a task is polled beside it.
fn block_on_both(task: impl Future<Output = std::convert::Infallible>, test: impl Future<Output = ()>) {
    block_on(async {
        tokio::select! {
            never = task => match never {},
            () = test => {}
        }
    });
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await.expect("in time") })
}
