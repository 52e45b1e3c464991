//! A lease manager that is told everything by calls.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use tokio::sync::watch;

use crate::lease_set::LeaseChange;
use crate::manager::{KeepEvent, LeaseManager, LeaseRequest, ManagerError, PeerEvent};
use crate::peers::PeerSet;
use crate::registry::RegistryError;
use crate::{Lease, LeaseAttrs, NetworkConfig, PublicAddrs, Revision, SubnetKey};

/// Takes lease and peers from a program that knows them: a network without any registry, or one whose registry is
/// somewhere else and is heard over the program's own wire.
///
/// The program says which subnet the host has and who the peers are, hears from [`lease`](Self::lease) and
/// [`lease_changes`](Self::lease_changes) what the host says about itself, and brings that to the other hosts. The
/// network makes it true and keeps it so. Clones are one manager.
///
/// - Until [`set_peers`](Self::set_peers) was called once, peers may be missing: those that are known are reached, and
///   nothing on the host is removed.
/// - The same list may be sent to every host: a peer with the host's own subnet is left out.
/// - When most peers leave at once the network doubts it, as it does with a registry; [`DampingOptions::hold`] of zero
///   has it obey.
/// - Nobody else checks that no two hosts are given the same subnet.
///
/// [`DampingOptions::hold`]: crate::DampingOptions::hold
///
/// ```
/// use flannel_core::{StaticLeaseManager, Lease, LeaseAttrs, NetworkConfig, SubnetKey};
///
/// let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#)?;
/// let manager = StaticLeaseManager::new(config, "10.5.1.0-24".parse()?)?;
/// // Given to a network: NetworkOptions::new(manager.clone(), OpenVxlan::new(namespace), external).
///
/// // What another host said about itself, as it came over the wire.
/// let (subnet, record) = ("10.5.2.0-24", r#"{"PublicIP":"192.168.64.2"}"#);
/// manager.set_peers([Lease::new(subnet.parse()?, LeaseAttrs::from_record(record)?)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct StaticLeaseManager {
    shared: Arc<Shared>,
}

struct Shared {
    config: watch::Sender<NetworkConfig>,
    /// The subnet that the host was given.
    subnet: watch::Sender<SubnetKey>,
    /// What the host says about itself, once it does.
    own: watch::Sender<Option<Lease>>,
    told: Mutex<Told>,
    /// Wakes those who follow the peers.
    news: watch::Sender<()>,
}

/// What the program told of the peers.
#[derive(Default)]
struct Told {
    peers: PeerSet,
    unavailable: Option<String>,
    /// What each of those who follow has not heard yet.
    queues: Vec<Weak<Mutex<Queue>>>,
}

/// A host cannot have this subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a host cannot have {subnet}: it must have one subnet inside each of {networks}")]
pub struct InvalidSubnet {
    /// The subnet.
    pub subnet: SubnetKey,
    networks: String,
}

