//! Reads and writes of records.
//!
//! A write is a transaction that compares the record's revision, or its absence. If the comparison fails, the record is
//! read to find out why.
//!
//! Each written record gets a new etcd lease, unless it is permanent. The lease id identifies the write: when a call is
//! repeated because the first member did not answer, a record with this id shows that the first member wrote it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, Txn,
    TxnOp,
};
use flannel_core::{
    BoxError, LastContact, Lease, LeaseAttrs, NetworkConfig, RegistryError, RegistryEvent, Revision,
    Snapshot, StoreIdentity, SubnetKey, SubnetRegistry, Term,
};
use futures::stream::BoxStream;

use super::call_error::CallError;
use super::keys::{revision, unsigned};
use super::lease_id::{NO_LEASE, is_release};
use super::request_counters::CallKind;
use super::store::Store;
use super::watch::watch;
use crate::Etcd3Registry;
use crate::etcd::Position;

/// The number of times that a list starts, because its revision is compacted between two pages.
const LIST_ATTEMPTS: usize = 3;

#[async_trait]
impl SubnetRegistry for Etcd3Registry {
    fn describe(&self) -> String {
        self.store.describe()
    }

    fn store(&self) -> StoreIdentity {
        StoreIdentity::new(self.store.last_cluster.get(), self.store.cluster.endpoints.urls().to_vec())
    }

    fn last_contact(&self) -> Option<LastContact> {
        self.store.cluster.contact.last()
    }

    fn how_to_configure(&self) -> String {
        // etcdctl 3.4 and later use the v3 interface by default.
        let key = self.store.keys.config();
        format!(r#"etcdctl put {key} '{{"Network":"10.5.0.0/16","Backend":{{"Type":"vxlan"}}}}'"#)
    }

    async fn config(&self) -> Result<Option<String>, RegistryError> {
        let store = &*self.store;
        let (revision, record) =
            store.get(store.keys.config()).await.map_err(|error| store.unwritten(error))?;
        store.config_revision.set(revision);
        if record.is_none() {
            store.find_misplaced_config().await?;
        }
        let text = record.map(|record| String::from_utf8(record.into_key_value().1));
        text.transpose().map_err(|error| RegistryError::Refused(store.describe(), error.into()))
    }

    fn config_changes(&self) -> BoxStream<'static, ()> {
        self.store.config_changes.subscribe()
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        match self.store.list().await {
            Ok(list) => Ok(list.snapshot),
            Err(error) => Err(self.store.unwritten(error)),
        }
    }

