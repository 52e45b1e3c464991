//! Clusters with hosts of upstream flannel.
//!
//! An upstream host is simulated: its device, its record, and the three entries per peer, as its release writes them.

use std::net::IpAddr;

use flannel_testing::{PingOptions, Pod, eventually, ping};
use ipnet::IpNet;

use crate::cluster::{Cluster, DUAL, PATIENCE, VXLAN, check_ping, running_ping};
use crate::interfaces;

/// A release of upstream, by the form of its records.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Release {
    V0_11,
    V0_28,
}

/// An upstream host with the subnets of this number.
struct Upstream {
    host: usize,
    release: Release,
    number: u8,
    dual: bool,
}

impl Upstream {
    fn subnet(&self) -> IpNet {
        format!("10.5.{}.0/24", self.number).parse().unwrap()
    }

    fn subnet_v6(&self) -> IpNet {
        format!("fd10:5:0:{}::/64", self.number).parse().unwrap()
    }

    fn subnets(&self) -> Vec<IpNet> {
        [self.subnet()].into_iter().chain(self.dual.then(|| self.subnet_v6())).collect()
    }

    /// The MAC of a device. With v0.11 the kernel generates it.
    fn mac(&self, family: u8) -> String {
        format!("ce:9c:a9:08:{family:02x}:{:02x}", self.number)
    }

    fn key(&self) -> String {
        let v6 = if self.dual { format!("&{}-64", self.subnet_v6().addr()) } else { String::new() };
        format!("/coreos.com/network/subnets/{}-24{v6}", self.subnet().addr())
    }

    fn record(&self, cluster: &Cluster) -> String {
        let (public, mac) = (cluster.public(self.host), self.mac(4));
        match self.release {
            Release::V0_11 => {
                format!(
                    r#"{{"PublicIP":"{public}","BackendType":"vxlan","BackendData":{{"VtepMAC":"{mac}"}}}}"#
                )
            }
            Release::V0_28 if self.dual => {
                let (v6, mac_v6) = (cluster.lab.hosts[self.host].ipv6().unwrap(), self.mac(6));
                format!(
                    r#"{{"PublicIP":"{public}","PublicIPv6":"{v6}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"{mac_v6}"}}}}"#
                )
            }
            Release::V0_28 => format!(
                r#"{{"PublicIP":"{public}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
            ),
        }
    }

    /// Creates the devices.
    fn set_up(&self, cluster: &Cluster) {
        let public = cluster.public(self.host);
        // v0.28 sets the MTU, to the same value as the kernel for v0.11.
        let mut steps = vec![
            format!(
                "ip link add flannel.1 address {} txqueuelen 0 type vxlan id 1 dev eth0 local {public} dstport 8472 nolearning",
                self.mac(4)
            ),
            format!("ip address add {}/32 dev flannel.1", self.subnet().addr()),
            "ip link set flannel.1 up".to_owned(),
        ];
        if self.dual {
            let public = cluster.lab.hosts[self.host].ipv6().unwrap();
            steps.extend([
                format!(
                    "ip link add flannel-v6.1 address {} mtu 1430 txqueuelen 0 type vxlan id 1 dev eth0 local {public} dstport 8472 nolearning",
                    self.mac(6)
                ),
                format!("ip -6 address add {}/128 dev flannel-v6.1 nodad", self.subnet_v6().addr()),
                "ip link set flannel-v6.1 up".to_owned(),
            ]);
        }
        for step in steps {
            cluster.change(self.host, &step);
        }
    }

    /// Programs the peers of these leases, as (key, record).
    fn learn(&self, cluster: &Cluster, leases: &[(String, String)]) {
        for (key, record) in leases.iter().filter(|(key, _)| *key != self.key()) {
            let subnets = key.rsplit('/').next().unwrap();
            let nets: Vec<IpNet> =
                subnets.split('&').map(|text| text.replace('-', "/").parse().unwrap()).collect();
            for net in nets {
                let (device, public, data) = match net {
                    IpNet::V4(_) => ("flannel.1", member(record, "PublicIP"), "BackendData"),
                    IpNet::V6(_) => ("flannel-v6.1", member(record, "PublicIPv6"), "BackendV6Data"),
                };
                let mac = member(record.split_once(data).unwrap().1, "VtepMAC");
                let gateway = net.addr();
                let ip = if net.addr().is_ipv6() { "ip -6" } else { "ip" };
                for step in [
                    format!("{ip} neigh replace {gateway} lladdr {mac} dev {device} nud permanent"),
                    format!("bridge fdb replace {mac} dst {public} dev {device} self permanent"),
                    format!("{ip} route replace {net} via {gateway} dev {device} onlink"),
                ] {
                    cluster.change(self.host, &step);
                }
            }
        }
    }

    fn add_pod(&self, cluster: &Cluster) -> Pod {
        let mtu = if self.dual { 1430 } else { 1450 };
        cluster.lab.hosts[self.host].add_pod(&self.subnets(), mtu).unwrap()
    }
}

/// The value of a string member of a record.
fn member(record: &str, name: &str) -> String {
    let after = record.split_once(&format!("\"{name}\":\"")).unwrap().1;
    after.split_once('"').unwrap().0.to_owned()
}

/// Writes a record as v0.28 does: with a lease of a day.
fn put_v3(cluster: &Cluster, upstream: &Upstream) {
    let granted = cluster.etcd.etcdctl(&["lease", "grant", "86400"]).unwrap();
    let lease = granted.split_whitespace().nth(1).unwrap().to_owned();
    let (key, record) = (upstream.key(), upstream.record(cluster));
    cluster.etcd.etcdctl(&["put", &format!("--lease={lease}"), &key, &record]).unwrap();
}

