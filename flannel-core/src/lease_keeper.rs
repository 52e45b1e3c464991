//! Keeps the host's own lease after it was acquired.
//!
//! ```text
//!                     published
//!         ┌──────────────────────────────────────┐
//!         │            lost                      ▼ acquired (the same subnet first)
//! Publishing, Keeping ─────────▶ Lost ──────────▶ Keeping
//!  ▲ │                            ▲ │ failed: retry with backoff
//!  └─┘ failed                     └─┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::backoff::Backoff;
use crate::config::NetworkConfig;
use crate::lease::{Lease, LeaseAttrs};
use crate::manager::{KeepEvent, LeaseManager, LeaseRequest, ManagerError};
use crate::registry::RegistryError;

/// An event of the host's own lease.
#[derive(Debug)]
pub(crate) enum LeaseKeeperEvent {
    /// An event of the lease while it is kept.
    Keep(KeepEvent),
    /// The lease couldn't be reacquired or published; it will be retried.
    Failed {
        /// The cause.
        reason: String,
        /// The time until the next attempt.
        retry_in: Duration,
    },
    /// The attributes were published.
    Published(Lease),
    /// The lease was reacquired, possibly with another subnet.
    Acquired(Lease),
}

/// The lease to keep, and how.
pub(crate) struct LeaseKeeper {
    pub(crate) manager: Arc<dyn LeaseManager>,
    pub(crate) config: Arc<NetworkConfig>,
    /// The attributes that the record should contain, apart from what the manager overrides.
    pub(crate) attrs: LeaseAttrs,
    /// The delays between attempts.
    pub(crate) retry: Backoff,
    pub(crate) random: fastrand::Rng,
    /// Whether the record already contains the attributes.
    pub(crate) is_published: bool,
    /// Whether the lease is lost and must be reacquired first.
    pub(crate) is_lost: bool,
}

/// The first delay after a failed publication. Until it succeeds, peers send to the host's old address.
const FIRST_PUBLISH_RETRY: Duration = Duration::from_millis(200);

enum State {
    Publishing { failures: u32 },
    Keeping(BoxStream<'static, KeepEvent>),
    Lost { failures: u32 },
}

impl LeaseKeeper {
    /// Keeps the lease, and reacquires it whenever it is lost. The stream never ends.
    pub(crate) fn stream(self, own: Lease) -> BoxStream<'static, LeaseKeeperEvent> {
        let state = match (self.is_lost, self.is_published) {
            (true, _) => State::Lost { failures: 0 },
            (false, false) => State::Publishing { failures: 0 },
            (false, true) => State::Keeping(self.manager.keep(own.clone())),
        };
        stream::unfold((self, state, own), |(mut keeper, state, own)| async {
            let (event, state, own) = keeper.step(state, own).await;
            Some((event, (keeper, state, own)))
        })
        .boxed()
    }

    async fn step(&mut self, state: State, own: Lease) -> (LeaseKeeperEvent, State, Lease) {
        let chance = self.random.f64();
        match state {
            State::Keeping(mut keep) => match keep.next().await {
                Some(KeepEvent::Lost(reason)) => lost(reason, own),
                Some(KeepEvent::Overridden(lease)) => (
                    LeaseKeeperEvent::Keep(KeepEvent::Overridden(lease.clone())),
                    State::Keeping(keep),
                    lease,
                ),
                Some(event) => (LeaseKeeperEvent::Keep(event), State::Keeping(keep), own),
                None => lost("the lease manager stopped keeping it".to_owned(), own),
            },
            State::Publishing { failures } => {
                let retry = Backoff { first: FIRST_PUBLISH_RETRY.min(self.retry.first), ..self.retry };
                wait(retry, failures, chance).await;
                match self.manager.publish(&own, &self.attrs).await {
                    Ok(lease) => self.keep(LeaseKeeperEvent::Published(lease.clone()), lease),
                    Err(error) if is_loss(&error) => lost(crate::chain(&error), own),
                    Err(error) => {
                        let event = failed(&error, retry.delay(failures, chance));
                        (event, State::Publishing { failures: failures.saturating_add(1) }, own)
                    }
                }
            }
            State::Lost { failures } => {
                wait(self.retry, failures, chance).await;
                let Self { manager, config, attrs, .. } = &*self;
                let request = LeaseRequest::new(config, attrs).with_previous(Some(own.subnet));
                match manager.acquire(request).await {
                    Ok(lease) => self.keep(LeaseKeeperEvent::Acquired(lease.clone()), lease),
                    Err(error) => {
                        let event = failed(&error, self.retry.delay(failures, chance));
                        (event, State::Lost { failures: failures.saturating_add(1) }, own)
                    }
                }
            }
        }
    }

    fn keep(&self, event: LeaseKeeperEvent, lease: Lease) -> (LeaseKeeperEvent, State, Lease) {
        (event, State::Keeping(self.manager.keep(lease.clone())), lease)
    }
}

/// Waits before another attempt after this many failures.
async fn wait(retry: Backoff, failures: u32, chance: f64) {
    if let Some(earlier) = failures.checked_sub(1) {
        tokio::time::sleep(retry.delay(earlier, chance)).await;
    }
}

fn lost(reason: String, own: Lease) -> (LeaseKeeperEvent, State, Lease) {
    (LeaseKeeperEvent::Keep(KeepEvent::Lost(reason)), State::Lost { failures: 0 }, own)
}

fn failed(error: &ManagerError, retry_in: Duration) -> LeaseKeeperEvent {
    LeaseKeeperEvent::Failed { reason: crate::chain(error), retry_in }
}

fn is_loss(error: &ManagerError) -> bool {
    matches!(error, ManagerError::Registry(RegistryError::Gone(_) | RegistryError::Changed(_)))
}
