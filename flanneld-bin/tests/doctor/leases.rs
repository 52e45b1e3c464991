//! Leases that are lost, left over, or lead nowhere.

use std::time::Duration;

use flannel_testing::eventually;

use crate::cluster::PATIENCE;
use crate::site::{Site, what};

fn revoke(site: &Site) {
    let key = site.cluster.leases().into_iter().find(|(_, record)| record.contains(&site.cluster.public(0)));
    site.cluster.etcd.etcdctl(&["del", &key.unwrap().0]).unwrap();
}

/// What is remembered is written within a second.
fn remembers(site: &Site) {
    let cache = site.cluster.subnet_file(0).with_extension("env.cache");
    eventually(PATIENCE, || cache.exists()).unwrap();
    std::thread::sleep(Duration::from_millis(1200));
}

#[test]
fn a_lease_that_ran_out_or_went_to_another_host_is_taken_anew_by_the_daemon() {
    let mut site = Site::running(1);
    remembers(&site);
    for (id, taken) in [("lease-expired", false), ("lease-taken", true)] {
        let before = site.ids();
        let subnet = site.cluster.subnet(0);
        site.cluster.daemon(0).terminate(PATIENCE).unwrap();
        revoke(&site);
        if taken {
            site.lease(&subnet.to_string().replace('/', "-"), "192.168.64.254");
        }
        let finding = site.finds(id);
        assert!(what(&finding).contains(&subnet.to_string().replace('/', "-")), "{finding:#}");
        site.apply(&finding);
        assert!(site.asked().ends_with("systemctl start flanneld\n"));
        site.cluster.start(0);
        site.cluster.wait_until_ready(0);
        site.is_as(&before, id);
        assert_eq!(site.cluster.subnet(0) == subnet, !taken);
    }
}

#[test]
fn leases_that_overlap_or_share_an_address_are_reduced_to_one() {
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
fn hosts_that_are_gone_or_cannot_be_sent_to_are_named() {
    let site = Site::running(1);
    let finding = site.cycle("host-unreachable", || site.lease("10.5.251.0-24", "192.168.64.99"));
    assert!(
        what(&finding).contains("192.168.64.99") && what(&finding).contains("never runs out"),
        "{finding:#}"
    );

    // The lab has no default route; the switch leads on.
    site.shell("ip route add 203.0.113.0/24 via 192.168.64.254");
    let finding = site.cycle("host-no-route", || site.lease("10.5.252.0-24", "198.51.100.7"));
    assert!(what(&finding).contains("198.51.100.7"), "{finding:#}");
}
