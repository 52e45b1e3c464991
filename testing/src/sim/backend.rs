//! The backend of a simulated host: the three tables of VXLAN, reconciled by the real engine in the real order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use async_trait::async_trait;
use flannel_core::reconcile::{Reconciler, TableSync, pass};
use flannel_core::{
    Backend, BackendAttrs, BackendError, BackendType, Dirty, ExternalInterface, Json, Lease, LeaseAttrs,
    OpenBackend, OpenRequest, PeerSet, SubnetKey, SyncReport, SyncRequest,
};
use flannel_netlink::Mac;
use ipnet::Ipv4Net;

use super::checker::InvariantChecker;
use super::kernel::{Kernel, SimTable};
use super::link::StoreLink;

/// Opens the backend for one run of a host's process.
pub(super) struct OpenSim {
    pub(super) host: usize,
    pub(super) kernel: Kernel,
    pub(super) link: StoreLink,
    pub(super) checker: InvariantChecker,
    /// The MAC address of a new device.
    pub(super) new_mac: Mac,
    /// Whether the host rebooted and lost its device.
    pub(super) rebooted: bool,
}

impl OpenBackend for OpenSim {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        let before = request.before.filter(|_| !self.rebooted).and_then(mac_of);
        let mac = before.unwrap_or(self.new_mac);
        self.kernel.tables().device = Some(mac);
        Ok(Box::new(SimBackend {
            host: self.host,
            kernel: self.kernel.clone(),
            link: self.link.clone(),
            checker: self.checker.clone(),
            data: data(mac),
            own: None,
            shared: BTreeMap::new(),
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
    link: StoreLink,
    checker: InvariantChecker,
    data: Option<Json>,
    own: Option<SubnetKey>,
    /// The peers that share a device, such as two leases of one host. Removing one must keep the FDB entry of the
    /// others; it points to the last of them.
    shared: BTreeMap<Mac, BTreeMap<Ipv4Net, Ipv4Addr>>,
    neighbours: Reconciler<SimTable<Ipv4Addr, Mac>>,
    fdb: Reconciler<SimTable<Mac, Ipv4Addr>>,
    routes: Reconciler<SimTable<Ipv4Net, Ipv4Addr>>,
}

/// Returns the backend data of a lease.
pub(super) fn data(mac: Mac) -> Option<Json> {
    Json::parse(&format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)).ok()
}

/// Parses the MAC address of a lease. The format is fixed here, so a full JSON parser is not needed.
fn mac_of(attrs: &LeaseAttrs) -> Option<Mac> {
    let text = attrs.backend_data.as_ref()?.as_str();
    text.strip_prefix(r#"{"VNI":1,"VtepMAC":""#)?.strip_suffix(r#""}"#)?.parse().ok()
}

/// Returns the subnet, device and address of a lease.
pub(super) fn peer(subnet: SubnetKey, attrs: &LeaseAttrs) -> Option<(Ipv4Net, Mac, Ipv4Addr)> {
    Some((subnet.v4()?, mac_of(attrs)?, attrs.public.v4?))
}

/// Returns the subnet, device and address of each peer.
fn vxlan_peers(peers: &PeerSet) -> impl Iterator<Item = (Ipv4Net, Mac, Ipv4Addr)> {
    peers.iter().filter_map(|lease| peer(lease.subnet, &lease.attrs))
}

impl SimBackend {
    fn update(&mut self, peers: &PeerSet, dirty: &Dirty) {
        match dirty {
            Dirty::All => {
                self.set_all(peers);
                self.mark_stale();
            }
            Dirty::Some(dirty) => self.set_some(peers, dirty),
        }
    }

    fn set_all(&mut self, peers: &PeerSet) {
        let known: Vec<_> = vxlan_peers(peers).collect();
        let neighbours = known.iter().map(|(subnet, mac, _)| (subnet.addr(), *mac));
        self.neighbours.tracker.set_all_desired(neighbours.collect());
        self.routes
            .tracker
            .set_all_desired(known.iter().map(|(subnet, ..)| (*subnet, subnet.addr())).collect());
        let mut by_device = known;
        // The sort is stable, so the last peer of a device stays last.
        by_device.sort_by_key(|(_, mac, _)| *mac);
        self.shared.clear();
        for users in by_device.chunk_by(|one, other| one.1 == other.1).filter(|users| users.len() > 1) {
            let (_, mac, _) = users[0];
            self.shared.insert(mac, users.iter().map(|(subnet, _, public)| (*subnet, *public)).collect());
        }
        self.fdb
            .tracker
            .set_all_desired(by_device.into_iter().map(|(_, mac, public)| (mac, public)).collect());
    }

    /// Applies the changes of some peers: first those that left a device, then those that use one.
    fn set_some(&mut self, peers: &PeerSet, dirty: &BTreeSet<SubnetKey>) {
        let mut updated = Vec::new();
        for subnet in dirty {
            let Some(net) = subnet.v4() else {
                continue;
            };
            let now = peers.peer(subnet).and_then(|lease| peer(*subnet, &lease.attrs));
            let now = now.map(|(_, mac, public)| (mac, public));
            let before = self.last_applied(net);
            if before == now {
                self.check_spurious_change(*subnet, peers);
                continue;
            }
            let mac_before = before.map(|(mac, _)| mac);
            if let Some(mac) = mac_before.filter(|mac| now.is_none_or(|(now, _)| now != *mac)) {
                self.leave(net, mac);
            }
            match now {
                Some((mac, public)) => updated.push((net, mac, public, mac_before != Some(mac))),
                None => {
                    self.neighbours.tracker.unset_desired(&net.addr());
                    self.routes.tracker.unset_desired(&net);
                }
            }
        }
        let mut newly_shared = BTreeSet::new();
        for (net, mac, public, is_new) in updated {
            if let Some(users) = self.shared.get_mut(&mac) {
                users.insert(net, public);
            } else if is_new && self.fdb.tracker.desired(&mac).is_some() {
                newly_shared.insert(mac);
            }
            self.neighbours.tracker.set_desired(net.addr(), mac);
            self.fdb.tracker.set_desired(mac, self.last_of(&mac).unwrap_or(public));
            self.routes.tracker.set_desired(net, net.addr());
        }
        self.record_shared(peers, &newly_shared);
    }

    /// Records the devices that more than one peer uses.
    fn record_shared(&mut self, peers: &PeerSet, newly_shared: &BTreeSet<Mac>) {
        if newly_shared.is_empty() {
            return;
        }
        for (subnet, mac, public) in vxlan_peers(peers).filter(|(_, mac, _)| newly_shared.contains(mac)) {
            self.shared.entry(mac).or_default().insert(subnet, public);
        }
        for mac in newly_shared {
            if let Some(last) = self.last_of(mac) {
                self.fdb.tracker.set_desired(*mac, last);
            }
        }
    }

    /// Records that a peer no longer uses a device.
    fn leave(&mut self, subnet: Ipv4Net, mac: Mac) {
        if let Some(users) = self.shared.get_mut(&mac) {
            users.remove(&subnet);
        }
        match self.last_of(&mac) {
            Some(last) => self.fdb.tracker.set_desired(mac, last),
            None => self.fdb.tracker.unset_desired(&mac),
        }
        if self.shared.get(&mac).is_some_and(|users| users.len() < 2) {
            self.shared.remove(&mac);
        }
    }

    /// Returns the address of a shared device.
    fn last_of(&self, mac: &Mac) -> Option<Ipv4Addr> {
        self.shared.get(mac)?.values().next_back().copied()
    }

    /// Reports a violation if a peer was marked dirty although the store has had it unchanged throughout.
    fn check_spurious_change(&self, subnet: SubnetKey, peers: &PeerSet) {
        if peers.is_complete() && self.checker.is_settled(subnet, self.link.synced_at()) {
            let host = self.host;
            self.checker.violation(format_args!(
                "host {host} was notified of a change of {subnet} that did not happen"
            ));
        }
    }

    fn mark_stale(&mut self) {
        self.neighbours.tracker.mark_stale();
        self.fdb.tracker.mark_stale();
        self.routes.tracker.mark_stale();
    }

    /// Returns the device and address of a peer after the last sync.
    fn last_applied(&self, subnet: Ipv4Net) -> Option<(Mac, Ipv4Addr)> {
        let mac = self.neighbours.tracker.desired(&subnet.addr())?;
        let shared = self.shared.get(mac).and_then(|users| users.get(&subnet));
        Some((*mac, *shared.or_else(|| self.fdb.tracker.desired(mac))?))
    }

    /// Reports a violation for each dropped route whose peer the store has had throughout.
    fn check_dropped_routes(&self) {
        let dropped = std::mem::take(&mut self.kernel.tables().dropped);
        let synced_at = self.link.synced_at();
        for subnet in dropped.into_iter().map(SubnetKey::from) {
            if Some(subnet) != self.own && self.checker.is_settled(subnet, synced_at) {
                let host = self.host;
                self.checker.violation(format_args!(
                    "host {host} dropped the route to {subnet}, which the store has"
                ));
            }
        }
    }
}

#[async_trait]
impl Backend for SimBackend {
    fn attrs(&self) -> BackendAttrs {
        BackendAttrs::new(BackendType::VXLAN).with_data(self.data.clone())
    }

    fn mtu(&self) -> u32 {
        1450
    }

    fn update_interface(&mut self, _external: &ExternalInterface) -> Result<(), BackendError> {
        Ok(())
    }

    fn configure(&mut self, own: &Lease) -> Result<(), BackendError> {
        self.own = Some(own.subnet);
        Ok(())
    }

    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
        self.update(request.peers, request.dirty);
        let mut layers: [(&str, &mut dyn TableSync); 3] = [
            ("the neighbours", &mut self.neighbours),
            ("the FDB entries", &mut self.fdb),
            ("the routes", &mut self.routes),
        ];
        let report = pass(&mut layers, request.peers.is_complete(), request.now);
        self.check_dropped_routes();
        let (host, own) = (self.host, self.own);
        if report != SyncReport::default() {
            let (written, removed) = (report.written, report.removed);
            self.checker.record(format_args!("host {host} at {own:?}: {written} written, {removed} removed"));
        }
        report
    }

    async fn wait_for_drift(&mut self) -> String {
        self.kernel.changed().await;
        self.mark_stale();
        "notified".to_owned()
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        *self.kernel.tables() = super::kernel::Tables::default();
        Ok(())
    }
}
