//! An etcd for one test, and what only its operator can do to it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flannel_core::{LeaseAttrs, RegistryEvent, SubnetKey};
use flannel_registry::{Etcd3Options, Etcd3Registry};
use flannel_testing::Etcd;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::timeout;

/// What all keys of a network begin with.
pub(crate) const PREFIX: &str = "/coreos.com/network";
/// So long that no lease of it ends during a test.
pub(crate) const DAY: Duration = Duration::from_secs(86_400);
/// How late a machine may be that runs all tests at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Server(Mutex<Etcd>);

impl Server {
    pub(crate) fn start() -> Self {
        Self(Mutex::new(Etcd::start().unwrap()))
    }

    pub(crate) fn etcd(&self) -> MutexGuard<'_, Etcd> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn url(&self) -> String {
        self.etcd().client_url()
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.etcd().client_address()
    }

    /// Options that notice a silent etcd soon.
    pub(crate) fn options(&self) -> Etcd3Options {
        let mut options = Etcd3Options::default();
        options.endpoints = vec![self.url()];
        options.timeout = Duration::from_secs(2);
        options.silence = Duration::from_secs(3);
        options
    }

    pub(crate) fn registry(&self) -> Etcd3Registry {
        Etcd3Registry::new(self.options()).unwrap()
    }

    /// Runs `etcdctl` and answers with what it writes, without the last line break.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        self.etcd().etcdctl(arguments).unwrap().trim_end_matches('\n').to_owned()
    }

    pub(crate) fn put(&self, key: &str, value: &str) {
        self.ctl(&["put", &subnet_key(key), value]);
    }

    pub(crate) fn remove(&self, key: &str) {
        self.ctl(&["del", &subnet_key(key)]);
    }

    /// Makes etcd forget all changes so far.
    pub(crate) fn compact(&self) {
        let revision = self.revision();
        // Nothing can be compacted twice, or before anything was written.
        let _ = self.etcd().etcdctl(&["compact", &revision.to_string()]);
    }

    pub(crate) fn revision(&self) -> u64 {
        let answer = self.ctl(&["get", "nothing", "-w", "fields"]);
        let line = answer.lines().find_map(|line| line.strip_prefix("\"Revision\" : "));
        line.unwrap().parse().unwrap()
    }
}

/// The key of a record, given its name.
pub(crate) fn subnet_key(name: &str) -> String {
    format!("{PREFIX}/subnets/{name}")
}

pub(crate) fn subnet(third: u8) -> SubnetKey {
    format!("10.5.{third}.0-24").parse().unwrap()
}

pub(crate) fn host(last: u8) -> LeaseAttrs {
    LeaseAttrs::new(std::net::Ipv4Addr::new(192, 168, 0, last).into())
}

pub(crate) async fn next(watch: &mut BoxStream<'static, RegistryEvent>) -> RegistryEvent {
    timeout(PATIENCE, watch.next()).await.expect("a watch tells what happens").expect("a watch does not end")
}

/// Reads a watch up to the event that is meant, and answers with all of them.
pub(crate) async fn until(
    watch: &mut BoxStream<'static, RegistryEvent>,
    is_it: impl Fn(&RegistryEvent) -> bool,
) -> Vec<RegistryEvent> {
    let mut events = Vec::new();
    loop {
        let event = next(watch).await;
        let last = is_it(&event);
        events.push(event);
        if last {
            return events;
        }
    }
}

/// One word for each event.
pub(crate) fn words(events: &[RegistryEvent]) -> Vec<String> {
    events
        .iter()
        .map(|event| match event {
            RegistryEvent::Snapshot(snapshot) => {
                let subnets: Vec<_> = snapshot.leases.iter().map(|lease| lease.subnet.to_string()).collect();
                format!("snapshot {}", subnets.join(","))
            }
            RegistryEvent::Put(lease) => format!("put {}", lease.subnet),
            RegistryEvent::Deleted(subnet, _) => format!("deleted {subnet}"),
            RegistryEvent::Bad(record) => format!("bad {}", record.key),
            RegistryEvent::BadDeleted(key) => format!("bad deleted {key}"),
            RegistryEvent::Silent(_) => "silent".to_owned(),
            RegistryEvent::Heard => "heard".to_owned(),
        })
        .collect()
}
