//! What the kernel tests share: a station, which is a host of the lab with the backend on it, and looks at what it
//! made.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_backend_vxlan::{OpenHostGw, OpenVxlan, external_interface};
use flannel_core::{
    Backend, BackendAttrs, BackendError, BackendType, Dirty, ExternalInterface, Json, Lease, LeaseChange,
    NetworkConfig, OpenBackend, OpenRequest, PeerSet, Revision, SubnetKey, SyncReport, SyncRequest, Term,
};
use flannel_netlink::{Link, LinkChange, Mac, Namespace, Netlink, NewLink, NewLinkKind, NewVxlan};
use flannel_testing::{Lab, LabOptions, output_in, program};
use ipnet::IpNet;

/// How long to wait for something that the kernel does in its own time.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The name of the device of VNI 1.
pub(crate) const DEVICE: &str = "flannel.1";

/// A host with the backend on it.
pub(crate) struct Station {
    pub(crate) namespace: Namespace,
    pub(crate) netlink: Netlink,
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) own: Lease,
    pub(crate) peers: PeerSet,
    pub(crate) config: NetworkConfig,
    pub(crate) external: ExternalInterface,
    runtime: tokio::runtime::Runtime,
}

impl Station {
    /// Opens the backend for 10.5.0.0/16 and makes the host ready for its lease.
    pub(crate) fn start(namespace: &Namespace, subnet: &str) -> Self {
        Self::start_with(namespace, subnet, &config(""))
    }

    /// As [`start`](Self::start), for another network.
    pub(crate) fn start_with(namespace: &Namespace, subnet: &str, config: &NetworkConfig) -> Self {
        let external = external_interface(namespace, "eth0").unwrap();
        let backend = open(namespace, config).unwrap();
        let own = Lease {
            subnet: subnet.parse().unwrap(),
            attrs: backend.attrs().at(external.public),
            revision: Revision(1),
            term: Term::Limited,
        };
        let mut station = Self {
            namespace: namespace.clone(),
            netlink: Netlink::open_in(namespace).unwrap(),
            backend,
            own,
            peers: PeerSet::default(),
            config: config.clone(),
            external,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        };
        station.backend.configure(&station.own).unwrap();
        station
    }

    /// Drops the backend and opens it again, as a daemon that is started anew. The peers stay known.
    pub(crate) fn restart(self) -> Self {
        let Self { namespace, backend, own, peers, config, .. } = self;
        drop(backend);
        let started = Self::start_with(&namespace, &own.subnet.to_string(), &config);
        Self { peers, ..started }
    }

    /// Learns of peers that are there or changed.
    pub(crate) fn learn(&mut self, leases: impl IntoIterator<Item = Lease>) {
        let puts = leases.into_iter().map(|lease| LeaseChange::Put(Arc::new(lease)));
        self.peers.extend(puts);
    }

    pub(crate) fn forget(&mut self, subnet: &str) {
        self.peers.apply(LeaseChange::Removed(key(subnet)));
    }

    /// One pass over everything.
    pub(crate) fn sync(&mut self) -> SyncReport {
        self.sync_only(&Dirty::All)
    }

    /// One pass, told which peers changed.
    pub(crate) fn sync_only(&mut self, dirty: &Dirty) -> SyncReport {
        self.backend.sync(SyncRequest::new(&self.peers, dirty, Instant::now()))
    }

    /// One pass about nothing in particular, as it will be after some time.
    pub(crate) fn sync_later(&mut self, later: Duration) -> SyncReport {
        let now = Instant::now() + later;
        self.backend.sync(SyncRequest::new(&self.peers, &Dirty::NONE, now))
    }

    /// The first pass with all peers known; nothing may fail in it.
    pub(crate) fn complete(&mut self, leases: impl IntoIterator<Item = Lease>) {
        self.learn(leases);
        self.peers.complete();
        let report = self.sync();
        assert_eq!((report.failed, report.unreachable), (vec![], vec![]));
    }

    /// What the backend noticed within the time, if it noticed anything.
    pub(crate) fn noticed(&mut self, limit: Duration) -> Option<String> {
        let drifted = self.backend.wait_for_drift();
        self.runtime.block_on(async { tokio::time::timeout(limit, drifted).await.ok() })
    }

    /// Waits until the backend has nothing more to tell of what it did itself.
    pub(crate) fn settle(&mut self) {
        let noticed = self.noticed(QUIET);
        if noticed.is_some() {
            assert_idle(&self.sync_only(&Dirty::NONE));
        }
        let again = self.noticed(QUIET);
        assert_eq!(again, None, "the backend notices what it did itself, first {noticed:?}");
    }

    /// Has the backend notice what changed, as the loop of a network does, and look again.
    pub(crate) fn heal(&mut self) -> SyncReport {
        let noticed = self.noticed(DEADLINE);
        assert!(noticed.is_some(), "the change was not noticed");
        let mut report = self.sync_only(&Dirty::NONE);
        // What a person does may come in several parts.
        while self.noticed(QUIET).is_some() {
            report.merge(self.sync_only(&Dirty::NONE));
        }
        report
    }

    pub(crate) fn device(&mut self) -> Link {
        self.netlink.link(DEVICE).unwrap().unwrap()
    }

