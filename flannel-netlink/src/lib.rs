//! Links, addresses, routes, neighbours and forwarding entries of Linux, over netlink.
//!
//! * [`Netlink`] reads objects, changes links, and [applies](Netlink::apply) thousands of writes in few system calls, with a
//!   result for each.
//! * [`Monitor`] receives notifications of changes by any program.
//! * [`Namespace`] is a network namespace; every socket belongs to one.
//! * [`Nftables`] and [`NftMonitor`] read packet filters and receive their changes.
//! * [`Tun`] opens a link whose packets a program reads and writes.
//! * [`GenericNetlink`], [`NetlinkSocket`] and [`NetlinkListener`] reach everything else in the kernel.
//!
//! Calls of [`Netlink`] block, but the kernel answers at once. Errors name the object that was refused and the reason.
//! Nothing here runs a program or makes decisions.
//!
//! ```no_run
//! use flannel_netlink::{FdbEntry, Netlink, Neighbour, Route, WriteRequest};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut netlink = Netlink::open()?;
//! let device = netlink.link("flannel.1")?.ok_or("no such device")?;
//!
//! // A peer of an overlay network: its subnet, tunnel endpoint and host.
//! let (subnet, gateway) = ("10.5.3.0/24".parse()?, "10.5.3.0".parse()?);
//! let (mac, host) = ("0e:2a:00:00:00:03".parse()?, "192.0.2.3".parse()?);
//! let writes = [
//!     WriteRequest::PutNeighbour(Neighbour::permanent(device.index, gateway, mac)),
//!     WriteRequest::PutFdb(FdbEntry::permanent(device.index, mac, host)),
//!     WriteRequest::PutRoute(Route::onlink(subnet, gateway, device.index)),
//! ];
//! for result in netlink.apply(&writes) {
//!     result?;
//! }
//! # Ok(())
//! # }
//! ```

mod address;
mod attributes;
mod batch;
mod error;
mod family;
mod fdb;
mod generic;
mod link;
mod link_name;
mod listener;
mod mac;
mod message;
mod monitor;
mod namespace;
mod neighbour;
mod netconf;
mod netlink;
mod new_link;
mod nexthop;
mod nft_monitor;
mod nftables;
mod offload;
mod request_writer;
mod route;
mod rtm;
mod socket;
mod sys;
mod tun;
mod vxlan;

pub use address::Address;
pub use attributes::{AttributeWriter, attribute, attributes};
pub use batch::WriteRequest;
pub use error::Error;
pub use family::IpFamily;
pub use fdb::FdbEntry;
pub use generic::{GenericFamily, GenericNetlink};
pub use link::{AddressGeneration, Link, LinkKind};
pub use listener::{ListenerEvent, NetlinkListener};
pub use mac::{Mac, MacParseError};
pub use message::RawMessage;
pub use monitor::{Monitor, Notification};
pub use namespace::Namespace;
pub use neighbour::{Neighbour, NeighbourState};
pub use netlink::Netlink;
pub use new_link::{LinkChange, NewLink, NewLinkKind, VethPeer};
pub use nft_monitor::{NftMonitor, NftNotification};
pub use nftables::{NftChain, NftContents, NftFamily, NftRule, NftTable, NftVerdict, Nftables};
pub use route::{Route, RouteFilter, RouteKind};
pub use socket::NetlinkSocket;
pub use tun::{Tun, TunOptions};
pub use vxlan::{NewVxlan, Vxlan, VxlanChange};
