//! The host-gw backend: all peers are on one link, and each has a route by its public address. There is no device.

use std::collections::BTreeMap;
use std::net::IpAddr;

use async_trait::async_trait;
use flannel_core::{
    Backend, BackendAttrs, BackendConfig, BackendDescriptor, BackendError, BackendType, Dirty,
    ExternalInterface, Lease, NetworkConfig, OpenBackend, OpenRequest, PeerFailure, PeerSet, Plan,
    PlanRequest, SubnetKey, SubnetPool, SyncReport, SyncRequest,
};
use flannel_dataplane::{
    DirectRouting, DriftMonitor, Forwarding, NextHop, NotificationHandler, PathCheck, RouteOwner,
    RouteProtocol, SharedNetlink, check_same_type, family_pools, own_subnet, table_read_error,
};
use flannel_netlink::{IpFamily, Namespace, Notification, Route};
use ipnet::IpNet;

/// Opens the host-gw backend in a network namespace.
///
/// Packets are not encapsulated and may be as large as the link allows. A peer that is not on the link is reported as
/// unreachable.
///
/// ```no_run
/// use flannel_backend_host_gw::{Namespace, OpenHostGw};
///
/// let backend = OpenHostGw::new(Namespace::current()?);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct OpenHostGw {
    namespace: Namespace,
    protocol: RouteProtocol,
}

impl OpenHostGw {
    /// Opens backends in the namespace of the external interface.
    #[must_use]
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace, protocol: RouteProtocol::default() }
    }

    /// Sets the protocol number of the routes.
    #[must_use]
    pub fn with_route_protocol(self, protocol: RouteProtocol) -> Self {
        Self { protocol, ..self }
    }
}

impl BackendDescriptor for OpenHostGw {
    fn name(&self) -> &'static str {
        "host-gw"
    }
}

impl OpenBackend for OpenHostGw {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        Ok(Box::new(HostGw::open(self, request)?))
    }

    fn plan(&self, request: PlanRequest<'_>) -> Result<Plan, BackendError> {
        let PlanRequest { config, external, own, peers, .. } = request;
        config.backend.check_type("host-gw")?;
        let mut plan = Plan::default();
        let netlink = SharedNetlink::open_in(&self.namespace)?;
        for mut routes in self.family_routes(&netlink, config, external)? {
            own_subnet(own, routes.family)?;
            routes.update_peers(peers, &own.subnet);
            let planned = routes.direct.routes.plan(true);
            let (puts, drops) = planned.map_err(|error| table_read_error("routes", error))?;
            let drops = drops.into_iter().filter(|_| peers.is_complete());
            plan.changes.extend(puts.into_iter().chain(drops));
            plan.unreachable.extend(routes.unreachable);
        }
        Ok(plan)
    }
}

impl OpenHostGw {
    fn family_routes(
        &self,
        netlink: &SharedNetlink,
        config: &NetworkConfig,
        external: &ExternalInterface,
    ) -> Result<Vec<FamilyRoutes>, BackendError> {
        let routes = |(family, pool): (IpFamily, SubnetPool)| {
            check_address(external, family)?;
            let owner = RouteOwner { protocol: self.protocol, network: pool.network() };
            Ok(FamilyRoutes {
                family,
                direct: DirectRouting::new(netlink.clone(), external, family, owner),
                forwarding: Forwarding::new(family, netlink.clone(), self.namespace.clone()),
                netlink: netlink.clone(),
                paths: PathCheck::new(family),
                unreachable: Vec::new(),
                are_next_hops_stale: true,
            })
        };
        family_pools(config).map(routes).collect()
    }
}

