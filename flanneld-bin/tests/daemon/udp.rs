//! The UDP backend, which is also what a configuration without `Backend` asks for.

use flannel_testing::{PingOptions, Pod, eventually, ping};

use crate::cluster::{Cluster, PATIENCE, check_ping};
use crate::observed::run;

#[test]
fn without_a_backend_hosts_reach_each_other_over_udp() {
    for config in
        [r#"{"Network":"10.5.0.0/16"}"#, r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":7890}}"#]
    {
        let mut cluster = Cluster::new(2);
        cluster.configure(config);
        cluster.start_all();
        assert_eq!(cluster.subnet_env(0, "FLANNEL_MTU"), "1472");
        for (_, record) in cluster.leases() {
            assert!(
                record.contains(r#"","PublicIPv6":null,"NodeID":""#) && !record.contains("Backend"),
                "{record}"
            );
        }
        let pods = [0, 1].map(|host| cluster.add_pod(host));
        check_ping(&pods[0], &pods[1]);
        check_ping(&pods[1], &pods[0]);

        check_what_is_counted(&cluster, &pods[0]);

        // What a person removes comes back, and the device ends with the daemon.
        cluster.lines(0, "ip link del flannel0");
        let routes = |cluster: &Cluster| cluster.lines(0, "ip route show dev flannel0 10.5.0.0/16");
        let is_back = || cluster.lines(0, "ip -o link").iter().any(|line| line.contains("flannel0"));
        eventually(PATIENCE, || is_back() && routes(&cluster).len() == 1).unwrap();
        check_ping(&pods[0], &pods[1]);
        cluster.daemons[0] = None;
        eventually(PATIENCE, || !cluster.lines(0, "ip -o link").iter().any(|line| line.contains("flannel0")))
            .unwrap();
        cluster.start(0);
        cluster.wait_until_ready(0);
        check_ping(&pods[0], &pods[1]);
    }
}

/// What was sent and received is told of each peer, and what was dropped by reason.
fn check_what_is_counted(cluster: &Cluster, pod: &Pod) {
    let nobody = "10.5.255.254".parse().unwrap();
    ping(&pod.namespace, nobody, &PingOptions::default()).expect_err("no host has this subnet");
    let told = eventually(PATIENCE, || {
        let (_, json, _) = run(cluster, 0, &["status", "-json"]);
        let status: serde_json::Value = serde_json::from_str(&json).unwrap();
        let number = |value: &serde_json::Value| value.as_u64().unwrap_or_default();
        let peer = &status["peers"]["each"][0]["traffic"];
        let counted =
            [&peer["sent_packets"], &peer["received_packets"], &status["traffic"]["drops"]["no_route"]];
        if counted.into_iter().all(|value| number(value) > 0) { Ok(status) } else { Err(json) }
    });
    let device = &told.unwrap()["devices"][0];
    assert_eq!((&device["name"], &device["kind"]), (&"flannel0".into(), &"tun".into()));
}
