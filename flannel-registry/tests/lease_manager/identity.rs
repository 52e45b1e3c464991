//! Hosts with ids: lost and duplicate ids and addresses.

use std::sync::Arc;

use flannel_core::{KeepEvent, Lease, LeaseAttrs, LeaseManager, LeaseRequest, NodeId, SubnetRegistry};
use flannel_registry::{MemoryRegistry, NodeIdentity, RegistryLeaseManager, RegistryLeaseManagerOptions};
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::site::*;

/// Returns a host with an id and an address.
struct Node {
    manager: RegistryLeaseManager<MemoryRegistry>,
    identity: Arc<NodeIdentity>,
    attrs: LeaseAttrs,
}

fn node(store: &MemoryRegistry, id: u8, address: u8) -> Node {
    let identity = Arc::new(NodeIdentity::fixed(NodeId::from_bytes([id; 16])));
    let mut options = RegistryLeaseManagerOptions::default();
    options.identity = Some(Arc::clone(&identity));
    options.seed = Some(u64::from(id));
    Node {
        manager: RegistryLeaseManager::with_options(store.clone(), options),
        identity,
        attrs: host(address),
    }
}

impl Node {
    async fn acquire(&self, previous: Option<Lease>) -> Lease {
        let previous = previous.map(|lease| lease.subnet);
        let config = config(CONFIG);
        let request = LeaseRequest::new(&config, &self.attrs).with_previous(previous);
        self.manager.acquire(request).await.unwrap()
    }

    /// Renews a lease and watches, as a network does.
    fn keep(&self, own: &Lease) -> (BoxStream<'static, KeepEvent>, tokio::task::JoinHandle<()>) {
        let mut peers = self.manager.watch(own.subnet);
        let peers = tokio::spawn(async move { while peers.next().await.is_some() {} });
        (self.manager.keep(own.clone()), peers)
    }
}

/// Returns the next event other than `Waiting`.
async fn next_event(keep: &mut BoxStream<'static, KeepEvent>) -> KeepEvent {
    loop {
        let event = keep.next().await.unwrap();
        if !matches!(event, KeepEvent::Waiting(_)) {
            return event;
        }
    }
}

fn store() -> MemoryRegistry {
    let store = MemoryRegistry::new();
    store.set_config(CONFIG);
    store
}

async fn leases(store: &MemoryRegistry) -> Vec<Lease> {
    store.list().await.unwrap().leases.into_iter().map(Arc::unwrap_or_clone).collect()
}

#[tokio::test(start_paused = true)]
async fn a_host_finds_its_lease_after_its_address_changed_while_it_was_down() {
    let store = store();
    let before = node(&store, 1, 1).acquire(None).await;
    let moved = node(&store, 1, 9);
    let previous = moved.manager.previous_lease(moved.attrs.public).await.unwrap();
    assert_eq!(previous, None, "the hardware address could be that of a host it was cloned from");
    let after = moved.acquire(None).await;
    assert_eq!((after.subnet, after.attrs.public), (before.subnet, host(9).public));
    assert_eq!(leases(&store).await, std::slice::from_ref(&after));
    let (mut keep, _watch) = moved.keep(&after);
    assert_eq!(next_event(&mut keep).await, KeepEvent::Renewed(DAY), "no dispute");
}

#[tokio::test(start_paused = true)]
async fn a_host_without_its_id_finds_its_lease_by_address() {
    let store = store();
    let before = node(&store, 1, 1).acquire(None).await;
    let again = node(&store, 2, 1);
    let previous = again.manager.previous_lease(again.attrs.public).await.unwrap();
    assert_eq!(previous, Some(before.clone()));
    let after = again.acquire(None).await;
    assert_eq!(after.subnet, before.subnet);
    assert_eq!(after.attrs.node, Some(again.identity.id()));
    let (mut keep, _watch) = again.keep(&after);
    assert_eq!(next_event(&mut keep).await, KeepEvent::Renewed(DAY));
    assert_eq!(leases(&store).await, [after]);
}

#[tokio::test(start_paused = true)]
async fn a_record_without_an_id_is_found_by_address_and_gets_the_id() {
    let store = store();
    store.put_raw("10.5.9.0-24", br#"{"PublicIP":"192.168.0.1"}"#);
    let own = node(&store, 1, 1).acquire(None).await;
    assert_eq!((own.subnet, own.attrs.node), (key("10.5.9.0-24"), Some(NodeId::from_bytes([1; 16]))));
    assert_eq!(leases(&store).await, [own]);
}

#[tokio::test(start_paused = true)]
async fn of_two_hosts_with_one_address_the_first_keeps_its_lease() {
    let store = store();
    let earlier = node(&store, 1, 1);
    let own = earlier.acquire(None).await;
    let (mut kept, _watch) = earlier.keep(&own);
    let later = node(&store, 2, 1);
    let taken = later.acquire(None).await;
    assert_eq!(taken.subnet, own.subnet, "it may be its own, from before it lost its id");
    let (mut lost, _other_watch) = later.keep(&taken);

    let clash = "two hosts have the IP 192.168.0.1";
    let disputed = next_event(&mut kept).await;
    assert!(matches!(&disputed, KeepEvent::Disputed(what) if what.contains(clash)), "{disputed:?}");
    assert_eq!(next_event(&mut kept).await, KeepEvent::Renewed(DAY));
    let lost = next_event(&mut lost).await;
    assert!(
        matches!(&lost, KeepEvent::Lost(why) if why.contains(clash) && why.contains("-public-ip")),
        "{lost:?}"
    );
    let other = later.acquire(Some(taken)).await;
    assert_ne!(other.subnet, own.subnet);
    let (mut keep, _third_watch) = later.keep(&other);
    for keep in [&mut kept, &mut keep] {
        assert_eq!(next_event(keep).await, KeepEvent::Renewed(DAY), "the hosts no longer dispute");
    }
    let held: Vec<_> =
        leases(&store).await.into_iter().map(|lease| (lease.subnet, lease.attrs.node)).collect();
    assert!(held.contains(&(own.subnet, Some(earlier.identity.id()))) && held.len() == 2, "{held:?}");
    let after_a_restart = node(&store, 2, 1).acquire(Some(own)).await;
    assert_eq!(after_a_restart.subnet, other.subnet);
}

#[tokio::test(start_paused = true)]
async fn a_cloned_host_takes_another_id_and_another_lease() {
    let store = store();
    let original = node(&store, 1, 1);
    let own = original.acquire(None).await;
    let (mut kept, _watch) = original.keep(&own);
    let clone = node(&store, 1, 2);
    let taken = clone.acquire(Some(own.clone())).await;
    assert_eq!(taken.subnet, own.subnet, "it may be its own, from before it moved");
    let (mut lost, _other_watch) = clone.keep(&taken);

    let clash = "two hosts have the node id 01010101010101010101010101010101";
    let disputed = next_event(&mut kept).await;
    assert!(matches!(&disputed, KeepEvent::Disputed(what) if what.contains(clash)), "{disputed:?}");
    assert_eq!(next_event(&mut kept).await, KeepEvent::Renewed(DAY));
    let lost = next_event(&mut lost).await;
    assert!(matches!(&lost, KeepEvent::Lost(why) if why.contains(clash)), "{lost:?}");
    assert_ne!(clone.identity.id(), original.identity.id());
    let other = clone.acquire(Some(taken)).await;
    assert_ne!(other.subnet, own.subnet);
    assert_eq!(other.attrs.node, Some(clone.identity.id()));
    assert_eq!(leases(&store).await.len(), 2);
    assert_eq!(next_event(&mut kept).await, KeepEvent::Renewed(DAY));
}
