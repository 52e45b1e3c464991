//! Watches the store directly and checks the hosts' actions against it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flannel_core::{
    Lease, LeaseAttrs, PublicAddrs, RegistryError, RegistryEvent, Revision, SubnetKey, SubnetRegistry, Term,
};
use futures::FutureExt;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::Instant;

/// The longest time that an event takes to reach a host with a healthy link.
pub(super) const MAX_LAG: Duration = Duration::from_secs(20);

/// Checks the invariants. Clones share their state.
#[derive(Clone)]
pub(super) struct InvariantChecker {
    state: Arc<Mutex<State>>,
}

/// What the store holds for a subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordState {
    Absent,
    Unreadable,
    Lease(Revision),
}

/// The owner of a subnet in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SubnetOwner {
    None,
    /// The record is unreadable; the previous owner still has the subnet.
    Unreadable,
    Host(PublicAddrs, Term),
}

struct State {
    started: Instant,
    events: BoxStream<'static, RegistryEvent>,
    /// The time of the last catch-up. Writers catch up at once, so nothing else can be new at the same moment.
    caught_up: Option<Instant>,
    leases: BTreeMap<SubnetKey, Arc<Lease>>,
    bad: BTreeSet<SubnetKey>,
    /// When the attributes of a subnet's record last changed.
    changed: BTreeMap<SubnetKey, Instant>,
    /// When a subnet last had no record.
    absent: BTreeMap<SubnetKey, Instant>,
    trace: u64,
    violations: Vec<String>,
    aborted: bool,
    prints_trace: bool,
}

