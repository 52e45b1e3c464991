//! The host-gw backend: every peer is on the same link, and gets a route by its public address. There is no device.

use std::collections::BTreeMap;
use std::net::IpAddr;

use async_trait::async_trait;
use flannel_core::{
    Backend, BackendAttrs, BackendConfig, BackendError, BackendType, Dirty, ExternalInterface, Lease,
    NetworkConfig, OpenBackend, OpenRequest, PeerFailure, PeerSet, Plan, PlanRequest, SubnetKey, SubnetPool,
    SyncReport, SyncRequest,
};
use flannel_netlink::{IpFamily, Namespace, Notification, Route};
use ipnet::IpNet;

use flannel_dataplane::Direct;
use flannel_dataplane::Forwarding;
use flannel_dataplane::Hop;
use flannel_dataplane::same_kind;
use flannel_dataplane::{DriftMonitor, NoticeHandler};
use flannel_dataplane::{Kernel, unreadable};
use flannel_dataplane::{Mark, RouteProtocol};
use flannel_dataplane::{families, own_subnet};

/// Opens the host-gw backend in one network namespace.
///
/// Traffic is not wrapped, so packets may be as large as on the link, and every peer must be on that link. A peer
/// that is not is reported as unreachable.
///
/// ```no_run
/// use flannel_backend_host_gw::OpenHostGw;
/// use flannel_netlink::Namespace;
///
/// let here = OpenHostGw::new(Namespace::current()?);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct OpenHostGw {
    namespace: Namespace,
    protocol: RouteProtocol,
}

impl OpenHostGw {
    /// Takes the namespace that the external interface is in.
    #[must_use]
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace, protocol: RouteProtocol::default() }
    }

    /// Marks routes with another number than the default.
    #[must_use]
    pub fn with_route_protocol(self, protocol: RouteProtocol) -> Self {
        Self { protocol, ..self }
    }
}

impl OpenBackend for OpenHostGw {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        Ok(Box::new(HostGw::open(self, request)?))
    }

    fn plan(&self, request: PlanRequest<'_>) -> Result<Plan, BackendError> {
        let PlanRequest { config, external, own, peers, .. } = request;
        let mut plan = Plan::default();
        for mut gateways in self.gateways(&Kernel::open_in(&self.namespace)?, config, external)? {
            own_subnet(own, gateways.family)?;
            gateways.decide(peers, &own.subnet);
            let planned = gateways.direct.routes.plan(true);
            let (puts, drops) = planned.map_err(|error| unreadable("the routes", error))?;
            let drops = drops.into_iter().filter(|_| peers.is_complete());
            plan.changes.extend(puts.into_iter().chain(drops));
            plan.unreachable.extend(gateways.unreachable);
        }
        Ok(plan)
    }
}

impl OpenHostGw {
    fn gateways(
        &self,
        kernel: &Kernel,
        config: &NetworkConfig,
        external: &ExternalInterface,
    ) -> Result<Vec<Gateways>, BackendError> {
        let gateways = |(family, pool): (IpFamily, SubnetPool)| {
            check_address(external, family)?;
            let mark = Mark { protocol: self.protocol, network: pool.network() };
            Ok(Gateways {
                family,
                direct: Direct::new(kernel.clone(), external, family, mark),
                forwarding: Forwarding::new(family, kernel.clone(), self.namespace.clone()),
                unreachable: Vec::new(),
                decide_again: true,
            })
        };
        families(config).map(gateways).collect()
    }
}

/// Peers send to the public address over the link, so it must be the interface's own.
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
    watch: DriftMonitor,
    gateways: Vec<Gateways>,
    own: Option<SubnetKey>,
}

impl HostGw {
    fn open(opener: &OpenHostGw, request: OpenRequest<'_>) -> Result<Self, BackendError> {
        let OpenRequest { config, external, .. } = request;
        let (watch, kernel) = DriftMonitor::open(opener.namespace.clone(), &external.name)?;
        let gateways = opener.gateways(&kernel, config, external)?;
        let (opener, config) = (opener.clone(), config.backend.clone());
        Ok(Self { opener, config, mtu: external.mtu, watch, gateways, own: None })
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
        self.gateways.iter().try_for_each(|gateways| check_address(external, gateways.family))?;
        self.mtu = external.mtu;
        self.watch.update_interface(&external.name);
        for gateways in &mut self.gateways {
            gateways.direct.update_interface(&external.name, external.index);
            gateways.decide_again = true;
        }
        Ok(())
    }

    /// As a restart would.
    fn reconfigure(&mut self, request: OpenRequest<'_>) -> Result<(), BackendError> {
        same_kind(&self.config, &request.config.backend)?;
        *self = Self::open(&self.opener, request)?;
        Ok(())
    }

