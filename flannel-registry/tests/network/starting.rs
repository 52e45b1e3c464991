//! Start of a network.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::{
    BackendType, ConditionName, KeepEvent, Lease, LeaseAttrs, LeaseManager, LeaseRequest, ManagerError,
    NetworkConfig, NetworkError, NetworkEvent, NotReady, PeerEvent, Phase, PublicAddrs, Shutdown, SubnetKey,
};
use flannel_registry::{MemoryRegistry, RegistryLeaseManager};
use flannel_testing::{BackendCall, Call, FakeBackend, FaultyRegistry, InjectedFault};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::site::*;

#[tokio::test(start_paused = true)]
async fn a_network_waits_for_its_config() {
    let store = MemoryRegistry::new();
    let mut node = start(&FaultyRegistry::new(store.clone()), 1, None);
    for _ in 0..5 {
        let phase = node.sees("waiting", |event| match event {
            NetworkEvent::Waiting { phase, .. } => Some(*phase),
            _ => None,
        });
        assert_eq!(phase.await, Phase::Configuration);
    }
    assert!(node.network.status().waiting_for.unwrap().reason.contains("write it with"));
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
async fn each_step_of_the_start_waits_for_the_registry() {
    for call in [Call::Config, Call::List, Call::Create] {
        let site = site();
        site.faulty.fail_next(call, [InjectedFault::Unavailable; 3]);
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
    let seen = Arc::new(Notify::new());
    let manager = Slow { inner: manager(&site.faulty), seen: Arc::clone(&seen) };
    let host_with_leftover = FakeBackend::new();
    host_with_leftover.add_leftover(key("10.5.3.0-24"), host(3));
    let mut node = start_on(manager, host_with_leftover, 1, None);
    assert!(timeout(MOMENT, node.network.ready()).await.is_err(), "the peers are not all known yet");
    let reached: Vec<SubnetKey> = node.host.peers().into_keys().collect();
    assert_eq!(reached, [key("10.5.2.0-24"), key("10.5.3.0-24")], "nothing is removed that may be right");
    seen.notify_one();
    node.is_ready().await;
    assert_eq!(node.host.peers(), [(key("10.5.2.0-24"), host(2))].into());
    assert_eq!(node.network.status().peers.programmed, 1);
}

/// A manager whose watch delays `Complete`.
struct Slow {
    inner: RegistryLeaseManager<Registry>,
    seen: Arc<Notify>,
}

#[async_trait]
impl LeaseManager for Slow {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    async fn config(&self) -> Result<NetworkConfig, ManagerError> {
        self.inner.config().await
    }

    async fn previous_lease(&self, public: PublicAddrs) -> Result<Option<Lease>, ManagerError> {
        self.inner.previous_lease(public).await
    }

    async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError> {
        self.inner.acquire(request).await
    }

    async fn publish(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, ManagerError> {
        self.inner.publish(own, attrs).await
    }

    fn keep(&self, own: Lease) -> BoxStream<'static, KeepEvent> {
        self.inner.keep(own)
    }

    fn watch(&self, own: SubnetKey) -> BoxStream<'static, PeerEvent> {
        let seen = Arc::clone(&self.seen);
        let hold_back = move |event| {
            let seen = Arc::clone(&seen);
            async move {
                if matches!(event, PeerEvent::Complete) {
                    seen.notified().await;
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
async fn a_restarted_host_keeps_its_lease_and_passes_it_to_its_backend() {
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
async fn only_a_full_network_fails_the_start() {
    let site = site();
    site.peer("10.5.0.0-16", 2);
    let node = start(&site.faulty, 1, None);
    let ended = node.task.await.unwrap();
    assert!(matches!(ended, Err(NetworkError::Lease(ManagerError::OutOfSubnets(_)))), "{ended:?}");
    let not_ready = node.network.ready().await.unwrap_err();
    assert!(matches!(&not_ready, NotReady::Failed(why) if why.contains("out of subnets")), "{not_ready}");
    let status = node.network.status();
    assert!(status.ended.is_some_and(|why| why.contains("out of subnets")));
    assert_eq!(status.conditions.len(), 1, "{:?}", status.conditions);
    assert_eq!(status.conditions[0].name, ConditionName::Ended);
    assert!(node.host.calls().iter().all(|call| !matches!(call, BackendCall::Configured(_))));
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_cannot_open_ends_its_network_before_it_has_a_lease() {
    let site = site();
    let host = FakeBackend::new();
    host.fail_open("there is no such device");
    let node = start_on(manager(&site.faulty), host, 1, None);
    let ended = node.task.await.unwrap().unwrap_err();
    assert_eq!(ended.to_string(), "there is no such device");
    assert_eq!(site.subnets().await, BTreeMap::new());
}

/// Another program uses the same device at the same time; shortly after, the kernel accepts everything.
#[tokio::test(start_paused = true)]
async fn a_temporary_kernel_error_does_not_fail_the_start() {
    let site = site();
    let host = FakeBackend::new();
    host.fail_start(3, 0);
    let mut node = start_on(manager(&site.faulty), host, 1, None);
    node.is_ready().await;
    let host = FakeBackend::new();
    host.fail_start(usize::MAX, 0);
    let node = start_on(manager(&site.faulty), host, 2, None);
    let ended = node.task.await.unwrap().unwrap_err();
    assert_eq!(flannel_core::chain(&ended), "cannot make the device: no such device");
}

/// The backend is open and the host has its lease, so the next pass repairs what the kernel refused.
#[tokio::test(start_paused = true)]
async fn a_kernel_error_at_the_first_pass_is_repaired_by_the_next() {
    let site = site();
    let host = FakeBackend::new();
    host.fail_start(0, 1);
    let mut node = start_on(manager(&site.faulty), host, 1, None);
    let refused = node
        .sees("the refusal", |event| {
            if let NetworkEvent::ObjectFailed(failure) = event { Some(failure.clone()) } else { None }
        })
        .await;
    assert_eq!(refused.reason, "cannot make the device: no such device");
    node.is_ready().await;
}
