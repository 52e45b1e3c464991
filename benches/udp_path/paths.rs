//! Two hosts, and four paths between them.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Instant;

use flannel_backend_udp::{OpenUdp, UdpCounters};
use flannel_backend_vxlan::{OpenVxlan, external_interface};
use flannel_core::{
    Backend, Dirty, Lease, LeaseChange, NetworkConfig, OpenBackend, OpenRequest, PeerSet, Revision,
    SyncRequest, Term,
};
use flannel_netlink::{Address, Namespace, Netlink};
use flannel_testing::{Lab, LabOptions, PlainProxy, PlainProxyOptions, eventually, ping};
use ipnet::Ipv4Net;

pub(crate) const RAW: &str = "raw link";
pub(crate) const VXLAN: &str = "kernel vxlan";
pub(crate) const UDP: &str = "udp backend";
pub(crate) const PLAIN: &str = "one packet a call";

/// A path from the first host to the second.
pub(crate) struct Path {
    pub(crate) name: &'static str,
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
}

pub(crate) struct Site {
    pub(crate) hosts: [Namespace; 2],
    pub(crate) paths: Vec<Path>,
    /// A host that is not a peer, with addresses from 192.168.64.100 on.
    pub(crate) strangers: Namespace,
    counters: Vec<UdpCounters>,
    _backends: Vec<Box<dyn Backend>>,
    _proxies: Vec<PlainProxy>,
    _lab: Lab,
}

impl Site {
    pub(crate) fn new(control: Option<&str>) -> Self {
        let lab = Lab::new(&LabOptions { hosts: 3, ..LabOptions::default() }).unwrap();
        let hosts = [0, 1].map(|host: usize| lab.hosts[host].namespace.clone());
        for (host, control) in hosts.iter().filter_map(|host| Some((host, control?))) {
            host.write_sysctl("net/ipv4/tcp_congestion_control", control).unwrap();
        }
        let public = [0, 1].map(|host: usize| lab.hosts[host].ipv4().unwrap());
        let mut counters = Vec::new();
        let mut backends = overlay(&hosts, 5, "vxlan", |host| Box::new(OpenVxlan::new(host.clone())));
        backends.extend(overlay(&hosts, 6, "udp", |host| {
            let open = OpenUdp::new(host.clone());
            counters.push(open.counters());
            Box::new(open)
        }));
        let proxies = [0, 1].map(|host: usize| plain(&hosts[host], public[host], host, public[1 - host]));
        let path = |name, network: u8| Path { name, from: device(network, 0), to: device(network, 1) };
        let raw = Path { name: RAW, from: public[0].into(), to: public[1].into() };
        let paths = vec![raw, path(VXLAN, 5), path(UDP, 6), path(PLAIN, 7)];
        for path in &paths {
            eventually(std::time::Duration::from_secs(10), || {
                ping(&hosts[0], path.to, &Default::default()).map_err(|error| error.to_string())
            })
            .unwrap();
        }
        let strangers = lab.hosts[2].namespace.clone();
        add_addresses(&strangers);
        Self { hosts, paths, strangers, counters, _backends: backends, _proxies: proxies.into(), _lab: lab }
    }

    /// Describes the counters of the UDP backends.
    pub(crate) fn counts(&self) -> Vec<String> {
        let line = |(host, counters): (usize, &UdpCounters)| {
            let counts = counters.read();
            let peer = counts.peers.values().next().copied().unwrap_or_default();
            format!(
                "host {}: {} packets in {} sends, {} reads; {} packets received, {} writes; dropped {:?}, by the kernel {}",
                host + 1,
                peer.sent_packets,
                peer.sent_bursts,
                counts.reads,
                peer.received_packets,
                counts.writes,
                counts.drops,
                counts.kernel_drops
            )
        };
        self.counters.iter().enumerate().map(line).collect()
    }
}

/// Creates a backend on each host for the network 10.`network`.0.0/16.
fn overlay(
    hosts: &[Namespace; 2],
    network: u8,
    backend: &str,
    mut opener: impl FnMut(&Namespace) -> Box<dyn OpenBackend>,
) -> Vec<Box<dyn Backend>> {
    let config = format!(r#"{{"Network":"10.{network}.0.0/16","Backend":{{"Type":"{backend}"}}}}"#);
    let config = NetworkConfig::parse(&config).unwrap();
    let mut opened = Vec::new();
    for (number, host) in (1..).zip(hosts) {
        let external = external_interface(host, "eth0").unwrap();
        let request = OpenRequest::new(&config, &external);
        let backend = opener(host).open(request).unwrap();
        let lease = Lease {
            subnet: format!("10.{network}.{number}.0-24").parse().unwrap(),
            attrs: backend.attrs().at(external.public.used_by(&config)),
            revision: Revision(1),
            term: Term::Limited,
        };
        opened.push((backend, lease));
    }
    let leases: Vec<Lease> = opened.iter().map(|(_, lease)| lease.clone()).collect();
    for (backend, own) in &mut opened {
        let mut peers = PeerSet::default();
        let others = leases.iter().filter(|lease| lease.subnet != own.subnet);
        peers.extend(others.map(|lease| LeaseChange::Put(Arc::new(lease.clone()))));
        peers.complete();
        backend.configure(own).unwrap();
        let request = SyncRequest::new(&peers, &Dirty::All, Instant::now());
        assert_eq!(backend.sync(request).failed, []);
    }
    opened.into_iter().map(|(backend, _)| backend).collect()
}

fn add_addresses(strangers: &Namespace) {
    let mut netlink = Netlink::open_in(strangers).unwrap();
    let index = netlink.link("eth0").unwrap().unwrap().index;
    for last in 100..110 {
        let net = Ipv4Net::new(Ipv4Addr::new(192, 168, 64, last), 24).unwrap();
        netlink.add_address(&Address::new(index, net.into())).unwrap();
    }
}

/// Creates the path with one packet per system call, for the network 10.7.0.0/16.
fn plain(host: &Namespace, local: Ipv4Addr, number: usize, other: Ipv4Addr) -> PlainProxy {
    let subnet = |number: usize| format!("10.7.{}.0/24", number + 1).parse().unwrap();
    let options = PlainProxyOptions {
        network: "10.7.0.0/16".parse().unwrap(),
        subnet: subnet(number),
        local: SocketAddrV4::new(local, 8287),
        mtu: 1472,
        routes: vec![(subnet(1 - number), other)],
    };
    PlainProxy::start(host, options).unwrap()
}

/// Returns the address of a host's device in the network 10.`network`.0.0/16.
fn device(network: u8, host: u8) -> IpAddr {
    IpAddr::from([10, network, host + 1, 0])
}
