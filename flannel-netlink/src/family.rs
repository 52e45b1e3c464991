//! The two IP address families.

use std::fmt;
use std::net::IpAddr;

use netlink_packet_route::AddressFamily;

/// An IP address family.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum IpFamily {
    /// IPv4 (`AF_INET`).
    V4,
    /// IPv6 (`AF_INET6`).
    V6,
}

impl IpFamily {
    /// Both families, in the order in which they are read.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Returns the given family, or both.
    pub(crate) fn selected(family: Option<Self>) -> Vec<Self> {
        family.map_or_else(|| Self::BOTH.to_vec(), |family| vec![family])
    }

    /// Returns the family of a message; `None` if it is neither IPv4 nor IPv6.
    pub(crate) fn of_message(family: AddressFamily) -> Option<Self> {
        if family == AddressFamily::Inet {
            Some(Self::V4)
        } else if family == AddressFamily::Inet6 {
            Some(Self::V6)
        } else {
            None
        }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl From<IpFamily> for AddressFamily {
    fn from(family: IpFamily) -> Self {
        match family {
            IpFamily::V4 => Self::Inet,
            IpFamily::V6 => Self::Inet6,
        }
    }
}
