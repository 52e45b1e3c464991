//! Reads nftables without a program: tables, chains, rules, the contents of a table, and the generation of the ruleset.
//!
//! A rule is read as its expressions and verdict, enough to see whether it matches every packet, and as bytes, enough to
//! see whether it changed. Nothing is written. Rules of the nf_tables variant of `iptables` are in nftables too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use netlink_packet_core::DecodeError;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::attributes::{AttributeWriter, attribute, attributes, text};
use crate::error::Error;
use crate::message::{EncodeRequest, Message};
use crate::namespace::Namespace;
use crate::request_writer::append;
use crate::socket::{NetlinkSocket, none_if_gone};

/// `NFNL_SUBSYS_NFTABLES` in `linux/netfilter/nfnetlink.h`, in the upper byte of each message's type.
pub(crate) const SUBSYSTEM: u16 = 10 << 8;
/// `sizeof(struct nfgenmsg)`: family, version, and the lower half of the generation.
pub(crate) const HEADER: usize = 4;

// `enum nf_tables_msg_types` in `linux/netfilter/nf_tables.h`.
const GET_TABLE: u16 = SUBSYSTEM | 1;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;
const GET_SET: u16 = SUBSYSTEM | 10;
const GET_SET_ELEMENTS: u16 = SUBSYSTEM | 13;
const GET_GENERATION: u16 = SUBSYSTEM | 16;

/// The name of the table, in every message about a table or an object in it.
pub(crate) const TABLE: u16 = 1;
pub(crate) const CHAIN_NAME: u16 = 3;
pub(crate) const RULE_CHAIN: u16 = 2;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const RULE_EXPRESSIONS: u16 = 4;
const SET_NAME: u16 = 2;
const SET_ELEMENTS: u16 = 3;
const SET_ELEMENT_KEY: u16 = 1;
const GENERATION: u16 = 1;

/// The attempts to read contents without a change in between.
const ATTEMPTS: usize = 16;

/// The family of a table (`NFPROTO_*` in `linux/netfilter.h`).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum NftFamily {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Another family, by number.
    Other(u8),
}

impl NftFamily {
    pub(crate) fn of_number(number: u8) -> Self {
        match number {
            1 => Self::Inet,
            2 => Self::Ip,
            10 => Self::Ip6,
            other => Self::Other(other),
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
            Self::Other(number) => number,
        }
    }
}

impl fmt::Display for NftFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet => f.write_str("inet"),
            Self::Ip => f.write_str("ip"),
            Self::Ip6 => f.write_str("ip6"),
            Self::Other(number) => write!(f, "family {number}"),
        }
    }
}

/// The identity of a table.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NftTable {
    /// The family.
    pub family: NftFamily,
    /// The name.
    pub name: String,
}

impl fmt::Display for NftTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// A chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NftChain {
    /// The table.
    pub table: NftTable,
    /// The name.
    pub name: String,
    /// The hook that calls it (`enum nf_inet_hooks`: 2 is forward); `None` for a chain that only other chains call.
    pub hook: Option<u32>,
    /// Whether its policy drops packets that no rule decides on.
    pub drops_by_policy: bool,
}

impl NftChain {
    /// The hook of forwarded packets (`NF_INET_FORWARD`).
    pub const FORWARD: u32 = 2;
}

/// A rule.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NftRule {
    /// The names of the expressions, in order: `payload`, `cmp`, `immediate`, `reject`, …
    pub expressions: Vec<String>,
    /// The verdict, if it has one.
    pub verdict: Option<NftVerdict>,
}

/// The verdict of a rule (`enum nft_verdicts`).
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum NftVerdict {
    /// The packet is dropped.
    Drop,
    /// The packet passes this chain.
    Accept,
    /// A chain is evaluated, then the rules after this one.
    Jump(String),
    /// A chain is evaluated, then the rules after the one that called this chain.
    Goto(String),
    /// The calling chain continues.
    Return,
    /// Another verdict, by number.
    Other(i32),
}

/// The contents of a table. Two reads are equal if nobody changed the table in between.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NftContents {
    /// Chains, rules and sets as the kernel sends them, with their handles.
    definition: Vec<u8>,
    /// The elements of each set, as bytes of their keys.
    pub elements: BTreeMap<String, BTreeSet<Vec<u8>>>,
}

/// A connection to nftables in one network namespace.
#[derive(Debug)]
pub struct Nftables {
    socket: NetlinkSocket,
}

