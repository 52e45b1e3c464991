//! Measures the cost of many nodes that start at the same moment.
//!
//! Up to 200 nodes start together on a /16, and more on a /8, in one process, each with its own manager and a backend
//! without a kernel; over the registry in memory, and over a real etcd by its v3 and its v2 API, with a connection for
//! each node. The nodes' public addresses are consecutive, as those of a site are, or scattered, which is the worst
//! case.
//!
//! `ready` is the time until the last node has its lease and its first peers, `all known` until every node knows every
//! other. Calls are requests as the registry's own counters report them, up to that moment; in memory, calls to the
//! registry. Over v2 a watch is a request for each event: these are counted separately, as `polls`. `most` is the
//! number of the busiest node; `ratio` compares the calls per node with those in the smallest run. A conflict is a
//! subnet that another node leased first, which costs one more list and one more write. The bench checks that all
//! subnets differ.
//!
//! ```text
//! cargo bench -p flannel-benches --bench start             # 50, 100 and 200 nodes, in memory up to 5,000
//! cargo bench -p flannel-benches --bench start -- --quick  # 50, 100 and 200 nodes
//! cargo bench -p flannel-benches --bench start -- 1000     # others
//! ```
//!
//! Needs `etcd`.

#![allow(clippy::print_stdout, reason = "a bench prints its result")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed bench")]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_benches::figures;
use flannel_core::{ExternalInterface, Network, NetworkOptions, Shutdown, SubnetKey, SubnetRegistry};
use flannel_registry::{
    Etcd2Options, Etcd2Registry, Etcd3Options, Etcd3Registry, MemoryRegistry, RegistryLeaseManager,
};
use flannel_testing::{Call, Etcd, EtcdOptions, FakeBackend, FaultyRegistry};

/// Returns a network with room for this many nodes: a /16 has 255 subnets.
fn config(nodes: u16) -> String {
    let network = if nodes < 255 { "10.5.0.0/16" } else { "10.0.0.0/8" };
    format!(r#"{{"Network":"{network}","Backend":{{"Type":"fake"}}}}"#)
}

const CONFIG_KEY: &str = "/coreos.com/network/config";

/// The sizes that run over the registry in memory only. The state of all nodes grows with the square of their number:
/// 5,000 take some 10 GiB of memory.
const LARGE: [u16; 3] = [1_000, 2_000, 5_000];

/// The store of the leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    Memory,
    EtcdV3,
    EtcdV2,
}

impl Store {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::EtcdV3 => "etcd v3",
            Self::EtcdV2 => "etcd v2",
        }
    }
}

/// The public addresses of the nodes.
#[derive(Clone, Copy, Debug)]
enum Addresses {
    InARow,
    Scattered,
}

impl Addresses {
    fn name(self) -> &'static str {
        match self {
            Self::InARow => "in a row",
            Self::Scattered => "scattered",
        }
    }
}

fn main() {
    let is_quick = std::env::args().any(|argument| argument == "--quick");
    let asked: Vec<u16> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let sizes = if asked.is_empty() { vec![50, 100, 200] } else { asked.clone() };
    let cores = std::thread::available_parallelism().unwrap();
    println!("{cores} cores, one process for all nodes");
    println!(
        "{:>7} {:>9} {:>5} | {:>8} {:>12} | {:>14} {:>5} {:>6} | {:>14} {:>5} | {:>9}",
        "store",
        "addresses",
        "nodes",
        "ready ms",
        "all known ms",
        "calls per node",
        "most",
        "ratio",
        "polls per node",
        "most",
        "conflicts"
    );
    for store in [Store::Memory, Store::EtcdV3, Store::EtcdV2] {
        for addresses in [Addresses::InARow, Addresses::Scattered] {
            let is_large = matches!((store, addresses), (Store::Memory, Addresses::InARow));
            let large = if is_large && asked.is_empty() && !is_quick { &LARGE[..] } else { &[] };
            let mut first = None;
            for size in sizes.iter().chain(large) {
                let run = tokio::runtime::Runtime::new().unwrap().block_on(start(store, addresses, *size));
                let per_node = mean(&run.calls);
                let series = format!("{}, {}", store.name(), addresses.name());
                let keep = |what, value: f64| figures::keep("start", what, &series, size, value.into());
                keep("calls per node", per_node);
                keep("all known, ms", run.all_known.as_secs_f64() * 1e3);
                keep("conflicts", run.conflicts as f64);
                println!(
                    "{:>7} {:>9} {size:>5} | {:>8.1} {:>12.1} | {per_node:>14.2} {:>5} {:>6.2} | {:>14.2} {:>5} | {:>9}",
                    format!("{store:?}"),
                    format!("{addresses:?}"),
                    run.ready.as_secs_f64() * 1e3,
                    run.all_known.as_secs_f64() * 1e3,
                    most(&run.calls),
                    per_node / *first.get_or_insert(per_node),
                    mean(&run.polls),
                    most(&run.polls),
                    run.conflicts,
                );
            }
        }
    }
}

