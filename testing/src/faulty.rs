//! A registry that fails on demand.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{
    LastContact, Lease, LeaseAttrs, RegistryError, RegistryEvent, Revision, Snapshot, SubnetKey,
    SubnetRegistry,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::watch;

/// A registry in front of another one, which lets its calls fail and counts them. Clones share their faults.
#[derive(Clone, Debug)]
pub struct FaultyRegistry<R> {
    inner: R,
    faults: Arc<Mutex<Faults>>,
    weather: watch::Sender<Weather>,
}

/// A call of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Call {
    /// `config`.
    Config,
    /// `list`.
    List,
    /// `create`.
    Create,
    /// `update`.
    Update,
    /// `renew`.
    Renew,
    /// `delete`.
    Delete,
    /// `watch` from a revision on.
    Watch,
    /// `watch` from a snapshot, which costs a list.
    WatchAll,
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It does not reach the store.
    Unavailable,
    /// The store will not do it.
    Refused,
    /// It takes effect, but the answer is lost.
    AnswerLost,
    /// It takes no effect, and there is no answer that says so.
    RequestLost,
    /// It waits for this time, then it is done.
    Delayed(Duration),
    /// Just before it, another host leases the subnet if it is free. Nothing else goes wrong.
    LostRace,
}

#[derive(Debug, Default)]
struct Faults {
    next: BTreeMap<Call, VecDeque<Fault>>,
    counts: BTreeMap<Call, usize>,
    longest_renewal: Option<Duration>,
}

/// What holds for all calls and watches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Weather {
    silent: bool,
    cuts: u64,
}

impl<R: SubnetRegistry + Clone> FaultyRegistry<R> {
    /// Puts itself in front of a registry; nothing fails yet.
    pub fn new(inner: R) -> Self {
        Self { inner, faults: Arc::default(), weather: watch::Sender::new(Weather::default()) }
    }

    /// Lets the next calls of a kind fail, one after another, each in the way given.
    pub fn fail_next(&self, call: Call, faults: impl IntoIterator<Item = Fault>) {
        self.faults().next.entry(call).or_default().extend(faults);
    }

    /// Lets renewals last no longer than this, whatever is asked for.
    pub fn limit_renewals(&self, longest: Duration) {
        self.faults().longest_renewal = Some(longest);
    }

    /// Returns how many calls of a kind were made.
    #[must_use]
    pub fn count(&self, call: Call) -> usize {
        self.faults().counts.get(&call).copied().unwrap_or(0)
    }

    /// Returns how many calls were made, each kind in the order of [`Call`] with its number.
    #[must_use]
    pub fn counts(&self) -> Vec<(Call, usize)> {
        self.faults().counts.iter().map(|(call, count)| (*call, *count)).collect()
    }

    /// Stops to answer: calls fail, and watches say that they hear nothing.
    pub fn stop_responding(&self) {
        self.weather.send_modify(|weather| weather.silent = true);
    }

    /// Answers again. Watches tell what there is now.
    pub fn resume_responding(&self) {
        self.weather.send_modify(|weather| weather.silent = false);
    }

    /// Cuts all watches; they come back at once with a snapshot.
    pub fn cut_watches(&self) {
        self.weather.send_modify(|weather| weather.cuts += 1);
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, call: Call) -> Option<Fault> {
        let mut faults = self.faults();
        *faults.counts.entry(call).or_default() += 1;
        if self.weather.borrow().silent {
            return Some(Fault::Unavailable);
        }
        faults.next.get_mut(&call).and_then(VecDeque::pop_front)
    }

