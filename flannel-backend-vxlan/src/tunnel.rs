//! One tunnel: a device and its three tables, for one family.

use flannel_core::reconcile::{Reconciler, Table};
use flannel_core::{BackendError, ObjectFailure, PeerSet, SubnetKey, SyncReport, SyncRequest};
use flannel_netlink::{Family, Namespace, Notice, Route};

use crate::desired::{Desired, Peer, Update};
use crate::device::{Device, DeviceSpec, Ensured};
use crate::tables::{Fdb, Kernel, Neighbours, OverlayRoute, Place, Routes};

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
}

/// How long after a failure the device is tried again.
const DEVICE_RETRY: std::time::Duration = std::time::Duration::from_secs(1);

impl Tunnel {
    /// Makes the device, or takes over the one that is there.
    pub(crate) fn open(
        mut spec: DeviceSpec,
        kernel: Kernel,
        namespace: Namespace,
    ) -> Result<Self, BackendError> {
        let Ensured { device, .. } = spec.ensure(&mut kernel.lock(), &namespace)?;
        spec.mac = Some(device.mac);
        let place = Place { kernel: kernel.clone(), index: device.index, family: spec.family };
        Ok(Self {
            neighbours: Reconciler::new(Neighbours(place.clone())),
            fdb: Reconciler::new(Fdb(place.clone())),
            routes: Reconciler::new(Routes(place)),
            desired: Desired::default(),
            device_in_doubt: true,
            spec,
            device,
            kernel,
            namespace,
        })
    }

    pub(crate) fn spec(&mut self) -> &mut DeviceSpec {
        &mut self.spec
    }

    pub(crate) fn family(&self) -> Family {
        self.spec.family
    }

    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// Makes the device as it should be, and the tables to be read again if anything was not.
    pub(crate) fn ensure_device(&mut self) -> Result<usize, BackendError> {
        let ensured = self.spec.ensure(&mut self.kernel.lock(), &self.namespace)?;
        self.device_in_doubt = false;
        self.device = ensured.device;
        let index = ensured.device.index;
        self.neighbours.table().0.index = index;
        self.fdb.table().0.index = index;
        self.routes.table().0.index = index;
        if ensured.changes > 0 {
            self.distrust_tables();
        }
        Ok(ensured.changes)
    }

    /// Removes the device, and with it everything on it.
    pub(crate) fn remove(&mut self) -> Result<(), BackendError> {
        self.kernel.lock().delete_link(self.device.index).map_err(|error| BackendError::Kernel {
            object: format!("cannot delete the device {}", self.spec.name),
            source: error.into(),
        })
    }

    /// One pass: device, then what is missing from the packet's last look-up to its first, then what is stale the
    /// other way round.
    pub(crate) fn sync(&mut self, request: SyncRequest<'_>, own: &SubnetKey) -> SyncReport {
        let now = request.now;
        let mut report = SyncReport::default();
        self.update(request, own);
        report.unreachable = self.desired.unreachable().cloned().collect();
        if self.device_in_doubt {
            match self.ensure_device() {
                Ok(changes) => report.drifted += changes,
                Err(error) => return self.without_device(report, &error),
            }
        }
        report.merge(self.neighbours.look("the neighbours"));
        report.merge(self.fdb.look("the forwarding entries"));
        report.merge(self.routes.look("the routes"));
        report.merge(self.neighbours.put_missing(now));
        report.merge(self.fdb.put_missing(now));
        report.merge(self.routes.put_missing(now));
        if request.peers.is_complete() {
            report.merge(self.routes.drop_stale(now));
            report.merge(self.fdb.drop_stale(now));
            report.merge(self.neighbours.drop_stale(now));
        }
        report.merge(self.neighbours.finish(now));
        report.merge(self.fdb.finish(now));
        report.merge(self.routes.finish(now));
        report
    }

    fn without_device(&self, mut report: SyncReport, error: &BackendError) -> SyncReport {
        let object = format!("device {}", self.spec.name);
        report.failed.push(ObjectFailure { object, reason: flannel_core::chain(error) });
        report.retry_in = Some(DEVICE_RETRY);
        report
    }

    fn update(&mut self, request: SyncRequest<'_>, own: &SubnetKey) {
        match self.desired.update(request.peers, request.dirty, own, self.spec.family) {
            Update::Anew => self.want_exactly(request.peers, own),
            Update::Change { gone, come } => {
                gone.iter().for_each(|peer| self.forget(peer));
                for peer in &come {
                    if self.is_contested(peer) {
                        return self.want_exactly(request.peers, own);
                    }
                    self.want(peer);
                }
            }
        }
    }

