//! A backend in memory that keeps all promises, or breaks one on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use flannel_core::{
    Backend, BackendAttrs, BackendError, DeviceFacts, Dirty, ExternalInterface, Json, Lease, NetworkConfig,
    ObjectFailure, OpenBackend, OpenRequest, PeerFailure, PeerSet, PeerTraffic, Plan, PlanRequest,
    PlannedChange, SubnetKey, SyncReport, SyncRequest, TrafficCounters, TrafficStatus,
};
use tokio::sync::Notify;

/// A promise that the backend breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    IgnoresMovedPeers,
    KeepsStalePeers,
    IgnoresDirtyHint,
    RewritesExisting,
    WipesOnOpen,
    RemovesBeforeComplete,
    RemovesForeign,
    ReportsUnreachableOnce,
    OmitsUnreachable,
    CountsStalePeers,
    StopsAtFailure,
    ReportsFailureOnce,
    OmitsPendingPeer,
    NeverRetries,
    RetriesWithoutBackoff,
    IgnoresDrift,
    RepairsOnlyOnDirtyAll,
    ChangesAttrsOnRestart,
    IgnoresHeaderInMtu,
    AcceptsAnyOption,
    CreatesDeviceBeforeValidation,
    KeepsOldMtu,
    KeepsOldAddresses,
    RemovesOnDrop,
    LeavesDevice,
    LeavesPeers,
    PlanWrites,
    PlanIgnoresExisting,
    DescribesWrongDevice,
    IgnoresReconfigure,
    LeavesOldDevice,
    AppliesInvalidReconfigure,
}

use Defect::*;

/// A host with the backend. Clones share it.
#[derive(Clone)]
pub(crate) struct DefectiveBackend {
    defect: Option<Defect>,
    host: Arc<Host>,
}

#[derive(Default)]
struct Host {
    state: Mutex<State>,
    drift: Notify,
}

/// The objects on the host.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) peers: BTreeMap<SubnetKey, Ipv4Addr>,
    pub(crate) foreign: Vec<String>,
    pub(crate) blocked: BTreeSet<SubnetKey>,
    devices: BTreeSet<String>,
    addresses: BTreeSet<SubnetKey>,
    opened: u32,
}

const DEVICE: &str = "toy0";
const OTHER_DEVICE: &str = "toy1";

impl DefectiveBackend {
    pub(crate) fn new(defect: Option<Defect>) -> Self {
        Self { defect, host: Arc::default() }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.host.state.lock().unwrap()
    }

    pub(crate) fn all_objects(&self) -> Vec<String> {
        let state = self.state();
        let mut objects = state.foreign.clone();
        objects.extend(state.devices.iter().map(|device| format!("device {device}")));
        objects.extend(state.addresses.iter().map(|subnet| format!("address {subnet}")));
        objects.extend(state.peers.iter().map(|(subnet, public)| format!("peer {subnet} at {public}")));
        objects
    }

    pub(crate) fn remove_peer(&self, subnet: SubnetKey) {
        self.state().peers.remove(&subnet);
        self.host.drift.notify_one();
    }

    fn is(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    /// Returns the address of a peer if this backend reaches it.
    fn address_of(lease: &Lease) -> Option<Ipv4Addr> {
        lease.attrs.public.v4.filter(|_| lease.attrs.backend_type.as_str() == "toy")
    }

    fn unreachable(&self, peers: &PeerSet) -> Vec<PeerFailure> {
        let unreachable =
            peers.iter().filter(|lease| Self::address_of(lease).is_none() && !self.is(OmitsUnreachable));
        unreachable.map(|lease| PeerFailure::new(lease.subnet, "it uses another backend")).collect()
    }
}

impl OpenBackend for DefectiveBackend {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        let mut state = self.state();
        if self.is(CreatesDeviceBeforeValidation) {
            state.devices.insert(DEVICE.to_owned());
        }
        let device = self.device(request.config)?;
        state.devices = [device.to_owned()].into();
        state.opened += 1;
        if self.is(WipesOnOpen) {
            state.peers.clear();
        }
        if self.is(RemovesForeign) {
            state.foreign.pop();
        }
        let generation = if self.is(ChangesAttrsOnRestart) { state.opened } else { 1 };
        Ok(Box::new(Opened {
            backend: self.clone(),
            generation,
            device,
            mtu: self.mtu(request.external),
            left: BTreeMap::new(),
            failures: BTreeMap::new(),
            reported: BTreeSet::new(),
        }))
    }

