//! The link between a host and the store: delay, loss, partitions, and watches that break or stall.

mod subscription;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{
    Lease, LeaseAttrs, RegistryError, RegistryEvent, Revision, Snapshot, SubnetKey, SubnetRegistry,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::checker::InvariantChecker;
use crate::Call;
use subscription::Watch;

/// A host's connection to the store of a simulation. Clones share it.
#[derive(Clone)]
pub struct StoreLink {
    host: usize,
    created: Instant,
    store: Arc<dyn SubnetRegistry>,
    checker: InvariantChecker,
    state: Arc<Mutex<State>>,
    link_state: watch::Sender<LinkState>,
}

/// The state of a link as its watches see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct LinkState {
    partitioned: bool,
    /// The watch delivers nothing, not even that the store is unreachable.
    watch_stalled: bool,
    cuts: u32,
}

struct State {
    random: fastrand::Rng,
    /// The mean delay of a call in each direction.
    delay: Duration,
    /// The mean delay of an event.
    event_delay: Duration,
    loss: f64,
    calls: u64,
    lists: u64,
    watches: u64,
    /// How often the store was restored, which clients notice when they reconnect.
    restores: u32,
    /// When calls and events do not get through.
    calls_stall: Option<Stall>,
    /// When only events do not get through.
    watch_stall: Option<Stall>,
    /// When events do not get through, for either reason; the two may overlap.
    any_stall: Option<Stall>,
    touched: bool,
    own: Option<SubnetKey>,
}

/// A period in which a host receives nothing: the last time at which it was synced, and when it can receive again.
#[derive(Clone, Copy, Debug)]
struct Stall {
    since: Instant,
    end: Instant,
}

impl Stall {
    /// Returns whether the host may not yet have received what it missed.
    fn is_excuse(&self) -> bool {
        Instant::now() <= self.end + super::GRACE
    }

    fn and(this: Option<Self>, until: Instant) -> Self {
        let now = Instant::now();
        match this {
            Some(stall) if stall.is_excuse() => Self { since: stall.since, end: stall.end.max(until) },
            Some(_) | None => Self { since: now, end: until },
        }
    }
}

/// The number of calls that a host made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Calls {
    /// Calls of every kind.
    pub(super) all: u64,
    pub(super) lists: u64,
    pub(super) watches: u64,
}

const TIMEOUT: Duration = Duration::from_secs(5);

