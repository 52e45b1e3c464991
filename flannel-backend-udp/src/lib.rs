//! flannel's UDP backend: carries each packet between hosts as the payload of one UDP datagram, in user space. It is for
//! networks that block VXLAN, and it is flannel's default backend.
//!
//! Each host has a TUN device, `flannel0`, which the route of the whole network points to, and a socket per address
//! family. Threads move bursts of up to 64 KiB between the two: they split a GSO packet from the device into packets of the
//! network's MTU and send them with one system call (`UDP_SEGMENT`), and they coalesce the datagrams of one receive burst
//! (`UDP_GRO`) into one packet for the device. The wire format is that of upstream flannel's `udp` backend.
//!
//! [`OpenUdp`] opens the backend for a [`Network`](flannel_core::Network).
//!
//! The `fuzzing` feature exposes internals of the packet path to this repository's fuzzers. It has no stable API.
//!
//! # Trust
//!
//! The backend accepts a datagram only from the public address of a current peer, and only if the source of the inner
//! packet is in that peer's subnet. Nothing is encrypted or authenticated: a sender that can forge a peer's address can
//! forge its packets.
//!
//! # Object ownership
//!
//! The device and everything on it disappear when the process ends or the backend is dropped, unless a [`DescriptorStore`]
//! keeps the device open for the next process. The backend creates no other kernel objects.

mod backend;
mod config;
mod counters;
mod device;
mod filter;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod listeners;
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
/// Re-exported because [`OpenUdp::new`] takes it.
pub use flannel_netlink::Namespace;
pub use worker::Offloads;
