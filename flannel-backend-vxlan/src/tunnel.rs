//! One tunnel: a device and its three tables, and beside it the direct routes, for one family.

use flannel_core::reconcile::{Reconciler, TableSync, pass};
use flannel_core::{
    BackendError, DeviceFacts, Dirty, ObjectFailure, PeerFailure, PeerSet, SubnetKey, SyncReport, SyncRequest,
};
use flannel_netlink::{IpFamily, Namespace};

use crate::desired::{Desired, Failed, Wanted};
use crate::device::{Below, Device, DeviceSpec, Ensured, OverlayAddress};
use flannel_dataplane::Direct;
use flannel_dataplane::Forwarding;
use flannel_dataplane::NoticeHandler;
use flannel_dataplane::Routes;
use flannel_dataplane::{Fdb, Kernel, Neighbours, Place};

#[derive(Debug)]
pub(crate) struct Tunnel {
    spec: DeviceSpec,
    device: Device,
    kernel: Kernel,
    namespace: Namespace,
    desired: Desired,
    neighbours: Reconciler<Neighbours>,
    fdb: Reconciler<Fdb>,
    routes: Reconciler<Routes>,
    device_in_doubt: bool,
    forwarding: Forwarding,
    /// Without `DirectRouting` it wants no route, and drops those of a time with it.
    direct: Direct,
    has_direct_routing: bool,
    /// Whether a peer's way may be another one now.
    decide_again: bool,
}

/// How long after a failure the device is tried again.
const DEVICE_RETRY: std::time::Duration = std::time::Duration::from_secs(1);

impl Tunnel {
    /// Makes the device, or takes over the one that is there.
    pub(crate) fn open(
        mut spec: DeviceSpec,
        direct: Direct,
        kernel: Kernel,
        namespace: Namespace,
        has_direct_routing: bool,
    ) -> Result<Self, BackendError> {
        let Ensured { device, .. } = spec.ensure(&mut kernel.lock(), &namespace)?.complete()?;
        spec.mac = Some(device.mac);
        Ok(Self::new(spec, device, direct, kernel, namespace, has_direct_routing))
    }

    fn new(
        spec: DeviceSpec,
        device: Device,
        direct: Direct,
        kernel: Kernel,
        namespace: Namespace,
        has_direct_routing: bool,
    ) -> Self {
        let place = Place { kernel: kernel.clone(), index: device.index, family: spec.family };
        Self {
            neighbours: Reconciler::new(Neighbours(place.clone())),
            fdb: Reconciler::new(Fdb(place.clone())),
            routes: Reconciler::new(Routes::new(place, direct.mark())),
            desired: Desired::default(),
            device_in_doubt: true,
            forwarding: Forwarding::new(spec.family, kernel.clone(), namespace.clone()),
            direct,
            has_direct_routing,
            decide_again: true,
            spec,
            device,
            kernel,
            namespace,
        }
    }

    pub(crate) fn family(&self) -> IpFamily {
        self.spec.family
    }

    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// Takes in what the device shall have below from now on; the next pass moves it.
    pub(crate) fn update_interface(&mut self, below: Below) {
        self.direct.update_interface(&below.lower_name, below.lower);
        self.decide_again = true;
        self.device_in_doubt |= self.spec.below != below;
        self.spec.below = below;
        self.device.mtu = self.spec.below.mtu;
    }

    /// Gives the device the host's own address.
    pub(crate) fn configure(&mut self, address: OverlayAddress) -> Result<(), BackendError> {
        self.spec.address = Some(address);
        self.ensure_device()?.complete().map(drop)
    }

    /// Makes the device as it should be, and the tables to be read again if anything was not.
    fn ensure_device(&mut self) -> Result<Ensured, BackendError> {
        self.device_in_doubt = true;
        let ensured = self.spec.ensure(&mut self.kernel.lock(), &self.namespace)?;
        self.device_in_doubt = !ensured.failed.is_empty();
        self.device = ensured.device;
        let index = ensured.device.index;
        self.neighbours.table().0.index = index;
        self.fdb.table().0.index = index;
        self.routes.table().place.index = index;
        self.direct.routes.table().tunnel = Some(index);
        if ensured.changes > 0 {
            self.distrust_tables();
            self.retry_tables();
        }
        Ok(ensured)
    }

