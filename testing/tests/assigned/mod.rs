//! A cluster in memory that assigns a subnet to each node by name, and its lease managers.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::{
    KeepEvent, Lease, LeaseAttrs, LeaseChange, LeaseManager, LeaseRequest, ManagerError, NetworkConfig,
    PeerEvent, PublicAddrs, RegistryError, SubnetKey, Term,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::watch;

/// The nodes of a cluster. Clones share them.
#[derive(Clone)]
pub(crate) struct Cluster {
    config: NetworkConfig,
    state: watch::Sender<State>,
}

#[derive(Clone, Default)]
struct State {
    nodes: BTreeMap<String, Node>,
    reassigned: u8,
    is_unreachable: bool,
}

/// A node as the cluster's API describes it.
#[derive(Clone, Default)]
struct Node {
    subnet: Option<SubnetKey>,
    address_override: Option<Ipv4Addr>,
    attrs: Option<LeaseAttrs>,
    is_ready: bool,
}

impl Node {
    /// Returns the node's lease once it has a subnet and published attributes.
    fn lease(&self) -> Option<Lease> {
        let mut lease = Lease::new(self.subnet?, self.attrs.clone()?);
        lease.term = Term::Permanent;
        if let Some(address) = self.address_override {
            lease.attrs.public = address.into();
        }
        Some(lease)
    }
}

impl Cluster {
    pub(crate) fn new(config: NetworkConfig) -> Self {
        Self { config, state: watch::Sender::new(State::default()) }
    }

    pub(crate) fn manager(&self, node: &str) -> AssignedManager {
        AssignedManager { cluster: self.clone(), node: node.to_owned() }
    }

    pub(crate) fn add_node(&self, name: &str) {
        self.state.send_modify(|state| {
            state.nodes.entry(name.to_owned()).or_default();
        });
    }

    pub(crate) fn assign(&self, name: &str, subnet: SubnetKey) {
        self.edit(name, |node| node.subnet = Some(subnet));
    }

    pub(crate) fn override_address(&self, name: &str, address: Ipv4Addr) {
        self.edit(name, |node| node.address_override = Some(address));
    }

    pub(crate) fn publish(&self, name: &str, attrs: LeaseAttrs) {
        self.edit(name, |node| node.attrs = Some(attrs));
    }

    /// Replaces the node with this subnet by a new node of the same name and another subnet.
    pub(crate) fn reassign(&self, subnet: SubnetKey) {
        self.state.send_modify(|state| {
            state.reassigned += 1;
            let other = format!("10.245.{}.0-27", state.reassigned).parse().unwrap();
            if let Some(node) = state.nodes.values_mut().find(|node| node.subnet == Some(subnet)) {
                *node =
                    Node { subnet: Some(other), address_override: node.address_override, ..Node::default() };
            }
        });
    }

    pub(crate) fn set_reachable(&self, is_reachable: bool) {
        self.state.send_modify(|state| state.is_unreachable = !is_reachable);
    }

    pub(crate) fn subnet_of(&self, name: &str) -> Option<SubnetKey> {
        self.state.borrow().nodes.get(name).and_then(|node| node.subnet)
    }

    pub(crate) fn is_ready(&self, name: &str) -> bool {
        self.state.borrow().nodes.get(name).is_some_and(|node| node.is_ready)
    }

    fn edit(&self, name: &str, edit: impl FnOnce(&mut Node)) {
        self.state.send_modify(|state| edit(state.nodes.get_mut(name).unwrap()));
    }
}

/// The lease manager of one node.
pub(crate) struct AssignedManager {
    cluster: Cluster,
    node: String,
}

impl AssignedManager {
    fn place(&self) -> String {
        format!("node {}", self.node)
    }

    fn node(&self) -> Result<Node, ManagerError> {
        let state = self.cluster.state.borrow();
        if state.is_unreachable {
            let error = RegistryError::Unavailable(self.describe(), "connection refused".into());
            return Err(error.into());
        }
        let reason = || ManagerError::NotAssigned { place: self.place(), reason: "no such node".to_owned() };
        state.nodes.get(&self.node).cloned().ok_or_else(reason)
    }
}

#[async_trait]
impl LeaseManager for AssignedManager {
    fn describe(&self) -> String {
        "a cluster in memory".to_owned()
    }

    fn host_name(&self) -> Option<String> {
        Some(self.node.clone())
    }

