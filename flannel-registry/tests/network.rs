//! Whole networks, from configuration to shutdown, on a registry in memory and hosts without a kernel. The clock is
//! paused, so days pass at once.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail in its helpers too"
)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{
    BackendType, ExternalInterface, KeepEvent, Lease, LeaseAttrs, LeaseManager, LeaseRequest, ManagerError,
    Network, NetworkConfig, NetworkError, NetworkEvent, NetworkOptions, PeerEvent, Phase, PublicAddrs,
    Shutdown, SubnetKey, SubnetRegistry,
};
use flannel_registry::{LocalManager, LocalManagerOptions, MemoryRegistry};
use flannel_testing::{BackendCall, Call, FakeBackend, Fault, FaultyRegistry};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"fake"}}"#;
const DAY: Duration = Duration::from_secs(86_400);
/// Long enough for everything that does not wait for a renewal.
const MOMENT: Duration = Duration::from_secs(120);

type Registry = FaultyRegistry<MemoryRegistry>;

/// One store, and what one host sees of it.
struct Site {
    store: MemoryRegistry,
    faulty: Registry,
}

fn site() -> Site {
    let store = MemoryRegistry::new();
    store.set_config(CONFIG);
    let faulty = FaultyRegistry::new(store.clone());
    Site { store, faulty }
}

/// A host that takes part in a network.
struct Node {
    network: Network,
    task: JoinHandle<Result<(), NetworkError>>,
    events: Box<dyn Stream<Item = NetworkEvent> + Send + Unpin>,
    host: FakeBackend,
}

