//! The backend: a device, a socket for each family, a table of peers, and the threads between them.

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
use flannel_netlink::{Monitor, Namespace, Netlink, Notification};
use ipnet::IpNet;

use crate::config::UdpConfig;
use crate::counters::UdpCounters;
use crate::device::{Device, Overlay};
use crate::listen::{Listeners, local_addresses};
use crate::peers::{Exchange, PeerTable, Routing};
use crate::routing::{self, Hops};
use crate::store::{Keeper, Slot};
use crate::worker::{Broken, Failure, Offloads, Parts, Workers};

/// Opens the UDP backend in one network namespace.
///
/// ```no_run
/// use flannel_backend_udp::OpenUdp;
/// use flannel_netlink::Namespace;
///
/// let open = OpenUdp::new(Namespace::current()?);
/// let counters = open.counters();
/// // … hand `open` to a network, and read the counters whenever you like.
/// println!("{:?}", counters.read());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct OpenUdp {
    namespace: Namespace,
    offloads: Offloads,
    counters: UdpCounters,
    keeper: Keeper,
    takes_vxlan: bool,
}

impl OpenUdp {
    /// Takes the namespace that the external interface is in.
    #[must_use]
    pub fn new(namespace: Namespace) -> Self {
        Self {
            namespace,
            offloads: Offloads::default(),
            counters: UdpCounters::default(),
            keeper: Keeper::default(),
            takes_vxlan: false,
        }
    }

    /// Takes hosts whose leases say `vxlan` for peers, too, if they have a node id, as hosts of this project have: those
    /// carry UDP for as long as a network goes from the one to the other. Upstream's carry one only.
    #[must_use]
    pub fn with_vxlan_peers(self) -> Self {
        Self { takes_vxlan: true, ..self }
    }

    /// Keeps device and sockets in a store, and takes back what is there and still right. What is not is made anew.
    #[must_use]
    pub fn with_store(self, store: Arc<dyn DescriptorStore>) -> Self {
        Self { keeper: Keeper(Some(store)), ..self }
    }

    /// Chooses which bursts are made and taken: all of them, unless one is to be done without.
    #[must_use]
    pub fn with_offloads(self, offloads: Offloads) -> Self {
        Self { offloads, ..self }
    }

    /// Returns the counters of the backend that is opened.
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
    /// The threads are the first to go.
    workers: Option<Workers>,
    namespace: Namespace,
    netlink: Netlink,
    /// Gone if it broke and could not be opened again yet.
    monitor: Option<Monitor>,
    config: NetworkConfig,
    port: u16,
    wanted: Offloads,
    takes_vxlan: bool,
    device: Device,
    listeners: Listeners,
    keeper: Keeper,
    exchange: Arc<Exchange>,
    counters: UdpCounters,
    failure: Arc<Failure>,
    own: Option<Lease>,
    /// Whether it is known well enough who there is for packets to be moved.
    knows_peers: bool,
    hops: Hops,
    unreachable: Vec<PeerFailure>,
    in_doubt: bool,
}

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the headers of a datagram take, in bytes: UDP (8) and IP (20 or 40).
const OVERHEAD_V4: u32 = 28;
const OVERHEAD_V6: u32 = 48;

impl Udp {
    fn open(open: &OpenUdp, request: OpenRequest<'_>) -> Result<Self, BackendError> {
        let OpenRequest { config, external, .. } = request;
        let options = UdpConfig::parse(&config.backend)?;
        tracing::info!("UDP config: Port={}", options.port);
        let (namespace, keeper) = (open.namespace.clone(), open.keeper.or(request.descriptors));
        let local = local_addresses(config, external, options.port)?;
        // Before the first read, so that no change falls between the two.
        let mut netlink = Netlink::open_in(&namespace).map_err(no_netlink)?;
        let monitor = Some(open_monitor(&namespace, &netlink)?);
        let mtu = mtu(config, external);
        let networks: Vec<_> = config.pools().map(|pool| pool.network()).collect();
        let old = Device::take_back(&keeper, &namespace, &mut netlink, &networks, mtu, open.offloads);
        let is_old = old.is_some();
        let device = old.map_or_else(|| Device::open(&namespace, None, mtu, open.offloads), Ok)?;
        let listeners = Listeners::new(namespace.clone(), keeper.clone(), local, open.offloads);
        let mut udp = Self {
            workers: None,
            namespace,
            netlink,
            monitor,
            config: config.clone(),
            port: options.port,
            wanted: open.offloads,
            takes_vxlan: open.takes_vxlan,
            device,
            listeners,
            keeper,
            exchange: Arc::default(),
            counters: open.counters.clone(),
            failure: Arc::default(),
            own: None,
            knows_peers: false,
            hops: Hops::new(),
            unreachable: Vec::new(),
            in_doubt: true,
        };
        udp.listen()?;
        if is_old {
            tracing::info!("took back the device {}", udp.device.name);
        } else {
            udp.keeper.keep(Slot::Tun, udp.device.tun.as_fd());
        }
        Ok(udp)
    }

