//! Following a watch, and comparing what it gives with a list.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flannel_core::{Lease, RegistryEvent, Snapshot, SubnetKey, SubnetRegistry};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::timeout;

use super::{DAY, RegistrySubject, create};

/// A watch whose events are applied as they come.
pub(super) struct Follower {
    stream: BoxStream<'static, RegistryEvent>,
    pub(super) state: State,
    patience: Duration,
}

impl Follower {
    pub(super) fn new(subject: &dyn RegistrySubject, stream: BoxStream<'static, RegistryEvent>) -> Self {
        Self { stream, state: State::default(), patience: subject.min_ttl() + subject.patience() }
    }

    /// Applies one event.
    pub(super) async fn any(&mut self) -> RegistryEvent {
        let event = timeout(self.patience, self.stream.next()).await;
        let event = event.expect("a watch tells what happens");
        let event = event.expect("a watch does not end");
        self.state.apply(&event);
        event
    }

    /// Applies one event that is about leases.
    pub(super) async fn next(&mut self) -> RegistryEvent {
        loop {
            let event = self.any().await;
            if !matches!(event, RegistryEvent::Unavailable(_) | RegistryEvent::Available) {
                return event;
            }
        }
    }

    pub(super) async fn hears(&mut self, what: &str, is_it: impl Fn(&RegistryEvent) -> bool) {
        let heard = async { while !is_it(&self.any().await) {} };
        assert!(timeout(DAY, heard).await.is_ok(), "the watch never told {what}");
    }

    /// Applies events until the state is as wanted.
    pub(super) async fn until(&mut self, what: &str, reached: impl Fn(&State) -> bool) {
        while !reached(&self.state) {
            let event = timeout(self.patience, self.stream.next()).await;
            assert!(event.is_ok(), "the watch never told that {what}; it gives {:?}", self.state);
            let event = event.ok().flatten().expect("a watch does not end");
            self.state.apply(&event);
        }
    }

    /// Applies all events so far, and compares the outcome with a list.
    ///
    /// A marker is written for it: when it is heard, so is all that was written before.
    pub(super) async fn agrees_with(&mut self, registry: &dyn SubnetRegistry) {
        let marker = create(registry, 255).await;
        let is_here = |state: &State| state.leases.get(&marker.subnet) == Some(&marker);
        self.until("the marker was written", is_here).await;
        let list = State::from(registry.list().await.expect("lists"));
        assert_eq!(self.state, list, "left: the watch, right: the list");
        registry.delete(&marker).await.expect("deletes");
        self.until("the marker was removed", |state| !is_here(state)).await;
    }
}

/// The state of a store, as its events give it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) leases: BTreeMap<SubnetKey, Lease>,
    pub(super) bad: BTreeSet<String>,
}

impl State {
    fn apply(&mut self, event: &RegistryEvent) {
        match event {
            RegistryEvent::Snapshot(snapshot) => *self = snapshot.clone().into(),
            RegistryEvent::Put(lease) => {
                self.bad.remove(&lease.subnet.to_string());
                self.leases.insert(lease.subnet, Lease::clone(lease));
            }
            RegistryEvent::Deleted(subnet, _) => {
                self.bad.remove(&subnet.to_string());
                self.leases.remove(subnet);
            }
            RegistryEvent::Bad(record) => {
                record.subnet.map(|subnet| self.leases.remove(&subnet));
                self.bad.insert(record.key.clone());
            }
            RegistryEvent::BadDeleted(key) => {
                self.bad.remove(key);
            }
            RegistryEvent::Unavailable(_) | RegistryEvent::Available => {}
        }
    }
}

impl From<Snapshot> for State {
    fn from(snapshot: Snapshot) -> Self {
        Self {
            leases: snapshot.leases.iter().map(|lease| (lease.subnet, Lease::clone(lease))).collect(),
            bad: snapshot.bad.into_iter().map(|record| record.key).collect(),
        }
    }
}
