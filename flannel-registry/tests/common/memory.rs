//! A store in memory that can become unavailable.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::SubnetRegistry;
use flannel_registry::MemoryRegistry;
use flannel_testing::FaultyRegistry;
use flannel_testing::contract::registry::RegistrySubject;

/// Long enough that a lease of a day is renewed, and short enough that it survives two of them.
pub(crate) const OUTAGE: Duration = Duration::from_secs(9 * 3600);

pub(crate) struct Memory {
    pub(crate) store: MemoryRegistry,
    faulty: FaultyRegistry<MemoryRegistry>,
}

impl Memory {
    pub(crate) fn new() -> Self {
        let store = MemoryRegistry::new();
        Self { faulty: FaultyRegistry::new(store.clone()), store }
    }
}

#[async_trait]
impl RegistrySubject for Memory {
    async fn open(&self) -> Arc<dyn SubnetRegistry> {
        Arc::new(self.faulty.clone())
    }

    async fn set_config(&self, text: &str) {
        self.store.set_config(text);
    }

    async fn put_raw(&self, key: &str, value: &[u8]) {
        self.store.put_raw(key, value);
    }

    async fn remove_raw(&self, key: &str) {
        self.store.remove_raw(key);
    }

    async fn compact(&self) {
        self.store.compact();
    }

    async fn stop(&self) {
        self.faulty.stop_responding();
    }

    async fn start(&self) {
        self.faulty.resume_responding();
    }

    fn min_ttl(&self) -> Duration {
        Duration::from_secs(2)
    }

    /// Longer than the longest backoff after an outage.
    fn patience(&self) -> Duration {
        Duration::from_secs(120)
    }
}
