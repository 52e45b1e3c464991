//! What stands between one host and the store: delays, losses, partitions, watches that break or fall silent.

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

use super::witness::Witness;
use crate::Call;
use subscription::Watch;

/// One host's way to the store of a simulation. Clones are the same way.
#[derive(Clone)]
pub struct Link {
    host: usize,
    made: Instant,
    store: Arc<dyn SubnetRegistry>,
    witness: Witness,
    state: Arc<Mutex<State>>,
    weather: watch::Sender<Weather>,
}

/// What holds for the watch of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weather {
    partitioned: bool,
    /// The watch says nothing, not even that it hears nothing.
    stuck: bool,
    cuts: u32,
}

struct State {
    random: fastrand::Rng,
    /// How long a call takes in each direction, about.
    delay: Duration,
    /// How long news take, about.
    news: Duration,
    loss: f64,
    calls: u64,
    lists: u64,
    watches: u64,
    /// How many times the store went back in time, which a store tells those who connect again.
    restores: u32,
    /// When the host does not hear the store.
    deaf: Option<Deaf>,
    /// When its watch does not, while its calls get through.
    stuck: Option<Deaf>,
    /// When its watch does not, for either reason: one may begin before the other ends.
    unheard: Option<Deaf>,
    touched: bool,
    own: Option<SubnetKey>,
}

/// Until when a host has heard everything, and from when on it hears again.
#[derive(Clone, Copy, Debug)]
struct Deaf {
    since: Instant,
    end: Instant,
}

impl Deaf {
    /// Tells whether the host may not have heard yet what it missed.
    fn is_excuse(&self) -> bool {
        Instant::now() <= self.end + super::GRACE
    }

    fn and(this: Option<Self>, until: Instant) -> Self {
        let now = Instant::now();
        match this {
            Some(deaf) if deaf.is_excuse() => Self { since: deaf.since, end: deaf.end.max(until) },
            Some(_) | None => Self { since: now, end: until },
        }
    }
}

/// How many calls a host made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Calls {
    /// Of every kind.
    pub(super) all: u64,
    pub(super) lists: u64,
    pub(super) watches: u64,
}

const TIMEOUT: Duration = Duration::from_secs(5);

