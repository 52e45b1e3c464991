//! The backend of the configuration, and for a time another one beside it: a network goes from `udp` to `vxlan`, or
//! back, host by host, and meanwhile its hosts reach each other.
//!
//! | this host's lease says | a peer's says | packets go |
//! |---|---|---|
//! | `vxlan` | `vxlan` | through the tunnel: a route for each such peer |
//! | `vxlan` | `udp` | by UDP, both ways: its device has the route of the whole network, which the others are longer than |
//! | `udp` | `udp`, or `vxlan` of a host that carries both | by UDP, both ways |
//!
//! So a host of `vxlan` carries UDP as long as some peer's lease says `udp`, and a little longer; a host of `udp` need not
//! carry VXLAN. One that goes back to `udp` keeps sending through the tunnel for a moment, until its peers have heard of
//! it and carry UDP, and then still takes for a while what late ones send.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use flannel_core::{
    Backend, BackendAttrs, BackendConfig, BackendError, BackendType, DeviceFacts, Dirty, ExternalInterface,
    Json, Lease, NetworkConfig, OpenRequest, PeerSet, SubnetKey, SyncReport, SyncRequest, TrafficCounters,
    chain,
};
use tracing::{info, warn};

use super::Backends;

/// So long after the last host went, packets of late ones are still taken. A registry tells all hosts within a second,
/// or, where it was away, when it is back.
const LINGER: Duration = Duration::from_secs(60);

/// So long a host that goes back to `udp` sends through the tunnel: its peers hear of it and open their UDP meanwhile.
const HANDOVER: Duration = Duration::from_secs(3);

/// After this pause the other backend is tried again if it could not be opened.
const RETRY: Duration = Duration::from_secs(30);

/// What carries the traffic of one host.
pub(super) struct MigratingBackend {
    opener: Backends,
    main: Box<dyn Backend>,
    beside: Option<Beside>,
    config: NetworkConfig,
    external: ExternalInterface,
    own: Option<Lease>,
    /// How UDP was carried last: its port is in no lease.
    udp: BackendConfig,
    /// The peers whose leases say `udp`.
    udp_peers: BTreeSet<SubnetKey>,
    /// Why the other backend could not be opened, and when that was.
    failed: Option<(Instant, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Vxlan,
    Udp,
    Other,
}

/// The other backend.
struct Beside {
    backend: Box<dyn Backend>,
    /// Since when nothing needs it.
    idle: Option<Instant>,
    /// Whether it reaches no peer any more, and only takes what comes.
    only_takes: bool,
}

impl Kind {
    fn of(config: &NetworkConfig) -> Self {
        match config.backend.name.to_lowercase().as_str() {
            "vxlan" => Self::Vxlan,
            "udp" => Self::Udp,
            _ => Self::Other,
        }
    }
}

impl MigratingBackend {
    pub(super) fn open(opener: Backends, request: OpenRequest<'_>) -> Result<Self, BackendError> {
        let main = opener.one(request)?;
        let options = Json::parse("{}").map_err(|error| BackendError::Host(error.to_string()))?;
        let mut backend = Self {
            opener,
            main,
            beside: None,
            config: request.config.clone(),
            external: request.external.clone(),
            own: None,
            udp: BackendConfig::new("udp", options),
            udp_peers: BTreeSet::new(),
            failed: None,
        };
        backend.note(request);
        Ok(backend)
    }

    fn kind(&self) -> Kind {
        Kind::of(&self.config)
    }

    /// Notes what the backend works by now.
    fn note(&mut self, request: OpenRequest<'_>) {
        self.config = request.config.clone();
        self.external = request.external.clone();
        if self.kind() == Kind::Udp {
            self.udp = request.config.backend.clone();
        }
    }

    /// Puts another backend in the place of the one that runs.
    fn become_another(&mut self, request: OpenRequest<'_>) -> Result<(), BackendError> {
        let kind = Kind::of(request.config);
        let is_roll = matches!((self.kind(), kind), (Kind::Udp, Kind::Vxlan) | (Kind::Vxlan, Kind::Udp));
        if !is_roll {
            let next = self.opener.one(request)?;
            self.leave_beside();
            let mut before = std::mem::replace(&mut self.main, next);
            if let Err(error) = before.remove() {
                warn!("Something of backend {} stays: {}", self.config.backend.name, chain(&error));
            }
            return Ok(());
        }
        let next = match self.beside.take() {
            None => self.opener.one(request)?,
            Some(mut beside) => match beside.backend.reconfigure(request) {
                Ok(()) => beside.backend,
                Err(error) => {
                    self.beside = Some(beside);
                    return Err(error);
                }
            },
        };
        let before = std::mem::replace(&mut self.main, next);
        self.beside = Some(Beside { backend: before, idle: None, only_takes: false });
        Ok(())
    }

