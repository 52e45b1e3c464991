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

/// Wraps a registry, makes calls fail on demand and counts them. Clones share the faults.
#[derive(Clone, Debug)]
pub struct FaultyRegistry<R> {
    inner: R,
    faults: Arc<Mutex<Faults>>,
    state: watch::Sender<StoreState>,
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
    /// `watch` from a revision.
    Watch,
    /// `watch` from a snapshot, which includes a list.
    WatchAll,
}

/// A fault of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InjectedFault {
    /// The call does not reach the store.
    Unavailable,
    /// The store rejects the call.
    Refused,
    /// The call takes effect, but the answer is lost.
    AnswerLost,
    /// The call takes no effect, and the answer is lost too.
    RequestLost,
    /// The call is delayed by this time.
    Delayed(Duration),
    /// Another host leases the subnet just before the call, if it is free.
    LostRace,
}

#[derive(Debug, Default)]
struct Faults {
    next: BTreeMap<Call, VecDeque<InjectedFault>>,
    counts: BTreeMap<Call, usize>,
    longest_renewal: Option<Duration>,
}

/// The state of all calls and watches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct StoreState {
    is_down: bool,
    cuts: u64,
}

impl<R: SubnetRegistry + Clone> FaultyRegistry<R> {
    /// Wraps a registry without faults.
    pub fn new(inner: R) -> Self {
        Self { inner, faults: Arc::default(), state: watch::Sender::new(StoreState::default()) }
    }

    /// Makes the next calls of a kind fail, one fault each.
    pub fn fail_next(&self, call: Call, faults: impl IntoIterator<Item = InjectedFault>) {
        self.faults().next.entry(call).or_default().extend(faults);
    }

    /// Limits the time to live that renewals grant.
    pub fn limit_renewals(&self, longest: Duration) {
        self.faults().longest_renewal = Some(longest);
    }

    /// Returns the number of calls of a kind.
    #[must_use]
    pub fn count(&self, call: Call) -> usize {
        self.faults().counts.get(&call).copied().unwrap_or(0)
    }

    /// Returns the number of calls of each kind.
    #[must_use]
    pub fn counts(&self) -> Vec<(Call, usize)> {
        self.faults().counts.iter().map(|(call, count)| (*call, *count)).collect()
    }

    /// Makes the store unreachable: calls fail, and watches report it as unavailable.
    pub fn stop_responding(&self) {
        self.state.send_modify(|state| state.is_down = true);
    }

    /// Makes the store reachable again. Watches resume with a snapshot.
    pub fn resume_responding(&self) {
        self.state.send_modify(|state| state.is_down = false);
    }

    /// Interrupts all watches; they resume at once with a snapshot.
    pub fn cut_watches(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, call: Call) -> Option<InjectedFault> {
        let mut faults = self.faults();
        *faults.counts.entry(call).or_default() += 1;
        if self.state.borrow().is_down {
            return Some(InjectedFault::Unavailable);
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
            Some(InjectedFault::Delayed(time)) => {
                tokio::time::sleep(time).await;
                work.await
            }
            Some(InjectedFault::LostRace) => work.await,
            Some(InjectedFault::Refused) => Err(self.refused()),
            Some(InjectedFault::Unavailable | InjectedFault::AnswerLost | InjectedFault::RequestLost) => {
                Err(self.unavailable())
            }
        }
    }

    async fn write<T>(
        &self,
        call: Call,
        subnet: SubnetKey,
        work: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let unknown = || RegistryError::Unknown(subnet, "the connection applied reset".into());
        match self.take(call) {
            None => work.await,
            Some(InjectedFault::Delayed(time)) => {
                tokio::time::sleep(time).await;
                work.await
            }
            Some(InjectedFault::LostRace) => {
                let faster = LeaseAttrs::new(FASTER.into());
                // If the subnet is taken, there is no race to lose.
                let _ = self.inner.create(subnet, &faster, Duration::from_secs(86_400)).await;
                work.await
            }
            Some(InjectedFault::Refused) => Err(self.refused()),
            Some(InjectedFault::Unavailable) => Err(self.unavailable()),
            Some(InjectedFault::RequestLost) => Err(unknown()),
            Some(InjectedFault::AnswerLost) => {
                // The result is lost.
                let _ = work.await;
                Err(unknown())
            }
        }
    }

    fn unavailable(&self) -> RegistryError {
        RegistryError::Unavailable(self.describe(), UNREACHABLE.into())
    }

    fn refused(&self) -> RegistryError {
        RegistryError::Refused(self.describe(), "permission denied".into())
    }
}

/// The address of the host that wins the race.
const FASTER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 99);

const UNREACHABLE: &str = "connection refused";

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

    /// Changes during an outage are reported after it.
    fn config_changes(&self) -> BoxStream<'static, ()> {
        let state = self.state.subscribe();
        let after_outage = move |()| {
            let mut state = state.clone();
            // If the sender is gone, no outage can end.
            async move { drop(state.wait_for(|now| !now.is_down).await) }
        };
        self.inner.config_changes().then(after_outage).boxed()
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
        // An outage that began before is reported first.
        let cuts = self.state.borrow().cuts;
        let watch = Watch {
            applied: StoreState { is_down: false, cuts },
            state: self.state.subscribe(),
            stream: Some(self.inner.watch(after)),
            inner: self.inner.clone(),
            undelivered: VecDeque::new(),
        };
        stream::unfold(watch, |mut watch| async { watch.next().await.map(|event| (event, watch)) }).boxed()
    }
}

/// A watch with the faults of its registry.
struct Watch<R> {
    inner: R,
    state: watch::Receiver<StoreState>,
    applied: StoreState,
    stream: Option<BoxStream<'static, RegistryEvent>>,
    undelivered: VecDeque<RegistryEvent>,
}

impl<R: SubnetRegistry> Watch<R> {
    async fn next(&mut self) -> Option<RegistryEvent> {
        loop {
            self.apply_state();
            if let Some(event) = self.undelivered.pop_front() {
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
                changed = self.state.changed() => changed.ok()?,
                event = event => return event,
            }
        }
    }

    fn apply_state(&mut self) {
        let now = self.state.borrow_and_update().clone();
        if now == self.applied {
            return;
        }
        if !self.applied.is_down {
            self.stream = None;
            self.undelivered.push_back(RegistryEvent::Unavailable(UNREACHABLE.to_owned()));
        }
        if !now.is_down {
            self.stream = Some(self.inner.watch(None));
            self.undelivered.push_back(RegistryEvent::Available);
        }
        self.applied = now;
    }
}
