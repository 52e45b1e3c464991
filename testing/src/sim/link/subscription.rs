//! A watch over a link: cut, silent, or resumed from where it was heard.

use std::collections::VecDeque;

use flannel_core::{RegistryEvent, Revision, SubnetRegistry as _};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Link, TIMEOUT, Weather};

/// One subscription.
pub(super) struct Watch {
    link: Link,
    weather: watch::Receiver<Weather>,
    was: Weather,
    inner: Option<BoxStream<'static, RegistryEvent>>,
    /// Up to where the events were told.
    heard: Option<Revision>,
    silent: bool,
    untold: VecDeque<RegistryEvent>,
    /// How many times the store had gone back in time when the last of `untold` came.
    restores: u32,
    /// The same for the last of those that were told before: where they ended means nothing in another store.
    told_restores: u32,
}

impl Watch {
    pub(super) fn new(link: &Link, after: Option<Revision>) -> Self {
        let was = Weather { partitioned: false, stuck: false, ..*link.weather.borrow() };
        let restores = link.state().restores;
        let mut watch = Self {
            link: link.clone(),
            weather: link.weather.subscribe(),
            was,
            inner: None,
            heard: after,
            silent: false,
            untold: VecDeque::new(),
            restores,
            told_restores: restores,
        };
        watch.weather.mark_changed();
        watch
    }

    pub(super) async fn next(&mut self) -> RegistryEvent {
        loop {
            self.look();
            if !self.was.stuck
                && let Some(event) = self.untold.pop_front()
            {
                return self.tell(event);
            }
            let Some(inner) = self.inner.as_mut().filter(|_| !self.was.stuck && !self.was.partitioned) else {
                if self.was.partitioned || self.was.stuck {
                    // The sender cannot be gone: this watch holds it.
                    let _ = self.weather.changed().await;
                    self.weather.mark_changed();
                } else {
                    self.connect().await;
                }
                continue;
            };
            let event = async {
                let first = inner.next().await;
                self.link.bring_news().await;
                // What else has come meanwhile comes along.
                let mut events: VecDeque<_> = first.into_iter().collect();
                while let Some(Some(event)) = inner.next().now_or_never() {
                    events.push_back(event);
                }
                events
            };
            tokio::select! {
                biased;
                _ = self.weather.changed() => self.lose_what_is_under_way(),
                events = event => {
                    self.untold = events;
                    self.restores = self.link.state().restores;
                }
            }
        }
    }

    /// Drops the subscription when its events may be lost: a change of the weather interrupts what is being delivered.
    fn lose_what_is_under_way(&mut self) {
        self.weather.mark_changed();
        self.inner = None;
    }

    fn look(&mut self) {
        if !self.weather.has_changed().unwrap_or(false) {
            return;
        }
        let now = *self.weather.borrow_and_update();
        if now.partitioned && !self.silent {
            self.inner = None;
            self.untold.clear();
            self.fall_silent();
        }
        if now.cuts != self.was.cuts {
            self.inner = None;
        }
        self.was = now;
    }

    /// Subscribes, first or again, where the events ended.
    async fn connect(&mut self) {
        sleep(self.link.delay()).await;
        if self.weather.has_changed().unwrap_or(false) {
            return;
        }
        let loss = self.link.state().loss;
        if loss > 0.0 && self.link.chance() < loss {
            self.fall_silent();
            sleep(TIMEOUT).await;
            return;
        }
        let after = self.resume();
        self.link.state().calls += 1;
        self.link.state().watches += 1;
        self.inner = Some(self.link.store.watch(after));
        if std::mem::take(&mut self.silent) {
            self.untold.push_back(RegistryEvent::Available);
        }
    }

    /// Returns where to go on: where the events ended, a little before, or at the beginning.
    fn resume(&mut self) -> Option<Revision> {
        let restores = self.link.state().restores;
        if self.told_restores != restores {
            self.told_restores = restores;
            self.heard = None;
        }
        let after = self.heard.filter(|_| self.link.chance() < 0.7);
        let again = self.link.state().random.u64(0..4);
        after.map(|revision| Revision(revision.0.saturating_sub(again)))
    }

    fn fall_silent(&mut self) {
        if !std::mem::replace(&mut self.silent, true) {
            self.untold.push_back(RegistryEvent::Unavailable("no answer in time".to_owned()));
        }
    }

    fn tell(&mut self, event: RegistryEvent) -> RegistryEvent {
        if self.untold.is_empty() {
            self.told_restores = self.restores;
        }
        let (revision, subnet) = match &event {
            RegistryEvent::Snapshot(snapshot) => (Some(snapshot.revision), None),
            RegistryEvent::Put(lease) => (Some(lease.revision), Some(lease.subnet)),
            RegistryEvent::Deleted(subnet, revision) => (Some(*revision), Some(*subnet)),
            RegistryEvent::Bad(record) => (None, record.subnet),
            RegistryEvent::BadDeleted(_) | RegistryEvent::Unavailable(_) | RegistryEvent::Available => {
                return event;
            }
        };
        let mut state = self.link.state();
        self.heard = revision.or(self.heard);
        state.touched |= subnet.is_none() || subnet == state.own;
        event
    }
}
