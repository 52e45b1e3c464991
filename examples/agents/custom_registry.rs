//! A node agent with a registry of its own: the leases are in the orchestrator's store, here a map.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use flannel_backend_vxlan::{OpenVxlan, external_interface};
use flannel_core::{
    Lease, LeaseAttrs, NetworkOptions, RegistryError, RegistryEvent, Revision, Snapshot, SubnetKey,
    SubnetRegistry, Term,
};
use flannel_examples::agent::{AgentThread, agent_options, start_agents};
use flannel_examples::show_ping;
use flannel_netlink::Namespace;
use flannel_node::{BackendRegistry, NodeAgent};
use flannel_registry::RegistryLeaseManager;
use flannel_testing::{INTERFACE, Lab, LabOptions};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// The store: leases with their expiry, and the revision of the last write. Clones share their content.
#[derive(Clone, Default)]
struct Store(Arc<Mutex<Leases>>, Arc<watch::Sender<u64>>);

type Leases = BTreeMap<SubnetKey, (Arc<Lease>, Instant)>;

impl Store {
    /// Locks the leases and removes expired ones.
    fn leases(&self) -> MutexGuard<'_, Leases> {
        let mut leases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, now) = (leases.len(), Instant::now());
        leases.retain(|_, (_, end)| now < *end);
        if leases.len() < before {
            self.1.send_modify(|revision| *revision += 1);
        }
        leases
    }

    /// Locks the leases if this one is current.
    fn current(&self, lease: &Lease) -> Result<MutexGuard<'_, Leases>, RegistryError> {
        let leases = self.leases();
        match leases.get(&lease.subnet) {
            None => Err(RegistryError::Gone(lease.subnet)),
            Some((found, _)) if found.revision != lease.revision => Err(RegistryError::Changed(lease.subnet)),
            Some(_) => Ok(leases),
        }
    }

    fn put(&self, mut leases: MutexGuard<'_, Leases>, mut lease: Lease, ttl: Duration) -> Lease {
        self.1.send_modify(|revision| *revision += 1);
        lease.revision = Revision(*self.1.borrow());
        leases.insert(lease.subnet, (Arc::new(lease.clone()), Instant::now() + ttl));
        lease
    }

    fn snapshot(&self) -> (Snapshot, Option<Instant>) {
        let leases = self.leases();
        let mut snapshot = Snapshot::new(Revision(*self.1.borrow()));
        snapshot.leases = leases.values().map(|(lease, _)| Arc::clone(lease)).collect();
        (snapshot, leases.values().map(|(_, end)| *end).min())
    }
}

#[async_trait]
impl SubnetRegistry for Store {
    fn describe(&self) -> String {
        "the orchestrator's store".to_owned()
    }
    fn how_to_configure(&self) -> String {
        "Store::config".to_owned()
    }
    async fn config(&self) -> Result<Option<String>, RegistryError> {
        Ok(Some(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#.to_owned()))
    }
    async fn list(&self) -> Result<Snapshot, RegistryError> {
        Ok(self.snapshot().0)
    }
    async fn create(
        &self,
        key: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError> {
        let leases = self.leases();
        if leases.contains_key(&key) {
            return Err(RegistryError::Exists(key));
        }
        Ok(self.put(leases, Lease { term: Term::Limited, ..Lease::new(key, attrs.clone()) }, ttl))
    }
    async fn update(&self, lease: &Lease, attrs: &LeaseAttrs, ttl: Duration) -> Result<Lease, RegistryError> {
        Ok(self.put(self.current(lease)?, Lease { attrs: attrs.clone(), ..lease.clone() }, ttl))
    }
    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError> {
        self.current(lease)?.entry(lease.subnet).and_modify(|(_, end)| *end = Instant::now() + ttl);
        Ok(ttl)
    }
    async fn delete(&self, lease: &Lease) -> Result<(), RegistryError> {
        self.current(lease)?.remove(&lease.subnet);
        self.1.send_modify(|revision| *revision += 1);
        Ok(())
    }
    /// Yields the whole state after every change.
    fn watch(&self, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
        let state = (self.clone(), self.1.subscribe(), after);
        stream::unfold(state, |(store, mut changed, sent)| async move {
            loop {
                changed.mark_unchanged();
                let (snapshot, next_end) = store.snapshot();
                if sent != Some(snapshot.revision) {
                    let sent = Some(snapshot.revision);
                    return Some((RegistryEvent::Snapshot(snapshot), (store, changed, sent)));
                }
                let end = next_end.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
                let _ = timeout_at(end, changed.changed()).await;
            }
        })
        .boxed()
    }
}

/// Builds the agent of the host whose namespace the thread is in.
fn agent(store: Store, files: &Path) -> Result<NodeAgent, Box<dyn Error>> {
    let namespace = Namespace::current()?;
    let backends = BackendRegistry::new().with(OpenVxlan::new(namespace.clone()));
    let external = external_interface(&namespace, INTERFACE)?;
    let network = NetworkOptions::new(RegistryLeaseManager::new(store), backends.clone(), external);
    Ok(NodeAgent::new(namespace, network, backends, agent_options(files)))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (lab, store) = (Lab::new(&LabOptions::default())?, Store::default());
    let (agents, pods) = start_agents(&lab, {
        let store = store.clone();
        move |files| agent(store.clone(), files)
    })?;
    show_ping(&pods[0], &pods[1]).await?;
    println!("leases: {}", store.leases().len());
    agents.into_iter().try_for_each(AgentThread::stop)?;
    println!("leases: {}", store.leases().len());
    Ok(())
}
