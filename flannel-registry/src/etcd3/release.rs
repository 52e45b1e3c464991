//! Releases, distinguished from expiries.
//!
//! etcd's event for a removed key does not say whether it was deleted or its lease expired. A host that releases its subnet
//! therefore first attaches the record to an etcd lease with a marked id, and then revokes that lease, which removes the
//! record. Watches see the mark; clients that do not know it see a write without a change, and a removal. If the host
//! stops in between, the record expires within seconds.

use std::time::Duration;

use flannel_core::{Lease, RegistryError};

use super::call_error::CallError;
use super::lease_id::{NO_LEASE, release_id};
use super::request_counters::CallKind;
use super::store::Store;

/// The TTL of a record between the two steps of a release.
const TTL: Duration = Duration::from_secs(5);

impl Store {
    /// Removes the record of a lease if it is unchanged, so that watches report a release.
    pub(super) async fn release(
        &self,
        lease: &Lease,
        value: &[u8],
        previous_id: i64,
    ) -> Result<(), RegistryError> {
        let id = self.grant(TTL, release_id).await.map_err(|error| self.unwritten(error))?;
        match self.put(&lease.subnet, self.is_at(lease), value, id).await {
            Ok(Some(_)) => {}
            Ok(None) => {
                self.revoke(id).await;
                return Err(self
                    .unchanged(lease)
                    .await
                    .err()
                    .unwrap_or(RegistryError::Changed(lease.subnet)));
            }
            Err(error) => return Err(self.put_failed(lease.subnet, id, error).await),
        }
        let revoked = self
            .cluster
            .call(CallKind::LeaseRevoke, |mut connection| async move { connection.lease.revoke(id).await });
        match revoked.await {
            // A member that was asked earlier and did not answer revoked it, or it expired.
            Ok(_) | Err(CallError::Transient(_)) => {}
            Err(error) => return Err(self.uncertain(lease.subnet, error)),
        }
        if previous_id != NO_LEASE {
            self.drop_lease(previous_id).await;
        }
        Ok(())
    }
}
