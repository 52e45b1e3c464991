//! The state of a network, shared by its event loop and its handles.
//!
//! The loop is the only writer. It also keeps the peers here, so that a status needs no copy of them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::NetworkConfig;
use crate::damping::Damping;
use crate::event::{NetworkEvent, Phase};
use crate::external::ExternalInterface;
use crate::facts::{DeviceFacts, TrafficCounters};
use crate::lease::{Lease, Term};
use crate::manager::LeaseManager;
use crate::peers::{Dirty, PeerChange};
use crate::registry::BadRecord;
use crate::report::{ObjectFailure, PeerFailure, SyncReport};
use crate::status::{
    ConfigStatus, ExternalStatus, KernelStatus, LeaseStatus, NetworkStatus, PastError, PeerState, PeerStatus,
    PeersStatus, RegistryStatus, Repair, Waiting, conditions,
};
use crate::subnet::SubnetKey;

/// The state of a network.
pub(crate) struct NetworkState {
    pub(crate) started: Instant,
    pub(crate) ready: bool,
    /// Why the task ended.
    pub(crate) ended: Option<String>,
    pub(crate) waiting: Option<(Phase, String)>,
    pub(crate) config: Option<Arc<NetworkConfig>>,
    /// Why the registry's current configuration isn't applied.
    pub(crate) config_refused: Option<String>,
    pub(crate) external: ExternalInterface,
    /// Why the external interface can't be used.
    pub(crate) external_lost: Option<String>,
    pub(crate) mtu: Option<u32>,
    pub(crate) devices: Vec<DeviceFacts>,
    pub(crate) own: OwnLease,
    /// Why the peers come from a cache.
    pub(crate) peers_from_cache: Option<String>,
    /// Why the registry is unavailable, and since when.
    pub(crate) unavailable: Option<(String, Instant)>,
    pub(crate) bad_records: Vec<BadRecord>,
    /// The peers, including the held ones.
    pub(crate) damping: Damping,
    /// The peers that changed since the last pass.
    pub(crate) dirty: Dirty,
    pub(crate) passes: Passes,
    pub(crate) traffic: Option<Arc<dyn TrafficCounters>>,
    errors: VecDeque<(Instant, u64, String)>,
    /// The longest time between two passes.
    audit_every: Duration,
}

/// The state of the host's own lease.
#[derive(Debug, Default)]
pub(crate) struct OwnLease {
    pub(crate) lease: Option<Lease>,
    pub(crate) lost: Option<String>,
    pub(crate) renewal: Option<Instant>,
    pub(crate) end: Option<Instant>,
    pub(crate) disputes: u64,
    pub(crate) last_dispute: Option<String>,
}

/// The results of the passes.
#[derive(Debug, Default)]
pub(crate) struct Passes {
    count: u64,
    took: Duration,
    ended: Option<Instant>,
    written: u64,
    removed: u64,
    repaired: u64,
    last_repair: Option<(Instant, usize, String)>,
    pub(crate) failed: Vec<ObjectFailure>,
    pub(crate) pending: Vec<PeerFailure>,
    pub(crate) unreachable: Vec<PeerFailure>,
}

impl Passes {
    /// Adds the result of a pass.
    pub(crate) fn add(&mut self, report: SyncReport, noticed: String, took: Duration, now: Instant) {
        self.count += 1;
        self.took = took;
        self.ended = Some(now);
        self.written += report.written as u64;
        self.removed += report.removed as u64;
        self.repaired += report.drifted as u64;
        if report.drifted > 0 {
            self.last_repair = Some((now, report.drifted, noticed));
        }
        self.failed = report.failed;
        self.pending = report.pending;
        self.unreachable = report.unreachable;
    }

    fn status(&self, now: Instant) -> KernelStatus {
        KernelStatus {
            passes: self.count,
            last_pass_took: self.took,
            last_pass_age: self.ended.map(|ended| now.saturating_duration_since(ended)),
            written: self.written,
            removed: self.removed,
            repaired: self.repaired,
            last_repair: self.last_repair.as_ref().map(|(at, objects, noticed)| Repair {
                age: now.saturating_duration_since(*at),
                objects: *objects,
                noticed: noticed.clone(),
            }),
            failed: self.failed.clone(),
        }
    }
}

impl NetworkState {
    pub(crate) fn new(
        external: ExternalInterface,
        damping: Damping,
        audit_every: Duration,
        now: Instant,
    ) -> Self {
        Self {
            started: now,
            ready: false,
            ended: None,
            waiting: None,
            config: None,
            config_refused: None,
            external,
            external_lost: None,
            mtu: None,
            devices: Vec::new(),
            own: OwnLease::default(),
            peers_from_cache: None,
            unavailable: None,
            bad_records: Vec::new(),
            damping,
            dirty: Dirty::All,
            passes: Passes::default(),
            traffic: None,
            errors: VecDeque::new(),
            audit_every,
        }
    }