    /// Makes device, sockets and threads as they should be; returns how many things were not so.
    fn mend(&mut self) -> Result<usize, BackendError> {
        let broken = self.workers.as_ref().map(Workers::broken).unwrap_or_default();
        if broken != Broken::default() {
            self.workers = None;
        }
        let mut changes = self.mend_device(broken.device)?;
        if broken.sockets {
            self.listeners.close();
        }
        self.listen()?;
        if self.start()? {
            changes += usize::from(broken != Broken::default());
        }
        self.in_doubt = false;
        Ok(changes)
    }

    fn mend_device(&mut self, is_broken: bool) -> Result<usize, BackendError> {
        let is_there = self.device.exists(&mut self.netlink)?;
        if !is_there || is_broken {
            // The threads hold what is left of the old one.
            self.workers = None;
            if is_there {
                self.delete_device()?;
            }
            let Device { name, mtu, overlays, .. } = &self.device;
            let opened = Device::open(&self.namespace, Some(name), *mtu, self.wanted)?;
            self.keeper.keep(Slot::Tun, opened.tun.as_fd());
            self.device = Device { overlays: overlays.clone(), ..opened };
        }
        let changes = self.device.ensure(&mut self.netlink, &self.namespace)?;
        Ok(changes + usize::from(!is_there))
    }

    /// Listens on each address.
    fn listen(&mut self) -> Result<(), BackendError> {
        if self.listeners.are_right() {
            return Ok(());
        }
        self.workers = None;
        self.listeners.listen()?;
        self.set_filters();
        Ok(())
    }

    /// Starts the threads unless they run, or nobody knows yet where packets go: those that wait from before a restart
    /// would be lost. Tells whether it did.
    fn start(&mut self) -> Result<bool, BackendError> {
        if self.workers.is_some() || !self.knows_peers {
            return Ok(false);
        }
        let parts = Parts {
            tun: Arc::clone(&self.device.tun),
            sockets: self.listeners.sockets(),
            exchange: Arc::clone(&self.exchange),
            counters: self.counters.clone(),
            failure: Arc::clone(&self.failure),
            offloads: self.device.offloads,
        };
        let started = Workers::start(&self.namespace, &parts).map_err(|source| BackendError::Kernel {
            object: "cannot start the threads of the packet path".to_owned(),
            source: source.into(),
        })?;
        self.workers = Some(started);
        Ok(true)
    }

