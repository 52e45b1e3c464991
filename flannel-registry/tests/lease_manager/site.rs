//! The store, its faults, and the tested manager.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::{
    BackendAttrs, KeepEvent, Lease, LeaseAttrs, LeaseManager, LeaseRequest, ManagerError, NetworkConfig,
    SubnetKey, SubnetRegistry,
};
use flannel_registry::{MemoryRegistry, RegistryLeaseManager, RegistryLeaseManagerOptions};
use flannel_testing::{Call, FaultyRegistry};
use futures::StreamExt;
use futures::stream::BoxStream;

pub(crate) const CONFIG: &str = r#"{"Network":"10.5.0.0/16"}"#;
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

/// A store with faults, and the manager of host 192.168.0.1.
pub(crate) struct Site {
    pub(crate) store: MemoryRegistry,
    pub(crate) faulty: FaultyRegistry<MemoryRegistry>,
    pub(crate) manager: RegistryLeaseManager<FaultyRegistry<MemoryRegistry>>,
}

pub(crate) fn site() -> Site {
    let store = MemoryRegistry::new();
    store.set_config(CONFIG);
    let faulty = FaultyRegistry::new(store.clone());
    let manager = manager(faulty.clone());
    Site { store, faulty, manager }
}

pub(crate) fn manager<R: SubnetRegistry>(registry: R) -> RegistryLeaseManager<R> {
    let mut options = RegistryLeaseManagerOptions::default();
    options.seed = Some(7);
    RegistryLeaseManager::with_options(registry, options)
}

pub(crate) fn host(last: u8) -> LeaseAttrs {
    LeaseAttrs::new(Ipv4Addr::new(192, 168, 0, last).into())
}

pub(crate) fn key(text: &str) -> SubnetKey {
    text.parse().unwrap()
}

pub(crate) fn config(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text).unwrap()
}

impl Site {
    pub(crate) async fn acquire(&self) -> Result<Lease, ManagerError> {
        self.acquire_with(CONFIG, None).await
    }

    pub(crate) async fn acquire_with(
        &self,
        text: &str,
        previous: Option<&str>,
    ) -> Result<Lease, ManagerError> {
        let (config, attrs) = (config(text), host(1));
        let request = LeaseRequest::new(&config, &attrs).with_previous(previous.map(key));
        self.manager.acquire(request).await
    }

    /// Writes the lease of another host.
    pub(crate) async fn lease(&self, subnet: &str, last: u8) -> Lease {
        self.store.create(key(subnet), &host(last), DAY).await.unwrap()
    }

    pub(crate) async fn list(&self) -> Vec<Lease> {
        self.store.list().await.unwrap().leases.into_iter().map(Arc::unwrap_or_clone).collect()
    }

    pub(crate) fn calls(&self) -> Vec<(Call, usize)> {
        self.faulty.counts()
    }
}

/// Returns a site with a lease of 10.5.9.0-24 that is renewed and watched as by a network.
pub(crate) async fn kept() -> (Site, Lease, BoxStream<'static, KeepEvent>, tokio::task::JoinHandle<()>) {
    let site = site();
    let own = site.acquire_with(CONFIG, Some("10.5.9.0-24")).await.unwrap();
    let keep = site.manager.keep(own.clone());
    let mut peers = site.manager.watch(own.subnet);
    let peers = tokio::spawn(async move { while peers.next().await.is_some() {} });
    (site, own, keep, peers)
}

pub(crate) fn vxlan(data: &str) -> LeaseAttrs {
    let data = flannel_core::Json::parse(&format!("{{\"VtepMAC\":\"{data}\"}}")).unwrap();
    BackendAttrs::new(flannel_core::BackendType::UNNAMED).with_data(Some(data)).at(host(1).public)
}
