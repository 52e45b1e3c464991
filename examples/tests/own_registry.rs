//! The registry of the example keeps the promises of every registry.
//!
//! So one checks one's own: say how to get at the store, and the suite makes a test of each promise.

#[path = "../own_registry/registry.rs"]
mod registry;
#[path = "../own_registry/store.rs"]
mod store;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::SubnetRegistry;
use flannel_testing::contract::registry::RegistrySubject;

use store::Store;

struct Subject(Store);

#[async_trait]
impl RegistrySubject for Subject {
    async fn open(&self) -> Arc<dyn SubnetRegistry> {
        Arc::new(self.0.clone())
    }

    async fn set_config(&self, text: &str) {
        self.0.content().config = Some(text.to_owned());
        self.0.changed.send_replace(());
    }

    async fn put_raw(&self, key: &str, value: &[u8]) {
        self.0.content().write(key.to_owned(), Some(value.to_owned()), None);
        self.0.changed.send_replace(());
    }

    async fn remove_raw(&self, key: &str) {
        self.0.content().write(key.to_owned(), None, None);
        self.0.changed.send_replace(());
    }

    /// The store has no history: it always tells the whole state.
    async fn compact(&self) {}

    fn min_ttl(&self) -> Duration {
        Duration::from_millis(10)
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(1)
    }
}

// On a clock that the runtime turns: the store takes its time from there.
flannel_testing::registry_contract!(
    #[tokio::test(start_paused = true)]
    Subject(Store::default())
);