    /// Lets the other backend go. What it cannot remove is no reason not to go on.
    fn leave_beside(&mut self) {
        if let Some(mut beside) = self.beside.take()
            && let Err(error) = beside.backend.remove()
        {
            warn!("Something of the backend before stays: {}", chain(&error));
        }
    }

    /// Takes in who the peers are that carry UDP only. Costs what changed.
    fn look(&mut self, peers: &PeerSet, dirty: &Dirty) {
        match dirty {
            Dirty::All => {
                let all = peers.iter().filter(|lease| is_udp(lease)).map(|lease| lease.subnet);
                self.udp_peers = all.collect();
            }
            Dirty::Some(subnets) => {
                for subnet in subnets {
                    match peers.peer(subnet).is_some_and(|lease| is_udp(lease)) {
                        true => self.udp_peers.insert(*subnet),
                        false => self.udp_peers.remove(subnet),
                    };
                }
            }
        }
    }

    /// Opens UDP beside the tunnel, if peers want it and it is not there.
    fn open_udp(&mut self, now: Instant) {
        let waits = self.failed.as_ref().is_some_and(|(at, _)| now.saturating_duration_since(*at) < RETRY);
        let Some(own) = self.own.clone().filter(|_| self.beside.is_none() && !waits) else { return };
        let mut config = self.config.clone();
        config.backend = self.udp.clone();
        let request = OpenRequest::new(&config, &self.external);
        let opened = self.opener.one(request).and_then(|mut udp| udp.configure(&own).map(|()| udp));
        match opened {
            Ok(backend) => {
                let peers = self.udp_peers.len();
                info!("Carrying UDP beside VXLAN: the leases of {peers} hosts say so");
                self.failed = None;
                self.beside = Some(Beside { backend, idle: None, only_takes: false });
            }
            Err(error) => {
                let reason = chain(&error);
                if self.failed.as_ref().is_none_or(|(_, told)| *told != reason) {
                    warn!("UDP cannot be carried beside VXLAN: {reason}");
                }
                self.failed = Some((now, reason));
            }
        }
    }

    /// Has the other backend do its part, and lets it go when its time is over.
    fn sync_beside(&mut self, request: SyncRequest<'_>, report: &mut SyncReport) {
        let kind = self.kind();
        let Some(beside) = self.beside.as_mut() else { return };
        let is_needed = kind == Kind::Vxlan && !(self.udp_peers.is_empty() && request.peers.is_complete());
        let act = decide(is_needed, kind, beside.idle, request.now);
        beside.idle = act.idle;
        report.retry_in = [report.retry_in, act.look_in].into_iter().flatten().min();
        if act.is_over {
            self.leave_beside();
            info!("Carrying {} alone from now on", self.config.backend.name);
            return;
        }
        let mut done = match act.only_takes {
            false => beside.backend.sync(request),
            true => {
                let (nobody, mut request) = (PeerSet::all_of(Vec::<Lease>::new()), request);
                request.peers = &nobody;
                if !beside.only_takes {
                    request.dirty = &Dirty::All;
                }
                beside.backend.sync(request)
            }
        };
        beside.only_takes = act.only_takes;
        match kind {
            Kind::Vxlan => {
                let udp_peers = &self.udp_peers;
                report.unreachable.retain(|failure| !udp_peers.contains(&failure.peer));
                done.unreachable.retain(|failure| udp_peers.contains(&failure.peer));
                done.pending.retain(|failure| udp_peers.contains(&failure.peer));
            }
            // Whom it does not reach, the first one does.
            Kind::Udp | Kind::Other => (done.unreachable, done.pending) = (Vec::new(), Vec::new()),
        }
        report.merge(done);
    }
}

/// Tells whether a host is reached by UDP beside a tunnel. Upstream's leases of this backend name none.
pub(super) fn is_udp(lease: &Lease) -> bool {
    lease.attrs.backend_type == BackendType::UNNAMED || lease.attrs.backend_type.as_str() == "udp"
}

/// What becomes of the other backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Act {
    idle: Option<Instant>,
    only_takes: bool,
    is_over: bool,
    /// When this is to be decided again.
    look_in: Option<Duration>,
}

/// Decides what becomes of the backend beside one of this kind, given since when it was not needed.
fn decide(is_needed: bool, kind: Kind, idle: Option<Instant>, now: Instant) -> Act {
    if is_needed {
        return Act { idle: None, only_takes: false, is_over: false, look_in: None };
    }
    let since = idle.unwrap_or(now);
    let time = now.saturating_duration_since(since);
    let only_takes = kind == Kind::Udp && time >= HANDOVER;
    let next = if kind == Kind::Udp && !only_takes { HANDOVER } else { LINGER };
    Act { idle: Some(since), only_takes, is_over: time >= LINGER, look_in: next.checked_sub(time) }
}

