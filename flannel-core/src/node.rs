//! The event loop of one network on one host.
//!
//! 1. Read the configuration, and wait for it as long as necessary.
//! 2. Open the backend. It creates its device before there is a lease, because the lease contains the device's address.
//! 3. Acquire the lease, and prepare the host for it.
//! 4. Follow the peers, the external interface, the configuration and the kernel, and keep the lease. Events only request
//!    a pass; one pass reconciles the host, and the lease follows.

mod config;
mod external;
mod own_lease;
mod peers;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use crate::backend::{Backend, BackendError, OpenRequest, SyncRequest};
use crate::config::NetworkConfig;
use crate::config_reader::ConfigReader;
use crate::damping::Damping;
use crate::event::{NetworkEvent, Phase};
use crate::external::ExternalUpdate;
use crate::lease::{Lease, LeaseAttrs, PublicAddrs};
use crate::manager::{LeaseRequest, ManagerError, PeerEvent};
use crate::options::NetworkOptions;
use crate::peers::Dirty;
use crate::registry::RegistryError;
use crate::report::{ObjectFailure, SyncReport};
use crate::running::{Ended, NetworkError, Progress, Running};
use crate::state::NetworkState;

/// The shortest time between two passes. It limits the share of a core that a storm of notifications can use, and is short
/// compared with the 100 ms within which drift is repaired.
const PASS_GAP: Duration = Duration::from_millis(10);

/// The number of peer events handled before a pass. Bounded, so that an endless storm doesn't postpone the pass.
const EVENTS_AT_ONCE: usize = 256;

/// The attempts to open the backend while the kernel refuses, and the delay between them.
const OPEN_ATTEMPTS: u32 = 10;
const OPEN_DELAY: Duration = Duration::from_millis(50);

pub(crate) struct Node {
    options: NetworkOptions,
    random: fastrand::Rng,
    running: watch::Sender<Option<Running>>,
    progress: watch::Sender<Progress>,
    /// The state of the network, with the peers. Only this loop writes to it.
    state: Arc<RwLock<NetworkState>>,
    events: broadcast::Sender<NetworkEvent>,
    backend: Option<Box<dyn Backend>>,
    own: Option<Lease>,
    /// The attributes last requested for the own lease.
    attrs: Option<LeaseAttrs>,
    /// The requested attributes that the record is known to contain.
    published: Option<LeaseAttrs>,
    /// The number of requested reloads.
    reloads: watch::Receiver<u64>,
    last_pass: Instant,
    next_pass: Instant,
    /// The time of the next full comparison with the kernel.
    next_audit: Instant,
    /// The cause of the next pass.
    noticed: String,
}

impl Node {
    pub(crate) fn new(
        options: NetworkOptions,
        running: watch::Sender<Option<Running>>,
        progress: watch::Sender<Progress>,
        state: Arc<RwLock<NetworkState>>,
        events: broadcast::Sender<NetworkEvent>,
        reloads: watch::Receiver<u64>,
    ) -> Self {
        let random = options.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        let now = Instant::now();
        Self {
            options,
            random,
            running,
            progress,
            state,
            events,
            backend: None,
            own: None,
            attrs: None,
            published: None,
            reloads,
            last_pass: now,
            next_pass: now,
            next_audit: now,
            noticed: String::new(),
        }
    }

    /// Runs until an error that can't be retried. Cancel safe: kernel writes happen within one poll.
    pub(crate) async fn run(&mut self) -> Result<Infallible, NetworkError> {
        // Subscribes before the first read, so that no change between the two is lost.
        let reader = ConfigReader::new(&self.options.manager, self.reloads.clone());
        let config = Arc::new(self.config().await?);
        self.update_state(|state| state.config = Some(Arc::clone(&config)));
        self.emit(NetworkEvent::Configured(Arc::clone(&config)));
        if let Some(choose) = self.options.choose_external.take() {
            let families = self.options.backend.underlay(&config);
            let choice = choose(&config, families).map_err(NetworkError::External)?;
            (self.options.external, self.options.external_changes) = (choice.interface, choice.changes);
            self.update_state(|state| state.external = self.options.external.clone());
        }
        let public = self.public(&config);
        let before = self.previous_lease(public).await?;
        let before = before.as_ref().map(|lease| &lease.attrs);
        let mut backend = self.open(&config, before).await?;
        let attrs = backend.attrs().at(public);
        let own = self.acquire(&config, &attrs).await?;
        if let Err(error) = backend.configure(&own) {
            self.tolerate(&own, error)?;
        }
        self.backend = Some(backend);
        self.record_devices();
        (self.attrs, self.published) = (Some(attrs.clone()), Some(attrs));
        self.follow(config, own, reader).await
    }

