//! The lease manager of a host, with somebody who listens to what it tells of the peers.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::{
    KeepEvent, LastContact, Lease, LeaseAttrs, LeaseChange, LeaseManager, LeaseRequest, ManagerError,
    NetworkConfig, PeerEvent, PublicAddrs, StoreIdentity, SubnetKey,
};
use futures::StreamExt;
use futures::stream::BoxStream;

use super::link::Link;
use super::witness::Witness;

/// A manager whose words are judged: what it tells must be news, and "complete" must mean so.
pub(super) struct Observed {
    pub(super) inner: Arc<dyn LeaseManager>,
    pub(super) host: usize,
    pub(super) link: Link,
    pub(super) witness: Witness,
    /// Whether the host loses its place once and begins to follow again, without the list that was made for the lease.
    pub(super) follows_twice: bool,
}

#[async_trait]
impl LeaseManager for Observed {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    async fn config(&self) -> Result<NetworkConfig, ManagerError> {
        self.inner.config().await
    }

    fn config_changes(&self) -> BoxStream<'static, ()> {
        self.inner.config_changes()
    }

    async fn recall(&self, public: PublicAddrs) -> Result<Option<Lease>, ManagerError> {
        self.inner.recall(public).await
    }

    async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError> {
        self.inner.acquire(request).await
    }

    async fn publish(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, ManagerError> {
        self.inner.publish(own, attrs).await
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
        if self.follows_twice {
            drop(self.inner.watch(own));
        }
        let mut ear = Ear {
            host: self.host,
            own,
            link: self.link.clone(),
            witness: self.witness.clone(),
            told: Some(BTreeSet::new()),
        };
        self.inner.watch(own).inspect(move |event| ear.hear(event)).boxed()
    }

    async fn release(&self, own: &Lease) -> Result<(), ManagerError> {
        self.inner.release(own).await
    }
}

/// Who listens.
struct Ear {
    host: usize,
    own: SubnetKey,
    link: Link,
    witness: Witness,
    /// Who was told, until all are.
    told: Option<BTreeSet<SubnetKey>>,
}

impl Ear {
    fn hear(&mut self, event: &PeerEvent) {
        match event {
            PeerEvent::Changed(changes) => changes.iter().for_each(|change| self.hear_change(change)),
            PeerEvent::Complete => self.hear_complete(),
            PeerEvent::CacheRejected(subnets) => {
                let told = self.told.iter_mut();
                told.for_each(|told| told.retain(|subnet| !subnets.contains(subnet)));
            }
            PeerEvent::FromCache(_)
            | PeerEvent::Bad(_)
            | PeerEvent::RegistryUnavailable(_)
            | PeerEvent::RegistryAvailable
            | _ => {}
        }
    }

    fn hear_change(&mut self, change: &LeaseChange) {
        let (host, heard) = (self.host, self.link.heard());
        match change {
            LeaseChange::Put(lease) if lease.subnet == self.own => {
                self.witness.accuse(format_args!("host {host} was told of its own lease"));
            }
            LeaseChange::Put(lease) => match &mut self.told {
                Some(told) => drop(told.insert(lease.subnet)),
                None if self.witness.is_settled(lease.subnet, heard) => {
                    let subnet = lease.subnet;
                    self.witness
                        .accuse(format_args!("host {host} was told of a change of {subnet}, which had none"));
                }
                None => {}
            },
            LeaseChange::Removed(subnet) => {
                if let Some(told) = &mut self.told {
                    told.remove(subnet);
                }
                if self.witness.is_lasting(*subnet, heard) {
                    self.witness
                        .accuse(format_args!("host {host} was told that {subnet} is gone, which is there"));
                }
            }
        }
    }

    fn hear_complete(&mut self) {
        let Some(mut told) = self.told.take() else {
            return;
        };
        told.insert(self.own);
        if let Some(lacks) = self.witness.first_settled_but(&told, self.link.heard()) {
            let host = self.host;
            self.witness
                .accuse(format_args!("host {host} was told that it knows all peers, and lacks {lacks}"));
        }
    }
}
