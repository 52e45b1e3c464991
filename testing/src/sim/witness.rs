//! Somebody who sees the store itself, and judges what the hosts do by it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flannel_core::{Lease, LeaseAttrs, RegistryError, RegistryEvent, Revision, SubnetKey, SubnetRegistry};
use futures::FutureExt;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::Instant;

/// The longest time that news needs to a host whose link is good.
pub(super) const LAG: Duration = Duration::from_secs(20);

/// Clones look at the same.
#[derive(Clone)]
pub(super) struct Witness {
    state: Arc<Mutex<State>>,
}

/// What there is under a subnet in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Unreadable,
    Lease(Revision),
}

struct State {
    started: Instant,
    events: BoxStream<'static, RegistryEvent>,
    leases: BTreeMap<SubnetKey, Arc<Lease>>,
    bad: BTreeSet<SubnetKey>,
    /// When the record of a subnet last became another one than before.
    changed: BTreeMap<SubnetKey, Instant>,
    trace: u64,
    violations: Vec<String>,
    told: bool,
}

impl Witness {
    pub(super) fn new(store: &dyn SubnetRegistry) -> Self {
        let state = State {
            started: Instant::now(),
            events: store.watch(None),
            leases: BTreeMap::new(),
            bad: BTreeSet::new(),
            changed: BTreeMap::new(),
            trace: 0xcbf2_9ce4_8422_2325,
            violations: Vec::new(),
            told: std::env::var_os("FLANNEL_SIM_TRACE").is_some(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Notes something that must happen in every run with the same seed.
    pub(super) fn note(&self, what: fmt::Arguments<'_>) {
        self.state().note(what);
    }

    /// Notes that a promise was broken.
    pub(super) fn accuse(&self, what: fmt::Arguments<'_>) {
        let mut state = self.state();
        state.note(what);
        let time = state.started.elapsed();
        state.violations.push(format!("{time:?}: {what}"));
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// Returns a number that stands for everything that was noted.
    pub(super) fn trace(&self) -> u64 {
        self.state().trace
    }

    pub(super) fn found(&self, subnet: SubnetKey) -> Found {
        let mut state = self.state();
        state.catch_up();
        match state.leases.get(&subnet) {
            Some(lease) => Found::Lease(lease.revision),
            None if state.bad.contains(&subnet) => Found::Unreadable,
            None => Found::Nothing,
        }
    }

    /// Returns what the store holds.
    pub(super) fn leases(&self) -> BTreeMap<SubnetKey, LeaseAttrs> {
        let mut state = self.state();
        state.catch_up();
        state.leases.iter().map(|(subnet, lease)| (*subnet, lease.attrs.clone())).collect()
    }

    pub(super) fn is_taken(&self, subnet: SubnetKey) -> bool {
        self.found(subnet) != Found::Nothing
    }

    /// Tells whether a subnet has had the lease that it has for so long that everybody knows who heard the store at
    /// this time or later.
    pub(super) fn is_settled(&self, subnet: SubnetKey, heard: Instant) -> bool {
        let mut state = self.state();
        state.catch_up();
        let changed = state.changed.get(&subnet).copied();
        state.leases.contains_key(&subnet) && changed.is_none_or(|changed| changed + LAG < heard)
    }

    /// Judges the answer to a `create`, given what there was before.
    pub(super) fn created(
        &self,
        host: usize,
        subnet: SubnetKey,
        before: Found,
        answer: &Result<Lease, RegistryError>,
    ) {
        match (answer, before) {
            (Ok(_), Found::Nothing)
            | (Err(RegistryError::Exists(_)), Found::Unreadable | Found::Lease(_)) => {}
            (Ok(_), _) => {
                self.accuse(format_args!("host {host} created {subnet}, which was taken: {before:?}"))
            }
            (Err(error), _) => {
                self.accuse(format_args!("host {host}, create {subnet}: {error}, found {before:?}"))
            }
        }
        self.catch_up();
    }

    /// Judges the answer to a write that compares, given what there was before.
    pub(super) fn compared<T>(
        &self,
        host: usize,
        what: &str,
        lease: &Lease,
        before: Found,
        answer: &Result<T, RegistryError>,
    ) {
        let subnet = lease.subnet;
        let right = match answer {
            Ok(_) => before == Found::Lease(lease.revision),
            Err(RegistryError::Gone(_)) => before == Found::Nothing,
            Err(RegistryError::Changed(_)) => {
                before != Found::Nothing && before != Found::Lease(lease.revision)
            }
            Err(_) => false,
        };
        if !right {
            let answer = answer.as_ref().err().map_or_else(|| "done".to_owned(), ToString::to_string);
            let expected = lease.revision;
            self.accuse(format_args!(
                "host {host}, {what} {subnet} at revision {expected}: {answer}, found {before:?}"
            ));
        }
        self.catch_up();
    }

    pub(super) fn catch_up(&self) {
        self.state().catch_up();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Folds what is noted into one number (FNV-1a, 64 bit).
    fn note(&mut self, what: fmt::Arguments<'_>) {
        let text = format!("{} {what}", self.started.elapsed().as_millis());
        #[expect(clippy::print_stderr, reason = "the trace is asked for by its variable")]
        if self.told {
            eprintln!("{text}");
        }
        for byte in text.bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn catch_up(&mut self) {
        while let Some(Some(event)) = self.events.next().now_or_never() {
            self.take(event);
        }
    }

    fn take(&mut self, event: RegistryEvent) {
        let now = Instant::now();
        match event {
            RegistryEvent::Put(lease) => {
                self.bad.remove(&lease.subnet);
                self.put(lease, now);
            }
            RegistryEvent::Deleted(subnet, _) => {
                self.bad.remove(&subnet);
                self.drop(subnet, now);
            }
            RegistryEvent::Bad(record) => {
                if let Some(subnet) = record.subnet {
                    self.bad.insert(subnet);
                    self.drop(subnet, now);
                }
            }
            RegistryEvent::Snapshot(snapshot) => {
                let there: BTreeSet<SubnetKey> = snapshot.leases.iter().map(|lease| lease.subnet).collect();
                let gone: Vec<_> = self.leases.keys().filter(|key| !there.contains(key)).copied().collect();
                gone.into_iter().for_each(|subnet| self.drop(subnet, now));
                snapshot.leases.into_iter().for_each(|lease| self.put(lease, now));
                self.bad = snapshot.bad.into_iter().filter_map(|record| record.subnet).collect();
            }
            RegistryEvent::BadDeleted(_) | RegistryEvent::Silent(_) | RegistryEvent::Heard => {}
        }
    }

    fn put(&mut self, lease: Arc<Lease>, now: Instant) {
        if self.leases.get(&lease.subnet).is_none_or(|known| known.attrs != lease.attrs) {
            self.changed.insert(lease.subnet, now);
        }
        self.leases.insert(lease.subnet, lease);
    }

    fn drop(&mut self, subnet: SubnetKey, now: Instant) {
        self.changed.insert(subnet, now);
        self.leases.remove(&subnet);
    }
}
