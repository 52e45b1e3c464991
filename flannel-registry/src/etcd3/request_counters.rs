//! How often etcd was asked, by kind of call.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many calls a registry made to etcd since it was opened, each attempt counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Etcd3Calls {
    /// `KV.Range`: one for the configuration, one for each page of a list.
    pub range: u64,
    /// `KV.Txn`: one for each write of a record.
    pub txn: u64,
    /// `Lease.LeaseGrant`.
    pub lease_grant: u64,
    /// `Lease.LeaseKeepAlive`: one for each renewal.
    pub lease_keep_alive: u64,
    /// `Lease.LeaseTimeToLive`: whether a lease that was replaced holds anything else.
    pub lease_time_to_live: u64,
    /// `Lease.LeaseRevoke`.
    pub lease_revoke: u64,
    /// `Watch.Watch`: one for each time a watch was opened.
    pub watch: u64,
    /// `Auth.Authenticate`: one for each connection, and one each time etcd no longer knows the token.
    pub authenticate: u64,
}

impl Etcd3Calls {
    /// All calls together.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self { range, txn, lease_grant, lease_keep_alive, lease_time_to_live, lease_revoke, .. } = self;
        let kept = range + txn + lease_grant + lease_keep_alive + lease_time_to_live + lease_revoke;
        kept + self.watch + self.authenticate
    }
}

/// One kind of call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    Range,
    Txn,
    LeaseGrant,
    LeaseKeepAlive,
    LeaseTimeToLive,
    LeaseRevoke,
    Watch,
    Authenticate,
}

/// Counts calls.
#[derive(Debug, Default)]
pub(super) struct Counters([AtomicU64; 8]);

impl Counters {
    /// Counts one call.
    pub(super) fn count(&self, call: Call) {
        // The discriminants of `Call` are the indices of the array.
        if let Some(counter) = self.0.get(call as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reads all counters.
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
