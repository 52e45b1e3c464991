//! Shared helpers of the tests of both etcd interfaces.
#![allow(dead_code, reason = "not every test needs all")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::{LeaseAttrs, RegistryEvent, SubnetKey};
use flannel_registry::{RegistryLeaseManager, RegistryLeaseManagerOptions};
use flannel_testing::contract::manager::RegistryBacked;
use flannel_testing::contract::registry::RegistrySubject;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::timeout;

pub(crate) mod certificates;
pub(crate) mod crowd;
pub(crate) mod frames;
pub(crate) mod process;
pub(crate) mod proxy;

/// The prefix of all keys of a network.
pub(crate) const PREFIX: &str = "/coreos.com/network";
/// A TTL that does not expire during a test.
pub(crate) const DAY: Duration = Duration::from_secs(86_400);
/// The time limit on a machine that runs all tests at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Returns the key of a record.
pub(crate) fn subnet_key(name: &str) -> String {
    format!("{PREFIX}/subnets/{name}")
}

pub(crate) fn subnet(third: u8) -> SubnetKey {
    format!("10.5.{third}.0-24").parse().unwrap()
}

pub(crate) fn host(last: u8) -> LeaseAttrs {
    LeaseAttrs::new(std::net::Ipv4Addr::new(192, 168, 0, last).into())
}

/// Returns the hosts of a store, each with its own manager.
pub(crate) fn hosts<S: RegistrySubject>(store: S) -> RegistryBacked<S> {
    RegistryBacked::new(store, |registry, _, ttl| {
        let mut options = RegistryLeaseManagerOptions::default();
        options.ttl = ttl;
        Arc::new(RegistryLeaseManager::with_options(registry, options))
    })
}

pub(crate) async fn next(watch: &mut BoxStream<'static, RegistryEvent>) -> RegistryEvent {
    timeout(PATIENCE, watch.next()).await.expect("a watch yields events").expect("a watch does not end")
}

/// Reads a watch up to a matching event, and returns all events.
pub(crate) async fn until(
    watch: &mut BoxStream<'static, RegistryEvent>,
    is_it: impl Fn(&RegistryEvent) -> bool,
) -> Vec<RegistryEvent> {
    let (begin, mut events) = (Instant::now(), Vec::new());
    loop {
        // A watch may yield other events forever.
        assert!(begin.elapsed() < PATIENCE * 2, "no matching event: {:?}", words(&events));
        let event = next(watch).await;
        let last = is_it(&event);
        events.push(event);
        if last {
            return events;
        }
    }
}

/// Formats each event.
pub(crate) fn words(events: &[RegistryEvent]) -> Vec<String> {
    events
        .iter()
        .map(|event| match event {
            RegistryEvent::Snapshot(snapshot) => {
                // The v2 interface lists in any order.
                let mut subnets: Vec<_> =
                    snapshot.leases.iter().map(|lease| lease.subnet.to_string()).collect();
                subnets.sort();
                format!("snapshot {}", subnets.join(","))
            }
            RegistryEvent::Put(lease) => format!("put {}", lease.subnet),
            RegistryEvent::Deleted(subnet, _) | RegistryEvent::Released(subnet, _) => {
                format!("deleted {subnet}")
            }
            RegistryEvent::Bad(record) => format!("bad {}", record.key),
            RegistryEvent::BadDeleted(key) => format!("bad deleted {key}"),
            RegistryEvent::Unavailable(_) => "unavailable".to_owned(),
            RegistryEvent::Available => "available".to_owned(),
        })
        .collect()
}
