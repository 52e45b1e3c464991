//! The contract of a lease manager over a registry in memory.

use std::sync::Arc;
use std::time::Duration;

use flannel_core::SubnetRegistry;
use flannel_registry::{RegistryLeaseManager, RegistryLeaseManagerOptions};
use flannel_testing::contract::manager::RegistryBacked;

use crate::memory::{Memory, OUTAGE};

pub(crate) type Manager = RegistryLeaseManager<Arc<dyn SubnetRegistry>>;

pub(crate) fn manager(registry: Arc<dyn SubnetRegistry>, host: u8, ttl: Duration) -> Manager {
    let mut options = RegistryLeaseManagerOptions::default();
    options.ttl = ttl;
    options.seed = Some(host.into());
    RegistryLeaseManager::with_options(registry, options)
}

fn hosts() -> RegistryBacked<Memory> {
    RegistryBacked::new(Memory::new(), |registry, host, ttl| Arc::new(manager(registry, host, ttl)))
        .with_outage(OUTAGE)
}

flannel_testing::lease_manager_contract!(
    #[tokio::test(start_paused = true)]
    hosts()
);