    fn plan(&self, request: PlanRequest<'_>) -> Result<Plan, BackendError> {
        let mut state = self.state();
        let mut plan = Plan::default();
        for lease in request.peers.iter() {
            let Some(address_of) = Self::address_of(lease) else { continue };
            if state.peers.get(&lease.subnet) != Some(&address_of) || self.is(PlanIgnoresExisting) {
                plan.changes.push(PlannedChange::put(format!("peer {}", lease.subnet), None));
            }
            if self.is(PlanWrites) {
                state.peers.insert(lease.subnet, address_of);
            }
        }
        plan.unreachable = self.unreachable(request.peers);
        Ok(plan)
    }
}

impl DefectiveBackend {
    /// Returns the device name that a config sets.
    fn device(&self, config: &NetworkConfig) -> Result<&'static str, BackendError> {
        let options = config.backend.options.as_str();
        if options.contains("large") && !self.is(AcceptsAnyOption) {
            return Err(BackendError::Config { backend: "toy", reason: "Size must be a number".to_owned() });
        }
        Ok(if options.contains(OTHER_DEVICE) { OTHER_DEVICE } else { DEVICE })
    }

    fn mtu(&self, external: &ExternalInterface) -> u32 {
        if self.is(IgnoresHeaderInMtu) { external.mtu + 50 } else { external.mtu - 50 }
    }
}

struct Opened {
    backend: DefectiveBackend,
    generation: u32,
    device: &'static str,
    mtu: u32,
    /// The peers on the host after the last sync.
    left: BTreeMap<SubnetKey, Ipv4Addr>,
    /// How often the write of a peer failed in a row, and when it is retried.
    failures: BTreeMap<SubnetKey, (u32, Instant)>,
    /// The peers that an earlier report named.
    reported: BTreeSet<SubnetKey>,
}

#[async_trait]
impl Backend for Opened {
    fn attrs(&self) -> BackendAttrs {
        let data = Json::parse(&self.generation.to_string()).ok();
        BackendAttrs::new("toy".to_owned().into()).with_data(data)
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }

    fn update_interface(&mut self, external: &ExternalInterface) -> Result<(), BackendError> {
        if !self.backend.is(KeepsOldMtu) {
            self.mtu = self.backend.mtu(external);
        }
        Ok(())
    }

    fn reconfigure(&mut self, request: OpenRequest<'_>) -> Result<(), BackendError> {
        if self.backend.is(AppliesInvalidReconfigure) {
            self.mtu += 1;
        }
        let device = self.backend.device(request.config)?;
        if !self.backend.is(IgnoresReconfigure) {
            let mut state = self.backend.state();
            if !self.backend.is(LeavesOldDevice) {
                state.devices.remove(self.device);
            }
            state.devices.insert(device.to_owned());
            self.device = device;
        }
        Ok(())
    }

    fn configure(&mut self, own: &Lease) -> Result<(), BackendError> {
        let mut state = self.backend.state();
        if !self.backend.is(KeepsOldAddresses) {
            state.addresses.clear();
        }
        state.addresses.insert(own.subnet);
        Ok(())
    }

    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
        let backend = self.backend.clone();
        let mut report = SyncReport::default();
        if backend.is(IgnoresDirtyHint) && *request.dirty != Dirty::All {
            return report;
        }
        let state = &mut *backend.state();
        let looks_at_all = *request.dirty == Dirty::All || !backend.is(RepairsOnlyOnDirtyAll);
        if looks_at_all {
            report.drifted =
                self.left.iter().filter(|(subnet, at)| state.peers.get(subnet) != Some(at)).count();
        }
        self.put(request, state, looks_at_all, &mut report);
        let may_remove =
            request.peers.is_complete() || (backend.is(RemovesBeforeComplete) && !request.peers.is_empty());
        if may_remove && !backend.is(KeepsStalePeers) {
            let before = state.peers.len();
            let is_current = |subnet: &SubnetKey| {
                request.peers.peer(subnet).is_some_and(|it| DefectiveBackend::address_of(it).is_some())
            };
            state.peers.retain(|subnet, _| is_current(subnet));
            self.failures.retain(|subnet, _| is_current(subnet));
            report.removed = before - state.peers.len();
        }
        self.left.clone_from(&state.peers);
        self.report_failures(request, &mut report);
        report
    }

    async fn wait_for_drift(&mut self) -> String {
        if self.backend.is(IgnoresDrift) {
            std::future::pending::<()>().await;
        }
        self.backend.host.drift.notified().await;
        "a peer was removed".to_owned()
    }

    fn devices(&self) -> Vec<DeviceFacts> {
        let name = if self.backend.is(DescribesWrongDevice) { "toy9" } else { self.device };
        let mut device = DeviceFacts::new(name, "toy");
        device.mtu = self.mtu;
        vec![device]
    }

    fn traffic(&self) -> Option<Arc<dyn TrafficCounters>> {
        Some(Arc::new(Counters { backend: self.backend.clone(), first: self.left.clone() }))
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        let mut state = self.backend.state();
        if !self.backend.is(LeavesDevice) {
            state.devices.clear();
        }
        state.addresses.clear();
        if !self.backend.is(LeavesPeers) {
            state.peers.clear();
        }
        Ok(())
    }
}

