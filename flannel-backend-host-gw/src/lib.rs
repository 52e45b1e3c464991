//! The host-gw backend of flannel: a route to each peer's subnet by its public address.
//!
//! All hosts are on one link, and nothing is encapsulated. [`OpenHostGw`] opens the backend for a
//! [`Network`](flannel_core::Network).
//!
//! The backend owns the routes in the main table that carry its protocol number, a [`RouteProtocol`], and lead into the
//! network. It adopts an equal route of protocol boot, as upstream flannel leaves it, and reports any other route to a
//! peer's subnet without replacing it.

mod backend;

pub use backend::OpenHostGw;
pub use flannel_dataplane::{RouteProtocol, external_interface};
/// The network namespace that the routes live in.
pub use flannel_netlink::Namespace;
