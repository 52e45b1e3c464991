//! What does it cost when many nodes start at the same moment?
//!
//! 50, 100 and 200 nodes start together on a /16, in one process, each with its own manager and a backend without a
//! kernel; over the registry in memory, and over a real etcd with a connection for each node. `ready` is the time until
//! the last node has its lease and its first peers, `all known` until every node knows every other one. A conflict is a
//! lease that somebody else took first, which costs one list and one write more. Calls are to the registry: of a watch,
//! its opening. That all subnets differ is checked.
//!
//! ```text
//! cargo bench -p flannel-benches --bench start             # 50, 100 and 200 nodes
//! cargo bench -p flannel-benches --bench start -- 1000     # others
//! ```
//!
//! Needs `etcd`.

#![allow(clippy::print_stdout, reason = "a bench shows its result")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed bench")]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::{
    ExternalInterface, Network, NetworkOptions, PublicAddrs, Shutdown, SubnetKey, SubnetRegistry,
};
use flannel_registry::{Etcd3Options, Etcd3Registry, LocalManager, MemoryRegistry};
use flannel_testing::{Call, Etcd, FakeBackend, FaultyRegistry};

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"fake"}}"#;

fn main() {
    let mut sizes: Vec<u16> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![50, 100, 200];
    }
    let cores = std::thread::available_parallelism().unwrap();
    println!("{cores} cores, one process for all nodes");
    println!(
        "{:>8} {:>6} | {:>8} {:>12} | {:>14} {:>5} {:>6} | {:>9}",
        "store", "nodes", "ready ms", "all known ms", "calls per node", "most", "ratio", "conflicts"
    );
    for store in ["memory", "etcd v3"] {
        let mut first = None;
        for size in &sizes {
            let run = tokio::runtime::Runtime::new().unwrap().block_on(start(store, *size));
            let per_node = run.calls as f64 / f64::from(*size);
            println!(
                "{store:>8} {size:>6} | {:>8.1} {:>12.1} | {per_node:>14.2} {:>5} {:>6.2} | {:>9}",
                run.ready.as_secs_f64() * 1e3,
                run.all_known.as_secs_f64() * 1e3,
                run.most,
                per_node / *first.get_or_insert(per_node),
                run.conflicts,
            );
        }
    }
}

struct Run {
    ready: Duration,
    all_known: Duration,
    calls: usize,
    most: usize,
    conflicts: usize,
}

async fn start(store: &str, size: u16) -> Run {
    let memory = MemoryRegistry::new();
    memory.set_config(CONFIG);
    let etcd = (store != "memory").then(|| Etcd::start().unwrap());
    if let Some(etcd) = &etcd {
        etcd.etcdctl(&["put", "/coreos.com/network/config", CONFIG]).unwrap();
    }
    let registries: Vec<FaultyRegistry<Arc<dyn SubnetRegistry>>> =
        (0..size).map(|_| FaultyRegistry::new(open(etcd.as_ref(), &memory))).collect();
    let begun = Instant::now();
    let networks: Vec<Network> =
        registries.iter().zip(0..).map(|(registry, number)| node(registry, number)).collect();
    let mut subnets: BTreeSet<SubnetKey> = BTreeSet::new();
    for network in &networks {
        subnets.insert(network.ready().await.unwrap().lease.subnet);
    }
    let ready = begun.elapsed();
    assert_eq!(subnets.len(), usize::from(size), "all subnets differ");
    while networks.iter().any(|network| network.status().peers + 1 < usize::from(size)) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let all_known = begun.elapsed();
    let calls: Vec<usize> =
        registries.iter().map(|r| r.counts().iter().map(|(_, count)| count).sum()).collect();
    let creates: usize = registries.iter().map(|registry| registry.count(Call::Create)).sum();
    for network in networks {
        network.shutdown(Shutdown::Keep).await;
    }
    Run {
        ready,
        all_known,
        calls: calls.iter().sum(),
        most: calls.into_iter().max().unwrap_or(0),
        conflicts: creates - usize::from(size),
    }
}

fn open(etcd: Option<&Etcd>, memory: &MemoryRegistry) -> Arc<dyn SubnetRegistry> {
    match etcd {
        None => Arc::new(memory.clone()),
        Some(etcd) => {
            let mut options = Etcd3Options::default();
            options.endpoints = vec![etcd.client_url()];
            Arc::new(Etcd3Registry::new(options).unwrap())
        }
    }
}

fn node(registry: &FaultyRegistry<Arc<dyn SubnetRegistry>>, number: u16) -> Network {
    let [high, low] = number.to_be_bytes();
    let v4 = Ipv4Addr::new(192, 168, high, low);
    let external = ExternalInterface {
        name: "eth0".to_owned(),
        index: 2,
        mtu: 1500,
        v4: Some(v4),
        v6: None,
        public: PublicAddrs::from(v4),
    };
    let manager = LocalManager::new(registry.clone());
    let (network, task) = Network::new(NetworkOptions::new(manager, FakeBackend::new(), external));
    tokio::spawn(task.run());
    network
}
