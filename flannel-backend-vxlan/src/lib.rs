//! The VXLAN and host-gw backends of flannel: traffic between hosts is wrapped by the kernel, or routed by it.
//!
//! With VXLAN each host has a tunnel device, `flannel.<VNI>`, and for each peer a route, a neighbour and a forwarding
//! entry on it; with `DirectRouting`, a peer on the same link gets a direct route instead, by its public address. With
//! host-gw there are direct routes only. [`OpenVxlan`] and [`OpenHostGw`] open the backends for a
//! [`Network`](flannel_core::Network); the [`Backend`] they open keeps the device, the tables and the routes as they
//! should be, whoever changes them.
//!
//! # Whose object is it?
//!
//! The device is known by its name. Everything on it is the backend's: the address inside the overlay, permanent
//! neighbours, permanent forwarding entries, and routes in the main table that leave by it (but for those the kernel
//! makes). Direct routes are known by their protocol number, a [`RouteProtocol`]; one of protocol boot that leads the
//! way that is wanted, as upstream flannel leaves it, is marked and becomes the backend's. Nothing else is touched; a
//! foreign route to a peer's subnet is reported, not replaced.

mod ask_again;
mod attrs;
mod backend;
mod checksums;
mod config;
mod desired;
mod device;
mod direct;
mod direct_routes;
mod external;
mod families;
mod forwarding;
mod host_gw;
mod overlay_routes;
mod routes;
mod tables;
mod tunnel;
mod underlay;
mod watch;

pub use backend::{OpenVxlan, TunnelDevice};
pub use checksums::ChecksumOffload;
pub use external::{Look, external_interface, follow_external};
/// Where a network lives: the one name of another crate that is needed to open a backend.
pub use flannel_netlink::Namespace;
pub use host_gw::OpenHostGw;
pub use routes::RouteProtocol;

#[cfg(doc)]
use flannel_core::Backend;
