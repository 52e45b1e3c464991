//! What a start of the agent, or a pass of the one that runs, would write on this host now.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use flannel_core::{
    BackendError, ExternalInterface, Lease, LeaseChange, NetworkConfig, NodeId, OpenBackend, PeerSet, Plan,
    PlanRequest, PlannedChange, PublicAddrs, SubnetKey,
};
use flannel_registry::CachedNetwork;
use serde::Serialize;

/// What would be written on a host, as programs read it.
#[derive(Clone, Debug, Serialize)]
pub struct HostPlan {
    /// Where lease and peers come from.
    pub source: PlanSource,
    /// The subnets of the host's lease.
    pub subnets: SubnetKey,
    /// The number of other hosts.
    pub peers: usize,
    /// What would be written, in this order.
    pub changes: Vec<PlannedChange>,
    /// The peers that would not be reached.
    pub unreachable: Vec<UnreachablePeer>,
}

/// Where lease and peers of a plan come from.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PlanSource {
    /// The registry.
    Registry {
        /// Its name for people.
        name: String,
    },
    /// The cache of the last run.
    Cache {
        /// The cache file.
        file: PathBuf,
        /// Why the registry was not used.
        reason: String,
    },
}

/// A peer that would not be reached.
#[derive(Clone, Debug, Serialize)]
pub struct UnreachablePeer {
    /// Its subnets.
    #[serde(rename = "subnets")]
    pub peer: SubnetKey,
    /// Why it would not be reached.
    pub reason: String,
}

/// A network as its registry or the cache of the last run knows it.
#[derive(Clone, Debug)]
pub struct NetworkSnapshot {
    /// Where it comes from.
    pub source: PlanSource,
    /// The configuration.
    pub config: NetworkConfig,
    /// All leases, or those of the peers.
    pub leases: Vec<Arc<Lease>>,
    /// The host's own lease, if the source names it.
    pub own: Option<Lease>,
}

impl NetworkSnapshot {
    /// Reads the cache of the last run: `file`, for the network under `key`. `reason` is why the registry is not used.
    ///
    /// # Errors
    ///
    /// Returns `reason` and what is wrong with the cache.
    pub fn from_cache(file: PathBuf, key: &str, reason: String) -> Result<Self, String> {
        let nothing = |why: &str| format!("{reason}, and {why}");
        match CachedNetwork::read(&file, key) {
            Ok(Some(CachedNetwork { config, own, peers, .. })) => {
                let source = PlanSource::Cache { file, reason };
                Ok(Self { source, config, leases: peers, own: Some(own) })
            }
            Ok(None) => Err(nothing(&format!("the cache {} does not exist", file.display()))),
            Err(error) => Err(nothing(&format!("the cache {} cannot be used: {error}", file.display()))),
        }
    }

    /// Returns the lease of the host with these addresses and this id.
    pub fn own(&self, public: &PublicAddrs, node: Option<NodeId>) -> Option<Lease> {
        let own = || own_lease(&self.leases, public, node).map(|lease| Lease::clone(lease));
        self.own.clone().or_else(own)
    }
}

/// Plans what `backends` would write on this host for its lease `own`.
///
/// # Errors
///
/// Returns the backend's error.
pub fn host_plan(
    backends: &dyn OpenBackend,
    network: NetworkSnapshot,
    external: &ExternalInterface,
    own: &Lease,
) -> Result<HostPlan, BackendError> {
    // A cache is no reason to remove anything.
    let peers = peers(network.leases, own, matches!(network.source, PlanSource::Registry { .. }));
    let request = PlanRequest::new(&network.config, external, own, &peers);
    let Plan { changes, unreachable, .. } = backends.plan(request)?;
    let unreachable = unreachable
        .into_iter()
        .map(|failure| UnreachablePeer { peer: failure.peer, reason: failure.reason })
        .collect();
    Ok(HostPlan { source: network.source, subnets: own.subnet, peers: peers.len(), changes, unreachable })
}

/// Returns the peers of a host. Incomplete ones are no reason to remove anything.
pub(crate) fn peers(
    leases: impl IntoIterator<Item = Arc<Lease>>,
    own: &Lease,
    are_complete: bool,
) -> PeerSet {
    let mut peers = PeerSet::default();
    let others = leases.into_iter().filter(|lease| lease.subnet != own.subnet);
    peers.extend(others.map(LeaseChange::Put));
    if are_complete {
        peers.complete();
    }
    peers
}

/// Returns the host's lease among all: by its id, or else by its public address.
pub fn own_lease<'l>(
    leases: &'l [Arc<Lease>],
    public: &PublicAddrs,
    node: Option<NodeId>,
) -> Option<&'l Arc<Lease>> {
    let tied = leases.iter().filter_map(|lease| Some((lease.match_host(public, node)?, lease)));
    tied.min_by_key(|(tie, lease)| (*tie, lease.subnet)).map(|(_, lease)| lease)
}

/// Reads the id of this host, if it has one.
///
/// # Errors
///
/// Returns why the file cannot be read.
pub fn read_node_id(file: &Path) -> io::Result<Option<NodeId>> {
    Ok(fs::read_to_string(file)?.trim().parse().ok())
}