impl StaticLeaseManager {
    /// Begins with the subnet of this host, and no peers.
    ///
    /// The subnets may be of any size: what the configuration says of sizes and ranges is for those who choose one.
    ///
    /// # Errors
    ///
    /// [`InvalidSubnet`] if the subnet does not lie in the network, or lacks one of its families.
    pub fn new(config: NetworkConfig, subnet: SubnetKey) -> Result<Self, InvalidSubnet> {
        check(&config, subnet)?;
        let shared = Shared {
            config: watch::Sender::new(config),
            subnet: watch::Sender::new(subnet),
            own: watch::Sender::new(None),
            told: Mutex::default(),
            news: watch::Sender::new(()),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Gives the network another configuration, which a running one takes in as far as it can without a restart: see
    /// [`NetworkEvent::Reconfigured`](crate::NetworkEvent::Reconfigured).
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), for the subnet that the host has; the configuration stays as it is.
    pub fn set_config(&self, config: NetworkConfig) -> Result<(), InvalidSubnet> {
        check(&config, *self.shared.subnet.borrow())?;
        self.shared.config.send_replace(config);
        Ok(())
    }

    /// Gives the host another subnet, which a running network moves to at once.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); the host keeps the subnet it has.
    pub fn reassign(&self, subnet: SubnetKey) -> Result<(), InvalidSubnet> {
        check(&self.shared.config.borrow(), subnet)?;
        self.shared.subnet.send_replace(subnet);
        Ok(())
    }

    /// Says who the peers are, all of them: who is not among them is no peer any more. What did not change costs
    /// nothing.
    pub fn set_peers<L: Into<Arc<Lease>>>(&self, peers: impl IntoIterator<Item = L>) {
        let all = PeerSet::all_of(peers);
        self.tell(|told| {
            let left = told.peers.iter().filter(|peer| all.peer(&peer.subnet).is_none());
            let mut changes: Vec<_> = left.map(|peer| LeaseChange::Removed(peer.subnet)).collect();
            let is_news = |peer: &&Arc<Lease>| {
                told.peers.peer(&peer.subnet).is_none_or(|known| known.attrs != peer.attrs)
            };
            changes.extend(all.iter().filter(is_news).cloned().map(LeaseChange::Put));
            told.peers = all;
            changes
        });
    }

    /// Adds a peer, or says something new of one.
    pub fn put_peer(&self, peer: impl Into<Arc<Lease>>) {
        let change = LeaseChange::Put(peer.into());
        self.tell(|told| {
            told.peers.apply(change.clone());
            vec![change]
        });
    }

    /// Removes a peer.
    pub fn remove_peer(&self, subnet: &SubnetKey) {
        let change = LeaseChange::Removed(*subnet);
        self.tell(|told| {
            told.peers.apply(change.clone());
            vec![change]
        });
    }

    /// Says that nobody knows at the moment who the peers are, and why. The network goes on with those it has and
    /// shows it in its status, until anything is told again.
    pub fn set_unavailable(&self, reason: impl Into<String>) {
        let mut told = self.told();
        told.unavailable = Some(reason.into());
        told.for_each_queue(|queue, told| {
            queue.voice = told.unavailable.clone().map(PeerEvent::RegistryUnavailable)
        });
        drop(told);
        self.shared.news.send_replace(());
    }

    /// Waits for what the host says about itself: the lease that the other hosts must be told of.
    pub async fn lease(&self) -> Lease {
        let mut own = self.shared.own.subscribe();
        match own.wait_for(Option::is_some).await.map(|own| own.clone()) {
            Ok(Some(lease)) => lease,
            // The sender lives as long as this manager.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Follows what the host says about itself: first what it says now, once it does, then whenever that changes, as
    /// with another address or subnet. The stream ends when the manager is gone.
    pub fn lease_changes(&self) -> impl Stream<Item = Lease> + Send + Unpin + use<> {
        let mut own = self.shared.own.subscribe();
        own.mark_changed();
        Box::pin(stream::unfold(own, |mut own| async {
            loop {
                own.changed().await.ok()?;
                let said = own.borrow_and_update().clone();
                if let Some(lease) = said {
                    return Some((lease, own));
                }
            }
        }))
    }

    /// Takes in what the program tells, and passes the changes on.
    fn tell(&self, change: impl FnOnce(&mut Told) -> Vec<LeaseChange>) {
        let mut told = self.told();
        let was_complete = told.peers.is_complete();
        let changes = change(&mut told);
        if was_complete {
            told.peers.complete();
        }
        let was_silent = told.unavailable.take().is_some();
        told.for_each_queue(|queue, told| {
            for change in &changes {
                queue.add(change.clone());
            }
            queue.complete |= told.peers.is_complete() && !was_complete;
            if was_silent {
                queue.voice = Some(PeerEvent::RegistryAvailable);
            }
        });
        drop(told);
        self.shared.news.send_replace(());
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.shared.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, own: Lease) -> Lease {
        self.shared.own.send_replace(Some(own.clone()));
        own
    }
}

impl fmt::Debug for StaticLeaseManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = self.told();
        f.debug_struct("StaticLeaseManager")
            .field("subnet", &*self.shared.subnet.borrow())
            .field("peers", &told.peers.len())
            .field("complete", &told.peers.is_complete())
            .finish_non_exhaustive()
    }
}

/// Any size will do; outside the network no host would look for it.
fn check(config: &NetworkConfig, subnet: SubnetKey) -> Result<(), InvalidSubnet> {
    if config.has_room_for(&subnet) {
        return Ok(());
    }
    let networks: Vec<_> = config.pools().map(|pool| pool.network().to_string()).collect();
    Err(InvalidSubnet { subnet, networks: networks.join(" and ") })
}

#[async_trait]
impl LeaseManager for StaticLeaseManager {
    fn describe(&self) -> String {
        "the program that runs the network".to_owned()
    }

    async fn config(&self) -> Result<NetworkConfig, ManagerError> {
        Ok(self.shared.config.borrow().clone())
    }

    fn config_changes(&self) -> BoxStream<'static, ()> {
        let config = self.shared.config.subscribe();
        let next = |mut config: watch::Receiver<NetworkConfig>| async {
            // Without an error: the manager, which sends, may be gone, and then nothing changes any more.
            match config.changed().await {
                Ok(()) => Some(((), config)),
                Err(_) => std::future::pending().await,
            }
        };
        stream::unfold(config, next).boxed()
    }

