//! A packet's path through the chains of nftables, as `nft -j list ruleset` prints them (libnftables-json(5)). Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use flannel_core::TransportProtocol;
use flannel_netlink::IpFamily;
use ipnet::IpNet;
use serde_json::Value;

use crate::chain_verdict::{ChainVerdict, MAX_DEPTH};

use super::{BlockingRule, Packet, PacketPath, RuleLocation, RuleMatch, SOURCE_PORT};

/// The family and name of a table, and the name of a chain, set or map in it.
type ObjectName = (String, String, String);

/// The chains, sets and maps of all tables.
#[derive(Debug, Default)]
pub(super) struct NftRuleset {
    chains: BTreeMap<ObjectName, NftChainRules>,
    /// Sets and maps, with their elements.
    sets: BTreeMap<ObjectName, Vec<Value>>,
}

#[derive(Debug, Default)]
struct NftChainRules {
    /// The hook that calls it; `None` for a chain that only other chains call.
    hook: Option<String>,
    drops_by_policy: bool,
    rules: Vec<Vec<Value>>,
}

impl NftRuleset {
    /// Reads the ruleset without the given tables, which belong to iptables.
    pub(super) fn read(text: &str, without: &[(IpFamily, String)]) -> Self {
        let mut tables = Self::default();
        let read: Value = serde_json::from_str(text).unwrap_or_default();
        let objects = read["nftables"].as_array().map_or(&[][..], Vec::as_slice);
        for object in objects.iter().filter_map(Value::as_object).flatten() {
            tables.take(object.0, object.1, without);
        }
        tables
    }

    fn take(&mut self, kind: &str, object: &Value, without: &[(IpFamily, String)]) {
        let word = |member: &str| object[member].as_str().unwrap_or_default().to_owned();
        let (family, table) = (word("family"), word("table"));
        let is_of_iptables = |(of, name): &(IpFamily, String)| {
            *name == table && family == if *of == IpFamily::V4 { "ip" } else { "ip6" }
        };
        if without.iter().any(is_of_iptables) {
            return;
        }
        match kind {
            "chain" if word("type") != "nat" => {
                let hook = object["hook"].as_str().map(str::to_owned);
                let drops_by_policy = object["policy"].as_str() == Some("drop");
                let chain = self.chains.entry((family, table, word("name"))).or_default();
                (chain.hook, chain.drops_by_policy) = (hook, drops_by_policy);
            }
            "rule" => {
                let expressions = object["expr"].as_array().cloned().unwrap_or_default();
                if let Some(chain) = self.chains.get_mut(&(family, table, word("chain"))) {
                    chain.rules.push(expressions);
                }
            }
            "set" | "map" => {
                let elements = object["elem"].as_array().cloned().unwrap_or_default();
                self.sets.insert((family, table, word("name")), elements);
            }
            _ => {}
        }
    }

    /// Returns the rules that stop a packet. Reads and updates whether the packet may be marked.
    pub(super) fn blocking_rules(&self, packet: &Packet, may_be_marked: &mut bool) -> Vec<BlockingRule> {
        let hooks: &[&str] = match packet.path {
            PacketPath::Input => &["prerouting", "input"],
            PacketPath::Forward => &["prerouting", "forward", "postrouting"],
            PacketPath::Output => &["output", "postrouting"],
        };
        let families = match packet.family() {
            IpFamily::V4 => ["inet", "ip"],
            IpFamily::V6 => ["inet", "ip6"],
        };
        let mut blocking_rules = Vec::new();
        for ((family, table, name), chain) in &self.chains {
            let is_passed = chain.hook.as_deref().is_some_and(|hook| hooks.contains(&hook));
            if !is_passed || !families.contains(&family.as_str()) {
                continue;
            }
            let may_be_marked = &mut *may_be_marked;
            let mut walk = NftWalk { tables: self, family, table, packet, may_be_marked, may_accept: false };
            let rule = match walk.chain(name, 0) {
                ChainVerdict::Stopped(rule) => rule,
                ChainVerdict::FellThrough if chain.drops_by_policy => {
                    format!("chain {name} {{ … policy drop; }}")
                }
                ChainVerdict::FellThrough | ChainVerdict::Accepted => continue,
            };
            if !walk.may_accept {
                let location =
                    RuleLocation::Nftables { table: format!("{family} {table}"), chain: name.clone() };
                blocking_rules.push(BlockingRule { location, rule });
            }
        }
        blocking_rules
    }
}

struct NftWalk<'a> {
    tables: &'a NftRuleset,
    family: &'a str,
    table: &'a str,
    packet: &'a Packet,
    /// Whether a rule may have marked the packet or its connection.
    may_be_marked: &'a mut bool,
    /// Whether a rule that cannot be evaluated may have accepted the packet.
    may_accept: bool,
}

