//! The life of the own lease after it was acquired.
//!
//! ```text
//!            lost                      acquired (the same subnet first)
//! Keeping ─────────▶ Lost ──────────▶ Keeping
//!                     ▲ │ not yet: wait, longer each time
//!                     └─┘
//! ```

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::manager::{KeepEvent, LeaseManager, LeaseRequest};
use crate::{Backoff, Lease, LeaseAttrs, NetworkConfig};

/// What happens to the own lease.
#[derive(Debug)]
pub(crate) enum HoldEvent {
    /// While it is kept.
    Keep(KeepEvent),
    /// It could not be acquired again yet.
    NotYet(KeepEvent),
    /// It was acquired again, perhaps for another subnet.
    Acquired(Lease),
}

/// Keeps a lease for ever, acquiring it again whenever it is lost. The stream never ends.
pub(crate) fn hold(
    manager: Arc<dyn LeaseManager>,
    config: Arc<NetworkConfig>,
    own: Lease,
    retry: Backoff,
    mut random: fastrand::Rng,
) -> BoxStream<'static, HoldEvent> {
    let keeping = State::Keeping(manager.keep(own.clone()));
    stream::unfold((keeping, own), move |(state, own)| {
        let (manager, config) = (Arc::clone(&manager), Arc::clone(&config));
        let chance = random.f64();
        async move { Some(step(&*manager, &config, state, own, retry, chance).await) }
    })
    .boxed()
}

enum State {
    Keeping(BoxStream<'static, KeepEvent>),
    Lost { attempts: u32 },
}

async fn step(
    manager: &dyn LeaseManager,
    config: &NetworkConfig,
    state: State,
    own: Lease,
    retry: Backoff,
    chance: f64,
) -> (HoldEvent, (State, Lease)) {
    match state {
        State::Keeping(mut keep) => match keep.next().await {
            Some(event @ KeepEvent::Lost(_)) => (HoldEvent::Keep(event), (State::Lost { attempts: 0 }, own)),
            Some(event) => (HoldEvent::Keep(event), (State::Keeping(keep), own)),
            None => {
                let event = KeepEvent::Lost("it is no longer kept".to_owned());
                (HoldEvent::Keep(event), (State::Lost { attempts: 0 }, own))
            }
        },
        State::Lost { attempts } => {
            if let Some(failures) = attempts.checked_sub(1) {
                tokio::time::sleep(retry.delay(failures, chance)).await;
            }
            match again(manager, config, &own.attrs, &own).await {
                Ok(lease) => {
                    let keeping = State::Keeping(manager.keep(lease.clone()));
                    (HoldEvent::Acquired(lease.clone()), (keeping, lease))
                }
                Err(reason) => {
                    let retry_in = retry.delay(attempts, chance);
                    let event = KeepEvent::Trouble { reason, retry_in };
                    (HoldEvent::NotYet(event), (State::Lost { attempts: attempts.saturating_add(1) }, own))
                }
            }
        }
    }
}

async fn again(
    manager: &dyn LeaseManager,
    config: &NetworkConfig,
    attrs: &LeaseAttrs,
    own: &Lease,
) -> Result<Lease, String> {
    let request = LeaseRequest { config, attrs, previous: Some(own.subnet) };
    manager.acquire(request).await.map_err(|error| crate::chain(&error))
}
