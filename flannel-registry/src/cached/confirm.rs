//! Confirmation of a cached lease, followed by its renewal.
//!
//! ```text
//!  confirming ──same subnet──▶ kept by the inner manager
//!   │  ▲     └──other subnet─▶ lost; the next acquisition finds the other subnet
//!   └──┘ no answer: backoff, cut short when the watch reaches the registry
//! ```

use std::sync::Arc;

use flannel_core::{KeepEvent, Lease, LeaseManager, LeaseRequest, chain};
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::shared::Shared;

pub(super) fn stream<M: LeaseManager>(shared: Arc<Shared<M>>, own: Lease) -> BoxStream<'static, KeepEvent> {
    let confirmation = LeaseConfirmation { shared, own, stage: Stage::Confirming { failures: 0 } };
    let next = |mut confirmation: LeaseConfirmation<M>| async {
        confirmation.next().await.map(|event| (event, confirmation))
    };
    stream::unfold(confirmation, next).boxed()
}

struct LeaseConfirmation<M> {
    shared: Arc<Shared<M>>,
    own: Lease,
    stage: Stage,
}

enum Stage {
    /// The registry has not confirmed the lease yet.
    Confirming { failures: u32 },
    /// The lease is confirmed.
    Kept(BoxStream<'static, KeepEvent>),
    /// The registry granted another subnet.
    Lost,
}

impl<M: LeaseManager> LeaseConfirmation<M> {
    async fn next(&mut self) -> Option<KeepEvent> {
        loop {
            match &mut self.stage {
                Stage::Confirming { failures } => {
                    let failures = *failures;
                    if let Some(event) = self.attempt(failures).await {
                        return Some(event);
                    }
                }
                Stage::Kept(keep) => return keep.next().await,
                Stage::Lost => return None,
            }
        }
    }

    /// Tries to confirm the lease, and returns an event unless it is confirmed.
    async fn attempt(&mut self, failures: u32) -> Option<KeepEvent> {
        if let Some(before) = failures.checked_sub(1) {
            let pause = self.shared.retry.delay(before, fastrand::f64());
            // Whichever is first; the watch may have reached the registry already.
            let _ = tokio::time::timeout(pause, self.shared.registry_reached.notified()).await;
        }
        match self.confirm().await {
            Ok(lease) if lease.subnet == self.own.subnet => {
                self.stage = Stage::Kept(self.shared.inner.keep(lease));
                None
            }
            Ok(lease) => {
                self.stage = Stage::Lost;
                let (was, is) = (self.own.subnet, lease.subnet);
                Some(KeepEvent::Lost(format!(
                    "the lease of {was} could not be confirmed; this host holds {is} now"
                )))
            }
            Err(reason) => {
                self.stage = Stage::Confirming { failures: failures.saturating_add(1) };
                let retry_in = self.shared.retry.delay(failures, 0.0);
                Some(KeepEvent::RenewalFailed { reason, retry_in })
            }
        }
    }

    async fn confirm(&mut self) -> Result<Lease, String> {
        let config = self.shared.state().config.clone();
        // Stored when the lease was returned from the cache.
        let config = config.ok_or("no network config")?;
        let request = LeaseRequest::new(&config, &self.own.attrs).with_previous(Some(self.own.subnet));
        self.shared.acquire(request).await.map_err(|error| chain(&error))
    }
}
