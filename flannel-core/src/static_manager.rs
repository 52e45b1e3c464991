//! A lease manager that is driven by method calls.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use tokio::sync::watch;

use crate::config::NetworkConfig;
use crate::lease::{Lease, LeaseAttrs, PublicAddrs, Revision};
use crate::lease_set::LeaseChange;
use crate::manager::{KeepEvent, LeaseManager, LeaseRequest, ManagerError, PeerEvent};
use crate::peers::PeerSet;
use crate::registry::{BadRecord, LastContact, RegistryError};
use crate::subnet::SubnetKey;

/// Gets the lease and the peers from a program, for a network without a registry, or whose control plane has its own
/// protocol.
///
/// The program assigns the host's subnet and lists the peers. It follows the host's lease with
/// [`lease_changes`](Self::lease_changes) and distributes it to the other hosts. Clones are handles of the same manager.
///
/// - Until the first [`set_peers`](Self::set_peers) the peers are incomplete: the network programs the known ones and
///   removes nothing.
/// - The same list may go to each host: the manager leaves out a peer with the host's own subnet.
/// - If most peers are missing from a new list, the network holds them, as with a registry; a [`DampingOptions::hold`] of
///   zero disables this. [`remove_peer`](Self::remove_peer) takes effect at once.
/// - Nothing checks that each subnet is assigned only once.
///
/// [`DampingOptions::hold`]: crate::DampingOptions::hold
///
/// ```
/// use flannel_core::{Lease, LeaseAttrs, NetworkConfig, StaticLeaseManager};
///
/// let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#)?;
/// let manager = StaticLeaseManager::new(config, "10.5.1.0/24".parse()?)?.with_name("fleet controller");
/// // Pass it to a network: NetworkOptions::new(manager.clone(), OpenVxlan::new(namespace), external).
///
/// // The lease of another host, as received from the control plane.
/// let (subnet, record) = ("10.5.2.0/24", r#"{"PublicIP":"192.168.64.2"}"#);
/// manager.set_peers([Lease::new(subnet.parse()?, LeaseAttrs::from_record(record)?)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Starting without the control plane
///
/// A program that stores its last configuration, subnet and peers can start its network from them. With
/// [`set_cached_peers`](Self::set_cached_peers) the network becomes ready, and removes nothing until `set_peers` confirms the
/// peers:
///
/// ```
/// # use flannel_core::{Lease, LeaseAttrs, NetworkConfig, StaticLeaseManager};
/// # let stored = || NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#);
/// # let stored_peers: Vec<Lease> = Vec::new();
/// let manager = StaticLeaseManager::new(stored()?, "10.5.1.0/24".parse()?)?;
/// manager.set_cached_peers(stored_peers, "the fleet controller does not respond");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct StaticLeaseManager {
    name: Arc<str>,
    shared: Arc<Shared>,
}

struct Shared {
    config: watch::Sender<NetworkConfig>,
    /// The assigned subnet.
    subnet: watch::Sender<SubnetKey>,
    /// The host's lease while it holds one.
    own: watch::Sender<Option<Lease>>,
    peers: Mutex<Peers>,
    /// Wakes the watches.
    changed: watch::Sender<()>,
}

/// The peers as the program listed them.
#[derive(Default)]
struct Peers {
    set: PeerSet,
    /// Why the peers come from a cache.
    cached: Option<String>,
    /// Why the control plane is unavailable.
    unavailable: Option<String>,
    bad: Vec<BadRecord>,
    last_contact: Option<LastContact>,
    /// The events that each watch hasn't yielded yet.
    queues: Vec<Weak<Mutex<Queue>>>,
}

/// A subnet can't be assigned to a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a host cannot have {subnet}: it must have one subnet inside each of {networks}")]
pub struct InvalidSubnet {
    /// The subnet.
    pub subnet: SubnetKey,
    networks: String,
}

impl StaticLeaseManager {
    /// Creates a manager with the subnet of this host and without peers. The subnet may have any length and lie outside the
    /// range for new leases.
    ///
    /// # Errors
    ///
    /// [`InvalidSubnet`] if the subnet is outside the network or lacks one of its address families.
    pub fn new(config: NetworkConfig, subnet: SubnetKey) -> Result<Self, InvalidSubnet> {
        check(&config, subnet)?;
        let shared = Shared {
            config: watch::Sender::new(config),
            subnet: watch::Sender::new(subnet),
            own: watch::Sender::new(None),
            peers: Mutex::default(),
            changed: watch::Sender::new(()),
        };
        Ok(Self { name: "static lease manager".into(), shared: Arc::new(shared) })
    }

