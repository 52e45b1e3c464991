//! Evaluates all packet filter rules of a host, including those of other programs, for one packet.
//!
//! A packet passes several hooks, and several chains at each hook. Every chain must let it pass: a chain that accepts it
//! does not speak for the others. [`Ruleset::read`] reads all rules; [`Ruleset::blocking_rules`] follows a packet through
//! them, without sending one, and returns the rules that certainly stop it.
//!
//! A rule with a condition that cannot be evaluated here, such as a rate limit or the members of an ipset, may or may not
//! match. If such a rule would accept the packet, the rules behind it are not reported. A packet starts without a mark;
//! once a rule may have set one, conditions on marks cannot be evaluated.

use std::fmt;
use std::net::IpAddr;

use flannel_core::TransportProtocol;
use flannel_netlink::{IpFamily, Namespace};

use crate::iptables::listing::TableListing;
use crate::iptables::save_all;
use crate::nftables::NFT;
use crate::program::ProgramError;

mod iptables;
mod nftables;

use self::nftables::NftRuleset;

/// The first packet of a connection, or a datagram, as it passes a host.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Packet {
    /// The hooks that it passes.
    pub path: PacketPath,
    /// The link it arrives on; `None` if the host sends it, or if the link is unknown.
    pub incoming: Option<String>,
    /// The link it leaves by; `None` if the host receives it, or if the link is unknown.
    pub outgoing: Option<String>,
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The transport protocol.
    pub transport: TransportProtocol,
    /// The destination port. The source port is an ephemeral one.
    pub port: u16,
}

/// The path of a packet through the hooks of a host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum PacketPath {
    /// The host receives it.
    Input,
    /// The host forwards it.
    Forward,
    /// The host sends it.
    Output,
}

/// The source port of a packet: an ephemeral one (`net.ipv4.ip_local_port_range`).
pub(crate) const SOURCE_PORT: u16 = 45_678;

impl Packet {
    /// Describes a packet whose links are unknown.
    #[must_use]
    pub fn new(
        path: PacketPath,
        source: IpAddr,
        destination: IpAddr,
        transport: TransportProtocol,
        port: u16,
    ) -> Self {
        Self { path, incoming: None, outgoing: None, source, destination, transport, port }
    }

    /// Sets the link it arrives on.
    #[must_use]
    pub fn with_incoming(self, incoming: Option<String>) -> Self {
        Self { incoming, ..self }
    }

    /// Sets the link it leaves by.
    #[must_use]
    pub fn with_outgoing(self, outgoing: Option<String>) -> Self {
        Self { outgoing, ..self }
    }

    fn family(&self) -> IpFamily {
        IpFamily::of(self.destination)
    }
}

/// A rule, or the policy of a chain, that stops a packet.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct BlockingRule {
    /// Where the rule is.
    pub location: RuleLocation,
    /// The rule, in the syntax of the program that made it.
    pub rule: String,
}

/// The chain at a kernel hook that holds a [`BlockingRule`], directly or in a chain that it calls.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum RuleLocation {
    /// A chain of iptables.
    Iptables {
        /// The program that manages it.
        program: &'static str,
        /// The table.
        table: String,
        /// The built-in chain.
        chain: String,
    },
    /// A chain of nftables.
    Nftables {
        /// The family and name of the table.
        table: String,
        /// The base chain.
        chain: String,
    },
}

impl fmt::Display for RuleLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iptables { program, table, .. } => write!(f, "{program}, table {table}"),
            Self::Nftables { table, .. } => write!(f, "nftables, table {table}"),
        }
    }
}

/// All packet filter rules of a host.
#[derive(Debug, Default)]
pub struct Ruleset {
    saved: Vec<SavedRules>,
    nft: NftRuleset,
}

/// The rules of one program of iptables.
#[derive(Debug)]
struct SavedRules {
    family: IpFamily,
    program: &'static str,
    tables: Vec<(String, TableListing)>,
}

impl Ruleset {
    /// Reads the rules of a namespace. Returns also why some could not be read: their program failed or may not read
    /// them. A program that is not installed is no failure.
    pub async fn read(namespace: &Namespace) -> (Self, Vec<ProgramError>) {
        let (mut ruleset, mut failures) = (Self::default(), Vec::new());
        let mut shown = Vec::new();
        for family in IpFamily::BOTH {
            for (program, is_nft, text) in save_all(namespace, family, &mut failures).await {
                let tables = TableListing::read_all(&text);
                if is_nft {
                    shown.extend(tables.iter().map(|(name, _)| (family, name.clone())));
                }
                ruleset.saved.push(SavedRules { family, program, tables });
            }
        }
        match NFT.run(namespace, &["-j", "list", "ruleset"], "").await {
            // Rules of iptables are evaluated once, in its own syntax.
            Ok(text) => ruleset.nft = NftRuleset::read(&text, &shown),
            Err(error) => failures.push(error),
        }
        failures.retain(|error| !error.is_not_installed());
        (ruleset, failures)
    }

    /// Returns whether any table of iptables has a chain of this name. Programs are known by their chains.
    #[must_use]
    pub fn has_chain(&self, name: &str) -> bool {
        self.saved.iter().flat_map(|saved| &saved.tables).any(|(_, table)| table.chains.contains_key(name))
    }

    /// Returns the rules that certainly stop a packet, at most one for each chain that it passes.
    #[must_use]
    pub fn blocking_rules(&self, packet: &Packet) -> Vec<BlockingRule> {
        let mut may_be_marked = false;
        let blocking_rules = self.evaluate(packet, &mut may_be_marked);
        // Some rule may mark the packet, and a rule that was evaluated earlier may come later on its path.
        if may_be_marked { self.evaluate(packet, &mut may_be_marked) } else { blocking_rules }
    }

    fn evaluate(&self, packet: &Packet, may_be_marked: &mut bool) -> Vec<BlockingRule> {
        let mut blocking_rules = Vec::new();
        for saved in self.saved.iter().filter(|saved| saved.family == packet.family()) {
            blocking_rules.extend(iptables::blocking_rules(
                saved.program,
                &saved.tables,
                packet,
                may_be_marked,
            ));
        }
        blocking_rules.extend(self.nft.blocking_rules(packet, may_be_marked));
        blocking_rules
    }
}

/// Whether a condition matches a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum RuleMatch {
    Yes,
    No,
    /// It cannot be evaluated.
    Unknown,
}

impl RuleMatch {
    fn of(matches: bool) -> Self {
        if matches { Self::Yes } else { Self::No }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
        }
    }

    fn negate_if(self, negated: bool) -> Self {
        match (self, negated) {
            (Self::Unknown, _) => Self::Unknown,
            (Self::Yes, false) | (Self::No, true) => Self::Yes,
            (Self::No, false) | (Self::Yes, true) => Self::No,
        }
    }
}
