//! Many nodes in one process that start at the same moment, each with a registry of its own.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use flannel_core::{
    ExternalInterface, LeaseAttrs, Network, NetworkOptions, Shutdown, SubnetKey, SubnetRegistry,
};
use flannel_registry::LocalManager;
use flannel_testing::FakeBackend;
use tokio::time::sleep;

/// What the nodes read first.
pub(crate) const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"fake"}}"#;
/// How many they are.
pub(crate) const NODES: u8 = 60;
/// How late all of them together may be on a machine that runs all tests at once. It is also how long their registries
/// wait for an answer, so that being slow alone makes nobody ask twice.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Crowd<R> {
    pub(crate) registries: Vec<R>,
    networks: Vec<Network>,
    hosts: Vec<FakeBackend>,
}

impl<R: SubnetRegistry + Clone> Crowd<R> {
    /// Starts all nodes and waits until each knows all others.
    pub(crate) async fn start(open: impl Fn() -> R) -> Self {
        let registries: Vec<R> = (0..NODES).map(|_| open()).collect();
        let hosts: Vec<FakeBackend> = (0..NODES).map(|_| FakeBackend::new()).collect();
        let networks = (1..).zip(registries.iter().zip(&hosts)).map(|(last, (registry, host))| {
            let manager = LocalManager::new(registry.clone());
            let options = NetworkOptions::new(manager, host.clone(), external(last));
            let (network, task) = Network::new(options);
            tokio::spawn(task.run());
            network
        });
        let networks = networks.collect();
        let crowd = Self { registries, networks, hosts };
        crowd.until("each knows all others", |host| host.peers().len() == usize::from(NODES) - 1).await;
        crowd
    }

    /// The subnets of all nodes.
    pub(crate) fn subnets(&self) -> BTreeSet<SubnetKey> {
        self.networks.iter().filter_map(|network| network.lease().map(|lease| lease.subnet)).collect()
    }

    /// Lets another host come, change and go, and waits each time until all nodes act on it.
    pub(crate) async fn meet_a_stranger(&self, registry: &R) {
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
        let begin = Instant::now();
        while !self.hosts.iter().all(&is_so) {
            assert!(begin.elapsed() < PATIENCE, "not in time: {what}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn stop(self) {
        for network in self.networks {
            network.shutdown(Shutdown::Keep).await;
        }
    }
}

fn external(last: u8) -> ExternalInterface {
    let v4 = Ipv4Addr::new(192, 168, 0, last);
    ExternalInterface {
        name: "eth0".to_owned(),
        index: 2,
        mtu: 1500,
        v4: Some(v4),
        v6: None,
        public: v4.into(),
    }
}
