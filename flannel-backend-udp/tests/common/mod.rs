//! Shared by the kernel tests: a lab host that runs the backend.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::print_stdout, reason = "a long run prints what it sent")]
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_backend_udp::{Offloads, OpenUdp, UdpCounters, UdpCounts};
use flannel_backend_vxlan::external_interface;
use flannel_core::{
    Backend, BackendError, Dirty, ExternalInterface, Lease, LeaseAttrs, LeaseChange, NetworkConfig,
    OpenBackend, OpenRequest, PeerSet, Revision, SyncReport, SyncRequest, Term, chain,
};
use flannel_netlink::Namespace;
use flannel_testing::{
    Lab, LabOptions, PingOptions, Pod, datagrams_in_flight, eventually, output_in, ping, program, transfer,
};
use ipnet::IpNet;

/// The longest wait for asynchronous work of the kernel.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A period without events that counts as quiet.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

pub(crate) const IPV4: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#;

pub(crate) const BOTH: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48",
    "Backend":{"Type":"udp"}}"#;

/// A lab host that runs the backend.
pub(crate) struct TestHost {
    pub(crate) namespace: Namespace,
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) own: Lease,
    pub(crate) peers: PeerSet,
    pub(crate) counters: UdpCounters,
    runtime: tokio::runtime::Runtime,
}

/// The options of a test host.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) config: &'static str,
    pub(crate) interface: &'static str,
    pub(crate) offloads: Offloads,
}

impl Default for Setup {
    fn default() -> Self {
        Self { config: IPV4, interface: "eth0", offloads: Offloads::default() }
    }
}

impl TestHost {
    /// Opens the backend and configures it with the lease of host `n`.
    pub(crate) fn start(namespace: &Namespace, n: u8, setup: Setup) -> Self {
        Self::start_with(OpenUdp::new(namespace.clone()), namespace, n, setup)
    }

    /// The same, with a given opener.
    pub(crate) fn start_with(opener: OpenUdp, namespace: &Namespace, n: u8, setup: Setup) -> Self {
        let config = NetworkConfig::parse(setup.config).unwrap();
        let external = external_interface(namespace, setup.interface).unwrap();
        let opener = opener.with_offloads(setup.offloads);
        let counters = opener.counters();
        let backend = open_once_free(&opener, &config, &external);
        let own = Lease {
            subnet: subnet(n, &config).parse().unwrap(),
            attrs: backend.attrs().at(external.public.used_by(&config)),
            revision: Revision(1),
            term: Term::Limited,
        };
        let mut station = Self {
            namespace: namespace.clone(),
            backend,
            own,
            peers: PeerSet::default(),
            counters,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        };
        station.backend.configure(&station.own).unwrap();
        station
    }

    pub(crate) fn learn(&mut self, leases: impl IntoIterator<Item = Lease>) {
        let puts = leases.into_iter().map(|lease| LeaseChange::Put(Arc::new(lease)));
        self.peers.extend(puts);
        self.peers.complete();
    }

    pub(crate) fn remove(&mut self, lease: &Lease) {
        self.peers.apply(LeaseChange::Removed(lease.subnet));
    }

    /// Runs a full pass.
    pub(crate) fn sync(&mut self) -> SyncReport {
        self.sync_only(&Dirty::All)
    }

    /// Runs a pass for the changed peers.
    pub(crate) fn sync_only(&mut self, dirty: &Dirty) -> SyncReport {
        self.backend.sync(SyncRequest::new(&self.peers, dirty, Instant::now()))
    }

    /// Returns the drift that the backend notices within the time, if any.
    pub(crate) fn noticed(&mut self, limit: Duration) -> Option<String> {
        let drifted = self.backend.wait_for_drift();
        self.runtime.block_on(async { tokio::time::timeout(limit, drifted).await.ok() })
    }

