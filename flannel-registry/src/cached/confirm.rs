//! Confirming a remembered lease, then keeping it.
//!
//! ```text
//!  asking ──the same subnet──▶ kept as the inner manager keeps it
//!   │  ▲ └──another one──────▶ lost; the next acquisition finds the other
//!   └──┘ no answer: a pause, shorter if the watch hears the registry
//! ```

use std::sync::Arc;

use flannel_core::{KeepEvent, Lease, LeaseManager, LeaseRequest, chain};
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::Shared;

pub(super) fn stream<M: LeaseManager>(shared: Arc<Shared<M>>, own: Lease) -> BoxStream<'static, KeepEvent> {
    let keep = Keep { shared, own, stage: Stage::Asking { failures: 0 } };
    stream::unfold(keep, |mut keep| async { keep.next().await.map(|event| (event, keep)) }).boxed()
}

struct Keep<M> {
    shared: Arc<Shared<M>>,
    own: Lease,
    stage: Stage,
}

enum Stage {
    /// The registry has not said yet whether the lease is good.
    Asking { failures: u32 },
    /// It is.
    Kept(BoxStream<'static, KeepEvent>),
    /// It is not.
    Lost,
}

impl<M: LeaseManager> Keep<M> {
    async fn next(&mut self) -> Option<KeepEvent> {
        loop {
            match &mut self.stage {
                Stage::Asking { failures } => {
                    let failures = *failures;
                    if let Some(event) = self.ask(failures).await {
                        return Some(event);
                    }
                }
                Stage::Kept(keep) => return keep.next().await,
                Stage::Lost => return None,
            }
        }
    }

    /// Asks once more for the lease, and tells what it came to unless it is good.
    async fn ask(&mut self, failures: u32) -> Option<KeepEvent> {
        if let Some(before) = failures.checked_sub(1) {
            let pause = self.shared.retry.delay(before, fastrand::f64());
            // The sooner of the two; the watch may have heard the registry long ago.
            let _ = tokio::time::timeout(pause, self.shared.heard.notified()).await;
        }
        match self.confirm().await {
            Ok(lease) if lease.subnet == self.own.subnet => {
                self.stage = Stage::Kept(self.shared.inner.keep(lease));
                None
            }
            Ok(lease) => {
                self.stage = Stage::Lost;
                let (was, is) = (self.own.subnet, lease.subnet);
                Some(KeepEvent::Lost(format!("the lease of {was} could not be confirmed, {is} is held now")))
            }
            Err(reason) => {
                self.stage = Stage::Asking { failures: failures.saturating_add(1) };
                let retry_in = self.shared.retry.delay(failures, 0.0);
                Some(KeepEvent::RenewalFailed { reason, retry_in })
            }
        }
    }

    async fn confirm(&mut self) -> Result<Lease, String> {
        let config = self.shared.state().config.clone();
        // It was noted when the lease was answered from memory.
        let config = config.ok_or("there is no configuration")?;
        let request = LeaseRequest::new(&config, &self.own.attrs).with_previous(Some(self.own.subnet));
        self.shared.acquire(request).await.map_err(|error| chain(&error))
    }
}
