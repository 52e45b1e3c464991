//! A watch over a link: broken, stalled, or resumed where it ended.

use std::collections::VecDeque;

use flannel_core::{RegistryEvent, Revision, SubnetRegistry as _};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::sleep;

use super::{LinkState, StoreLink, TIMEOUT};

/// A watch of one host.
pub(super) struct Watch {
    link: StoreLink,
    link_state: watch::Receiver<LinkState>,
    link_now: LinkState,
    inner: Option<BoxStream<'static, RegistryEvent>>,
    /// The revision of the last delivered event.
    resume_at: Option<Revision>,
    silent: bool,
    undelivered: VecDeque<RegistryEvent>,
    /// How often the store had been restored when the last of `undelivered` arrived.
    restores: u32,
    /// The same for the last delivered event: its revision means nothing in a restored store.
    delivered_restores: u32,
}

impl Watch {
    pub(super) fn new(link: &StoreLink, after: Option<Revision>) -> Self {
        let link_now = LinkState { partitioned: false, watch_stalled: false, ..*link.link_state.borrow() };
        let restores = link.state().restores;
        let mut watch = Self {
            link: link.clone(),
            link_state: link.link_state.subscribe(),
            link_now,
            inner: None,
            resume_at: after,
            silent: false,
            undelivered: VecDeque::new(),
            restores,
            delivered_restores: restores,
        };
        watch.link_state.mark_changed();
        watch
    }

    pub(super) async fn next(&mut self) -> RegistryEvent {
        loop {
            self.apply_link_state();
            if !self.link_now.watch_stalled
                && let Some(event) = self.undelivered.pop_front()
            {
                return self.deliver(event);
            }
            let Some(inner) =
                self.inner.as_mut().filter(|_| !self.link_now.watch_stalled && !self.link_now.partitioned)
            else {
                if self.link_now.partitioned || self.link_now.watch_stalled {
                    // The sender lives as long as this watch, which holds the link.
                    let _ = self.link_state.changed().await;
                    self.link_state.mark_changed();
                } else {
                    self.connect().await;
                }
                continue;
            };
            let event = async {
                let first = inner.next().await;
                self.link.delay_event().await;
                // Events that arrived meanwhile are delivered in the same batch.
                let mut events: VecDeque<_> = first.into_iter().collect();
                while let Some(Some(event)) = inner.next().now_or_never() {
                    events.push_back(event);
                }
                events
            };
            tokio::select! {
                biased;
                _ = self.link_state.changed() => self.drop_in_flight(),
                events = event => {
                    self.undelivered = events;
                    self.restores = self.link.state().restores;
                }
            }
        }
    }

    /// Drops the subscription after its events may have been lost: a change of the link interrupts the delivery.
    fn drop_in_flight(&mut self) {
        self.link_state.mark_changed();
        self.inner = None;
    }

    fn apply_link_state(&mut self) {
        if !self.link_state.has_changed().unwrap_or(false) {
            return;
        }
        let now = *self.link_state.borrow_and_update();
        if now.partitioned && !self.silent {
            self.inner = None;
            self.undelivered.clear();
            self.stop_responding();
        }
        if now.cuts != self.link_now.cuts {
            self.inner = None;
        }
        self.link_now = now;
    }

    /// Subscribes where the events ended.
    async fn connect(&mut self) {
        sleep(self.link.delay()).await;
        if self.link_state.has_changed().unwrap_or(false) {
            return;
        }
        let loss = self.link.state().loss;
        if loss > 0.0 && self.link.chance() < loss {
            self.stop_responding();
            sleep(TIMEOUT).await;
            return;
        }
        let after = self.resume_point();
        self.link.state().calls += 1;
        self.link.state().watches += 1;
        self.inner = Some(self.link.store.watch(after));
        if std::mem::take(&mut self.silent) {
            self.undelivered.push_back(RegistryEvent::Available);
        }
    }

    /// Returns where to resume: where the events ended, a little before, or from a snapshot.
    fn resume_point(&mut self) -> Option<Revision> {
        let restores = self.link.state().restores;
        if self.delivered_restores != restores {
            self.delivered_restores = restores;
            self.resume_at = None;
        }
        let after = self.resume_at.filter(|_| self.link.chance() < 0.7);
        let again = self.link.state().random.u64(0..4);
        after.map(|revision| Revision(revision.0.saturating_sub(again)))
    }

    fn stop_responding(&mut self) {
        if !std::mem::replace(&mut self.silent, true) {
            self.undelivered.push_back(RegistryEvent::Unavailable("no answer in time".to_owned()));
        }
    }

    fn deliver(&mut self, event: RegistryEvent) -> RegistryEvent {
        if self.undelivered.is_empty() {
            self.delivered_restores = self.restores;
        }
        let (revision, subnet) = match &event {
            RegistryEvent::Snapshot(snapshot) => (Some(snapshot.revision), None),
            RegistryEvent::Put(lease) => (Some(lease.revision), Some(lease.subnet)),
            RegistryEvent::Deleted(subnet, revision) | RegistryEvent::Released(subnet, revision) => {
                (Some(*revision), Some(*subnet))
            }
            RegistryEvent::Bad(record) => (None, record.subnet),
            RegistryEvent::BadDeleted(_) | RegistryEvent::Unavailable(_) | RegistryEvent::Available => {
                return event;
            }
        };
        let mut state = self.link.state();
        self.resume_at = revision.or(self.resume_at);
        state.touched |= subnet.is_none() || subnet == state.own;
        event
    }
}