/// What follows from a rule.
enum RuleResult {
    Decided(ChainVerdict<String>),
    /// The next rule is evaluated.
    Next,
    /// The calling chain continues.
    Return,
}

impl NftWalk<'_> {
    fn name(&self, of: &str) -> ObjectName {
        (self.family.to_owned(), self.table.to_owned(), of.to_owned())
    }

    fn chain(&mut self, name: &str, depth: usize) -> ChainVerdict<String> {
        let tables = self.tables;
        let Some(chain) = tables.chains.get(&self.name(name)) else {
            return ChainVerdict::FellThrough;
        };
        for rule in &chain.rules {
            match self.rule(name, rule, depth) {
                RuleResult::Decided(verdict) => return verdict,
                RuleResult::Next => {}
                RuleResult::Return => return ChainVerdict::FellThrough,
            }
        }
        ChainVerdict::FellThrough
    }

    fn rule(&mut self, chain: &str, expressions: &[Value], depth: usize) -> RuleResult {
        let mut matched = RuleMatch::Yes;
        for (kind, value) in expressions.iter().filter_map(Value::as_object).flatten() {
            let verdict = match kind.as_str() {
                "match" => {
                    matched = matched.and(self.matches(value));
                    None
                }
                "vmap" => match self.look_up(value) {
                    Ok(found) => found,
                    Err(()) => {
                        matched = matched.and(RuleMatch::Unknown);
                        None
                    }
                },
                "accept" | "drop" | "reject" | "return" | "jump" | "goto" | "queue" => {
                    Some((kind.clone(), value.clone()))
                }
                "mangle" if is_mark(&value["key"]) => {
                    *self.may_be_marked = true;
                    None
                }
                // Side effects.
                "counter" | "log" | "mangle" | "notrack" | "flow" | "set" | "ct helper" | "meter" => None,
                _ => {
                    matched = matched.and(RuleMatch::Unknown);
                    None
                }
            };
            if matched == RuleMatch::No {
                return RuleResult::Next;
            }
            if let Some((kind, value)) = verdict {
                return self.verdict(&kind, &value, matched, &|| shown(chain, expressions), depth);
            }
        }
        RuleResult::Next
    }

    fn verdict(
        &mut self,
        kind: &str,
        value: &Value,
        matched: RuleMatch,
        rule: &dyn Fn() -> String,
        depth: usize,
    ) -> RuleResult {
        let verdict = match kind {
            "accept" => ChainVerdict::Accepted,
            "drop" | "reject" => ChainVerdict::Stopped(rule()),
            "return" if matched == RuleMatch::Yes => return RuleResult::Return,
            "jump" | "goto" if depth < MAX_DEPTH => {
                let target = value["target"].as_str().unwrap_or_default();
                self.chain(target, depth + 1)
            }
            // A program decides, or the continuation is unknown.
            _ => {
                self.may_accept = true;
                return RuleResult::Next;
            }
        };
        match verdict {
            ChainVerdict::FellThrough if kind == "goto" && matched == RuleMatch::Yes => RuleResult::Return,
            ChainVerdict::FellThrough => RuleResult::Next,
            decided if matched == RuleMatch::Yes => RuleResult::Decided(decided),
            ChainVerdict::Accepted => {
                self.may_accept = true;
                RuleResult::Next
            }
            ChainVerdict::Stopped(_) => RuleResult::Next,
        }
    }

    /// Looks up a verdict map; returns an error if that cannot be evaluated.
    fn look_up(&self, vmap: &Value) -> Result<Option<(String, Value)>, ()> {
        let field = self.field(&vmap["key"]).ok_or(())?;
        for entry in self.elements(&vmap["data"]).ok_or(())? {
            let (Some(key), Some(verdict)) = (entry.get(0), entry.get(1).and_then(Value::as_object)) else {
                return Err(());
            };
            match field.matches(key) {
                RuleMatch::Yes => {
                    return Ok(verdict.iter().next().map(|(kind, value)| (kind.clone(), value.clone())));
                }
                RuleMatch::No => {}
                RuleMatch::Unknown => return Err(()),
            }
        }
        Ok(None)
    }

    fn matches(&self, condition: &Value) -> RuleMatch {
        let Some(field) = self.field(&condition["left"]) else {
            return RuleMatch::Unknown;
        };
        let right = &condition["right"];
        let negated = match condition["op"].as_str() {
            Some("==" | "in") => false,
            Some("!=") => true,
            _ => return RuleMatch::Unknown,
        };
        let is_set = right.get("set").is_some() || right.is_array() || is_reference(right);
        let matched = match self.elements(right).filter(|_| is_set) {
            Some(elements) => any(elements.iter().map(|element| field.matches(element))),
            None if is_set => RuleMatch::Unknown,
            None => field.matches(right),
        };
        matched.negate_if(negated)
    }

    /// Returns the elements of an anonymous or named set or map.
    fn elements<'v>(&'v self, value: &'v Value) -> Option<&'v [Value]> {
        if let Some(name) = value.as_str().and_then(|name| name.strip_prefix('@')) {
            return self.tables.sets.get(&self.name(name)).map(Vec::as_slice);
        }
        value.get("set").unwrap_or(value).as_array().map(Vec::as_slice)
    }

    /// Returns the part of the packet that a condition is about.
    fn field(&self, left: &Value) -> Option<PacketField> {
        let packet = self.packet;
        if is_mark(left) {
            return (!*self.may_be_marked).then_some(PacketField::Number(0));
        }
        let interface = |name: &Option<String>, has_none: bool| match name {
            Some(name) => Some(PacketField::Interface(name.clone())),
            None if has_none => Some(PacketField::Interface(String::new())),
            None => None,
        };
        if let Some(key) = left["meta"]["key"].as_str() {
            return match key {
                "iifname" | "iif" => interface(&packet.incoming, packet.path == PacketPath::Output),
                "oifname" | "oif" => interface(&packet.outgoing, packet.path == PacketPath::Input),
                "l4proto" => Some(PacketField::Words(transport(packet))),
                "nfproto" | "protocol" => Some(PacketField::Words(match packet.family() {
                    IpFamily::V4 => &["ipv4", "ip"],
                    IpFamily::V6 => &["ipv6", "ip6"],
                })),
                "pkttype" => Some(PacketField::Words(&["unicast", "host"])),
                _ => None,
            };
        }
        if let Some(key) = left["ct"]["key"].as_str() {
            return match key {
                "state" => Some(PacketField::Words(&["new"])),
                // A new packet is not translated yet.
                "status" => Some(PacketField::Words(&[])),
                _ => None,
            };
        }
        if let Some(flags) = left["fib"]["flags"].as_array() {
            let is_type = left["fib"]["result"].as_str() == Some("type");
            let has = |flag: &str| flags.iter().any(|given| given.as_str() == Some(flag));
            let is_local = (has("daddr") && packet.path == PacketPath::Input)
                || (has("saddr") && packet.path == PacketPath::Output);
            return is_type.then_some(PacketField::Words(if is_local { &["local"] } else { &["unicast"] }));
        }
        self.header(left["payload"]["protocol"].as_str()?, left["payload"]["field"].as_str()?)
    }

    /// Returns a header field. A header that the packet lacks has no fields, so nothing matches them.
    fn header(&self, protocol: &str, field: &str) -> Option<PacketField> {
        let packet = self.packet;
        let is_v4 = packet.family() == IpFamily::V4;
        let nothing = Some(PacketField::Words(&[]));
        match (protocol, field) {
            ("ip", "saddr") if is_v4 => Some(PacketField::Address(packet.source)),
            ("ip", "daddr") if is_v4 => Some(PacketField::Address(packet.destination)),
            ("ip6", "saddr") if !is_v4 => Some(PacketField::Address(packet.source)),
            ("ip6", "daddr") if !is_v4 => Some(PacketField::Address(packet.destination)),
            ("ip", "protocol") if is_v4 => Some(PacketField::Words(transport(packet))),
            ("ip6", "nexthdr") if !is_v4 => Some(PacketField::Words(transport(packet))),
            ("ip", "saddr" | "daddr" | "protocol") | ("ip6", "saddr" | "daddr" | "nexthdr") => nothing,
            ("tcp" | "udp" | "th", _) => {
                let is_here = protocol == "th" || transport(packet).contains(&protocol);
                match field {
                    _ if !is_here => nothing,
                    "dport" => Some(PacketField::Number(packet.port.into())),
                    "sport" => Some(PacketField::Number(SOURCE_PORT.into())),
                    _ => None,
                }
            }
            ("icmp" | "icmpv6" | "igmp" | "sctp" | "dccp" | "esp" | "ah" | "arp", _) => nothing,
            _ => None,
        }
    }
}