    async fn read<T>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        match self.take(call) {
            None => work.await,
            Some(Fault::Delayed(time)) => {
                tokio::time::sleep(time).await;
                work.await
            }
            Some(Fault::LostRace) => work.await,
            Some(Fault::Refused) => Err(self.refused()),
            Some(Fault::Unavailable | Fault::AnswerLost | Fault::RequestLost) => Err(self.unavailable()),
        }
    }

    async fn write<T>(
        &self,
        call: Call,
        subnet: SubnetKey,
        work: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let unknown = || RegistryError::Unknown(subnet, "the connection was reset".into());
        match self.take(call) {
            None => work.await,
            Some(Fault::Delayed(time)) => {
                tokio::time::sleep(time).await;
                work.await
            }
            Some(Fault::LostRace) => {
                let faster = LeaseAttrs::new(FASTER.into());
                // If it is not free, it is no race.
                let _ = self.inner.create(subnet, &faster, Duration::from_secs(86_400)).await;
                work.await
            }
            Some(Fault::Refused) => Err(self.refused()),
            Some(Fault::Unavailable) => Err(self.unavailable()),
            Some(Fault::RequestLost) => Err(unknown()),
            Some(Fault::AnswerLost) => {
                // Whatever it was, it is lost.
                let _ = work.await;
                Err(unknown())
            }
        }
    }

    fn unavailable(&self) -> RegistryError {
        RegistryError::Unavailable(self.describe(), SILENCE.into())
    }

    fn refused(&self) -> RegistryError {
        RegistryError::Refused(self.describe(), "permission denied".into())
    }
}

/// The address of the host that outruns the others.
const FASTER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 99);

const SILENCE: &str = "connection refused";

#[async_trait]
impl<R: SubnetRegistry + Clone> SubnetRegistry for FaultyRegistry<R> {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn how_to_configure(&self) -> String {
        self.inner.how_to_configure()
    }

    fn last_contact(&self) -> Option<LastContact> {
        self.inner.last_contact()
    }

    async fn config(&self) -> Result<Option<String>, RegistryError> {
        self.read(Call::Config, self.inner.config()).await
    }

    /// What changes during a silence is told when it is over.
    fn config_changes(&self) -> BoxStream<'static, ()> {
        let weather = self.weather.subscribe();
        let heard = move |()| {
            let mut weather = weather.clone();
            // Where nobody is left who could end the silence, there is none.
            async move { drop(weather.wait_for(|now| !now.silent).await) }
        };
        self.inner.config_changes().then(heard).boxed()
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        self.read(Call::List, self.inner.list()).await
    }

    async fn create(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError> {
        self.write(Call::Create, subnet, self.inner.create(subnet, attrs, ttl)).await
    }

    async fn update(&self, lease: &Lease, attrs: &LeaseAttrs, ttl: Duration) -> Result<Lease, RegistryError> {
        self.write(Call::Update, lease.subnet, self.inner.update(lease, attrs, ttl)).await
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError> {
        let ttl = self.faults().longest_renewal.map_or(ttl, |longest| longest.min(ttl));
        self.write(Call::Renew, lease.subnet, self.inner.renew(lease, ttl)).await
    }

    async fn delete(&self, lease: &Lease) -> Result<(), RegistryError> {
        self.write(Call::Delete, lease.subnet, self.inner.delete(lease)).await
    }

    fn watch(&self, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
        let call = after.map_or(Call::WatchAll, |_| Call::Watch);
        *self.faults().counts.entry(call).or_default() += 1;
        // Silence that began before is told first.
        let cuts = self.weather.borrow().cuts;
        let watch = Watch {
            was: Weather { silent: false, cuts },
            weather: self.weather.subscribe(),
            stream: Some(self.inner.watch(after)),
            inner: self.inner.clone(),
            untold: VecDeque::new(),
        };
        stream::unfold(watch, |mut watch| async { watch.next().await.map(|event| (event, watch)) }).boxed()
    }
}

/// A watch that is cut when the weather asks for it.
struct Watch<R> {
    inner: R,
    weather: watch::Receiver<Weather>,
    was: Weather,
    stream: Option<BoxStream<'static, RegistryEvent>>,
    untold: VecDeque<RegistryEvent>,
}

impl<R: SubnetRegistry> Watch<R> {
    async fn next(&mut self) -> Option<RegistryEvent> {
        loop {
            self.look();
            if let Some(event) = self.untold.pop_front() {
                return Some(event);
            }
            let event = async {
                match &mut self.stream {
                    Some(stream) => stream.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = self.weather.changed() => changed.ok()?,
                event = event => return event,
            }
        }
    }

    fn look(&mut self) {
        let now = self.weather.borrow_and_update().clone();
        if now == self.was {
            return;
        }
        if !self.was.silent {
            self.stream = None;
            self.untold.push_back(RegistryEvent::Unavailable(SILENCE.to_owned()));
        }
        if !now.silent {
            self.stream = Some(self.inner.watch(None));
            self.untold.push_back(RegistryEvent::Available);
        }
        self.was = now;
    }
}