    /// Waits for drift and runs a pass, as a network's loop does.
    pub(crate) fn heal(&mut self) -> SyncReport {
        let noticed = self.noticed(DEADLINE);
        assert!(noticed.is_some(), "the backend did not notice the change");
        let mut report = self.sync_only(&Dirty::NONE);
        // A command may cause several notifications.
        while self.noticed(QUIET).is_some() {
            report.merge(self.sync_only(&Dirty::NONE));
        }
        report
    }

    pub(crate) fn counts(&self) -> UdpCounts {
        self.counters.read()
    }
}

/// Opens a backend once the port is free: a child process that another test forks holds the sockets of this process open
/// until it calls exec.
fn open_once_free(
    opener: &OpenUdp,
    config: &NetworkConfig,
    external: &ExternalInterface,
) -> Box<dyn Backend> {
    let opened = eventually(DEADLINE, || match open(opener, config, external) {
        Err(error) if chain(&error).contains("Address already in use") => Err(chain(&error)),
        other => Ok(other),
    });
    opened.unwrap().unwrap()
}

pub(crate) fn open(
    opener: &OpenUdp,
    config: &NetworkConfig,
    external: &ExternalInterface,
) -> Result<Box<dyn Backend>, BackendError> {
    opener.open(OpenRequest::new(config, external))
}

/// Peers with a pod on each.
pub(crate) struct Overlay {
    pub(crate) stations: Vec<TestHost>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) lab: Lab,
}

impl Overlay {
    pub(crate) fn new(hosts: usize) -> Self {
        Self::with(hosts, Setup::default())
    }

    pub(crate) fn with(hosts: usize, setup: Setup) -> Self {
        Self::on(lab(hosts), setup)
    }

    /// Runs the backend on the hosts of a lab.
    pub(crate) fn on(lab: Lab, setup: Setup) -> Self {
        let start = |(n, host): (u8, &flannel_testing::Host)| TestHost::start(&host.namespace, n, setup);
        let mut stations: Vec<_> = (1..).zip(&lab.hosts).map(start).collect();
        introduce(&mut stations);
        let pods = add_pods(&stations, &lab);
        Self { stations, pods, lab }
    }

    /// Two hosts, the second one behind a router whose link to it has a smaller MTU than the hosts' interfaces.
    pub(crate) fn narrow() -> Self {
        let lab = Lab::new(&LabOptions { hosts: 2, segments: 2, ..LabOptions::default() }).unwrap();
        let overlay = Self::on(lab, Setup::default());
        let switch = overlay.lab.switch();
        ip(switch, "link set port2 mtu 1300");
        ip(switch, "link set br1 mtu 1300");
        ip(&overlay.lab.hosts[1].namespace, "link set eth0 mtu 1300");
        // The first packet makes the kernel learn the path MTU.
        let large =
            PingOptions { payload: 1400, timeout: Duration::from_millis(700), ..PingOptions::default() };
        let (from, to) = (&overlay.pods[0].namespace, overlay.pods[1].addresses[0]);
        eventually(DEADLINE, || ping(from, to, &large)).unwrap();
        overlay
    }
}

/// Creates a pod on each host of a lab.
pub(crate) fn add_pods(stations: &[TestHost], lab: &Lab) -> Vec<Pod> {
    let add_pod = |(station, host): (&TestHost, &flannel_testing::Host)| {
        let subnets: Vec<_> = station.own.subnet.nets().collect();
        host.add_pod(&subnets, station.backend.mtu()).unwrap()
    };
    stations.iter().zip(&lab.hosts).map(add_pod).collect()
}

/// Makes all hosts peers of each other.
pub(crate) fn introduce(stations: &mut [TestHost]) {
    let leases: Vec<_> = stations.iter().map(|station| station.own.clone()).collect();
    for (at, station) in stations.iter_mut().enumerate() {
        let others = leases.iter().enumerate().filter(|(other, _)| *other != at);
        station.learn(others.map(|(_, lease)| lease.clone()));
        let report = station.sync();
        assert_eq!((report.failed, report.unreachable), (vec![], vec![]));
    }
}

pub(crate) fn lab(hosts: usize) -> Lab {
    Lab::new(&LabOptions { hosts, ..LabOptions::default() }).unwrap()
}

