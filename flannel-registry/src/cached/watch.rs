//! Watch of the peers that starts from the cache and keeps the file up to date.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use flannel_core::{Lease, LeaseChange, LeaseManager, PeerEvent, SubnetKey};
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::shared::Shared;
use crate::cache::Cache;

/// The minimum interval between the starts of two writes.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn stream<M: LeaseManager>(
    shared: Arc<Shared<M>>,
    own: SubnetKey,
) -> impl Stream<Item = PeerEvent> + Send + 'static {
    let events = shared.inner.watch(own);
    let state = shared.state();
    let cached = state.peers.iter().filter(|lease| lease.subnet != own);
    let cached: BTreeMap<_, _> = cached.map(|lease| (lease.subnet, Arc::clone(lease))).collect();
    let reason = state.unavailable.clone().filter(|_| state.unconfirmed);
    drop(state);
    let mut pending = VecDeque::new();
    let from_cache = reason.is_some();
    if let Some(reason) = reason {
        pending.push_back(PeerEvent::Changed(cached.values().cloned().map(LeaseChange::Put).collect()));
        pending.push_back(PeerEvent::FromCache(reason));
    }
    let writer = CacheWriter { due: None, earliest: Instant::now(), writing: None };
    let watch = CachedWatch { shared, own, events, cached, from_cache, is_complete: false, pending, writer };
    stream::unfold(watch, |mut watch| async { watch.next().await.map(|event| (event, watch)) })
}

struct CachedWatch<M> {
    shared: Arc<Shared<M>>,
    own: SubnetKey,
    events: BoxStream<'static, PeerEvent>,
    /// Cached peers that the registry has not listed yet.
    cached: BTreeMap<SubnetKey, Arc<Lease>>,
    /// Whether the cached peers were yielded.
    from_cache: bool,
    is_complete: bool,
    pending: VecDeque<PeerEvent>,
    writer: CacheWriter,
}

impl<M: LeaseManager> CachedWatch<M> {
    async fn next(&mut self) -> Option<PeerEvent> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            tokio::select! {
                event = self.events.next() => self.take_event(event?),
                () = self.shared.changed.notified() => self.save(),
                is_due = self.writer.ready() => if is_due { self.write() },
            }
        }
    }

    fn take_event(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Changed(changes) => {
                let differs = |change: &_| differs_from_cache(&mut self.cached, self.from_cache, change);
                let changes = changes.into_iter().filter(differs).collect();
                self.push(changes);
            }
            PeerEvent::Complete => {
                self.shared.registry_reached.notify_one();
                if self.shared.is_other_store() {
                    self.reject_cached();
                }
                self.remove_cached();
                self.is_complete = true;
                self.save();
                self.pending.push_back(PeerEvent::Complete);
            }
            PeerEvent::RegistryAvailable => {
                self.shared.registry_reached.notify_one();
                self.pending.push_back(PeerEvent::RegistryAvailable);
            }
            event @ (PeerEvent::FromCache(_)
            | PeerEvent::CacheRejected(_)
            | PeerEvent::Bad(_)
            | PeerEvent::RegistryUnavailable(_)
            | _) => {
                self.pending.push_back(event);
            }
        }
    }

    /// Drops cached peers that the registry does not list, because they are of another registry.
    fn reject_cached(&mut self) {
        let subnets: Vec<_> = std::mem::take(&mut self.cached).into_keys().collect();
        self.shared.state().peers.extend(subnets.iter().copied().map(LeaseChange::Removed));
        if self.from_cache && !subnets.is_empty() {
            self.pending.push_back(PeerEvent::CacheRejected(subnets));
        }
    }

    /// Yields the removal of cached peers that the registry does not list. Peers that were not yielded before are added
    /// first, so that damping counts their removal.
    fn remove_cached(&mut self) {
        let mut changes = Vec::new();
        for (subnet, lease) in std::mem::take(&mut self.cached) {
            if !self.from_cache {
                changes.push(LeaseChange::Put(lease));
            }
            changes.push(LeaseChange::Removed(subnet));
        }
        self.push(changes);
    }

    /// Yields changes. The network reports those that it applies.
    fn push(&mut self, changes: Vec<LeaseChange>) {
        if changes.is_empty() {
            return;
        }
        self.pending.push_back(PeerEvent::Changed(changes));
    }

    /// Requests a write once all peers are known.
    fn save(&mut self) {
        if self.is_complete {
            self.writer.request();
        }
    }

    /// Starts a write on another thread.
    fn write(&mut self) {
        let state = self.shared.state();
        let (Some(config), Some(own)) = (state.config.clone(), state.own.clone()) else {
            return;
        };
        let peers = state.peers.iter().filter(|lease| lease.subnet != self.own).cloned().collect();
        drop(state);
        let store = self.shared.inner.store();
        let (file, cache) = (Arc::clone(&self.shared.file), Cache { store, config, own, peers });
        self.writer.start(move || file.write(&cache));
    }
}

/// Reports whether a change differs from the cached peers that were yielded.
fn differs_from_cache(
    cached: &mut BTreeMap<SubnetKey, Arc<Lease>>,
    from_cache: bool,
    change: &LeaseChange,
) -> bool {
    match change {
        LeaseChange::Put(lease) => {
            let known = cached.remove(&lease.subnet).filter(|_| from_cache);
            known.is_none_or(|known| known.attrs != lease.attrs)
        }
        LeaseChange::Removed(subnet) | LeaseChange::Released(subnet) => {
            cached.remove(subnet);
            true
        }
    }
}

/// Schedules writes: one at a time, and not too often.
struct CacheWriter {
    due: Option<Instant>,
    earliest: Instant,
    writing: Option<JoinHandle<()>>,
}

impl CacheWriter {
    /// Requests a write.
    fn request(&mut self) {
        self.due.get_or_insert(self.earliest.max(Instant::now()));
    }

    /// Waits until a requested write may start, and returns true; or until a write has ended, and returns false.
    async fn ready(&mut self) -> bool {
        if let Some(writing) = &mut self.writing {
            // Fails only when the runtime shuts down.
            let _ = writing.await;
            self.writing = None;
            return false;
        }
        until(self.due).await;
        self.due = None;
        true
    }

    /// Starts a write.
    fn start(&mut self, job: impl FnOnce() + Send + 'static) {
        self.earliest = Instant::now() + WRITE_INTERVAL;
        self.writing = Some(tokio::task::spawn_blocking(job));
    }
}

/// Waits until `time`, or forever without one.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
