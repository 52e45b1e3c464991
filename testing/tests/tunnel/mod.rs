//! A tunnel with keys, roaming endpoints and a port per family, on a host in memory.
//!
//! It stands for backends such as WireGuard: its secret outlives restarts in the state directory, its peers have facts of
//! their own, and it carries IPv4 and IPv6 over an IPv6 underlay.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use flannel_core::{
    Backend, BackendAttrs, BackendError, Backoff, DeviceFacts, ExternalInterface, IpFamilies, Json, Lease,
    NetworkConfig, ObjectFailure, OpenBackend, OpenRequest, PeerFacts, PeerFailure, PeerSet, PeerTraffic,
    Plan, PlanRequest, PlannedChange, SubnetKey, SyncReport, SyncRequest, TrafficCounters, TrafficStatus,
};
use tokio::sync::Notify;

/// A host with tunnels. Clones share it; each opens the backend on it.
#[derive(Clone, Default)]
pub(crate) struct Host {
    state: Arc<Mutex<State>>,
    drift: Arc<Notify>,
}

/// The objects on the host.
#[derive(Default)]
struct State {
    devices: BTreeMap<String, Device>,
    addresses: BTreeSet<SubnetKey>,
    peers: BTreeMap<SubnetKey, Peer>,
    foreign: BTreeSet<String>,
    blocked: BTreeSet<SubnetKey>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    port: u16,
    mtu: u32,
    public_key: String,
}

struct Peer {
    public_key: String,
    /// The endpoint of the lease.
    configured: SocketAddr,
    /// The endpoint of the last packet, if it differs.
    roamed: Option<SocketAddr>,
    last_handshake: Option<Instant>,
}

/// The delays before a failed write is retried.
const RETRY: Backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(30) };

/// The bytes that an IPv6 header, a UDP header and the encryption add to a packet.
const OVERHEAD: u32 = 80;

/// The file of the secret key in the state directory.
pub(crate) const SECRET: &str = "secret-key";

impl Host {
    pub(crate) fn objects(&self) -> Vec<String> {
        let state = self.state();
        let mut objects: Vec<_> = state.foreign.iter().cloned().collect();
        objects.extend(state.devices.iter().map(|(name, device)| format!("device {name} {device:?}")));
        objects.extend(state.addresses.iter().map(|subnet| format!("address {subnet}")));
        let peers = state.peers.iter();
        objects.extend(
            peers.map(|(subnet, peer)| format!("peer {subnet} {} {}", peer.public_key, peer.configured)),
        );
        objects
    }

    /// Returns the endpoint to which the host sends the packets for each subnet.
    pub(crate) fn endpoints(&self) -> BTreeMap<SubnetKey, SocketAddr> {
        let state = self.state();
        state.peers.iter().map(|(subnet, peer)| (*subnet, peer.roamed.unwrap_or(peer.configured))).collect()
    }

    /// Completes a handshake with a peer whose packets come from this endpoint.
    pub(crate) fn handshake(&self, subnet: SubnetKey, from: SocketAddr) {
        let mut state = self.state();
        let peer = state.peers.get_mut(&subnet).unwrap();
        peer.roamed = (from != peer.configured).then_some(from);
        peer.last_handshake = Some(Instant::now());
    }

    pub(crate) fn add_foreign(&self, object: &str) {
        self.state().foreign.insert(object.to_owned());
    }

    pub(crate) fn remove_peer(&self, subnet: SubnetKey) {
        self.state().peers.remove(&subnet);
        self.drift.notify_one();
    }