fn transport(packet: &Packet) -> &'static [&'static str] {
    match packet.transport {
        TransportProtocol::Tcp => &["tcp"],
        TransportProtocol::Udp => &["udp"],
        _ => &[],
    }
}

/// Returns whether an expression is the mark of a packet or of its connection.
fn is_mark(location: &Value) -> bool {
    ["meta", "ct"].iter().any(|kind| location[kind]["key"].as_str() == Some("mark"))
}

fn is_reference(value: &Value) -> bool {
    value.as_str().is_some_and(|name| name.starts_with('@'))
}

fn any(matches: impl Iterator<Item = RuleMatch>) -> RuleMatch {
    matches.fold(RuleMatch::No, |all, one| match (all, one) {
        (RuleMatch::Yes, _) | (_, RuleMatch::Yes) => RuleMatch::Yes,
        (RuleMatch::Unknown, _) | (_, RuleMatch::Unknown) => RuleMatch::Unknown,
        (RuleMatch::No, RuleMatch::No) => RuleMatch::No,
    })
}

/// A part of a packet that conditions compare.
#[derive(Debug)]
enum PacketField {
    Interface(String),
    Address(IpAddr),
    Number(u64),
    /// Any of these words; with none, the packet lacks the field.
    Words(&'static [&'static str]),
}

