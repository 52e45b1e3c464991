//! Releases, as watches, networks and other clients see them.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, EventType, LeaseGrantOptions, PutOptions, WatchOptions};
use flannel_core::{
    ExternalInterface, LeaseAttrs, LeaseManager, LeaseRequest, LeaseSet, Network, NetworkConfig,
    NetworkEvent, NetworkOptions, RegistryEvent, Shutdown, SubnetKey, SubnetRegistry,
};
use flannel_registry::{RegistryLeaseManager, RegistryLeaseManagerOptions};
use flannel_testing::FakeBackend;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, future::join};
use tokio::time::{sleep, timeout};

use crate::server::{DAY, PATIENCE, PREFIX, Server, host, next, subnet, subnet_key, until, words};

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"fake"}}"#;
/// The id of an etcd lease that marks a release.
const MARKED: i64 = 0x0066_6c72 << 40 | 7;

/// Makes the first step of a release, as a host that stops before the second.
async fn mark(client: &mut Client, subnet: SubnetKey, attrs: &LeaseAttrs, ttl: Duration) {
    let seconds = ttl.as_secs().try_into().unwrap();
    client.lease_grant(seconds, Some(LeaseGrantOptions::new().with_id(MARKED))).await.unwrap();
    let options = PutOptions::new().with_lease(MARKED);
    client.put(subnet_key(&subnet.to_string()), attrs.to_record(), Some(options)).await.unwrap();
}

