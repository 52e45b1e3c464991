//! The handles of a network, and what its manager and backend may decide.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{
    Backend, BackendError, ConditionName, IpFamilies, KeepEvent, Lease, LeaseAttrs, LeaseManager,
    LeaseRequest, ManagerError, Network, NetworkConfig, NetworkEvent, NetworkOptions, NotReady, OpenBackend,
    OpenRequest, PeerEvent, Phase, PublicAddrs, Shutdown, StaticLeaseManager, SubnetKey,
};
use flannel_testing::FakeBackend;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::site::*;

fn static_manager(subnet: &str) -> StaticLeaseManager {
    StaticLeaseManager::new(NetworkConfig::parse(CONFIG).unwrap(), key(subnet)).unwrap()
}

fn lease(subnet: &str, last: u8) -> Lease {
    Lease::new(key(subnet), host(last))
}

#[tokio::test(start_paused = true)]
async fn the_running_state_follows_lease_mtu_and_config_and_agrees_with_every_handle() {
    let manager = static_manager("10.5.1.0/24");
    manager.set_peers([lease("10.5.2.0/24", 2)]);
    let node = start_on(manager.clone(), FakeBackend::new(), 1, None);
    let mut running = node.network.running();
    let ready = node.network.ready().await.unwrap();
    assert_eq!(running.borrow_and_update().clone(), Some(ready.clone()));
    assert_eq!(node.network.lease(), Some(ready.lease.clone()));

    node.moves.send(external(77).into()).unwrap();
    let moved = running
        .wait_for(|now| now.as_ref().is_some_and(|now| now.lease.attrs.public == host(77).public))
        .await;
    assert_eq!(moved.unwrap().as_ref().map(|now| now.lease.clone()), node.network.clone().lease());

    manager.reassign(key("10.5.9.0/24")).unwrap();
    let moved = |now: &Option<flannel_core::Running>| {
        now.as_ref().is_some_and(|now| now.lease.subnet == key("10.5.9.0/24"))
    };
    let moved = running.wait_for(moved).await.unwrap().clone().unwrap();
    assert_eq!(
        (Some(moved.lease.clone()), moved),
        (node.network.lease(), node.network.ready().await.unwrap())
    );
}

#[tokio::test(start_paused = true)]
async fn a_network_runs_until_its_last_handle_is_dropped_and_reports_its_end() {
    let manager = static_manager("10.5.1.0/24");
    manager.set_peers(Vec::<Lease>::new());
    let Node { network, task, events, host, .. } = start_on(manager, FakeBackend::new(), 1, None);
    let (other, view) = (network.clone(), network.view());
    drop(network);
    other.ready().await.unwrap();
    assert!(view.status().is_in_order());
    drop((other, events));
    task.await.unwrap().unwrap();
    let status = view.status();
    assert_eq!(status.ended.as_deref(), Some("the network was shut down"));
    let names: Vec<_> = status.conditions.iter().map(|condition| condition.name).collect();
    assert_eq!((names, status.is_in_order()), (vec![ConditionName::Ended], false));
    assert!(host.peers().is_empty());
}

#[tokio::test(start_paused = true)]
async fn ready_returns_why_a_network_never_became_ready() {
    let site = site();
    site.store.remove_config();
    let node = start(&site.faulty, 1, None);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let other = node.network.clone();
    node.network.shutdown(Shutdown::Keep).await;
    let error = other.ready().await.unwrap_err();
    assert!(
        matches!(&error, NotReady::Ended { waiting_for: Some(why), .. } if why.phase == Phase::Configuration)
    );
    let text = error.to_string();
    assert!(
        text.starts_with("the network was shut down before it was ready, while reading the network config:"),
        "{text}"
    );

    let options = NetworkOptions::new(static_manager("10.5.1.0/24"), FakeBackend::new(), external(1));
    let (network, task) = Network::new(options);
    drop(task);
    let text = network.ready().await.unwrap_err().to_string();
    assert_eq!(text, "the task of the network was dropped before it was ready");
    assert_eq!(network.status().ended.as_deref(), Some("the task of the network was dropped"));
    assert!(network.running().has_changed().is_err(), "nothing can change any more");
}

