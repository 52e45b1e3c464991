//! A backend in memory that records its calls and fails on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use flannel_core::{
    Backend, BackendAttrs, BackendError, BackendType, Backoff, ExternalInterface, Json, Lease, LeaseAttrs,
    ObjectFailure, OpenBackend, OpenRequest, PeerFailure, Plan, PlanRequest, PlannedChange, SubnetKey,
    SyncReport, SyncRequest,
};
use tokio::sync::Notify;

/// A host with a fake backend, and its opener. Clones share the host.
///
/// The host's objects are its peers. They outlive the opened backend, as kernel objects do, so a restart finds them.
#[derive(Clone, Debug, Default)]
pub struct FakeBackend {
    host: Arc<Host>,
}

/// A recorded call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendCall {
    /// The backend was opened, with the attributes of the earlier lease if there was one.
    Opened(Option<LeaseAttrs>),
    /// The external interface was updated; its name.
    InterfaceUpdated(String),
    /// The backend was reconfigured; its name in the config.
    Reconfigured(String),
    /// The backend was configured for the lease of this subnet.
    Configured(SubnetKey),
    /// A sync.
    Synced {
        /// The number of objects written.
        written: usize,
        /// The number of objects removed.
        removed: usize,
    },
    /// The backend was removed.
    Removed,
}

#[derive(Debug, Default)]
struct Host {
    state: Mutex<State>,
    disturbed: Notify,
}

#[derive(Debug, Default)]
struct State {
    peers: BTreeMap<SubnetKey, LeaseAttrs>,
    /// The peers after the last sync.
    left: BTreeSet<SubnetKey>,
    refused: BTreeSet<SubnetKey>,
    unusable: Option<String>,
    /// How many calls of `open` and of `configure` will still fail.
    refusals: (usize, usize),
    calls: Vec<BackendCall>,
}

impl FakeBackend {
    /// Creates a host without peers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the peers on the host.
    #[must_use]
    pub fn peers(&self) -> BTreeMap<SubnetKey, LeaseAttrs> {
        self.host.state().peers.clone()
    }

    /// Returns the calls so far, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<BackendCall> {
        self.host.state().calls.clone()
    }

    /// Returns the number of syncs that wrote or removed objects.
    #[must_use]
    pub fn syncs_with_writes(&self) -> usize {
        let idle = BackendCall::Synced { written: 0, removed: 0 };
        let calls = self.calls();
        calls.iter().filter(|call| matches!(call, BackendCall::Synced { .. }) && **call != idle).count()
    }

    /// Adds a peer to the host, as if an earlier run had left it.
    pub fn add_leftover(&self, subnet: SubnetKey, attrs: LeaseAttrs) {
        self.host.state().peers.insert(subnet, attrs);
    }

    /// Removes a peer from the host, which the backend notices as drift.
    pub fn disturb(&self, subnet: SubnetKey) {
        self.host.state().peers.remove(&subnet);
        self.host.disturbed.notify_one();
    }

    /// Makes the writes of a peer fail, or succeed again.
    pub fn refuse(&self, subnet: SubnetKey, refuse: bool) {
        let mut state = self.host.state();
        if refuse {
            state.refused.insert(subnet);
        } else {
            state.refused.remove(&subnet);
        }
    }

    /// Makes this many calls of `open` and of `configure` fail with a kernel error.
    pub fn fail_start(&self, opening: usize, making_ready: usize) {
        self.host.state().refusals = (opening, making_ready);
    }

    /// Makes `open` and `update_interface` fail from now on.
    pub fn fail_open(&self, reason: &str) {
        self.host.state().unusable = Some(reason.to_owned());
    }
}

impl OpenBackend for FakeBackend {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        let mut state = self.host.state();
        state.calls.push(BackendCall::Opened(request.before.cloned()));
        if let Some(reason) = &state.unusable {
            return Err(BackendError::Host(reason.clone()));
        }
        refuse(&mut state.refusals.0)?;
        let host = Arc::clone(&self.host);
        let (mtu, name) = (mtu(request.external), request.config.backend.name.clone());
        Ok(Box::new(Opened { host, mtu, name, failures: BTreeMap::new() }))
    }

    fn plan(&self, request: PlanRequest<'_>) -> Result<Plan, BackendError> {
        let there = self.peers();
        let missing = request.peers.iter().filter(|lease| there.get(&lease.subnet) != Some(&lease.attrs));
        let stale =
            there.keys().filter(|subnet| request.peers.is_complete() && request.peers.peer(subnet).is_none());
        let mut plan = Plan::default();
        plan.changes.extend(missing.map(|lease| PlannedChange::put(format!("peer {}", lease.subnet), None)));
        plan.changes.extend(stale.map(|subnet| PlannedChange::remove(format!("peer {subnet}"))));
        Ok(plan)
    }
}

