//! The tunnel of one family: a device, its three tables, and the direct routes.

use flannel_core::reconcile::{Reconciler, TableSync, pass};
use flannel_core::{
    BackendError, DeviceFacts, Dirty, ObjectFailure, PeerFailure, PeerSet, SubnetKey, SyncReport, SyncRequest,
};
use flannel_dataplane::{
    DeviceScope, DirectRouting, FdbTable, Forwarding, NeighbourTable, NotificationHandler, OverlayRouteTable,
    PathCheck, SharedNetlink,
};
use flannel_netlink::{IpFamily, Namespace};

use crate::device::{DeviceSpec, EnsureOutcome, OverlayAddress, UnderlaySpec, VxlanDevice};
use crate::peer_objects::{FailedObjects, ObjectTrackers, PeerObjects};

/// The tunnel of one family.
#[derive(Debug)]
pub(crate) struct Tunnel {
    spec: DeviceSpec,
    device: VxlanDevice,
    netlink: SharedNetlink,
    namespace: Namespace,
    peers: PeerObjects,
    neighbours: Reconciler<NeighbourTable>,
    fdb: Reconciler<FdbTable>,
    routes: Reconciler<OverlayRouteTable>,
    is_device_stale: bool,
    forwarding: Forwarding,
    /// Without `DirectRouting` no direct route is desired, and those of a previous configuration are removed.
    direct: DirectRouting,
    has_direct_routing: bool,
    paths: PathCheck,
    /// Whether the path to any peer may have changed.
    are_paths_stale: bool,
}

/// The pause before a failed device is tried again.
const DEVICE_RETRY: std::time::Duration = std::time::Duration::from_secs(1);

impl Tunnel {
    /// Creates the device or adopts the existing one.
    pub(crate) fn open(
        mut spec: DeviceSpec,
        direct: DirectRouting,
        netlink: SharedNetlink,
        namespace: Namespace,
        has_direct_routing: bool,
    ) -> Result<Self, BackendError> {
        let EnsureOutcome { device, .. } = spec.ensure(&mut netlink.lock(), &namespace)?.complete()?;
        spec.mac = Some(device.mac);
        Ok(Self::new(spec, device, direct, netlink, namespace, has_direct_routing))
    }

    fn new(
        spec: DeviceSpec,
        device: VxlanDevice,
        direct: DirectRouting,
        netlink: SharedNetlink,
        namespace: Namespace,
        has_direct_routing: bool,
    ) -> Self {
        let scope = DeviceScope { netlink: netlink.clone(), index: device.index, family: spec.family };
        Self {
            neighbours: Reconciler::new(NeighbourTable { scope: scope.clone() }),
            fdb: Reconciler::new(FdbTable { scope: scope.clone() }),
            routes: Reconciler::new(OverlayRouteTable::new(scope, direct.owner())),
            peers: PeerObjects::default(),
            is_device_stale: true,
            forwarding: Forwarding::new(spec.family, netlink.clone(), namespace.clone()),
            paths: PathCheck::new(spec.family),
            direct,
            has_direct_routing,
            are_paths_stale: true,
            spec,
            device,
            netlink,
            namespace,
        }
    }

    pub(crate) fn family(&self) -> IpFamily {
        self.spec.family
    }

    pub(crate) fn device(&self) -> VxlanDevice {
        self.device
    }

    /// Replaces what is below the device; the next pass moves the device.
    pub(crate) fn update_underlay(&mut self, underlay: UnderlaySpec) {
        self.direct.update_interface(&underlay.interface, underlay.index);
        self.are_paths_stale = true;
        self.is_device_stale |= self.spec.underlay != underlay;
        self.spec.underlay = underlay;
        self.device.mtu = self.spec.underlay.mtu;
    }

    /// Gives the device the host's own address.
    pub(crate) fn configure(&mut self, address: OverlayAddress) -> Result<(), BackendError> {
        self.spec.address = Some(address);
        self.ensure_device()?.complete().map(drop)
    }

    /// Reconciles the device. If anything had to change, all tables are read again.
    fn ensure_device(&mut self) -> Result<EnsureOutcome, BackendError> {
        self.is_device_stale = true;
        let outcome = self.spec.ensure(&mut self.netlink.lock(), &self.namespace)?;
        self.is_device_stale = !outcome.failed.is_empty();
        self.device = outcome.device;
        let index = outcome.device.index;
        self.neighbours.table().scope.index = index;
        self.fdb.table().scope.index = index;
        self.routes.table().scope.index = index;
        self.direct.routes.table().tunnel = Some(index);
        if outcome.changes > 0 {
            self.mark_tables_stale();
            self.retry_tables();
        }
        Ok(outcome)
    }

    /// Removes the device, and with it everything on it.
    pub(crate) fn remove(&mut self) -> Result<(), BackendError> {
        let direct = self.direct.remove();
        self.spec.remove(&mut self.netlink.lock()).and(direct)
    }

