//! The backend of a simulated host: the three tables of VXLAN, kept by the same engine in the same order.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use async_trait::async_trait;
use flannel_core::reconcile::{Layer, Reconciler, pass};
use flannel_core::{
    Backend, BackendAttrs, BackendError, BackendType, Dirty, ExternalInterface, Json, Lease, LeaseAttrs,
    OpenBackend, OpenRequest, PeerSet, SubnetKey, SyncReport, SyncRequest,
};
use flannel_netlink::Mac;
use ipnet::Ipv4Net;

use super::kernel::{Kernel, SimTable};
use super::link::Link;
use super::witness::Witness;

/// Opens the backend of one life of one host.
pub(super) struct OpenSim {
    pub(super) host: usize,
    pub(super) kernel: Kernel,
    pub(super) link: Link,
    pub(super) witness: Witness,
    /// The address of a new device.
    pub(super) fresh: Mac,
    /// Whether the device of the life before is lost.
    pub(super) anew: bool,
}

impl OpenBackend for OpenSim {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        let before = request.before.filter(|_| !self.anew).and_then(mac_of);
        let mac = before.unwrap_or(self.fresh);
        self.kernel.tables().device = Some(mac);
        Ok(Box::new(SimBackend {
            host: self.host,
            kernel: self.kernel.clone(),
            link: self.link.clone(),
            witness: self.witness.clone(),
            mac,
            own: None,
            is_contested: false,
            neighbours: Reconciler::new(SimTable::new(&self.kernel, |t| &mut t.neighbours, |_, _| {}, 1)),
            fdb: Reconciler::new(SimTable::new(&self.kernel, |t| &mut t.fdb, |_, _| {}, 2)),
            routes: Reconciler::new(SimTable::new(
                &self.kernel,
                |t| &mut t.routes,
                |t, k| t.dropped.push(*k),
                4,
            )),
        }))
    }
}

struct SimBackend {
    host: usize,
    kernel: Kernel,
    link: Link,
    witness: Witness,
    mac: Mac,
    own: Option<SubnetKey>,
    /// Whether two peers have the same device, as a host with two leases has, so that one's end is not the other's.
    is_contested: bool,
    neighbours: Reconciler<SimTable<Ipv4Addr, Mac>>,
    fdb: Reconciler<SimTable<Mac, Ipv4Addr>>,
    routes: Reconciler<SimTable<Ipv4Net, Ipv4Addr>>,
}

/// Writes what the lease of a host says about its device.
pub(super) fn data(mac: Mac) -> Option<Json> {
    Json::parse(&format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)).ok()
}