    async fn create(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError> {
        let store = &*self.store;
        let id = store.grant(ttl, || NO_LEASE).await.map_err(|error| store.unwritten(error))?;
        let absent = Compare::version(store.keys.subnet(&subnet), CompareOp::Equal, 0);
        match store.put(&subnet, absent, attrs.to_record().as_bytes(), id).await {
            Ok(Some(revision)) => Ok(Lease { subnet, attrs: attrs.clone(), revision, term: Term::Limited }),
            Ok(None) => {
                store.revoke(id).await;
                Err(RegistryError::Exists(subnet))
            }
            Err(error) => Err(store.put_failed(subnet, id, error).await),
        }
    }

    /// Replaces a record under a new etcd lease, and drops the old one. A permanent record stays permanent.
    async fn update(&self, lease: &Lease, attrs: &LeaseAttrs, ttl: Duration) -> Result<Lease, RegistryError> {
        let store = &*self.store;
        let previous_id = store.unchanged(lease).await?.lease();
        let id = match previous_id {
            NO_LEASE => NO_LEASE,
            _ => store.grant(ttl, || NO_LEASE).await.map_err(|error| store.unwritten(error))?,
        };
        match store.put(&lease.subnet, store.is_at(lease), attrs.to_record().as_bytes(), id).await {
            Ok(Some(revision)) => {
                store.drop_lease(previous_id).await;
                Ok(Lease { attrs: attrs.clone(), revision, ..lease.clone() })
            }
            Ok(None) => {
                store.revoke(id).await;
                Err(store.unchanged(lease).await.err().unwrap_or(RegistryError::Changed(lease.subnet)))
            }
            Err(error) => Err(store.put_failed(lease.subnet, id, error).await),
        }
    }

    /// Keeps the record's etcd lease alive without writing the record.
    async fn renew(&self, lease: &Lease, wanted: Duration) -> Result<Duration, RegistryError> {
        let store = &*self.store;
        let id = store.unchanged(lease).await?.lease();
        if id == NO_LEASE {
            return Ok(wanted);
        }
        #[cfg(feature = "etcd-v2")]
        if super::copies::is_copy(id) {
            return store.renew_copy(lease, id, wanted).await;
        }
        let call = store.cluster.call(CallKind::LeaseKeepAlive, |mut connection| async move {
            // The client consumes the first response; the second one carries the TTL.
            let (mut keeper, mut responses) = match connection.lease.keep_alive(id).await {
                Err(etcd_client::Error::LeaseKeepAliveError(_)) => return Ok(0),
                started => started?,
            };
            keeper.keep_alive().await?;
            match responses.message().await? {
                Some(response) => Ok(response.ttl()),
                // A member that shuts down ends the stream without an error, which says nothing about the lease.
                None => Err(etcd_client::Error::Internal("no answer to a keep-alive".to_owned())),
            }
        });
        let ttl = call.await.map_err(|error| store.unwritten(error))?.value;
        match unsigned(ttl) {
            0 => Err(RegistryError::Gone(lease.subnet)),
            // Less than `wanted`, so that a host that starts again during its release writes the record without the mark.
            granted if is_release(id) => Ok(Duration::from_secs(granted).min(wanted / 2)),
            granted => Ok(Duration::from_secs(granted)),
        }
    }

    async fn delete(&self, lease: &Lease) -> Result<(), RegistryError> {
        let store = &*self.store;
        let record = store.unchanged(lease).await?;
        store.release(lease, record.value(), record.lease()).await
    }

    fn reconnect(&self) {
        self.store.cluster.epoch.advance();
    }

    fn watch(&self, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
        watch(Arc::clone(&self.store), after)
    }
}

impl Store {
    /// Fails if the config is stored under the prefix itself. Looks only once, because a missing config is read often.
    async fn find_misplaced_config(&self) -> Result<(), RegistryError> {
        let Some((key, prefix)) = self.keys.misplaced_config().filter(|(key, _)| !key.is_empty()) else {
            return Ok(());
        };
        if self.looked_for_misplaced.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let Ok((_, Some(record))) = self.get(key).await else { return Ok(()) };
        if std::str::from_utf8(record.value()).is_ok_and(|text| NetworkConfig::parse(text).is_ok()) {
            // The next read reports it again.
            self.looked_for_misplaced.store(false, Ordering::Relaxed);
            let cure = match prefix {
                "" => format!("store it under {}", self.keys.config()),
                prefix => format!("use -etcd-prefix={prefix}"),
            };
            let reason = format!("the network config is stored under the prefix itself, {key}; {cure}");
            return Err(RegistryError::Refused(self.describe(), reason.into()));
        }
        Ok(())
    }

    /// Reads all leases, and the position of the store.
    pub(super) async fn list(&self) -> Result<LeaseList, CallError> {
        type Folded = (Snapshot, Vec<(SubnetKey, Revision)>);
        let push = |(snapshot, releases): &mut Folded, record: KeyValue| match self.keys.read(&record) {
            Ok(lease) => {
                if is_release(record.lease()) {
                    releases.push((lease.subnet, lease.revision));
                }
                snapshot.leases.push(lease.into());
            }
            Err(bad) => snapshot.bad.push(bad),
        };
        let (position, (mut snapshot, releases)) = self.read_records(push).await?;
        snapshot.revision = Revision(position.revision);
        Ok(LeaseList { position, snapshot, releases })
    }