    /// Sets the name of the control plane, for logs and status.
    #[must_use]
    pub fn with_name(self, name: impl AsRef<str>) -> Self {
        Self { name: name.as_ref().into(), ..self }
    }

    /// Replaces the network configuration. A running network applies it as far as it can without a restart; see
    /// [`NetworkEvent::Reconfigured`](crate::NetworkEvent::Reconfigured).
    ///
    /// # Errors
    ///
    /// [`InvalidSubnet`] if the host's subnet doesn't fit; the configuration doesn't change.
    pub fn set_config(&self, config: NetworkConfig) -> Result<(), InvalidSubnet> {
        check(&config, *self.shared.subnet.borrow())?;
        self.shared.config.send_replace(config);
        self.record_contact();
        Ok(())
    }

    /// Assigns another subnet to the host. A running network moves to it at once.
    ///
    /// # Errors
    ///
    /// [`InvalidSubnet`] as in [`new`](Self::new); the host keeps its subnet.
    pub fn reassign(&self, subnet: SubnetKey) -> Result<(), InvalidSubnet> {
        check(&self.shared.config.borrow(), subnet)?;
        self.shared.subnet.send_replace(subnet);
        self.record_contact();
        Ok(())
    }

    /// Sets all peers. A peer that isn't in the list has left. Unchanged peers cost nothing.
    pub fn set_peers<L: Into<Arc<Lease>>>(&self, peers: impl IntoIterator<Item = L>) {
        let all = PeerSet::all_of(peers);
        self.update(|peers| {
            let changes = differences(&peers.set, &all);
            peers.set = all;
            peers.cached = None;
            changes
        });
    }

    /// Sets the peers of an earlier run, because the control plane is unavailable for this reason. They are good enough to
    /// carry traffic. Has no effect after [`set_peers`](Self::set_peers).
    pub fn set_cached_peers<L: Into<Arc<Lease>>>(
        &self,
        peers: impl IntoIterator<Item = L>,
        reason: impl Into<String>,
    ) {
        let mut state = self.peers();
        if state.set.is_complete() {
            return;
        }
        let changes: Vec<_> = peers.into_iter().map(|peer| LeaseChange::Put(peer.into())).collect();
        let reason = reason.into();
        state.set.extend(changes.iter().cloned());
        let is_first = state.cached.replace(reason.clone()).is_none();
        state.for_each_queue(|queue, _| {
            changes.iter().for_each(|change| queue.add(change.clone()));
            if is_first {
                queue.from_cache = Some(reason.clone());
            }
        });
        drop(state);
        self.shared.changed.send_replace(());
    }

    /// Adds a peer, or replaces its lease.
    pub fn put_peer(&self, peer: impl Into<Arc<Lease>>) {
        let change = LeaseChange::Put(peer.into());
        self.update(|peers| {
            peers.set.apply(change.clone());
            vec![change]
        });
    }

    /// Removes a peer. The network removes it at once, however many are removed.
    pub fn remove_peer(&self, subnet: &SubnetKey) {
        let change = LeaseChange::Released(*subnet);
        self.update(|peers| {
            peers.set.apply(change.clone());
            vec![change]
        });
    }

    /// Sets the records that the program received and couldn't read. The list replaces the previous one.
    pub fn set_bad_records(&self, bad: Vec<BadRecord>) {
        self.update(|peers| {
            peers.bad = bad;
            peers.for_each_queue(|queue, peers| queue.bad = Some(peers.bad.clone()));
            Vec::new()
        });
    }

    /// Notes that the control plane is unavailable, for this reason. The network continues with the known peers and shows it
    /// in its status, until the next update.
    pub fn set_unavailable(&self, reason: impl Into<String>) {
        let mut peers = self.peers();
        peers.unavailable = Some(reason.into());
        peers.for_each_queue(|queue, peers| {
            queue.availability = peers.unavailable.clone().map(PeerEvent::RegistryUnavailable);
        });
        drop(peers);
        self.shared.changed.send_replace(());
    }

