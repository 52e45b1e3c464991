//! The status of a network at one moment.
//!
//! [`Network::status`](crate::Network::status) builds a [`NetworkStatus`] on demand, so a network pays nothing for it
//! otherwise. Programs read its JSON form: members keep their names and meaning, new ones may be added, and readers ignore
//! members that they don't know. Times are ages in seconds, which don't depend on the wall clock.

mod assess;
mod condition;
mod network;
mod probe;
mod serial;

pub(crate) use assess::conditions;
pub use condition::{Condition, ConditionName};
pub use network::{
    ConfigStatus, ExternalStatus, KernelStatus, LeaseStatus, NetworkStatus, PastError, PeerState, PeerStatus,
    PeersStatus, RegistryStatus, Repair, Waiting,
};
pub use probe::{MeshStatus, PeerProbe, ProbeMeans, ProbeSide, ProbeVerdict, ProbedPath};

#[cfg(test)]
mod tests;
