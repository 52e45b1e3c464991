//! What a node agent needs around a flannel [`Network`](flannel_core::Network).
//!
//! [`NodeAgent`] runs the network with its firewall rules, subnet file, health, metrics, status socket, probes and service
//! manager. The parts also work alone:
//!
//! | part | provides |
//! |---|---|
//! | [`BackendRegistry`] | the backends of the program by name, and migration from one to another |
//! | [`SubnetFile`], [`subnet_file`] | `subnet.env`, which container runtimes read |
//! | [`status`] | the status of the network and of the agent |
//! | [`server`], [`client`] | health, readiness, metrics and status over HTTP (feature `server`) |
//! | [`service_manager`] | `sd_notify(3)`, and descriptors that last across a restart |
//! | [`probe`] | probes of the other hosts, inside and outside of the tunnel (feature `probes`) |
//! | [`plan`] | what the agent would change on this host now |
//! | [`doctor`] | the faults of this host, why they matter, and their cures (feature `doctor`) |
//!
//! The crate depends on no backend, and on no etcd, HTTP or TLS crate: a program links the backends and the registry that
//! it uses.
//!
//! ```no_run
//! use flannel_backend_vxlan::OpenVxlan;
//! use flannel_core::NetworkOptions;
//! use flannel_dataplane::InterfaceSelector;
//! use flannel_firewall::{FirewallOptions, RuleOptions};
//! use flannel_netlink::Namespace;
//! use flannel_node::{AgentOptions, BackendRegistry, MeshOptions, NodeAgent};
//! use flannel_registry::{MemoryRegistry, RegistryLeaseManager};
//!
//! # async fn run(shutdown: impl Future<Output = ()>) -> Result<(), Box<dyn std::error::Error>> {
//! let namespace = Namespace::current()?;
//! let backends = BackendRegistry::new().with(OpenVxlan::new(namespace.clone()));
//! // The interface of the default route.
//! let choice = InterfaceSelector::new().choose(&namespace)?;
//! let manager = RegistryLeaseManager::new(MemoryRegistry::new());
//! let mut network = NetworkOptions::new(manager, backends.clone(), choice.external.clone());
//! network.choose_external = Some(choice.into_chooser());
//!
//! let mut options = AgentOptions::default();
//! options.subnet_file = Some("/run/flannel/subnet.env".into());
//! options.firewall = Some(FirewallOptions::new(RuleOptions::default().with_masquerade(true)));
//! options.observe.health = Some("0.0.0.0:8090".parse()?);
//! options.mesh = Some(MeshOptions::default());
//! NodeAgent::new(namespace, network, backends, options).run_until(shutdown).await?;
//! # Ok(())
//! # }
//! ```

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
