//! The contract of a registry, for the registry in memory.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::SubnetRegistry;
use flannel_registry::MemoryRegistry;
use flannel_testing::contract::registry::RegistrySubject;

#[path = "common/memory.rs"]
#[allow(dead_code, reason = "the tests of managers use the rest")]
mod memory;

struct Memory(MemoryRegistry);

#[async_trait]
impl RegistrySubject for Memory {
    async fn open(&self) -> Arc<dyn SubnetRegistry> {
        Arc::new(self.0.clone())
    }

    async fn set_config(&self, text: &str) {
        self.0.set_config(text);
    }

    async fn put_raw(&self, key: &str, value: &[u8]) {
        self.0.put_raw(key, value);
    }

    async fn remove_raw(&self, key: &str) {
        self.0.remove_raw(key);
    }

    async fn compact(&self) {
        self.0.compact();
    }

    fn min_ttl(&self) -> Duration {
        Duration::from_millis(10)
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(1)
    }
}

flannel_testing::registry_contract!(
    #[tokio::test(start_paused = true)]
    Memory(MemoryRegistry::new()),
    skip: { calls = "it makes no requests", stop = "it cannot fail" }
);

/// A short history turns many events into snapshots.
mod with_a_short_memory {
    use super::*;

    fn memory() -> Memory {
        let registry = MemoryRegistry::new();
        registry.limit_history(Some(1));
        Memory(registry)
    }

    flannel_testing::registry_contract!(
        #[tokio::test(start_paused = true)]
        memory(),
        skip: { calls = "it makes no requests", stop = "it cannot fail" }
    );
}

/// An outage is reported, and later the changes during it.
mod that_falls_silent {
    use futures::StreamExt;
    use tokio::time::timeout;

    use super::memory::Memory;
    use super::*;

    flannel_testing::registry_contract!(
        #[tokio::test(start_paused = true)]
        Memory::new(),
        skip: { calls = "it makes no requests" }
    );

    #[tokio::test(start_paused = true)]
    async fn a_changed_config_is_notified_after_an_outage() {
        let memory = Memory::new();
        let mut changes = memory.open().await.config_changes();
        memory.stop().await;
        memory.set_config(r#"{"Network":"10.5.0.0/16"}"#).await;
        let seen = timeout(memory.patience(), changes.next()).await;
        assert!(seen.is_err(), "an unavailable store yields nothing: {seen:?}");
        memory.start().await;
        assert_eq!(timeout(memory.patience(), changes.next()).await, Ok(Some(())));
    }
}