#[tokio::test(start_paused = true)]
async fn orderly_departures_are_obeyed_at_once() {
    let manager = static_manager("10.5.1.0/24");
    manager.set_peers([lease("10.5.2.0/24", 2), lease("10.5.3.0/24", 3)]);
    let mut node = start_on(manager.clone(), FakeBackend::new(), 1, None);
    node.is_ready().await;
    for subnet in ["10.5.2.0/24", "10.5.3.0/24"] {
        manager.remove_peer(&key(subnet));
        let events = node.within(Duration::from_secs(1)).await;
        let left =
            |event: &NetworkEvent| matches!(event, NetworkEvent::PeerLeft(left) if *left == key(subnet));
        assert!(events.iter().any(left), "{events:?}");
        assert!(!events.iter().any(|event| matches!(event, NetworkEvent::PeerJoined(_))), "{events:?}");
    }
    assert!(node.host.peers().is_empty());
}

#[tokio::test(start_paused = true)]
async fn leases_that_their_hosts_release_are_obeyed_at_once() {
    let site = site();
    let mut nodes = [1, 2, 3].map(|last| start(&site.faulty, last, None));
    for node in &mut nodes {
        node.is_ready().await;
    }
    let [mut one, two, three] = nodes;
    one.within(MOMENT).await;
    two.network.shutdown(Shutdown::Remove).await;
    three.network.shutdown(Shutdown::Remove).await;
    let events = one.within(MOMENT).await;
    let left = events.iter().filter(|event| matches!(event, NetworkEvent::PeerLeft(_))).count();
    assert_eq!((left, one.host.peers().len()), (2, 0), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn a_held_peer_has_an_event_of_its_own() {
    let manager = static_manager("10.5.1.0/24");
    manager.set_peers([lease("10.5.2.0/24", 2), lease("10.5.3.0/24", 3)]);
    let mut node = start_on(manager.clone(), FakeBackend::new(), 1, None);
    node.is_ready().await;
    manager.set_peers(Vec::<Lease>::new());
    let events = node.within(Duration::from_secs(1)).await;
    let held: Vec<_> = events
        .iter()
        .filter_map(|event| if let NetworkEvent::PeerHeld(lease) = event { Some(lease.subnet) } else { None })
        .collect();
    assert_eq!(held, [key("10.5.2.0/24"), key("10.5.3.0/24")], "{events:?}");
    assert_eq!(node.host.peers().len(), 2);
}

/// An orchestrator that assigns the subnet, knows the host by its name and overrides its address.
#[derive(Default)]
struct Orchestrator {
    assigned: Mutex<Option<SubnetKey>>,
    ready: Mutex<Vec<SubnetKey>>,
    overrides: tokio::sync::Notify,
}

struct Client(Arc<Orchestrator>);

impl Client {
    fn lease(subnet: SubnetKey, attrs: &LeaseAttrs, last: u8) -> Lease {
        let mut attrs = attrs.clone();
        attrs.public = host(last).public;
        Lease::new(subnet, attrs)
    }
}

#[async_trait]
impl LeaseManager for Client {
    fn describe(&self) -> String {
        "the orchestrator".to_owned()
    }
    fn host_name(&self) -> Option<String> {
        Some("worker-1".to_owned())
    }
    async fn config(&self) -> Result<NetworkConfig, ManagerError> {
        Ok(NetworkConfig::parse(CONFIG).unwrap())
    }
    async fn previous_lease(&self, _: PublicAddrs) -> Result<Option<Lease>, ManagerError> {
        Ok(None)
    }
    async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError> {
        let assigned = *self.0.assigned.lock().unwrap();
        let subnet =
            assigned.ok_or_else(|| ManagerError::not_assigned("node worker-1", "podCIDR is empty"))?;
        Ok(Self::lease(subnet, request.attrs, 200))
    }
    async fn publish(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, ManagerError> {
        Ok(Self::lease(own.subnet, attrs, 200))
    }
    fn host_ready(&self, own: &Lease) {
        self.0.ready.lock().unwrap().push(own.subnet);
    }
    fn keep(&self, own: Lease) -> BoxStream<'static, KeepEvent> {
        let shared = Arc::clone(&self.0);
        let permanent = stream::once(async { KeepEvent::Permanent });
        let overridden = stream::once(async move {
            shared.overrides.notified().await;
            KeepEvent::Overridden(Self::lease(own.subnet, &own.attrs, 201))
        });
        permanent.chain(overridden).chain(stream::pending()).boxed()
    }
    fn watch(&self, _: SubnetKey) -> BoxStream<'static, PeerEvent> {
        stream::once(async { PeerEvent::Complete }).chain(stream::pending()).boxed()
    }
    async fn release(&self, _: &Lease) -> Result<(), ManagerError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_manager_may_assign_a_subnet_later_override_addresses_and_name_the_host() {
    let orchestrator = Arc::new(Orchestrator::default());
    let manager: Box<dyn LeaseManager> = Box::new(Client(Arc::clone(&orchestrator)));
    let mut node = start_on(manager, FakeBackend::new(), 1, None);
    let waits = |event: &NetworkEvent| match event {
        NetworkEvent::Waiting { phase: Phase::Lease, reason, .. } => Some(reason.clone()),
        _ => None,
    };
    let reason = node.sees("the wait", waits).await;
    assert_eq!(reason, "no subnet for this host in node worker-1 yet: podCIDR is empty");
    assert_eq!(node.network.status().waiting_for.map(|waiting| waiting.reason), Some(reason));

    // Another length than the config's, and outside the range for new leases.
    let subnet = key("10.5.0.128/25");
    *orchestrator.assigned.lock().unwrap() = Some(subnet);
    let running = node.network.ready().await.unwrap();
    assert_eq!((running.lease.subnet, running.lease.attrs.public), (subnet, host(200).public));
    let status = node.network.status();
    let own = status.lease.unwrap();
    assert_eq!((own.name.as_deref(), own.public), (Some("worker-1"), host(200).public));
    assert_eq!(*orchestrator.ready.lock().unwrap(), [subnet]);
    let seen = node.within(MOMENT).await;
    assert!(!seen.iter().any(|event| matches!(event, NetworkEvent::LeasePublished(_))), "{seen:?}");

    orchestrator.overrides.notify_one();
    node.sees("the override", |event| matches!(event, NetworkEvent::LeasePublished(_)).then_some(())).await;
    assert_eq!(node.network.lease().unwrap().attrs.public, host(201).public);
}

/// Carries IPv4 over IPv6, and keeps a secret.
struct OverIpv6(FakeBackend, Arc<Mutex<Vec<String>>>);

impl OpenBackend for OverIpv6 {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        let state_dir = request.state_dir.map(|path| path.display().to_string());
        self.1.lock().unwrap().extend(state_dir);
        self.0.open(request)
    }
    fn underlay(&self, _: &NetworkConfig) -> IpFamilies {
        IpFamilies::V6
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_may_have_another_underlay_and_a_state_directory() {
    let (host, opened) = (FakeBackend::new(), Arc::new(Mutex::new(Vec::new())));
    let manager = static_manager("10.5.1.0/24");
    manager.set_peers(Vec::<Lease>::new());
    let both = PublicAddrs { v4: "192.168.0.1".parse().ok(), v6: "fd00::1".parse().ok() };
    let external = flannel_core::ExternalInterface::new("eth0", 2, 1500, both);
    let backend = OverIpv6(host.clone(), Arc::clone(&opened));
    let mut options = NetworkOptions::new(manager, backend, external);
    options.state_dir = Some("/var/lib/network".into());
    let node = start_with(options, host);
    let running = node.network.ready().await.unwrap();
    assert_eq!(running.lease.attrs.public, PublicAddrs { v4: None, v6: both.v6 });
    assert_eq!(*opened.lock().unwrap(), ["/var/lib/network"]);
}
