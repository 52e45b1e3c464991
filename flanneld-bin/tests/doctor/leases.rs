//! Findings about lost, stale and unreachable leases.

use std::time::Duration;

use flannel_testing::eventually;

use crate::cluster::PATIENCE;
use crate::site::{Site, what};

fn revoke(site: &Site) {
    let key = site.cluster.leases().into_iter().find(|(_, record)| record.contains(&site.cluster.public(0)));
    site.cluster.etcd.etcdctl(&["del", &key.unwrap().0]).unwrap();
}

/// Waits for the cache, which is written within a second.
fn wait_for_cache(site: &Site) {
    let cache = site.cluster.subnet_file(0).with_extension("env.cache");
    eventually(PATIENCE, || cache.exists()).unwrap();
    std::thread::sleep(Duration::from_millis(1200));
}

#[test]
fn an_expired_or_taken_lease_is_reacquired_by_the_daemon() {
    let mut site = Site::running(1);
    wait_for_cache(&site);
    for (id, taken) in [("lease-expired", false), ("lease-taken", true)] {
        let before = site.ids();
        let subnet = site.cluster.subnet(0);
        site.cluster.daemon(0).terminate(PATIENCE).unwrap();
        revoke(&site);
        if taken {
            site.lease(&subnet.to_string().replace('/', "-"), "192.168.64.254");
        }
        let finding = site.wait_for_finding(id);
        assert!(what(&finding).contains(&subnet.to_string().replace('/', "-")), "{finding:#}");
        site.apply(&finding);
        assert!(site.calls().ends_with("systemctl start flanneld\n"));
        site.cluster.start(0);
        site.cluster.wait_until_ready(0);
        site.wait_until_cured(&before, id);
        assert_eq!(site.cluster.subnet(0) == subnet, !taken);
    }
}

#[test]
fn overlapping_leases_and_shared_addresses_are_reduced_to_one() {
    let site = Site::running(2);
    let (own, public) = (site.cluster.subnet(0), site.cluster.public(0));
    let finding = site.cycle("public-address-shared", || site.lease("10.5.250.0-24", &public));
    assert!(what(&finding).contains(&public), "{finding:#}");
    let wide = format!("{}-20", ipnet::IpNet::new(own.addr(), 20).unwrap().trunc().addr());
    site.cycle("lease-overlap", || site.lease(&wide, "192.168.64.254"));
    let left: Vec<_> = site.cluster.leases();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn hosts_that_are_gone_or_unroutable_are_named() {
    let site = Site::running(1);
    let finding = site.cycle("host-unreachable", || site.lease("10.5.251.0-24", "192.168.64.99"));
    assert!(
        what(&finding).contains("192.168.64.99") && what(&finding).contains("never expires"),
        "{finding:#}"
    );

    // The lab has no default route; the switch is the gateway.
    site.shell("ip route add 203.0.113.0/24 via 192.168.64.254");
    let finding = site.cycle("host-no-route", || site.lease("10.5.252.0-24", "198.51.100.7"));
    assert!(what(&finding).contains("198.51.100.7"), "{finding:#}");
}