impl InvariantChecker {
    pub(super) fn new(store: &dyn SubnetRegistry) -> Self {
        let state = State {
            started: Instant::now(),
            events: store.watch(None),
            caught_up: None,
            leases: BTreeMap::new(),
            bad: BTreeSet::new(),
            changed: BTreeMap::new(),
            absent: BTreeMap::new(),
            trace: 0xcbf2_9ce4_8422_2325,
            violations: Vec::new(),
            aborted: false,
            prints_trace: std::env::var_os("FLANNEL_SIM_TRACE").is_some(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Adds an event to the trace, which must be equal in every run with the same seed.
    pub(super) fn record(&self, what: fmt::Arguments<'_>) {
        self.state().record(what);
    }

    /// Reports a violation of an invariant.
    pub(super) fn violation(&self, what: fmt::Arguments<'_>) {
        let mut state = self.state();
        state.record(what);
        let time = state.started.elapsed();
        state.violations.push(format!("{time:?}: {what}"));
        state.aborted |= state.violations.len() > 500;
    }

    /// Reports a violation after which the simulation stops.
    pub(super) fn fatal(&self, what: fmt::Arguments<'_>) {
        self.violation(what);
        self.state().aborted = true;
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }

    /// Returns whether the simulation has stopped because of violations.
    pub(super) fn is_aborted(&self) -> bool {
        self.state().aborted
    }

    /// Returns the hash of the trace.
    pub(super) fn trace(&self) -> u64 {
        self.state().trace
    }

    pub(super) fn record_state(&self, subnet: SubnetKey) -> RecordState {
        let mut state = self.state();
        state.catch_up();
        match state.leases.get(&subnet) {
            Some(lease) => RecordState::Lease(lease.revision),
            None if state.bad.contains(&subnet) => RecordState::Unreadable,
            None => RecordState::Absent,
        }
    }

    /// Returns the leases in the store.
    pub(super) fn leases(&self) -> BTreeMap<SubnetKey, LeaseAttrs> {
        let mut state = self.state();
        state.catch_up();
        state.leases.iter().map(|(subnet, lease)| (*subnet, lease.attrs.clone())).collect()
    }

    pub(super) fn is_taken(&self, subnet: SubnetKey) -> bool {
        self.record_state(subnet) != RecordState::Absent
    }

    /// Returns whether the lease of a subnet has been unchanged for so long that every host synced at this time knows
    /// it.
    pub(super) fn is_settled(&self, subnet: SubnetKey, synced_at: Instant) -> bool {
        let mut state = self.state();
        state.catch_up_once();
        let changed = state.changed.get(&subnet).copied();
        state.leases.contains_key(&subnet) && changed.is_none_or(|changed| changed + MAX_LAG < synced_at)
    }

    /// Returns whether a subnet has had a record for so long that no host synced at this time can have seen it without
    /// one.
    pub(super) fn is_continuously_present(&self, subnet: SubnetKey, synced_at: Instant) -> bool {
        let mut state = self.state();
        state.catch_up_once();
        let is_there = state.leases.contains_key(&subnet) || state.bad.contains(&subnet);
        is_there && state.absent.get(&subnet).is_none_or(|absent| *absent + MAX_LAG < synced_at)
    }

    /// Returns a lease that every host synced at this time knows, and that is not among these.
    pub(super) fn first_settled_except(
        &self,
        these: &BTreeSet<SubnetKey>,
        synced_at: Instant,
    ) -> Option<SubnetKey> {
        let mut state = self.state();
        state.catch_up();
        let is_old =
            |subnet: &SubnetKey| state.changed.get(subnet).is_none_or(|at| *at + MAX_LAG < synced_at);
        state.leases.keys().find(|subnet| !these.contains(subnet) && is_old(subnet)).copied()
    }

    /// Returns the leases that have been unchanged for at least this time.
    pub(super) fn unchanged_for(&self, time: Duration) -> Vec<Arc<Lease>> {
        let mut state = self.state();
        state.catch_up();
        let is_old = |subnet: &SubnetKey| state.changed.get(subnet).is_none_or(|at| at.elapsed() > time);
        state.leases.values().filter(|lease| is_old(&lease.subnet)).cloned().collect()
    }

    /// Returns the owner of a subnet, and since when.
    pub(super) fn owner(&self, subnet: SubnetKey) -> (SubnetOwner, Instant) {
        let mut state = self.state();
        state.catch_up();
        let owner = match state.leases.get(&subnet) {
            Some(lease) => SubnetOwner::Host(lease.attrs.public, lease.term),
            None if state.bad.contains(&subnet) => SubnetOwner::Unreadable,
            None => SubnetOwner::None,
        };
        (owner, state.changed.get(&subnet).copied().unwrap_or(state.started))
    }

    /// Checks the result of a `create` against the state before.
    pub(super) fn check_create(
        &self,
        host: usize,
        subnet: SubnetKey,
        before: RecordState,
        answer: &Result<Lease, RegistryError>,
    ) {
        match (answer, before) {
            (Ok(_), RecordState::Absent)
            | (Err(RegistryError::Exists(_)), RecordState::Unreadable | RecordState::Lease(_)) => {}
            (Ok(_), _) => self
                .violation(format_args!("host {host} created {subnet} over an existing record: {before:?}")),
            (Err(error), _) => self.violation(format_args!(
                "host {host}: create of {subnet} failed with {error} over {before:?}"
            )),
        }
        self.catch_up();
    }

    /// Checks the result of a compare-and-swap write against the state before.
    pub(super) fn check_compare_and_swap<T>(
        &self,
        host: usize,
        what: &str,
        lease: &Lease,
        before: RecordState,
        answer: &Result<T, RegistryError>,
    ) {
        let subnet = lease.subnet;
        let is_correct = match answer {
            Ok(_) => before == RecordState::Lease(lease.revision),
            Err(RegistryError::Gone(_)) => before == RecordState::Absent,
            Err(RegistryError::Changed(_)) => {
                before != RecordState::Absent && before != RecordState::Lease(lease.revision)
            }
            Err(_) => false,
        };
        if !is_correct {
            let answer = answer.as_ref().err().map_or_else(|| "done".to_owned(), ToString::to_string);
            let expected = lease.revision;
            self.violation(format_args!(
                "host {host}: {what} of {subnet} at revision {expected} ended with {answer} over {before:?}"
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
    /// Folds an event into the trace hash (FNV-1a, 64 bit).
    fn record(&mut self, what: fmt::Arguments<'_>) {
        let text = format!("{} {what}", self.started.elapsed().as_millis());
        #[expect(clippy::print_stderr, reason = "FLANNEL_SIM_TRACE prints the trace")]
        if self.prints_trace {
            eprintln!("{text}");
        }
        for byte in text.bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn catch_up(&mut self) {
        self.caught_up = Some(Instant::now());
        while let Some(Some(event)) = self.events.next().now_or_never() {
            self.apply(event);
        }
    }

    /// Catches up unless that already happened at this moment.
    fn catch_up_once(&mut self) {
        if self.caught_up != Some(Instant::now()) {
            self.catch_up();
        }
    }

    fn apply(&mut self, event: RegistryEvent) {
        let now = Instant::now();
        match event {
            RegistryEvent::Put(lease) => {
                self.bad.remove(&lease.subnet);
                self.put(lease, now);
            }
            RegistryEvent::Deleted(subnet, _) | RegistryEvent::Released(subnet, _) => {
                self.bad.remove(&subnet);
                self.drop(subnet, now);
                self.absent.insert(subnet, now);
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
                for subnet in gone {
                    self.drop(subnet, now);
                    self.absent.insert(subnet, now);
                }
                // A record that was rewritten may have been absent meanwhile.
                for lease in &snapshot.leases {
                    if self.leases.get(&lease.subnet).is_none_or(|known| known.revision != lease.revision) {
                        self.absent.insert(lease.subnet, now);
                    }
                }
                snapshot.leases.into_iter().for_each(|lease| self.put(lease, now));
                for subnet in std::mem::take(&mut self.bad) {
                    if !self.leases.contains_key(&subnet) {
                        self.absent.insert(subnet, now);
                    }
                }
                self.bad = snapshot.bad.into_iter().filter_map(|record| record.subnet).collect();
            }
            RegistryEvent::BadDeleted(_) | RegistryEvent::Unavailable(_) | RegistryEvent::Available => {}
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
