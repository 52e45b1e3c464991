//! Suspended hosts: time passes, but not on tokio's clock.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use flannel_core::{KeepEvent, Lease, LeaseManager, LeaseRequest, NodeId, SubnetRegistry, renew_before};
use flannel_registry::{
    Clock, MemoryRegistry, NodeIdentity, RegistryLeaseManager, RegistryLeaseManagerOptions, TokioClock,
};
use futures::StreamExt;
use tokio::time::Instant;

use crate::site::*;

const HOUR: Duration = Duration::from_secs(3600);
const NAP: Duration = Duration::from_secs(15);

/// Tokio's clock plus the suspended time.
#[derive(Debug, Default)]
struct Suspended {
    on: TokioClock,
    asleep: Mutex<Duration>,
}

impl Suspended {
    fn sleep(&self, time: Duration) {
        *self.asleep.lock().unwrap() += time;
    }
}

impl Clock for Suspended {
    fn now(&self) -> Duration {
        self.on.now() + *self.asleep.lock().unwrap()
    }

    fn nap(&self) -> Option<Duration> {
        Some(NAP)
    }
}

struct Sleeper {
    clock: Arc<Suspended>,
    store: MemoryRegistry,
    manager: RegistryLeaseManager<MemoryRegistry>,
}

impl Sleeper {
    fn new(renew_margin: Option<Duration>) -> Self {
        let (clock, store) = (Arc::new(Suspended::default()), MemoryRegistry::new());
        store.set_config(CONFIG);
        let mut options = RegistryLeaseManagerOptions::default();
        options.clock = Arc::clone(&clock) as Arc<dyn Clock>;
        options.identity = Some(Arc::new(NodeIdentity::fixed(NodeId::from_bytes([1; 16]))));
        options.renew_margin = renew_margin;
        options.seed = Some(1);
        Self { clock, manager: RegistryLeaseManager::with_options(store.clone(), options), store }
    }

    async fn acquire(&self) -> Lease {
        self.manager.acquire(LeaseRequest::new(&config(CONFIG), &host(1))).await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_suspended_past_its_renewal_renews_on_resume() {
    let sleeper = Sleeper::new(None);
    let mut keep = sleeper.manager.keep(sleeper.acquire().await);
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    let start = Instant::now();
    let slept = async {
        tokio::time::sleep(HOUR).await;
        sleeper.clock.sleep(HOUR * 20);
    };
    let (renewed, ()) = tokio::join!(keep.next(), slept);
    assert_eq!(renewed, Some(KeepEvent::Renewed(DAY)));
    assert!(start.elapsed() <= HOUR + NAP, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_renewal_margin_also_holds_after_suspend() {
    let sleeper = Sleeper::new(Some(HOUR));
    let mut keep = sleeper.manager.keep(sleeper.acquire().await);
    let waiting = keep.next().await;
    let (first, last) = (renew_before(DAY, HOUR, 1.0), renew_before(DAY, HOUR, 0.0));
    assert!(
        matches!(waiting, Some(KeepEvent::Waiting(time)) if first <= time && time <= last),
        "{waiting:?}"
    );
    let start = Instant::now();
    sleeper.clock.sleep(HOUR * 15);
    assert_eq!(keep.next().await, Some(KeepEvent::Renewed(DAY)));
    assert!(start.elapsed() + HOUR * 15 >= first && start.elapsed() + HOUR * 15 <= last + NAP);
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    assert_eq!(keep.next().await, Some(KeepEvent::Renewed(DAY)));
}

/// Rewrites the record as the same host would at another address, with the same id.
async fn taken_over(slept: Duration) -> KeepEvent {
    let sleeper = Sleeper::new(None);
    let own = sleeper.acquire().await;
    let mut peers = sleeper.manager.watch(own.subnet);
    let _peers = tokio::spawn(async move { while peers.next().await.is_some() {} });
    let mut keep = sleeper.manager.keep(own.clone());
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    let mut moved = own.attrs.clone();
    moved.public = host(2).public;
    sleeper.clock.sleep(slept);
    sleeper.store.update(&own, &moved, DAY).await.unwrap();
    tokio::task::yield_now().await;
    keep.next().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_host_suspended_for_longer_than_the_ttl_does_not_take_its_lease_back() {
    let awake = taken_over(HOUR).await;
    assert!(matches!(&awake, KeepEvent::Disputed(_)), "{awake:?}");
    let late = taken_over(DAY + HOUR).await;
    assert!(matches!(&late, KeepEvent::Lost(why) if why.contains("192.168.0.2")), "{late:?}");
}