    /// Starts over with the peers, for a host that holds this lease.
    pub(crate) fn restart(&mut self, own: Lease, damping: Damping) {
        self.own.lease = Some(own);
        self.own.lost = None;
        self.peers_from_cache = None;
        self.damping = damping;
        self.dirty = Dirty::All;
        (self.passes.pending, self.passes.unreachable) = (Vec::new(), Vec::new());
    }

    /// Records a changed peer for the next pass.
    pub(crate) fn record_peer(&mut self, change: &PeerChange) {
        match change {
            PeerChange::Held { was_gone: false, .. } => {}
            PeerChange::Joined(_)
            | PeerChange::Changed(_)
            | PeerChange::Held { .. }
            | PeerChange::Left(_) => {
                self.dirty.add(change.subnet());
            }
        }
    }

    /// Records the error that an event reports, if it reports one.
    pub(crate) fn record_error(&mut self, event: &NetworkEvent, now: Instant) {
        let Some(what) = error_in(event) else { return };
        let known = self.errors.iter().position(|(.., known)| *known == what);
        let times = known.and_then(|known| self.errors.remove(known)).map_or(0, |(_, times, _)| times);
        if self.errors.len() == NetworkStatus::PAST_ERRORS {
            self.errors.pop_front();
        }
        self.errors.push_back((now, times.saturating_add(1), what));
    }

    /// Builds the status without each peer.
    pub(crate) fn summary(&self, manager: &dyn LeaseManager, now: Instant) -> NetworkStatus {
        let age = |at: Instant| now.saturating_duration_since(at);
        let left = |at: Instant| at.saturating_duration_since(now);
        let (store, contact) = (manager.store(), manager.last_contact());
        let mut status = NetworkStatus {
            age: age(self.started),
            ready: self.ready,
            ended: self.ended.clone(),
            waiting_for: self.waiting.clone().map(|(phase, reason)| Waiting { phase, reason }),
            network: self
                .config
                .as_deref()
                .map(|config| ConfigStatus { refused: self.config_refused.clone(), ..config_status(config) }),
            lease: self.own.lease.as_ref().map(|lease| LeaseStatus {
                subnet: lease.subnet,
                public: lease.attrs.public,
                backend: lease.attrs.backend_type.to_string(),
                node: lease.attrs.node,
                name: manager.host_name(),
                revision: lease.revision,
                permanent: lease.term == Term::Permanent,
                lost: self.own.lost.clone(),
                renewal_in: self.own.renewal.map(left),
                ends_in: self.own.end.map(left),
                disputes: self.own.disputes,
                last_dispute: self.own.last_dispute.clone(),
            }),
            registry: RegistryStatus {
                name: manager.describe(),
                id: store.id,
                addresses: store.addresses,
                revision: contact.and_then(|contact| contact.revision),
                last_contact_age: contact.map(|contact| age(contact.at)),
                unavailable: self.unavailable.as_ref().map(|(reason, _)| reason.clone()),
                unavailable_for: self.unavailable.as_ref().map(|(_, since)| age(*since)),
                complete: self.damping.peers().is_complete(),
                peers_from_cache: self.peers_from_cache.clone(),
            },
            external: ExternalStatus { lost: self.external_lost.clone(), ..external_status(&self.external) },
            devices: self.devices.clone(),
            mtu: self.mtu,
            kernel: self.passes.status(now),
            peers: self.peer_counts(),
            bad_records: self.bad_records.clone(),
            traffic: self.traffic.as_ref().map(|traffic| traffic.total()),
            errors: self
                .errors
                .iter()
                .map(|(at, times, what)| PastError { age: age(*at), times: *times, what: what.clone() })
                .collect(),
            ..NetworkStatus::default()
        };
        status.conditions = conditions(&status, self.audit_every);
        status
    }

    fn peer_counts(&self) -> PeersStatus {
        let open = self.not_programmed();
        let count = |state| open.values().filter(|(other, _)| *other == state).count();
        let known = self.damping.peers().len();
        let (pending, unreachable) = match self.dirty {
            Dirty::All => (known, 0),
            Dirty::Some(_) => (count(PeerState::Pending), count(PeerState::Unreachable)),
        };
        PeersStatus {
            known,
            programmed: known.saturating_sub(pending).saturating_sub(unreachable),
            pending,
            unreachable,
            held: self.damping.held(),
            mesh: None,
            each: None,
        }
    }

