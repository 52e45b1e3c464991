//! The lease manager of a host, with a subscriber that checks its peer events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::{
    KeepEvent, LastContact, Lease, LeaseAttrs, LeaseChange, LeaseManager, LeaseRequest, ManagerError,
    NetworkConfig, PeerChange, PeerEvent, PublicAddrs, StoreIdentity, SubnetKey,
};
use futures::StreamExt;
use futures::stream::BoxStream;

use super::checker::InvariantChecker;
use super::link::StoreLink;

/// A lease manager whose peer events are checked: each must be a change, and `Complete` must mean complete.
pub(super) struct CheckedManager {
    pub(super) inner: Arc<dyn LeaseManager>,
    pub(super) host: usize,
    pub(super) link: StoreLink,
    pub(super) checker: InvariantChecker,
    /// Whether the host starts its watch twice, so that the second cannot use the list that was made for the lease.
    pub(super) watches_twice: bool,
}

#[async_trait]
impl LeaseManager for CheckedManager {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    async fn config(&self) -> Result<NetworkConfig, ManagerError> {
        self.inner.config().await
    }

    fn config_changes(&self) -> BoxStream<'static, ()> {
        self.inner.config_changes()
    }

    async fn previous_lease(&self, public: PublicAddrs) -> Result<Option<Lease>, ManagerError> {
        self.inner.previous_lease(public).await
    }

    async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError> {
        self.inner.acquire(request).await
    }

    async fn publish(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, ManagerError> {
        self.inner.publish(own, attrs).await
    }

    fn host_name(&self) -> Option<String> {
        self.inner.host_name()
    }

    fn peer_names(&self) -> BTreeMap<SubnetKey, String> {
        self.inner.peer_names()
    }

    fn host_ready(&self, own: &Lease) {
        self.inner.host_ready(own);
    }

    fn peers_in_use(&self, changes: &[PeerChange]) {
        self.inner.peers_in_use(changes);
    }

    fn reconnect(&self) {
        self.inner.reconnect();
    }

    fn store(&self) -> StoreIdentity {
        self.inner.store()
    }

    fn last_contact(&self) -> Option<LastContact> {
        self.inner.last_contact()
    }

    fn keep(&self, own: Lease) -> BoxStream<'static, KeepEvent> {
        self.inner.keep(own)
    }

    fn watch(&self, own: SubnetKey) -> BoxStream<'static, PeerEvent> {
        if self.watches_twice {
            drop(self.inner.watch(own));
        }
        let mut subscriber = Subscriber {
            host: self.host,
            own,
            link: self.link.clone(),
            checker: self.checker.clone(),
            announced: Some(BTreeSet::new()),
        };
        self.inner.watch(own).inspect(move |event| subscriber.check_event(event)).boxed()
    }

    async fn release(&self, own: &Lease) -> Result<(), ManagerError> {
        self.inner.release(own).await
    }
}

/// Checks the events of one watch.
struct Subscriber {
    host: usize,
    own: SubnetKey,
    link: StoreLink,
    checker: InvariantChecker,
    /// The peers announced before `Complete`.
    announced: Option<BTreeSet<SubnetKey>>,
}

impl Subscriber {
    fn check_event(&mut self, event: &PeerEvent) {
        match event {
            PeerEvent::Changed(changes) => changes.iter().for_each(|change| self.check_change(change)),
            PeerEvent::Complete => self.check_complete(),
            PeerEvent::CacheRejected(subnets) => {
                let announced = self.announced.iter_mut();
                announced.for_each(|announced| announced.retain(|subnet| !subnets.contains(subnet)));
            }
            PeerEvent::FromCache(_)
            | PeerEvent::Bad(_)
            | PeerEvent::RegistryUnavailable(_)
            | PeerEvent::RegistryAvailable
            | _ => {}
        }
    }

    fn check_change(&mut self, change: &LeaseChange) {
        let (host, synced_at) = (self.host, self.link.synced_at());
        match change {
            LeaseChange::Put(lease) if lease.subnet == self.own => {
                self.checker.violation(format_args!("host {host} was notified of its own lease"));
            }
            LeaseChange::Put(lease) => match &mut self.announced {
                Some(announced) => drop(announced.insert(lease.subnet)),
                None if self.checker.is_settled(lease.subnet, synced_at) => {
                    let subnet = lease.subnet;
                    self.checker.violation(format_args!(
                        "host {host} was notified of a change of {subnet} that did not happen"
                    ));
                }
                None => {}
            },
            LeaseChange::Removed(subnet) | LeaseChange::Released(subnet) => {
                if let Some(announced) = &mut self.announced {
                    announced.remove(subnet);
                }
                if self.checker.is_continuously_present(*subnet, synced_at) {
                    self.checker.violation(format_args!(
                        "host {host} was notified of the removal of {subnet}, which the store has"
                    ));
                }
            }
        }
    }

    fn check_complete(&mut self) {
        let Some(mut announced) = self.announced.take() else {
            return;
        };
        announced.insert(self.own);
        if let Some(missing) = self.checker.first_settled_except(&announced, self.link.synced_at()) {
            let host = self.host;
            self.checker.violation(format_args!("host {host} received Complete without {missing}"));
        }
    }
}
