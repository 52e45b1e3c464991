//! Daemons that are killed, and their next start.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use flannel_core::{BackendAttrs, BackendType, Json, Lease, SubnetKey, SubnetRegistry};
use flannel_netlink::{IpFamily, Mac, Netlink, Route, WriteRequest};
use flannel_registry::{Etcd3Options, Etcd3Registry};
use flannel_testing::{OverlayState, eventually};
use ipnet::{IpNet, Ipv4Net};

use crate::cluster::{Cluster, PATIENCE, running_ping};

/// The expected kernel objects for peers, as `ip` and `bridge` show them.
fn tunnel_to(cluster: &Cluster, peers: &[usize]) -> Vec<String> {
    let mut kinds = [vec![], vec![], vec![]];
    for peer in peers {
        let (net, mac, public) = (cluster.subnet(*peer), cluster.mac(*peer), cluster.public(*peer));
        kinds[0].push(format!("{net} via {} dev flannel.1 onlink", net.addr()));
        kinds[1].push(format!("{} lladdr {mac} PERMANENT", net.addr()));
        kinds[2].push(format!("{mac} dst {public} self permanent"));
    }
    kinds.iter_mut().for_each(|lines| lines.sort());
    kinds.concat()
}

#[test]
fn the_start_after_a_kill_applies_the_changes_made_meanwhile() {
    let mut cluster = Cluster::with_spare(4, 1);
    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    assert_eq!(cluster.tunnel(0), tunnel_to(&cluster, &[1, 2, 3]));
    let ping = running_ping(&pods[0], &pods[1]);

    cluster.daemon(0).kill().unwrap();
    // Host 2 leaves.
    cluster.daemon(2).kill().unwrap();
    let gone = cluster.subnet(2);
    cluster.etcd.etcdctl(&["del", &format!("/coreos.com/network/subnets/{}-24", gone.addr())]).unwrap();
    // Host 3 loses its device, and creates another for the same subnet.
    let (subnet, mac) = (cluster.subnet(3), cluster.mac(3));
    cluster.daemon(3).kill().unwrap();
    cluster.lines(3, "ip link del flannel.1");
    std::fs::remove_file(cluster.subnet_file(3).with_extension("env.cache")).unwrap();
    let key = format!("/coreos.com/network/subnets/{}-24", subnet.addr());
    cluster.etcd.etcdctl(&["del", &key]).unwrap();
    cluster.start(3);
    cluster.wait_until_ready(3);
    assert_eq!(cluster.subnet(3), subnet);
    assert_ne!(cluster.mac(3), mac);
    // Host 4 joins.
    cluster.start(4);
    cluster.wait_until_ready(4);

    assert_ne!(cluster.tunnel(0), tunnel_to(&cluster, &[1, 3, 4]), "nobody is there to see it");
    cluster.start(0);
    cluster.wait_until_ready(0);
    eventually(PATIENCE, || {
        let (now, right) = (cluster.tunnel(0), tunnel_to(&cluster, &[1, 3, 4]));
        if now == right { Ok(()) } else { Err(format!("{now:#?} instead of {right:#?}")) }
    })
    .unwrap();
    ping.wait_for_replies(20, PATIENCE).unwrap();
    let report = ping.stop();
    assert_eq!(report.lost_count(), 0, "{report}");
}

/// Peers that exist only in the registry.
struct RegistryPeers {
    registry: Etcd3Registry,
    runtime: tokio::runtime::Runtime,
    leases: BTreeMap<u8, (Lease, Mac)>,
    macs: u32,
}

const REGISTRY_PEERS: u8 = 200;

impl RegistryPeers {
    fn new(cluster: &Cluster) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut options = Etcd3Options::default();
        options.endpoints = vec![cluster.etcd.client_url()];
        let mut crowd = Self {
            registry: Etcd3Registry::new(options).unwrap(),
            runtime,
            leases: BTreeMap::new(),
            macs: 0,
        };
        crowd.join(cluster, 0..REGISTRY_PEERS);
        crowd
    }

    fn join(&mut self, cluster: &Cluster, peers: impl IntoIterator<Item = u8>) {
        for n in peers {
            self.macs += 1;
            let [_, a, b, c] = self.macs.to_be_bytes();
            let mac = Mac([0x0e, 7, 0, a, b, c]);
            let data = Json::parse(&format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)).unwrap();
            let attrs = BackendAttrs::new(BackendType::VXLAN)
                .with_data(Some(data))
                .at(Ipv4Addr::new(172, 16, 0, n).into());
            let create = self.registry.create(subnet(n), &attrs, Duration::from_secs(86_400));
            let lease = cluster.lab.switch().run(|| self.runtime.block_on(create)).unwrap().unwrap();
            self.leases.insert(n, (lease, mac));
        }
    }

    fn leave(&mut self, cluster: &Cluster, peers: &[u8]) {
        for n in peers {
            let (lease, _) = self.leases.remove(n).unwrap();
            let delete = self.registry.delete(&lease);
            cluster.lab.switch().run(|| self.runtime.block_on(delete)).unwrap().unwrap();
        }
    }
}

