//! Registries of leases, and the lease managers of a host over them.
//!
//! - [`MemoryRegistry`] (feature `memory`, on by default) keeps leases in the process.
//! - `Etcd3Registry` (feature `etcd-v3`) keeps them in etcd's v3 store, as upstream flannel v0.18 and later.
//! - `Etcd2Registry` (feature `etcd-v2`) keeps them in etcd's v2 store, as earlier versions.
//! - `EtcdRegistry` (both features) uses the store that has the network config.
//! - [`RegistryLeaseManager`] is a host's [`LeaseManager`](flannel_core::LeaseManager) over any registry.
//! - `migrate` (both features) copies a network from etcd's v2 to its v3 store while its hosts run.
//! - [`CachedLeaseManager`] wraps any lease manager and caches the network in a file, so that a host can start while its
//!   registry is unavailable.
//!
//! Without the features `etcd-v3` and `etcd-v2` the crate needs no HTTP or TLS. Only `etcd-v3` needs `protoc` to build.
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
//! assert!(matches!(peers.next().await, Some(PeerEvent::Complete)), "no peers yet");
//! assert!(matches!(peers.next().await, Some(PeerEvent::Changed(joined)) if joined.len() == 1));
//! # Ok(())
//! # }
//! ```

mod atomic_file;
mod cache;
mod cached;
mod cached_network;
#[cfg(any(feature = "etcd-v2", feature = "etcd-v3", feature = "memory"))]
mod change_notifier;
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
mod suspend;

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
