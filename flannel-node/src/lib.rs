//! What a node agent needs around a flannel [`Network`](flannel_core::Network).
//!
//! | module | provides |
//! |---|---|
//! | [`backends`] | the backend that a configuration names, and migration between two |
//! | [`subnet_file`] | `subnet.env`, which container runtimes read |
//! | [`status`] | the state of the network and of the agent around it |
//! | [`server`], [`client`] | health, readiness, metrics and status over HTTP |
//! | [`service_manager`] | the protocol of `sd_notify(3)`, and descriptors kept over a restart |
//! | [`probe`] | probes of the other hosts inside and outside of the tunnel |
//! | [`plan`] | what the agent would write on this host now |
//! | [`doctor`] | faults of this host, why they matter and what cures them |

mod agent;
pub mod backends;
pub mod capabilities;
pub mod client;
#[cfg(feature = "doctor")]
pub mod doctor;
pub mod plan;
#[cfg(feature = "probes")]
pub mod probe;
#[cfg(feature = "server")]
pub mod server;
pub mod service_manager;
pub mod status;
pub mod subnet_file;
mod text;

pub use agent::{AgentCommand, AgentOptions, NodeAgent};
pub use backends::BackendRegistry;
#[cfg(feature = "probes")]
pub use probe::MeshOptions;
pub use subnet_file::SubnetFile;