#[async_trait]
impl Backend for MigratingBackend {
    fn attrs(&self) -> BackendAttrs {
        self.main.attrs()
    }

    /// While packets may go either way, what fits both.
    fn mtu(&self) -> u32 {
        let beside = self.beside.as_ref().filter(|_| self.kind() == Kind::Vxlan);
        beside.map_or(u32::MAX, |beside| beside.backend.mtu()).min(self.main.mtu())
    }

    fn update_interface(&mut self, external: &ExternalInterface) -> Result<(), BackendError> {
        self.main.update_interface(external)?;
        self.external = external.clone();
        if self.beside.as_mut().is_some_and(|beside| beside.backend.update_interface(external).is_err()) {
            // It is opened again where it is needed.
            self.leave_beside();
        }
        Ok(())
    }

    fn reconfigure(&mut self, request: OpenRequest<'_>) -> Result<(), BackendError> {
        let (before, now) = (&self.config.backend.name, &request.config.backend.name);
        if now.eq_ignore_ascii_case(before) {
            self.main.reconfigure(request)?;
            // It is opened again where it is needed, for the network as it is now.
            self.leave_beside();
        } else {
            self.become_another(request)?;
        }
        self.note(request);
        Ok(())
    }

    fn configure(&mut self, own: &Lease) -> Result<(), BackendError> {
        self.own = Some(own.clone());
        if let Some(beside) = &mut self.beside
            && let Err(error) = beside.backend.configure(own)
        {
            warn!("The backend before cannot be made ready: {}", chain(&error));
        }
        self.main.configure(own)
    }

    fn sync(&mut self, mut request: SyncRequest<'_>) -> SyncReport {
        self.opener.tell(request.peers, request.dirty);
        let mut report = self.main.sync(request);
        self.look(request.peers, request.dirty);
        let has_news = self.beside.is_none();
        if self.kind() == Kind::Vxlan && !self.udp_peers.is_empty() {
            self.open_udp(request.now);
            if self.failed.is_some() {
                report.retry_in = Some(report.retry_in.map_or(RETRY, |pause| pause.min(RETRY)));
            }
        }
        // One that was just opened knows nobody yet.
        if has_news {
            request.dirty = &Dirty::All;
        }
        self.sync_beside(request, &mut report);
        report
    }

    async fn wait_for_drift(&mut self) -> String {
        match &mut self.beside {
            None => self.main.wait_for_drift().await,
            Some(beside) => tokio::select! {
                what = self.main.wait_for_drift() => what,
                what = beside.backend.wait_for_drift() => what,
            },
        }
    }

    fn devices(&self) -> Vec<DeviceFacts> {
        let beside = self.beside.iter().flat_map(|beside| beside.backend.devices());
        self.main.devices().into_iter().chain(beside).collect()
    }

    fn traffic(&self) -> Option<Arc<dyn TrafficCounters>> {
        self.main.traffic().or_else(|| self.beside.as_ref()?.backend.traffic())
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        let beside = self.beside.take().map_or(Ok(()), |mut beside| beside.backend.remove());
        self.main.remove().and(beside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_backend_stays_as_long_as_it_is_needed_and_a_minute_longer() {
        let start = Instant::now();
        let needed = decide(true, Kind::Vxlan, Some(start), start + LINGER * 2);
        assert_eq!(needed, Act { idle: None, only_takes: false, is_over: false, look_in: None });
        let first = decide(false, Kind::Vxlan, None, start);
        assert_eq!((first.idle, first.only_takes, first.is_over), (Some(start), false, false));
        assert_eq!(first.look_in, Some(LINGER));
        let later = decide(false, Kind::Vxlan, first.idle, start + LINGER / 2);
        assert_eq!((later.only_takes, later.is_over, later.look_in), (false, false, Some(LINGER / 2)));
        assert!(decide(false, Kind::Vxlan, first.idle, start + LINGER).is_over);
    }

    #[test]
    fn a_host_that_goes_back_to_udp_sends_through_the_tunnel_for_a_moment_and_takes_for_a_minute() {
        let start = Instant::now();
        let first = decide(false, Kind::Udp, None, start);
        assert_eq!((first.only_takes, first.look_in), (false, Some(HANDOVER)));
        let then = decide(false, Kind::Udp, first.idle, start + HANDOVER);
        assert_eq!((then.only_takes, then.is_over, then.look_in), (true, false, Some(LINGER - HANDOVER)));
        assert!(decide(false, Kind::Udp, first.idle, start + LINGER).is_over);
    }
}
