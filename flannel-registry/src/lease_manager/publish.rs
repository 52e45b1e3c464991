//! Letting the record of a lease say something else about this host.
//!
//! ```text
//!  update ──yes──▶ published
//!   ▲  │ changed, or no word whether it was written: list, and look who wrote it
//!   └──┘ this host ── nobody, or another host ──▶ lost
//! ```

use std::sync::Arc;

use flannel_core::{Lease, LeaseAttrs, LeaseMatch, RegistryError, SubnetRegistry};

use super::Shared;

/// How many writes may find another record than the one last seen before it is left to the caller to try again.
const ATTEMPTS: u32 = 5;

impl<R: SubnetRegistry> Shared<R> {
    /// [`RegistryError::Gone`] and [`RegistryError::Changed`] say that the lease is lost.
    pub(super) async fn publish(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, RegistryError> {
        let ttl = self.options.ttl;
        let attrs = &attrs.clone().with_node(self.node());
        let held = self.state().held.clone().filter(|held| held.subnet == own.subnet);
        let mut last_seen = held.unwrap_or_else(|| own.clone());
        let mut tries = 1;
        loop {
            let error = match self.registry.update(&last_seen, attrs, ttl).await {
                Ok(lease) => {
                    self.granted(ttl);
                    self.hold(&lease, None);
                    return Ok(lease);
                }
                Err(error @ (RegistryError::Changed(_) | RegistryError::Unknown(..))) => error,
                Err(error) => return Err(error),
            };
            last_seen = self.own_record(own, attrs).await?;
            if tries == ATTEMPTS {
                // Somebody keeps on writing, but it is this host's record still.
                let place = self.registry.describe();
                return Err(RegistryError::Unavailable(place, error.into()));
            }
            tries += 1;
        }
    }

    /// Reads the record, which may say what the host is now or what it was before.
    async fn own_record(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, RegistryError> {
        let snapshot = self.registry.list().await?;
        let found = snapshot.leases.into_iter().find(|lease| lease.subnet == own.subnet);
        let found = found.ok_or(RegistryError::Gone(own.subnet))?;
        let ties = [&own.attrs, attrs].map(|attrs| found.tie(&attrs.public, attrs.node));
        let is_own = ties.iter().any(|tie| matches!(tie, Some(LeaseMatch::Id | LeaseMatch::Address)));
        if is_own { Ok(Arc::unwrap_or_clone(found)) } else { Err(RegistryError::Changed(own.subnet)) }
    }
}
