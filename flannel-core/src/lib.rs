//! The core of flannel, an overlay network for container hosts.
//!
//! Each host leases a subnet of one network, publishes how to reach it, learns the leases of the other hosts, and carries
//! the traffic of its containers to them. This crate contains what all ways of doing so share: types, traits, decisions,
//! and the event loop of a network on a host. It depends on no kernel interface, no store and no wall clock.
//!
//! - [`Network`] is the handle of a running network.
//! - [`SubnetRegistry`], [`LeaseManager`] and [`Backend`] are the interfaces to stores, managers and data planes.
//!   [`BackendDescriptor`] describes a backend without opening it.
//! - [`StaticLeaseManager`] gets the lease and the peers by method calls, for a network without a registry.
//! - [`NetworkConfig`], [`LeaseAttrs`] and [`SubnetKey`] read and write flannel's text formats.
//! - [`reconcile`] reconciles one kind of kernel object at a time.
//! - [`Claim`], [`LeaseSet`], [`Damping`], [`Backoff`] and [`choose`] decide and have no side effects.
//!
//! The public API contains types of other crates, which this crate re-exports: [`async_trait`](macro@async_trait) for
//! implementations of the traits, [`futures`], [`ipnet`], and tokio's [`watch`] channel.

mod acquire;
mod allocate;
mod backend;
mod backoff;
mod config;
mod config_reader;
mod damping;
mod descriptor;
mod descriptor_store;
mod event;
mod external;
mod facts;
mod family;
pub mod json;
mod lease;
mod lease_keeper;
mod lease_map;
mod lease_set;
mod manager;
mod network;
mod node;
mod options;
mod peers;
mod plan;
mod pool;
pub mod reconcile;
mod registry;
mod report;
mod running;
mod seconds;
mod state;
mod static_manager;
mod status;
mod subnet;

pub use async_trait::async_trait;
pub use futures;
pub use ipnet;
pub use tokio::sync::watch;

pub use acquire::{Claim, Step};
pub use allocate::choose;
pub use backend::{Backend, BackendAttrs, BackendError, OpenBackend, OpenRequest, SyncRequest};
pub use backoff::{Backoff, renew_after, renew_before};
pub use config::{BackendConfig, ConfigError, NetworkConfig};
pub use damping::{Damping, DampingOptions};
pub use descriptor::{
    BackendDescriptor, DataPath, KernelFeature, MigrationRole, TransportProtocol, TunnelDevice, TunnelPort,
};
pub use descriptor_store::DescriptorStore;
pub use event::{NetworkEvent, Phase};
pub use external::{ExternalChoice, ExternalInterface, ExternalUpdate};
pub use facts::{DeviceFacts, PeerFacts, PeerTraffic, TrafficCounters, TrafficStatus};
pub use family::IpFamilies;
pub use json::Json;
pub use lease::{
    BackendType, Lease, LeaseAttrs, LeaseError, LeaseMatch, NodeId, NodeIdError, PublicAddrs, Revision, Term,
};
pub use lease_set::{LeaseChange, LeaseSet};
pub use manager::{KeepEvent, LeaseManager, LeaseRequest, ManagerError, PeerEvent};
pub use network::{Network, NetworkTask, NetworkView};
pub use options::{ChooseExternal, NetworkOptions};
pub use peers::{Dirty, PeerChange, PeerSet};
pub use plan::{Plan, PlanRequest, PlannedAction, PlannedChange};
pub use pool::SubnetPool;
pub use registry::{
    BadRecord, BoxError, LastContact, RegistryError, RegistryEvent, Snapshot, StoreIdentity, SubnetRegistry,
    read_record, read_release, read_removal,
};
pub use report::{ObjectFailure, PeerFailure, SyncReport};
pub use running::{NetworkError, NotReady, Running, Shutdown};
pub use static_manager::{InvalidSubnet, StaticLeaseManager};
pub use status::{
    Condition, ConditionName, ConfigStatus, ExternalStatus, KernelStatus, LeaseStatus, MeshStatus,
    NetworkStatus, PastError, PeerProbe, PeerState, PeerStatus, PeersStatus, ProbeMeans, ProbeSide,
    ProbeVerdict, ProbedPath, RegistryStatus, Repair, Waiting,
};
pub use subnet::{SubnetKey, SubnetKeyError};

/// Formats an error with all its causes on one line.
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
        // Some libraries already include the cause in the error.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text.replace(['\n', '\r'], " ")
}
