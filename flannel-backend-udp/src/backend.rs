//! The backend: a TUN device, a socket for each address family, a peer table, and the threads between them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{
    Backend, BackendAttrs, BackendDescriptor, BackendError, BackendType, DataPath, DescriptorStore,
    DeviceFacts, Dirty, ExternalInterface, KernelFeature, Lease, MigrationRole, NetworkConfig, ObjectFailure,
    OpenBackend, OpenRequest, PeerFailure, Plan, PlanRequest, SyncReport, SyncRequest, TrafficCounters,
    TunnelPort,
};
use flannel_dataplane::PathCheck;
use flannel_netlink::{IpFamily, Monitor, Namespace, Netlink, Notification};
use ipnet::IpNet;

use crate::config::UdpConfig;
use crate::counters::UdpCounters;
use crate::device::{Device, Overlay};
use crate::listeners::{Listeners, local_addresses};
use crate::peers::{PeerTable, Routing, SharedRouting};
use crate::routing::{self, Hops};
use crate::store::{DescriptorSlot, OptionalStore};
use crate::worker::{BrokenParts, FailureSignal, Offloads, PathParts, Workers};

/// Opens the UDP backend in a network namespace.
///
/// ```no_run
/// use flannel_backend_udp::OpenUdp;
/// use flannel_netlink::Namespace;
///
/// let open = OpenUdp::new(Namespace::current()?);
/// let counters = open.counters();
/// // … pass `open` to a network, and read the counters at any time.
/// println!("{:?}", counters.read());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct OpenUdp {
    namespace: Namespace,
    offloads: Offloads,
    counters: UdpCounters,
    store: OptionalStore,
    accepts_vxlan: bool,
}

impl OpenUdp {
    /// Creates an opener for the namespace of the external interface.
    #[must_use]
    pub fn new(namespace: Namespace) -> Self {
        Self {
            namespace,
            offloads: Offloads::default(),
            counters: UdpCounters::default(),
            store: OptionalStore::default(),
            accepts_vxlan: false,
        }
    }

    /// Accepts hosts with the backend type `vxlan` as peers if they have a node ID: these carry UDP too while a network
    /// migrates between the two backends. Upstream hosts have no node ID and carry only one.
    #[must_use]
    pub fn with_vxlan_peers(self) -> Self {
        Self { accepts_vxlan: true, ..self }
    }

    /// Stores the device and sockets in `store`, and restores those that still fit. Others are created again.
    #[must_use]
    pub fn with_store(self, store: Arc<dyn DescriptorStore>) -> Self {
        Self { store: OptionalStore(Some(store)), ..self }
    }

    /// Sets which offloads the packet path may use; all by default.
    #[must_use]
    pub fn with_offloads(self, offloads: Offloads) -> Self {
        Self { offloads, ..self }
    }

    /// Returns the counters of the backends that this opens.
    #[must_use]
    pub fn counters(&self) -> UdpCounters {
        self.counters.clone()
    }
}

impl BackendDescriptor for OpenUdp {
    fn name(&self) -> &'static str {
        "udp"
    }

    fn options(&self) -> &'static [&'static str] {
        &["Port"]
    }

    fn tunnel_ports(&self, config: &NetworkConfig) -> Vec<TunnelPort> {
        let port = UdpConfig::parse(&config.backend).unwrap_or_default().port;
        vec![TunnelPort::udp(port, config.families())]
    }

    fn data_path(
        &self,
        config: &NetworkConfig,
        external: &ExternalInterface,
    ) -> Result<DataPath, BackendError> {
        UdpConfig::parse(&config.backend)?;
        Ok(DataPath::new(mtu(config, external)))
    }

    fn kernel_features(&self) -> &'static [KernelFeature] {
        &[KernelFeature::Tun]
    }

    /// Upstream's leases for this backend name no type.
    fn has_lease(&self, lease: &Lease) -> bool {
        let backend_type = &lease.attrs.backend_type;
        *backend_type == BackendType::UNNAMED || backend_type.as_str() == self.name()
    }

    fn migration_role(&self) -> Option<MigrationRole> {
        Some(MigrationRole::Fallback)
    }

    fn stores_descriptors(&self) -> bool {
        true
    }
}

