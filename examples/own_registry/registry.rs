//! Implements `SubnetRegistry` for the store.

use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{
    Lease, LeaseAttrs, RegistryError, RegistryEvent, Revision, Snapshot, SubnetKey, SubnetRegistry, Term,
};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::time::{Instant, timeout_at};

use super::store::Store;

#[async_trait]
impl SubnetRegistry for Store {
    fn describe(&self) -> String {
        "the store of this example".to_owned()
    }

    fn how_to_configure(&self) -> String {
        "Content::config".to_owned()
    }

    async fn config(&self) -> Result<Option<String>, RegistryError> {
        Ok(self.content().config.clone())
    }

    /// Yields for every change of the store; a store that can distinguish changes would yield less often.
    fn config_changes(&self) -> BoxStream<'static, ()> {
        // The stream owns the store and thus the sender, so it never ends.
        stream::unfold((self.clone(), self.changed.subscribe()), |(store, mut changed)| async {
            Some((changed.changed().await.ok()?, (store, changed)))
        })
        .boxed()
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        Ok(self.snapshot().0)
    }

    async fn create(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError> {
        let mut content = self.content();
        if content.records.contains_key(&subnet.to_string()) {
            return Err(RegistryError::Exists(subnet));
        }
        let lease = Lease { term: Term::Limited, ..Lease::new(subnet, attrs.clone()) };
        let lease = content.put(lease, attrs, Some(Instant::now() + ttl));
        self.changed.send_replace(());
        Ok(lease)
    }

    async fn update(&self, lease: &Lease, attrs: &LeaseAttrs, ttl: Duration) -> Result<Lease, RegistryError> {
        let mut content = self.content();
        let end = content.compare(lease)?.end.map(|_| Instant::now() + ttl);
        let lease = content.put(lease.clone(), attrs, end);
        self.changed.send_replace(());
        Ok(lease)
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError> {
        let mut content = self.content();
        let record = content.compare(lease)?;
        record.end = record.end.map(|_| Instant::now() + ttl);
        Ok(ttl)
    }

    async fn delete(&self, lease: &Lease) -> Result<(), RegistryError> {
        let mut content = self.content();
        content.compare(lease)?;
        content.write(lease.subnet.to_string(), None, None);
        self.changed.send_replace(());
        Ok(())
    }

    /// Yields the whole state after every change; a store with a change log would yield single changes.
    fn watch(&self, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
        let watching = (self.clone(), self.changed.subscribe(), after);
        stream::unfold(watching, |(store, mut changed, sent)| async move {
            loop {
                changed.mark_unchanged();
                let (snapshot, next_end) = store.snapshot();
                if sent != Some(snapshot.revision) {
                    let sent = Some(snapshot.revision);
                    return Some((RegistryEvent::Snapshot(snapshot), (store, changed, sent)));
                }
                // The expiry of a lease is also a change.
                let far = Duration::from_secs(3600);
                let end = next_end.unwrap_or_else(|| Instant::now() + far);
                let _ = timeout_at(end, changed.changed()).await;
            }
        })
        .boxed()
    }
}