/// The overhead of the fake encapsulation is 50 bytes.
fn mtu(external: &ExternalInterface) -> u32 {
    external.mtu.saturating_sub(50)
}

struct Opened {
    host: Arc<Host>,
    mtu: u32,
    /// The backend's name in the config.
    name: String,
    /// How often the write of a peer failed in a row, and when it is retried.
    failures: BTreeMap<SubnetKey, (u32, Instant)>,
}

/// The delays before a failed write is retried.
const AGAIN: Backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(30) };

#[async_trait]
impl Backend for Opened {
    fn attrs(&self) -> BackendAttrs {
        BackendAttrs::new(BackendType::from(self.name.clone()))
            .with_data(Json::parse(r#"{"Fake":true}"#).ok())
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }

    fn update_interface(&mut self, external: &ExternalInterface) -> Result<(), BackendError> {
        let mut state = self.host.state();
        if let Some(reason) = &state.unusable {
            return Err(BackendError::Host(reason.clone()));
        }
        state.calls.push(BackendCall::InterfaceUpdated(external.name.clone()));
        self.mtu = mtu(external);
        Ok(())
    }

    fn reconfigure(&mut self, request: OpenRequest<'_>) -> Result<(), BackendError> {
        let mut state = self.host.state();
        if let Some(reason) = &state.unusable {
            return Err(BackendError::Host(reason.clone()));
        }
        refuse(&mut state.refusals.0)?;
        state.calls.push(BackendCall::Reconfigured(request.config.backend.name.clone()));
        self.name.clone_from(&request.config.backend.name);
        Ok(())
    }

    fn configure(&mut self, own: &Lease) -> Result<(), BackendError> {
        let mut state = self.host.state();
        refuse(&mut state.refusals.1)?;
        state.calls.push(BackendCall::Configured(own.subnet));
        Ok(())
    }

    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
        let mut report = SyncReport::default();
        let state = &mut *self.host.state();
        report.drifted = state.left.iter().filter(|subnet| !state.peers.contains_key(subnet)).count();
        for lease in request.peers.iter() {
            let subnet = lease.subnet;
            if state.peers.get(&subnet) == Some(&lease.attrs) {
                continue;
            }
            let (failures, again) = self.failures.get(&subnet).copied().unwrap_or((0, request.now));
            if request.now < again {
                continue;
            }
            if state.refused.contains(&subnet) {
                let again = request.now + AGAIN.delay(failures, 0.0);
                self.failures.insert(subnet, (failures.saturating_add(1), again));
                continue;
            }
            self.failures.remove(&subnet);
            state.peers.insert(subnet, lease.attrs.clone());
            report.written += 1;
        }
        if request.peers.is_complete() {
            let before = state.peers.len();
            state.peers.retain(|subnet, _| request.peers.peer(subnet).is_some());
            report.removed = before - state.peers.len();
        }
        state.left = state.peers.keys().copied().collect();
        self.failures.retain(|subnet, _| request.peers.peer(subnet).is_some());
        for (peer, (_, again)) in &self.failures {
            let (peer, reason) = (*peer, "operation not permitted".to_owned());
            report.failed.push(ObjectFailure::new(format!("peer {peer}"), reason.clone()));
            report.pending.push(PeerFailure::new(peer, reason));
            let pause = again.saturating_duration_since(request.now);
            report.retry_in = [report.retry_in, Some(pause)].into_iter().flatten().min();
        }
        let (written, removed) = (report.written, report.removed);
        state.calls.push(BackendCall::Synced { written, removed });
        report
    }

    async fn wait_for_drift(&mut self) -> String {
        self.host.disturbed.notified().await;
        "a peer was removed".to_owned()
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        let mut state = self.host.state();
        state.peers.clear();
        state.left.clear();
        state.calls.push(BackendCall::Removed);
        Ok(())
    }
}

fn refuse(times: &mut usize) -> Result<(), BackendError> {
    let Some(left) = times.checked_sub(1) else { return Ok(()) };
    *times = left;
    Err(BackendError::Kernel { object: "cannot make the device".to_owned(), source: "no such device".into() })
}

impl Host {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