/// The outcome of a start, with calls and polls per node.
struct Run {
    ready: Duration,
    all_known: Duration,
    calls: Vec<u64>,
    polls: Vec<u64>,
    conflicts: usize,
}

async fn start(store: Store, addresses: Addresses, size: u16) -> Run {
    let site = Site::new(store, &config(size));
    let opened: Vec<Opened> = (0..size).map(|_| site.open()).collect();
    let begun = Instant::now();
    let networks: Vec<Network> =
        opened.iter().zip(0..).map(|(opened, number)| node(&opened.registry, addresses, number)).collect();
    let mut subnets: BTreeSet<SubnetKey> = BTreeSet::new();
    for network in &networks {
        subnets.insert(network.ready().await.unwrap().lease.subnet);
    }
    let ready = begun.elapsed();
    assert_eq!(subnets.len(), usize::from(size), "all subnets must differ");
    while networks.iter().any(|network| network.summary().peers.programmed + 1 < usize::from(size)) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let all_known = begun.elapsed();
    let (calls, polls) = opened.iter().map(Opened::calls).unzip();
    let creates: usize = opened.iter().map(|opened| opened.registry.count(Call::Create)).sum();
    for network in networks {
        network.shutdown(Shutdown::Keep).await;
    }
    Run { ready, all_known, calls, polls, conflicts: creates - usize::from(size) }
}

/// A store for all nodes.
struct Site {
    store: Store,
    memory: MemoryRegistry,
    etcd: Option<Etcd>,
}

/// A node's connection to the store.
struct Opened {
    registry: FaultyRegistry<Arc<dyn SubnetRegistry>>,
    counter: Counter,
}

enum Counter {
    Memory,
    EtcdV3(Etcd3Registry),
    EtcdV2(Etcd2Registry),
}

impl Site {
    fn new(store: Store, config: &str) -> Self {
        let memory = MemoryRegistry::new();
        memory.set_config(config);
        let options = EtcdOptions { enable_v2: store == Store::EtcdV2, ..EtcdOptions::default() };
        let etcd = (store != Store::Memory).then(|| Etcd::start_with(options).unwrap());
        match &etcd {
            Some(etcd) if store == Store::EtcdV2 => {
                let mut etcdctl = Command::new("etcdctl");
                etcdctl.env("ETCDCTL_API", "2").args(["--endpoints", &etcd.client_url()]);
                assert!(etcdctl.args(["set", CONFIG_KEY, config]).output().unwrap().status.success());
            }
            Some(etcd) => drop(etcd.etcdctl(&["put", CONFIG_KEY, config]).unwrap()),
            None => {}
        }
        Self { store, memory, etcd }
    }

    fn open(&self) -> Opened {
        let endpoints: Vec<String> = self.etcd.iter().map(Etcd::client_url).collect();
        let (registry, counter): (Arc<dyn SubnetRegistry>, _) = match self.store {
            Store::Memory => (Arc::new(self.memory.clone()), Counter::Memory),
            Store::EtcdV3 => {
                let mut options = Etcd3Options::default();
                options.endpoints = endpoints;
                let registry = Etcd3Registry::new(options).unwrap();
                (Arc::new(registry.clone()), Counter::EtcdV3(registry))
            }
            Store::EtcdV2 => {
                let mut options = Etcd2Options::default();
                options.endpoints = endpoints;
                let registry = Etcd2Registry::new(options).unwrap();
                (Arc::new(registry.clone()), Counter::EtcdV2(registry))
            }
        };
        Opened { registry: FaultyRegistry::new(registry), counter }
    }
}

impl Opened {
    /// All calls but polls, and the polls.
    fn calls(&self) -> (u64, u64) {
        match &self.counter {
            Counter::Memory => (self.registry.counts().iter().map(|(_, count)| *count as u64).sum(), 0),
            Counter::EtcdV3(registry) => (registry.calls().total(), 0),
            Counter::EtcdV2(registry) => {
                let calls = registry.calls();
                (calls.reads + calls.writes, calls.polls)
            }
        }
    }
}

fn mean(counts: &[u64]) -> f64 {
    counts.iter().sum::<u64>() as f64 / counts.len() as f64
}

fn most(counts: &[u64]) -> u64 {
    counts.iter().copied().max().unwrap_or(0)
}

fn node(registry: &FaultyRegistry<Arc<dyn SubnetRegistry>>, addresses: Addresses, number: u16) -> Network {
    let [high, low] = number.to_be_bytes();
    let v4 = match addresses {
        Addresses::InARow => Ipv4Addr::new(192, 168, high, low),
        // An odd factor gives each number a distinct product.
        Addresses::Scattered => Ipv4Addr::from(u32::from(number).wrapping_mul(0x9e37_79b1)),
    };
    let external = ExternalInterface::new("eth0", 2, 1500, v4);
    let manager = RegistryLeaseManager::new(registry.clone());
    let mut options = NetworkOptions::new(manager, FakeBackend::new(), external);
    // There are no readers, and thousands of backlogs use much memory.
    options.event_backlog = 1;
    let (network, task) = Network::new(options);
    tokio::spawn(task.run());
    network
}
