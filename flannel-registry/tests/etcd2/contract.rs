//! The contract of a registry.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::SubnetRegistry;
use flannel_registry::Etcd2Registry;
use flannel_testing::contract::registry::RegistrySubject;

use crate::common::{PATIENCE, PREFIX};
use crate::server::Server;

struct Subject {
    server: Server,
    opened: Mutex<Vec<Etcd2Registry>>,
}

impl Subject {
    fn new(server: Server) -> Self {
        Self { server, opened: Mutex::default() }
    }
}

#[async_trait]
impl RegistrySubject for Subject {
    async fn open(&self) -> Arc<dyn SubnetRegistry> {
        let registry = self.server.registry();
        self.opened.lock().unwrap().push(registry.clone());
        Arc::new(registry)
    }

    async fn set_config(&self, text: &str) {
        self.server.ctl(&["set", &format!("{PREFIX}/config"), text]);
    }

    async fn put_raw(&self, key: &str, value: &[u8]) {
        self.server.put(key, value);
    }

    async fn remove_raw(&self, key: &str) {
        self.server.remove(key);
    }

    async fn compact(&self) {
        self.server.compact();
    }

    fn min_ttl(&self) -> Duration {
        // Checking a password takes etcd 0.1 s, and longer on a busy machine.
        Duration::from_secs(if self.server.asks_for_a_password() { 6 } else { 2 })
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    async fn stop(&self) {
        self.server.etcd().stop().unwrap();
    }

    async fn start(&self) {
        self.server.etcd().restart().unwrap();
    }

    fn calls(&self) -> Option<u64> {
        let opened = self.opened.lock().unwrap();
        // Without `polls`: this interface needs one poll per event.
        Some(opened.iter().map(Etcd2Registry::calls).map(|calls| calls.reads + calls.writes).sum())
    }
}

mod plain {
    use super::{Server, Subject};

    flannel_testing::registry_contract!(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        Subject::new(Server::start())
    );
}

/// The contract of a lease manager over the registry.
mod of_lease_managers {
    use super::{Server, Subject};
    use crate::common::hosts;

    flannel_testing::lease_manager_contract!(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        hosts(Subject::new(Server::start()))
    );
}

mod over_tls_with_certificates_on_both_sides {
    use super::{Server, Subject};

    flannel_testing::registry_contract!(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        Subject::new(Server::start_tls())
    );
}

mod as_a_user_with_a_password {
    use super::{Server, Subject};

    flannel_testing::registry_contract!(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        Subject::new(Server::start_with_password())
    );
}
