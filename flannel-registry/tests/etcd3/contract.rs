//! The contract of a registry.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::SubnetRegistry;
use flannel_registry::Etcd3Registry;
use flannel_testing::contract::registry::RegistrySubject;

use crate::server::{PATIENCE, PREFIX, Server, subnet_key};

struct Subject {
    server: Server,
    opened: Mutex<Vec<Etcd3Registry>>,
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
        self.server.ctl(&["put", &format!("{PREFIX}/config"), text]);
    }

    async fn put_raw(&self, key: &str, value: &[u8]) {
        // Arguments of a program are text; records may be any bytes.
        let mut client = self.server.client().await;
        client.put(subnet_key(key), value, None).await.unwrap();
    }

    async fn remove_raw(&self, key: &str) {
        self.server.remove(key);
    }

    async fn compact(&self) {
        self.server.compact();
    }

    fn min_ttl(&self) -> Duration {
        Duration::from_secs(2)
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
        let calls = opened.iter().map(Etcd3Registry::calls).map(|calls| {
            // Without `watch`, which is counted when a watch is first polled after its snapshot.
            calls.range + calls.txn + calls.lease_grant + calls.lease_keep_alive + calls.lease_time_to_live
        });
        Some(calls.sum())
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
        Subject::new(Server::start_tls(true))
    );
}

mod as_a_user_with_a_password {
    use super::{Server, Subject};

    flannel_testing::registry_contract!(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        Subject::new(Server::start_with_password(&[]))
    );
}
