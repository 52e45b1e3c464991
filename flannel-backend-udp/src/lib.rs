//! The UDP backend of flannel: packets go from host to host as the payload of UDP datagrams, one in each, through a
//! packet path of our own. It is for networks where VXLAN does not pass, and it is flannel's default.
//!
//! Each host has a TUN device, `flannel0`, to which the whole network is routed, and a socket. Between the two,
//! threads move bursts of up to 64 KiB: what the kernel hands out as one packet of 64 KiB is cut into packets of the
//! network's MTU, and the kernel sends all of them in one call; what it receives at once is joined and handed back as
//! one. On the wire it is what upstream flannel's `udp` backend sends and takes.
//!
//! [`OpenUdp`] opens the backend for a [`Network`](flannel_core::Network).
//!
//! The feature `fuzzing` opens the insides of the packet path to this repository's fuzzers; nobody else needs it, and it
//! may change at any time.
//!
//! # Whom it trusts
//!
//! A datagram is taken only from the public address of a current peer, and only if the source of the packet in it is in
//! that peer's subnet. Nothing is encrypted or signed: whoever can forge a peer's address can forge its packets.
//!
//! # Whose object is it?
//!
//! The device ends with the process, or when the backend is dropped, and everything on it goes along, unless a
//! [`DescriptorStore`] keeps it open for the next one. No other object is made.

mod backend;
mod config;
mod counters;
mod device;
mod filter;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod listen;
mod offload;
mod packet;
mod peers;
mod routing;
mod store;
mod sys;
mod worker;

pub use backend::OpenUdp;
pub use counters::{DropReason, PeerCounts, UdpCounters, UdpCounts};
/// Keeps the descriptors `flannel-tun`, `flannel-udp-ipv4` and `flannel-udp-ipv6` across restarts.
pub use flannel_core::DescriptorStore;
/// Where a network lives: the one name of another crate that is needed to open a backend.
pub use flannel_netlink::Namespace;
pub use worker::Offloads;
