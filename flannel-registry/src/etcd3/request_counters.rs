//! Numbers of calls to etcd, by kind.

use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers of calls that a registry has made to etcd; each attempt counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Etcd3Calls {
    /// `KV.Range`: one for the config, one for each page of a list.
    pub range: u64,
    /// `KV.Txn`: one per write of a record.
    pub txn: u64,
    /// `Lease.LeaseGrant`.
    pub lease_grant: u64,
    /// `Lease.LeaseKeepAlive`: one per renewal.
    pub lease_keep_alive: u64,
    /// `Lease.LeaseTimeToLive`: checks whether a replaced lease has other keys.
    pub lease_time_to_live: u64,
    /// `Lease.LeaseRevoke`.
    pub lease_revoke: u64,
    /// `Watch.Watch`: one per opened watch.
    pub watch: u64,
    /// `Auth.Authenticate`: one per connection, and one each time etcd rejects the token.
    pub authenticate: u64,
}

impl Etcd3Calls {
    /// Returns the number of all calls.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self { range, txn, lease_grant, lease_keep_alive, lease_time_to_live, lease_revoke, .. } = self;
        let unary = range + txn + lease_grant + lease_keep_alive + lease_time_to_live + lease_revoke;
        unary + self.watch + self.authenticate
    }
}

/// A kind of call.
#[derive(Clone, Copy, Debug)]
pub(super) enum CallKind {
    Range,
    Txn,
    LeaseGrant,
    LeaseKeepAlive,
    LeaseTimeToLive,
    LeaseRevoke,
    Watch,
    Authenticate,
}

/// Counters of calls.
#[derive(Debug, Default)]
pub(super) struct RequestCounters([AtomicU64; 8]);

impl RequestCounters {
    /// Counts one call.
    pub(super) fn count(&self, call: CallKind) {
        // The discriminants of `CallKind` are the indices of the array.
        if let Some(counter) = self.0.get(call as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the current counts.
    pub(super) fn read(&self) -> Etcd3Calls {
        let [
            range,
            txn,
            lease_grant,
            lease_keep_alive,
            lease_time_to_live,
            lease_revoke,
            watch,
            authenticate,
        ] = self.0.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        Etcd3Calls {
            range,
            txn,
            lease_grant,
            lease_keep_alive,
            lease_time_to_live,
            lease_revoke,
            watch,
            authenticate,
        }
    }
}