    fn peer_names(&self) -> BTreeMap<SubnetKey, String> {
        let state = self.cluster.state.borrow();
        state.nodes.iter().filter_map(|(name, node)| Some((node.subnet?, name.clone()))).collect()
    }

    async fn config(&self) -> Result<NetworkConfig, ManagerError> {
        Ok(self.cluster.config.clone())
    }

    /// The node's name identifies the host, so its addresses may change.
    async fn previous_lease(&self, _: PublicAddrs) -> Result<Option<Lease>, ManagerError> {
        Ok(self.node()?.lease())
    }

    async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError> {
        let node = self.node()?;
        if node.subnet.is_none() {
            let reason = "spec.podCIDR is empty".to_owned();
            return Err(ManagerError::NotAssigned { place: self.place(), reason });
        }
        self.cluster.publish(&self.node, request.attrs.clone());
        Ok(Node { attrs: Some(request.attrs.clone()), ..node }.lease().unwrap())
    }

    async fn publish(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, ManagerError> {
        let node = self.node()?;
        if node.subnet != Some(own.subnet) {
            return Err(RegistryError::Gone(own.subnet).into());
        }
        self.cluster.publish(&self.node, attrs.clone());
        Ok(Node { attrs: Some(attrs.clone()), ..node }.lease().unwrap())
    }

    fn host_ready(&self, own: &Lease) {
        self.cluster.edit(&self.node, |node| node.is_ready |= node.subnet == Some(own.subnet));
    }

    fn keep(&self, own: Lease) -> BoxStream<'static, KeepEvent> {
        let (name, mut state) = (self.node.clone(), self.cluster.state.subscribe());
        let lost = async move {
            let is_lost =
                |state: &State| state.nodes.get(&name).and_then(|node| node.subnet) != Some(own.subnet);
            let _ = state.wait_for(is_lost).await;
            KeepEvent::Lost("the cluster assigned another subnet".to_owned())
        };
        stream::iter([KeepEvent::Permanent]).chain(stream::once(lost)).boxed()
    }

    fn watch(&self, own: SubnetKey) -> BoxStream<'static, PeerEvent> {
        let mut state = self.cluster.state.subscribe();
        state.mark_changed();
        let watch = Watch { own, state, known: BTreeMap::new(), was_unreachable: false, is_complete: false };
        let events = stream::unfold(watch, |mut watch| async {
            watch.state.changed().await.ok()?;
            Some((stream::iter(watch.events()), watch))
        });
        // The cluster outlives its watches only while a manager is open.
        events.flatten().chain(stream::pending()).boxed()
    }

    /// The cluster decides who has which subnet.
    async fn release(&self, _: &Lease) -> Result<(), ManagerError> {
        Ok(())
    }
}

struct Watch {
    own: SubnetKey,
    state: watch::Receiver<State>,
    known: BTreeMap<SubnetKey, Lease>,
    was_unreachable: bool,
    is_complete: bool,
}

impl Watch {
    /// Returns the differences between the peers that were reported and the current ones.
    fn events(&mut self) -> Vec<PeerEvent> {
        let state = self.state.borrow_and_update().clone();
        let mut events = Vec::new();
        if state.is_unreachable {
            if !std::mem::replace(&mut self.was_unreachable, true) {
                events.push(PeerEvent::RegistryUnavailable("connection refused".to_owned()));
            }
            return events;
        }
        if std::mem::take(&mut self.was_unreachable) {
            events.push(PeerEvent::RegistryAvailable);
        }
        let leases = state.nodes.values().filter_map(Node::lease).filter(|lease| lease.subnet != self.own);
        let current: BTreeMap<_, _> = leases.map(|lease| (lease.subnet, lease)).collect();
        let removed = self.known.keys().filter(|subnet| !current.contains_key(subnet));
        let changed = current.values().filter(|lease| self.known.get(&lease.subnet) != Some(lease));
        let changes: Vec<_> = removed
            .map(|subnet| LeaseChange::Removed(*subnet))
            .chain(changed.map(|lease| LeaseChange::Put(Arc::new(lease.clone()))))
            .collect();
        if !changes.is_empty() {
            events.push(PeerEvent::Changed(changes));
        }
        if !std::mem::replace(&mut self.is_complete, true) {
            events.push(PeerEvent::Complete);
        }
        self.known = current;
        events
    }
}
