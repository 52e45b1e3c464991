//! The interface below the overlay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::PublicAddrs;

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
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// The addresses that peers use, which differ behind a NAT.
    pub public: PublicAddrs,
}

impl ExternalInterface {
    /// An interface of this name, index and MTU in bytes, with these addresses, which peers use as well.
    #[must_use]
    pub fn new(name: impl Into<String>, index: u32, mtu: u32, addresses: impl Into<PublicAddrs>) -> Self {
        let public = addresses.into();
        Self { name: name.into(), index, mtu, v4: public.v4, v6: public.v6, public }
    }

    /// Says that peers use other addresses than the interface has.
    #[must_use]
    pub fn with_public(self, public: impl Into<PublicAddrs>) -> Self {
        Self { public: public.into(), ..self }
    }

    /// Returns the interface's addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}