impl OpenBackend for OpenUdp {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        Ok(Box::new(Udp::open(self, request)?))
    }

    fn plan(&self, _: PlanRequest<'_>) -> Result<Plan, BackendError> {
        let reason =
            "the udp backend has no plan: its device ends with its process, and each start creates it again";
        Err(BackendError::Host(reason.to_owned()))
    }
}

/// The UDP backend of one network on one host.
#[derive(Debug)]
struct Udp {
    /// First, so that the threads end before what they use.
    workers: Option<Workers>,
    namespace: Namespace,
    netlink: Netlink,
    /// `None` if it failed and could not be reopened yet.
    monitor: Option<Monitor>,
    config: NetworkConfig,
    port: u16,
    requested: Offloads,
    accepts_vxlan: bool,
    device: Device,
    listeners: Listeners,
    store: OptionalStore,
    exchange: Arc<SharedRouting>,
    counters: UdpCounters,
    failure: Arc<FailureSignal>,
    own: Option<Lease>,
    /// Whether enough peers are known to move packets.
    knows_peers: bool,
    hops: Hops,
    unreachable: Vec<PeerFailure>,
    /// The checks of the routes to peers, one for each family.
    paths: [PathCheck; 2],
    /// Whether the path to any peer may have changed.
    are_paths_stale: bool,
    is_stale: bool,
}

/// The pause before a failed operation is retried.
const RETRY: Duration = Duration::from_secs(1);

/// The bytes of a datagram's headers: UDP (8) and IP (20 or 40).
const OVERHEAD_V4: u32 = 28;
const OVERHEAD_V6: u32 = 48;

impl Udp {
    fn open(open: &OpenUdp, request: OpenRequest<'_>) -> Result<Self, BackendError> {
        let OpenRequest { config, external, .. } = request;
        config.backend.check_type("udp")?;
        let options = UdpConfig::parse(&config.backend)?;
        tracing::info!("UDP config: Port={}", options.port);
        let (namespace, store) = (open.namespace.clone(), open.store.or(request.descriptors));
        let local = local_addresses(config, external, options.port)?;
        // The monitor opens before the first read, so that no change is missed.
        let mut netlink = Netlink::open_in(&namespace).map_err(no_netlink)?;
        let monitor = Some(open_monitor(&namespace, &netlink)?);
        let mtu = mtu(config, external);
        let networks: Vec<_> = config.pools().map(|pool| pool.network()).collect();
        let restored = Device::restore(&store, &namespace, &mut netlink, &networks, mtu, open.offloads);
        let is_restored = restored.is_some();
        let device = restored.map_or_else(|| Device::open(&namespace, None, mtu, open.offloads), Ok)?;
        let listeners = Listeners::new(namespace.clone(), store.clone(), local, open.offloads);
        let mut udp = Self {
            workers: None,
            namespace,
            netlink,
            monitor,
            config: config.clone(),
            port: options.port,
            requested: open.offloads,
            accepts_vxlan: open.accepts_vxlan,
            device,
            listeners,
            store,
            exchange: Arc::default(),
            counters: open.counters.clone(),
            failure: Arc::default(),
            own: None,
            knows_peers: false,
            hops: Hops::new(),
            unreachable: Vec::new(),
            paths: IpFamily::BOTH.map(PathCheck::new),
            are_paths_stale: true,
            is_stale: true,
        };
        udp.listen()?;
        if is_restored {
            tracing::info!("restored device {}", udp.device.name);
        } else {
            udp.store.keep(DescriptorSlot::Tun, udp.device.tun.as_fd());
        }
        Ok(udp)
    }

    /// Repairs device, sockets and threads; returns the number of repairs.
    fn repair(&mut self) -> Result<usize, BackendError> {
        let broken = self.workers.as_ref().map(Workers::broken).unwrap_or_default();
        if broken != BrokenParts::default() {
            self.workers = None;
        }
        let mut changes = self.repair_device(broken.device)?;
        if broken.sockets {
            self.listeners.close();
        }
        self.listen()?;
        if self.start()? {
            changes += usize::from(broken != BrokenParts::default());
        }
        self.is_stale = false;
        Ok(changes)
    }