impl StoreLink {
    pub(super) fn new(
        host: usize,
        seed: u64,
        max_event_delay: Duration,
        store: Arc<dyn SubnetRegistry>,
        checker: InvariantChecker,
    ) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let delay = Duration::from_millis(random.u64(1..200));
        let event_delay = max_event_delay.mul_f64(random.f64() / 1.5);
        let state = State {
            random,
            delay,
            event_delay,
            loss: 0.0,
            calls: 0,
            lists: 0,
            watches: 0,
            restores: 0,
            calls_stall: None,
            watch_stall: None,
            any_stall: None,
            touched: false,
            own: None,
        };
        let link_state = watch::Sender::new(LinkState::default());
        let created = Instant::now();
        Self { host, created, store, checker, state: Arc::new(Mutex::new(state)), link_state }
    }

    pub(super) fn partition(&self, partitioned: bool) {
        self.link_state.send_modify(|link_state| link_state.partitioned = partitioned);
    }

    pub(super) fn stall_watch(&self, stalled: bool) {
        self.link_state.send_modify(|link_state| link_state.watch_stalled = stalled);
    }

    pub(super) fn cut_watch(&self) {
        self.link_state.send_modify(|link_state| link_state.cuts += 1);
    }

    pub(super) fn note_restore(&self) {
        self.state().restores += 1;
    }

    pub(super) fn set_loss(&self, share: f64) {
        self.state().loss = share;
    }

    pub(super) fn clear_faults(&self) {
        self.state().loss = 0.0;
        self.link_state.send_modify(|link_state| {
            link_state.partitioned = false;
            link_state.watch_stalled = false;
        });
    }

    /// Marks the host as receiving nothing, or nothing in time, until then.
    pub(super) fn mark_stalled(&self, until: Instant) {
        let mut state = self.state();
        state.calls_stall = Some(Stall::and(state.calls_stall, until));
        state.any_stall = Some(Stall::and(state.any_stall, until));
    }

    /// Marks the host's watch as receiving nothing, or nothing in time, until then.
    pub(super) fn mark_watch_stalled(&self, until: Instant) {
        let mut state = self.state();
        state.watch_stall = Some(Stall::and(state.watch_stall, until));
        state.any_stall = Some(Stall::and(state.any_stall, until));
    }

    /// Returns whether the host may not yet know a change of its own record at this time. `renews` is whether it renews
    /// it.
    pub(super) fn is_excused(&self, changed: Instant, renews: bool) -> bool {
        let state = self.state();
        // Each renewal reads the record, whatever the watch receives.
        let renewed = |watch_stall: Stall| {
            let begun =
                watch_stall.since.max(changed).max(state.calls_stall.map_or(changed, |stall| stall.end));
            renews && Instant::now() > begun + super::RENEWAL + super::GRACE
        };
        state.calls_stall.is_some_and(|stall| stall.is_excuse())
            || state.watch_stall.is_some_and(|watch_stall| watch_stall.is_excuse() && !renewed(watch_stall))
    }

    /// Returns since when calls and events get through; `None` if they do not.
    pub(super) fn healthy_since(&self) -> Option<Instant> {
        let end = self.state().any_stall.map(|stall| stall.end);
        end.map_or(Some(self.created), |end| (end <= Instant::now()).then_some(end))
    }

    /// Returns the last time at which the host was certainly synced.
    pub(super) fn synced_at(&self) -> Instant {
        let any_stall = self.state().any_stall.filter(Stall::is_excuse);
        any_stall.map_or_else(Instant::now, |stall| stall.since)
    }

    pub(super) fn calls(&self) -> Calls {
        let state = self.state();
        Calls { all: state.calls, lists: state.lists, watches: state.watches }
    }

    pub(super) fn set_own(&self, own: Option<SubnetKey>) {
        self.state().own = own;
    }

    pub(super) fn take_touched(&self) -> bool {
        std::mem::take(&mut self.state().touched)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chance(&self) -> f64 {
        self.state().random.f64()
    }

    fn delay(&self) -> Duration {
        let mut state = self.state();
        let jitter = state.random.f64();
        state.delay.mul_f64(0.5 + jitter)
    }

    /// Waits for the delay of an event.
    async fn delay_event(&self) {
        let time = {
            let mut state = self.state();
            let jitter = state.random.f64();
            state.event_delay.mul_f64(0.5 + jitter)
        };
        sleep(time).await;
    }

    fn is_partitioned(&self) -> bool {
        self.link_state.borrow().partitioned
    }

    /// Makes a call to the store and back, unless the link drops it.
    async fn call<T>(
        &self,
        call: Call,
        subnet: Option<SubnetKey>,
        work: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        {
            let mut state = self.state();
            state.calls += 1;
            state.lists += u64::from(call == Call::List);
        }
        sleep(self.delay()).await;
        let loss = self.state().loss;
        let answer = if self.is_partitioned() || self.chance() < loss {
            sleep(TIMEOUT).await;
            Err(self.timeout_error(subnet))
        } else {
            let answer = work.await;
            sleep(self.delay()).await;
            if self.is_partitioned() || self.chance() < loss {
                sleep(TIMEOUT).await;
                Err(self.timeout_error(subnet))
            } else {
                answer
            }
        };
        let error = answer.as_ref().err().map_or_else(|| "good".to_owned(), ToString::to_string);
        self.checker.record(format_args!("host {} {call:?} {subnet:?}: {error}", self.host));
        self.state().touched = true;
        answer
    }

    fn timeout_error(&self, subnet: Option<SubnetKey>) -> RegistryError {
        match subnet {
            Some(subnet) => RegistryError::Unknown(subnet, "no answer in time".into()),
            None => RegistryError::Unavailable(self.describe(), "no answer in time".into()),
        }
    }
}

#[async_trait]
impl SubnetRegistry for StoreLink {
    fn describe(&self) -> String {
        self.store.describe()
    }

    fn how_to_configure(&self) -> String {
        self.store.how_to_configure()
    }

    async fn config(&self) -> Result<Option<String>, RegistryError> {
        self.call(Call::Config, None, self.store.config()).await
    }

    fn config_changes(&self) -> BoxStream<'static, ()> {
        self.store.config_changes()
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        self.call(Call::List, None, self.store.list()).await
    }

    async fn create(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError> {
        let work = async {
            let before = self.checker.record_state(subnet);
            let answer = self.store.create(subnet, attrs, ttl).await;
            self.checker.check_create(self.host, subnet, before, &answer);
            answer
        };
        self.call(Call::Create, Some(subnet), work).await
    }

    async fn update(&self, lease: &Lease, attrs: &LeaseAttrs, ttl: Duration) -> Result<Lease, RegistryError> {
        let work = async {
            let before = self.checker.record_state(lease.subnet);
            let answer = self.store.update(lease, attrs, ttl).await;
            self.checker.check_compare_and_swap(self.host, "update", lease, before, &answer);
            answer
        };
        self.call(Call::Update, Some(lease.subnet), work).await
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError> {
        let work = async {
            let before = self.checker.record_state(lease.subnet);
            let answer = self.store.renew(lease, ttl).await;
            self.checker.check_compare_and_swap(self.host, "renew", lease, before, &answer);
            answer
        };
        self.call(Call::Renew, None, work).await
    }

    async fn delete(&self, lease: &Lease) -> Result<(), RegistryError> {
        let work = async {
            let before = self.checker.record_state(lease.subnet);
            let answer = self.store.delete(lease).await;
            self.checker.check_compare_and_swap(self.host, "delete", lease, before, &answer);
            answer
        };
        self.call(Call::Delete, Some(lease.subnet), work).await
    }

    fn watch(&self, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
        let watch = Watch::new(self, after);
        stream::unfold(watch, |mut watch| async {
            let event = watch.next().await;
            Some((event, watch))
        })
        .boxed()
    }
}
