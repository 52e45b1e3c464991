//! The VXLAN backend of flannel: traffic between hosts is wrapped by the kernel.
//!
//! Each host has a tunnel device, `flannel.<VNI>`, and for each peer a route, a neighbour and a forwarding entry on
//! it. [`OpenVxlan`] opens the backend for a [`Network`](flannel_core::Network); the [`Backend`] it opens keeps the
//! device and the three tables as they should be, whoever changes them.
//!
//! # Whose object is it?
//!
//! The device is known by its name. Everything on it is the backend's: the address inside the overlay, permanent
//! neighbours, permanent forwarding entries, and routes in the main table that leave by it (but for those the kernel
//! makes). Nothing else is touched; a foreign route to a peer's subnet through another device is reported, not
//! replaced.

mod attrs;
mod backend;
mod config;
mod desired;
mod device;
mod tables;
mod tunnel;

pub use backend::{OpenVxlan, external_interface};

#[cfg(doc)]
use flannel_core::Backend;
