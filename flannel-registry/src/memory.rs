//! A registry inside the process.
//!
//! All hosts that share a handle share one store, so a network of many hosts can live in one process without etcd.
//! Time is tokio's: under a paused clock a lease of a day ends as soon as nothing else is to be done. There is no
//! task behind it; what has run out is removed whenever somebody looks, and a watch looks when the next lease ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{
    BadRecord, LastContact, Lease, LeaseAttrs, RegistryError, RegistryEvent, Revision, Snapshot, SubnetKey,
    SubnetRegistry, Term, read_record, read_removal,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::news::News;

/// A registry in memory. Clones are handles to the same store.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::net::Ipv4Addr;
/// use std::time::Duration;
/// use flannel_core::{LeaseAttrs, SubnetRegistry};
/// use flannel_registry::MemoryRegistry;
///
/// let registry = MemoryRegistry::new();
/// let host = LeaseAttrs::new(Ipv4Addr::new(192, 168, 0, 1).into());
/// let day = Duration::from_secs(86_400);
/// registry.create("10.5.1.0-24".parse()?, &host, day).await?;
/// assert!(registry.create("10.5.1.0-24".parse()?, &host, day).await.is_err(), "it is leased");
/// assert_eq!(registry.list().await?.leases.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryRegistry {
    store: Arc<Store>,
}

#[derive(Debug)]
struct Store {
    state: Mutex<State>,
    /// Tells the watches to look again. It carries nothing: the state does.
    looked: watch::Sender<()>,
    configured: News,
}

#[derive(Debug, Default)]
struct State {
    config: Option<String>,
    revision: Revision,
    records: BTreeMap<String, Record>,
    /// When records run out, in that order.
    ends: BTreeSet<(Instant, String)>,
    /// The last changes, oldest first.
    history: VecDeque<(Revision, RegistryEvent)>,
    history_limit: Option<usize>,
    /// Changes up to this revision can no longer be told one by one.
    forgotten: Revision,
    /// How many times the state went back in time: revisions from before mean nothing after.
    restores: u64,
}

#[derive(Clone, Debug)]
struct Record {
    content: Result<Arc<Lease>, BadRecord>,
    revision: Revision,
    ends: Option<Instant>,
}

/// The content of a [`MemoryRegistry`] at some time.
#[derive(Clone, Debug)]
pub struct MemoryBackup {
    config: Option<String>,
    revision: Revision,
    records: BTreeMap<String, Record>,
}

/// As many changes as an etcd of the second generation remembers.
const HISTORY: usize = 1000;

impl Default for Store {
    fn default() -> Self {
        let state = State { history_limit: Some(HISTORY), ..State::default() };
        Self { state: Mutex::new(state), looked: watch::Sender::new(()), configured: News::default() }
    }
}

impl MemoryRegistry {
    /// Makes an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits how many changes are remembered, 1000 by default; `None` keeps them all. A watch that falls behind
    /// what is remembered gets a snapshot.
    pub fn limit_history(&self, limit: Option<usize>) {
        self.change(|state| {
            state.history_limit = limit;
            state.trim();
        });
    }

    /// Writes the configuration of the network.
    pub fn set_config(&self, text: impl Into<String>) {
        self.change(|state| {
            state.next_revision();
            state.config = Some(text.into());
        });
        self.store.configured.tell();
    }

    /// Removes the configuration of the network.
    pub fn remove_config(&self) {
        self.change(|state| {
            state.next_revision();
            state.config = None;
        });
        self.store.configured.tell();
    }

    /// Writes a record as a person would: without comparing, and without an end. With the key of a subnet and the
    /// text of a lease it makes a reservation.
    pub fn put_raw(&self, key: &str, value: &[u8]) {
        self.change(|state| {
            let revision = state.next_revision();
            let content = read_record(key, value, revision, Term::Permanent);
            state.put(key, content.map(Arc::new), None);
        });
    }

    /// Removes a record as a person would, and tells whether there was one.
    pub fn remove_raw(&self, key: &str) -> bool {
        self.change(|state| state.remove(key))
    }

    /// Forgets all changes so far. A watch that has not told them yet gets a snapshot.
    pub fn compact(&self) {
        self.change(|state| {
            state.history.clear();
            state.forgotten = state.revision;
        });
    }

    /// Copies the content.
    #[must_use]
    pub fn backup(&self) -> MemoryBackup {
        let state = self.store.now();
        MemoryBackup {
            config: state.config.clone(),
            revision: state.revision,
            records: state.records.clone(),
        }
    }