impl Nftables {
    /// Opens a socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Socket`] when the kernel has no netfilter, or no descriptor or memory left.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: NetlinkSocket::open(NETLINK_NETFILTER)? })
    }

    /// Opens a socket in a namespace.
    ///
    /// # Errors
    /// Errors of [`open`](Self::open) and of entering the namespace.
    pub fn open_in(namespace: &Namespace) -> Result<Self, Error> {
        namespace.run(Self::open)?
    }

    /// Returns the generation of the ruleset: the number of the last change in the namespace.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel has no nftables or the caller lacks `CAP_NET_ADMIN`.
    pub fn generation(&mut self) -> Result<u32, Error> {
        let request = NftRequest { kind: GET_GENERATION, family: 0, attributes: Vec::new() };
        self.socket.query_with("the generation of nftables", &request, |message| {
            let attribute = attribute(body(message), GENERATION).and_then(be32);
            attribute.ok_or_else(|| DecodeError::from("no generation"))
        })
    }

    /// Reads all tables.
    ///
    /// # Errors
    /// Those of [`generation`](Self::generation), and [`Error::Interrupted`].
    pub fn tables(&mut self) -> Result<Vec<NftTable>, Error> {
        self.dump("tables of nftables", GET_TABLE, 0, &[], |message| Ok(table_of(message)))
    }

    /// Reads the chains of all tables.
    ///
    /// # Errors
    /// Those of [`tables`](Self::tables).
    pub fn chains(&mut self) -> Result<Vec<NftChain>, Error> {
        self.dump("chains of nftables", GET_CHAIN, 0, &[], read_chain)
    }

    /// Reads the rules of a chain, in order. Returns nothing if the chain does not exist.
    ///
    /// # Errors
    /// Those of [`tables`](Self::tables).
    pub fn rules(&mut self, table: &NftTable, chain: &str) -> Result<Vec<NftRule>, Error> {
        self.dump_rules(table, chain, read_rule)
    }

    fn dump_rules<T>(
        &mut self,
        table: &NftTable,
        chain: &str,
        read: impl Fn(&[u8]) -> T,
    ) -> Result<Vec<T>, Error> {
        let names = [(TABLE, table.name.as_str()), (RULE_CHAIN, chain)];
        self.dump("rules of nftables", GET_RULE, table.family.number(), &names, |message| {
            let is_here = table_of(message).as_ref() == Some(table)
                && text(body(message), RULE_CHAIN).as_deref() == Some(chain);
            Ok(is_here.then(|| read(body(message))))
        })
    }

    /// Reads the rules of a chain as bytes, without counters: two results are equal if nobody changed the rules in between.
    /// Returns nothing if the chain does not exist.
    ///
    /// # Errors
    /// Those of [`tables`](Self::tables).
    pub fn rules_as_bytes(&mut self, table: &NftTable, chain: &str) -> Result<Vec<u8>, Error> {
        let rules = self.dump_rules(table, chain, without_counters)?;
        Ok(rules.concat())
    }

    /// Reads the contents of a table, with the generation of the ruleset; `None` if the table does not exist.
    ///
    /// # Errors
    /// Those of [`tables`](Self::tables).
    pub fn contents(&mut self, table: &NftTable) -> Result<(u32, Option<NftContents>), Error> {
        for _ in 0..ATTEMPTS {
            let before = self.generation()?;
            let contents = self.read_contents(table)?;
            if self.generation()? == before {
                return Ok((before, contents));
            }
        }
        Err(Error::Interrupted("contents of a table"))
    }

    fn read_contents(&mut self, table: &NftTable) -> Result<Option<NftContents>, Error> {
        let family = table.family.number();
        let names = [(TABLE, table.name.as_str())];
        let mut contents = NftContents::default();
        for (kind, filter) in [(GET_TABLE, &[][..]), (GET_CHAIN, &[]), (GET_RULE, &names), (GET_SET, &names)]
        {
            let parts = self.dump("contents of a table", kind, family, filter, |message| {
                let is_here = table_of(message).as_ref() == Some(table);
                Ok(is_here.then(|| (text(body(message), SET_NAME), body(message).to_vec())))
            })?;
            if kind == GET_TABLE && parts.is_empty() {
                return Ok(None);
            }
            for (set, part) in parts {
                contents.definition.extend(part);
                if let (GET_SET, Some(set)) = (kind, set) {
                    let elements = self.elements(table, &set)?;
                    contents.elements.insert(set, elements);
                }
            }
        }
        Ok(Some(contents))
    }

    fn elements(&mut self, table: &NftTable, set: &str) -> Result<BTreeSet<Vec<u8>>, Error> {
        let names = [(TABLE, table.name.as_str()), (SET_NAME, set)];
        let parts =
            self.dump("elements of a set", GET_SET_ELEMENTS, table.family.number(), &names, |message| {
                let elements = attribute(body(message), SET_ELEMENTS).unwrap_or_default();
                let key = |element| attribute(attribute(element, SET_ELEMENT_KEY)?, 1).map(<[u8]>::to_vec);
                Ok(Some(attributes(elements).filter_map(|(_, element)| key(element)).collect::<Vec<_>>()))
            })?;
        Ok(parts.into_iter().flatten().collect())
    }

    fn dump<T>(
        &mut self,
        objects: &'static str,
        kind: u16,
        family: u8,
        names: &[(u16, &str)],
        read: impl Fn(Message<'_>) -> Result<Option<T>, DecodeError>,
    ) -> Result<Vec<T>, Error> {
        let attributes = names
            .iter()
            .fold(AttributeWriter::new(), |attributes, (kind, name)| attributes.string(*kind, name))
            .finish();
        let request = NftRequest { kind, family, attributes };
        // The table, chain or set to list may not exist.
        none_if_gone(self.socket.dump_with(objects, &request, read))
    }
}