    /// Opens the backend. The kernel may refuse because another program is changing the same objects, so the first
    /// refusals are retried.
    async fn open(
        &mut self,
        config: &NetworkConfig,
        before: Option<&LeaseAttrs>,
    ) -> Result<Box<dyn Backend>, BackendError> {
        for _ in 1..OPEN_ATTEMPTS {
            match self.options.backend.open(self.open_request(config, before)) {
                Err(error @ BackendError::Kernel { .. }) => {
                    tracing::debug!(error = crate::chain(&error), "retrying to open the backend");
                    tokio::time::sleep(OPEN_DELAY).await;
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

    /// Returns the addresses at which peers reach this host.
    fn public(&self, config: &NetworkConfig) -> PublicAddrs {
        self.options.external.public.only(self.options.backend.underlay(config))
    }

    /// Reports that the kernel refused to prepare the host for its lease, which the next pass retries. Other errors are
    /// final.
    fn tolerate(&self, own: &Lease, error: BackendError) -> Result<(), BackendError> {
        if !matches!(error, BackendError::Kernel { .. }) {
            return Err(error);
        }
        self.emit_failure(format!("lease {}", own.subnet), &error);
        Ok(())
    }

    async fn config(&mut self) -> Result<NetworkConfig, NetworkError> {
        let manager = Arc::clone(&self.options.manager);
        self.retry(Phase::Configuration, || manager.config()).await
    }

    async fn previous_lease(&mut self, public: PublicAddrs) -> Result<Option<Lease>, NetworkError> {
        let manager = Arc::clone(&self.options.manager);
        self.retry(Phase::PreviousLease, || manager.previous_lease(public)).await
    }

    async fn acquire(&mut self, config: &NetworkConfig, attrs: &LeaseAttrs) -> Result<Lease, NetworkError> {
        let manager = Arc::clone(&self.options.manager);
        let request = LeaseRequest::new(config, attrs).with_previous(self.options.previous);
        self.retry(Phase::Lease, || manager.acquire(request)).await
    }

    /// Retries a step until it succeeds, and reports each failure with the delay that follows it.
    async fn retry<'a, T>(
        &mut self,
        phase: Phase,
        attempt: impl Fn() -> BoxFuture<'a, Result<T, ManagerError>>,
    ) -> Result<T, NetworkError> {
        for failures in 0_u32.. {
            let error = match attempt().await {
                Ok(value) => {
                    self.update_state(|state| state.waiting = None);
                    return Ok(value);
                }
                Err(error) if is_final(&error) => return Err(NetworkError::Lease(error)),
                Err(error) => error,
            };
            let reason = crate::chain(&error);
            let retry_in = self.options.retry.delay(failures, self.random.f64());
            self.update_state(|state| state.waiting = Some((phase, reason.clone())));
            self.emit(NetworkEvent::Waiting { phase, reason, retry_in });
            tokio::time::sleep(retry_in).await;
        }
        std::future::pending().await
    }

    /// Runs step 4.
    async fn follow(
        &mut self,
        mut config: Arc<NetworkConfig>,
        own: Lease,
        mut reader: ConfigReader,
    ) -> Result<Infallible, NetworkError> {
        let mut external =
            std::mem::replace(&mut self.options.external_changes, stream::empty().boxed()).fuse();
        let mut keeper = self.keep_lease(&config, own.clone());
        let mut peers = self.start(&config, own);
        loop {
            let hold_end = self.state().damping.due();
            let Some(backend) = self.backend.as_mut() else {
                return std::future::pending().await;
            };
            // The order is fixed, so that the same events always have the same result. A pass comes first: the gap between
            // passes bounds it, and no storm of events can postpone it.
            tokio::select! {
                biased;
                () = not_before(self.next_pass) => {
                    self.pass(&config);
                    if let Some(own) = self.outdated_lease(&config) {
                        keeper = self.keep_lease(&config, own);
                    }
                }
                () = until(hold_end) => self.end_hold(),
                Some(event) = keeper.next() => {
                    if let Some(moved) = self.on_lease(event) {
                        peers = self.start(&config, moved);
                    }
                }
                Some(event) = peers.next() => {
                    self.on_peers(event);
                    // Includes the events that are ready in the same pass, above all `Complete`.
                    for _ in 1..EVENTS_AT_ONCE {
                        let Some(Some(event)) = peers.next().now_or_never() else { break };
                        self.on_peers(event);
                    }
                }
                Some(update) = external.next() => match update {
                    ExternalUpdate::Changed(external) => self.on_external(external),
                    ExternalUpdate::Lost(reason) => self.on_external_lost(reason),
                },
                (read, was_requested) = reader.next() => {
                    let applied = self.on_config(&config, read, was_requested, &mut reader);
                    self.progress.send_modify(|progress| progress.reloaded = reader.reloaded());
                    if let (Some(applied), Some(own)) = (applied, self.own.clone()) {
                        config = applied;
                        keeper = self.keep_lease(&config, own);
                    }
                }
                noticed = backend.wait_for_drift() => self.look_again(noticed),
            }
        }
    }

    /// Starts to follow the peers of the host that holds `own`.
    fn start(&mut self, config: &NetworkConfig, own: Lease) -> BoxStream<'static, PeerEvent> {
        let subnet = own.subnet;
        let mtu = self.backend.as_ref().map(|backend| backend.mtu());
        self.own = Some(own.clone());
        let damping = Damping::new(self.options.damping);
        self.update_state(|state| {
            state.restart(own.clone(), damping);
            state.mtu = mtu;
        });
        tracing::debug!(%subnet, backend = config.backend.name, "following the peers");
        self.emit(NetworkEvent::LeaseAcquired(own));
        self.options.manager.watch(subnet).fuse().boxed()
    }

    fn look_again(&mut self, noticed: String) {
        tracing::debug!(%noticed, "pass requested");
        self.noticed = noticed;
        self.request_pass();
    }

    /// Schedules a pass as soon as the gap between passes allows.
    fn request_pass(&mut self) {
        self.next_pass = self.next_pass.min(Instant::now().max(self.last_pass + PASS_GAP));
    }

    /// Reconciles the host.
    fn pass(&mut self, config: &Arc<NetworkConfig>) {
        let Some(mut backend) = self.backend.take() else {
            return;
        };
        let is_audit = Instant::now() >= self.next_audit;
        let started = std::time::Instant::now();
        let (report, was_all) = {
            let state = self.state();
            let dirty = if is_audit { &Dirty::All } else { &state.dirty };
            let request = SyncRequest::new(state.damping.peers(), dirty, Instant::now().into_std());
            (backend.sync(request), *dirty == Dirty::All)
        };
        let took = started.elapsed();
        self.last_pass = Instant::now();
        if was_all {
            self.next_audit = self.last_pass + self.options.audit_every.max(PASS_GAP);
        }
        let retry = report.retry_in.map(|delay| self.last_pass + delay.max(PASS_GAP));
        self.next_pass = retry.map_or(self.next_audit, |retry| retry.min(self.next_audit));
        tracing::debug!(
            written = report.written,
            removed = report.removed,
            failed = report.failed.len(),
            "pass"
        );
        self.backend = Some(backend);
        self.update_state(|state| state.dirty = Dirty::NONE);
        self.record_devices();
        self.report(report, took);
        self.follow_mtu();
        self.become_ready(config);
    }

    /// Records what the backend reports about its devices and traffic.
    fn record_devices(&self) {
        let Some(backend) = &self.backend else { return };
        let (devices, traffic) = (backend.devices(), backend.traffic());
        self.update_state(|state| (state.devices, state.traffic) = (devices, traffic));
    }

    fn report(&mut self, report: SyncReport, took: Duration) {
        let noticed = std::mem::replace(&mut self.noticed, "an audit".to_owned());
        let mut events = Vec::new();
        if report.drifted > 0 {
            events.push(NetworkEvent::Repaired { objects: report.drifted, noticed: noticed.clone() });
        }
        {
            let known = &self.state().passes;
            events.extend(added(&report.failed, &known.failed).cloned().map(NetworkEvent::ObjectFailed));
            let unreachable = added(&report.unreachable, &known.unreachable);
            events.extend(unreachable.cloned().map(NetworkEvent::PeerUnreachable));
        }
        events.into_iter().for_each(|event| self.emit(event));
        let now = self.last_pass.into_std();
        self.update_state(|state| state.passes.add(report, noticed, took, now));
    }

    fn become_ready(&mut self, config: &Arc<NetworkConfig>) {
        let (Some(backend), Some(own)) = (&self.backend, &self.own) else {
            return;
        };
        let is_new = self.running.borrow().as_ref().is_none_or(|running| running.lease.subnet != own.subnet);
        if self.are_peers_known() && is_new {
            let running = Running { lease: own.clone(), mtu: backend.mtu(), config: Arc::clone(config) };
            self.update_state(|state| state.ready = true);
            self.options.manager.host_ready(own);
            self.running.send_replace(Some(running));
            self.emit(NetworkEvent::Ready);
        }
    }

    /// Removes everything from the host and releases the lease.
    pub(crate) async fn remove(&mut self) -> Result<(), NetworkError> {
        let removed = self.backend.take().map_or(Ok(()), |mut backend| backend.remove());
        let Some(own) = self.own.take() else {
            return Ok(removed?);
        };
        let released = self.options.manager.release(&own).await;
        removed?;
        match released {
            // Another host or program already took or removed the lease.
            Err(ManagerError::Registry(RegistryError::Gone(_) | RegistryError::Changed(_))) | Ok(()) => {
                Ok(())
            }
            Err(error) => Err(NetworkError::Release(error)),
        }
    }

    /// Records the end of the network, and wakes the handles that wait. The first end counts.
    pub(crate) fn end(&self, ended: Ended) {
        if self.progress.borrow().ended.is_some() {
            return;
        }
        self.update_state(|state| state.ended = Some(ended.to_string()));
        self.progress.send_modify(|progress| progress.ended = Some(ended));
    }

    fn emit(&self, event: NetworkEvent) {
        tracing::trace!(?event, "event");
        self.update_state(|state| state.record_error(&event, Instant::now().into_std()));
        // An error means that there is no receiver.
        let _ = self.events.send(event);
    }

    fn emit_failure(&self, object: String, error: &BackendError) {
        let reason = crate::chain(error);
        self.emit(NetworkEvent::ObjectFailed(ObjectFailure::new(object, reason)));
    }

    /// Changes the parameters of a network that is ready.
    fn update_running(&self, change: impl FnOnce(&mut Running)) {
        self.running.send_if_modified(|running| running.as_mut().map(change).is_some());
    }

    fn update_state(&self, change: impl FnOnce(&mut NetworkState)) {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Locks the state for reading. The guard must be dropped before the next write.
    fn state(&self) -> RwLockReadGuard<'_, NetworkState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end(Ended::Dropped);
    }
}

/// Waits until a time that may have passed. The timer alone would wait for the end of the current millisecond.
async fn not_before(time: Instant) {
    if Instant::now() < time {
        tokio::time::sleep_until(time).await;
    }
}

/// Waits until a time, or forever without one.
async fn until(time: Option<std::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Returns the items that weren't known before.
fn added<'a, T: Ord>(items: &'a [T], known: &[T]) -> impl Iterator<Item = &'a T> {
    let known: BTreeSet<&T> = known.iter().collect();
    items.iter().filter(move |item| !known.contains(item))
}

/// Returns true if retrying doesn't help. A store that refuses may be repaired meanwhile.
fn is_final(error: &ManagerError) -> bool {
    matches!(error, ManagerError::OutOfSubnets(_))
}