impl Opened {
    /// Adds the missing peers.
    fn put(
        &mut self,
        request: SyncRequest<'_>,
        state: &mut State,
        looks_at_all: bool,
        report: &mut SyncReport,
    ) {
        for lease in request.peers.iter() {
            let (subnet, backend) = (lease.subnet, &self.backend);
            let Some(address_of) = DefectiveBackend::address_of(lease) else { continue };
            let there = state.peers.get(&subnet);
            let is_known = !looks_at_all && self.left.get(&subnet) == Some(&address_of);
            if is_known || (there == Some(&address_of) && !backend.is(RewritesExisting)) {
                continue;
            }
            if there.is_some() && backend.is(IgnoresMovedPeers) {
                continue;
            }
            let (failures, retry_at) = self.failures.get(&subnet).copied().unwrap_or((0, request.now));
            if request.now < retry_at {
                continue;
            }
            if state.blocked.contains(&subnet) || (failures > 0 && backend.is(NeverRetries)) {
                let doublings = if backend.is(RetriesWithoutBackoff) { 0 } else { failures };
                let delay = Duration::from_millis(100 << doublings);
                self.failures.insert(subnet, (failures + 1, request.now + delay));
                if backend.is(StopsAtFailure) {
                    break;
                }
                continue;
            }
            self.failures.remove(&subnet);
            state.peers.insert(subnet, address_of);
            report.written += 1;
        }
    }

    /// Adds unreachable peers and failed writes to the report.
    fn report_failures(&mut self, request: SyncRequest<'_>, report: &mut SyncReport) {
        report.unreachable = self.backend.unreachable(request.peers);
        if self.backend.is(ReportsUnreachableOnce) {
            report.unreachable.retain(|failure| self.reported.insert(failure.peer));
        }
        for (peer, (_, retry_at)) in &self.failures {
            let (peer, reason) = (*peer, "operation not permitted".to_owned());
            if self.backend.is(ReportsFailureOnce) && !self.reported.insert(peer) {
                continue;
            }
            report.failed.push(ObjectFailure::new(format!("peer {peer}"), reason.clone()));
            if !self.backend.is(OmitsPendingPeer) {
                report.pending.push(PeerFailure::new(peer, reason));
            }
            let delay = retry_at.saturating_duration_since(request.now);
            report.retry_in = Some(report.retry_in.map_or(delay, |first| first.min(delay)));
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.backend.is(RemovesOnDrop) {
            self.backend.state().peers.clear();
        }
    }
}

struct Counters {
    backend: DefectiveBackend,
    first: BTreeMap<SubnetKey, Ipv4Addr>,
}

impl TrafficCounters for Counters {
    fn total(&self) -> TrafficStatus {
        TrafficStatus::default()
    }

    fn by_peer(&self) -> BTreeMap<SubnetKey, PeerTraffic> {
        let peers = self.backend.state().peers.clone();
        let peers = if self.backend.is(CountsStalePeers) { self.first.clone() } else { peers };
        peers.into_keys().map(|subnet| (subnet, PeerTraffic::default())).collect()
    }
}
