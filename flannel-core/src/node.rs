//! The loop of one network on one host.
//!
//! 1. Read the configuration, waiting for it as long as it takes.
//! 2. Open the backend: its device exists before the lease, which carries the device's address.
//! 3. Get the lease, and make the host ready for it.
//! 4. Then, for ever: follow the peers and the external interface, keep the lease, listen to the kernel. Each only says
//!    "look again"; one pass makes the host as it should be, and the lease says what the host has become.

mod external;
mod follow;
mod own_lease;
mod reconfigure;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use self::reconfigure::Reread;
use crate::backend::{Backend, BackendError, ObjectFailure, OpenRequest, SyncReport, SyncRequest};
use crate::event::{NetworkEvent, Phase};
use crate::external::ExternalUpdate;
use crate::manager::{LeaseRequest, ManagerError, PeerEvent};
use crate::network::{NetworkError, NetworkOptions, Running, Shared};
use crate::peers::Dirty;
use crate::registry::RegistryError;
use crate::state::NetworkState;
use crate::{Damping, Lease, LeaseAttrs, NetworkConfig, PublicAddrs};

/// Two passes are at least this far apart, so that a storm of notices costs a bounded share of a core. It is small
/// beside the 100 ms within which a change shall be put right.
const PASS_GAP: Duration = Duration::from_millis(10);

/// So many events of the peers are taken in before a pass; bounded, so that a storm without end does not keep the pass
/// from coming.
const EVENTS_AT_ONCE: usize = 256;

/// How often and after what pause the backend is opened before the kernel's refusal is believed.
const OPEN_ATTEMPTS: u32 = 10;
const OPEN_PAUSE: Duration = Duration::from_millis(50);

pub(crate) struct Node {
    options: NetworkOptions,
    random: fastrand::Rng,
    shared: watch::Sender<Shared>,
    /// What is known of the network, with the peers. Nobody else writes in it.
    state: Arc<RwLock<NetworkState>>,
    events: broadcast::Sender<NetworkEvent>,
    backend: Option<Box<dyn Backend>>,
    own: Option<Lease>,
    /// What the lease shall say about the host; nothing before there is one.
    attrs: Option<LeaseAttrs>,
    /// How many times it was asked to read the configuration again.
    reloads: watch::Receiver<u64>,
    last_pass: Instant,
    next_pass: Instant,
    /// When everything is compared with the kernel.
    next_audit: Instant,
    noticed: String,
}

impl Node {
    pub(crate) fn new(
        options: NetworkOptions,
        shared: watch::Sender<Shared>,
        state: Arc<RwLock<NetworkState>>,
        events: broadcast::Sender<NetworkEvent>,
        reloads: watch::Receiver<u64>,
    ) -> Self {
        let random = options.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        let now = Instant::now();
        Self {
            options,
            random,
            shared,
            state,
            events,
            backend: None,
            own: None,
            attrs: None,
            reloads,
            last_pass: now,
            next_pass: now,
            next_audit: now,
            noticed: String::new(),
        }
    }

    /// Runs until an error that no waiting will cure. To drop the future between two polls loses nothing: kernel
    /// writes happen within one.
    pub(crate) async fn live(&mut self) -> Result<Infallible, NetworkError> {
        // Before the first read, so that no change falls between the two.
        let reread = Reread::new(&self.options.manager, self.reloads.clone());
        let config = Arc::new(self.configuration().await?);
        self.note(|state| state.config = Some(Arc::clone(&config)));
        self.tell(NetworkEvent::Configured(Arc::clone(&config)));
        if let Some(choose) = self.options.choose_external.take() {
            let families = self.options.backend.underlay(&config);
            let choice = choose(&config, families).map_err(NetworkError::External)?;
            (self.options.external, self.options.external_changes) = (choice.interface, choice.changes);
            self.note(|state| state.external = self.options.external.clone());
        }
        let public = self.public(&config);
        let before = self.previous_lease(public).await?;
        let before = before.as_ref().map(|lease| &lease.attrs);
        let mut backend = self.open(&config, before).await?;
        let attrs = backend.attrs().at(public);
        let own = self.acquire(&config, &attrs).await?;
        if let Err(error) = backend.configure(&own) {
            self.may_pass(&own, error)?;
        }
        self.backend = Some(backend);
        self.note_devices();
        self.attrs = Some(attrs);
        self.follow(config, own, reread).await
    }

