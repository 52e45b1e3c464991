//! What the firewall did, and why it could not.

use flannel_netlink::{IpFamily, NftTable};

use crate::iptables::IptablesError;
use crate::nftables::NftablesError;

/// What a pass did.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Pass {
    /// What became of the masquerade and forward rules.
    pub rules: Kept,
    /// What became of the table that guards the port of the tunnel.
    pub tunnel: Kept,
    /// What could not be done; it is tried again.
    pub failures: Vec<FirewallError>,
    /// What stands in the way of forwarded packets, each with what to do about it; none if it was not looked for.
    pub obstacles: Option<Vec<String>>,
}

/// What became of rules in a [`Pass`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Kept {
    /// They were not looked at, or were as they should be.
    #[default]
    InOrder,
    /// They were made as they should be for what is wanted newly.
    Put,
    /// Somebody had changed them, and they were put right.
    Repaired,
}

impl Kept {
    pub(crate) fn new(changed: bool, is_new: bool) -> Self {
        match (changed, is_new) {
            (false, _) => Self::InOrder,
            (true, true) => Self::Put,
            (true, false) => Self::Repaired,
        }
    }
}

/// What a [`Firewall`](crate::Firewall) did so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct FirewallCounts {
    /// How often there was a reason to look.
    pub passes: u64,
    /// How often somebody had changed rules, and they were put right.
    pub repairs: u64,
    /// How many times something could not be done.
    pub failures: u64,
}

/// Why rules are not as they should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FirewallError {
    /// Rules in iptables.
    #[error("{0} rules in iptables")]
    Iptables(IpFamily, #[source] IptablesError),
    /// A table in nftables.
    #[error("table {0} in nftables")]
    Nftables(NftTable, #[source] NftablesError),
}

impl FirewallError {
    /// Tells whether it is because the program is not installed.
    #[must_use]
    pub fn is_not_installed(&self) -> bool {
        match self {
            Self::Iptables(_, IptablesError::Program(error))
            | Self::Nftables(_, NftablesError::Program(error)) => error.is_not_installed(),
            Self::Iptables(..) | Self::Nftables(..) => false,
        }
    }
}
