//! Hosts that joined the network under test, and the events that each receives.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::{
    BackendAttrs, KeepEvent, Lease, LeaseAttrs, LeaseChange, LeaseManager, LeaseRequest, ManagerError,
    PeerEvent, SubnetKey,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::LeaseManagerSubject;
use crate::contract::{DAY, host};

pub(super) const CONFIG: &str = r#"{"Network":"10.5.0.0/16"}"#;

/// Returns the attributes of host number `n` with this backend.
pub(super) fn host_with(n: u8, backend: &str) -> LeaseAttrs {
    BackendAttrs::new(backend.to_owned().into()).at(host(n).public)
}

/// Returns the attributes of a lease without the host ID, which its manager adds.
pub(super) fn attrs_of(lease: &Lease) -> LeaseAttrs {
    lease.attrs.clone().with_node(None)
}

/// Returns what peers see of host number `n` when it publishes its own attributes.
pub(super) fn published(subject: &dyn LeaseManagerSubject, n: u8) -> LeaseAttrs {
    subject.published(n, host(n))
}

/// Returns what peers see of host number `n` when it publishes its own attributes with this backend.
pub(super) fn published_with(subject: &dyn LeaseManagerSubject, n: u8, backend: &str) -> LeaseAttrs {
    subject.published(n, host_with(n, backend))
}

/// Opens the manager of a host after configuring the network.
pub(super) async fn open(subject: &dyn LeaseManagerSubject, n: u8) -> Arc<dyn LeaseManager> {
    open_with_ttl(subject, n, DAY).await
}

pub(super) async fn open_with_ttl(
    subject: &dyn LeaseManagerSubject,
    n: u8,
    ttl: Duration,
) -> Arc<dyn LeaseManager> {
    subject.set_config(CONFIG).await;
    subject.open(n, ttl).await
}

pub(super) async fn try_acquire(
    manager: &dyn LeaseManager,
    attrs: &LeaseAttrs,
    previous: Option<SubnetKey>,
) -> Result<Lease, ManagerError> {
    let config = manager.config().await?;
    manager.acquire(LeaseRequest::new(&config, attrs).with_previous(previous)).await
}

pub(super) async fn acquire(
    manager: &dyn LeaseManager,
    attrs: &LeaseAttrs,
    previous: Option<SubnetKey>,
) -> Lease {
    try_acquire(manager, attrs, previous).await.expect("acquire must succeed while subnets are free")
}

/// A host that keeps its lease and watches its peers, as a network does.
pub(super) struct JoinedHost {
    pub(super) own: Lease,
    pub(super) keep: EventReader<KeepEvent>,
    pub(super) peers: PeerView,
}

impl JoinedHost {
    /// Joins as host number `n`.
    pub(super) async fn join(subject: &dyn LeaseManagerSubject, n: u8, previous: Option<SubnetKey>) -> Self {
        let manager = open(subject, n).await;
        let own = acquire(&*manager, &host(n), previous).await;
        Self::with_lease(subject, &*manager, own)
    }

    /// Keeps a lease and watches the peers of its host.
    pub(super) fn with_lease(
        subject: &dyn LeaseManagerSubject,
        manager: &dyn LeaseManager,
        own: Lease,
    ) -> Self {
        let keep = EventReader::new(subject, manager.keep(own.clone()));
        let peers = PeerView::new(subject, manager, own.subnet);
        Self { own, keep, peers }
    }
}

/// The events of a stream, which is polled all the time in a task of its own.
pub(super) struct EventReader<E> {
    events: UnboundedReceiver<E>,
    reader: JoinHandle<()>,
    patience: Duration,
}

