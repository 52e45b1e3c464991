//! Hosts of a network under test, and what each is told.

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

/// What host number `n` says about itself, with a backend of the given name.
pub(super) fn host_with(n: u8, backend: &str) -> LeaseAttrs {
    BackendAttrs::new(backend.to_owned().into()).at(host(n).public)
}

/// What a lease says but for the id of its host, which its manager adds.
pub(super) fn words(lease: &Lease) -> LeaseAttrs {
    lease.attrs.clone().with_node(None)
}

/// Opens the manager of a host of a network that is configured.
pub(super) async fn open(subject: &dyn LeaseManagerSubject, n: u8) -> Arc<dyn LeaseManager> {
    open_for(subject, n, DAY).await
}

pub(super) async fn open_for(
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
    try_acquire(manager, attrs, previous).await.expect("the host gets a lease")
}

/// A host that keeps its lease and follows its peers, as a network does.
pub(super) struct Member {
    pub(super) own: Lease,
    pub(super) keep: Told<KeepEvent>,
    pub(super) peers: Peers,
}

impl Member {
    /// Joins as host number `n`.
    pub(super) async fn join(subject: &dyn LeaseManagerSubject, n: u8, previous: Option<SubnetKey>) -> Self {
        let manager = open(subject, n).await;
        let own = acquire(&*manager, &host(n), previous).await;
        Self::of(subject, &*manager, own)
    }

    /// Keeps a lease and follows the peers.
    pub(super) fn of(subject: &dyn LeaseManagerSubject, manager: &dyn LeaseManager, own: Lease) -> Self {
        let keep = Told::new(subject, manager.keep(own.clone()));
        let peers = Peers::new(subject, manager, own.subnet);
        Self { own, keep, peers }
    }
}

/// What a stream tells. It is read all the time, whether or not anybody looks here.
pub(super) struct Told<E> {
    events: UnboundedReceiver<E>,
    reader: JoinHandle<()>,
    patience: Duration,
}

impl<E: Debug + Send + 'static> Told<E> {
    fn new(subject: &dyn LeaseManagerSubject, mut stream: BoxStream<'static, E>) -> Self {
        let (tell, events) = unbounded_channel();
        let reader = tokio::spawn(async move {
            while let Some(event) = stream.next().await {
                if tell.send(event).is_err() {
                    break;
                }
            }
        });
        Self { events, reader, patience: subject.patience() + subject.min_ttl().unwrap_or_default() }
    }

    /// The next event; nothing if the stream ended.
    pub(super) async fn next(&mut self, what: &str) -> Option<E> {
        match timeout(self.patience, self.events.recv()).await {
            Ok(event) => event,
            Err(_) => panicked(&format!("it was never told {what}")),
        }
    }

    /// What was told and nobody looked at yet.
    pub(super) fn heard(&mut self) -> Vec<E> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }
}

impl<E> Drop for Told<E> {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Says what is wrong.
#[expect(clippy::panic, reason = "a check that fails panics")]
fn panicked(what: &str) -> ! {
    panic!("{what}")
}

/// What a host knows of its peers.
pub(super) struct Peers {
    told: Told<PeerEvent>,
    own: SubnetKey,
    /// What each says, but for its id.
    pub(super) known: BTreeMap<SubnetKey, LeaseAttrs>,
    /// The keys of records that cannot be read.
    pub(super) bad: Vec<String>,
    pub(super) is_complete: bool,
    /// How often the store fell silent, and was heard again.
    pub(super) silences: (usize, usize),
}

impl Peers {
    pub(super) fn new(subject: &dyn LeaseManagerSubject, manager: &dyn LeaseManager, own: SubnetKey) -> Self {
        let told = Told::new(subject, manager.watch(own));
        Self { told, own, known: BTreeMap::new(), bad: Vec::new(), is_complete: false, silences: (0, 0) }
    }

    /// Takes in what is told until it is as wanted.
    pub(super) async fn until(&mut self, what: &str, is_it: impl Fn(&Self) -> bool) {
        while !is_it(self) {
            let known = format!("{what}; it knows {:?}, bad {:?}", self.known, self.bad);
            let event = self.told.next(&known).await.expect("a watch does not end");
            self.take_in(event);
        }
    }

    /// Takes in what was told up to now.
    pub(super) fn catch_up(&mut self) {
        self.told.heard().into_iter().for_each(|event| self.take_in(event));
    }

    fn take_in(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Changed(changes) => changes.into_iter().for_each(|change| self.change(change)),
            PeerEvent::CacheRejected(subnets) => {
                subnets.into_iter().for_each(|subnet| self.change(LeaseChange::Removed(subnet)));
            }
            PeerEvent::FromCache(_) => {
                assert!(!self.is_complete, "peers are recalled after they were complete")
            }
            PeerEvent::Complete => self.is_complete = true,
            PeerEvent::Bad(records) => self.bad = records.into_iter().map(|record| record.key).collect(),
            PeerEvent::RegistryUnavailable(reason) => {
                assert!(!reason.is_empty(), "a reason is given for the silence");
                self.silences.0 += 1;
            }
            PeerEvent::RegistryAvailable => self.silences.1 += 1,
            // No promise speaks of it.
            _ => {}
        }
    }

    fn change(&mut self, change: LeaseChange) {
        let subnet = match &change {
            LeaseChange::Put(lease) => lease.subnet,
            LeaseChange::Removed(subnet) => *subnet,
        };
        assert_ne!(subnet, self.own, "a watch names the own subnet");
        match change {
            LeaseChange::Put(lease) => self.known.insert(subnet, words(&lease)),
            LeaseChange::Removed(_) => self.known.remove(&subnet),
        };
    }

    /// Waits until a peer says this.
    pub(super) async fn hear(&mut self, subnet: SubnetKey, attrs: &LeaseAttrs) {
        let what = format!("that {subnet} says {attrs:?}");
        self.until(&what, |peers| peers.known.get(&subnet) == Some(attrs)).await;
    }

    /// Waits until a peer is gone.
    pub(super) async fn miss(&mut self, subnet: SubnetKey) {
        self.until(&format!("that {subnet} is gone"), |peers| !peers.known.contains_key(&subnet)).await;
    }
}