impl PacketField {
    fn matches(&self, value: &Value) -> RuleMatch {
        // An element may have a comment, a counter or a timeout besides its value.
        let value = value.get("elem").map_or(value, |element| &element["val"]);
        if let Some(parts) = value.get("set").and_then(Value::as_array).or_else(|| value.as_array()) {
            return any(parts.iter().map(|part| self.matches(part)));
        }
        if is_reference(value) {
            return RuleMatch::Unknown;
        }
        match self {
            Self::Interface(name) => match value.as_str() {
                Some("*") => RuleMatch::Yes,
                Some(pattern) => match pattern.strip_suffix('*') {
                    Some(start) => RuleMatch::of(name.starts_with(start)),
                    None => RuleMatch::of(name == pattern),
                },
                None => RuleMatch::Unknown,
            },
            Self::Address(address) => address_fits(*address, value),
            Self::Number(number) => number_fits(*number, value),
            Self::Words(words) => match value.as_str() {
                Some(word) => RuleMatch::of(words.contains(&word)),
                // A number or a flag. Nothing matches a field that the packet lacks.
                None if words.is_empty() => RuleMatch::No,
                None => RuleMatch::Unknown,
            },
        }
    }
}

fn address_fits(address: IpAddr, value: &Value) -> RuleMatch {
    let read = |value: &Value| value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
    if let Some(prefix) = value.get("prefix") {
        let length = prefix["len"].as_u64().and_then(|length| u8::try_from(length).ok());
        let net = read(&prefix["addr"]).zip(length).and_then(|(addr, length)| IpNet::new(addr, length).ok());
        return net.map_or(RuleMatch::Unknown, |net| RuleMatch::of(net.contains(&address)));
    }
    if let Some(range) = value.get("range") {
        let bounds = read(&range[0]).zip(read(&range[1]));
        return bounds
            .map_or(RuleMatch::Unknown, |(first, last)| RuleMatch::of((first..=last).contains(&address)));
    }
    read(value).map_or(RuleMatch::Unknown, |other| RuleMatch::of(other == address))
}

fn number_fits(number: u64, value: &Value) -> RuleMatch {
    if let Some(range) = value.get("range") {
        let bounds = range[0].as_u64().zip(range[1].as_u64());
        return bounds
            .map_or(RuleMatch::Unknown, |(first, last)| RuleMatch::of((first..=last).contains(&number)));
    }
    value.as_u64().map_or(RuleMatch::Unknown, |other| RuleMatch::of(other == number))
}

/// Formats a rule briefly, close to the syntax of `nft`.
fn shown(chain: &str, expressions: &[Value]) -> String {
    let mut words = vec![format!("chain {chain} {{ …")];
    for (kind, value) in expressions.iter().filter_map(Value::as_object).flatten() {
        match kind.as_str() {
            "counter" | "log" => {}
            "match" => {
                let op = match value["op"].as_str() {
                    Some("==" | "in") | None => String::new(),
                    Some(op) => format!("{op} "),
                };
                words.push(format!("{} {op}{}", left_text(&value["left"]), right_text(&value["right"])));
            }
            "jump" | "goto" => words.push(format!("{kind} {}", value["target"].as_str().unwrap_or_default())),
            _ => words.push(kind.clone()),
        }
    }
    words.push("}".to_owned());
    words.join(" ")
}

fn left_text(left: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if let Some(key) = left["meta"]["key"].as_str() {
        let prefix = if matches!(key, "l4proto" | "nfproto") { "meta " } else { "" };
        return format!("{prefix}{key}");
    }
    if let Some(key) = left["ct"]["key"].as_str() {
        return format!("ct {key}");
    }
    if left.get("payload").is_some() {
        return format!("{} {}", word(&left["payload"]["protocol"]), word(&left["payload"]["field"]));
    }
    left.to_string()
}

fn right_text(right: &Value) -> String {
    if let Some(text) = right.as_str() {
        return text.to_owned();
    }
    if let Some(prefix) = right.get("prefix") {
        return format!("{}/{}", prefix["addr"].as_str().unwrap_or_default(), prefix["len"]);
    }
    match right.get("set").unwrap_or(right).as_array() {
        Some(elements) => {
            format!("{{ {} }}", elements.iter().map(right_text).collect::<Vec<_>>().join(", "))
        }
        None => right.to_string(),
    }
}

#[cfg(test)]
mod tests;
