//! Where flannel keeps its leases, and how a host gets, keeps and watches them.
//!
//! - [`MemoryRegistry`] (feature `memory`, on by default) is a store inside the process.
//! - `Etcd3Registry` (feature `etcd-v3`) is etcd, over its v3 interface.

#[cfg(feature = "etcd-v3")]
mod etcd3;
#[cfg(feature = "memory")]
mod memory;

#[cfg(feature = "etcd-v3")]
pub use etcd3::{Etcd3Calls, Etcd3Options, Etcd3OptionsError, Etcd3Registry};
#[cfg(feature = "memory")]
pub use memory::MemoryRegistry;
