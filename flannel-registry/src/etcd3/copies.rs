//! Copies of the records of another store.
//!
//! A copy hangs on a lease whose id bears a mark. Whoever takes a record over writes it under a lease of their own, as
//! upstream does at each start and this crate when it finds such a lease granted for another time than it wants. So the
//! mark tells a copy that nobody has taken yet from the record of a host that lives here. A copy without an end has no
//! lease; no host creates such a record, so one in its first version was not taken by any.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, KeyValue, TxnOp};
use flannel_core::{BadRecord, Lease, RegistryError, SubnetKey};
use futures::stream::{self, StreamExt, TryStreamExt};

use super::Store;
use super::calls::Call;
use super::cluster::Failure;
use super::keys::unsigned;
use super::records::{NO_LEASE, Written};
use crate::migration::{Author, Found};

/// What the ids of leases begin with that hold copies: `flm` in ASCII. etcd's own begin with a part of a member's id.
const MARK: i64 = 0x0066_6c6d << 40;
const MARKED: i64 = !0 << 40;

/// How many leases are asked for their time to live at once.
const TOGETHER: usize = 16;

/// Tells whether the id of a lease says that it holds copies.
pub(super) fn holds_a_copy(id: i64) -> bool {
    id & MARKED == MARK
}

impl Store {
    /// Reads all records, who wrote them, and how long the copies among them last.
    pub(super) async fn found(&self) -> Result<(Vec<Found>, Vec<BadRecord>), Failure> {
        let take = |records: &mut Vec<KeyValue>, record| records.push(record);
        let (_, records) = self.each_record(take).await?;
        let (mut leases, mut bad) = (Vec::new(), Vec::new());
        for record in records {
            match self.keys.read(&record) {
                Ok(lease) => leases.push((lease, record)),
                Err(record) => bad.push(record),
            }
        }
        let found = stream::iter(leases).map(|(lease, record)| self.look_at(lease, record));
        Ok((found.buffered(TOGETHER).try_collect().await?, bad))
    }

    async fn look_at(&self, lease: Lease, record: KeyValue) -> Result<Found, Failure> {
        let id = record.lease();
        let author = match id {
            NO_LEASE if record.version() == 1 => Author::Migration,
            id if holds_a_copy(id) => Author::Migration,
            _ => Author::Host,
        };
        let left = if holds_a_copy(id) { self.left(id).await? } else { Duration::ZERO };
        let (_, value) = record.into_key_value();
        Ok(Found { lease, record: value, author, left })
    }

    /// Tells how long a lease lasts; not at all if it is gone.
    async fn left(&self, id: i64) -> Result<Duration, Failure> {
        let call = self.cluster.call(Call::LeaseTimeToLive, |mut connection| async move {
            connection.lease.time_to_live(id, None).await
        });
        Ok(Duration::from_secs(unsigned(call.await?.value.ttl())))
    }

    /// Writes a copy where nothing is, or in place of an older copy. It ends after a time if one is given. Answers
    /// whether what was to be replaced was still there.
    pub(super) async fn copy(
        &self,
        subnet: SubnetKey,
        record: &str,
        left: Option<Duration>,
        replaced: Option<&Lease>,
    ) -> Result<bool, RegistryError> {
        let (condition, before) = match replaced {
            None => (Compare::version(self.keys.subnet(&subnet), CompareOp::Equal, 0), NO_LEASE),
            Some(lease) => match self.unchanged(lease).await {
                Ok(found) => (self.is_at(lease), found.lease()),
                Err(RegistryError::Changed(_) | RegistryError::Gone(_)) => return Ok(false),
                Err(error) => return Err(error),
            },
        };
        let id = match left {
            Some(left) => self.grant_as(left, marked).await.map_err(|failure| self.unwritten(failure))?,
            None => NO_LEASE,
        };
        match self.put(&subnet, condition, record, id).await {
            Ok(Some(_)) => {
                self.drop_lease(before).await;
                Ok(true)
            }
            Ok(None) => {
                self.revoke(id).await;
                Ok(false)
            }
            Err(failure) => Err(self.give_up(subnet, id, failure).await),
        }
    }

    /// Writes the configuration if there is none.
    pub(super) async fn copy_config(&self, text: &str) -> Result<bool, RegistryError> {
        let key = self.keys.config();
        let absent = Compare::version(key, CompareOp::Equal, 0);
        let written = self.write(absent, TxnOp::put(key, text, None)).await;
        match written.map_err(|failure| self.unwritten(failure))? {
            Written::Done(_) => Ok(true),
            Written::Not { .. } => Ok(self.config().await?.as_deref() == Some(text)),
        }
    }

    /// Answers a host that wants to renew a copy how long it still lasts: it was granted for that time, and cannot be
    /// for another. That is less than is wanted in any case, so that the host writes a record of its own.
    pub(super) async fn renew_copy(
        &self,
        lease: &Lease,
        id: i64,
        ttl: Duration,
    ) -> Result<Duration, RegistryError> {
        match self.left(id).await.map_err(|failure| self.unwritten(failure))? {
            Duration::ZERO => Err(RegistryError::Gone(lease.subnet)),
            left => Ok(left.min(ttl / 2)),
        }
    }
}

/// Chooses the id of a lease for a copy.
fn marked() -> i64 {
    MARK | fastrand::i64(..) & !MARKED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_recognised_and_an_id_of_etcd_is_not_taken_for_one() {
        let id = marked();
        assert!(id > 0 && holds_a_copy(id), "{id:x}");
        for id in [NO_LEASE, 0x694d_90a1_2345_6789, i64::MAX, -1, MARK - 1] {
            assert!(!holds_a_copy(id), "{id:x}");
        }
    }
}
