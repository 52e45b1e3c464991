//! Hosts that reach each other without a tunnel: host-gw, and VXLAN with `DirectRouting`.

use flannel_testing::{PingOptions, eventually, ping};
use ipnet::IpNet;

use crate::cluster::{Cluster, HOST_GW, PATIENCE, check_ping};

/// The host's overlay routes.
fn routes(cluster: &Cluster, host: usize) -> Vec<String> {
    let overlay = |line: &String| line.starts_with("10.5.") && line.contains(" via ");
    cluster.lines(host, "ip route").into_iter().filter(overlay).collect()
}

fn check_pods(cluster: &Cluster) {
    let pods: Vec<_> = (0..cluster.daemons.len()).map(|host| cluster.add_pod(host)).collect();
    for from in &pods {
        for to in pods.iter().filter(|to| to.name != from.name) {
            check_ping(from, to);
        }
    }
}

#[test]
fn host_gw_routes_between_hosts_on_one_link() {
    let mut cluster = Cluster::new(3);
    cluster.configure(HOST_GW);
    cluster.start_all();
    let mut expected = [1, 2]
        .map(|host| format!("{} via {} dev eth0 proto 241", cluster.subnet(host), cluster.public(host)));
    expected.sort();
    eventually(PATIENCE, || {
        let mut routes = routes(&cluster, 0);
        routes.sort();
        if routes == expected { Ok(()) } else { Err(format!("{routes:?}")) }
    })
    .unwrap();
    assert_eq!(cluster.subnet_env(0, "FLANNEL_MTU"), "1500");
    for (_, record) in cluster.leases() {
        assert!(record.contains(r#","PublicIPv6":null,"BackendType":"host-gw","NodeID":""#), "{record}");
    }
    check_pods(&cluster);

    // The routes stay without the daemon, and its next start restores a removed one.
    cluster.daemons[0] = None;
    let mut left = routes(&cluster, 0);
    left.sort();
    assert_eq!(left, expected);
    cluster.lines(0, &format!("ip route del {}", cluster.subnet(1)));
    cluster.start(0);
    eventually(PATIENCE, || routes(&cluster, 0).len() == 2).unwrap();
    cluster.lines(0, &format!("ip route del {}", cluster.subnet(1)));
    eventually(PATIENCE, || routes(&cluster, 0).len() == 2).unwrap();
}

#[test]
fn vxlan_with_direct_routing_uses_the_tunnel_only_across_the_router() {
    let mut cluster = Cluster::on_segments(3, 2);
    cluster.configure(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#);
    cluster.start_all();
    let (far, near) = (cluster.subnet(1), cluster.subnet(2));
    let mut expected = [
        format!("{far} via {} dev flannel.1 onlink", far.addr()),
        format!("{near} via {} dev eth0 proto 241", cluster.public(2)),
    ];
    expected.sort();
    eventually(PATIENCE, || {
        let mut routes = routes(&cluster, 0);
        routes.sort();
        if routes == expected { Ok(()) } else { Err(format!("{routes:?}")) }
    })
    .unwrap();
    assert_eq!(cluster.lines(0, "bridge fdb show dev flannel.1").len(), 1);
    assert_eq!(cluster.subnet_env(0, "FLANNEL_MTU"), "1450");
    check_pods(&cluster);
}

#[test]
fn host_gw_behind_a_nat_is_an_error() {
    let mut cluster = Cluster::new(1);
    cluster.configure(HOST_GW);
    cluster.start_with(0, &["-public-ip=203.0.113.7"]);
    let line = cluster.daemon(0).wait_for_line("your PublicIP differs from interface IP", PATIENCE).unwrap();
    assert!(line.starts_with('E') && line.contains("Error registering network: "), "{line}");
    let daemon = cluster.daemon(0);
    let status = eventually(PATIENCE, || daemon.exit_status().ok().flatten()).unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_peer_that_host_gw_cannot_reach_is_logged() {
    let mut cluster = Cluster::on_segments(3, 2);
    cluster.configure(HOST_GW);
    cluster.start_all();
    let far = cluster.subnet(1);
    let reason = "192.168.65.2 is not on the link of eth0, which host-gw requires";
    let line = cluster.daemon(0).wait_for_line(reason, PATIENCE).unwrap();
    assert!(line.starts_with('W') && line.contains(&format!("peer {}-24", far.addr())), "{line}");
    eventually(PATIENCE, || (routes(&cluster, 0).len() == 1).then_some(())).unwrap();
    let near = routes(&cluster, 0);
    assert!(near[0].starts_with(&cluster.subnet(2).to_string()), "{near:?}");
}

#[test]
fn dual_stack_direct_routing_uses_the_tunnel_only_across_the_router() {
    let mut cluster = Cluster::on_segments(3, 2);
    cluster.configure(
        r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd10:5::/48","Backend":{"Type":"vxlan","DirectRouting":true}}"#,
    );
    cluster.start_all();
    let pods: Vec<_> = (0..3).map(|host| cluster.add_dual_pod(host)).collect();
    for from in &pods {
        for to in pods.iter().filter(|to| to.name != from.name).flat_map(|to| &to.addresses) {
            let answered = eventually(PATIENCE, || ping(&from.namespace, *to, &PingOptions::default()));
            answered.unwrap_or_else(|error| panic!("{} to {to}: {error}", from.name));
        }
    }
    let v6 = cluster.lines(0, "ip -6 route");
    let to = |host: usize| cluster.subnet_env(host, "FLANNEL_IPV6_SUBNET").parse::<IpNet>().unwrap().trunc();
    let expected = [
        format!("{} via {} dev flannel-v6.1 metric 1024 onlink pref medium", to(1), to(1).addr()),
        format!("{} via fd00:64::3 dev eth0 proto 241 metric 1024 pref medium", to(2)),
    ];
    for route in &expected {
        assert!(v6.contains(route), "{route} in {v6:#?}");
    }
}
