//! What the kernel backends of flannel share.
//!
//! * Kernel tables to reconcile, each a [`Table`](flannel_core::reconcile::Table): [`NeighbourTable`] and [`FdbTable`] of a
//!   tunnel device, [`OverlayRouteTable`] through it, [`DirectRouteTable`] beside it. [`DirectRouting`] adds the lookup of
//!   peers on the link.
//! * [`DriftMonitor`] turns kernel notifications into passes; [`Forwarding`] keeps IP forwarding enabled.
//! * [`PathCheck`] finds peers whose packets can't leave this host.
//! * The external interface: read by name with [`external_interface`]; selected by rules and followed with
//!   [`InterfaceSelector`].

mod device_tables;
mod direct_routes;
mod direct_routing;
mod drift;
mod external;
mod forwarding;
mod neighbour_reprobe;
mod netlink;
mod network;
mod overlay_routes;
mod path_check;
mod routes;
mod underlay;

pub use device_tables::{DeviceScope, FdbTable, NeighbourTable};
pub use direct_routes::{DirectRouteTable, NextHop};
pub use direct_routing::{DirectRouting, NextHopFinder};
pub use drift::{DriftMonitor, NotificationHandler};
pub use external::{
    InitialChoice, InterfacePattern, InterfaceSelector, PatternError, SelectError, external_interface,
};
/// The network namespace of the objects.
pub use flannel_netlink::Namespace;
pub use forwarding::Forwarding;
pub use netlink::{SharedNetlink, table_read_error};
pub use network::{check_same_type, family_pools, own_subnet};
pub use overlay_routes::{OverlayRoute, OverlayRouteTable};
pub use path_check::PathCheck;
pub use routes::{RouteOwner, RouteProtocol};
