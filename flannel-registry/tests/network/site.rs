//! A store and its hosts.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::{
    ExternalInterface, ExternalUpdate, LeaseAttrs, LeaseManager, Network, NetworkError, NetworkEvent,
    NetworkOptions, PublicAddrs, SubnetKey, SubnetRegistry,
};
use flannel_registry::{MemoryRegistry, RegistryLeaseManager, RegistryLeaseManagerOptions, TokioClock};
use flannel_testing::{FakeBackend, FaultyRegistry};
use futures::{Stream, StreamExt, stream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

pub(crate) const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"fake"}}"#;
pub(crate) const DAY: Duration = Duration::from_secs(86_400);
/// Long enough for everything except a renewal.
pub(crate) const MOMENT: Duration = Duration::from_secs(120);

pub(crate) type Registry = FaultyRegistry<MemoryRegistry>;

/// A store, and the view of one host.
pub(crate) struct Site {
    pub(crate) store: MemoryRegistry,
    pub(crate) faulty: Registry,
}

pub(crate) fn site() -> Site {
    let store = MemoryRegistry::new();
    store.set_config(CONFIG);
    let faulty = FaultyRegistry::new(store.clone());
    Site { store, faulty }
}

/// A host in a network.
pub(crate) struct Node {
    pub(crate) network: Network,
    pub(crate) task: JoinHandle<Result<(), NetworkError>>,
    pub(crate) events: Box<dyn Stream<Item = NetworkEvent> + Send + Unpin>,
    pub(crate) host: FakeBackend,
    /// The sender of changes of the external interface.
    pub(crate) moves: tokio::sync::mpsc::UnboundedSender<ExternalUpdate>,
}

pub(crate) fn manager(registry: &Registry) -> RegistryLeaseManager<Registry> {
    let seed = Some(7);
    // Weeks pass in these tests, and a `BootClock` wakes up four times a minute.
    let clock = Arc::new(TokioClock::new());
    let mut options = RegistryLeaseManagerOptions::default();
    options.clock = clock;
    options.seed = seed;
    RegistryLeaseManager::with_options(registry.clone(), options)
}

pub(crate) fn external(last: u8) -> ExternalInterface {
    let v4 = Ipv4Addr::new(192, 168, 0, last);
    ExternalInterface::new("eth0", 2, 1500, v4)
}

pub(crate) fn start(registry: &Registry, last: u8, previous: Option<&str>) -> Node {
    start_on(manager(registry), FakeBackend::new(), last, previous)
}

pub(crate) fn start_on(
    manager: impl LeaseManager,
    host: FakeBackend,
    last: u8,
    previous: Option<&str>,
) -> Node {
    let (moves, moved) = tokio::sync::mpsc::unbounded_channel();
    let moved = stream::unfold(moved, |mut moved| async { moved.recv().await.map(|update| (update, moved)) });
    let mut options = NetworkOptions::new(manager, host.clone(), external(last));
    options.previous = previous.map(key);
    options.seed = Some(3);
    options.external_changes = moved.boxed();
    Node { moves, ..start_with(options, host) }
}

/// Starts a host whose external interface does not change.
pub(crate) fn start_with(options: NetworkOptions, host: FakeBackend) -> Node {
    let (network, task) = Network::new(options);
    let events = Box::new(network.events());
    let task = tokio::spawn(task.run());
    Node { network, task, events, host, moves: tokio::sync::mpsc::unbounded_channel().0 }
}

impl Node {
    /// Waits for an event and skips those before it.
    pub(crate) async fn sees<T>(&mut self, what: &str, is_it: impl Fn(&NetworkEvent) -> Option<T>) -> T {
        let seen = async {
            loop {
                let event = self.events.next().await.expect("the network goes on");
                if let Some(found) = is_it(&event) {
                    return found;
                }
            }
        };
        timeout(DAY * 7, seen).await.unwrap_or_else(|_| panic!("never saw {what}"))
    }

    pub(crate) async fn is_ready(&mut self) {
        self.sees("ready", |event| matches!(event, NetworkEvent::Ready).then_some(())).await;
    }

    /// Returns all events within a time.
    pub(crate) async fn within(&mut self, time: Duration) -> Vec<NetworkEvent> {
        let mut seen = Vec::new();
        let end = Instant::now() + time;
        while let Ok(Some(event)) = tokio::time::timeout_at(end, self.events.next()).await {
            seen.push(event);
        }
        seen
    }

    pub(crate) fn subnet(&self) -> SubnetKey {
        self.network.lease().unwrap().subnet
    }
}

pub(crate) fn key(text: &str) -> SubnetKey {
    text.parse().unwrap()
}

pub(crate) fn host(last: u8) -> LeaseAttrs {
    LeaseAttrs::new(Ipv4Addr::new(192, 168, 0, last).into())
}

impl Site {
    /// Writes a permanent lease of another host.
    pub(crate) fn peer(&self, subnet: &str, last: u8) {
        self.store.put_raw(subnet, host(last).to_record().as_bytes());
    }

    pub(crate) async fn subnets(&self) -> BTreeMap<SubnetKey, PublicAddrs> {
        let leases = self.store.list().await.unwrap().leases;
        leases.into_iter().map(|lease| (lease.subnet, lease.attrs.public)).collect()
    }
}