fn manager(registry: &Registry) -> LocalManager<Registry> {
    let seed = Some(7);
    let options = LocalManagerOptions { seed, ..LocalManagerOptions::default() };
    LocalManager::with_options(registry.clone(), options)
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

fn start(registry: &Registry, last: u8, previous: Option<&str>) -> Node {
    start_on(manager(registry), FakeBackend::new(), last, previous)
}

fn start_on(manager: impl LeaseManager, host: FakeBackend, last: u8, previous: Option<&str>) -> Node {
    let options = NetworkOptions {
        previous: previous.map(key),
        seed: Some(3),
        ..NetworkOptions::new(manager, host.clone(), external(last))
    };
    let (network, task) = Network::new(options);
    let events = Box::new(network.events());
    let task = tokio::spawn(task.run());
    Node { network, task, events, host }
}

impl Node {
    /// Waits for an event; what comes before it is passed over.
    async fn sees<T>(&mut self, what: &str, is_it: impl Fn(&NetworkEvent) -> Option<T>) -> T {
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

    async fn is_ready(&mut self) {
        self.sees("ready", |event| matches!(event, NetworkEvent::Ready).then_some(())).await;
    }

    /// Returns all that happens within a time.
    async fn within(&mut self, time: Duration) -> Vec<NetworkEvent> {
        let mut seen = Vec::new();
        let end = Instant::now() + time;
        while let Ok(Some(event)) = tokio::time::timeout_at(end, self.events.next()).await {
            seen.push(event);
        }
        seen
    }

    fn subnet(&self) -> SubnetKey {
        self.network.lease().unwrap().subnet
    }
}

fn key(text: &str) -> SubnetKey {
    text.parse().unwrap()
}

fn host(last: u8) -> LeaseAttrs {
    LeaseAttrs::new(Ipv4Addr::new(192, 168, 0, last).into())
}

impl Site {
    /// Writes the lease of a host that is no more than that, for ever.
    fn peer(&self, subnet: &str, last: u8) {
        self.store.put_raw(subnet, host(last).to_record().as_bytes());
    }

    async fn subnets(&self) -> BTreeMap<SubnetKey, PublicAddrs> {
        let leases = self.store.list().await.unwrap().leases;
        leases.into_iter().map(|lease| (lease.subnet, lease.attrs.public)).collect()
    }
}

// Starting.

#[tokio::test(start_paused = true)]
async fn a_network_waits_for_its_configuration_and_goes_on_when_it_is_there() {
    let store = MemoryRegistry::new();
    let mut node = start(&FaultyRegistry::new(store.clone()), 1, None);
    for _ in 0..5 {
        let phase = node.sees("waiting", |event| match event {
            NetworkEvent::Waiting { phase, .. } => Some(*phase),
            _ => None,
        });
        assert_eq!(phase.await, Phase::Configuration);
    }
    assert!(node.network.status().waiting_for.unwrap().contains("write it with"));
    store.set_config(r#"{"Network":"nonsense"}"#);
    let wrong = |event: &NetworkEvent| match event {
        NetworkEvent::Waiting { reason, .. } if reason.contains("nonsense") => Some(()),
        _ => None,
    };
    node.sees("what is wrong", wrong).await;
    store.set_config(CONFIG);
    node.is_ready().await;
    let status = node.network.status();
    assert_eq!((status.waiting_for, status.ready, status.mtu), (None, true, Some(1450)));
    let running = node.network.ready().await.unwrap();
    assert_eq!(running.lease.subnet, node.subnet());
    assert_eq!(running.lease.attrs.backend_type, BackendType::from("fake".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_is_silent_at_the_start_is_waited_for_at_each_step() {
    for call in [Call::Config, Call::List, Call::Create] {
        let site = site();
        site.faulty.fail_next(call, [Fault::Unavailable; 3]);
        let mut node = start(&site.faulty, 1, None);
        for _ in 0..3 {
            node.sees("waiting", |event| matches!(event, NetworkEvent::Waiting { .. }).then_some(())).await;
        }
        node.is_ready().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_network_is_ready_only_when_all_peers_are_known_and_reached() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let told = Arc::new(Notify::new());
    let manager = Slow { inner: manager(&site.faulty), told: Arc::clone(&told) };
    let host_with_leftover = FakeBackend::new();
    host_with_leftover.leave_behind(key("10.5.3.0-24"), host(3));
    let mut node = start_on(manager, host_with_leftover, 1, None);
    assert!(timeout(MOMENT, node.network.ready()).await.is_err(), "the peers are not all known yet");
    let reached: Vec<SubnetKey> = node.host.peers().into_keys().collect();
    assert_eq!(reached, [key("10.5.2.0-24"), key("10.5.3.0-24")], "nothing is removed that may be right");
    told.notify_one();
    node.is_ready().await;
    assert_eq!(node.host.peers(), [(key("10.5.2.0-24"), host(2))].into());
    assert_eq!(node.network.status().peers, 1);
}

/// A manager whose watch holds back the word that all peers are told.
struct Slow {
    inner: LocalManager<Registry>,
    told: Arc<Notify>,
}

#[async_trait]
impl LeaseManager for Slow {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    async fn config(&self) -> Result<NetworkConfig, ManagerError> {
        self.inner.config().await
    }

    async fn recall(&self, public: PublicAddrs) -> Result<Option<Lease>, ManagerError> {
        self.inner.recall(public).await
    }

    async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError> {
        self.inner.acquire(request).await
    }

    fn keep(&self, own: Lease) -> BoxStream<'static, KeepEvent> {
        self.inner.keep(own)
    }

    fn watch(&self, own: SubnetKey) -> BoxStream<'static, PeerEvent> {
        let told = Arc::clone(&self.told);
        let hold_back = move |event| {
            let told = Arc::clone(&told);
            async move {
                if matches!(event, PeerEvent::Complete) {
                    told.notified().await;
                }
                event
            }
        };
        self.inner.watch(own).then(hold_back).boxed()
    }

    async fn release(&self, own: &Lease) -> Result<(), ManagerError> {
        self.inner.release(own).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_starts_again_keeps_its_lease_and_tells_its_backend_what_it_said() {
    let site = site();
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let (subnet, host) = (node.subnet(), node.host.clone());
    node.network.shutdown(Shutdown::Keep).await;
    let mut again = start_on(manager(&site.faulty), host, 1, Some("10.5.200.0-24"));
    again.is_ready().await;
    assert_eq!(again.subnet(), subnet);
    let opened = again.host.calls().into_iter().rev().find_map(|call| match call {
        BackendCall::Opened(before) => before,
        _ => None,
    });
    assert_eq!(opened, again.network.lease().map(|lease| lease.attrs));
    assert_eq!(site.faulty.count(Call::Update), 0, "nothing new was said");
}

#[tokio::test(start_paused = true)]
async fn only_a_full_network_ends_a_network_at_the_start() {
    let site = site();
    site.peer("10.5.0.0-16", 2);
    let node = start(&site.faulty, 1, None);
    let ended = node.task.await.unwrap();
    assert!(matches!(ended, Err(NetworkError::Lease(ManagerError::OutOfSubnets(_)))), "{ended:?}");
    assert_eq!(node.network.ready().await, None);
    assert!(node.host.calls().iter().all(|call| !matches!(call, BackendCall::Configured(_))));
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_cannot_work_ends_its_network_before_it_has_a_lease() {
    let site = site();
    let host = FakeBackend::new();
    host.make_unusable("there is no such device");
    let node = start_on(manager(&site.faulty), host, 1, None);
    let ended = node.task.await.unwrap().unwrap_err();
    assert_eq!(ended.to_string(), "there is no such device");
    assert_eq!(site.subnets().await, BTreeMap::new());
}

// Peers.

#[tokio::test(start_paused = true)]
async fn hosts_learn_of_each_other_and_of_who_leaves() {
    let site = site();
    let mut one = start(&site.faulty, 1, None);
    one.is_ready().await;
    let mut two = start(&site.faulty, 2, None);
    two.is_ready().await;
    let joined = |event: &NetworkEvent| match event {
        NetworkEvent::PeerJoined(lease) => Some(lease.subnet),
        _ => None,
    };
    assert_eq!(one.sees("a peer", joined).await, two.subnet());
    sleep(MOMENT).await;
    assert_eq!(one.host.peers().into_keys().collect::<Vec<_>>(), [two.subnet()]);
    assert_eq!(two.host.peers().into_keys().collect::<Vec<_>>(), [one.subnet()]);

    let (gone, host_of_two) = (two.subnet(), two.host.clone());
    two.network.shutdown(Shutdown::Remove).await;
    let left = |event: &NetworkEvent| match event {
        NetworkEvent::PeerLeft(subnet) => Some(*subnet),
        _ => None,
    };
    assert_eq!(one.sees("a peer go", left).await, gone);
    sleep(MOMENT).await;
    assert_eq!(one.host.peers(), BTreeMap::new());
    assert_eq!(host_of_two.peers(), BTreeMap::new());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_something_new_is_changed_and_one_that_says_the_same_is_not() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let passes = node.host.busy_passes();
    site.peer("10.5.2.0-24", 2);
    let seen = node.within(MOMENT).await;
    assert!(!seen.iter().any(|event| matches!(event, NetworkEvent::PeerChanged(_))), "{seen:?}");
    assert_eq!(node.host.busy_passes(), passes);
    site.peer("10.5.2.0-24", 22);
    let changed = |event: &NetworkEvent| match event {
        NetworkEvent::PeerChanged(lease) => Some(lease.attrs.clone()),
        _ => None,
    };
    assert_eq!(node.sees("a change", changed).await, host(22));
    sleep(MOMENT).await;
    assert_eq!(node.host.peers()[&key("10.5.2.0-24")], host(22));
}

#[tokio::test(start_paused = true)]
async fn a_bad_record_is_told_once_and_takes_no_peer_along() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    site.store.put_raw("garbage", b"x");
    let mut node = start(&site.faulty, 1, None);
    let bad = |event: &NetworkEvent| match event {
        NetworkEvent::BadRecord(record) => Some(record.key.clone()),
        _ => None,
    };
    assert_eq!(node.sees("a bad record", bad).await, "garbage");
    site.store.put_raw("10.5.2.0-24", b"x");
    assert_eq!(node.sees("a bad record", bad).await, "10.5.2.0-24");
    // The same records again, by a snapshot.
    site.faulty.cut_watches();
    let seen = node.within(MOMENT).await;
    assert!(seen.iter().all(|event| bad(event).is_none()), "{seen:?}");
    assert_eq!(node.network.status().bad_records.len(), 2);
    assert_eq!(node.host.peers(), [(key("10.5.2.0-24"), host(2))].into());
    site.store.remove_raw("garbage");
    sleep(MOMENT).await;
    assert_eq!(node.network.status().bad_records.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_goes_silent_takes_no_peer_along() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    site.peer("10.5.3.0-24", 3);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    site.faulty.go_silent();
    node.sees("silence", |event| matches!(event, NetworkEvent::RegistrySilent(_)).then_some(())).await;
    site.store.remove_raw("10.5.3.0-24");
    sleep(DAY * 3).await;
    let status = node.network.status();
    assert!(status.registry_silent.is_some() && status.ready);
    assert_eq!(node.host.peers().len(), 2, "nothing is known to have changed");
    assert!(!node.task.is_finished());

    site.faulty.come_back();
    node.sees("the registry", |event| matches!(event, NetworkEvent::RegistryHeard).then_some(())).await;
    sleep(MOMENT).await;
    assert_eq!(node.network.status().registry_silent, None);
    assert_eq!(node.host.peers().into_keys().collect::<Vec<_>>(), [key("10.5.2.0-24")]);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_does_to_the_host_is_put_right() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let start = Instant::now();
    node.host.disturb(key("10.5.2.0-24"));
    let repaired = |event: &NetworkEvent| match event {
        NetworkEvent::Repaired { objects, noticed } => Some((*objects, noticed.clone())),
        _ => None,
    };
    assert_eq!(node.sees("a repair", repaired).await, (1, "a peer was disturbed".to_owned()));
    assert!(start.elapsed() < Duration::from_millis(100));
    assert_eq!(node.host.peers().len(), 1);
    assert_eq!(node.network.status().repaired, 1);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_fails_is_told_once_tried_again_and_delays_no_other() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let host = FakeBackend::new();
    host.refuse(key("10.5.2.0-24"), true);
    let mut node = start_on(manager(&site.faulty), host, 1, None);
    node.is_ready().await;
    site.peer("10.5.3.0-24", 3);
    let seen = node.within(MOMENT).await;
    assert_eq!(node.host.peers().into_keys().collect::<Vec<_>>(), [key("10.5.3.0-24")]);
    assert_eq!(node.network.status().failed.len(), 1);
    let told = seen.iter().filter(|event| matches!(event, NetworkEvent::ObjectFailed(_))).count();
    assert_eq!(told, 0, "it was told before, when the network started");
    node.host.refuse(key("10.5.2.0-24"), false);
    sleep(MOMENT).await;
    assert_eq!(node.host.peers().len(), 2);
    assert_eq!(node.network.status().failed, []);
}

// The own lease.

#[tokio::test(start_paused = true)]
async fn a_network_renews_its_lease_for_weeks_and_tells_its_peers_nothing() {
    let site = site();
    let mut one = start(&site.faulty, 1, None);
    one.is_ready().await;
    let mut two = start(&site.faulty, 2, None);
    two.is_ready().await;
    sleep(MOMENT).await;
    let passes = one.host.busy_passes();
    let seen = one.within(DAY * 14).await;
    let renewals = seen.iter().filter(|event| matches!(event, NetworkEvent::LeaseRenewed(_))).count();
    assert!((42..48).contains(&renewals), "{renewals}");
    assert_eq!(one.host.busy_passes(), passes);
    assert_eq!(site.subnets().await.len(), 2);
    assert_eq!((site.faulty.count(Call::List), site.faulty.count(Call::Watch)), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_keeps_the_traffic_going_and_the_same_subnet_is_taken_again() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let (subnet, passes) = (node.subnet(), node.host.busy_passes());
    site.store.remove_raw(&subnet.to_string());
    node.sees("the loss", |event| matches!(event, NetworkEvent::LeaseLost(_)).then_some(())).await;
    let acquired = |event: &NetworkEvent| match event {
        NetworkEvent::LeaseAcquired(lease) => Some(lease.subnet),
        _ => None,
    };
    assert_eq!(node.sees("a lease", acquired).await, subnet);
    assert_eq!(site.subnets().await[&subnet], Ipv4Addr::new(192, 168, 0, 1).into());
    assert_eq!((node.host.busy_passes(), node.host.peers().len()), (passes, 1), "the host was left alone");
    assert_eq!(node.network.status().lease_lost, None);
    let configured = BackendCall::Configured(subnet);
    assert_eq!(node.host.calls().iter().filter(|call| **call == configured).count(), 1);
    // And it is kept from now on.
    sleep(DAY * 3).await;
    assert!(site.subnets().await.contains_key(&subnet));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_another_host_overwrote_is_replaced_by_another_one() {
    let site = site();
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let stolen = node.subnet();
    site.peer(&stolen.to_string(), 66);
    let reason = node.sees("the loss", |event| match event {
        NetworkEvent::LeaseLost(reason) => Some(reason.clone()),
        _ => None,
    });
    assert!(reason.await.contains("192.168.0.66"));
    node.is_ready().await;
    assert_ne!(node.subnet(), stolen);
    assert_eq!(node.host.calls().iter().filter(|call| matches!(call, BackendCall::Configured(_))).count(), 2);
    sleep(MOMENT).await;
    assert_eq!(node.host.peers(), [(stolen, host(66))].into(), "the other host is a peer now");
    assert_eq!(node.network.ready().await.unwrap().lease.subnet, node.subnet());
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_that_cannot_be_had_again_ends_nothing() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let subnet = node.subnet();
    site.peer("10.5.0.0-16", 3);
    site.store.remove_raw(&subnet.to_string());
    for _ in 0..20 {
        node.sees("waiting", |event| match event {
            NetworkEvent::Waiting { phase: Phase::Lease, reason, .. }
                if reason.contains("out of subnets") =>
            {
                Some(())
            }
            _ => None,
        })
        .await;
    }
    let status = node.network.status();
    assert!(status.lease_lost.is_some() && status.ready);
    assert_eq!(status.lease.unwrap().subnet, subnet, "it is still asked for");
    assert!(node.host.peers().contains_key(&key("10.5.2.0-24")));
    site.store.remove_raw("10.5.0.0-16");
    node.sees("a lease", |event| matches!(event, NetworkEvent::LeaseAcquired(_)).then_some(())).await;
    assert_eq!(node.subnet(), subnet);
}

// Ending.

#[tokio::test(start_paused = true)]
async fn to_shut_down_and_keep_leaves_lease_and_host_as_they_are() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let before = (site.subnets().await, node.host.peers(), node.host.calls());
    node.network.shutdown(Shutdown::Keep).await;
    assert!(node.task.await.unwrap().is_ok());
    assert_eq!((site.subnets().await, node.host.peers(), node.host.calls()), before);
    assert!(node.events.next().await.is_none(), "the events end with the network");
}

#[tokio::test(start_paused = true)]
async fn to_shut_down_and_remove_leaves_nothing() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    // The record was written since: what is given back is the record as it is now.
    let subnet = node.subnet();
    sleep(DAY * 2).await;
    node.network.shutdown(Shutdown::Remove).await;
    assert!(node.task.await.unwrap().is_ok());
    assert_eq!(node.host.calls().last(), Some(&BackendCall::Removed));
    assert!(!site.subnets().await.contains_key(&subnet));
}

#[tokio::test(start_paused = true)]
async fn to_remove_with_a_silent_registry_removes_what_is_on_the_host_and_says_what_is_left() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    site.faulty.go_silent();
    node.network.shutdown(Shutdown::Remove).await;
    assert!(matches!(node.task.await.unwrap(), Err(NetworkError::Lease(ManagerError::Registry(_)))));
    assert_eq!(node.host.peers(), BTreeMap::new());
}

#[tokio::test(start_paused = true)]
async fn a_handle_that_is_dropped_ends_the_task_and_keeps_everything() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let subnet = node.subnet();
    drop(node.network);
    assert!(node.task.await.unwrap().is_ok());
    assert_eq!(node.host.peers().len(), 1);
    assert!(site.subnets().await.contains_key(&subnet));
}

#[tokio::test(start_paused = true)]
async fn a_network_that_still_waits_can_be_shut_down() {
    for shutdown in [Shutdown::Keep, Shutdown::Remove] {
        let node = start(&FaultyRegistry::new(MemoryRegistry::new()), 1, None);
        sleep(MOMENT).await;
        node.network.shutdown(shutdown).await;
        assert!(node.task.await.unwrap().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn several_networks_in_one_process_know_nothing_of_each_other() {
    let sites = [site(), site()];
    let mut nodes = Vec::new();
    for site in &sites {
        nodes.push(start(&site.faulty, 1, Some("10.5.7.0-24")));
        nodes.push(start(&site.faulty, 2, Some("10.5.8.0-24")));
    }
    for node in &mut nodes {
        node.is_ready().await;
    }
    let subnets: Vec<String> = nodes.iter().map(|node| node.subnet().to_string()).collect();
    assert_eq!(subnets, ["10.5.7.0-24", "10.5.8.0-24", "10.5.7.0-24", "10.5.8.0-24"]);
    sites[0].faulty.go_silent();
    sites[1].peer("10.5.9.0-24", 9);
    sleep(MOMENT).await;
    let peers: Vec<usize> = nodes.iter().map(|node| node.host.peers().len()).collect();
    assert_eq!(peers, [1, 1, 2, 2]);
    let silent: Vec<bool> =
        nodes.iter().map(|node| node.network.status().registry_silent.is_some()).collect();
    assert_eq!(silent, [true, true, false, false]);
    nodes.remove(0).network.shutdown(Shutdown::Keep).await;
    assert!(nodes.iter().all(|node| !node.task.is_finished()));
}