    /// Waits for the host's lease, which the program distributes to the other hosts.
    pub async fn lease(&self) -> Lease {
        let mut own = self.shared.own.subscribe();
        match own.wait_for(Option::is_some).await.map(|own| own.clone()) {
            Ok(Some(lease)) => lease,
            // The sender lives as long as this manager.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Follows the host's lease: first its current state, once the host holds one, then each change, such as another address
    /// or subnet. The stream ends when the host releases the lease or the manager is dropped; the other hosts should then
    /// remove the peer.
    pub fn lease_changes(&self) -> impl Stream<Item = Lease> + Send + Unpin + use<> {
        let mut own = self.shared.own.subscribe();
        own.mark_changed();
        Box::pin(stream::unfold((own, false), |(mut own, mut had_lease)| async move {
            loop {
                own.changed().await.ok()?;
                let lease = own.borrow_and_update().clone();
                match lease {
                    Some(lease) => {
                        had_lease = true;
                        return Some((lease, (own, had_lease)));
                    }
                    None if had_lease => return None,
                    None => {}
                }
            }
        }))
    }

    /// Applies an update and queues its changes.
    fn update(&self, update: impl FnOnce(&mut Peers) -> Vec<LeaseChange>) {
        let mut peers = self.peers();
        let was_complete = peers.set.is_complete();
        let changes = update(&mut peers);
        if was_complete {
            peers.set.complete();
        }
        peers.last_contact = Some(now());
        let was_unavailable = peers.unavailable.take().is_some();
        peers.for_each_queue(|queue, peers| {
            for change in &changes {
                queue.add(change.clone());
            }
            queue.complete |= peers.set.is_complete() && !was_complete;
            if was_unavailable {
                queue.availability = Some(PeerEvent::RegistryAvailable);
            }
        });
        drop(peers);
        self.shared.changed.send_replace(());
    }

    fn record_contact(&self) {
        self.update(|_| Vec::new());
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        lock(&self.shared.peers)
    }

    fn set_own(&self, own: Lease) -> Lease {
        self.shared.own.send_replace(Some(own.clone()));
        own
    }
}

impl fmt::Debug for StaticLeaseManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peers = self.peers();
        f.debug_struct("StaticLeaseManager")
            .field("name", &self.name)
            .field("subnet", &*self.shared.subnet.borrow())
            .field("peers", &peers.set.len())
            .field("complete", &peers.set.is_complete())
            .finish_non_exhaustive()
    }
}

/// Checks that the network contains the subnet: other hosts route only the network to the overlay.
fn check(config: &NetworkConfig, subnet: SubnetKey) -> Result<(), InvalidSubnet> {
    if config.contains_subnet(&subnet) {
        return Ok(());
    }
    let networks: Vec<_> = config.pools().map(|pool| pool.network().to_string()).collect();
    Err(InvalidSubnet { subnet, networks: networks.join(" and ") })
}

/// Returns the changes that turn one set into another.
fn differences(before: &PeerSet, after: &PeerSet) -> Vec<LeaseChange> {
    let left = before.iter().filter(|peer| after.peer(&peer.subnet).is_none());
    let mut changes: Vec<_> = left.map(|peer| LeaseChange::Removed(peer.subnet)).collect();
    let is_changed =
        |peer: &&Arc<Lease>| before.peer(&peer.subnet).is_none_or(|known| known.attrs != peer.attrs);
    changes.extend(after.iter().filter(is_changed).cloned().map(LeaseChange::Put));
    changes
}

fn now() -> LastContact {
    LastContact::new(tokio::time::Instant::now().into_std(), None)
}

#[async_trait]
impl LeaseManager for StaticLeaseManager {
    fn describe(&self) -> String {
        self.name.to_string()
    }

    fn last_contact(&self) -> Option<LastContact> {
        self.peers().last_contact
    }

    async fn config(&self) -> Result<NetworkConfig, ManagerError> {
        Ok(self.shared.config.borrow().clone())
    }