    /// Reads all records at one revision, and folds them into a value.
    pub(super) async fn read_records<T: Default + Send>(
        &self,
        push: impl Fn(&mut T, KeyValue) + Send + Sync,
    ) -> Result<(Position, T), CallError> {
        let mut attempt = 1;
        'list: loop {
            let mut from = self.keys.subnets().as_bytes().to_vec();
            let mut position = None;
            let mut folded = T::default();
            loop {
                let options = GetOptions::new()
                    .with_range(self.keys.subnets_end())
                    .with_limit(i64::from(self.page_size.max(1)))
                    // Zero selects the current revision.
                    .with_revision(position.as_ref().map_or(0, Position::signed_revision));
                let call = self.cluster.call(CallKind::Range, |mut connection| {
                    let (from, options) = (from.clone(), options.clone());
                    async move { connection.kv.get(from, Some(options)).await }
                });
                let mut page = match call.await {
                    Ok(response) => response.value,
                    Err(CallError::Transient(_)) if attempt < LIST_ATTEMPTS => {
                        attempt += 1;
                        continue 'list;
                    }
                    Err(error) => return Err(error),
                };
                let header = page.header().ok_or_else(missing_header)?;
                let position = *position.get_or_insert_with(|| Position::of(header));
                self.last_cluster.record(&position);
                self.cluster.contact.record_at(position.revision);
                let records = page.take_kvs();
                // The next key in order is the last one with a zero byte appended.
                let next = records.last().filter(|_| page.more()).map(|last| [last.key(), &[0]].concat());
                records.into_iter().for_each(|record| push(&mut folded, record));
                match next {
                    Some(next) => from = next,
                    None => return Ok((position, folded)),
                }
            }
        }
    }

    /// Puts a record if a comparison holds, and returns its revision; `None` if the comparison failed.
    pub(super) async fn put(
        &self,
        subnet: &SubnetKey,
        condition: Compare,
        record: &[u8],
        id: i64,
    ) -> Result<Option<Revision>, CallError> {
        let key = self.keys.subnet(subnet);
        let put = TxnOp::put(key.clone(), record, Some(PutOptions::new().with_lease(id)));
        match self.write(condition, put).await? {
            TxnOutcome::Applied(revision) => Ok(Some(revision)),
            TxnOutcome::CompareFailed { retried: false } => Ok(None),
            TxnOutcome::CompareFailed { retried: true } => {
                let (_, current) = self.get(&key).await?;
                let own = current.filter(|found| found.lease() == id && found.value() == record);
                Ok(own.as_ref().map(revision))
            }
        }
    }

    /// Applies one operation if a comparison holds.
    pub(super) async fn write(&self, condition: Compare, operation: TxnOp) -> Result<TxnOutcome, CallError> {
        let txn = Txn::new().when([condition]).and_then([operation]);
        let call = self.cluster.call(CallKind::Txn, |mut connection| {
            let txn = txn.clone();
            async move { connection.kv.txn(txn).await }
        });
        let response = call.await?;
        let header = response.value.header().ok_or_else(missing_header)?;
        Ok(match response.value.succeeded() {
            true => TxnOutcome::Applied(Revision(unsigned(header.revision()))),
            false => TxnOutcome::CompareFailed { retried: response.retried },
        })
    }

    /// Returns the record of a lease if its revision is unchanged.
    pub(super) async fn unchanged(&self, lease: &Lease) -> Result<KeyValue, RegistryError> {
        let read = self.get(&self.keys.subnet(&lease.subnet)).await;
        match read.map_err(|error| self.unwritten(error))?.1 {
            Some(record) if revision(&record) == lease.revision => Ok(record),
            Some(_) => Err(RegistryError::Changed(lease.subnet)),
            None => Err(RegistryError::Gone(lease.subnet)),
        }
    }

    /// Reads one key, and the revision of the store; zero if etcd does not send it.
    async fn get(&self, key: &str) -> Result<(u64, Option<KeyValue>), CallError> {
        let call = self.cluster.call(CallKind::Range, |mut connection| {
            let key = key.to_owned();
            async move { connection.kv.get(key, None).await }
        });
        let mut response = call.await?.value;
        let revision = response.header().map_or(0, |header| unsigned(header.revision()));
        Ok((revision, response.take_kvs().pop()))
    }

