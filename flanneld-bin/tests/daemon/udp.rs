//! The UDP backend, which is also what a configuration without `Backend` asks for.

use flannel_testing::eventually;

use crate::cluster::{Cluster, PATIENCE, check_ping};

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
