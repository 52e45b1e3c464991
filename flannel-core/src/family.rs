//! The address families of an overlay or underlay.

use std::fmt;
use std::net::IpAddr;

/// A set of address families.
///
/// ```
/// use flannel_core::IpFamilies;
///
/// let overlay = IpFamilies { v4: true, v6: false };
/// assert_eq!(overlay, IpFamilies::V4);
/// assert!(overlay.contains("10.5.1.7".parse()?) && !overlay.contains("fd00::7".parse()?));
/// assert_eq!(IpFamilies::BOTH.to_string(), "IPv4 and IPv6");
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct IpFamilies {
    /// Contains IPv4.
    pub v4: bool,
    /// Contains IPv6.
    pub v6: bool,
}

impl IpFamilies {
    /// IPv4 only.
    pub const V4: Self = Self { v4: true, v6: false };
    /// IPv6 only.
    pub const V6: Self = Self { v4: false, v6: true };
    /// IPv4 and IPv6.
    pub const BOTH: Self = Self { v4: true, v6: true };

    /// Returns true if the set contains the family of the address.
    #[must_use]
    pub const fn contains(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        }
    }
}

impl fmt::Display for IpFamilies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.v4, self.v6) {
            (true, true) => "IPv4 and IPv6",
            (true, false) => "IPv4",
            (false, true) => "IPv6",
            (false, false) => "no address family",
        })
    }
}
