//! Nodes without a kernel, each with its own registry.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flannel_core::{
    ExternalInterface, LeaseAttrs, Network, NetworkEvent, NetworkOptions, Shutdown, SubnetKey, SubnetRegistry,
};
use flannel_registry::RegistryLeaseManager;
use flannel_testing::FakeBackend;
use futures::StreamExt;
use tokio::time::sleep;

/// The network config.
pub(crate) const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"fake"}}"#;
/// The number of nodes.
pub(crate) const NODES: u8 = 60;
/// The time limit for all nodes on a machine that runs all tests at once. It is also the timeout of their registries, so
/// that a slow machine causes no repeated requests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A node without a kernel, and the events it has emitted.
pub(crate) struct Node {
    pub(crate) network: Network,
    pub(crate) host: FakeBackend,
    events: Arc<Mutex<Vec<NetworkEvent>>>,
}

impl Node {
    /// Starts a node at `192.168.0.LAST`.
    pub(crate) fn start(registry: impl SubnetRegistry, last: u8, previous: Option<SubnetKey>) -> Self {
        let host = FakeBackend::new();
        let manager = RegistryLeaseManager::new(registry);
        let mut options = NetworkOptions::new(manager, host.clone(), external(last));
        options.previous = previous;
        let (network, task) = Network::new(options);
        let events: Arc<Mutex<Vec<NetworkEvent>>> = Arc::default();
        let (mut stream, log) = (Box::pin(network.events()), Arc::clone(&events));
        tokio::spawn(async move {
            while let Some(event) = stream.next().await {
                log.lock().unwrap().push(event);
            }
        });
        tokio::spawn(task.run());
        Self { network, host, events }
    }

    /// Reports whether the node emitted a matching event.
    pub(crate) fn emitted(&self, is_it: impl Fn(&NetworkEvent) -> bool) -> bool {
        self.events.lock().unwrap().iter().any(is_it)
    }

    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !is_so(self) {
            assert!(begin.elapsed() < PATIENCE, "not in time: {what}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

pub(crate) struct Crowd<R> {
    pub(crate) registries: Vec<R>,
    nodes: Vec<Node>,
}

impl<R: SubnetRegistry + Clone> Crowd<R> {
    /// Starts all nodes and waits until each knows all other nodes.
    pub(crate) async fn start(open: impl Fn() -> R) -> Self {
        let registries: Vec<R> = (0..NODES).map(|_| open()).collect();
        let numbered = (1..).zip(&registries);
        let nodes = numbered.map(|(last, registry)| Node::start(registry.clone(), last, None)).collect();
        let crowd = Self { registries, nodes };
        crowd.until("each knows all others", |host| host.peers().len() == usize::from(NODES) - 1).await;
        crowd
    }

    /// Returns the subnets of all nodes.
    pub(crate) fn subnets(&self) -> BTreeSet<SubnetKey> {
        self.nodes.iter().filter_map(|node| node.network.lease()).map(|lease| lease.subnet).collect()
    }

    /// Adds, changes and removes another host, and waits each time until all nodes have applied it.
    pub(crate) async fn add_change_and_remove_a_host(&self, registry: &R) {
        let day = Duration::from_secs(86_400);
        let subnet = "10.5.250.0-24&fc00::-64".parse().unwrap();
        let [before, after] = [1, 2].map(|last| LeaseAttrs::new(Ipv4Addr::new(10, 9, 8, last).into()));
        let lease = registry.create(subnet, &before, day).await.unwrap();
        self.until("all know the stranger", |host| host.peers().get(&subnet) == Some(&before)).await;
        let lease = registry.update(&lease, &after, day).await.unwrap();
        self.until("all know the change", |host| host.peers().get(&subnet) == Some(&after)).await;
        registry.delete(&lease).await.unwrap();
        self.until("all forget the stranger", |host| !host.peers().contains_key(&subnet)).await;
    }

    async fn until(&self, what: &str, is_so: impl Fn(&FakeBackend) -> bool) {
        for node in &self.nodes {
            node.until(what, |node| is_so(&node.host)).await;
        }
    }

    pub(crate) async fn stop(self) {
        for node in self.nodes {
            node.network.shutdown(Shutdown::Keep).await;
        }
    }
}

fn external(last: u8) -> ExternalInterface {
    let v4 = Ipv4Addr::new(192, 168, 0, last);
    ExternalInterface::new("eth0", 2, 1500, v4)
}