/// From 10.5.0.0/24 on; the two hosts have subnets above.
fn subnet(n: u8) -> SubnetKey {
    SubnetKey::from(Ipv4Net::new(Ipv4Addr::new(10, 5, n, 0), 24).unwrap())
}

#[test]
fn a_kill_at_any_moment_is_completed_by_the_next_start_without_packet_loss() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cluster = Cluster::new(2);
    cluster.configure(
        r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.240.0","SubnetMax":"10.5.250.0","Backend":{"Type":"vxlan"}}"#,
    );
    cluster.start_all();
    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    let mut crowd = RegistryPeers::new(&cluster);
    let everybody = usize::from(REGISTRY_PEERS) + 1;
    eventually(PATIENCE, || cluster.routes(0).len() == everybody).unwrap();
    let ping = running_ping(&pods[0], &pods[1]);
    let host = cluster.lab.hosts[0].namespace.clone();
    let mut netlink = Netlink::open_in(&host).unwrap();
    for _ in 0..20 {
        cluster.daemon(0).kill().unwrap();
        // While no daemon runs, peers leave and join, and objects are removed.
        let mut some: Vec<u8> = crowd.leases.keys().copied().collect();
        random.shuffle(&mut some);
        some.truncate(6);
        crowd.leave(&cluster, &some);
        crowd.join(&cluster, some.into_iter().take(random.usize(..=6)));
        remove_some(&mut netlink, &mut random);
        cluster.start(0);
        std::thread::sleep(Duration::from_micros(random.u64(..150_000)));
    }
    cluster.wait_until_ready(0);
    let own = cluster.subnet(0);
    let other = (cluster.subnet(1), cluster.mac(1), cluster.public(1).parse::<IpAddr>().unwrap());
    let crowd = crowd.leases.iter().map(|(n, (lease, mac))| {
        (IpNet::V4(lease.subnet.v4().unwrap()), *mac, IpAddr::from(Ipv4Addr::new(172, 16, 0, *n)))
    });
    let right = desired(own, &read(&mut netlink), crowd.chain([other]));
    eventually(PATIENCE, || {
        let differences = read(&mut netlink).differences(&right);
        if differences.is_empty() { Ok(()) } else { Err(format!("seed {seed}: {differences:#?}")) }
    })
    .unwrap();
    ping.wait_for_replies(20, PATIENCE).unwrap();
    let report = ping.stop();
    assert_eq!(report.lost_count(), 0, "seed {seed}: {report}");
}

fn read(netlink: &mut Netlink) -> OverlayState {
    OverlayState::read(netlink, "flannel.1", IpFamily::V4, |_| false).unwrap()
}

fn desired(
    own: IpNet,
    now: &OverlayState,
    peers: impl Iterator<Item = (IpNet, Mac, IpAddr)>,
) -> OverlayState {
    let mut desired = OverlayState {
        device: now.device.clone(),
        addresses: [IpNet::from(own.addr())].into(),
        ..OverlayState::default()
    };
    for (net, mac, public) in peers {
        desired.neighbours.insert((net.addr(), mac));
        desired.fdb.insert((mac, public));
        desired.routes.push(Route { onlink: true, ..Route::by_gateway(net, net.addr()) });
    }
    desired.routes.sort_by_key(|route| (route.destination, route.gateway, route.index));
    desired
}

/// Removes about half of the objects of the registry's peers.
fn remove_some(netlink: &mut Netlink, random: &mut fastrand::Rng) {
    let index = netlink.link("flannel.1").unwrap().unwrap().index;
    let entries = netlink.fdb(index).unwrap().into_iter();
    let on_paper = |address: IpAddr| address.to_string().starts_with("172.16.");
    let entries: Vec<_> = entries.filter(|entry| entry.destination.is_some_and(on_paper)).collect();
    let macs: Vec<_> = entries.iter().map(|entry| entry.mac).collect();
    let mut writes: Vec<_> = entries.into_iter().map(WriteRequest::DeleteFdb).collect();
    for neighbour in netlink.neighbours(index, Some(IpFamily::V4)).unwrap() {
        if neighbour.mac.is_some_and(|mac| macs.contains(&mac)) {
            let net = IpNet::new(neighbour.address, 24).unwrap();
            writes.push(WriteRequest::DeleteRoute(Route::onlink(net, neighbour.address, index)));
            writes.push(WriteRequest::DeleteNeighbour(neighbour));
        }
    }
    writes.retain(|_| random.bool());
    netlink.apply(&writes).into_iter().for_each(Result::unwrap);
}