    /// There is nothing to make; a lease without a subnet for each family is refused.
    fn configure(&mut self, own: &Lease) -> Result<(), BackendError> {
        for gateways in &mut self.gateways {
            own_subnet(own, gateways.family)?;
            gateways.decide_again = true;
        }
        self.own = Some(own.subnet);
        Ok(())
    }

    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
        let mut report = SyncReport::default();
        let Some(own) = self.own else { return report };
        report.merge(self.watch.mend(request.now));
        for gateways in &mut self.gateways {
            report.merge(gateways.sync(request, &own));
        }
        report
    }

    async fn wait_for_drift(&mut self) -> String {
        self.watch.wait_for_drift(&mut self.gateways).await
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        let removed: Vec<_> = self.gateways.iter_mut().map(|gateways| gateways.direct.remove()).collect();
        removed.into_iter().collect()
    }
}

/// The routes of one family.
#[derive(Debug)]
struct Gateways {
    family: IpFamily,
    direct: Direct,
    forwarding: Forwarding,
    unreachable: Vec<PeerFailure>,
    /// Whether a peer may be on the link now that was not, or the other way round.
    decide_again: bool,
}

impl Gateways {
    /// One pass: what is missing, then what is stale.
    fn sync(&mut self, request: SyncRequest<'_>, own: &SubnetKey) -> SyncReport {
        if *request.dirty == Dirty::All {
            self.distrust();
        }
        if self.decide_again || *request.dirty != Dirty::NONE {
            self.decide(request.peers, own);
        }
        let routes = &mut self.direct.routes;
        let mut report = SyncReport::default();
        report.unreachable.clone_from(&self.unreachable);
        report.merge(self.forwarding.sync(None));
        report.merge(routes.refresh("the routes"));
        report.merge(routes.put_missing(request.now));
        if request.peers.is_complete() {
            report.merge(routes.drop_unwanted(request.now));
        }
        report.merge(routes.finish(request.now));
        report.pending.extend(self.pending(request.peers));
        report
    }

    /// The peers whose routes failed. Costs a look at all peers if there is any.
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

    /// Works out the routes to all peers. What was asked of the kernel before is not asked again.
    fn decide(&mut self, peers: &PeerSet, own: &SubnetKey) {
        let mut routes: BTreeMap<IpNet, Route> = BTreeMap::new();
        self.unreachable.clear();
        for lease in peers.iter() {
            let Some(subnet) = lease.subnet.nets().find(|net| IpFamily::of(net.addr()) == self.family) else {
                continue;
            };
            let hop = self.hop(lease, subnet, own);
            let refused = match hop {
                Ok(_) if routes.contains_key(&subnet) => format!("another peer has the subnet {subnet} too"),
                Ok(hop) => {
                    routes.insert(subnet, hop.route(subnet, routes.len()));
                    continue;
                }
                Err(reason) => reason,
            };
            self.unreachable.push(PeerFailure::new(lease.subnet, refused));
        }
        self.direct.routes.tracker.set_all_desired(routes.into_iter().collect());
        self.decide_again = false;
    }

    /// Finds the way to a peer, or why there is none.
    fn hop(&mut self, lease: &Lease, subnet: IpNet, own: &SubnetKey) -> Result<Hop, String> {
        let attrs = &lease.attrs;
        if attrs.backend_type != BackendType::HOST_GW {
            return Err(format!("ignoring non-host-gw subnet({subnet}): type={}", attrs.backend_type));
        }
        if lease.subnet.overlaps(own) {
            return Err(format!("its subnet overlaps the own one, {own}"));
        }
        let mark = self.direct.mark();
        if !mark.network.contains(&subnet) {
            return Err(format!("its subnet {subnet} is outside the network {}", mark.network));
        }
        let public = match self.family {
            IpFamily::V4 => attrs.public.v4.map(IpAddr::V4),
            IpFamily::V6 => attrs.public.v6.map(IpAddr::V6),
        };
        let public = public.ok_or("its lease has no public address of this family")?;
        let underlay = &mut self.direct.underlay;
        Direct::hop(underlay, mark, subnet, public)
            .ok_or_else(|| format!("{public} is not on the link of {}, as host-gw needs it", underlay.name()))
    }
}

impl NoticeHandler for Gateways {
    fn distrust(&mut self) {
        self.direct.distrust();
        self.forwarding.distrust();
        self.decide_again = true;
    }

    fn notice(&mut self, notice: &Notification) -> Option<String> {
        if let Some(what) = self.direct.notice_underlay(notice) {
            self.decide_again = true;
            // Perhaps notices were lost, and one of them told that it was switched off.
            self.forwarding.distrust();
            return Some(what);
        }
        if let Notification::Route { route, removed } = notice {
            return self.direct.notice_route(route, *removed);
        }
        self.forwarding.notice(notice, None)
    }
}