    /// Goes back to what was copied, as after a disaster: also the revision is the old one again. Watches that are
    /// ahead of it get a snapshot.
    pub fn restore(&self, backup: MemoryBackup) {
        self.change(|state| {
            let with_end = |(key, record): (&String, &Record)| Some((record.ends?, key.clone()));
            state.ends = backup.records.iter().filter_map(with_end).collect();
            state.history.clear();
            state.forgotten = backup.revision;
            state.restores += 1;
            (state.config, state.revision, state.records) = (backup.config, backup.revision, backup.records);
        });
        self.store.configured.tell();
    }

    /// Works on the state as it is now, and lets the watches look at the outcome.
    fn change<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let result = work(&mut self.store.now());
        self.store.looked.send_replace(());
        result
    }
}

#[async_trait]
impl SubnetRegistry for MemoryRegistry {
    fn describe(&self) -> String {
        "memory".to_owned()
    }

    /// It is always heard.
    fn last_contact(&self) -> Option<LastContact> {
        let at = Instant::now().into_std();
        Some(LastContact::new(at, Some(self.store.now().revision)))
    }

    fn how_to_configure(&self) -> String {
        "MemoryRegistry::set_config".to_owned()
    }

    async fn config(&self) -> Result<Option<String>, RegistryError> {
        Ok(self.store.now().config.clone())
    }

