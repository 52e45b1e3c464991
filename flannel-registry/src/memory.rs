//! A registry inside the process.
//!
//! All clones of a handle share one store, so a network of many hosts can run in one process without etcd. The store uses
//! tokio's clock: under a paused clock, a lease of a day expires as soon as the runtime is idle. There is no background
//! task; every access removes expired records, and a watch wakes up when the next lease expires.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{
    BadRecord, LastContact, Lease, LeaseAttrs, RegistryError, RegistryEvent, Revision, Snapshot, SubnetKey,
    SubnetRegistry, Term, read_record, read_release, read_removal,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::change_notifier::ChangeNotifier;

/// A registry in memory. Clones share one store.
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
/// assert!(registry.create("10.5.1.0-24".parse()?, &host, day).await.is_err(), "already leased");
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
    /// Wakes the watches after a change of the state.
    changed: watch::Sender<()>,
    config_changes: ChangeNotifier,
}

#[derive(Debug, Default)]
struct State {
    config: Option<String>,
    revision: Revision,
    records: BTreeMap<String, Record>,
    /// Expiries of records, in order.
    expiries: BTreeSet<(Instant, String)>,
    /// The last changes, oldest first.
    history: VecDeque<(Revision, RegistryEvent)>,
    history_limit: Option<usize>,
    /// The history up to this revision is discarded.
    compacted: Revision,
    /// The number of restores. Revisions from before a restore are not valid after it.
    restores: u64,
}

#[derive(Clone, Debug)]
struct Record {
    content: Result<Arc<Lease>, BadRecord>,
    revision: Revision,
    expires: Option<Instant>,
}

/// A backup of a [`MemoryRegistry`].
#[derive(Clone, Debug)]
pub struct MemoryBackup {
    config: Option<String>,
    revision: Revision,
    records: BTreeMap<String, Record>,
}

/// The number of events that etcd's v2 store keeps.
const HISTORY: usize = 1000;

impl Default for Store {
    fn default() -> Self {
        let state = State { history_limit: Some(HISTORY), ..State::default() };
        Self {
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
            config_changes: ChangeNotifier::default(),
        }
    }
}

impl MemoryRegistry {
    /// Creates an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits the number of changes in the history, 1000 by default; `None` keeps all. A watch that falls behind the
    /// history receives a snapshot.
    pub fn limit_history(&self, limit: Option<usize>) {
        self.change(|state| {
            state.history_limit = limit;
            state.trim();
        });
    }

    /// Writes the network config.
    pub fn set_config(&self, text: impl Into<String>) {
        self.change(|state| {
            state.next_revision();
            state.config = Some(text.into());
        });
        self.store.config_changes.notify();
    }

    /// Removes the network config.
    pub fn remove_config(&self) {
        self.change(|state| {
            state.next_revision();
            state.config = None;
        });
        self.store.config_changes.notify();
    }

    /// Writes a permanent record without a comparison, as an operator would. With the key of a subnet and the text of a
    /// lease it creates a reservation.
    pub fn put_raw(&self, key: &str, value: &[u8]) {
        self.change(|state| {
            let revision = state.next_revision();
            let content = read_record(key, value, revision, Term::Permanent);
            state.put(key, content.map(Arc::new), None);
        });
    }

    /// Removes a record without a comparison, as an operator would. Returns whether the record existed.
    pub fn remove_raw(&self, key: &str) -> bool {
        self.change(|state| state.remove(key, read_removal))
    }

    /// Discards the history. A watch that has not yielded all of it receives a snapshot.
    pub fn compact(&self) {
        self.change(|state| {
            state.history.clear();
            state.compacted = state.revision;
        });
    }

    /// Returns a copy of the content.
    #[must_use]
    pub fn backup(&self) -> MemoryBackup {
        let state = self.store.now();
        MemoryBackup {
            config: state.config.clone(),
            revision: state.revision,
            records: state.records.clone(),
        }
    }

    /// Restores a backup, including its revision. Open watches receive a snapshot.
    pub fn restore(&self, backup: MemoryBackup) {
        self.change(|state| {
            let expiry = |(key, record): (&String, &Record)| Some((record.expires?, key.clone()));
            state.expiries = backup.records.iter().filter_map(expiry).collect();
            state.history.clear();
            state.compacted = backup.revision;
            state.restores += 1;
            (state.config, state.revision, state.records) = (backup.config, backup.revision, backup.records);
        });
        self.store.config_changes.notify();
    }

    /// Changes the current state and wakes the watches.
    fn change<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let result = work(&mut self.store.now());
        self.store.changed.send_replace(());
        result
    }
}

#[async_trait]
impl SubnetRegistry for MemoryRegistry {
    fn describe(&self) -> String {
        "memory".to_owned()
    }

    /// Returns the current time: the store is always reachable.
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
        self.store.config_changes.subscribe()
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
            state.put(&key, Ok(lease.clone().into()), expiry(ttl));
            Ok(lease)
        })
    }

    async fn update(&self, lease: &Lease, attrs: &LeaseAttrs, ttl: Duration) -> Result<Lease, RegistryError> {
        self.change(|state| {
            let key = state.compare(lease)?;
            let limited = state.records.get(&key).is_some_and(|record| record.expires.is_some());
            let lease = Lease {
                subnet: lease.subnet,
                attrs: attrs.clone(),
                revision: state.next_revision(),
                term: if limited { Term::Limited } else { Term::Permanent },
            };
            state.put(&key, Ok(lease.clone().into()), expiry(ttl).filter(|_| limited));
            Ok(lease)
        })
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError> {
        let mut state = self.store.now();
        let first = state.next_expiry();
        let key = state.compare(lease)?;
        let granted = state.renew(&key, ttl);
        let is_sooner = state.next_expiry() < first;
        drop(state);
        // A renewal is no event. Watches must wake up only if the next expiry is earlier than they expect.
        if is_sooner {
            self.store.changed.send_replace(());
        }
        Ok(granted)
    }

    async fn delete(&self, lease: &Lease) -> Result<(), RegistryError> {
        self.change(|state| {
            let key = state.compare(lease)?;
            state.remove(&key, read_release);
            Ok(())
        })
    }

    fn watch(&self, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
        let watch = Watch {
            changed: self.store.changed.subscribe(),
            store: Arc::clone(&self.store),
            known: after,
            restores: self.store.now().restores,
            pending: VecDeque::new(),
        };
        stream::unfold(watch, |mut watch| async {
            let event = watch.next().await;
            Some((event, watch))
        })
        .boxed()
    }
}

