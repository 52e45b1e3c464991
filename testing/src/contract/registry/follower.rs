//! Applying the events of a watch, and comparing the outcome with a list.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flannel_core::{Lease, RegistryEvent, Snapshot, SubnetKey, SubnetRegistry};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::timeout;

use super::{DAY, RegistrySubject, create};

/// A watch, and the state that its events give.
pub(super) struct Follower {
    stream: BoxStream<'static, RegistryEvent>,
    pub(super) state: State,
    patience: Duration,
}

impl Follower {
    pub(super) fn new(subject: &dyn RegistrySubject, stream: BoxStream<'static, RegistryEvent>) -> Self {
        Self { stream, state: State::default(), patience: subject.min_ttl() + subject.patience() }
    }

    /// Applies and returns the next event.
    pub(super) async fn next_of_any_kind(&mut self) -> RegistryEvent {
        let event = timeout(self.patience, self.stream.next()).await;
        assert!(event.is_ok(), "a watch must report an event within {:?}", self.patience);
        let event = event.ok().flatten().expect("a watch must never end");
        self.state.apply(&event);
        event
    }

    /// Applies events up to the next one about leases, and returns that.
    pub(super) async fn next(&mut self) -> RegistryEvent {
        loop {
            let event = self.next_of_any_kind().await;
            if !matches!(event, RegistryEvent::Unavailable(_) | RegistryEvent::Available) {
                return event;
            }
        }
    }

    /// Applies events up to a matching one. `what` completes "a watch must report".
    pub(super) async fn wait_for(&mut self, what: &str, matches: impl Fn(&RegistryEvent) -> bool) {
        let waiting = async { while !matches(&self.next_of_any_kind().await) {} };
        assert!(timeout(DAY, waiting).await.is_ok(), "a watch must report {what}");
    }

    /// Applies events until the state satisfies a condition. `what` completes "a watch must report that".
    pub(super) async fn until(&mut self, what: &str, reached: impl Fn(&State) -> bool) {
        while !reached(&self.state) {
            let event = timeout(self.patience, self.stream.next()).await;
            assert!(
                event.is_ok(),
                "a watch must report that {what} within {:?}, got {:?}",
                self.patience,
                self.state
            );
            let event = event.ok().flatten().expect("a watch must never end");
            self.state.apply(&event);
        }
    }

    /// Asserts that the state after all events so far equals a list.
    ///
    /// It writes a marker: once the watch reports that, it has reported everything written before.
    pub(super) async fn assert_agrees_with(&mut self, registry: &dyn SubnetRegistry) {
        let marker = create(registry, 255).await;
        let is_reported = |state: &State| state.leases.get(&marker.subnet) == Some(&marker);
        self.until("a lease was created", is_reported).await;
        let list = State::from(registry.list().await.expect("list must succeed"));
        assert_eq!(
            self.state, list,
            "the events of a watch (left) must give the state that a list returns (right)"
        );
        registry.delete(&marker).await.expect("delete must succeed");
        self.until("a lease was deleted", |state| !is_reported(state)).await;
    }
}

/// The state of a store.
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
            RegistryEvent::Deleted(subnet, _) | RegistryEvent::Released(subnet, _) => {
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