    pub(crate) fn set_blocked(&self, subnet: SubnetKey, blocked: bool) {
        let mut state = self.state();
        if blocked {
            state.blocked.insert(subnet);
        } else {
            state.blocked.remove(&subnet);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// Returns the data of a lease with this public key.
pub(crate) fn data(public_key: &str) -> Json {
    Json::parse(&format!(r#"{{"PublicKey":"{public_key}"}}"#)).unwrap()
}

/// Returns the key and endpoint of a peer, or why it cannot be reached.
fn reach(lease: &Lease, ports: &Ports) -> Result<(String, SocketAddr), &'static str> {
    if lease.attrs.backend_type.as_str() != "tunnel" {
        return Err("it uses another backend");
    }
    let address = lease.attrs.public.v6.ok_or("it has no IPv6 address")?;
    let port = if lease.subnet.v4().is_some() { ports.v4 } else { ports.v6 };
    let data = lease.attrs.backend_data.as_ref().ok_or("it has no public key")?;
    let key = data.object().and_then(|data| data.string("PublicKey")).ok().flatten();
    Ok((key.ok_or("it has no public key")?, SocketAddr::new(address.into(), port)))
}

/// The ports of the backend's options: one per family of the overlay.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Ports {
    v4: u16,
    v6: u16,
}

impl Ports {
    fn parse(config: &NetworkConfig) -> Result<Self, BackendError> {
        let invalid = |reason: String| BackendError::Config { backend: "tunnel", reason };
        let options = config.backend.options.object().map_err(|error| invalid(error.to_string()))?;
        let port = |name: &str, default: u16| {
            let port = options.unsigned(name).map_err(|error| invalid(format!("{name}: {error}")))?;
            let port = port.map_or(Ok(default), u16::try_from);
            port.map_err(|_| invalid(format!("{name} must be at most 65535")))
        };
        Ok(Self { v4: port("Port", 51820)?, v6: port("PortV6", 51821)? })
    }
}

/// Reads the secret key, or creates it on the first start.
fn secret_key(state_dir: Option<&Path>) -> Result<String, BackendError> {
    let directory = state_dir.ok_or_else(|| {
        BackendError::Host("the tunnel needs a state directory for its secret key".to_owned())
    })?;
    let path = directory.join(SECRET);
    let failed = |error: std::io::Error| BackendError::Host(format!("{}: {error}", path.display()));
    if path.exists() {
        return std::fs::read_to_string(&path).map_err(failed);
    }
    let secret = format!("{:016x}", fastrand::u64(..));
    let file = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(secret.as_bytes())).map_err(failed)?;
    Ok(secret)
}

fn public_key(secret: &str) -> String {
    let mut hasher = DefaultHasher::new();
    secret.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn mtu(external: &ExternalInterface) -> u32 {
    external.mtu - OVERHEAD
}

/// Returns the devices that a config asks for.
fn devices(config: &NetworkConfig, ports: Ports, mtu: u32, public_key: &str) -> BTreeMap<String, Device> {
    let device = |port| Device { port, mtu, public_key: public_key.to_owned() };
    let families = config.families();
    let v4 = families.v4.then(|| ("tunnel4".to_owned(), device(ports.v4)));
    let v6 = families.v6.then(|| ("tunnel6".to_owned(), device(ports.v6)));
    v4.into_iter().chain(v6).collect()
}

impl OpenBackend for Host {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        let ports = Ports::parse(request.config)?;
        let public_key = public_key(&secret_key(request.state_dir)?);
        let mtu = mtu(request.external);
        self.state().devices = devices(request.config, ports, mtu, &public_key);
        let (host, config) = (self.clone(), request.config.clone());
        Ok(Box::new(Tunnel {
            host,
            config,
            ports,
            mtu,
            public_key,
            left: BTreeSet::new(),
            failures: BTreeMap::new(),
        }))
    }

    /// The tunnel carries both families over IPv6.
    fn underlay(&self, _: &NetworkConfig) -> IpFamilies {
        IpFamilies::V6
    }

    fn plan(&self, request: PlanRequest<'_>) -> Result<Plan, BackendError> {
        let ports = Ports::parse(request.config)?;
        let state = self.state();
        let mut plan = Plan::default();
        for lease in request.peers.iter() {
            match reach(lease, &ports) {
                Ok(desired) if !state.has_peer(lease.subnet, &desired) => {
                    plan.changes.push(PlannedChange::put(format!("peer {}", lease.subnet), None));
                }
                Ok(_) => {}
                Err(reason) => plan.unreachable.push(PeerFailure::new(lease.subnet, reason)),
            }
        }
        Ok(plan)
    }
}

impl State {
    /// Returns whether a peer has this key and configured endpoint, wherever it roamed.
    fn has_peer(&self, subnet: SubnetKey, (key, endpoint): &(String, SocketAddr)) -> bool {
        self.peers.get(&subnet).is_some_and(|peer| peer.public_key == *key && peer.configured == *endpoint)
    }
}

struct Tunnel {
    host: Host,
    config: NetworkConfig,
    ports: Ports,
    mtu: u32,
    public_key: String,
    /// The peers on the host after the last sync.
    left: BTreeSet<SubnetKey>,
    /// How often the write of a peer failed in a row, and when it is retried.
    failures: BTreeMap<SubnetKey, (u32, Instant)>,
}

impl Tunnel {
    fn apply_devices(&self) {
        self.host.state().devices = devices(&self.config, self.ports, self.mtu, &self.public_key);
    }

    /// Removes the peers that have left.
    fn remove_stale(&mut self, peers: &PeerSet, state: &mut State, report: &mut SyncReport) {
        let is_current =
            |subnet: &SubnetKey| peers.peer(subnet).is_some_and(|lease| reach(lease, &self.ports).is_ok());
        self.failures.retain(|subnet, _| is_current(subnet));
        if peers.is_complete() {
            let before = state.peers.len();
            state.peers.retain(|subnet, _| is_current(subnet));
            report.removed = before - state.peers.len();
        }
    }
}

#[async_trait]
impl Backend for Tunnel {
    fn attrs(&self) -> BackendAttrs {
        BackendAttrs::new("tunnel".to_owned().into()).with_data(Some(data(&self.public_key)))
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }

    fn update_interface(&mut self, external: &ExternalInterface) -> Result<(), BackendError> {
        self.mtu = mtu(external);
        self.apply_devices();
        Ok(())
    }

    fn reconfigure(&mut self, request: OpenRequest<'_>) -> Result<(), BackendError> {
        self.ports = Ports::parse(request.config)?;
        self.config = request.config.clone();
        self.apply_devices();
        Ok(())
    }

    fn configure(&mut self, own: &Lease) -> Result<(), BackendError> {
        self.host.state().addresses = [own.subnet].into();
        Ok(())
    }

    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
        let host = self.host.clone();
        let state = &mut *host.state();
        let mut report = SyncReport::default();
        report.drifted = self.left.iter().filter(|subnet| !state.peers.contains_key(subnet)).count();
        for lease in request.peers.iter() {
            let subnet = lease.subnet;
            let desired = match reach(lease, &self.ports) {
                Ok(desired) if state.has_peer(subnet, &desired) => continue,
                Ok(desired) => desired,
                Err(reason) => {
                    report.unreachable.push(PeerFailure::new(subnet, reason));
                    continue;
                }
            };
            let (failures, retry_at) = self.failures.get(&subnet).copied().unwrap_or((0, request.now));
            if request.now < retry_at {
                continue;
            }
            if state.blocked.contains(&subnet) {
                let retry_at = request.now + RETRY.delay(failures, 0.0);
                self.failures.insert(subnet, (failures + 1, retry_at));
                continue;
            }
            self.failures.remove(&subnet);
            let (public_key, configured) = desired;
            state.peers.insert(subnet, Peer { public_key, configured, roamed: None, last_handshake: None });
            report.written += 1;
        }
        self.remove_stale(request.peers, state, &mut report);
        for (peer, (_, retry_at)) in &self.failures {
            let reason = "operation not permitted";
            report.failed.push(ObjectFailure::new(format!("peer {peer}"), reason));
            report.pending.push(PeerFailure::new(*peer, reason));
            let delay = retry_at.saturating_duration_since(request.now);
            report.retry_in = [report.retry_in, Some(delay)].into_iter().flatten().min();
        }
        self.left = state.peers.keys().copied().collect();
        report
    }

    async fn wait_for_drift(&mut self) -> String {
        self.host.drift.notified().await;
        "a peer was removed".to_owned()
    }

    fn devices(&self) -> Vec<DeviceFacts> {
        let describe = |(name, device): (&String, &Device)| {
            let mut facts = DeviceFacts::new(name.clone(), "tunnel");
            (facts.mtu, facts.port) = (device.mtu, Some(device.port));
            facts
        };
        self.host.state().devices.iter().map(describe).collect()
    }

    fn traffic(&self) -> Option<Arc<dyn TrafficCounters>> {
        Some(Arc::new(self.host.clone()))
    }

    /// Keeps the secret key, so that peers recognize the host after it joins again.
    fn remove(&mut self) -> Result<(), BackendError> {
        let mut state = self.host.state();
        state.devices.clear();
        state.addresses.clear();
        state.peers.clear();
        Ok(())
    }
}

impl TrafficCounters for Host {
    fn total(&self) -> TrafficStatus {
        TrafficStatus::default()
    }

    fn by_peer(&self) -> BTreeMap<SubnetKey, PeerTraffic> {
        self.state().peers.keys().map(|subnet| (*subnet, PeerTraffic::default())).collect()
    }

    fn peer_facts(&self) -> BTreeMap<SubnetKey, PeerFacts> {
        let describe = |(subnet, peer): (&SubnetKey, &Peer)| {
            let mut facts = PeerFacts::default();
            facts.endpoint = Some(peer.roamed.unwrap_or(peer.configured));
            facts.last_handshake_age = peer.last_handshake.map(|at| at.elapsed());
            (*subnet, facts)
        };
        self.state().peers.iter().map(describe).collect()
    }
}