    /// Works out the next hops, and hands them to the packet path if they are others. Returns how many are new, and how
    /// many are gone.
    fn route(&mut self, request: SyncRequest<'_>) -> (usize, usize) {
        let Some(own) = &self.own else { return (0, 0) };
        let (mut hops, unreachable) =
            routing::decide(&self.config, &own.subnet, self.port, self.takes_vxlan, request.peers);
        self.unreachable = unreachable;
        if !request.peers.is_complete() {
            // Who is not known yet may still be there.
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

    /// Hands the next hops and own addresses to the packet path.
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

    /// How the device is named in reports.
    fn name(&self) -> String {
        format!("device {}", self.device.name)
    }

    fn delete_device(&mut self) -> Result<(), BackendError> {
        self.netlink.delete_link(self.device.index).map_err(|error| BackendError::Kernel {
            object: format!("cannot delete the device {}", self.device.name),
            source: error.into(),
        })
    }

    fn mend_monitor(&mut self, report: &mut SyncReport) {
        if self.monitor.is_none() {
            match open_monitor(&self.namespace, &self.netlink) {
                Ok(monitor) => self.monitor = Some(monitor),
                Err(error) => failed(report, "the monitor of the kernel's notices".to_owned(), &error),
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
        self.in_doubt = true;
        Ok(())
    }

    /// The device stays, and with it what waits in its queue.
    fn reconfigure(&mut self, request: OpenRequest<'_>) -> Result<(), BackendError> {
        let OpenRequest { config, external, .. } = request;
        let (before, now) = (&self.config.backend.name, &config.backend.name);
        if !now.eq_ignore_ascii_case(before) {
            return Err(BackendError::Host(format!("to go from {before} to {now} takes a restart")));
        }
        let port = UdpConfig::parse(&config.backend)?.port;
        let local = local_addresses(config, external, port)?;
        // Each, before anything changes: somebody else may have the port.
        let fresh = self.listeners.prepare(&local)?;
        let networks: Vec<_> = config.pools().map(|pool| pool.network()).collect();
        self.device.leave_other_networks(&mut self.netlink, &networks)?;
        self.listeners.take(fresh, local);
        (self.port, self.config) = (port, config.clone());
        self.device.mtu = mtu(config, external);
        self.in_doubt = true;
        Ok(())
    }

    fn configure(&mut self, own: &Lease) -> Result<(), BackendError> {
        let mut overlays = Vec::new();
        for pool in self.config.pools() {
            let network = pool.network();
            let is_v4 = network.addr().is_ipv4();
            let subnet = own.subnet.nets().find(|net| net.addr().is_ipv4() == is_v4).ok_or_else(|| {
                BackendError::Host(format!("the lease {} has no subnet of {network}", own.subnet))
            })?;
            overlays.push(Overlay { address: IpNet::from(subnet.network()), network });
        }
        self.device.overlays = overlays;
        self.own = Some(own.clone());
        self.publish();
        self.in_doubt = true;
        self.mend().map(drop)
    }

    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
        let mut report = SyncReport::default();
        if self.own.is_none() {
            return report;
        }
        self.mend_monitor(&mut report);
        let knew_peers = self.knows_peers;
        if *request.dirty != Dirty::NONE {
            (report.written, report.removed) = self.route(request);
        }
        if knew_peers != self.knows_peers || *request.dirty == Dirty::All || self.in_doubt {
            self.in_doubt = true;
            match self.mend() {
                Ok(changes) => report.drifted += changes,
                Err(error) => failed(&mut report, self.name(), &error),
            }
        }
        report.unreachable.clone_from(&self.unreachable);
        if let Some(failure) = report.failed.iter().find(|failure| failure.object == self.name()) {
            // Without its device no peer is reached.
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
                    notice = monitor.next() => match notice {
                        Ok(notice) => match heard(monitor, notice, &self.device) {
                            Some(what) => what,
                            None => continue,
                        },
                        Err(error) => {
                            self.monitor = None;
                            format!("the monitor of the kernel's notices broke: {error}")
                        }
                    },
                },
            };
            self.in_doubt = true;
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
        self.keeper.forget(Slot::Tun);
        self.delete_device()
    }
}

/// Notices taken at once, so that a storm leads to one pass and not to one for each.
const NOTICES_AT_ONCE: usize = 4096;

/// Takes in a notice and those that wait behind it, and says what the first one that means anything means.
fn heard(monitor: &mut Monitor, first: Notification, device: &Device) -> Option<String> {
    let mut what = device.notice(&first);
    for _ in 0..NOTICES_AT_ONCE {
        // An error shows again at the next wait.
        let Ok(Some(notice)) = monitor.try_next() else { break };
        what = what.or_else(|| device.notice(&notice));
    }
    what
}

fn failed(report: &mut SyncReport, object: String, error: &BackendError) {
    report.failed.push(ObjectFailure::new(object, flannel_core::chain(error)));
    report.retry_in = Some(RETRY);
}

/// What fits into a datagram that fits the external interface.
fn mtu(config: &NetworkConfig, external: &ExternalInterface) -> u32 {
    external.mtu.saturating_sub(if config.ipv6.is_some() { OVERHEAD_V6 } else { OVERHEAD_V4 })
}

fn open_monitor(namespace: &Namespace, netlink: &Netlink) -> Result<Monitor, BackendError> {
    let mut monitor = Monitor::open_in(namespace).map_err(no_netlink)?;
    monitor.ignore_changes_of(&[netlink.port_id()]).map_err(no_netlink)?;
    Ok(monitor)
}

fn no_netlink(error: flannel_netlink::Error) -> BackendError {
    BackendError::Kernel { object: "cannot open a netlink socket".to_owned(), source: error.into() }
}