    /// Removes the device, and with it everything on it.
    pub(crate) fn remove(&mut self) -> Result<(), BackendError> {
        let direct = self.direct.remove();
        self.spec.remove(&mut self.kernel.lock()).and(direct)
    }

    /// One pass: device, then what is missing from the packet's last look-up to its first, then what is stale the
    /// other way round. Direct routes take the place of routes through the tunnel, and the other way round, before
    /// either is taken for stale.
    pub(crate) fn sync(&mut self, request: SyncRequest<'_>, own: &SubnetKey) -> SyncReport {
        let now = request.now;
        let mut report = SyncReport::default();
        if *request.dirty == Dirty::All {
            self.distrust();
        }
        self.update(request.peers, request.dirty, own);
        report.unreachable = self.desired.unreachable().cloned().collect();
        let has_device = !self.device_in_doubt || self.mend_device(&mut report);
        report.merge(self.forwarding.sync(Some((&self.spec.name, self.device.index))));
        let mut layers: [(&str, &mut dyn TableSync); 4] = [
            ("the forwarding entries", &mut self.fdb),
            ("the neighbours", &mut self.neighbours),
            ("the routes", &mut self.routes),
            ("the direct routes", &mut self.direct.routes),
        ];
        // Direct routes need no device.
        let possible = if has_device { &mut layers[..] } else { &mut layers[3..] };
        report.merge(pass(possible, request.peers.is_complete(), now));
        if has_device {
            report.pending.extend(self.pending());
        } else if let Some(reason) = report.failed.iter().find(|failure| failure.object == self.name()) {
            report.pending.extend(self.desired.cut_off(&format!("{}: {}", reason.object, reason.reason)));
        }
        report
    }

    /// The peers that something is missing for.
    fn pending(&self) -> Vec<PeerFailure> {
        let failed = Failed {
            neighbours: self.neighbours.tracker.failures_by_key().map(|(key, why)| (*key, why)).collect(),
            fdb: self.fdb.tracker.failures_by_key().map(|(key, why)| (*key, why)).collect(),
            routes: self.routes.tracker.failures_by_key().map(|(key, why)| (*key, why)).collect(),
            direct: self.direct.routes.tracker.failures_by_key().map(|(key, why)| (*key, why)).collect(),
        };
        self.desired.pending(self.family(), &failed)
    }

    /// How the device is named in reports.
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
        facts.local = Some(self.spec.below.local);
        facts
    }

    /// Makes the device as it should be, and tells whether there is one.
    fn mend_device(&mut self, report: &mut SyncReport) -> bool {
        match self.ensure_device() {
            Ok(ensured) => {
                report.drifted += ensured.changes;
                ensured.failed.iter().for_each(|error| self.device_failed(report, error));
                true
            }
            Err(error) => {
                self.device_failed(report, &error);
                false
            }
        }
    }

    fn device_failed(&self, report: &mut SyncReport, error: &BackendError) {
        report.failed.push(ObjectFailure::new(self.name(), flannel_core::chain(error)));
        report.retry_in = Some(DEVICE_RETRY);
    }

    fn update(&mut self, peers: &PeerSet, dirty: &Dirty, own: &SubnetKey) {
        let (mark, has_direct_routing) = (self.direct.mark(), self.has_direct_routing);
        let Direct { underlay, routes: direct, .. } = &mut self.direct;
        let mut hop = |subnet, public| {
            if has_direct_routing { Direct::hop(underlay, mark, subnet, public) } else { None }
        };
        let mut wanted = Wanted {
            hop: &mut hop,
            direct: &mut direct.tracker,
            neighbours: &mut self.neighbours.tracker,
            fdb: &mut self.fdb.tracker,
            routes: &mut self.routes.tracker,
        };
        let dirty = if self.decide_again { &Dirty::All } else { dirty };
        self.desired.update(peers, dirty, own, self.spec.family, &mut wanted);
        self.decide_again = false;
    }

    fn retry_tables(&mut self) {
        self.neighbours.tracker.retry_all();
        self.fdb.tracker.retry_all();
        self.routes.tracker.retry_all();
    }

    fn distrust_tables(&mut self) {
        self.neighbours.tracker.mark_stale();
        self.fdb.tracker.mark_stale();
        self.routes.tracker.mark_stale();
    }
}

mod notices;
mod plan;
