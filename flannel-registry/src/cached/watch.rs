//! Watching the peers from what is remembered on, and remembering them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use flannel_core::{Lease, LeaseChange, LeaseManager, PeerEvent, SubnetKey};
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::Shared;
use crate::cache::Cache;

/// The shortest time between the beginnings of two writes.
const WRITE_GAP: Duration = Duration::from_secs(1);

pub(super) fn stream<M: LeaseManager>(
    shared: Arc<Shared<M>>,
    own: SubnetKey,
) -> impl Stream<Item = PeerEvent> + Send + 'static {
    let events = shared.inner.watch(own);
    let state = shared.state();
    let remembered = state.peers.peers().iter().filter(|lease| lease.subnet != own);
    let unheard: BTreeMap<_, _> = remembered.map(|lease| (lease.subnet, Arc::clone(lease))).collect();
    let recalled = state.silent.clone().filter(|_| state.unconfirmed);
    drop(state);
    let mut untold = VecDeque::new();
    let is_recalled = recalled.is_some();
    if let Some(reason) = recalled {
        untold.push_back(PeerEvent::Changed(unheard.values().cloned().map(LeaseChange::Put).collect()));
        untold.push_back(PeerEvent::FromCache(reason));
    }
    let saver = Saver { due: None, earliest: Instant::now(), writing: None };
    let watch = Watch { shared, own, events, unheard, is_recalled, is_complete: false, untold, saver };
    stream::unfold(watch, |mut watch| async { watch.next().await.map(|event| (event, watch)) })
}

struct Watch<M> {
    shared: Arc<Shared<M>>,
    own: SubnetKey,
    events: BoxStream<'static, PeerEvent>,
    /// Peers that are remembered and were not heard of yet.
    unheard: BTreeMap<SubnetKey, Arc<Lease>>,
    /// Whether they were told.
    is_recalled: bool,
    is_complete: bool,
    untold: VecDeque<PeerEvent>,
    saver: Saver,
}

impl<M: LeaseManager> Watch<M> {
    async fn next(&mut self) -> Option<PeerEvent> {
        loop {
            if let Some(event) = self.untold.pop_front() {
                return Some(event);
            }
            let due = self.shared.state().peers.due();
            tokio::select! {
                event = self.events.next() => self.take_in(event?),
                () = self.shared.changed.notified() => self.save(),
                () = until(due.map(Instant::from_std)) => self.let_go(),
                is_due = self.saver.work() => if is_due { self.write() },
            }
        }
    }

    fn take_in(&mut self, event: PeerEvent) {
        match event {
            PeerEvent::Changed(changes) => {
                let news =
                    changes.into_iter().filter(|change| is_news(&mut self.unheard, self.is_recalled, change));
                let news = news.collect();
                self.tell(news);
            }
            PeerEvent::Complete => {
                self.shared.heard.notify_one();
                if self.shared.has_moved() {
                    self.disown_unheard();
                }
                self.forget_unheard();
                self.is_complete = true;
                self.save();
                self.untold.push_back(PeerEvent::Complete);
            }
            PeerEvent::RegistryAvailable => {
                self.shared.heard.notify_one();
                self.untold.push_back(PeerEvent::RegistryAvailable);
            }
            event @ (PeerEvent::FromCache(_)
            | PeerEvent::CacheRejected(_)
            | PeerEvent::Bad(_)
            | PeerEvent::RegistryUnavailable(_)
            | _) => {
                self.untold.push_back(event);
            }
        }
    }

    /// Forgets who was not heard of, because they are of another network.
    fn disown_unheard(&mut self) {
        let subnets: Vec<_> = std::mem::take(&mut self.unheard).into_keys().collect();
        self.shared.state().peers.disown(&subnets);
        if self.is_recalled && !subnets.is_empty() {
            self.untold.push_back(PeerEvent::CacheRejected(subnets));
        }
    }

    /// Tells that who was not heard of is gone. Who was not told yet is told first, so that whoever counts departures
    /// can count these.
    fn forget_unheard(&mut self) {
        let mut changes = Vec::new();
        for (subnet, lease) in std::mem::take(&mut self.unheard) {
            if !self.is_recalled {
                changes.push(LeaseChange::Put(lease));
            }
            changes.push(LeaseChange::Removed(subnet));
        }
        self.tell(changes);
    }

    fn tell(&mut self, changes: Vec<LeaseChange>) {
        if changes.is_empty() {
            return;
        }
        self.shared.state().peers.filter(changes.clone(), Instant::now().into_std());
        self.save();
        self.untold.push_back(PeerEvent::Changed(changes));
    }

    fn let_go(&mut self) {
        self.shared.state().peers.expire(Instant::now().into_std());
        self.save();
    }

    /// Asks for a write, once there is something worth it.
    fn save(&mut self) {
        if self.is_complete {
            self.saver.ask();
        }
    }

    /// Begins to write what is known, on another thread.
    fn write(&mut self) {
        let state = self.shared.state();
        let (Some(config), Some(own)) = (state.config.clone(), state.own.clone()) else {
            return;
        };
        let peers = state.peers.peers().iter().filter(|lease| lease.subnet != self.own).cloned().collect();
        drop(state);
        let store = self.shared.inner.store();
        let (file, cache) = (Arc::clone(&self.shared.file), Cache { store, config, own, peers });
        self.saver.begin(move || file.write(&cache));
    }
}

/// Tells whether a change says something that was not told.
fn is_news(unheard: &mut BTreeMap<SubnetKey, Arc<Lease>>, is_recalled: bool, change: &LeaseChange) -> bool {
    match change {
        LeaseChange::Put(lease) => {
            let remembered = unheard.remove(&lease.subnet).filter(|_| is_recalled);
            remembered.is_none_or(|remembered| remembered.attrs != lease.attrs)
        }
        LeaseChange::Removed(subnet) => {
            unheard.remove(subnet);
            true
        }
    }
}

/// Writes when asked to, one write at a time and not too often.
struct Saver {
    due: Option<Instant>,
    earliest: Instant,
    writing: Option<JoinHandle<()>>,
}

impl Saver {
    fn ask(&mut self) {
        self.due.get_or_insert(self.earliest.max(Instant::now()));
    }

    /// Waits until a write may begin, and tells so, or until one has ended.
    async fn work(&mut self) -> bool {
        if let Some(writing) = &mut self.writing {
            // It fails only when the runtime ends.
            let _ = writing.await;
            self.writing = None;
            return false;
        }
        until(self.due).await;
        self.due = None;
        true
    }

    fn begin(&mut self, job: impl FnOnce() + Send + 'static) {
        self.earliest = Instant::now() + WRITE_GAP;
        self.writing = Some(tokio::task::spawn_blocking(job));
    }
}

/// Waits for a moment, or for ever if there is none.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