    /// Runs one pass: the device; then missing objects, in the reverse order of the kernel's lookups; then stale ones, in
    /// the opposite order. Tunnel and direct routes replace each other before either becomes stale.
    pub(crate) fn sync(&mut self, request: SyncRequest<'_>, own: &SubnetKey) -> SyncReport {
        let now = request.now;
        let mut report = SyncReport::default();
        if *request.dirty == Dirty::All {
            self.mark_stale();
        }
        self.update_peers(request.peers, request.dirty, own);
        report.unreachable = self.peers.unreachable().cloned().collect();
        let has_device = !self.is_device_stale || self.repair_device(&mut report);
        report.merge(self.forwarding.sync(Some((&self.spec.name, self.device.index))));
        let mut tables: [(&str, &mut dyn TableSync); 4] = [
            ("FDB entries", &mut self.fdb),
            ("neighbours", &mut self.neighbours),
            ("overlay routes", &mut self.routes),
            ("direct routes", &mut self.direct.routes),
        ];
        // Direct routes need no device.
        let writable = if has_device { &mut tables[..] } else { &mut tables[3..] };
        report.merge(pass(writable, request.peers.is_complete(), now));
        if has_device {
            report.pending.extend(self.pending());
        } else if let Some(failure) = report.failed.iter().find(|failure| failure.object == self.name()) {
            let reason = format!("{}: {}", failure.object, failure.reason);
            report.pending.extend(self.peers.pending_without_device(&reason));
        }
        report
    }

    /// Returns the peers that lack an object.
    fn pending(&self) -> Vec<PeerFailure> {
        let failed = FailedObjects {
            neighbours: self.neighbours.tracker.failures_by_key().map(|(key, why)| (*key, why)).collect(),
            fdb: self.fdb.tracker.failures_by_key().map(|(key, why)| (*key, why)).collect(),
            routes: self.routes.tracker.failures_by_key().map(|(key, why)| (*key, why)).collect(),
            direct: self.direct.routes.tracker.failures_by_key().map(|(key, why)| (*key, why)).collect(),
        };
        self.peers.pending(self.family(), &failed)
    }

    /// Returns the name of the device in reports.
    pub(crate) fn name(&self) -> String {
        format!("device {}", self.spec.name)
    }

    /// Describes the device.
    pub(crate) fn facts(&self) -> DeviceFacts {
        let mut facts = DeviceFacts::new(&*self.spec.name, "vxlan");
        facts.index = self.device.index;
        facts.mtu = self.device.mtu;
        facts.mac = Some(self.device.mac.to_string());
        facts.vni = Some(self.spec.vni);
        facts.port = Some(self.spec.port);
        facts.local = Some(self.spec.underlay.local);
        facts
    }

    /// Reconciles the device. Returns whether there is one.
    fn repair_device(&mut self, report: &mut SyncReport) -> bool {
        match self.ensure_device() {
            Ok(outcome) => {
                report.drifted += outcome.changes;
                outcome.failed.iter().for_each(|error| self.report_device_failure(report, error));
                true
            }
            Err(error) => {
                self.report_device_failure(report, &error);
                false
            }
        }
    }

    fn report_device_failure(&self, report: &mut SyncReport, error: &BackendError) {
        report.failed.push(ObjectFailure::new(self.name(), flannel_core::chain(error)));
        report.retry_in = Some(DEVICE_RETRY);
    }

    fn update_peers(&mut self, peers: &PeerSet, dirty: &Dirty, own: &SubnetKey) {
        let has_direct_routing = self.has_direct_routing;
        let DirectRouting { next_hops, routes: direct } = &mut self.direct;
        let mut next_hop =
            |subnet, public| if has_direct_routing { next_hops.find(subnet, public) } else { None };
        let (paths, netlink) = (&mut self.paths, &self.netlink);
        if self.are_paths_stale {
            paths.mark_stale();
        }
        // A record with the address that this host uses is an earlier one of its own.
        let local = self.spec.underlay.local;
        let mut path_problem = |subnet, public| {
            if public == local { None } else { paths.problem(&mut netlink.lock(), subnet, public) }
        };
        let mut trackers = ObjectTrackers {
            next_hop: &mut next_hop,
            path_problem: &mut path_problem,
            direct: &mut direct.tracker,
            neighbours: &mut self.neighbours.tracker,
            fdb: &mut self.fdb.tracker,
            routes: &mut self.routes.tracker,
        };
        let dirty = if self.are_paths_stale { &Dirty::All } else { dirty };
        self.peers.update(peers, dirty, own, self.spec.family, &mut trackers);
        self.are_paths_stale = false;
    }

    fn retry_tables(&mut self) {
        self.neighbours.tracker.retry_all();
        self.fdb.tracker.retry_all();
        self.routes.tracker.retry_all();
    }

    fn mark_tables_stale(&mut self) {
        self.neighbours.tracker.mark_stale();
        self.fdb.tracker.mark_stale();
        self.routes.tracker.mark_stale();
    }
}

mod notifications;
mod plan;
