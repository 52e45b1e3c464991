//! What the firewall is to do.

use std::time::Duration;

use crate::rules::RuleOptions;

/// Where the rules are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum FirewallMode {
    /// In iptables, whichever variant the host has.
    Iptables,
    /// In tables of their own in nftables.
    Nftables,
}

/// What a [`Firewall`](crate::Firewall) is to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct FirewallOptions {
    /// Where the rules are.
    pub mode: FirewallMode,
    /// Which rules there are.
    pub rules: RuleOptions,
    /// How often it is looked whether something changed that no notice told of.
    pub audit_every: Duration,
    /// The UDP port of the tunnel, if it has one.
    pub tunnel_port: Option<u16>,
    /// Whether only peers may send to that port.
    pub restrict_tunnel_port: bool,
}

impl FirewallOptions {
    /// Keeps these rules in this mode, and guards no port.
    #[must_use]
    pub fn new(mode: FirewallMode, rules: RuleOptions, audit_every: Duration) -> Self {
        Self { mode, rules, audit_every, tunnel_port: None, restrict_tunnel_port: false }
    }

    /// Names the UDP port of the tunnel, if it has one.
    #[must_use]
    pub fn with_tunnel_port(self, tunnel_port: Option<u16>) -> Self {
        Self { tunnel_port, ..self }
    }

    /// Says whether only peers may send to the port of the tunnel.
    #[must_use]
    pub fn with_restrict_tunnel_port(self, restrict_tunnel_port: bool) -> Self {
        Self { restrict_tunnel_port, ..self }
    }
}
