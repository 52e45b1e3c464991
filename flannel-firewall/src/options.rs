//! What a [`Firewall`](crate::Firewall) keeps, and for which network.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use flannel_core::{NetworkConfig, SubnetKey};
use serde::{Deserialize, Serialize};

use crate::rules::{OverlayPrefixes, RuleOptions};

/// The packet filter that holds the rules.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FirewallMode {
    /// iptables, in whichever variant the host has.
    #[default]
    Iptables,
    /// nftables, in tables of flannel's own.
    Nftables,
}

impl FirewallMode {
    /// Returns the mode that a network configuration asks for with `EnableNFTables`.
    #[must_use]
    pub fn of(config: &NetworkConfig) -> Self {
        if config.enable_nftables { Self::Nftables } else { Self::Iptables }
    }
}

impl fmt::Display for FirewallMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

/// A running network as the firewall sees it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct FirewallNetwork {
    /// The packet filter that holds the rules.
    pub mode: FirewallMode,
    /// The network and this host's subnet in each family; at most one of each.
    pub prefixes: Vec<OverlayPrefixes>,
    /// The UDP ports on which the backend receives from its peers; none if it has no tunnel.
    pub tunnel_ports: BTreeSet<u16>,
}

impl FirewallNetwork {
    /// Describes a network from its configuration, the subnet that this host leases, and the UDP ports of its tunnel.
    ///
    /// ```
    /// use flannel_core::{NetworkConfig, SubnetKey};
    /// use flannel_firewall::{FirewallMode, FirewallNetwork};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "EnableNFTables": true}"#)?;
    /// let subnet = SubnetKey::new(Some("10.5.1.0/24".parse()?), None).ok_or("no subnet")?;
    /// let network = FirewallNetwork::new(&config, &subnet, [8472]);
    /// assert_eq!(network.mode, FirewallMode::Nftables);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new(
        config: &NetworkConfig,
        subnet: &SubnetKey,
        tunnel_ports: impl IntoIterator<Item = u16>,
    ) -> Self {
        Self {
            mode: FirewallMode::of(config),
            prefixes: OverlayPrefixes::of(config, subnet),
            tunnel_ports: tunnel_ports.into_iter().collect(),
        }
    }
}

/// What a [`Firewall`](crate::Firewall) keeps.
///
/// ```
/// use flannel_firewall::{FirewallOptions, RuleOptions};
///
/// let rules = RuleOptions::default().with_masquerade(true).with_forward(true);
/// let options = FirewallOptions::new(rules).with_restrict_tunnel_ports(true);
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct FirewallOptions {
    /// The masquerade and forward rules.
    pub rules: RuleOptions,
    /// How often the rules are checked for changes that no kernel notification announced.
    pub audit_interval: Duration,
    /// Whether only peers may send to the tunnel ports.
    pub restrict_tunnel_ports: bool,
    /// Ports that an earlier run may have restricted. With `restrict_tunnel_ports`, those that the network does not use
    /// are opened: their tables would not learn of new peers.
    pub former_tunnel_ports: BTreeSet<u16>,
}

impl FirewallOptions {
    /// Keeps these rules, audits them every 5 s, and restricts no port.
    #[must_use]
    pub fn new(rules: RuleOptions) -> Self {
        Self {
            rules,
            audit_interval: Duration::from_secs(5),
            restrict_tunnel_ports: false,
            former_tunnel_ports: BTreeSet::new(),
        }
    }

    /// Sets how often the rules are checked for changes that no kernel notification announced.
    #[must_use]
    pub fn with_audit_interval(self, audit_interval: Duration) -> Self {
        Self { audit_interval, ..self }
    }

    /// Sets whether only peers may send to the tunnel ports.
    #[must_use]
    pub fn with_restrict_tunnel_ports(self, restrict_tunnel_ports: bool) -> Self {
        Self { restrict_tunnel_ports, ..self }
    }

    /// Names ports that an earlier run may have restricted, such as the default ports of other backends.
    #[must_use]
    pub fn with_former_tunnel_ports(self, ports: impl IntoIterator<Item = u16>) -> Self {
        Self { former_tunnel_ports: ports.into_iter().collect(), ..self }
    }
}
