//! The VXLAN backend of flannel: the kernel encapsulates the traffic between hosts.
//!
//! Each host has a tunnel device, `flannel.<VNI>`, and for each peer a route, a neighbour and an FDB entry on it. With
//! `DirectRouting`, a peer on the same link gets a direct route by its public address instead. [`OpenVxlan`] opens the
//! backend for a [`Network`](flannel_core::Network); the [`Backend`] it returns keeps the device, the tables and the
//! routes in order.
//!
//! # Ownership
//!
//! The backend owns the device with its name and everything on it: the overlay address, permanent neighbours, permanent
//! FDB entries, and the routes of the main table through it, except those that the kernel makes. It owns the direct
//! routes with its protocol number, a [`RouteProtocol`]; an equal route of protocol boot, as upstream flannel leaves it,
//! is adopted. The backend touches nothing else. It reports a foreign route to a peer's subnet and doesn't replace it.

mod attrs;
mod backend;
mod checksums;
mod config;
mod device;
mod peer_objects;
mod tunnel;

pub use backend::OpenVxlan;
pub use checksums::ChecksumOffload;
pub use flannel_dataplane::{RouteProtocol, external_interface};
/// The network namespace in which a backend works.
pub use flannel_netlink::Namespace;

#[cfg(doc)]
use flannel_core::Backend;
