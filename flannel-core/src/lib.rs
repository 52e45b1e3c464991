//! The heart of flannel, an overlay network for container hosts.
//!
//! Every host leases a subnet from one network, says how it can be reached, learns the leases of all other hosts, and
//! carries the traffic of its containers to them. This crate holds what is common to all ways of doing so: the types,
//! the seams, the decisions, and the loop that runs a network on a host. It knows no kernel, no etcd and no clock of
//! its own.
//!
//! - [`Network`] is what an orchestrator holds.
//! - [`SubnetRegistry`], [`LeaseManager`] and [`Backend`] are the seams where stores and data planes plug in.
//! - [`StaticLeaseManager`] takes lease and peers by calls: a network without any registry.
//! - [`NetworkConfig`], [`LeaseAttrs`] and [`SubnetKey`] read and write flannel's own text forms.
//! - [`reconcile`] makes one kind of kernel object what it should be.
//! - [`Claim`], [`LeaseSet`], [`Damping`], [`Backoff`] and [`choose`] decide, and do nothing else.

mod acquire;
mod allocate;
mod backend;
mod backoff;
mod config;
mod damping;
mod descriptor;
mod descriptor_store;
mod event;
mod external;
mod family;
pub mod json;
mod lease;
mod lease_keeper;
mod lease_map;
mod lease_set;
mod manager;
mod network;
mod node;
mod peers;
mod plan;
mod pool;
pub mod reconcile;
mod registry;
mod state;
mod static_manager;
mod status;
mod subnet;

pub use acquire::{Claim, Step};
pub use allocate::choose;
pub use backend::{
    Backend, BackendAttrs, BackendError, DeviceFacts, ObjectFailure, OpenBackend, OpenRequest, PeerFailure,
    SyncReport, SyncRequest,
};
pub use backoff::{Backoff, renew_after, renew_before};
pub use config::{BackendConfig, ConfigError, NetworkConfig};
pub use damping::{Damping, DampingOptions};
pub use descriptor::{
    BackendDescriptor, DataPath, KernelFeature, MigrationRole, TransportProtocol, TunnelDevice, TunnelPort,
};
pub use descriptor_store::DescriptorStore;
pub use event::{NetworkEvent, Phase};
pub use external::{ExternalChoice, ExternalInterface, ExternalUpdate};
pub use family::IpFamilies;
pub use json::Json;
pub use lease::{
    BackendType, Lease, LeaseAttrs, LeaseError, LeaseMatch, NodeId, NodeIdError, PublicAddrs, Revision, Term,
};
pub use lease_set::{LeaseChange, LeaseSet};
pub use manager::{KeepEvent, LeaseManager, LeaseRequest, ManagerError, PeerEvent};
pub use network::{
    ChooseExternal, Network, NetworkError, NetworkOptions, NetworkTask, NetworkView, Running, Shutdown,
};
pub use peers::{Dirty, PeerChange, PeerSet};
pub use plan::{Plan, PlanRequest, PlannedAction, PlannedChange};
pub use pool::SubnetPool;
pub use registry::{
    BadRecord, BoxError, LastContact, RegistryError, RegistryEvent, Snapshot, StoreIdentity, SubnetRegistry,
    read_record, read_removal,
};
pub use static_manager::{InvalidSubnet, StaticLeaseManager};
pub use status::{
    Condition, ConditionName, ConfigStatus, ExternalStatus, KernelStatus, LeaseStatus, MeshStatus,
    NetworkStatus, PastError, PeerProbe, PeerState, PeerStatus, PeerTraffic, PeersStatus, ProbeMeans,
    ProbeSide, ProbeVerdict, ProbedPath, RegistryStatus, Repair, TrafficCounters, TrafficStatus, Waiting,
};
pub use subnet::{SubnetKey, SubnetKeyError};

/// Writes an error with all its causes on one line.
///
/// ```
/// let error = flannel_core::RegistryError::Unavailable("etcd".into(), "connection refused".into());
/// assert_eq!(flannel_core::chain(&error), "etcd does not answer: connection refused");
/// ```
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Some libraries repeat the cause in the error; nobody needs to read it twice.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text.replace(['\n', '\r'], " ")
}
