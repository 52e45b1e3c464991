//! Where flannel keeps its leases, and how a host gets, keeps and watches them.
//!
//! - [`MemoryRegistry`] (feature `memory`, on by default) is a store inside the process.
//! - `Etcd3Registry` (feature `etcd-v3`) is etcd, over its v3 interface, where flannel v0.18 and later keep leases.
//! - `Etcd2Registry` (feature `etcd-v2`) is etcd, over its v2 interface, where earlier ones keep them.
//! - [`RegistryLeaseManager`] is the [`LeaseManager`](flannel_core::LeaseManager) of a host over any store.
//! - `migrate` (both features) moves a network from the one to the other while its hosts run.
//! - [`CachedLeaseManager`] stands before any lease manager and keeps what was last known in a file, to start from it
//!   when the store does not answer.
//!
//! Without the features `etcd-v3` and `etcd-v2` nothing here needs HTTP or TLS; only `etcd-v3` needs a protocol
//! compiler.
//!
//! A network of two hosts in one process:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use flannel_core::{LeaseAttrs, LeaseManager, LeaseRequest, PeerEvent};
//! use flannel_registry::{RegistryLeaseManager, MemoryRegistry};
//! use futures::StreamExt;
//! use std::net::Ipv4Addr;
//!
//! let registry = MemoryRegistry::new();
//! registry.set_config(r#"{"Network": "10.5.0.0/16"}"#);
//!
//! let mut subnets = Vec::new();
//! let hosts = [RegistryLeaseManager::new(registry.clone()), RegistryLeaseManager::new(registry)];
//! for (i, host) in (1..).zip(&hosts) {
//!     let config = host.config().await?;
//!     let attrs = LeaseAttrs::new(Ipv4Addr::new(192, 168, 0, i).into());
//!     let request = LeaseRequest::new(&config, &attrs);
//!     subnets.push(host.acquire(request).await?.subnet);
//! }
//! assert_ne!(subnets[0], subnets[1]);
//!
//! let mut peers = hosts[0].watch(subnets[0]);
//! assert!(matches!(peers.next().await, Some(PeerEvent::Complete)), "the first host was alone");
//! assert!(matches!(peers.next().await, Some(PeerEvent::Changed(joined)) if joined.len() == 1));
//! # Ok(())
//! # }
//! ```

mod atomic_file;
mod cache;
mod cached;
mod cached_network;
mod clock;
#[cfg(any(feature = "etcd-v2", feature = "etcd-v3"))]
mod etcd;
#[cfg(feature = "etcd-v2")]
mod etcd2;
#[cfg(feature = "etcd-v3")]
mod etcd3;
#[cfg(all(feature = "etcd-v2", feature = "etcd-v3"))]
mod etcd_api;
mod identity;
mod lease_manager;
#[cfg(feature = "memory")]
mod memory;
#[cfg(all(feature = "etcd-v2", feature = "etcd-v3"))]
mod migration;
#[cfg(any(feature = "etcd-v2", feature = "etcd-v3", feature = "memory"))]
mod news;
mod sys;

pub use atomic_file::{WriteError, write_atomically};
pub use cached::{CacheOptions, CachedLeaseManager};
pub use cached_network::CachedNetwork;
pub use clock::{BootClock, Clock, TokioClock};
#[cfg(any(feature = "etcd-v2", feature = "etcd-v3"))]
pub use etcd::{CertificateDates, certificate_dates};
#[cfg(all(feature = "etcd-v2", feature = "etcd-v3"))]
pub use etcd_api::EtcdRegistry;
#[cfg(feature = "etcd-v2")]
pub use etcd2::{Etcd2Calls, Etcd2Options, Etcd2OptionsError, Etcd2Registry};
#[cfg(feature = "etcd-v3")]
pub use etcd3::{Etcd3Calls, Etcd3Options, Etcd3OptionsError, Etcd3Registry};
pub use identity::NodeIdentity;
pub use lease_manager::{RegistryLeaseManager, RegistryLeaseManagerOptions};
#[cfg(feature = "memory")]
pub use memory::{MemoryBackup, MemoryRegistry};
#[cfg(all(feature = "etcd-v2", feature = "etcd-v3"))]
pub use migration::{MigrationError, MigrationOutcome, MigrationStep, migrate};
