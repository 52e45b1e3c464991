//! Options of a manager.

use std::sync::Arc;
use std::time::Duration;

use flannel_core::Backoff;

use crate::{BootClock, Clock, NodeIdentity};

/// Options of a [`RegistryLeaseManager`](crate::RegistryLeaseManager).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegistryLeaseManagerOptions {
    /// The TTL of a lease.
    pub ttl: Duration,
    /// The minimum remaining TTL at a renewal; `None` renews after a third of the TTL.
    pub renew_margin: Option<Duration>,
    /// The backoff after a failed renewal.
    pub retry: Backoff,
    /// The clock that measures the time until a renewal.
    pub clock: Arc<dyn Clock>,
    /// The host's stable id; without it, the host is identified by its public address alone.
    pub identity: Option<Arc<NodeIdentity>>,
    /// The seed of random choices, for reproducible tests.
    pub seed: Option<u64>,
}

impl Default for RegistryLeaseManagerOptions {
    fn default() -> Self {
        Self {
            // As in upstream flannel.
            ttl: Duration::from_secs(86_400),
            // Short at first, because outages are often short; up to upstream flannel's minute.
            retry: Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60) },
            renew_margin: None,
            clock: Arc::new(BootClock::new()),
            identity: None,
            seed: None,
        }
    }
}