/// Checks that every pod reaches every other over each family.
fn check_all(pods: &[Pod]) {
    for from in pods {
        for to in pods.iter().filter(|to| to.name != from.name).flat_map(|to| &to.addresses) {
            let to: IpAddr = *to;
            let answered = eventually(PATIENCE, || ping(&from.namespace, to, &PingOptions::default()));
            answered.unwrap_or_else(|error| panic!("{} to {to}: {error}", from.name));
        }
    }
}

fn upstream(host: usize, release: Release) -> Upstream {
    Upstream { host, release, number: 200 + u8::try_from(host).unwrap(), dual: false }
}

#[test]
fn upstream_hosts_of_every_release_are_reached_with_v3() {
    let mut cluster = Cluster::new(4);
    cluster.configure(VXLAN);
    let upstreams = [upstream(2, Release::V0_11), upstream(3, Release::V0_28)];
    // One joins before this daemon starts, the other after.
    upstreams[0].set_up(&cluster);
    put_v3(&cluster, &upstreams[0]);
    for host in [0, 1] {
        cluster.start(host);
        cluster.wait_until_ready(host);
    }
    upstreams[1].set_up(&cluster);
    put_v3(&cluster, &upstreams[1]);
    let leases = cluster.leases();
    assert_eq!(leases.len(), 4, "{leases:#?}");
    upstreams.iter().for_each(|upstream| upstream.learn(&cluster, &leases));
    let pods: Vec<_> = [0, 1]
        .map(|host| cluster.add_pod(host))
        .into_iter()
        .chain(upstreams.iter().map(|upstream| upstream.add_pod(&cluster)))
        .collect();
    check_all(&pods);
    assert_eq!(cluster.leases(), leases, "nobody writes what is not his");
}

#[test]
fn upstream_hosts_of_every_release_are_reached_with_v2() {
    let mut cluster = interfaces::cluster(4);
    interfaces::configure_v2(&cluster);
    // v0.17 writes to v2 the records that v0.28 writes to v3.
    let upstreams = [upstream(2, Release::V0_11), upstream(3, Release::V0_28)];
    for upstream in &upstreams {
        upstream.set_up(&cluster);
        let (key, record) = (upstream.key(), upstream.record(&cluster));
        cluster.etcdctl_v2(&["mk", "--ttl", "86400", &key, &record]);
    }
    for host in [0, 1] {
        cluster.start(host);
        cluster.wait_until_ready(host);
    }
    let listed = cluster.etcdctl_v2(&["ls", "/coreos.com/network/subnets"]);
    let leases: Vec<_> = listed
        .lines()
        .map(|key| (key.to_owned(), cluster.etcdctl_v2(&["get", key]).trim_end().to_owned()))
        .collect();
    assert_eq!(leases.len(), 4, "{leases:#?}");
    upstreams.iter().for_each(|upstream| upstream.learn(&cluster, &leases));
    let pods: Vec<_> = [0, 1]
        .map(|host| cluster.add_pod(host))
        .into_iter()
        .chain(upstreams.iter().map(|upstream| upstream.add_pod(&cluster)))
        .collect();
    check_all(&pods);
}

#[test]
fn dual_stack_upstream_hosts_are_reached_over_both_families() {
    let mut cluster = Cluster::new(2);
    cluster.configure(DUAL);
    let other = Upstream { dual: true, ..upstream(1, Release::V0_28) };
    other.set_up(&cluster);
    put_v3(&cluster, &other);
    cluster.start(0);
    cluster.wait_until_ready(0);
    other.learn(&cluster, &cluster.leases());
    check_all(&[cluster.add_dual_pod(0), other.add_pod(&cluster)]);
}

#[test]
fn a_host_that_switches_from_upstream_to_this_daemon_keeps_its_state_without_packet_loss() {
    for release in [Release::V0_11, Release::V0_28] {
        let mut cluster = Cluster::new(2);
        cluster.configure(VXLAN);
        let before = [upstream(0, release), upstream(1, release)];
        for host in &before {
            host.set_up(&cluster);
            put_v3(&cluster, host);
        }
        let leases = cluster.leases();
        before.iter().for_each(|host| host.learn(&cluster, &leases));
        // A peer that left while no daemon ran; upstream leaves its entries.
        for step in [
            "ip neigh add 10.5.66.0 lladdr 0e:00:00:00:00:66 dev flannel.1 nud permanent",
            "bridge fdb add 0e:00:00:00:00:66 dev flannel.1 dst 192.168.64.66 self permanent",
            "ip route add 10.5.66.0/24 via 10.5.66.0 dev flannel.1 onlink",
        ] {
            cluster.change(0, step);
        }
        let pods = [before[0].add_pod(&cluster), before[1].add_pod(&cluster)];
        check_ping(&pods[0], &pods[1]);
        let (device, ping) = (cluster.device(0), running_ping(&pods[0], &pods[1]));
        cluster.start(0);
        cluster.wait_until_ready(0);
        assert_eq!(cluster.device(0), device, "{release:?}");
        assert_eq!(cluster.subnet(0), before[0].subnet(), "{release:?}");
        // Stale entries are removed last.
        let entries = eventually(PATIENCE, || {
            let entries = cluster.tunnel(0);
            if entries.len() == 3 { Ok(entries) } else { Err(format!("{release:?} {entries:#?}")) }
        });
        let entries = entries.unwrap();
        ping.wait_for_replies(20, PATIENCE).unwrap();
        let report = ping.stop();
        assert_eq!(report.lost_count(), 0, "{release:?} {report:?}");
        assert!(!entries.iter().any(|line| line.contains("10.5.66.0")), "{release:?} {entries:#?}");
        let keys =
            |leases: &[(String, String)]| leases.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&cluster.leases()), keys(&leases), "{release:?}");
    }
}