/// Checks that the interface has the public address, to which peers send over the link.
fn check_address(external: &ExternalInterface, family: IpFamily) -> Result<(), BackendError> {
    let (own, public) = match family {
        IpFamily::V4 => (external.v4.map(IpAddr::V4), external.public.v4.map(IpAddr::V4)),
        IpFamily::V6 => (external.v6.map(IpAddr::V6), external.public.v6.map(IpAddr::V6)),
    };
    if own.is_none() {
        return Err(BackendError::Host(format!("the interface {} has no {family} address", external.name)));
    }
    if own != public {
        let reason = "your PublicIP differs from interface IP, meaning that probably you're on a NAT, which is not \
                      supported by host-gw backend";
        return Err(BackendError::Host(reason.to_owned()));
    }
    Ok(())
}

/// The host-gw backend of one network on one host.
#[derive(Debug)]
struct HostGw {
    opener: OpenHostGw,
    config: BackendConfig,
    mtu: u32,
    monitor: DriftMonitor,
    families: Vec<FamilyRoutes>,
    own: Option<SubnetKey>,
}

impl HostGw {
    fn open(opener: &OpenHostGw, request: OpenRequest<'_>) -> Result<Self, BackendError> {
        let OpenRequest { config, external, .. } = request;
        config.backend.check_type("host-gw")?;
        let (monitor, netlink) = DriftMonitor::open(opener.namespace.clone(), &external.name)?;
        let families = opener.family_routes(&netlink, config, external)?;
        let (opener, config) = (opener.clone(), config.backend.clone());
        Ok(Self { opener, config, mtu: external.mtu, monitor, families, own: None })
    }
}

#[async_trait]
impl Backend for HostGw {
    fn attrs(&self) -> BackendAttrs {
        BackendAttrs::new(BackendType::HOST_GW)
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }

    fn update_interface(&mut self, external: &ExternalInterface) -> Result<(), BackendError> {
        self.families.iter().try_for_each(|routes| check_address(external, routes.family))?;
        self.mtu = external.mtu;
        self.monitor.update_interface(&external.name);
        for routes in &mut self.families {
            routes.direct.update_interface(&external.name, external.index);
            routes.are_next_hops_stale = true;
        }
        Ok(())
    }

    /// Acts like a restart.
    fn reconfigure(&mut self, request: OpenRequest<'_>) -> Result<(), BackendError> {
        check_same_type(&self.config, &request.config.backend)?;
        *self = Self::open(&self.opener, request)?;
        Ok(())
    }

    /// Checks that the lease has a subnet of each family. There is nothing to create.
    fn configure(&mut self, own: &Lease) -> Result<(), BackendError> {
        for routes in &mut self.families {
            own_subnet(own, routes.family)?;
            routes.are_next_hops_stale = true;
        }
        self.own = Some(own.subnet);
        Ok(())
    }

    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
        let mut report = SyncReport::default();
        let Some(own) = self.own else { return report };
        report.merge(self.monitor.sync(request.now));
        for routes in &mut self.families {
            report.merge(routes.sync(request, &own));
        }
        report
    }

    async fn wait_for_drift(&mut self) -> String {
        self.monitor.wait_for_drift(&mut self.families).await
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        let removed: Vec<_> = self.families.iter_mut().map(|routes| routes.direct.remove()).collect();
        removed.into_iter().collect()
    }
}

/// The routes of one family.
#[derive(Debug)]
struct FamilyRoutes {
    family: IpFamily,
    direct: DirectRouting,
    forwarding: Forwarding,
    netlink: SharedNetlink,
    paths: PathCheck,
    unreachable: Vec<PeerFailure>,
    /// Whether a peer may have come onto the link or left it.
    are_next_hops_stale: bool,
}

impl FamilyRoutes {
    /// Runs one pass: adds missing routes, then removes stale ones.
    fn sync(&mut self, request: SyncRequest<'_>, own: &SubnetKey) -> SyncReport {
        if *request.dirty == Dirty::All {
            self.mark_stale();
        }
        if self.are_next_hops_stale || *request.dirty != Dirty::NONE {
            self.update_peers(request.peers, own);
        }
        let routes = &mut self.direct.routes;
        let mut report = SyncReport::default();
        report.unreachable.clone_from(&self.unreachable);
        report.merge(self.forwarding.sync(None));
        report.merge(routes.refresh("routes"));
        report.merge(routes.put_missing(request.now));
        if request.peers.is_complete() {
            report.merge(routes.drop_unwanted(request.now));
        }
        report.merge(routes.finish(request.now));
        report.pending.extend(self.pending(request.peers));
        report
    }

