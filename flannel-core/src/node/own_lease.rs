//! What a network does with its own lease.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use tokio::time::Instant;

use super::Node;
use crate::event::{NetworkEvent, Phase};
use crate::lease_keeper::{LeaseKeeper, LeaseKeeperEvent};
use crate::manager::KeepEvent;
use crate::{Lease, NetworkConfig, Term};

impl Node {
    /// Returns the lease if it shall say something else now than it was last asked to.
    pub(super) fn unpublished(&mut self, config: &NetworkConfig) -> Option<Lease> {
        let public = self.public(config);
        let attrs = self.backend.as_ref()?.attrs().at(public);
        if self.attrs.as_ref() == Some(&attrs) {
            return None;
        }
        self.attrs = Some(attrs);
        self.own.clone()
    }

    /// Keeps a lease, and lets it say about the host what it shall.
    pub(super) fn hold(
        &mut self,
        config: &Arc<NetworkConfig>,
        own: Lease,
    ) -> BoxStream<'static, LeaseKeeperEvent> {
        let attrs = self.attrs.clone().unwrap_or_else(|| own.attrs.clone());
        let random = fastrand::Rng::with_seed(self.random.u64(..));
        let (manager, config) = (Arc::clone(&self.options.manager), Arc::clone(config));
        let is_lost = self.read().own.lost.is_some();
        LeaseKeeper { manager, config, attrs, retry: self.options.retry, random, is_lost }.stream(own)
    }

    fn on_published(&mut self, lease: Lease) {
        self.own = Some(lease.clone());
        self.note(|state| state.own.lease = Some(lease.clone()));
        self.change_running(|running| running.lease = lease.clone());
        self.tell(NetworkEvent::LeasePublished(lease));
    }

    /// Takes in what happened to the own lease, and returns it if its subnet is another one now.
    pub(super) fn on_lease(&mut self, event: LeaseKeeperEvent) -> Option<Lease> {
        match event {
            LeaseKeeperEvent::Keep(KeepEvent::Waiting(time)) => {
                self.note(|state| state.own.renewal = later(time));
                self.tell(NetworkEvent::RenewalIn(time));
            }
            LeaseKeeperEvent::Keep(KeepEvent::Permanent) => {
                self.note(|state| {
                    (state.own.renewal, state.own.end) = (None, None);
                    state.own.lease.iter_mut().for_each(|lease| lease.term = Term::Permanent);
                });
                self.tell(NetworkEvent::LeasePermanent);
            }
            LeaseKeeperEvent::Keep(KeepEvent::Renewed(time)) => {
                self.note(|state| state.own.end = later(time));
                self.tell(NetworkEvent::LeaseRenewed(time));
            }
            LeaseKeeperEvent::Keep(KeepEvent::RenewalFailed { reason, retry_in }) => {
                self.note(|state| state.own.renewal = later(retry_in));
                self.tell(NetworkEvent::RenewalFailed { reason, retry_in });
            }
            LeaseKeeperEvent::Keep(KeepEvent::Disputed(what)) => {
                self.note(|state| {
                    state.own.disputes += 1;
                    state.own.last_dispute = Some(what.clone());
                });
                self.tell(NetworkEvent::LeaseDisputed(what));
            }
            LeaseKeeperEvent::Keep(KeepEvent::Lost(reason)) => {
                self.note(|state| {
                    state.own.lost = Some(reason.clone());
                    (state.own.renewal, state.own.end) = (None, None);
                });
                self.tell(NetworkEvent::LeaseLost(reason));
            }
            LeaseKeeperEvent::NotYet(KeepEvent::RenewalFailed { reason, retry_in }) => {
                self.tell(NetworkEvent::Waiting { phase: Phase::Lease, reason, retry_in });
            }
            LeaseKeeperEvent::NotYet(_) => {}
            LeaseKeeperEvent::Published(lease) => self.on_published(lease),
            LeaseKeeperEvent::Acquired(lease) => return self.on_acquired_again(lease),
        }
        None
    }

    fn on_acquired_again(&mut self, lease: Lease) -> Option<Lease> {
        if self.own.as_ref().is_some_and(|own| own.subnet == lease.subnet) {
            self.own = Some(lease.clone());
            self.note(|state| {
                state.own.lease = Some(lease.clone());
                state.own.lost = None;
            });
            self.tell(NetworkEvent::LeaseAcquired(lease));
            return None;
        }
        let configured = self.backend.as_mut().map(|backend| backend.configure(&lease));
        if let Some(Err(error)) = configured {
            self.tell_failed(format!("lease {}", lease.subnet), &error);
        }
        self.look_again(format!("the lease moved to {}", lease.subnet));
        Some(lease)
    }
}

/// Returns the moment that is so far away, if there is one.
fn later(time: Duration) -> Option<std::time::Instant> {
    Instant::now().into_std().checked_add(time)
}