    /// Returns a comparison that holds if the record of a lease is unchanged.
    pub(super) fn is_at(&self, lease: &Lease) -> Compare {
        let revision = i64::try_from(lease.revision.0).unwrap_or(i64::MAX);
        Compare::mod_revision(self.keys.subnet(&lease.subnet), CompareOp::Equal, revision)
    }

    /// Grants an etcd lease and returns its id. `id` chooses the id anew for each attempt; for [`NO_LEASE`] etcd chooses.
    pub(super) async fn grant(&self, ttl: Duration, id: fn() -> i64) -> Result<i64, CallError> {
        // etcd counts whole seconds.
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds.max(1)).unwrap_or(i64::MAX);
        let call = self.cluster.call(CallKind::LeaseGrant, |mut connection| {
            let options = LeaseGrantOptions::new().with_id(id());
            async move { connection.lease.grant(seconds, Some(options)).await }
        });
        Ok(call.await?.value.id())
    }

    /// Cleans up after a failed put, and converts the error. An etcd lease that may hold the record is left to expire.
    pub(super) async fn put_failed(&self, subnet: SubnetKey, id: i64, error: CallError) -> RegistryError {
        if !matches!(error, CallError::NoAnswer(_)) {
            self.revoke(id).await;
        }
        self.uncertain(subnet, error)
    }

    /// Revokes an etcd lease without keys. If that fails, the lease expires.
    pub(super) async fn revoke(&self, id: i64) {
        if id == NO_LEASE {
            return;
        }
        let call = self
            .cluster
            .call(CallKind::LeaseRevoke, |mut connection| async move { connection.lease.revoke(id).await });
        if let Err(error) = call.await {
            tracing::debug!(lease = id, error = %error.into_reason(), "cannot revoke an unused etcd lease; it expires");
        }
    }

    /// Revokes the former etcd lease of a record, unless other keys are attached: revoking removes them.
    pub(super) async fn drop_lease(&self, id: i64) {
        if id == NO_LEASE {
            return;
        }
        let call = self.cluster.call(CallKind::LeaseTimeToLive, |mut connection| async move {
            let options = LeaseTimeToLiveOptions::new().with_keys();
            connection.lease.time_to_live(id, Some(options)).await
        });
        let is_unused =
            call.await.is_ok_and(|response| response.value.ttl() > 0 && response.value.keys().is_empty());
        if is_unused {
            self.revoke(id).await;
        }
    }

    /// Converts the error of a call that wrote no record.
    pub(super) fn unwritten(&self, error: CallError) -> RegistryError {
        match error {
            CallError::NoAnswer(reason) | CallError::Transient(reason) => {
                RegistryError::Unavailable(self.describe(), reason)
            }
            CallError::Refused(reason) => RegistryError::Refused(self.describe(), reason),
        }
    }

    /// Converts the error of a call that may have written a record.
    pub(super) fn uncertain(&self, subnet: SubnetKey, error: CallError) -> RegistryError {
        match error {
            CallError::NoAnswer(reason) => RegistryError::Unknown(subnet, reason),
            other @ (CallError::Transient(_) | CallError::Refused(_)) => self.unwritten(other),
        }
    }
}

/// All leases, as listed.
pub(super) struct LeaseList {
    pub(super) position: Position,
    /// The leases, with those that are being released.
    pub(super) snapshot: Snapshot,
    /// The leases that are being released, with the revisions of their records.
    pub(super) releases: Vec<(SubnetKey, Revision)>,
}

/// The outcome of a transaction.
pub(super) enum TxnOutcome {
    /// Applied at this revision.
    Applied(Revision),
    /// The comparison failed.
    CompareFailed {
        /// Whether another member was asked before, which may have applied it.
        retried: bool,
    },
}

fn missing_header() -> CallError {
    let reason: BoxError = "response without a header".into();
    CallError::NoAnswer(reason)
}
