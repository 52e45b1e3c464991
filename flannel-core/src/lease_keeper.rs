//! The life of the own lease after it was acquired.
//!
//! ```text
//!                     published
//!         ┌──────────────────────────────────────┐
//!         │            lost                      ▼ acquired (the same subnet first)
//! Publishing, Keeping ─────────▶ Lost ──────────▶ Keeping
//!  ▲ │                            ▲ │ not yet: wait, longer each time
//!  └─┘ not yet                    └─┘
//! ```
//!
//! It begins with publishing if the lease shall say something else than it does.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::manager::{KeepEvent, LeaseManager, LeaseRequest, ManagerError};
use crate::{Backoff, Lease, LeaseAttrs, NetworkConfig, RegistryError};

/// What happens to the own lease.
#[derive(Debug)]
pub(crate) enum LeaseKeeperEvent {
    /// While it is kept.
    Keep(KeepEvent),
    /// It could not be acquired again, or published, yet.
    NotYet(KeepEvent),
    /// It says now what it shall.
    Published(Lease),
    /// It was acquired again, perhaps for another subnet.
    Acquired(Lease),
}

/// Whose lease is held, and how.
pub(crate) struct LeaseKeeper {
    pub(crate) manager: Arc<dyn LeaseManager>,
    pub(crate) config: Arc<NetworkConfig>,
    /// What the lease shall say about the host.
    pub(crate) attrs: LeaseAttrs,
    /// The pauses between attempts.
    pub(crate) retry: Backoff,
    pub(crate) random: fastrand::Rng,
    /// Whether it is lost, and must be acquired again first.
    pub(crate) is_lost: bool,
}

/// The first pause after a lease could not be published: until it is, the peers send to where the host no longer is.
const PUBLISH_AGAIN: Duration = Duration::from_millis(200);

enum State {
    Publishing { failures: u32 },
    Keeping(BoxStream<'static, KeepEvent>),
    Lost { failures: u32 },
}

impl LeaseKeeper {
    /// Keeps a lease for ever, acquiring it again whenever it is lost. The stream never ends.
    pub(crate) fn stream(self, own: Lease) -> BoxStream<'static, LeaseKeeperEvent> {
        if self.is_lost {
            return self.from(State::Lost { failures: 0 }, own);
        }
        // Who the host is, the manager says.
        let says = own.attrs.clone().with_node(self.attrs.node);
        let state = match says == self.attrs {
            true => State::Keeping(self.manager.keep(own.clone())),
            false => State::Publishing { failures: 0 },
        };
        self.from(state, own)
    }

    fn from(self, state: State, own: Lease) -> BoxStream<'static, LeaseKeeperEvent> {
        stream::unfold((self, state, own), |(mut hold, state, own)| async {
            let (event, state, own) = hold.step(state, own).await;
            Some((event, (hold, state, own)))
        })
        .boxed()
    }

    async fn step(&mut self, state: State, own: Lease) -> (LeaseKeeperEvent, State, Lease) {
        let chance = self.random.f64();
        match state {
            State::Keeping(mut keep) => match keep.next().await {
                Some(KeepEvent::Lost(reason)) => lost(reason, own),
                Some(event) => (LeaseKeeperEvent::Keep(event), State::Keeping(keep), own),
                None => lost("it is no longer kept".to_owned(), own),
            },
            State::Publishing { failures } => {
                let retry = Backoff { first: PUBLISH_AGAIN.min(self.retry.first), ..self.retry };
                rest(retry, failures, chance).await;
                match self.manager.publish(&own, &self.attrs).await {
                    Ok(lease) => self.held(LeaseKeeperEvent::Published(lease.clone()), lease),
                    Err(error) if is_loss(&error) => lost(crate::chain(&error), own),
                    Err(error) => {
                        let event = not_yet(&error, retry.delay(failures, chance));
                        (event, State::Publishing { failures: failures.saturating_add(1) }, own)
                    }
                }
            }
            State::Lost { failures } => {
                rest(self.retry, failures, chance).await;
                let Self { manager, config, attrs, .. } = &*self;
                match manager.acquire(LeaseRequest::new(config, attrs).with_previous(Some(own.subnet))).await
                {
                    Ok(lease) => self.held(LeaseKeeperEvent::Acquired(lease.clone()), lease),
                    Err(error) => {
                        let event = not_yet(&error, self.retry.delay(failures, chance));
                        (event, State::Lost { failures: failures.saturating_add(1) }, own)
                    }
                }
            }
        }
    }

    fn held(&self, event: LeaseKeeperEvent, lease: Lease) -> (LeaseKeeperEvent, State, Lease) {
        (event, State::Keeping(self.manager.keep(lease.clone())), lease)
    }
}

async fn rest(retry: Backoff, failures: u32, chance: f64) {
    if let Some(before) = failures.checked_sub(1) {
        tokio::time::sleep(retry.delay(before, chance)).await;
    }
}

fn lost(reason: String, own: Lease) -> (LeaseKeeperEvent, State, Lease) {
    (LeaseKeeperEvent::Keep(KeepEvent::Lost(reason)), State::Lost { failures: 0 }, own)
}

fn not_yet(error: &ManagerError, retry_in: Duration) -> LeaseKeeperEvent {
    LeaseKeeperEvent::NotYet(KeepEvent::RenewalFailed { reason: crate::chain(error), retry_in })
}

fn is_loss(error: &ManagerError) -> bool {
    matches!(error, ManagerError::Registry(RegistryError::Gone(_) | RegistryError::Changed(_)))
}
