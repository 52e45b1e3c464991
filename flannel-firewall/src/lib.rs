//! Keeps the firewall rules of a flannel network on one host.
//!
//! * Masquerade: packets from containers to the outside leave with the host's address.
//! * Forward: the host forwards packets of the network, whatever its policy.
//! * Tunnel ports: only peers can send to them.
//! * Blackhole routes: packets to a container that does not exist end here ([`BlackholeRoutes`]).
//!
//! [`Firewall`] keeps the rules in iptables or in nftables. It writes them in one transaction, listens to the kernel for
//! changes, and repairs external changes of rules. While nothing changes it runs no program.
//!
//! # Ownership
//!
//! In iptables flannel owns the rules about its network in the chains `FLANNEL-POSTRTG` and `FLANNEL-FWD`, the jumps to
//! these chains, and rules of earlier flannel versions about this host's networks. In nftables it owns the tables
//! `ip flannel-ipv4`, `ip6 flannel-ipv6` and `inet flannel-port-…`. It touches nothing else. Rules of others that stop
//! packets of the network are reported ([`FirewallStatus::obstacles`]).
//!
//! # Inspection
//!
//! [`missing_rules`] returns what a reconcile pass would change. [`Ruleset`] finds the rules on the host that stop a packet,
//! including those of other programs. Both change nothing.

mod blackhole;
mod chain_verdict;
mod firewall;
mod iptables;
mod missing;
mod nft_obstacles;
mod nftables;
mod options;
mod program;
mod report;
mod rules;
mod ruleset;
mod schedule;
mod sys;
mod tunnel_port;

pub use blackhole::BlackholeRoutes;
pub use firewall::Firewall;
pub use iptables::IptablesError;
pub use missing::{MissingRules, missing_rules};
pub use nftables::NftablesError;
pub use options::{FirewallMode, FirewallNetwork, FirewallOptions};
pub use program::{ProgramError, is_installed};
pub use report::{FirewallError, FirewallReport, FirewallStatus, RuleChange};
pub use rules::{OverlayPrefixes, RuleOptions};
pub use ruleset::{BlockingRule, Packet, PacketPath, RuleLocation, Ruleset};