impl Link {
    pub(super) fn new(
        host: usize,
        seed: u64,
        slowest_news: Duration,
        store: Arc<dyn SubnetRegistry>,
        witness: Witness,
    ) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let delay = Duration::from_millis(random.u64(1..200));
        let news = slowest_news.mul_f64(random.f64() / 1.5);
        let state = State {
            random,
            delay,
            news,
            loss: 0.0,
            calls: 0,
            lists: 0,
            watches: 0,
            restores: 0,
            deaf: None,
            stuck: None,
            unheard: None,
            touched: false,
            own: None,
        };
        let weather = watch::Sender::new(Weather::default());
        let made = Instant::now();
        Self { host, made, store, witness, state: Arc::new(Mutex::new(state)), weather }
    }

    pub(super) fn partition(&self, partitioned: bool) {
        self.weather.send_modify(|weather| weather.partitioned = partitioned);
    }

    pub(super) fn stick(&self, stuck: bool) {
        self.weather.send_modify(|weather| weather.stuck = stuck);
    }

    pub(super) fn cut_watch(&self) {
        self.weather.send_modify(|weather| weather.cuts += 1);
    }

    pub(super) fn note_restore(&self) {
        self.state().restores += 1;
    }

    pub(super) fn lose(&self, share: f64) {
        self.state().loss = share;
    }

    pub(super) fn heal(&self) {
        self.state().loss = 0.0;
        self.weather.send_modify(|weather| {
            weather.partitioned = false;
            weather.stuck = false;
        });
    }

    /// Says that the host does not, or not soon, hear what happens from now until then.
    pub(super) fn deafen(&self, until: Instant) {
        let mut state = self.state();
        state.deaf = Some(Deaf::and(state.deaf, until));
        state.unheard = Some(Deaf::and(state.unheard, until));
    }

    /// Says that the watch of the host does not, or not soon, hear what happens from now until then.
    pub(super) fn deafen_watch(&self, until: Instant) {
        let mut state = self.state();
        state.stuck = Some(Deaf::and(state.stuck, until));
        state.unheard = Some(Deaf::and(state.unheard, until));
    }

    /// Tells whether the host may not know yet what happened to its own record at some time, which it renews or not.
    pub(super) fn is_excused(&self, changed: Instant, renews: bool) -> bool {
        let state = self.state();
        // Each renewal asks for the record, whatever the watch hears.
        let renewed = |stuck: Deaf| {
            let begun = stuck.since.max(changed).max(state.deaf.map_or(changed, |deaf| deaf.end));
            renews && Instant::now() > begun + super::RENEWAL + super::GRACE
        };
        state.deaf.is_some_and(|deaf| deaf.is_excuse())
            || state.stuck.is_some_and(|stuck| stuck.is_excuse() && !renewed(stuck))
    }

    /// Returns since when the calls of the host get through and its watch hears; `None` if they do not.
    pub(super) fn sound_since(&self) -> Option<Instant> {
        let end = self.state().unheard.map(|unheard| unheard.end);
        end.map_or(Some(self.made), |end| (end <= Instant::now()).then_some(end))
    }

    /// Returns the latest time of which the host has surely heard everything.
    pub(super) fn heard(&self) -> Instant {
        let unheard = self.state().unheard.filter(Deaf::is_excuse);
        unheard.map_or_else(Instant::now, |unheard| unheard.since)
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

    /// Waits as long as news take that are under way.
    async fn bring_news(&self) {
        let time = {
            let mut state = self.state();
            let jitter = state.random.f64();
            state.news.mul_f64(0.5 + jitter)
        };
        sleep(time).await;
    }

    fn is_cut_off(&self) -> bool {
        self.weather.borrow().partitioned
    }

    /// Makes a call: to the store and back, if nothing is in the way.
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
        let answer = if self.is_cut_off() || self.chance() < loss {
            sleep(TIMEOUT).await;
            Err(self.unanswered(subnet))
        } else {
            let answer = work.await;
            sleep(self.delay()).await;
            if self.is_cut_off() || self.chance() < loss {
                sleep(TIMEOUT).await;
                Err(self.unanswered(subnet))
            } else {
                answer
            }
        };
        let error = answer.as_ref().err().map_or_else(|| "good".to_owned(), ToString::to_string);
        self.witness.note(format_args!("host {} {call:?} {subnet:?}: {error}", self.host));
        self.state().touched = true;
        answer
    }

    fn unanswered(&self, subnet: Option<SubnetKey>) -> RegistryError {
        match subnet {
            Some(subnet) => RegistryError::Unknown(subnet, "no answer in time".into()),
            None => RegistryError::Unavailable(self.describe(), "no answer in time".into()),
        }
    }
}

#[async_trait]
impl SubnetRegistry for Link {
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
            let before = self.witness.found(subnet);
            let answer = self.store.create(subnet, attrs, ttl).await;
            self.witness.created(self.host, subnet, before, &answer);
            answer
        };
        self.call(Call::Create, Some(subnet), work).await
    }

    async fn update(&self, lease: &Lease, attrs: &LeaseAttrs, ttl: Duration) -> Result<Lease, RegistryError> {
        let work = async {
            let before = self.witness.found(lease.subnet);
            let answer = self.store.update(lease, attrs, ttl).await;
            self.witness.compared(self.host, "update", lease, before, &answer);
            answer
        };
        self.call(Call::Update, Some(lease.subnet), work).await
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError> {
        let work = async {
            let before = self.witness.found(lease.subnet);
            let answer = self.store.renew(lease, ttl).await;
            self.witness.compared(self.host, "renew", lease, before, &answer);
            answer
        };
        self.call(Call::Renew, None, work).await
    }

    async fn delete(&self, lease: &Lease) -> Result<(), RegistryError> {
        let work = async {
            let before = self.witness.found(lease.subnet);
            let answer = self.store.delete(lease).await;
            self.witness.compared(self.host, "delete", lease, before, &answer);
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
