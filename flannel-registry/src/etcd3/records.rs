//! Reading and writing records.
//!
//! A write is a transaction that compares the record's revision, or its absence. If the comparison fails, the record is
//! read to tell why.
//!
//! A new lease id is granted for every limited record that is written. It marks the write: when a call is made again
//! because the first member did not answer, a record under this id shows that the first had written after all.

use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, GetOptions, KeyValue, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, Txn,
    TxnOp,
};
use flannel_core::{BoxError, Lease, LeaseAttrs, RegistryError, Revision, Snapshot, SubnetKey, Term};

use super::Store;
use super::calls::Call;
use super::cluster::Failure;
use super::keys::{revision, unsigned};
use crate::etcd::Position;

/// How often a list begins again because the revision it reads at is compacted away between two pages.
const LIST_ATTEMPTS: usize = 3;

impl Store {
    /// Reads the text of the configuration.
    pub(super) async fn config(&self) -> Result<Option<String>, RegistryError> {
        let answer = self.get_at(self.keys.config()).await;
        let (revision, record) = answer.map_err(|failure| self.unwritten(failure))?;
        self.config_read.at(revision);
        let text = record.map(|record| String::from_utf8(record.into_key_value().1));
        text.transpose().map_err(|error| RegistryError::Refused(self.describe(), error.into()))
    }

    /// Reads all leases, and where in the history of which store they stand.
    pub(super) async fn list(&self) -> Result<(Position, Snapshot), Failure> {
        let take = |snapshot: &mut Snapshot, record: KeyValue| match self.keys.read(&record) {
            Ok(lease) => snapshot.leases.push(lease.into()),
            Err(bad) => snapshot.bad.push(bad),
        };
        let (position, mut snapshot) = self.each_record(take).await?;
        snapshot.revision = Revision(position.revision);
        Ok((position, snapshot))
    }

    /// Reads all records there are at one moment, and takes them in one after the other.
    pub(super) async fn each_record<T: Default + Send>(
        &self,
        take: impl Fn(&mut T, KeyValue) + Send + Sync,
    ) -> Result<(Position, T), Failure> {
        let mut attempt = 1;
        loop {
            match self.each_page(&take).await {
                Err(Failure::NotNow(_)) if attempt < LIST_ATTEMPTS => attempt += 1,
                done => return done,
            }
        }
    }

    /// Reads all pages of one list, all at the revision of the first.
    async fn each_page<T: Default + Send>(
        &self,
        take: &(impl Fn(&mut T, KeyValue) + Sync),
    ) -> Result<(Position, T), Failure> {
        let mut from = self.keys.subnets().as_bytes().to_vec();
        let mut position = None;
        let mut taken = T::default();
        loop {
            let options = GetOptions::new()
                .with_range(self.keys.subnets_end())
                .with_limit(i64::from(self.page_size.max(1)))
                // Zero is now.
                .with_revision(position.as_ref().map_or(0, Position::signed_revision));
            let call = self.cluster.call(Call::Range, |mut connection| {
                let (from, options) = (from.clone(), options.clone());
                async move { connection.kv.get(from, Some(options)).await }
            });
            let mut page = call.await?.value;
            let header = page.header().ok_or_else(without_header)?;
            let position = *position.get_or_insert_with(|| Position::of(header));
            self.last.heard(&position);
            self.cluster.word.heard_at(position.revision);
            let records = page.take_kvs();
            // The next key in order is the last one with a zero byte behind it.
            let next = records.last().filter(|_| page.more()).map(|last| [last.key(), &[0]].concat());
            for record in records {
                take(&mut taken, record);
            }
            match next {
                Some(next) => from = next,
                None => return Ok((position, taken)),
            }
        }
    }

