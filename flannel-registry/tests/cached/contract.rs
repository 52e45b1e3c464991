//! The contract of a lease manager.

use std::sync::Arc;

use flannel_registry::{CacheOptions, CachedLeaseManager, RegistryLeaseManager, RegistryLeaseManagerOptions};
use flannel_testing::contract::manager::RegistryBacked;

use crate::memory::{Memory, OUTAGE};
use crate::site::{NETWORK, Site, host};

/// Returns hosts, each with its own file in the directory of a site.
fn hosts() -> RegistryBacked<Memory> {
    let site = Site::new();
    let hosts = RegistryBacked::new(Memory::new(), move |registry, n, ttl| {
        let mut options = RegistryLeaseManagerOptions::default();
        options.ttl = ttl;
        options.seed = Some(n.into());
        let inner = RegistryLeaseManager::with_options(registry, options);
        let path = site.path().with_extension(n.to_string());
        Arc::new(CachedLeaseManager::open(inner, CacheOptions::new(path, NETWORK, host(n).public)))
    });
    hosts.with_outage(OUTAGE)
}

flannel_testing::lease_manager_contract!(
    #[tokio::test(start_paused = true)]
    hosts()
);