/// Reads it. The text has a fixed form here, so the cost of reading JSON in earnest is saved.
fn mac_of(attrs: &LeaseAttrs) -> Option<Mac> {
    let text = attrs.backend_data.as_ref()?.as_str();
    text.strip_prefix(r#"{"VNI":1,"VtepMAC":""#)?.strip_suffix(r#""}"#)?.parse().ok()
}

/// Reads where a lease's subnet is, and by which device.
pub(super) fn peer(subnet: SubnetKey, attrs: &LeaseAttrs) -> Option<(Ipv4Net, Mac, Ipv4Addr)> {
    Some((subnet.v4()?, mac_of(attrs)?, attrs.public.v4?))
}

impl SimBackend {
    fn update(&mut self, peers: &PeerSet, dirty: &Dirty) {
        match dirty {
            Dirty::All => {
                self.all(peers);
                self.distrust();
            }
            Dirty::Some(dirty) => {
                for subnet in dirty {
                    self.one(*subnet, peers);
                }
                if self.is_contested && !dirty.is_empty() {
                    self.all(peers);
                }
            }
        }
    }

    fn all(&mut self, peers: &PeerSet) {
        let known = || peers.iter().filter_map(|lease| peer(lease.subnet, &lease.attrs));
        let fdb: BTreeMap<_, _> = known().map(|(_, mac, public)| (mac, public)).collect();
        self.is_contested = fdb.len() < known().count();
        self.fdb.tracker.want_exactly(fdb.into_iter().collect());
        self.neighbours.tracker.want_exactly(known().map(|(subnet, mac, _)| (subnet.addr(), mac)).collect());
        self.routes.tracker.want_exactly(known().map(|(subnet, ..)| (subnet, subnet.addr())).collect());
    }

    fn distrust(&mut self) {
        self.neighbours.tracker.distrust();
        self.fdb.tracker.distrust();
        self.routes.tracker.distrust();
    }

    /// Returns what a peer was last told to be.
    fn told(&self, subnet: Ipv4Net) -> Option<(Mac, Ipv4Addr)> {
        let mac = self.neighbours.tracker.wanted(&subnet.addr())?;
        Some((*mac, *self.fdb.tracker.wanted(mac)?))
    }

    fn one(&mut self, subnet: SubnetKey, peers: &PeerSet) {
        let Some(net) = subnet.v4() else {
            return;
        };
        let now = peers.peer(&subnet).and_then(|lease| peer(subnet, &lease.attrs));
        let now = now.map(|(_, mac, public)| (mac, public));
        let before = self.told(net);
        if peers.is_complete() && before == now && self.witness.is_settled(subnet, self.link.heard()) {
            let host = self.host;
            self.witness.accuse(format_args!("host {host} was told of a change of {subnet}, which had none"));
        }
        if let Some((mac, _)) = before {
            self.neighbours.tracker.forget(&net.addr());
            self.fdb.tracker.forget(&mac);
            self.routes.tracker.forget(&net);
        }
        if let Some((mac, public)) = now {
            self.is_contested |= self.fdb.tracker.wanted(&mac).is_some();
            self.neighbours.tracker.want(net.addr(), mac);
            self.fdb.tracker.want(mac, public);
            self.routes.tracker.want(net, net.addr());
        }
    }

    /// Looks whether a route was dropped though the store has had its peer all the time.
    fn judge(&self) {
        let dropped = std::mem::take(&mut self.kernel.tables().dropped);
        let heard = self.link.heard();
        for subnet in dropped.into_iter().map(SubnetKey::from) {
            if Some(subnet) != self.own && self.witness.is_settled(subnet, heard) {
                let host = self.host;
                self.witness
                    .accuse(format_args!("host {host} dropped the route to {subnet}, which is there"));
            }
        }
    }
}

#[async_trait]
impl Backend for SimBackend {
    fn attrs(&self) -> BackendAttrs {
        BackendAttrs { backend_type: BackendType::VXLAN, data: data(self.mac), v6_data: None }
    }

    fn mtu(&self) -> u32 {
        1450
    }

    fn move_to(&mut self, _external: &ExternalInterface) -> Result<(), BackendError> {
        Ok(())
    }

    fn configure(&mut self, own: &Lease) -> Result<(), BackendError> {
        self.own = Some(own.subnet);
        Ok(())
    }

    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
        self.update(request.peers, request.dirty);
        let mut layers: [(&str, &mut dyn Layer); 3] = [
            ("the neighbours", &mut self.neighbours),
            ("the forwarding entries", &mut self.fdb),
            ("the routes", &mut self.routes),
        ];
        let report = pass(&mut layers, request.peers.is_complete(), request.now);
        self.judge();
        let (host, own) = (self.host, self.own);
        if report != SyncReport::default() {
            let (written, removed) = (report.written, report.removed);
            self.witness.note(format_args!("host {host} at {own:?}: {written} written, {removed} removed"));
        }
        report
    }

    async fn drifted(&mut self) -> String {
        self.kernel.changed().await;
        self.distrust();
        "a notice".to_owned()
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        *self.kernel.tables() = super::kernel::Tables::default();
        Ok(())
    }
}