    /// Returns the peers whose routes failed. Looks at all peers if any route failed.
    fn pending(&self, peers: &PeerSet) -> Vec<PeerFailure> {
        let failed: BTreeMap<_, _> = self.direct.routes.tracker.failures_by_key().collect();
        if failed.is_empty() {
            return Vec::new();
        }
        let pending = |peer: SubnetKey| {
            let failure = peer.nets().find_map(|net| failed.get(&net))?;
            Some(PeerFailure::new(peer, format!("{}: {}", failure.object, failure.reason)))
        };
        peers.iter().filter_map(|lease| pending(lease.subnet)).collect()
    }

    /// Updates the desired routes of all peers. The kernel's answers about their addresses are cached.
    fn update_peers(&mut self, peers: &PeerSet, own: &SubnetKey) {
        let mut routes: BTreeMap<IpNet, Route> = BTreeMap::new();
        self.unreachable.clear();
        for lease in peers.iter() {
            let Some(subnet) = lease.subnet.nets().find(|net| IpFamily::of(net.addr()) == self.family) else {
                continue;
            };
            let reason = match self.next_hop(lease, subnet, own) {
                Ok(_) if routes.contains_key(&subnet) => format!("another peer has the subnet {subnet} too"),
                Ok(next_hop) => {
                    routes.insert(subnet, next_hop.route(subnet, routes.len()));
                    continue;
                }
                Err(reason) => reason,
            };
            self.unreachable.push(PeerFailure::new(lease.subnet, reason));
        }
        self.direct.routes.tracker.set_all_desired(routes.into_iter().collect());
        self.are_next_hops_stale = false;
    }

    /// Returns the next hop to a peer, or why the peer has no next hop.
    fn next_hop(&mut self, lease: &Lease, subnet: IpNet, own: &SubnetKey) -> Result<NextHop, String> {
        let attrs = &lease.attrs;
        if attrs.backend_type != BackendType::HOST_GW {
            return Err(format!("ignoring non-host-gw subnet({subnet}): type={}", attrs.backend_type));
        }
        if lease.subnet.overlaps(own) {
            return Err(format!("its subnet overlaps this host's subnet {own}"));
        }
        let network = self.direct.owner().network;
        if !network.contains(&subnet) {
            return Err(format!("its subnet {subnet} is outside the network {network}"));
        }
        let public = match self.family {
            IpFamily::V4 => attrs.public.v4.map(IpAddr::V4),
            IpFamily::V6 => attrs.public.v6.map(IpAddr::V6),
        };
        let public = public.ok_or("its lease has no public address of this family")?;
        if let Some(problem) = self.paths.problem(&mut self.netlink.lock(), subnet, public) {
            return Err(problem);
        }
        let next_hops = &mut self.direct.next_hops;
        next_hops.find(subnet, public).ok_or_else(|| {
            format!("{public} is not on the link of {}, which host-gw requires", next_hops.interface())
        })
    }
}

impl NotificationHandler for FamilyRoutes {
    fn mark_stale(&mut self) {
        self.direct.mark_stale();
        self.paths.mark_stale();
        self.forwarding.mark_stale();
        self.are_next_hops_stale = true;
    }

    fn handle(&mut self, notification: &Notification) -> Option<String> {
        let path = self.paths.handle(notification).inspect(|_| self.direct.mark_stale());
        if let Some(change) = self.direct.handle_underlay(notification).or(path) {
            self.are_next_hops_stale = true;
            // If notifications were lost, forwarding may have been disabled unnoticed.
            self.forwarding.mark_stale();
            return Some(change);
        }
        if let Notification::Route { route, removed } = notification {
            return self.direct.handle_route(route, *removed);
        }
        self.forwarding.handle(notification, None)
    }
}