    fn repair_device(&mut self, is_broken: bool) -> Result<usize, BackendError> {
        let is_there = self.device.exists(&mut self.netlink)?;
        if !is_there || is_broken {
            // The threads hold the old device open.
            self.workers = None;
            if is_there {
                self.delete_device()?;
            }
            let Device { name, mtu, overlays, .. } = &self.device;
            let opened = Device::open(&self.namespace, Some(name), *mtu, self.requested)?;
            self.store.keep(DescriptorSlot::Tun, opened.tun.as_fd());
            self.device = Device { overlays: overlays.clone(), ..opened };
        }
        let changes = self.device.ensure(&mut self.netlink, &self.namespace)?;
        Ok(changes + usize::from(!is_there))
    }

    /// Opens the missing sockets.
    fn listen(&mut self) -> Result<(), BackendError> {
        if self.listeners.is_complete() {
            return Ok(());
        }
        self.workers = None;
        self.listeners.listen()?;
        self.set_filters();
        Ok(())
    }

    /// Starts the threads unless they run or no peers are known yet, which would drop the packets that have been queued
    /// since a restart. Returns whether it started them.
    fn start(&mut self) -> Result<bool, BackendError> {
        if self.workers.is_some() || !self.knows_peers {
            return Ok(false);
        }
        let parts = PathParts {
            tun: Arc::clone(&self.device.tun),
            sockets: self.listeners.sockets(),
            exchange: Arc::clone(&self.exchange),
            counters: self.counters.clone(),
            failure: Arc::clone(&self.failure),
            offloads: self.device.offloads,
        };
        let started = Workers::start(&self.namespace, &parts).map_err(|source| BackendError::Kernel {
            object: "failed to start the packet threads".to_owned(),
            source: source.into(),
        })?;
        self.workers = Some(started);
        Ok(true)
    }

    /// Computes the next hops and publishes them if they changed. Returns the numbers of added and removed ones.
    fn update_routing(&mut self, request: SyncRequest<'_>) -> (usize, usize) {
        let Some(own) = &self.own else { return (0, 0) };
        let (mut hops, unreachable) =
            routing::next_hops(&self.config, &own.subnet, self.port, self.accepts_vxlan, request.peers);
        self.unreachable = unreachable;
        self.check_paths(&hops);
        if !request.peers.is_complete() {
            // A peer that isn't listed yet may still exist.
            self.hops.iter().for_each(|(subnet, hop)| {
                hops.entry(*subnet).or_insert(*hop);
            });
        }
        let new = hops.iter().filter(|(subnet, hop)| self.hops.get(subnet) != Some(hop)).count();
        let gone = self.hops.keys().filter(|subnet| !hops.contains_key(subnet)).count();
        let knew_peers = self.knows_peers;
        self.knows_peers |= request.peers.is_complete() || !hops.is_empty();
        if new + gone > 0 || knew_peers != self.knows_peers {
            self.hops = hops;
            self.publish();
        }
        (new, gone)
    }

    /// Reports peers whose packets don't leave this host. Their next hops stay, so that they are reachable once the route is
    /// gone.
    fn check_paths(&mut self, hops: &Hops) {
        if self.are_paths_stale {
            self.paths.iter_mut().for_each(PathCheck::mark_stale);
        }
        self.are_paths_stale = false;
        for (subnet, (peer, endpoint)) in hops {
            // A record with the address that this host uses is an earlier one of its own.
            if self.listeners.local.iter().any(|local| local.ip() == endpoint.ip()) {
                continue;
            }
            let netlink = &mut self.netlink;
            let problem = self.paths.iter_mut().find_map(|p| p.problem(netlink, *subnet, endpoint.ip()));
            self.unreachable.extend(problem.map(|reason| PeerFailure::new(*peer, reason)));
        }
    }

