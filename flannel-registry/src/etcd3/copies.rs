//! Records copied from the v2 store by a migration.
//!
//! A copy is attached to an etcd lease with a marked id. A host that takes the record over writes it under a lease of its
//! own: upstream flannel does so at each start, and this crate when the granted TTL differs from the wanted one. The mark
//! therefore distinguishes a copy that no host has taken over from the record of a host that uses v3. A permanent copy
//! has no lease; no host creates such a record, so a permanent record at version 1 was not taken over.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, KeyValue, TxnOp};
use flannel_core::{BadRecord, Lease, RegistryError, SubnetRegistry as _};
use futures::stream::{self, StreamExt, TryStreamExt};

use super::call_error::CallError;
use super::keys::unsigned;
use super::lease_id::NO_LEASE;
use super::records::TxnOutcome;
use super::request_counters::CallKind;
use super::store::Store;
use crate::Etcd3Registry;
use crate::migration::record::{RecordAuthor, SourceRecord, TargetRecord};

/// The upper bits of the lease ids of copies: `flm` in ASCII. Ids chosen by etcd begin with part of a member id.
const MARK: i64 = 0x0066_6c6d << 40;
const MARK_MASK: i64 = !0 << 40;

/// The number of concurrent requests for the TTL of a lease.
const CONCURRENCY: usize = 16;

/// Reports whether a lease id marks a copy.
pub(super) fn is_copy(id: i64) -> bool {
    id & MARK_MASK == MARK
}

impl Etcd3Registry {
    /// Reads all records with their authors, and the remaining TTLs of copies.
    pub(crate) async fn target_records(&self) -> Result<(Vec<TargetRecord>, Vec<BadRecord>), RegistryError> {
        let store = &*self.store;
        let read = async {
            let push = |records: &mut Vec<KeyValue>, record| records.push(record);
            let (_, records) = store.read_records(push).await?;
            let (mut leases, mut bad) = (Vec::new(), Vec::new());
            for record in records {
                match store.keys.read(&record) {
                    Ok(lease) => leases.push((lease, record)),
                    Err(record) => bad.push(record),
                }
            }
            let records = stream::iter(leases).map(|(lease, record)| store.target_record(lease, record));
            Ok((records.buffered(CONCURRENCY).try_collect().await?, bad))
        };
        read.await.map_err(|error| store.unwritten(error))
    }

    /// Writes a copy where no record is, or in place of an older copy. Returns whether the record to be replaced was
    /// unchanged.
    pub(crate) async fn copy(
        &self,
        source: &SourceRecord,
        replaced: Option<&Lease>,
    ) -> Result<bool, RegistryError> {
        let (store, subnet) = (&*self.store, source.lease.subnet);
        let (condition, previous_id) = match replaced {
            None => (Compare::version(store.keys.subnet(&subnet), CompareOp::Equal, 0), NO_LEASE),
            Some(lease) => match store.unchanged(lease).await {
                Ok(record) => (store.is_at(lease), record.lease()),
                Err(RegistryError::Changed(_) | RegistryError::Gone(_)) => return Ok(false),
                Err(error) => return Err(error),
            },
        };
        let id = match source.ttl {
            Some(ttl) => store.grant(ttl, marked_id).await.map_err(|error| store.unwritten(error))?,
            None => NO_LEASE,
        };
        match store.put(&subnet, condition, source.record.as_bytes(), id).await {
            Ok(Some(_)) => {
                store.drop_lease(previous_id).await;
                Ok(true)
            }
            Ok(None) => {
                store.revoke(id).await;
                Ok(false)
            }
            Err(error) => Err(store.put_failed(subnet, id, error).await),
        }
    }

    /// Writes the network config if the key is absent. Returns whether the store holds `text` now.
    pub(crate) async fn copy_config(&self, text: &str) -> Result<bool, RegistryError> {
        let (store, key) = (&*self.store, self.store.keys.config());
        let absent = Compare::version(key, CompareOp::Equal, 0);
        let outcome = store.write(absent, TxnOp::put(key, text, None)).await;
        match outcome.map_err(|error| store.unwritten(error))? {
            TxnOutcome::Applied(_) => Ok(true),
            TxnOutcome::CompareFailed { .. } => Ok(self.config().await?.as_deref() == Some(text)),
        }
    }
}

impl Store {
    async fn target_record(&self, lease: Lease, record: KeyValue) -> Result<TargetRecord, CallError> {
        let id = record.lease();
        let author = match id {
            NO_LEASE if record.version() == 1 => RecordAuthor::Migration,
            id if is_copy(id) => RecordAuthor::Migration,
            _ => RecordAuthor::Host,
        };
        let ttl = if is_copy(id) { self.remaining(id).await? } else { Duration::ZERO };
        let (_, value) = record.into_key_value();
        Ok(TargetRecord { lease, record: value, author, ttl })
    }

    /// Returns the remaining TTL of a lease; zero if it is gone.
    async fn remaining(&self, id: i64) -> Result<Duration, CallError> {
        let call = self.cluster.call(CallKind::LeaseTimeToLive, |mut connection| async move {
            connection.lease.time_to_live(id, None).await
        });
        Ok(Duration::from_secs(unsigned(call.await?.value.ttl())))
    }

    /// Returns the remaining TTL of a copy to a host that renews it. The TTL of a lease cannot be changed; the result is
    /// always less than `ttl`, so that the host writes a record of its own.
    pub(super) async fn renew_copy(
        &self,
        lease: &Lease,
        id: i64,
        ttl: Duration,
    ) -> Result<Duration, RegistryError> {
        match self.remaining(id).await.map_err(|error| self.unwritten(error))? {
            Duration::ZERO => Err(RegistryError::Gone(lease.subnet)),
            remaining => Ok(remaining.min(ttl / 2)),
        }
    }
}

/// Chooses a lease id for a copy.
fn marked_id() -> i64 {
    MARK | fastrand::i64(..) & !MARK_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_ids_are_recognised_and_ids_chosen_by_etcd_are_not() {
        let id = marked_id();
        assert!(id > 0 && is_copy(id), "{id:x}");
        for id in [NO_LEASE, 0x694d_90a1_2345_6789, i64::MAX, -1, MARK - 1] {
            assert!(!is_copy(id), "{id:x}");
        }
    }
}
