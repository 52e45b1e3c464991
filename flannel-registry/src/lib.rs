//! Where flannel keeps its leases.
//!
//! [`MemoryRegistry`] (feature `memory`, on by default) is a store inside the process.

#[cfg(feature = "memory")]
mod memory;

#[cfg(feature = "memory")]
pub use memory::MemoryRegistry;
