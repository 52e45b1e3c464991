//! One tunnel: a device and its three tables, for one family.

use flannel_core::reconcile::{Layer, Reconciler, Table, pass};
use flannel_core::{BackendError, Dirty, ObjectFailure, SubnetKey, SyncReport, SyncRequest};
use flannel_netlink::{Family, Namespace, Notice, Route};

use crate::desired::{Desired, Wanted};
use crate::device::{Device, DeviceSpec, Ensured, OverlayAddress};
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
        let Ensured { device, .. } = spec.ensure(&mut kernel.lock(), &namespace)?.complete()?;
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

    pub(crate) fn family(&self) -> Family {
        self.spec.family
    }

    pub(crate) fn device(&self) -> Device {
        self.device
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
        self.routes.table().0.index = index;
        if ensured.changes > 0 {
            self.distrust_tables();
        }
        Ok(ensured)
    }

    /// Removes the device, and with it everything on it.
    pub(crate) fn remove(&self) -> Result<(), BackendError> {
        self.spec.remove(&mut self.kernel.lock())
    }

    /// One pass: device, then what is missing from the packet's last look-up to its first, then what is stale the
    /// other way round.
    pub(crate) fn sync(&mut self, request: SyncRequest<'_>, own: &SubnetKey) -> SyncReport {
        let now = request.now;
        let mut report = SyncReport::default();
        if *request.dirty == Dirty::All {
            self.distrust();
        }
        self.update(request, own);
        report.unreachable = self.desired.unreachable().cloned().collect();
        if self.device_in_doubt {
            match self.ensure_device() {
                Ok(ensured) => {
                    report.drifted += ensured.changes;
                    ensured.failed.iter().for_each(|error| self.device_failed(&mut report, error));
                }
                Err(error) => {
                    self.device_failed(&mut report, &error);
                    return report;
                }
            }
        }
        let mut layers: [(&str, &mut dyn Layer); 3] = [
            ("the neighbours", &mut self.neighbours),
            ("the forwarding entries", &mut self.fdb),
            ("the routes", &mut self.routes),
        ];
        report.merge(pass(&mut layers, request.peers.is_complete(), now));
        report
    }

    fn device_failed(&self, report: &mut SyncReport, error: &BackendError) {
        report.failed.push(ObjectFailure {
            object: format!("device {}", self.spec.name),
            reason: flannel_core::chain(error),
        });
        report.retry_in = Some(DEVICE_RETRY);
    }

    fn update(&mut self, request: SyncRequest<'_>, own: &SubnetKey) {
        let mut wanted = Wanted {
            neighbours: &mut self.neighbours.tracker,
            fdb: &mut self.fdb.tracker,
            routes: &mut self.routes.tracker,
        };
        self.desired.update(request.peers, request.dirty, own, self.spec.family, &mut wanted);
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
        let (name, index) = (&self.spec.name, self.device.index);
        let what = match notice {
            Notice::Overrun => Some("notices were lost".to_owned()),
            Notice::Link { link, removed } if link.index == index => {
                let what = if *removed { "removed" } else { "changed" };
                (*removed || !self.spec.is_met_by(link)).then(|| format!("device {name} was {what}"))
            }
            Notice::Link { link, removed: false } if link.name == *name => {
                Some(format!("another device {name} was made"))
            }
            Notice::Link { link, removed: false } if link.name == self.spec.lower_name => {
                (link.index != self.spec.lower).then(|| format!("the interface {} was made", link.name))
            }
            Notice::Address { address, removed } if address.index == index => {
                let is_ours = self.spec.address.is_some_and(|ours| ours.net == address.net);
                let changed = if *removed { is_ours } else { self.spec.is_leftover(address) };
                changed.then(|| format!("{address} was {}", if *removed { "removed" } else { "added" }))
            }
            Notice::Link { .. } | Notice::Address { .. } => None,
            Notice::Route { route, removed } => return self.notice_route(route, *removed),
            Notice::Neighbour { neighbour, removed } => {
                let wanted = self.neighbours.tracker.wanted(&neighbour.address);
                let found = neighbour.mac.filter(|_| neighbour.is_permanent() && !removed);
                let differs = neighbour.index == index && wanted != found.as_ref();
                return differs.then(|| in_doubt(&mut self.neighbours, format!("{neighbour} changed")));
            }
            Notice::Fdb { entry, removed } => {
                let wanted = self.fdb.tracker.wanted(&entry.mac);
                let told = entry.destination.filter(|_| entry.is_permanent());
                // Of several destinations of one address, only the one that is wanted is missed.
                let as_wanted = wanted == told.as_ref();
                let differs = if *removed { wanted.is_some() && as_wanted } else { !as_wanted };
                let differs = entry.index == index && entry.bridge.is_none() && differs;
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
        let differs = if here { same == removed } else { wanted.is_some() };
        if !(told && differs) {
            return None;
        }
        // It may have been in the way of ours.
        self.routes.tracker.retry(&route.destination);
        Some(in_doubt(&mut self.routes, format!("{route} changed")))
    }
}

fn in_doubt<T: Table>(table: &mut Reconciler<T>, what: String) -> String {
    table.tracker.distrust();
    what
}