    /// Publishes the next hops and the host's own addresses to the packet path.
    fn publish(&mut self) {
        let own = |is_v4: bool| {
            let mut own = self.device.overlays.iter().map(Overlay::own);
            own.find(|address| address.is_ipv4() == is_v4)
        };
        let own_v4 = own(true).and_then(|own| if let IpAddr::V4(v4) = own { Some(v4) } else { None });
        let own_v6 = own(false).and_then(|own| if let IpAddr::V6(v6) = own { Some(v6) } else { None });
        let peers = PeerTable::new(routing::entries(&self.hops, &self.counters));
        self.exchange.replace(Routing { peers, own_v4, own_v6 });
        let stay: BTreeSet<_> = self.hops.values().map(|(peer, _)| *peer).collect();
        self.counters.retain(|peer| stay.contains(peer));
        self.set_filters();
    }

    fn set_filters(&self) {
        self.listeners.set_filters(&self.exchange.current(), self.knows_peers);
    }

    /// Returns the name of the device in reports.
    fn object_name(&self) -> String {
        format!("device {}", self.device.name)
    }

    fn delete_device(&mut self) -> Result<(), BackendError> {
        self.netlink.delete_link(self.device.index).map_err(|error| BackendError::Kernel {
            object: format!("failed to delete device {}", self.device.name),
            source: error.into(),
        })
    }

    fn reopen_monitor(&mut self, report: &mut SyncReport) {
        if self.monitor.is_none() {
            match open_monitor(&self.namespace, &self.netlink) {
                Ok(monitor) => self.monitor = Some(monitor),
                Err(error) => failed(report, "netlink monitor".to_owned(), &error),
            }
        }
    }
}

#[async_trait]
impl Backend for Udp {
    fn attrs(&self) -> BackendAttrs {
        BackendAttrs::new(BackendType::UNNAMED)
    }

    fn mtu(&self) -> u32 {
        self.device.mtu
    }

    fn update_interface(&mut self, external: &ExternalInterface) -> Result<(), BackendError> {
        let local = local_addresses(&self.config, external, self.port)?;
        // The next pass listens where the host is now.
        self.listeners.local = local;
        self.device.mtu = mtu(&self.config, external);
        self.is_stale = true;
        Ok(())
    }

    /// Keeps the device and the packets in its queue.
    fn reconfigure(&mut self, request: OpenRequest<'_>) -> Result<(), BackendError> {
        let OpenRequest { config, external, .. } = request;
        let (before, now) = (&self.config.backend.name, &config.backend.name);
        if !now.eq_ignore_ascii_case(before) {
            return Err(BackendError::Host(format!(
                "changing the backend from {before} to {now} requires a restart"
            )));
        }
        let port = UdpConfig::parse(&config.backend)?.port;
        let local = local_addresses(config, external, port)?;
        // Open them before anything changes: another process may hold the port.
        let fresh = self.listeners.prepare(&local)?;
        let networks: Vec<_> = config.pools().map(|pool| pool.network()).collect();
        self.device.leave_other_networks(&mut self.netlink, &networks)?;
        self.listeners.switch(fresh, local);
        (self.port, self.config) = (port, config.clone());
        self.device.mtu = mtu(config, external);
        self.is_stale = true;
        Ok(())
    }

