//! The registry in memory as the store of a simulation, also used by the bench `scale`.

use std::sync::Arc;

use flannel_core::{LeaseManager, SubnetRegistry};
use flannel_registry::{MemoryRegistry, RegistryLeaseManager, RegistryLeaseManagerOptions, TokioClock};
use flannel_testing::sim::{SimStore, StoreLink};

pub(crate) struct Memory(pub(crate) MemoryRegistry);

impl SimStore for Memory {
    fn registry(&self) -> Arc<dyn SubnetRegistry> {
        Arc::new(self.0.clone())
    }

    fn manager(&self, link: StoreLink, seed: u64) -> Arc<dyn LeaseManager> {
        // Only tokio's clock matters here; a `BootClock` would cost thousands of wake-ups per day and host.
        let clock = Arc::new(TokioClock::new());
        let mut options = RegistryLeaseManagerOptions::default();
        options.clock = clock;
        options.seed = Some(seed);
        Arc::new(RegistryLeaseManager::with_options(link, options))
    }

    fn set_config(&self, text: &str) {
        self.0.set_config(text);
    }

    fn put_raw(&self, key: &str, value: &str) {
        self.0.put_raw(key, value.as_bytes());
    }

    fn remove_raw(&self, key: &str) {
        self.0.remove_raw(key);
    }

    fn compact(&self) {
        self.0.compact();
    }

    fn backup(&self) -> Box<dyn FnOnce()> {
        let (store, backup) = (self.0.clone(), self.0.backup());
        Box::new(move || store.restore(backup))
    }
}
