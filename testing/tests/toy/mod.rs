//! A small backend that keeps all promises, or breaks one.

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

/// What a backend does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    IgnoresMovedPeers,
    KeepsWhoLeft,
    LooksOnlyAtAll,
    WritesAgain,
    WipesAtTheStart,
    RemovesEarly,
    RemovesForeign,
    NamesStrangersOnce,
    NamesNoStrangers,
    CountsWhoLeft,
    StopsAtAFailure,
    TellsFailuresOnce,
    NamesNobodyWaiting,
    GivesUp,
    TriesAtTheSamePace,
    NoticesNothing,
    HealsOnlyWhenToldAll,
    SaysAnotherWordEachTime,
    ForgetsItsHeader,
    TakesAnyOption,
    MakesTheDeviceFirst,
    KeepsItsMtu,
    KeepsOldAddresses,
    RemovesWhenDropped,
    LeavesItsDevice,
    LeavesPeers,
    DoesWhatItPlans,
    PlansAllAnew,
    DescribesAnotherDevice,
    KeepsItsConfiguration,
    LeavesItsOldDevice,
    TakesInHalf,
}

use Wrong::*;

/// A host with the backend on it. Clones are one host.
#[derive(Clone)]
pub(crate) struct Toy {
    wrong: Option<Wrong>,
    host: Arc<Host>,
}

#[derive(Default)]
struct Host {
    state: Mutex<State>,
    disturbed: Notify,
}

/// What is on the host.
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

impl Toy {
    pub(crate) fn new(wrong: Option<Wrong>) -> Self {
        Self { wrong, host: Arc::default() }
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

    pub(crate) fn disturb(&self, subnet: SubnetKey) {
        self.state().peers.remove(&subnet);
        self.host.disturbed.notify_one();
    }

    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == Some(wrong)
    }

    /// Where a peer lives that this backend reaches.
    fn place(lease: &Lease) -> Option<Ipv4Addr> {
        lease.attrs.public.v4.filter(|_| lease.attrs.backend_type.as_str() == "toy")
    }

    fn strangers(&self, peers: &PeerSet) -> Vec<PeerFailure> {
        let strangers =
            peers.iter().filter(|lease| Self::place(lease).is_none() && !self.is(NamesNoStrangers));
        strangers.map(|lease| PeerFailure::new(lease.subnet, "it has another backend")).collect()
    }
}

impl OpenBackend for Toy {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        let mut state = self.state();
        if self.is(MakesTheDeviceFirst) {
            state.devices.insert(DEVICE.to_owned());
        }
        let device = self.device(request.config)?;
        state.devices = [device.to_owned()].into();
        state.opened += 1;
        if self.is(WipesAtTheStart) {
            state.peers.clear();
        }
        if self.is(RemovesForeign) {
            state.foreign.pop();
        }
        let word = if self.is(SaysAnotherWordEachTime) { state.opened } else { 1 };
        Ok(Box::new(Opened {
            toy: self.clone(),
            word,
            device,
            mtu: self.mtu(request.external),
            known: BTreeMap::new(),
            failures: BTreeMap::new(),
            told: BTreeSet::new(),
        }))
    }

    fn plan(&self, request: PlanRequest<'_>) -> Result<Plan, BackendError> {
        let mut state = self.state();
        let mut plan = Plan::default();
        for lease in request.peers.iter() {
            let Some(place) = Self::place(lease) else { continue };
            if state.peers.get(&lease.subnet) != Some(&place) || self.is(PlansAllAnew) {
                plan.changes.push(PlannedChange::put(format!("peer {}", lease.subnet), None));
            }
            if self.is(DoesWhatItPlans) {
                state.peers.insert(lease.subnet, place);
            }
        }
        plan.unreachable = self.strangers(request.peers);
        Ok(plan)
    }
}

impl Toy {
    /// The name of the device that a configuration asks for.
    fn device(&self, config: &NetworkConfig) -> Result<&'static str, BackendError> {
        let options = config.backend.options.as_str();
        if options.contains("large") && !self.is(TakesAnyOption) {
            return Err(BackendError::Config { backend: "toy", reason: "Size must be a number".to_owned() });
        }
        Ok(if options.contains(OTHER_DEVICE) { OTHER_DEVICE } else { DEVICE })
    }

    fn mtu(&self, external: &ExternalInterface) -> u32 {
        if self.is(ForgetsItsHeader) { external.mtu + 50 } else { external.mtu - 50 }
    }
}

struct Opened {
    toy: Toy,
    word: u32,
    device: &'static str,
    mtu: u32,
    /// What the backend left on the host.
    known: BTreeMap<SubnetKey, Ipv4Addr>,
    /// How often a peer was refused, and when it is tried again.
    failures: BTreeMap<SubnetKey, (u32, Instant)>,
    /// What was told before.
    told: BTreeSet<SubnetKey>,
}

#[async_trait]
impl Backend for Opened {
    fn attrs(&self) -> BackendAttrs {
        let data = Json::parse(&self.word.to_string()).ok();
        BackendAttrs::new("toy".to_owned().into()).with_data(data)
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }

    fn update_interface(&mut self, external: &ExternalInterface) -> Result<(), BackendError> {
        if !self.toy.is(KeepsItsMtu) {
            self.mtu = self.toy.mtu(external);
        }
        Ok(())
    }