    fn configure(&mut self, own: &Lease) -> Result<(), BackendError> {
        let mut overlays = Vec::new();
        for pool in self.config.pools() {
            let network = pool.network();
            let is_v4 = network.addr().is_ipv4();
            let subnet = own.subnet.nets().find(|net| net.addr().is_ipv4() == is_v4).ok_or_else(|| {
                BackendError::Host(format!("lease {} has no subnet in {network}", own.subnet))
            })?;
            overlays.push(Overlay { address: IpNet::from(subnet.network()), network });
        }
        self.device.overlays = overlays;
        self.own = Some(own.clone());
        self.publish();
        self.is_stale = true;
        self.repair().map(drop)
    }

    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
        let mut report = SyncReport::default();
        if self.own.is_none() {
            return report;
        }
        self.reopen_monitor(&mut report);
        let knew_peers = self.knows_peers;
        self.are_paths_stale |= *request.dirty == Dirty::All;
        if *request.dirty != Dirty::NONE || self.are_paths_stale {
            (report.written, report.removed) = self.update_routing(request);
        }
        if knew_peers != self.knows_peers || *request.dirty == Dirty::All || self.is_stale {
            self.is_stale = true;
            match self.repair() {
                Ok(changes) => report.drifted += changes,
                Err(error) => failed(&mut report, self.object_name(), &error),
            }
        }
        report.unreachable.clone_from(&self.unreachable);
        if let Some(failure) = report.failed.iter().find(|failure| failure.object == self.object_name()) {
            // Without the device no peer is reachable.
            let reason = format!("{}: {}", failure.object, failure.reason);
            let peers: BTreeSet<_> = self.hops.values().map(|(peer, _)| *peer).collect();
            let pending = peers.into_iter().map(|peer| PeerFailure::new(peer, reason.clone()));
            report.pending.extend(pending);
        }
        self.counters.kernel_dropped(self.listeners.new_drops());
        report
    }

    async fn wait_for_drift(&mut self) -> String {
        loop {
            let broken = self.failure.wait();
            let what = match &mut self.monitor {
                None => broken.await,
                Some(monitor) => tokio::select! {
                    what = broken => what,
                    notification = monitor.next() => match notification {
                        Ok(notification) => {
                            let drift = read_drift(monitor, notification, &self.device, &mut self.paths);
                            self.are_paths_stale |= drift.path.is_some();
                            match (drift.device, drift.path) {
                                (Some(what), _) => what,
                                (None, Some(what)) => return what,
                                (None, None) => continue,
                            }
                        }
                        Err(error) => {
                            self.monitor = None;
                            format!("the netlink monitor failed: {error}")
                        }
                    },
                },
            };
            self.is_stale = true;
            return what;
        }
    }

    fn devices(&self) -> Vec<DeviceFacts> {
        let mut facts = DeviceFacts::new(&*self.device.name, "tun");
        facts.index = self.device.index;
        facts.mtu = self.device.mtu;
        facts.port = Some(self.port);
        facts.local = self.listeners.local.first().map(SocketAddr::ip);
        vec![facts]
    }

    fn traffic(&self) -> Option<Arc<dyn TrafficCounters>> {
        Some(Arc::new(self.counters.clone()))
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        self.workers = None;
        self.own = None;
        self.listeners.close();
        self.store.remove(DescriptorSlot::Tun);
        self.delete_device()
    }
}

/// The most notifications that one pass consumes, so that a storm doesn't cause a pass for each.
const MAX_NOTIFICATIONS: usize = 4096;

/// What notifications changed.
#[derive(Default)]
struct Drift {
    device: Option<String>,
    /// The route to a peer.
    path: Option<String>,
}

/// Consumes a notification and those queued behind it, and describes the first ones that matter.
fn read_drift(monitor: &mut Monitor, first: Notification, device: &Device, paths: &mut [PathCheck]) -> Drift {
    let mut drift = Drift::default();
    let mut read = |notification: &Notification| {
        drift.device = drift.device.take().or_else(|| device.drift(notification));
        for paths in paths.iter_mut() {
            drift.path = paths.handle(notification).or(drift.path.take());
        }
    };
    read(&first);
    for _ in 0..MAX_NOTIFICATIONS {
        // The next wait returns an error again.
        let Ok(Some(notification)) = monitor.try_next() else { break };
        read(&notification);
    }
    drift
}

fn failed(report: &mut SyncReport, object: String, error: &BackendError) {
    report.failed.push(ObjectFailure::new(object, flannel_core::chain(error)));
    report.retry_in = Some(RETRY);
}

/// Returns the largest packet that fits into a datagram of the external interface's MTU.
fn mtu(config: &NetworkConfig, external: &ExternalInterface) -> u32 {
    external.mtu.saturating_sub(if config.ipv6.is_some() { OVERHEAD_V6 } else { OVERHEAD_V4 })
}

fn open_monitor(namespace: &Namespace, netlink: &Netlink) -> Result<Monitor, BackendError> {
    let mut monitor = Monitor::open_in(namespace).map_err(no_netlink)?;
    monitor.ignore_changes_of(&[netlink.port_id()]).map_err(no_netlink)?;
    Ok(monitor)
}

fn no_netlink(error: flannel_netlink::Error) -> BackendError {
    BackendError::Kernel { object: "failed to open a netlink socket".to_owned(), source: error.into() }
}