/// Returns the expiry of a TTL that starts now; `None` if it is too far away to represent.
fn expiry(ttl: Duration) -> Option<Instant> {
    Instant::now().checked_add(ttl)
}

impl Store {
    /// Returns the state without expired records. A panic cannot leave it half written, so poisoning means nothing.
    fn now(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.expire(Instant::now());
        state
    }
}

impl State {
    /// Returns the next expiry of a record.
    fn next_expiry(&self) -> Option<Instant> {
        self.expiries.first().map(|(expires, _)| *expires)
    }

    fn next_revision(&mut self) -> Revision {
        self.revision.0 += 1;
        self.revision
    }

    /// Writes a record at the current revision.
    fn put(&mut self, key: &str, content: Result<Arc<Lease>, BadRecord>, expires: Option<Instant>) {
        let event = match &content {
            Ok(lease) => RegistryEvent::Put(Arc::clone(lease)),
            Err(bad) => RegistryEvent::Bad(bad.clone()),
        };
        let record = Record { content, revision: self.revision, expires };
        let before = self.records.insert(key.to_owned(), record);
        if let Some(expires) = before.and_then(|record| record.expires) {
            self.expiries.remove(&(expires, key.to_owned()));
        }
        self.expiries.extend(expires.map(|expires| (expires, key.to_owned())));
        self.record_event(event);
    }

    /// Removes a record and reports it as this event.
    fn remove(&mut self, key: &str, event: fn(&str, Revision) -> RegistryEvent) -> bool {
        let Some(record) = self.records.remove(key) else {
            return false;
        };
        if let Some(expires) = record.expires {
            self.expiries.remove(&(expires, key.to_owned()));
        }
        let revision = self.next_revision();
        self.record_event(event(key, revision));
        true
    }

    /// Sets the TTL of a record and returns it. A permanent record stays permanent.
    fn renew(&mut self, key: &str, ttl: Duration) -> Duration {
        let Some(record) = self.records.get_mut(key) else {
            return Duration::ZERO;
        };
        let Some(before) = record.expires else {
            return ttl;
        };
        record.expires = expiry(ttl);
        self.expiries.remove(&(before, key.to_owned()));
        self.expiries.extend(record.expires.map(|expires| (expires, key.to_owned())));
        ttl
    }

    fn expire(&mut self, now: Instant) {
        while let Some((expires, key)) = self.expiries.first().cloned()
            && expires <= now
        {
            self.expiries.pop_first();
            self.remove(&key, read_removal);
        }
    }

    /// Returns the key of a lease if its record is unchanged.
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

    fn record_event(&mut self, event: RegistryEvent) {
        self.history.push_back((self.revision, event));
        self.trim();
    }

    fn trim(&mut self) {
        while self.history_limit.is_some_and(|limit| self.history.len() > limit) {
            if let Some((revision, _)) = self.history.pop_front() {
                self.compacted = revision;
            }
        }
    }

    /// Returns the events after a revision, or a snapshot if the history does not reach back that far.
    fn events_after(&self, known: Option<Revision>) -> VecDeque<RegistryEvent> {
        match known {
            Some(known) if self.compacted <= known && known <= self.revision => {
                let first = self.history.partition_point(|(revision, _)| *revision <= known);
                self.history.range(first..).map(|(_, event)| event.clone()).collect()
            }
            Some(_) | None => [RegistryEvent::Snapshot(self.snapshot())].into(),
        }
    }
}

/// A watch of the store.
struct Watch {
    store: Arc<Store>,
    changed: watch::Receiver<()>,
    known: Option<Revision>,
    /// The number of restores at the last look.
    restores: u64,
    pending: VecDeque<RegistryEvent>,
}

impl Watch {
    async fn next(&mut self) -> RegistryEvent {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return event;
            }
            // Marked before the read, so that a later change is not missed.
            self.changed.mark_unchanged();
            let next_expiry = self.take_events();
            if self.pending.is_empty() {
                self.wait(next_expiry).await;
            }
        }
    }

    /// Takes new events, and returns the next expiry of a lease.
    fn take_events(&mut self) -> Option<Instant> {
        let state = self.store.now();
        // After a restore the revision may exceed the known one again, so the revision alone is not enough.
        let known = self.known.filter(|_| self.restores == state.restores);
        self.pending = state.events_after(known);
        self.restores = state.restores;
        self.known = Some(state.revision);
        state.next_expiry()
    }

    async fn wait(&mut self, next_expiry: Option<Instant>) {
        let expired = async {
            match next_expiry {
                Some(expires) => tokio::time::sleep_until(expires).await,
                None => std::future::pending().await,
            }
        };
        // This watch holds the store, and so the sender.
        tokio::select! {
            biased;
            _ = self.changed.changed() => {}
            () = expired => {}
        }
    }
}