    /// A program that sends the whole list to every host tells each what it said before, too.
    async fn previous_lease(&self, public: PublicAddrs) -> Result<Option<Lease>, ManagerError> {
        let subnet = *self.shared.subnet.borrow();
        let own = self.shared.own.borrow().clone();
        let told = || self.told().peers.peer(&subnet).map(|lease| Lease::clone(lease));
        Ok(own.or_else(told).filter(|lease| lease.is_held_by(&public)))
    }

    async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError> {
        let revision = self.shared.own.borrow().as_ref().map_or(Revision(1), after);
        let subnet = *self.shared.subnet.borrow();
        Ok(self.say(Lease { revision, ..Lease::new(subnet, request.attrs.clone()) }))
    }

    async fn publish(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, ManagerError> {
        if *self.shared.subnet.borrow() != own.subnet {
            return Err(RegistryError::Gone(own.subnet).into());
        }
        Ok(self.say(Lease { revision: after(own), ..Lease::new(own.subnet, attrs.clone()) }))
    }

    fn keep(&self, own: Lease) -> BoxStream<'static, KeepEvent> {
        let shared = Arc::clone(&self.shared);
        let lost = async move {
            let mut subnet = shared.subnet.subscribe();
            let other = subnet.wait_for(|subnet| *subnet != own.subnet).await.map(|subnet| *subnet);
            match other {
                Ok(subnet) => KeepEvent::Lost(format!("the host was given {subnet}")),
                Err(_) => std::future::pending().await,
            }
        };
        let permanent = async { KeepEvent::Permanent };
        stream::once(permanent).chain(stream::once(lost)).boxed()
    }

    fn watch(&self, own: SubnetKey) -> BoxStream<'static, PeerEvent> {
        let news = self.shared.news.subscribe();
        let queue = self.told().follow(own);
        let shared = Arc::clone(&self.shared);
        stream::unfold((queue, news, shared), |(queue, mut news, shared)| async {
            loop {
                let events = lock(&queue).take();
                if !events.is_empty() {
                    return Some((stream::iter(events), (queue, news, shared)));
                }
                // The sender is among what this stream holds.
                news.changed().await.ok()?;
            }
        })
        .flatten()
        .boxed()
    }

    async fn release(&self, _own: &Lease) -> Result<(), ManagerError> {
        self.shared.own.send_replace(None);
        Ok(())
    }
}

fn after(lease: &Lease) -> Revision {
    Revision(lease.revision.0.saturating_add(1))
}

impl Told {
    /// Begins a queue with all that is known.
    fn follow(&mut self, own: SubnetKey) -> Arc<Mutex<Queue>> {
        let mut queue =
            Queue { own, changes: BTreeMap::new(), complete: self.peers.is_complete(), voice: None };
        self.peers.iter().cloned().map(LeaseChange::Put).for_each(|change| queue.add(change));
        queue.voice = self.unavailable.clone().map(PeerEvent::RegistryUnavailable);
        let queue = Arc::new(Mutex::new(queue));
        self.queues.push(Arc::downgrade(&queue));
        queue
    }

    fn for_each_queue(&mut self, mut change: impl FnMut(&mut Queue, &Self)) {
        let mut queues = std::mem::take(&mut self.queues);
        queues.retain(|queue| match queue.upgrade() {
            Some(queue) => {
                change(&mut lock(&queue), self);
                true
            }
            None => false,
        });
        self.queues = queues;
    }
}

/// What somebody who follows the peers has not heard yet: of each peer the last word only, so that it cannot grow
/// beyond the number of peers.
struct Queue {
    own: SubnetKey,
    changes: BTreeMap<SubnetKey, LeaseChange>,
    complete: bool,
    /// Whether the program became silent, or is heard again.
    voice: Option<PeerEvent>,
}

impl Queue {
    fn add(&mut self, change: LeaseChange) {
        let subnet = match &change {
            LeaseChange::Put(lease) => lease.subnet,
            LeaseChange::Removed(subnet) => *subnet,
        };
        if subnet != self.own {
            self.changes.insert(subnet, change);
        }
    }

    fn take(&mut self) -> Vec<PeerEvent> {
        let changes: Vec<_> = std::mem::take(&mut self.changes).into_values().collect();
        let changed = (!changes.is_empty()).then_some(PeerEvent::Changed(changes));
        let complete = std::mem::take(&mut self.complete).then_some(PeerEvent::Complete);
        changed.into_iter().chain(complete).chain(self.voice.take()).collect()
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