/// Returns the subnets of host `n`.
fn subnet(n: u8, config: &NetworkConfig) -> String {
    let v4 = config.ipv4.map(|_| format!("10.5.{n}.0-24"));
    let v6 = config.ipv6.map(|_| format!("fd00:5:0:{n}::-64"));
    v4.into_iter().chain(v6).collect::<Vec<_>>().join("&")
}

/// Returns the lease of host `n`, which doesn't exist in the lab.
pub(crate) fn peer(n: u8) -> Lease {
    let public = std::net::Ipv4Addr::new(192, 168, 64, n);
    let attrs = LeaseAttrs::new(public.into());
    Lease {
        subnet: format!("10.5.{n}.0-24").parse().unwrap(),
        attrs,
        revision: Revision(1),
        term: Term::Limited,
    }
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Runs `ip` in a namespace and returns its output lines.
pub(crate) fn ip(namespace: &Namespace, arguments: &str) -> Vec<String> {
    let mut command = Command::new(program("ip", "iproute2").unwrap());
    command.args(arguments.split_whitespace());
    let output = output_in(namespace, command).unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {complaint}");
    String::from_utf8(output.stdout).unwrap().lines().map(|line| line.trim().to_owned()).collect()
}

/// Returns the bytes of a stream: `n` MiB, which fill every buffer on the path many times, or `UDP_TEST_MIB` MiB.
pub(crate) fn mib(usual: u64) -> u64 {
    let mib = std::env::var("UDP_TEST_MIB").ok().and_then(|mib| mib.parse().ok());
    mib.unwrap_or(usual) << 20
}

/// Returns `n` datagram sizes, or `UDP_TEST_DATAGRAMS`, from the smallest to the largest possible.
pub(crate) fn sizes(usual: usize) -> Vec<usize> {
    let count = std::env::var("UDP_TEST_DATAGRAMS").ok().and_then(|count| count.parse().ok());
    // Xorshift (G. Marsaglia, 2003): the same sizes in every run.
    let mut chance = 0x2545_f491_4f6c_dd1du64;
    let mut next = move || {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        chance
    };
    let mut sizes = vec![1, 2, 3, 4, 1443, 1444, 1445, LARGEST];
    // Mostly up to the MTU, some of any size.
    let some = count.unwrap_or(usual);
    sizes.extend((0..some).map(|_| 1 + next() as usize % [40, 1500, 3000, LARGEST][next() as usize % 4]));
    sizes
}

/// The largest payload of a datagram over IPv4 (RFC 768, RFC 791).
const LARGEST: usize = 65_507;

/// The datagrams in flight; their fragments fill most of the device's queue.
const IN_FLIGHT: usize = 8;

/// Sends streams both ways and datagrams, and checks that all arrive intact and in order.
pub(crate) fn check(what: &str, pods: [&Pod; 2], family: usize, mib: u64, sizes: &[usize]) {
    check_with(IN_FLIGHT, what, pods, family, mib, sizes);
}

/// The same, with a given number of datagrams in flight.
pub(crate) fn check_with(
    in_flight: usize,
    what: &str,
    [one, other]: [&Pod; 2],
    family: usize,
    mib: u64,
    sizes: &[usize],
) {
    let start = Instant::now();
    let [near, far] = [one, other].map(|pod| (&pod.namespace, pod.addresses[family]));
    transfer(near.0, far.0, far.1, mib).unwrap();
    transfer(far.0, near.0, near.1, mib).unwrap();
    let streams = start.elapsed();
    let report = datagrams_in_flight(near.0, far.0, far.1, sizes, DEADLINE, in_flight).unwrap();
    assert!(report.is_perfect(), "{what}: {report:?}");
    println!(
        "{what}, to {}: {} MiB each way in {streams:.1?}; {} datagrams with {} MB in {:.1?}, all of them in order",
        far.1,
        mib >> 20,
        report.sent,
        sizes.iter().sum::<usize>() / 1_000_000,
        start.elapsed() - streams
    );
}