    fn config_changes(&self) -> BoxStream<'static, ()> {
        self.store.configured.listen()
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        Ok(self.store.now().snapshot())
    }

    async fn create(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError> {
        let key = subnet.to_string();
        self.change(|state| {
            if state.records.contains_key(&key) {
                return Err(RegistryError::Exists(subnet));
            }
            let lease =
                Lease { subnet, attrs: attrs.clone(), revision: state.next_revision(), term: Term::Limited };
            state.put(&key, Ok(lease.clone().into()), end(ttl));
            Ok(lease)
        })
    }

    async fn update(&self, lease: &Lease, attrs: &LeaseAttrs, ttl: Duration) -> Result<Lease, RegistryError> {
        self.change(|state| {
            let key = state.compare(lease)?;
            let limited = state.records.get(&key).is_some_and(|record| record.ends.is_some());
            let lease = Lease {
                subnet: lease.subnet,
                attrs: attrs.clone(),
                revision: state.next_revision(),
                term: if limited { Term::Limited } else { Term::Permanent },
            };
            state.put(&key, Ok(lease.clone().into()), end(ttl).filter(|_| limited));
            Ok(lease)
        })
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError> {
        let mut state = self.store.now();
        let first = state.next_end();
        let key = state.compare(lease)?;
        let granted = state.prolong(&key, ttl);
        let is_sooner = state.next_end() < first;
        drop(state);
        // Nobody is to be told of a renewal. A watch needs to know only if it would look too late for the next end.
        if is_sooner {
            self.store.looked.send_replace(());
        }
        Ok(granted)
    }

    async fn delete(&self, lease: &Lease) -> Result<(), RegistryError> {
        self.change(|state| {
            let key = state.compare(lease)?;
            state.remove(&key);
            Ok(())
        })
    }

    fn watch(&self, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
        let watch = Watch {
            looked: self.store.looked.subscribe(),
            store: Arc::clone(&self.store),
            heard: after,
            restores: self.store.now().restores,
            untold: VecDeque::new(),
        };
        stream::unfold(watch, |mut watch| async {
            let event = watch.next().await;
            Some((event, watch))
        })
        .boxed()
    }
}

/// Returns when a time to live ends that starts now; a time too long to be told has no end.
fn end(ttl: Duration) -> Option<Instant> {
    Instant::now().checked_add(ttl)
}

impl Store {
    /// Returns the state, without what has run out. A panic cannot leave it half written, so poison means nothing.
    fn now(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.expire(Instant::now());
        state
    }
}

impl State {
    /// Returns when the next record runs out.
    fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|(ends, _)| *ends)
    }

    fn next_revision(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }

    /// Writes a record at the current revision.
    fn put(&mut self, key: &str, content: Result<Arc<Lease>, BadRecord>, ends: Option<Instant>) {
        let event = match &content {
            Ok(lease) => RegistryEvent::Put(Arc::clone(lease)),
            Err(bad) => RegistryEvent::Bad(bad.clone()),
        };
        let record = Record { content, revision: self.revision, ends };
        let before = self.records.insert(key.to_owned(), record);
        if let Some(ends) = before.and_then(|record| record.ends) {
            self.ends.remove(&(ends, key.to_owned()));
        }
        self.ends.extend(ends.map(|ends| (ends, key.to_owned())));
        self.remember(event);
    }

    fn remove(&mut self, key: &str) -> bool {
        let Some(record) = self.records.remove(key) else {
            return false;
        };
        if let Some(ends) = record.ends {
            self.ends.remove(&(ends, key.to_owned()));
        }
        let revision = self.next_revision();
        self.remember(read_removal(key, revision));
        true
    }

    /// Moves the end of a record, and returns the time it has now. One that has no end keeps having none.
    fn prolong(&mut self, key: &str, ttl: Duration) -> Duration {
        let Some(record) = self.records.get_mut(key) else {
            return Duration::ZERO;
        };
        let Some(before) = record.ends else {
            return ttl;
        };
        record.ends = end(ttl);
        self.ends.remove(&(before, key.to_owned()));
        self.ends.extend(record.ends.map(|ends| (ends, key.to_owned())));
        ttl
    }

    fn expire(&mut self, now: Instant) {
        while let Some((ends, key)) = self.ends.first().cloned()
            && ends <= now
        {
            self.ends.pop_first();
            self.remove(&key);
        }
    }

    /// Finds the record of a lease, if it is still the one that was read.
    fn compare(&self, lease: &Lease) -> Result<String, RegistryError> {
        let key = lease.subnet.to_string();
        match self.records.get(&key) {
            None => Err(RegistryError::Gone(lease.subnet)),
            Some(record) if record.revision != lease.revision => Err(RegistryError::Changed(lease.subnet)),
            Some(_) => Ok(key),
        }
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::new(self.revision);
        for record in self.records.values() {
            match &record.content {
                Ok(lease) => snapshot.leases.push(Arc::clone(lease)),
                Err(bad) => snapshot.bad.push(bad.clone()),
            }
        }
        snapshot
    }

    fn remember(&mut self, event: RegistryEvent) {
        self.history.push_back((self.revision, event));
        self.trim();
    }

    fn trim(&mut self) {
        while self.history_limit.is_some_and(|limit| self.history.len() > limit) {
            if let Some((revision, _)) = self.history.pop_front() {
                self.forgotten = revision;
            }
        }
    }

    /// Lists what happened after a revision, or the whole state if that cannot be told.
    fn after(&self, heard: Option<Revision>) -> VecDeque<RegistryEvent> {
        match heard {
            Some(heard) if self.forgotten <= heard && heard <= self.revision => {
                let first = self.history.partition_point(|(revision, _)| *revision <= heard);
                self.history.range(first..).map(|(_, event)| event.clone()).collect()
            }
            Some(_) | None => [RegistryEvent::Snapshot(self.snapshot())].into(),
        }
    }
}

/// One subscription.
struct Watch {
    store: Arc<Store>,
    looked: watch::Receiver<()>,
    heard: Option<Revision>,
    /// How many times the state had gone back in time then.
    restores: u64,
    untold: VecDeque<RegistryEvent>,
}

impl Watch {
    async fn next(&mut self) -> RegistryEvent {
        loop {
            if let Some(event) = self.untold.pop_front() {
                return event;
            }
            // Marked before the look, so that a change after it is not missed.
            self.looked.mark_unchanged();
            let next_end = self.look();
            if self.untold.is_empty() {
                self.wait(next_end).await;
            }
        }
    }

    /// Takes over what is new, and returns when the next lease ends.
    fn look(&mut self) -> Option<Instant> {
        let state = self.store.now();
        // The revision may have grown beyond what was heard again, so it alone does not tell.
        let heard = self.heard.filter(|_| self.restores == state.restores);
        self.untold = state.after(heard);
        self.restores = state.restores;
        self.heard = Some(state.revision);
        state.next_end()
    }

    async fn wait(&mut self, next_end: Option<Instant>) {
        let ended = async {
            match next_end {
                Some(ends) => tokio::time::sleep_until(ends).await,
                None => std::future::pending().await,
            }
        };
        // The sender cannot be gone: this watch holds the store.
        tokio::select! {
            biased;
            _ = self.looked.changed() => {}
            () = ended => {}
        }
    }
}