impl<E: Debug + Send + 'static> EventReader<E> {
    fn new(subject: &dyn LeaseManagerSubject, mut stream: BoxStream<'static, E>) -> Self {
        let (sender, events) = unbounded_channel();
        let reader = tokio::spawn(async move {
            while let Some(event) = stream.next().await {
                if sender.send(event).is_err() {
                    break;
                }
            }
        });
        Self { events, reader, patience: subject.patience() + subject.min_ttl().unwrap_or_default() }
    }

    /// Returns the next event, or `None` after the stream ended. `what` completes "the stream must report".
    pub(super) async fn next(&mut self, what: &str) -> Option<E> {
        let event = timeout(self.patience, self.events.recv()).await;
        assert!(event.is_ok(), "the stream must report {what} within {:?}", self.patience);
        event.ok().flatten()
    }

    /// Returns the unread events so far.
    pub(super) fn drain(&mut self) -> Vec<E> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }
}

impl<E> Drop for EventReader<E> {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The peers of a host, as its watch reports them.
pub(super) struct PeerView {
    events: EventReader<PeerEvent>,
    own: SubnetKey,
    /// The attributes of each peer without the host ID.
    pub(super) known: BTreeMap<SubnetKey, LeaseAttrs>,
    /// The keys of unreadable records.
    pub(super) bad: Vec<String>,
    pub(super) is_complete: bool,
    /// How often the store became unavailable, and available again.
    pub(super) outages: (usize, usize),
}

impl PeerView {
    pub(super) fn new(subject: &dyn LeaseManagerSubject, manager: &dyn LeaseManager, own: SubnetKey) -> Self {
        let events = EventReader::new(subject, manager.watch(own));
        Self { events, own, known: BTreeMap::new(), bad: Vec::new(), is_complete: false, outages: (0, 0) }
    }

    /// Applies events until the condition holds. `what` completes "the stream must report".
    pub(super) async fn until(&mut self, what: &str, reached: impl Fn(&Self) -> bool) {
        while !reached(self) {
            let what = format!("{what} (it reported {:?}, bad {:?})", self.known, self.bad);
            let event = self.events.next(&what).await.expect("a watch must never end");
            self.apply(event);
        }
    }

    /// Applies the events so far.
    pub(super) fn catch_up(&mut self) {
        self.events.drain().into_iter().for_each(|event| self.apply(event));
    }

    fn apply(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Changed(changes) => changes.into_iter().for_each(|change| self.change(change)),
            PeerEvent::CacheRejected(subnets) => {
                subnets.into_iter().for_each(|subnet| self.change(LeaseChange::Removed(subnet)));
            }
            PeerEvent::FromCache(_) => {
                assert!(!self.is_complete, "a watch must not report cached peers after Complete");
            }
            PeerEvent::Complete => self.is_complete = true,
            PeerEvent::Bad(records) => self.bad = records.into_iter().map(|record| record.key).collect(),
            PeerEvent::RegistryUnavailable(reason) => {
                assert!(!reason.is_empty(), "an outage must be reported with a reason");
                self.outages.0 += 1;
            }
            PeerEvent::RegistryAvailable => self.outages.1 += 1,
            // Not covered by a promise.
            _ => {}
        }
    }

    fn change(&mut self, change: LeaseChange) {
        let subnet = match &change {
            LeaseChange::Put(lease) => lease.subnet,
            LeaseChange::Removed(subnet) | LeaseChange::Released(subnet) => *subnet,
        };
        assert_ne!(subnet, self.own, "a watch must not report the host's own subnet");
        match change {
            LeaseChange::Put(lease) => self.known.insert(subnet, attrs_of(&lease)),
            LeaseChange::Removed(_) | LeaseChange::Released(_) => self.known.remove(&subnet),
        };
    }

    /// Waits until the watch reports a peer with these attributes.
    pub(super) async fn wait_for_attrs(&mut self, subnet: SubnetKey, attrs: &LeaseAttrs) {
        let what = format!("{subnet} with {attrs:?}");
        self.until(&what, |peers| peers.known.get(&subnet) == Some(attrs)).await;
    }

    /// Waits until the watch reports that a peer left.
    pub(super) async fn wait_for_removal(&mut self, subnet: SubnetKey) {
        self.until(&format!("the removal of {subnet}"), |peers| !peers.known.contains_key(&subnet)).await;
    }
}