    /// Returns the peers that aren't programmed, and why.
    fn not_programmed(&self) -> BTreeMap<SubnetKey, (PeerState, &str)> {
        let mut open = BTreeMap::new();
        if let Dirty::Some(dirty) = &self.dirty {
            let known = dirty.iter().filter(|subnet| self.damping.peers().peer(subnet).is_some());
            open.extend(known.map(|subnet| (*subnet, (PeerState::Pending, UNTRIED))));
        }
        let kinds =
            [(PeerState::Pending, &self.passes.pending), (PeerState::Unreachable, &self.passes.unreachable)];
        for (state, failures) in kinds {
            open.extend(failures.iter().map(|failure| (failure.peer, (state, &*failure.reason))));
        }
        open.retain(|subnet, _| self.damping.peers().peer(subnet).is_some());
        open
    }

    /// Returns the status of each peer.
    pub(crate) fn each_peer(&self, mut names: BTreeMap<SubnetKey, String>, now: Instant) -> Vec<PeerStatus> {
        let (open, all_open) = (self.not_programmed(), self.dirty == Dirty::All);
        let traffic = self.traffic.as_ref().map(|traffic| traffic.by_peer());
        let mut facts = self.traffic.as_ref().map(|traffic| traffic.peer_facts()).unwrap_or_default();
        let status = |lease: &Arc<Lease>| {
            let subnet = lease.subnet;
            let (state, reason) = match open.get(&subnet) {
                Some((state, reason)) => (*state, Some((*reason).to_owned())),
                None if all_open => (PeerState::Pending, Some(UNTRIED.to_owned())),
                None => (PeerState::Programmed, None),
            };
            PeerStatus {
                subnet,
                public: lease.attrs.public,
                backend: lease.attrs.backend_type.to_string(),
                node: lease.attrs.node,
                name: names.remove(&subnet),
                known_for: now.saturating_duration_since(self.damping.joined(&subnet).unwrap_or(now)),
                state,
                reason,
                held: self.damping.is_held(&subnet),
                traffic: traffic.as_ref().and_then(|traffic| traffic.get(&subnet).copied()),
                backend_facts: facts.remove(&subnet),
                probe: None,
            }
        };
        self.damping.peers().iter().map(status).collect()
    }
}

/// The reason for a peer that no pass has handled yet.
const UNTRIED: &str = "no pass has handled it yet";

fn config_status(config: &NetworkConfig) -> ConfigStatus {
    ConfigStatus {
        networks: config.pools().map(|pool| pool.network().to_string()).collect(),
        backend: config.backend.name.clone(),
        nftables: config.enable_nftables,
        refused: None,
    }
}

fn external_status(external: &ExternalInterface) -> ExternalStatus {
    let ExternalInterface { name, index, mtu, v4, v6, public } = external.clone();
    ExternalStatus { name, index, mtu, v4, v6, public, lost: None }
}

/// Returns the error that an event reports, if it reports one.
fn error_in(event: &NetworkEvent) -> Option<String> {
    Some(match event {
        NetworkEvent::Waiting { phase, reason, .. } => format!("{phase}: {reason}"),
        NetworkEvent::ConfigRefused(reason) => format!("network config refused: {reason}"),
        NetworkEvent::RenewalFailed { reason, .. } => format!("lease renewal failed: {reason}"),
        NetworkEvent::LeaseDisputed(what) => what.clone(),
        NetworkEvent::LeaseLost(reason) => format!("lease lost: {reason}"),
        NetworkEvent::ExternalLost(reason) => format!("external interface lost: {reason}"),
        NetworkEvent::PeersFromCache(reason) => format!("running with cached peers: {reason}"),
        NetworkEvent::PeersHeld { peers, .. } => {
            format!("{peers} peers disappeared at once (suspected registry fault)")
        }
        NetworkEvent::BadRecord(record) => record.to_string(),
        NetworkEvent::ObjectFailed(failure) => failure.to_string(),
        NetworkEvent::PeerUnreachable(failure) => failure.to_string(),
        NetworkEvent::RegistryUnavailable(reason) => format!("registry unavailable: {reason}"),
        NetworkEvent::Configured(_)
        | NetworkEvent::Reconfigured(_)
        | NetworkEvent::LeaseAcquired(_)
        | NetworkEvent::RenewalIn(_)
        | NetworkEvent::LeasePermanent
        | NetworkEvent::LeaseRenewed(_)
        | NetworkEvent::ExternalChanged(_)
        | NetworkEvent::LeasePublished(_)
        | NetworkEvent::MtuChanged(_)
        | NetworkEvent::Ready
        | NetworkEvent::PeersConfirmed
        | NetworkEvent::HoldEnded { .. }
        | NetworkEvent::PeerJoined(_)
        | NetworkEvent::PeerChanged(_)
        | NetworkEvent::PeerLeft(_)
        | NetworkEvent::PeerHeld(_)
        | NetworkEvent::Repaired { .. }
        | NetworkEvent::RegistryAvailable
        | NetworkEvent::Missed(_) => return None,
    })
}
