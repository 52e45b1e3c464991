//! What the rules of a host, whoever made them, do with one packet.
//!
//! A packet passes several hooks, and at each of them several chains: every one must let it pass, and none that accepts
//! it speaks for the others. [`Ruleset::read`] takes down all rules there are; [`Ruleset::barriers`] leads a packet
//! through them, on paper, and names the rules that certainly stop it.
//!
//! Certainly: a rule with a condition that cannot be judged here, such as a rate or the members of an ipset, may or may
//! not concern the packet. If it would accept it, whatever would stop the packet behind it is not told. A packet comes
//! without a mark; once a rule may have given it one, no condition on marks can be judged.

use std::fmt;
use std::net::IpAddr;

use flannel_netlink::{IpFamily, Namespace};

use crate::iptables::{self, listing::Listing};
use crate::nftables::NFT;
use crate::program::ProgramError;

mod iptables_walk;
mod nft_walk;

use nft_walk::Tables;

/// The first packet of a connection, or a datagram, as a host sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Packet {
    /// What the host does with it.
    pub path: PacketPath,
    /// The link that it comes in by; none if the host sends it, or if that is not known.
    pub incoming: Option<String>,
    /// The link that it leaves by; none if it is for the host, or if that is not known.
    pub outgoing: Option<String>,
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: IpAddr,
    /// The transport protocol.
    pub transport: TransportProtocol,
    /// The port at its destination. Its own port is one that nobody has a rule for.
    pub port: u16,
}

/// What a host does with a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum PacketPath {
    /// It takes it.
    Input,
    /// It passes it on.
    Forward,
    /// It sends it.
    Output,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum TransportProtocol {
    /// TCP; the packet opens a connection.
    Tcp,
    /// UDP.
    Udp,
}

/// The port that a packet is sent from: one of those that the kernel gives out (`net.ipv4.ip_local_port_range`).
pub(crate) const SOURCE_PORT: u16 = 45_678;

impl Packet {
    /// A packet between links that are not known, if there are any.
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

    /// Names the link that it comes in by, if that is known.
    #[must_use]
    pub fn with_incoming(self, incoming: Option<String>) -> Self {
        Self { incoming, ..self }
    }

    /// Names the link that it leaves by, if that is known.
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
    /// Where it is.
    pub location: RuleLocation,
    /// The rule, as the program shows it that made it.
    pub rule: String,
}

/// The chain at a hook of the kernel from which a packet came to a [`BlockingRule`], directly or by path of others.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum RuleLocation {
    /// A chain of iptables.
    Iptables {
        /// The program that changes it.
        program: &'static str,
        /// The table.
        table: String,
        /// The built-in chain.
        chain: String,
    },
    /// A chain of nftables.
    Nftables {
        /// The family and the name of the table.
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

/// All rules of a host.
#[derive(Debug, Default)]
pub struct Ruleset {
    saved: Vec<Saved>,
    nft: Tables,
}

/// The rules of one program of iptables.
#[derive(Debug)]
struct Saved {
    family: IpFamily,
    program: &'static str,
    tables: Vec<(String, Listing)>,
}

impl Ruleset {
    /// Reads the rules of a namespace. What has no program to read it, or is not shown to this process, is told and left
    /// out.
    pub async fn read(namespace: &Namespace) -> (Self, Vec<ProgramError>) {
        let (mut ruleset, mut failures) = (Self::default(), Vec::new());
        let mut shown = Vec::new();
        for family in IpFamily::BOTH {
            for (program, is_nft, text) in iptables::saved(namespace, family, &mut failures).await {
                let tables = Listing::read_all(&text);
                if is_nft {
                    shown.extend(tables.iter().map(|(name, _)| (family, name.clone())));
                }
                ruleset.saved.push(Saved { family, program, tables });
            }
        }
        match NFT.run(namespace, &["-j", "list", "ruleset"], "").await {
            // What iptables shows is easier to judge in its words, and must not be judged twice.
            Ok(text) => ruleset.nft = Tables::read(&text, &shown),
            Err(error) => failures.push(error),
        }
        failures.retain(|error| !error.is_not_installed());
        (ruleset, failures)
    }

    /// Tells whether iptables has a chain of this name in any table, by which programs that keep rules there are known.
    #[must_use]
    pub fn has_chain(&self, name: &str) -> bool {
        self.saved.iter().flat_map(|saved| &saved.tables).any(|(_, table)| table.chains.contains_key(name))
    }

    /// Names what certainly stops a packet, at most one rule for each chain that it passes.
    #[must_use]
    pub fn barriers(&self, packet: &Packet) -> Vec<BlockingRule> {
        let mut is_marked = false;
        let barriers = self.judge(packet, &mut is_marked);
        // Some rule may mark it: rules that were judged before that one may come behind it.
        if is_marked { self.judge(packet, &mut is_marked) } else { barriers }
    }

    fn judge(&self, packet: &Packet, is_marked: &mut bool) -> Vec<BlockingRule> {
        let mut barriers = Vec::new();
        for saved in self.saved.iter().filter(|saved| saved.family == packet.family()) {
            barriers.extend(iptables_walk::barriers(saved.program, &saved.tables, packet, is_marked));
        }
        barriers.extend(self.nft.barriers(packet, is_marked));
        barriers
    }
}

/// Whether a condition holds for a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fit {
    Yes,
    No,
    /// It cannot be judged.
    Unknown,
}

impl Fit {
    fn of(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
        }
    }

    fn inverted_if(self, negated: bool) -> Self {
        match (self, negated) {
            (Self::Unknown, _) => Self::Unknown,
            (Self::Yes, false) | (Self::No, true) => Self::Yes,
            (Self::No, false) | (Self::Yes, true) => Self::No,
        }
    }
}

/// Chains that call each other deeper than this are not followed; the kernel allows none that call themselves.
const DEEPEST: usize = 32;
