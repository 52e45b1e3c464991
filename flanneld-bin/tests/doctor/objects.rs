//! Findings about kernel objects.

use flannel_testing::eventually;

use crate::cluster::{Cluster, PATIENCE, check_ping};
use crate::site::{Site, what};

#[test]
fn missing_and_stale_objects_are_found_and_a_daemon_repairs_them() {
    let mut site = Site::running(2);
    let pods = [site.cluster.add_pod(0), site.cluster.add_pod(1)];
    let (other, mac) = (site.cluster.subnet(1), site.cluster.mac(1));
    for (id, fault, named) in [
        ("objects-missing", format!("ip route delete {other}"), format!("route {other}")),
        ("objects-missing", format!("bridge fdb del {mac} dev flannel.1"), format!("FDB entry {mac}")),
        (
            "objects-missing",
            format!("ip neigh del {} dev flannel.1", other.addr()),
            format!("neighbour {}", other.addr()),
        ),
        ("objects-missing", "ip link delete flannel.1".to_owned(), "device flannel.1".to_owned()),
        (
            "objects-stale",
            "ip neigh add 10.5.253.0 lladdr 0e:2a:00:00:00:09 dev flannel.1 nud permanent".to_owned(),
            "neighbour 10.5.253.0".to_owned(),
        ),
    ] {
        let before = site.ids();
        assert!(before.is_empty(), "{before:?}");
        site.cluster.daemon(0).kill().unwrap();
        site.shell(&fault);
        let finding = site.wait_for_finding(id);
        assert!(what(&finding).contains(&named), "{fault}: {finding:#}");
        site.apply(&finding);
        assert!(site.calls().ends_with("systemctl start flanneld\n"));
        site.cluster.start(0);
        site.cluster.wait_until_ready(0);
        site.wait_until_cured(&before, id);
        check_ping(&pods[0], &pods[1]);
    }
}

#[test]
fn a_route_that_a_foreign_route_blocks_is_found() {
    let site = Site::running(2);
    let other = site.cluster.subnet(1);
    // The smaller metric takes precedence, and the daemon does not touch foreign routes.
    let route = format!("ip route replace {other} via 192.168.64.254 proto static");
    site.shell(&format!("ip route delete {other}; {route}"));
    let found = eventually(PATIENCE, || {
        let report = site.doctor();
        let is_it = report.ids().into_iter().eq(["network-overlaps-route", "objects-missing"]);
        if is_it { Ok(report) } else { Err(format!("{:#?}", report.findings)) }
    });
    site.apply(found.unwrap().finding("network-overlaps-route").unwrap());
    eventually(PATIENCE, || site.ids().is_empty()).unwrap();
}

#[test]
fn a_peer_with_an_incomplete_record_is_found() {
    let site = Site::of(Cluster::running(1));
    let finding = site.cycle("peer-unusable", || {
        let record = r#"{"PublicIP":"192.168.64.254","BackendType":"vxlan"}"#;
        site.cluster.etcd.etcdctl(&["put", "/coreos.com/network/subnets/10.5.250.0-24", record]).unwrap();
    });
    assert!(what(&finding).contains("10.5.250.0") && what(&finding).contains("BackendData"), "{finding:#}");
}