    fn want_exactly(&mut self, peers: &PeerSet, own: &SubnetKey) {
        let objects = self.desired.all(peers, own, self.spec.family);
        self.neighbours.tracker.want_exactly(objects.neighbours);
        self.fdb.tracker.want_exactly(objects.fdb);
        self.routes.tracker.want_exactly(objects.routes);
    }

    /// Tells whether another peer has what this one wants.
    fn is_contested(&self, peer: &Peer) -> bool {
        self.fdb.tracker.wanted(&peer.mac).is_some()
            || self.neighbours.tracker.wanted(&peer.gateway()).is_some()
    }

    fn want(&mut self, peer: &Peer) {
        let others = self.desired.len().saturating_sub(1);
        self.neighbours.tracker.want(peer.gateway(), peer.mac);
        self.fdb.tracker.want(peer.mac, peer.public);
        self.routes.tracker.want(peer.subnet, OverlayRoute::to(peer.subnet, others));
    }

    fn forget(&mut self, peer: &Peer) {
        self.neighbours.tracker.forget(&peer.gateway());
        self.fdb.tracker.forget(&peer.mac);
        self.routes.tracker.forget(&peer.subnet);
    }

    /// Says that anything may have changed.
    pub(crate) fn distrust(&mut self) {
        self.device_in_doubt = true;
        self.distrust_tables();
    }

    fn distrust_tables(&mut self) {
        self.neighbours.tracker.distrust();
        self.fdb.tracker.distrust();
        self.routes.tracker.distrust();
    }

    /// Takes in what the kernel tells, and says what it means for this tunnel if it means anything.
    ///
    /// The kernel removes routes without a word when a device goes down or loses its last address, so these notices
    /// put everything in doubt.
    pub(crate) fn notice(&mut self, notice: &Notice) -> Option<String> {
        let name = &self.spec.name;
        let what = match notice {
            Notice::Overrun => Some("notices were lost".to_owned()),
            Notice::Link { link, removed } if link.index == self.device.index || link.name == *name => {
                let device = Some((link.mac, link.mtu)) != Some((Some(self.device.mac), self.device.mtu));
                let what = if *removed { "removed" } else { "changed" };
                (*removed || device || !link.up || link.index != self.device.index)
                    .then(|| format!("device {name} was {what}"))
            }
            Notice::Address { address, removed } if address.index == self.device.index => {
                let ours = self.spec.address.map(|address| address.net);
                let changed = *removed == (Some(address.net) == ours);
                changed.then(|| format!("{address} was {}", if *removed { "removed" } else { "added" }))
            }
            Notice::Link { .. } | Notice::Address { .. } => None,
            Notice::Route { route, removed } => return self.notice_route(route, *removed),
            Notice::Neighbour { neighbour, removed } => {
                let told = neighbour.index == self.device.index;
                let wanted = self.neighbours.tracker.wanted(&neighbour.address);
                let differs = told && differs(wanted, neighbour.mac.as_ref(), *removed);
                return differs.then(|| in_doubt(&mut self.neighbours, format!("{neighbour} changed")));
            }
            Notice::Fdb { entry, removed } => {
                let told = entry.index == self.device.index;
                let wanted = self.fdb.tracker.wanted(&entry.mac);
                let differs = told && differs(wanted, entry.destination.as_ref(), *removed);
                return differs.then(|| in_doubt(&mut self.fdb, format!("{entry} changed")));
            }
        };
        if what.is_some() {
            self.distrust();
        }
        what
    }

    fn notice_route(&mut self, route: &Route, removed: bool) -> Option<String> {
        let told = route.table == Route::MAIN_TABLE && route.protocol != Route::PROTOCOL_KERNEL;
        let here = route.index == Some(self.device.index);
        let wanted = self.routes.tracker.wanted(&route.destination);
        let found = OverlayRoute::from(route);
        let same = wanted.is_some_and(|wanted| Routes::will_do(wanted, &found));
        // A foreign route to a peer's subnet is in the way of ours; when it goes, ours can be put.
        let differs = if here { same == removed } else { wanted.is_some() };
        (told && differs).then(|| in_doubt(&mut self.routes, format!("{route} changed")))
    }
}

/// Tells whether a notice says anything else than what is wanted. Our own changes come back as notices too.
fn differs<V: PartialEq>(wanted: Option<&V>, told: Option<&V>, removed: bool) -> bool {
    if removed { wanted.is_some() && wanted == told } else { wanted != told }
}

fn in_doubt<T: Table>(table: &mut Reconciler<T>, what: String) -> String {
    table.tracker.distrust();
    what
}
