//! The firewall rules of a flannel network on one host, kept as they should be.
//!
//! * Masquerade: what pods send out of the network leaves with the host's address.
//! * Forward: packets of the network pass the host, whatever its policy.
//! * Tunnel port: the port of the tunnel hears nobody but peers.
//!
//! [`Firewall`] keeps them, in iptables or in nftables: it makes them whole in one transaction, hears from the kernel when
//! somebody changes them, and puts right what is not as it should be. While nothing changes it starts no program.
//!
//! # Whose rule is it?
//!
//! In iptables: the rules about this network in the chains `FLANNEL-POSTRTG` and `FLANNEL-FWD`, the jumps to these chains,
//! and rules in the shape of earlier versions of flannel, about this host's networks only. In nftables: the tables
//! `ip flannel-ipv4`, `ip6 flannel-ipv6` and `inet flannel-port-…`. Nothing else is touched. What stands in the way is
//! told ([`Pass::obstacles`]).
//!
//! # Looking only
//!
//! [`missing_rules`] says what a pass would change, and [`Ruleset`] what all rules of the host, whoever made them, do with
//! a packet. Both change nothing.

mod blackhole;
mod firewall;
mod iptables;
mod missing;
mod nftables;
mod obstacles;
mod options;
mod program;
mod report;
mod rules;
mod schedule;
mod sys;
mod tunnel_port;
mod verdict;

pub use blackhole::BlackholeRoutes;
pub use firewall::Firewall;
pub use iptables::IptablesError;
pub use missing::{MissingRules, missing_rules};
pub use nftables::NftablesError;
pub use options::{FirewallMode, FirewallNetwork, FirewallOptions};
pub use program::{ProgramError, is_installed};
pub use report::{FirewallError, FirewallReport, FirewallStatus, RuleChange};
pub use rules::{OverlayPrefixes, RuleOptions};
pub use verdict::{BlockingRule, Packet, PacketPath, RuleLocation, Ruleset, TransportProtocol};