    /// The three tables of the device as `ip` and `bridge` show them, sorted.
    pub(crate) fn tables(&self) -> Vec<String> {
        let mut lines = ip(&self.namespace, "route show dev flannel.1");
        lines.extend(
            ip(&self.namespace, "-4 neigh show dev flannel.1")
                .into_iter()
                .filter(|line| line.contains("PERMANENT")),
        );
        lines.extend(bridge(&self.namespace, "fdb show dev flannel.1"));
        lines.sort();
        lines
    }
}

/// How long nothing must happen to count as quiet. What the backend notices of itself is there at once.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

/// Opens the backend that the network asks for, on `eth0`.
pub(crate) fn open(namespace: &Namespace, config: &NetworkConfig) -> Result<Box<dyn Backend>, BackendError> {
    let external = external_interface(namespace, "eth0")?;
    let request = OpenRequest::new(config, &external);
    match config.backend.name.as_str() {
        "host-gw" => OpenHostGw::new(namespace.clone()).open(request),
        _ => OpenVxlan::new(namespace.clone()).open(request),
    }
}

/// The network 10.5.0.0/16 with options of the backend, such as `,"VNI":7`.
pub(crate) fn config(options: &str) -> NetworkConfig {
    let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"vxlan"{options}}}}}"#);
    NetworkConfig::parse(&text).unwrap()
}

/// A lab with so many hosts.
pub(crate) fn lab(hosts: usize) -> Lab {
    Lab::new(&LabOptions { hosts, ..LabOptions::default() }).unwrap()
}

/// A lab with two routed segments: the first and the third host are on one link, the second one is not.
pub(crate) fn routed_lab(hosts: usize) -> Lab {
    Lab::new(&LabOptions { hosts, segments: 2, ..LabOptions::default() }).unwrap()
}

/// The lease of a host that exists only on paper.
pub(crate) fn lease(subnet: &str, public: &str, mac: &str) -> Lease {
    let data = Json::parse(&format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)).unwrap();
    let public: Ipv4Addr = public.parse().unwrap();
    let attrs = BackendAttrs::new(BackendType::VXLAN).with_data(Some(data)).at(public.into());
    Lease { subnet: key(subnet), attrs, revision: Revision(1), term: Term::Limited }
}

/// The lease of paper host number `n`: 10.5.n.0/24 behind 192.168.64.n, with 0e:00:00:00:00:n.
pub(crate) fn peer(n: u8) -> Lease {
    lease(&format!("10.5.{n}.0-24"), &format!("192.168.64.{n}"), &mac(n).to_string())
}

/// The lease of paper host number `n` of many.
pub(crate) fn numbered(n: u32) -> Lease {
    let [_, b, c, d] = (n + 1).to_be_bytes();
    // 10.16.0.0/24 and on, behind 172.16.0.1 and on.
    let subnet = format!("10.{}.{d}.0-24", 16 + c);
    lease(&subnet, &format!("172.{}.{c}.{d}", 16 + b), &format!("0e:01:00:{b:02x}:{c:02x}:{d:02x}"))
}

pub(crate) fn mac(n: u8) -> Mac {
    Mac([0x0e, 0, 0, 0, 0, n])
}

/// The lines that `ip` and `bridge` show for that host.
pub(crate) fn lines_of(n: u8) -> [String; 3] {
    [
        format!("10.5.{n}.0/24 via 10.5.{n}.0 onlink "),
        format!("10.5.{n}.0 lladdr {} PERMANENT ", mac(n)),
        format!("{} dst 192.168.64.{n} self permanent", mac(n)),
    ]
}

/// The lines that `ip` and `bridge` show for those hosts, sorted.
pub(crate) fn lines_of_all(hosts: impl IntoIterator<Item = u8>) -> Vec<String> {
    let mut lines: Vec<_> = hosts.into_iter().flat_map(lines_of).collect();
    lines.sort();
    lines
}

pub(crate) fn key(subnet: &str) -> SubnetKey {
    subnet.parse().unwrap()
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Runs `ip` in a namespace and returns the lines that it writes.
pub(crate) fn ip(namespace: &Namespace, arguments: &str) -> Vec<String> {
    run(namespace, "ip", arguments)
}

/// Runs `bridge` in a namespace and returns the lines that it writes.
pub(crate) fn bridge(namespace: &Namespace, arguments: &str) -> Vec<String> {
    run(namespace, "bridge", arguments)
}

fn run(namespace: &Namespace, name: &'static str, arguments: &str) -> Vec<String> {
    let mut command = Command::new(program(name, "iproute2").unwrap());
    command.args(arguments.split_whitespace());
    let output = output_in(namespace, command).unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {arguments}: {complaint}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// A report of a pass that found everything in order.
#[track_caller]
pub(crate) fn assert_idle(report: &SyncReport) {
    assert_eq!(*report, SyncReport::default());
}

/// Creates a VXLAN device that is up, as another program would.
pub(crate) fn foreign_vxlan(netlink: &mut Netlink, name: &str, vni: u32, port: u16) -> Link {
    let vxlan = NewVxlan { vni, port: Some(port), ..NewVxlan::default() };
    netlink.create_link(&NewLink { up: true, ..NewLink::new(name, NewLinkKind::Vxlan(vxlan)) }).unwrap();
    netlink.link(name).unwrap().unwrap()
}

pub(crate) fn change(netlink: &mut Netlink, name: &str, change: &LinkChange) {
    let link = netlink.link(name).unwrap().unwrap();
    netlink.change_link(link.index, change).unwrap();
}
