//! Checks the example's registry with the contract suite.
//!
//! To check your own registry, give the suite access to the store; it generates a test for each promise.

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

    /// Does nothing: the store has no history, and a watch always yields the whole state.
    async fn compact(&self) {}

    fn min_ttl(&self) -> Duration {
        Duration::from_millis(10)
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(1)
    }
}

// With tokio's paused clock, which the store uses.
flannel_testing::registry_contract!(
    #[tokio::test(start_paused = true)]
    Subject(Store::default()),
    skip: { calls = "the store makes no requests", stop = "the store is in this process" }
);