    fn config_changes(&self) -> BoxStream<'static, ()> {
        let config = self.shared.config.subscribe();
        let next = |mut config: watch::Receiver<NetworkConfig>| async {
            // If the manager, which sends, is gone, nothing changes any more.
            match config.changed().await {
                Ok(()) => Some(((), config)),
                Err(_) => std::future::pending().await,
            }
        };
        stream::unfold(config, next).boxed()
    }

    /// Also finds the lease among the peers, for a program that sends the whole list to each host.
    async fn previous_lease(&self, public: PublicAddrs) -> Result<Option<Lease>, ManagerError> {
        let subnet = *self.shared.subnet.borrow();
        let own = self.shared.own.borrow().clone();
        let listed = || self.peers().set.peer(&subnet).map(|lease| Lease::clone(lease));
        Ok(own.or_else(listed).filter(|lease| lease.is_held_by(&public)))
    }

    async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError> {
        let revision = self.shared.own.borrow().as_ref().map_or(Revision(1), next_revision);
        let subnet = *self.shared.subnet.borrow();
        Ok(self.set_own(Lease { revision, ..Lease::new(subnet, request.attrs.clone()) }))
    }

    async fn publish(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, ManagerError> {
        if *self.shared.subnet.borrow() != own.subnet {
            return Err(RegistryError::Gone(own.subnet).into());
        }
        Ok(self.set_own(Lease { revision: next_revision(own), ..Lease::new(own.subnet, attrs.clone()) }))
    }

    fn keep(&self, own: Lease) -> BoxStream<'static, KeepEvent> {
        let shared = Arc::clone(&self.shared);
        let lost = async move {
            let mut subnet = shared.subnet.subscribe();
            let other = subnet.wait_for(|subnet| *subnet != own.subnet).await.map(|subnet| *subnet);
            match other {
                Ok(subnet) => KeepEvent::Lost(format!("the host was assigned {subnet}")),
                Err(_) => std::future::pending().await,
            }
        };
        let permanent = async { KeepEvent::Permanent };
        stream::once(permanent).chain(stream::once(lost)).boxed()
    }

    fn watch(&self, own: SubnetKey) -> BoxStream<'static, PeerEvent> {
        let changed = self.shared.changed.subscribe();
        let queue = self.peers().subscribe(own);
        let shared = Arc::clone(&self.shared);
        stream::unfold((queue, changed, shared), |(queue, mut changed, shared)| async {
            loop {
                let events = lock(&queue).take();
                if !events.is_empty() {
                    return Some((stream::iter(events), (queue, changed, shared)));
                }
                // This stream holds the sender, so there is no error.
                changed.changed().await.ok()?;
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

fn next_revision(lease: &Lease) -> Revision {
    Revision(lease.revision.0.saturating_add(1))
}

impl Peers {
    /// Adds a queue with the current state.
    fn subscribe(&mut self, own: SubnetKey) -> Arc<Mutex<Queue>> {
        let mut queue = Queue {
            own,
            changes: BTreeMap::new(),
            from_cache: self.cached.clone(),
            complete: self.set.is_complete(),
            bad: (!self.bad.is_empty()).then(|| self.bad.clone()),
            availability: self.unavailable.clone().map(PeerEvent::RegistryUnavailable),
        };
        self.set.iter().cloned().map(LeaseChange::Put).for_each(|change| queue.add(change));
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

/// The events that a watch hasn't yielded yet. Contains only the latest change of each peer, so its size is bounded by their
/// number.
struct Queue {
    own: SubnetKey,
    changes: BTreeMap<SubnetKey, LeaseChange>,
    from_cache: Option<String>,
    complete: bool,
    bad: Option<Vec<BadRecord>>,
    /// Whether the control plane became unavailable or available.
    availability: Option<PeerEvent>,
}

impl Queue {
    fn add(&mut self, change: LeaseChange) {
        let subnet = match &change {
            LeaseChange::Put(lease) => lease.subnet,
            LeaseChange::Removed(subnet) | LeaseChange::Released(subnet) => *subnet,
        };
        if subnet != self.own {
            self.changes.insert(subnet, change);
        }
    }

    fn take(&mut self) -> Vec<PeerEvent> {
        let changes: Vec<_> = std::mem::take(&mut self.changes).into_values().collect();
        let changed = (!changes.is_empty()).then_some(PeerEvent::Changed(changes));
        let complete = std::mem::take(&mut self.complete).then_some(PeerEvent::Complete);
        let from_cache = self.from_cache.take().filter(|_| complete.is_none()).map(PeerEvent::FromCache);
        let bad = self.bad.take().map(PeerEvent::Bad);
        changed
            .into_iter()
            .chain(from_cache)
            .chain(complete)
            .chain(bad)
            .chain(self.availability.take())
            .collect()
    }
}

/// A panic can't leave the content inconsistent, so poison is ignored.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