    fn reconfigure(&mut self, request: OpenRequest<'_>) -> Result<(), BackendError> {
        if self.toy.is(TakesInHalf) {
            self.mtu += 1;
        }
        let device = self.toy.device(request.config)?;
        if !self.toy.is(KeepsItsConfiguration) {
            let mut state = self.toy.state();
            if !self.toy.is(LeavesItsOldDevice) {
                state.devices.remove(self.device);
            }
            state.devices.insert(device.to_owned());
            self.device = device;
        }
        Ok(())
    }

    fn configure(&mut self, own: &Lease) -> Result<(), BackendError> {
        let mut state = self.toy.state();
        if !self.toy.is(KeepsOldAddresses) {
            state.addresses.clear();
        }
        state.addresses.insert(own.subnet);
        Ok(())
    }

    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
        let toy = self.toy.clone();
        let mut report = SyncReport::default();
        if toy.is(LooksOnlyAtAll) && *request.dirty != Dirty::All {
            return report;
        }
        let state = &mut *toy.state();
        let looks = *request.dirty == Dirty::All || !toy.is(HealsOnlyWhenToldAll);
        if looks {
            report.drifted =
                self.known.iter().filter(|(subnet, at)| state.peers.get(subnet) != Some(at)).count();
        }
        self.put(request, state, looks, &mut report);
        let all_known = request.peers.is_complete() || (toy.is(RemovesEarly) && !request.peers.is_empty());
        if all_known && !toy.is(KeepsWhoLeft) {
            let before = state.peers.len();
            let stays =
                |subnet: &SubnetKey| request.peers.peer(subnet).is_some_and(|it| Toy::place(it).is_some());
            state.peers.retain(|subnet, _| stays(subnet));
            self.failures.retain(|subnet, _| stays(subnet));
            report.removed = before - state.peers.len();
        }
        self.known.clone_from(&state.peers);
        self.tell(request, &mut report);
        report
    }

    async fn wait_for_drift(&mut self) -> String {
        if self.toy.is(NoticesNothing) {
            std::future::pending::<()>().await;
        }
        self.toy.host.disturbed.notified().await;
        "a peer was disturbed".to_owned()
    }

    fn devices(&self) -> Vec<DeviceFacts> {
        let name = if self.toy.is(DescribesAnotherDevice) { "toy9" } else { self.device };
        let mut device = DeviceFacts::new(name, "toy");
        device.mtu = self.mtu;
        vec![device]
    }

    fn traffic(&self) -> Option<Arc<dyn TrafficCounters>> {
        Some(Arc::new(Counters { toy: self.toy.clone(), first: self.known.clone() }))
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        let mut state = self.toy.state();
        if !self.toy.is(LeavesItsDevice) {
            state.devices.clear();
        }
        state.addresses.clear();
        if !self.toy.is(LeavesPeers) {
            state.peers.clear();
        }
        Ok(())
    }
}

impl Opened {
    /// Puts the peers that are missing.
    fn put(&mut self, request: SyncRequest<'_>, state: &mut State, looks: bool, report: &mut SyncReport) {
        for lease in request.peers.iter() {
            let (subnet, toy) = (lease.subnet, &self.toy);
            let Some(place) = Toy::place(lease) else { continue };
            let there = state.peers.get(&subnet);
            let is_known = !looks && self.known.get(&subnet) == Some(&place);
            if is_known || (there == Some(&place) && !toy.is(WritesAgain)) {
                continue;
            }
            if there.is_some() && toy.is(IgnoresMovedPeers) {
                continue;
            }
            let (failures, again) = self.failures.get(&subnet).copied().unwrap_or((0, request.now));
            if request.now < again {
                continue;
            }
            if state.blocked.contains(&subnet) || (failures > 0 && toy.is(GivesUp)) {
                let doublings = if toy.is(TriesAtTheSamePace) { 0 } else { failures };
                let pause = Duration::from_millis(100 << doublings);
                self.failures.insert(subnet, (failures + 1, request.now + pause));
                if toy.is(StopsAtAFailure) {
                    break;
                }
                continue;
            }
            self.failures.remove(&subnet);
            state.peers.insert(subnet, place);
            report.written += 1;
        }
    }

    /// Says whom it does not reach, and what it could not write.
    fn tell(&mut self, request: SyncRequest<'_>, report: &mut SyncReport) {
        report.unreachable = self.toy.strangers(request.peers);
        if self.toy.is(NamesStrangersOnce) {
            report.unreachable.retain(|failure| self.told.insert(failure.peer));
        }
        for (peer, (_, again)) in &self.failures {
            let (peer, reason) = (*peer, "operation not permitted".to_owned());
            if self.toy.is(TellsFailuresOnce) && !self.told.insert(peer) {
                continue;
            }
            report.failed.push(ObjectFailure::new(format!("peer {peer}"), reason.clone()));
            if !self.toy.is(NamesNobodyWaiting) {
                report.pending.push(PeerFailure::new(peer, reason));
            }
            let pause = again.saturating_duration_since(request.now);
            report.retry_in = Some(report.retry_in.map_or(pause, |first| first.min(pause)));
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.toy.is(RemovesWhenDropped) {
            self.toy.state().peers.clear();
        }
    }
}

struct Counters {
    toy: Toy,
    first: BTreeMap<SubnetKey, Ipv4Addr>,
}

impl TrafficCounters for Counters {
    fn total(&self) -> TrafficStatus {
        TrafficStatus::default()
    }

    fn by_peer(&self) -> BTreeMap<SubnetKey, PeerTraffic> {
        let peers = self.toy.state().peers.clone();
        let peers = if self.toy.is(CountsWhoLeft) { self.first.clone() } else { peers };
        peers.into_keys().map(|subnet| (subnet, PeerTraffic::default())).collect()
    }
}