fn is_release(event: &RegistryEvent) -> bool {
    matches!(event, RegistryEvent::Released(..))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_in_progress_is_listed_as_a_release() {
    let server = Server::start();
    let (registry, mut client) = (server.registry(), server.client().await);
    mark(&mut client, subnet(1), &host(1), DAY).await;
    let mut watch = registry.watch(None);
    let events = [next(&mut watch).await, next(&mut watch).await];
    assert_eq!(words(&events), ["snapshot 10.5.1.0-24", "deleted 10.5.1.0-24"]);
    assert!(is_release(&events[1]), "{events:?}");
    client.lease_revoke(MARKED).await.unwrap();
    // The removal is not repeated as an expiry.
    registry.create(subnet(2), &host(2), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.2.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_during_a_release_leaves_no_peer_behind() {
    let server = Server::start();
    let (registry, mut client) = (server.registry(), server.client().await);
    let mut watch = registry.watch(None);
    let mut leases = LeaseSet::default();
    leases.apply(next(&mut watch).await);
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    mark(&mut client, subnet(1), &host(1), DAY).await;
    for event in until(&mut watch, is_release).await {
        leases.apply(event);
    }
    // The history is gone, so the watch lists all leases again.
    server.etcd().kill().unwrap();
    leases.apply(next(&mut watch).await);
    server.etcd().restart().unwrap();
    for third in 2..4 {
        registry.create(subnet(third), &host(third), DAY).await.unwrap();
    }
    server.compact();
    for event in until(&mut watch, |event| matches!(event, RegistryEvent::Snapshot(_))).await {
        leases.apply(event);
    }
    server.client().await.lease_revoke(MARKED).await.unwrap();
    registry.create(subnet(4), &host(4), DAY).await.unwrap();
    let is_last =
        |event: &RegistryEvent| matches!(event, RegistryEvent::Put(lease) if lease.subnet == subnet(4));
    for event in until(&mut watch, is_last).await {
        leases.apply(event);
    }
    let known: Vec<_> = leases.leases().map(|lease| lease.subnet).collect();
    assert_eq!(known, [subnet(2), subnet(3), subnet(4)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_removal_of_a_bad_record_after_a_release_is_yielded() {
    let server = Server::start();
    let (registry, mut client) = (server.registry(), server.client().await);
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    mark(&mut client, subnet(1), &host(1), DAY).await;
    server.put("10.5.1.0-24", "garbage");
    server.remove("10.5.1.0-24");
    let events = [next(&mut watch).await, next(&mut watch).await, next(&mut watch).await];
    assert_eq!(words(&events), ["deleted 10.5.1.0-24", "bad 10.5.1.0-24", "deleted 10.5.1.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_starts_during_its_release_has_an_unmarked_lease() {
    let server = Server::start();
    let (registry, mut client) = (server.registry(), server.client().await);
    let ttl = Duration::from_secs(60);
    // The TTL is the wanted one, so only the mark shows that the record must be written again.
    mark(&mut client, subnet(1), &host(1), ttl).await;
    let mut watch = registry.watch(None);
    until(&mut watch, is_release).await;

    let mut options = RegistryLeaseManagerOptions::default();
    options.ttl = ttl;
    let manager = RegistryLeaseManager::with_options(server.registry(), options);
    let (config, attrs) = (NetworkConfig::parse(CONFIG).unwrap(), host(1));
    let own = manager.acquire(LeaseRequest::new(&config, &attrs)).await.unwrap();
    assert_eq!(own.subnet, subnet(1));
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.1.0-24"]);
    assert!(watch.next().now_or_never().is_none(), "the host holds its lease");
    let list = client.leases().await.unwrap();
    assert!(list.leases().iter().all(|lease| lease.id() != MARKED), "the marked etcd lease is revoked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_clients_see_a_write_without_a_change_and_a_removal() {
    let server = Server::start();
    let (registry, mut client) = (server.registry(), server.client().await);
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let options = WatchOptions::new().with_prefix();
    let mut watch = client.watch(PREFIX, Some(options)).await.unwrap();
    registry.delete(&lease).await.unwrap();
    let (mut writes, mut removals) = (Vec::new(), 0);
    while removals == 0 {
        let response = timeout(PATIENCE, watch.message()).await.unwrap().unwrap().unwrap();
        for event in response.events() {
            match event.event_type() {
                EventType::Put => writes.push(event.kv().unwrap().value().to_vec()),
                EventType::Delete => removals += 1,
            }
        }
    }
    assert_eq!(writes, [host(1).to_record().into_bytes()]);
}

/// A host of a network, without a kernel.
struct Node {
    network: Network,
    events: BoxStream<'static, NetworkEvent>,
    host: FakeBackend,
}

impl Node {
    async fn start(server: &Server, last: u8) -> Self {
        let (host, manager) = (FakeBackend::new(), RegistryLeaseManager::new(server.registry()));
        let external = ExternalInterface::new("eth0", 2, 1500, std::net::Ipv4Addr::new(192, 168, 0, last));
        let (network, task) = Network::new(NetworkOptions::new(manager, host.clone(), external));
        let mut node = Self { events: network.events().boxed(), network, host };
        tokio::spawn(task.run());
        node.until(|event| matches!(event, NetworkEvent::Ready)).await;
        node
    }

    async fn until(&mut self, is_it: impl Fn(&NetworkEvent) -> bool) {
        let found = async { while !is_it(&self.events.next().await.unwrap()) {} };
        timeout(PATIENCE, found).await.unwrap();
    }

    async fn has_peers(&mut self, count: usize) {
        let peers = async {
            while self.host.peers().len() != count {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = timeout(PATIENCE, peers).await;
        assert!(waited.is_ok(), "{:?}", self.host.peers());
    }

    /// Returns the pending events about peers.
    fn peer_events(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(Some(event)) = self.events.next().now_or_never() {
            let text = event.to_string();
            seen.extend(
                text.strip_prefix("peer ").and_then(|text| text.split(':').next()).map(str::to_owned),
            );
        }
        seen
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_hosts_that_release_their_leases_leave_at_once() {
    let server = Arc::new(Server::start());
    server.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
    let mut one = Node::start(&server, 1).await;
    let (two, three) = join(Node::start(&server, 2), Node::start(&server, 3)).await;
    one.has_peers(2).await;
    one.peer_events();
    join(two.network.shutdown(Shutdown::Remove), three.network.shutdown(Shutdown::Remove)).await;
    one.has_peers(0).await;
    // The peers stay away.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(one.peer_events(), ["left", "left"]);
    assert_eq!(one.host.peers().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_hosts_whose_leases_expire_are_held() {
    let server = Server::start();
    server.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
    let registry = server.registry();
    let mut one = Node::start(&server, 1).await;
    for third in 2..4 {
        // Not one that the first host may have.
        registry.create(subnet(250 + third), &host(third), Duration::from_secs(3)).await.unwrap();
    }
    one.has_peers(2).await;
    one.until(|event| matches!(event, NetworkEvent::PeerHeld(_))).await;
    one.has_peers(2).await;
}