    /// Opens the backend. What the kernel refuses may be because somebody else changes the same objects at this
    /// moment, so that is tried again before it is believed.
    async fn open(
        &mut self,
        config: &NetworkConfig,
        before: Option<&LeaseAttrs>,
    ) -> Result<Box<dyn Backend>, BackendError> {
        for _ in 1..OPEN_ATTEMPTS {
            match self.options.backend.open(self.open_request(config, before)) {
                Err(error @ BackendError::Kernel { .. }) => {
                    tracing::debug!(error = crate::chain(&error), "opening the backend again");
                    tokio::time::sleep(OPEN_PAUSE).await;
                }
                done => return done,
            }
        }
        self.options.backend.open(self.open_request(config, before))
    }

    fn open_request<'a>(
        &'a self,
        config: &'a NetworkConfig,
        before: Option<&'a LeaseAttrs>,
    ) -> OpenRequest<'a> {
        OpenRequest::new(config, &self.options.external)
            .with_before(before)
            .with_state_dir(self.options.state_dir.as_deref())
    }

    /// Returns the addresses at which the peers reach this host.
    fn public(&self, config: &NetworkConfig) -> PublicAddrs {
        self.options.external.public.only(self.options.backend.underlay(config))
    }

    /// Tells that the kernel refused to make the host ready for its lease, which the next pass tries again. Any other
    /// error is for good.
    fn may_pass(&self, own: &Lease, error: BackendError) -> Result<(), BackendError> {
        if !matches!(error, BackendError::Kernel { .. }) {
            return Err(error);
        }
        self.tell_failed(format!("lease {}", own.subnet), &error);
        Ok(())
    }

    async fn configuration(&mut self) -> Result<NetworkConfig, NetworkError> {
        let manager = Arc::clone(&self.options.manager);
        self.patiently(Phase::Configuration, || manager.config()).await
    }

    async fn previous_lease(&mut self, public: PublicAddrs) -> Result<Option<Lease>, NetworkError> {
        let manager = Arc::clone(&self.options.manager);
        self.patiently(Phase::PreviousLease, || manager.previous_lease(public)).await
    }

    async fn acquire(&mut self, config: &NetworkConfig, attrs: &LeaseAttrs) -> Result<Lease, NetworkError> {
        let manager = Arc::clone(&self.options.manager);
        let request = LeaseRequest::new(config, attrs).with_previous(self.options.previous);
        self.patiently(Phase::Lease, || manager.acquire(request)).await
    }

    /// Tries until it works, telling each failure with the pause that follows it.
    async fn patiently<'a, T>(
        &mut self,
        phase: Phase,
        attempt: impl Fn() -> BoxFuture<'a, Result<T, ManagerError>>,
    ) -> Result<T, NetworkError> {
        for failures in 0_u32.. {
            let error = match attempt().await {
                Ok(value) => {
                    self.note(|state| state.waiting = None);
                    return Ok(value);
                }
                Err(error) if is_final(&error) => return Err(NetworkError::Lease(error)),
                Err(error) => error,
            };
            let reason = crate::chain(&error);
            let retry_in = self.options.retry.delay(failures, self.random.f64());
            self.note(|state| state.waiting = Some((phase, reason.clone())));
            self.tell(NetworkEvent::Waiting { phase, reason, retry_in });
            tokio::time::sleep(retry_in).await;
        }
        std::future::pending().await
    }

    /// Step 4: the life of a network that has its lease.
    async fn follow(
        &mut self,
        mut config: Arc<NetworkConfig>,
        own: Lease,
        mut reread: Reread,
    ) -> Result<Infallible, NetworkError> {
        let mut external =
            std::mem::replace(&mut self.options.external_changes, stream::empty().boxed()).fuse();
        let mut holding = self.hold(&config, own.clone());
        let mut peers = self.start(&config, own);
        loop {
            let due = self.read().damping.due();
            let Some(backend) = self.backend.as_mut() else {
                return std::future::pending().await;
            };
            // In a fixed order, so that the same events lead to the same life each time. A pass comes first because it
            // is bounded by the gap between two; so no storm of events keeps it from coming.
            tokio::select! {
                biased;
                () = not_before(self.next_pass) => {
                    self.pass(&config);
                    if let Some(own) = self.unpublished(&config) {
                        holding = self.hold(&config, own);
                    }
                }
                () = until(due) => self.let_go(),
                Some(event) = holding.next() => {
                    if let Some(moved) = self.on_lease(event) {
                        peers = self.start(&config, moved);
                    }
                }
                Some(event) = peers.next() => {
                    self.on_peers(event);
                    // What else is there already comes into the same pass: above all, that the peers are complete.
                    for _ in 1..EVENTS_AT_ONCE {
                        let Some(Some(event)) = peers.next().now_or_never() else { break };
                        self.on_peers(event);
                    }
                }
                Some(update) = external.next() => match update {
                    ExternalUpdate::Changed(external) => self.on_external(external),
                    ExternalUpdate::Lost(reason) => self.on_external_lost(reason),
                },
                (read, asked) = reread.next() => {
                    let taken = self.on_config(&config, read, asked, &mut reread);
                    self.shared.send_modify(|shared| shared.reloaded = reread.reloaded());
                    if let (Some(taken), Some(own)) = (taken, self.own.clone()) {
                        config = taken;
                        holding = self.hold(&config, own);
                    }
                }
                noticed = backend.wait_for_drift() => self.look_again(noticed),
            }
        }
    }

    /// Begins to follow the peers of the host that holds `own`.
    fn start(&mut self, config: &NetworkConfig, own: Lease) -> BoxStream<'static, PeerEvent> {
        let subnet = own.subnet;
        let mtu = self.backend.as_ref().map(|backend| backend.mtu());
        self.own = Some(own.clone());
        let damping = Damping::new(self.options.damping);
        self.note(|state| {
            state.restart(own.clone(), damping);
            state.mtu = mtu;
        });
        tracing::debug!(%subnet, backend = config.backend.name, "following the peers");
        self.tell(NetworkEvent::LeaseAcquired(own));
        self.options.manager.watch(subnet).fuse().boxed()
    }

    fn look_again(&mut self, noticed: String) {
        tracing::debug!(%noticed, "looking again");
        self.noticed = noticed;
        self.soon();
    }

    /// Brings the next pass forward, as far as the gap between passes allows.
    fn soon(&mut self) {
        self.next_pass = self.next_pass.min(Instant::now().max(self.last_pass + PASS_GAP));
    }

    /// Makes the host as it should be.
    fn pass(&mut self, config: &Arc<NetworkConfig>) {
        let Some(mut backend) = self.backend.take() else {
            return;
        };
        let is_audit = Instant::now() >= self.next_audit;
        let started = std::time::Instant::now();
        let (report, was_all) = {
            let state = self.read();
            let dirty = if is_audit { &Dirty::All } else { &state.dirty };
            let request = SyncRequest::new(state.damping.peers(), dirty, Instant::now().into_std());
            (backend.sync(request), *dirty == Dirty::All)
        };
        let took = started.elapsed();
        self.last_pass = Instant::now();
        if was_all {
            self.next_audit = self.last_pass + self.options.audit_every.max(PASS_GAP);
        }
        let retry = report.retry_in.map(|pause| self.last_pass + pause.max(PASS_GAP));
        self.next_pass = retry.map_or(self.next_audit, |retry| retry.min(self.next_audit));
        tracing::debug!(
            written = report.written,
            removed = report.removed,
            failed = report.failed.len(),
            "pass"
        );
        self.backend = Some(backend);
        self.note(|state| state.dirty = Dirty::NONE);
        self.note_devices();
        self.report(report, took);
        self.follow_mtu();
        self.become_ready(config);
    }

    /// Notes what the backend tells of itself.
    fn note_devices(&self) {
        let Some(backend) = &self.backend else { return };
        let (devices, traffic) = (backend.devices(), backend.traffic());
        self.note(|state| (state.devices, state.traffic) = (devices, traffic));
    }

    fn report(&mut self, report: SyncReport, took: Duration) {
        let noticed = std::mem::replace(&mut self.noticed, "an audit".to_owned());
        let mut told = Vec::new();
        if report.drifted > 0 {
            told.push(NetworkEvent::Repaired { objects: report.drifted, noticed: noticed.clone() });
        }
        {
            let known = &self.read().passes;
            told.extend(news(&report.failed, &known.failed).cloned().map(NetworkEvent::ObjectFailed));
            let unreachable = news(&report.unreachable, &known.unreachable);
            told.extend(unreachable.cloned().map(NetworkEvent::PeerUnreachable));
        }
        told.into_iter().for_each(|event| self.tell(event));
        let now = self.last_pass.into_std();
        self.note(|state| state.passes.add(report, noticed, took, now));
    }

    fn become_ready(&mut self, config: &Arc<NetworkConfig>) {
        let (Some(backend), Some(own)) = (&self.backend, &self.own) else {
            return;
        };
        let is_new =
            self.shared.borrow().running.as_ref().is_none_or(|running| running.lease.subnet != own.subnet);
        if self.are_peers_known() && is_new {
            let running = Running { lease: own.clone(), mtu: backend.mtu(), config: Arc::clone(config) };
            self.note(|state| state.ready = true);
            self.shared.send_modify(|shared| shared.running = Some(running));
            self.tell(NetworkEvent::Ready);
        }
    }

    /// Removes what the network made on the host, and gives the lease back.
    pub(crate) async fn remove(&mut self) -> Result<(), NetworkError> {
        let removed = self.backend.take().map_or(Ok(()), |mut backend| backend.remove());
        let Some(own) = self.own.take() else {
            return Ok(removed?);
        };
        let released = self.options.manager.release(&own).await;
        removed?;
        match released {
            // Somebody was faster; the lease is not ours any more either way.
            Err(ManagerError::Registry(RegistryError::Gone(_) | RegistryError::Changed(_))) | Ok(()) => {
                Ok(())
            }
            Err(error) => Err(NetworkError::Release(error)),
        }
    }

    /// Says that the network ended, which ends the handle's waiting.
    pub(crate) fn done(&self) {
        self.shared.send_modify(|shared| shared.done = true);
    }

    fn tell(&self, event: NetworkEvent) {
        tracing::trace!(?event, "event");
        self.note(|state| state.note_error(&event, Instant::now().into_std()));
        // An error means that nobody listens, which is fine.
        let _ = self.events.send(event);
    }

    fn tell_failed(&self, object: String, error: &BackendError) {
        let reason = crate::chain(error);
        self.tell(NetworkEvent::ObjectFailed(ObjectFailure::new(object, reason)));
    }

    /// Changes what everybody sees of a network that runs.
    fn change_running(&self, change: impl FnOnce(&mut Running)) {
        self.shared.send_modify(|shared| {
            if let Some(running) = &mut shared.running {
                change(running);
            }
        });
    }

    /// Writes in the state.
    fn note(&self, write: impl FnOnce(&mut NetworkState)) {
        write(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Reads in the state. Nothing may be written until the guard is gone.
    fn read(&self) -> RwLockReadGuard<'_, NetworkState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for a moment, unless it has come. The timer alone would wait for the end of the millisecond that has begun.
async fn not_before(moment: Instant) {
    if Instant::now() < moment {
        tokio::time::sleep_until(moment).await;
    }
}

/// Waits for a moment, or for ever if there is none.
async fn until(moment: Option<std::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// Returns what was not known before.
fn news<'a, T: Ord>(told: &'a [T], known: &[T]) -> impl Iterator<Item = &'a T> {
    let known: BTreeSet<&T> = known.iter().collect();
    told.iter().filter(move |told| !known.contains(told))
}

/// Tells whether no waiting will help. A store that refuses may be set right while we wait.
fn is_final(error: &ManagerError) -> bool {
    matches!(error, ManagerError::OutOfSubnets(_))
}
