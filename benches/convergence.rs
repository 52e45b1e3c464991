//! How long does a host need until it reaches N peers over VXLAN?
//!
//! `ours` is the first `sync` of the backend; `one by one` writes the same neighbours, forwarding entries and routes as
//! flannel does: one request at a time, each waiting for its answer, every route with the metric 0. Both start from an
//! empty device in a fresh network namespace. Then, on top of N: one peer with a new device (`change`), and a daemon
//! that starts anew and finds everything in place (`restart`). Every number is the median of three runs, taken in turn.
//!
//! ```text
//! cargo bench -p flannel-benches --bench convergence             # 1,000 and 5,000 peers
//! cargo bench -p flannel-benches --bench convergence -- 20000    # others
//! ```
//!
//! Needs root.

#![allow(clippy::print_stdout, reason = "a bench shows its result")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed bench")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_backend_vxlan::{OpenVxlan, external_interface};
use flannel_core::{
    Backend, BackendType, Dirty, Json, Lease, LeaseAttrs, LeaseChange, NetworkConfig, OpenBackend,
    OpenRequest, PeerSet, Revision, SubnetKey, SyncReport, SyncRequest, Term,
};
use flannel_netlink::{FdbEntry, Mac, Namespace, Neighbour, Netlink, Route, Write};
use flannel_testing::{Lab, LabOptions};
use ipnet::{IpNet, Ipv4Net};

const RUNS: usize = 3;

fn main() {
    let mut sizes: Vec<u32> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![1_000, 5_000];
    }
    println!("{}", machine());
    println!(
        "{:>7} | {:>13} {:>10} {:>7} | {:>13} {:>10} {:>7} | {:>10}",
        "", "first sync ms", "", "", "change µs", "", "", "restart ms"
    );
    println!(
        "{:>7} | {:>13} {:>10} {:>7} | {:>13} {:>10} {:>7} | {:>10}",
        "peers", "one by one", "ours", "ratio", "one by one", "ours", "ratio", "ours"
    );
    for size in sizes {
        let runs: Vec<_> = (0..RUNS).map(|_| (one_by_one(size), ours(size))).collect();
        let of = |pick: fn(&(Baseline, Ours)) -> Duration| median(runs.iter().map(pick).collect());
        let first = [of(|run| run.0.first), of(|run| run.1.first)];
        let change = [of(|run| run.0.change), of(|run| run.1.change)];
        println!(
            "{size:>7} | {:>13.1} {:>10.1} {:>7.3} | {:>13.0} {:>10.0} {:>7.3} | {:>10.1}",
            milliseconds(first[0]),
            milliseconds(first[1]),
            ratio(first),
            milliseconds(change[0]) * 1e3,
            milliseconds(change[1]) * 1e3,
            ratio(change),
            milliseconds(of(|run| run.1.restart)),
        );
    }
}

struct Baseline {
    first: Duration,
    change: Duration,
}

/// Writes as flannel does.
fn one_by_one(size: u32) -> Baseline {
    let lab = lab();
    let host = &lab.hosts[0].namespace;
    let (backend, _) = open(host);
    drop(backend);
    let mut netlink = Netlink::open_in(host).unwrap();
    let index = netlink.link("flannel.1").unwrap().unwrap().index;
    let mut reach = |n: u32, generation: u8| {
        let (subnet, mac, public) = (subnet(n), mac(n, generation), public(n));
        for write in [
            Write::PutNeighbour(Neighbour::permanent(index, subnet.network(), mac)),
            Write::PutFdb(FdbEntry::permanent(index, mac, public)),
            Write::PutRoute(Route::onlink(subnet, subnet.network(), index)),
        ] {
            netlink.apply(&[write]).remove(0).unwrap();
        }
    };
    let started = Instant::now();
    (0..size).for_each(|n| reach(n, 0));
    let first = started.elapsed();
    let started = Instant::now();
    reach(size / 2, 1);
    Baseline { first, change: started.elapsed() }
}

struct Ours {
    first: Duration,
    change: Duration,
    restart: Duration,
}

/// Uses the backend.
fn ours(size: u32) -> Ours {
    let lab = lab();
    let host = &lab.hosts[0].namespace;
    let mut peers = PeerSet::default();
    peers.extend((0..size).map(|n| LeaseChange::Put(Arc::new(lease(n, 0)))));
    peers.complete();
    let (mut backend, _) = open(host);
    let (report, first) = sync(&mut *backend, &peers, &Dirty::All);
    assert_eq!(report.written, 3 * size as usize);
    let changed = lease(size / 2, 1);
    let dirty = Dirty::Some([changed.subnet].into());
    peers.apply(LeaseChange::Put(Arc::new(changed)));
    let (report, change) = sync(&mut *backend, &peers, &dirty);
    assert_eq!((report.written, report.removed), (2, 1));
    drop(backend);
    let started = Instant::now();
    let (mut backend, _) = open(host);
    let (report, _) = sync(&mut *backend, &peers, &Dirty::All);
    assert_eq!((report.written, report.removed), (0, 0));
    Ours { first, change, restart: started.elapsed() }
}

fn sync(backend: &mut dyn Backend, peers: &PeerSet, dirty: &Dirty) -> (SyncReport, Duration) {
    let now = Instant::now();
    let report = backend.sync(SyncRequest { peers, dirty, now });
    assert_eq!(report.failed, []);
    (report, now.elapsed())
}

fn lab() -> Lab {
    Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap()
}

/// The backend on a host, ready for the host's own lease.
fn open(namespace: &Namespace) -> (Box<dyn Backend>, Lease) {
    let config = NetworkConfig::parse(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#).unwrap();
    let external = external_interface(namespace, "eth0").unwrap();
    let request = OpenRequest { config: &config, external: &external, before: None };
    let mut backend = OpenVxlan::new(namespace.clone()).open(request).unwrap();
    let own = Lease {
        subnet: "10.255.0.0-24".parse().unwrap(),
        attrs: backend.attrs().at(external.public),
        revision: Revision(1),
        term: Term::Limited,
    };
    backend.configure(&own).unwrap();
    (backend, own)
}

fn lease(n: u32, generation: u8) -> Lease {
    let (IpNet::V4(subnet), IpAddr::V4(public)) = (subnet(n), public(n)) else {
        unreachable!("peers of the bench are IPv4");
    };
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(n, generation));
    let attrs = LeaseAttrs {
        backend_type: BackendType::VXLAN,
        backend_data: Some(Json::parse(&data).unwrap()),
        ..LeaseAttrs::new(public.into())
    };
    Lease { subnet: SubnetKey::from(subnet), attrs, revision: Revision(1), term: Term::Limited }
}

/// 10.0.0.0/24 and on.
fn subnet(n: u32) -> IpNet {
    let start = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (n << 8));
    Ipv4Net::new(start, 24).unwrap().into()
}

/// 172.16.0.0 and on.
fn public(n: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 0)) + n).into()
}

fn mac(n: u32, generation: u8) -> Mac {
    let [a, b, c, d] = n.to_be_bytes();
    Mac([0x0e, generation, a, b, c, d])
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn ratio([baseline, ours]: [Duration; 2]) -> f64 {
    ours.as_secs_f64() / baseline.as_secs_f64()
}

/// What the numbers were taken on.
fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    format!(
        "Linux {}, {} × {}",
        read("/proc/sys/kernel/osrelease").trim(),
        std::thread::available_parallelism().map_or(1, usize::from),
        model.map_or("unknown processor", |(_, model)| model),
    )
}
