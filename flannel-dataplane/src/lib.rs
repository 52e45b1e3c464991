//! What the kernel backends of flannel share.
//!
//! * Kernel tables that a backend reconciles: [`Neighbours`], [`Fdb`], [`Routes`] through a tunnel and [`DirectRoutes`]
//!   beside it. Each is a [`Table`](flannel_core::reconcile::Table).
//! * [`DriftMonitor`] turns kernel notifications into passes; [`Forwarding`] keeps IP forwarding on.
//! * The external interface: read by name with [`external_interface`], selected by rules with [`selector`], followed
//!   with [`follow_external`].

mod direct;
mod direct_routes;
mod drift;
mod external;
mod families;
mod forwarding;
mod neighbour_reprobe;
mod overlay_routes;
mod routes;
mod tables;
mod underlay;

pub use direct::Direct;
pub use direct_routes::{DirectRoutes, Hop};
pub use drift::{DriftMonitor, NoticeHandler};
pub use external::{Look, external_interface, facts, follow_external, select, selector};
pub use families::{families, own_subnet, pool, same_kind};
pub use forwarding::Forwarding;
pub use overlay_routes::{OverlayRoute, Routes};
pub use routes::{Foreign, InTheWay, Mark, RouteProtocol, apply, metric, read_main};
pub use tables::{Fdb, Kernel, Neighbours, Place, WRITES_AT_ONCE, boxed, no_socket, unreadable};
pub use underlay::Underlay;

/// The network namespace that the objects live in.
pub use flannel_netlink::Namespace;
