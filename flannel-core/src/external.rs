//! The interface that carries the overlay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::lease::PublicAddrs;

/// The interface through which hosts reach each other.
///
/// ```
/// use std::net::Ipv4Addr;
/// use flannel_core::ExternalInterface;
///
/// let eth0 = ExternalInterface::new("eth0", 2, 1500, Ipv4Addr::new(10, 0, 0, 7));
/// assert_eq!(eth0.public.v4, eth0.v4);
/// let behind_nat = eth0.with_public(Ipv4Addr::new(192, 0, 2, 7));
/// assert_eq!(behind_nat.v4, Some(Ipv4Addr::new(10, 0, 0, 7)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExternalInterface {
    /// The name.
    pub name: String,
    /// The interface index.
    pub index: u32,
    /// The MTU, in bytes.
    pub mtu: u32,
    /// The IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// The addresses that peers use. They differ from the interface's behind a NAT.
    pub public: PublicAddrs,
}

impl ExternalInterface {
    /// Creates an interface whose peers use its own addresses. The MTU is in bytes.
    #[must_use]
    pub fn new(name: impl Into<String>, index: u32, mtu: u32, addresses: impl Into<PublicAddrs>) -> Self {
        let public = addresses.into();
        Self { name: name.into(), index, mtu, v4: public.v4, v6: public.v6, public }
    }

    /// Sets the addresses that peers use.
    #[must_use]
    pub fn with_public(self, public: impl Into<PublicAddrs>) -> Self {
        Self { public: public.into(), ..self }
    }

    /// Returns the interface's addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// A change of the external interface.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExternalUpdate {
    /// The interface, its addresses or its MTU changed to these.
    Changed(ExternalInterface),
    /// The interface or its only address is gone, for this reason, and there is no replacement. The network continues with
    /// the last known state, and isn't in order until the next [`Changed`](Self::Changed).
    Lost(String),
}

impl From<ExternalInterface> for ExternalUpdate {
    fn from(external: ExternalInterface) -> Self {
        Self::Changed(external)
    }
}

/// The external interface chosen for a network, and its later changes.
#[non_exhaustive]
pub struct ExternalChoice {
    /// The interface.
    pub interface: ExternalInterface,
    /// The changes of the interface.
    pub changes: BoxStream<'static, ExternalUpdate>,
}

impl ExternalChoice {
    /// Creates the choice of an interface that never changes.
    #[must_use]
    pub fn new(interface: ExternalInterface) -> Self {
        Self { interface, changes: stream::pending().boxed() }
    }

    /// Adds the changes of the interface.
    #[must_use]
    pub fn with_changes(self, changes: BoxStream<'static, ExternalUpdate>) -> Self {
        Self { changes, ..self }
    }
}

impl std::fmt::Debug for ExternalChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExternalChoice").field("interface", &self.interface).finish_non_exhaustive()
    }
}
