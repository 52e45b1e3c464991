//! Updates of the attributes of a lease.
//!
//! ```text
//!  update ──ok──▶ published
//!   ▲  │ changed, or outcome unknown: list, and check the owner
//!   └──┘ this host ── gone, or another host ──▶ lost
//! ```

use std::sync::Arc;

use flannel_core::{Lease, LeaseAttrs, LeaseMatch, RegistryError, SubnetRegistry};

use super::shared::Shared;

/// The number of writes that may find a changed record before the caller must try again.
const ATTEMPTS: u32 = 5;

impl<R: SubnetRegistry> Shared<R> {
    /// Writes the attributes. [`RegistryError::Gone`] and [`RegistryError::Changed`] mean that the lease is lost.
    pub(super) async fn publish(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, RegistryError> {
        let ttl = self.options.ttl;
        let attrs = &attrs.clone().with_node(self.node());
        let held = self.state().held.clone().filter(|held| held.subnet == own.subnet);
        let mut last_seen = held.unwrap_or_else(|| own.clone());
        let mut tries = 1;
        loop {
            let error = match self.registry.update(&last_seen, attrs, ttl).await {
                Ok(lease) => {
                    self.set_granted(ttl);
                    self.hold(&lease, None);
                    return Ok(lease);
                }
                Err(error @ (RegistryError::Changed(_) | RegistryError::Unknown(..))) => error,
                Err(error) => return Err(error),
            };
            last_seen = self.own_record(own, attrs).await?;
            if tries == ATTEMPTS {
                // Another writer keeps changing the record, but it still belongs to this host.
                let place = self.registry.describe();
                return Err(RegistryError::Unavailable(place, error.into()));
            }
            tries += 1;
        }
    }

    /// Reads the record, which may have the new attributes or the former ones.
    async fn own_record(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, RegistryError> {
        let snapshot = self.registry.list().await?;
        let record = snapshot.leases.into_iter().find(|lease| lease.subnet == own.subnet);
        let record = record.ok_or(RegistryError::Gone(own.subnet))?;
        let ties = [&own.attrs, attrs].map(|attrs| record.match_host(&attrs.public, attrs.node));
        let is_own = ties.iter().any(|tie| matches!(tie, Some(LeaseMatch::Id | LeaseMatch::Address)));
        if is_own { Ok(Arc::unwrap_or_clone(record)) } else { Err(RegistryError::Changed(own.subnet)) }
    }
}