    /// Writes a lease that is not there yet.
    pub(super) async fn create(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError> {
        let id = self.grant(ttl).await.map_err(|failure| self.unwritten(failure))?;
        let absent = Compare::version(self.keys.subnet(&subnet), CompareOp::Equal, 0);
        match self.put(&subnet, absent, &attrs.to_record(), id).await {
            Ok(Some(revision)) => Ok(Lease { subnet, attrs: attrs.clone(), revision, term: Term::Limited }),
            Ok(None) => {
                self.revoke(id).await;
                Err(RegistryError::Exists(subnet))
            }
            Err(failure) => Err(self.give_up(subnet, id, failure).await),
        }
    }

    /// Replaces a record under a new lease id, and drops the old one. A record without a lease stays without.
    pub(super) async fn update(
        &self,
        lease: &Lease,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError> {
        let before = self.unchanged(lease).await?.lease();
        let id = match before {
            NO_LEASE => NO_LEASE,
            _ => self.grant(ttl).await.map_err(|failure| self.unwritten(failure))?,
        };
        match self.put(&lease.subnet, self.is_at(lease), &attrs.to_record(), id).await {
            Ok(Some(revision)) => {
                self.drop_lease(before).await;
                Ok(Lease { attrs: attrs.clone(), revision, ..lease.clone() })
            }
            Ok(None) => {
                self.revoke(id).await;
                Err(self.unchanged(lease).await.err().unwrap_or(RegistryError::Changed(lease.subnet)))
            }
            Err(failure) => Err(self.give_up(lease.subnet, id, failure).await),
        }
    }

    /// Keeps the etcd lease alive that a record hangs on, and leaves the record alone.
    pub(super) async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError> {
        let id = self.unchanged(lease).await?.lease();
        if id == NO_LEASE {
            return Ok(ttl);
        }
        #[cfg(feature = "etcd-v2")]
        if super::copies::holds_a_copy(id) {
            return self.renew_copy(lease, id, ttl).await;
        }
        let call = self.cluster.call(Call::LeaseKeepAlive, |mut connection| async move {
            // The client takes the first answer for itself; the second one tells the time to live.
            let (mut keeper, mut answers) = match connection.lease.keep_alive(id).await {
                Err(etcd_client::Error::LeaseKeepAliveError(_)) => return Ok(0),
                started => started?,
            };
            keeper.keep_alive().await?;
            match answers.message().await? {
                Some(answer) => Ok(answer.ttl()),
                // A member that stops ends the stream in order. That says nothing about the lease.
                None => Err(etcd_client::Error::Internal("no answer to a keep-alive".to_owned())),
            }
        });
        let ttl = call.await.map_err(|failure| self.unwritten(failure))?.value;
        match unsigned(ttl) {
            0 => Err(RegistryError::Gone(lease.subnet)),
            granted => Ok(Duration::from_secs(granted)),
        }
    }

    /// Removes a record.
    pub(super) async fn delete(&self, lease: &Lease) -> Result<(), RegistryError> {
        let id = self.unchanged(lease).await?.lease();
        let removal = TxnOp::delete(self.keys.subnet(&lease.subnet), None);
        let written = self.write(self.is_at(lease), removal).await;
        match written.map_err(|failure| self.uncertain(lease.subnet, failure))? {
            Written::Done(_) => {
                self.drop_lease(id).await;
                Ok(())
            }
            Written::Not { again } => match self.unchanged(lease).await {
                // Whoever was asked earlier and did not answer had removed it.
                Err(RegistryError::Gone(_)) if again => Ok(()),
                Err(error) => Err(error),
                Ok(_) => Err(RegistryError::Changed(lease.subnet)),
            },
        }
    }

    /// Puts a record if a comparison holds, and answers with its revision.
    pub(super) async fn put(
        &self,
        subnet: &SubnetKey,
        condition: Compare,
        record: &str,
        id: i64,
    ) -> Result<Option<Revision>, Failure> {
        let key = self.keys.subnet(subnet);
        let put = TxnOp::put(key.clone(), record, Some(PutOptions::new().with_lease(id)));
        match self.write(condition, put).await? {
            Written::Done(revision) => Ok(Some(revision)),
            Written::Not { again: false } => Ok(None),
            Written::Not { again: true } => {
                let found = self.get(&key).await?;
                let ours = found.filter(|found| found.lease() == id && found.value() == record.as_bytes());
                Ok(ours.as_ref().map(revision))
            }
        }
    }

    /// Does one thing to a record if a comparison holds.
    pub(super) async fn write(&self, condition: Compare, operation: TxnOp) -> Result<Written, Failure> {
        let txn = Txn::new().when([condition]).and_then([operation]);
        let call = self.cluster.call(Call::Txn, |mut connection| {
            let txn = txn.clone();
            async move { connection.kv.txn(txn).await }
        });
        let answer = call.await?;
        let header = answer.value.header().ok_or_else(without_header)?;
        Ok(match answer.value.succeeded() {
            true => Written::Done(Revision(unsigned(header.revision()))),
            false => Written::Not { again: answer.earlier > 0 },
        })
    }

    /// Reads a record, and answers with it if it is still the one that the lease was read from.
    pub(super) async fn unchanged(&self, lease: &Lease) -> Result<KeyValue, RegistryError> {
        let record = self.get(&self.keys.subnet(&lease.subnet)).await;
        match record.map_err(|failure| self.unwritten(failure))? {
            Some(record) if revision(&record) == lease.revision => Ok(record),
            Some(_) => Err(RegistryError::Changed(lease.subnet)),
            None => Err(RegistryError::Gone(lease.subnet)),
        }
    }

    /// Reads one key.
    pub(super) async fn get(&self, key: &str) -> Result<Option<KeyValue>, Failure> {
        Ok(self.get_at(key).await?.1)
    }

    /// Reads one key, and the revision of the store at that moment; zero if etcd does not tell.
    async fn get_at(&self, key: &str) -> Result<(u64, Option<KeyValue>), Failure> {
        let call = self.cluster.call(Call::Range, |mut connection| {
            let key = key.to_owned();
            async move { connection.kv.get(key, None).await }
        });
        let mut answer = call.await?.value;
        let revision = answer.header().map_or(0, |header| unsigned(header.revision()));
        Ok((revision, answer.take_kvs().pop()))
    }

    /// Holds if the record is still the one that the lease was read from.
    pub(super) fn is_at(&self, lease: &Lease) -> Compare {
        // Revisions come from etcd, whose own are signed.
        let revision = i64::try_from(lease.revision.0).unwrap_or(i64::MAX);
        Compare::mod_revision(self.keys.subnet(&lease.subnet), CompareOp::Equal, revision)
    }

    /// Grants a lease and answers with its id.
    async fn grant(&self, ttl: Duration) -> Result<i64, Failure> {
        self.grant_as(ttl, || NO_LEASE).await
    }

    /// Grants a lease with an id that is chosen here for each attempt; etcd chooses if that is none.
    pub(super) async fn grant_as(&self, ttl: Duration, id: fn() -> i64) -> Result<i64, Failure> {
        // etcd counts whole seconds.
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds.max(1)).unwrap_or(i64::MAX);
        let call = self.cluster.call(Call::LeaseGrant, |mut connection| {
            let options = LeaseGrantOptions::new().with_id(id());
            async move { connection.lease.grant(seconds, Some(options)).await }
        });
        Ok(call.await?.value.id())
    }

    /// Ends a put that failed. A lease that may hold the record stays; it runs out by itself if it does not.
    pub(super) async fn give_up(&self, subnet: SubnetKey, id: i64, failure: Failure) -> RegistryError {
        if !matches!(failure, Failure::Away(_)) {
            self.revoke(id).await;
        }
        self.uncertain(subnet, failure)
    }

    /// Revokes a lease that holds nothing. One that stays runs out by itself.
    pub(super) async fn revoke(&self, id: i64) {
        if id == NO_LEASE {
            return;
        }
        let call = self
            .cluster
            .call(Call::LeaseRevoke, |mut connection| async move { connection.lease.revoke(id).await });
        if let Err(failure) = call.await {
            tracing::debug!(lease = id, error = %failure.into_reason(), "a lease without a record stays until it ends");
        }
    }

    /// Revokes a lease that a record of ours hung on, unless something else does: to revoke removes what it holds.
    pub(super) async fn drop_lease(&self, id: i64) {
        if id == NO_LEASE {
            return;
        }
        let call = self.cluster.call(Call::LeaseTimeToLive, |mut connection| async move {
            let options = LeaseTimeToLiveOptions::new().with_keys();
            connection.lease.time_to_live(id, Some(options)).await
        });
        let holds_nothing =
            call.await.is_ok_and(|answer| answer.value.ttl() > 0 && answer.value.keys().is_empty());
        if holds_nothing {
            self.revoke(id).await;
        }
    }

    /// The error of a call that did not write a record.
    pub(super) fn unwritten(&self, failure: Failure) -> RegistryError {
        match failure {
            Failure::Away(reason) | Failure::NotNow(reason) => {
                RegistryError::Unavailable(self.describe(), reason)
            }
            Failure::Refused(reason) => RegistryError::Refused(self.describe(), reason),
        }
    }

    /// The error of a call that may have written a record.
    pub(super) fn uncertain(&self, subnet: SubnetKey, failure: Failure) -> RegistryError {
        match failure {
            Failure::Away(reason) => RegistryError::Unknown(subnet, reason),
            other @ (Failure::NotNow(_) | Failure::Refused(_)) => self.unwritten(other),
        }
    }
}

/// The id that stands for "no lease".
pub(super) const NO_LEASE: i64 = 0;

/// How a transaction went.
pub(super) enum Written {
    /// It was done, at this revision.
    Done(Revision),
    /// The comparison failed.
    Not {
        /// Whether a member was asked before, which may have done it.
        again: bool,
    },
}

fn without_header() -> Failure {
    let reason: BoxError = "an answer without a header".into();
    Failure::Away(reason)
}