/// A request to nftables.
struct NftRequest {
    kind: u16,
    family: u8,
    attributes: Vec<u8>,
}

impl EncodeRequest for NftRequest {
    fn append(&self, buffer: &mut Vec<u8>, flags: u16, sequence: u32) {
        append(buffer, self.kind, flags, sequence, |request| {
            request.fixed(&[self.family, 0, 0, 0]);
            request.fixed(&self.attributes);
        });
    }
}

/// Returns the attributes after the header of a message.
pub(crate) fn body(message: Message<'_>) -> &[u8] {
    message.payload.get(HEADER..).unwrap_or_default()
}

/// Returns the table of the object that a message is about.
pub(crate) fn table_of(message: Message<'_>) -> Option<NftTable> {
    let family = NftFamily::of_number(*message.payload.first()?);
    Some(NftTable { family, name: text(body(message), TABLE)? })
}

/// Reads a number; nftables uses network byte order.
fn be32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

fn read_chain(message: Message<'_>) -> Result<Option<NftChain>, DecodeError> {
    let body = body(message);
    let (Some(table), Some(name)) = (table_of(message), text(body, CHAIN_NAME)) else {
        return Ok(None);
    };
    let hook = attribute(body, CHAIN_HOOK).and_then(|hook| be32(attribute(hook, 1)?));
    let policy = attribute(body, CHAIN_POLICY).and_then(be32);
    Ok(Some(NftChain { table, name, hook, drops_by_policy: policy == Some(0) }))
}

fn read_rule(body: &[u8]) -> NftRule {
    let mut rule = NftRule::default();
    for (_, expression) in attributes(attribute(body, RULE_EXPRESSIONS).unwrap_or_default()) {
        rule.expressions.extend(text(expression, 1));
        if let Some(verdict) = attribute(expression, 2).and_then(read_verdict) {
            rule.verdict = Some(verdict);
        }
    }
    rule
}

/// Returns the bytes of a rule and its expressions, without the data of counters.
fn without_counters(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len());
    for (kind, value) in attributes(body) {
        bytes.extend(kind.to_ne_bytes());
        if kind != RULE_EXPRESSIONS {
            bytes.extend(value);
            continue;
        }
        for (_, expression) in attributes(value) {
            let name = attribute(expression, 1).unwrap_or_default();
            bytes.extend(if name.starts_with(b"counter") { name } else { expression });
        }
    }
    bytes
}

/// Reads the data of an `immediate` expression, if it is a verdict (`NFTA_IMMEDIATE_DATA`, `NFTA_DATA_VERDICT`).
fn read_verdict(data: &[u8]) -> Option<NftVerdict> {
    let verdict = attribute(attribute(data, 2)?, 2)?;
    let chain = || text(verdict, 2).unwrap_or_default();
    Some(match be32(attribute(verdict, 1)?)?.cast_signed() {
        0 => NftVerdict::Drop,
        1 => NftVerdict::Accept,
        -3 => NftVerdict::Jump(chain()),
        -4 => NftVerdict::Goto(chain()),
        -5 => NftVerdict::Return,
        other => NftVerdict::Other(other),
    })
}
