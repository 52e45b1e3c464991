//! What the kernel holds for the network.

use flannel_testing::eventually;

use crate::cluster::{Cluster, PATIENCE, check_ping};
use crate::site::{Site, what};

#[test]
fn objects_that_are_gone_or_left_over_while_no_daemon_runs_are_named_and_put_right_by_one() {
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
        let finding = site.finds(id);
        assert!(what(&finding).contains(&named), "{fault}: {finding:#}");
        site.apply(&finding);
        assert!(site.asked().ends_with("systemctl start flanneld\n"));
        site.cluster.start(0);
        site.cluster.wait_until_ready(0);
        site.is_as(&before, id);
        check_ping(&pods[0], &pods[1]);
    }
}

#[test]
fn what_a_daemon_cannot_put_right_is_named_with_what_is_in_its_way() {
    let site = Site::running(2);
    let other = site.cluster.subnet(1);
    // The smaller metric counts, and the daemon leaves what is not its own.
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
fn a_peer_whose_record_does_not_say_how_to_reach_it_is_named() {
    let site = Site::of(Cluster::running(1));
    let finding = site.cycle("peer-unusable", || {
        let record = r#"{"PublicIP":"192.168.64.254","BackendType":"vxlan"}"#;
        site.cluster.etcd.etcdctl(&["put", "/coreos.com/network/subnets/10.5.250.0-24", record]).unwrap();
    });
    assert!(what(&finding).contains("10.5.250.0") && what(&finding).contains("BackendData"), "{finding:#}");
}
