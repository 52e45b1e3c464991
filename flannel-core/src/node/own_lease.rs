//! The host's own lease.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use tokio::time::Instant;

use super::Node;
use crate::config::NetworkConfig;
use crate::event::{NetworkEvent, Phase};
use crate::lease::{Lease, Term};
use crate::lease_keeper::{LeaseKeeper, LeaseKeeperEvent};
use crate::manager::KeepEvent;

impl Node {
    /// Returns the lease if its record should contain other attributes than those last requested.
    pub(super) fn outdated_lease(&mut self, config: &NetworkConfig) -> Option<Lease> {
        let public = self.public(config);
        let attrs = self.backend.as_ref()?.attrs().at(public);
        if self.attrs.as_ref() == Some(&attrs) {
            return None;
        }
        self.attrs = Some(attrs);
        self.own.clone()
    }

    /// Keeps a lease, and publishes the host's attributes first if they aren't yet.
    pub(super) fn keep_lease(
        &mut self,
        config: &Arc<NetworkConfig>,
        own: Lease,
    ) -> BoxStream<'static, LeaseKeeperEvent> {
        let attrs = self.attrs.clone().unwrap_or_else(|| own.attrs.clone());
        let random = fastrand::Rng::with_seed(self.random.u64(..));
        let (manager, config) = (Arc::clone(&self.options.manager), Arc::clone(config));
        let is_lost = self.state().own.lost.is_some();
        let is_published = self.published.as_ref() == Some(&attrs);
        if !is_published {
            // An attempt may fail after it was written.
            self.published = None;
        }
        let retry = self.options.retry;
        LeaseKeeper { manager, config, attrs, retry, random, is_published, is_lost }.stream(own)
    }

    /// Updates the record of the own lease everywhere.
    fn set_own(&mut self, lease: &Lease) {
        self.own = Some(lease.clone());
        self.update_state(|state| state.own.lease = Some(lease.clone()));
        self.update_running(|running| running.lease = lease.clone());
    }

    /// Handles an event of the own lease. Returns the lease if its subnet changed.
    pub(super) fn on_lease(&mut self, event: LeaseKeeperEvent) -> Option<Lease> {
        match event {
            LeaseKeeperEvent::Keep(event) => self.on_kept_lease(event),
            LeaseKeeperEvent::Failed { reason, retry_in } => {
                self.emit(NetworkEvent::Waiting { phase: Phase::Lease, reason, retry_in });
            }
            LeaseKeeperEvent::Published(lease) => {
                self.published.clone_from(&self.attrs);
                self.set_own(&lease);
                self.emit(NetworkEvent::LeasePublished(lease));
            }
            LeaseKeeperEvent::Acquired(lease) => return self.on_reacquired(lease),
        }
        None
    }

    fn on_kept_lease(&mut self, event: KeepEvent) {
        match event {
            KeepEvent::Waiting(time) => {
                self.update_state(|state| state.own.renewal = after(time));
                self.emit(NetworkEvent::RenewalIn(time));
            }
            KeepEvent::Permanent => {
                self.update_state(|state| (state.own.renewal, state.own.end) = (None, None));
                if let Some(own) = self.own.clone() {
                    self.set_own(&Lease { term: Term::Permanent, ..own });
                }
                self.emit(NetworkEvent::LeasePermanent);
            }
            KeepEvent::Renewed(time) => {
                self.update_state(|state| state.own.end = after(time));
                self.emit(NetworkEvent::LeaseRenewed(time));
            }
            KeepEvent::RenewalFailed { reason, retry_in } => {
                self.update_state(|state| state.own.renewal = after(retry_in));
                self.emit(NetworkEvent::RenewalFailed { reason, retry_in });
            }
            KeepEvent::Disputed(what) => {
                self.update_state(|state| {
                    state.own.disputes += 1;
                    state.own.last_dispute = Some(what.clone());
                });
                self.emit(NetworkEvent::LeaseDisputed(what));
            }
            KeepEvent::Overridden(lease) => {
                self.set_own(&lease);
                self.configure(&lease);
                self.look_again("the lease manager changed the lease".to_owned());
                self.emit(NetworkEvent::LeasePublished(lease));
            }
            KeepEvent::Lost(reason) => {
                self.update_state(|state| {
                    state.own.lost = Some(reason.clone());
                    (state.own.renewal, state.own.end) = (None, None);
                });
                self.emit(NetworkEvent::LeaseLost(reason));
            }
        }
    }

    fn on_reacquired(&mut self, lease: Lease) -> Option<Lease> {
        self.published.clone_from(&self.attrs);
        if self.own.as_ref().is_some_and(|own| own.subnet == lease.subnet) {
            self.set_own(&lease);
            self.update_state(|state| state.own.lost = None);
            self.emit(NetworkEvent::LeaseAcquired(lease));
            return None;
        }
        self.configure(&lease);
        self.look_again(format!("the lease moved to {}", lease.subnet));
        Some(lease)
    }

    /// Prepares the host for its lease. The next pass retries what failed.
    pub(super) fn configure(&mut self, own: &Lease) {
        let configured = self.backend.as_mut().map(|backend| backend.configure(own));
        if let Some(Err(error)) = configured {
            self.emit_failure(format!("lease {}", own.subnet), &error);
        }
    }
}

/// Returns the time after this duration, if it can be represented.
fn after(time: Duration) -> Option<std::time::Instant> {
    Instant::now().into_std().checked_add(time)
}
