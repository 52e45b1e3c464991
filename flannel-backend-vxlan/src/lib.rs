//! The VXLAN backend of flannel: the kernel encapsulates the traffic between hosts.
//!
//! Each host has a tunnel device, `flannel.<VNI>`, and for each peer a route, a neighbour and an FDB entry on it. With
//! `DirectRouting`, a peer on the same link gets a direct route by its public address instead. [`OpenVxlan`] opens the
//! backend for a [`Network`](flannel_core::Network); the [`Backend`] it returns keeps the device, the tables and the
//! routes in order.
//!
//! # Whose object is it?
//!
//! The device is known by its name. Everything on it is the backend's: the address inside the overlay, permanent
//! neighbours, permanent forwarding entries, and routes in the main table that leave by it (but for those the kernel
//! makes). Direct routes are known by their protocol number, a [`RouteProtocol`]; one of protocol boot that leads the
//! way that is wanted, as upstream flannel leaves it, is marked and becomes the backend's. Nothing else is touched; a
//! foreign route to a peer's subnet is reported, not replaced.

mod attrs;
mod backend;
mod checksums;
mod config;
mod desired;
mod device;
mod tunnel;

pub use backend::{OpenVxlan, TunnelDevice};
pub use checksums::ChecksumOffload;
pub use flannel_dataplane::{Look, RouteProtocol, external_interface, follow_external};
/// Where a network lives: the one name of another crate that is needed to open a backend.
pub use flannel_netlink::Namespace;

#[cfg(doc)]
use flannel_core::Backend;
