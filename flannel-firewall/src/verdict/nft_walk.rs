//! A packet on its path through the chains of nftables, as `nft -j list ruleset` shows them (libnftables-json(5)). Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use flannel_netlink::IpFamily;
use ipnet::IpNet;
use serde_json::Value;

use super::{BlockingRule, DEEPEST, Fit, Packet, PacketPath, RuleLocation, SOURCE_PORT, TransportProtocol};

/// IpFamily and name of a table, and the name of something in it.
type Name = (String, String, String);

/// All tables.
#[derive(Debug, Default)]
pub(super) struct Tables {
    chains: BTreeMap<Name, Chain>,
    /// Sets and maps, with their elements.
    sets: BTreeMap<Name, Vec<Value>>,
}

#[derive(Debug, Default)]
struct Chain {
    /// The hook that it is called from.
    hook: Option<String>,
    drops: bool,
    rules: Vec<Vec<Value>>,
}

impl Tables {
    /// Reads the ruleset, but for the tables of these names, which belong to iptables.
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
                let drops = object["policy"].as_str() == Some("drop");
                let chain = self.chains.entry((family, table, word("name"))).or_default();
                (chain.hook, chain.drops) = (hook, drops);
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

    /// Names the rules that stop a packet. Takes and tells whether it may be marked.
    pub(super) fn barriers(&self, packet: &Packet, is_marked: &mut bool) -> Vec<BlockingRule> {
        let hooks: &[&str] = match packet.path {
            PacketPath::Input => &["prerouting", "input"],
            PacketPath::Forward => &["prerouting", "forward", "postrouting"],
            PacketPath::Output => &["output", "postrouting"],
        };
        let families = match packet.family() {
            IpFamily::V4 => ["inet", "ip"],
            IpFamily::V6 => ["inet", "ip6"],
        };
        let mut barriers = Vec::new();
        for ((family, table, name), chain) in &self.chains {
            let is_passed = chain.hook.as_deref().is_some_and(|hook| hooks.contains(&hook));
            if !is_passed || !families.contains(&family.as_str()) {
                continue;
            }
            let is_marked = &mut *is_marked;
            let mut walk = Walk { tables: self, family, table, packet, is_marked, doubt: false };
            let rule = match walk.chain(name, 0) {
                Outcome::Stopped(rule) => rule,
                Outcome::Fell if chain.drops => format!("chain {name} {{ … policy drop; }}"),
                Outcome::Fell | Outcome::Accepted => continue,
            };
            if !walk.doubt {
                let location =
                    RuleLocation::Nftables { table: format!("{family} {table}"), chain: name.clone() };
                barriers.push(BlockingRule { location, rule });
            }
        }
        barriers
    }
}

struct Walk<'a> {
    tables: &'a Tables,
    family: &'a str,
    table: &'a str,
    packet: &'a Packet,
    /// Whether a rule may have marked the packet or its connection.
    is_marked: &'a mut bool,
    /// Whether a rule that cannot be judged may have accepted the packet.
    doubt: bool,
}

/// How the path of a packet through a chain, or through a rule, ends.
enum Outcome {
    Accepted,
    /// By this rule.
    Stopped(String),
    Fell,
}

/// What a verdict leads to.
enum Step {
    Done(Outcome),
    /// On with the next rule.
    Next,
    /// Back to where the chain was called from.
    Return,
}

impl Walk<'_> {
    fn name(&self, of: &str) -> Name {
        (self.family.to_owned(), self.table.to_owned(), of.to_owned())
    }

    fn chain(&mut self, name: &str, depth: usize) -> Outcome {
        let tables = self.tables;
        let Some(chain) = tables.chains.get(&self.name(name)) else {
            return Outcome::Fell;
        };
        for rule in &chain.rules {
            match self.rule(name, rule, depth) {
                Step::Done(outcome) => return outcome,
                Step::Next => {}
                Step::Return => return Outcome::Fell,
            }
        }
        Outcome::Fell
    }

    fn rule(&mut self, chain: &str, expressions: &[Value], depth: usize) -> Step {
        let mut fit = Fit::Yes;
        for (kind, value) in expressions.iter().filter_map(Value::as_object).flatten() {
            let verdict = match kind.as_str() {
                "match" => {
                    fit = fit.and(self.matches(value));
                    None
                }
                "vmap" => match self.mapped(value) {
                    Ok(found) => found,
                    Err(()) => {
                        fit = fit.and(Fit::Unknown);
                        None
                    }
                },
                "accept" | "drop" | "reject" | "return" | "jump" | "goto" | "queue" => {
                    Some((kind.clone(), value.clone()))
                }
                "mangle" if is_mark(&value["key"]) => {
                    *self.is_marked = true;
                    None
                }
                // What is done beside the verdict.
                "counter" | "log" | "mangle" | "notrack" | "flow" | "set" | "ct helper" | "meter" => None,
                _ => {
                    fit = fit.and(Fit::Unknown);
                    None
                }
            };
            if fit == Fit::No {
                return Step::Next;
            }
            if let Some((kind, value)) = verdict {
                return self.verdict(&kind, &value, fit, &|| shown(chain, expressions), depth);
            }
        }
        Step::Next
    }

    fn verdict(
        &mut self,
        kind: &str,
        value: &Value,
        fit: Fit,
        rule: &dyn Fn() -> String,
        depth: usize,
    ) -> Step {
        let outcome = match kind {
            "accept" => Outcome::Accepted,
            "drop" | "reject" => Outcome::Stopped(rule()),
            "return" if fit == Fit::Yes => return Step::Return,
            "jump" | "goto" if depth < DEEPEST => {
                let target = value["target"].as_str().unwrap_or_default();
                self.chain(target, depth + 1)
            }
            // Another program decides, or it cannot be told how it goes on.
            _ => {
                self.doubt = true;
                return Step::Next;
            }
        };
        match outcome {
            Outcome::Fell if kind == "goto" && fit == Fit::Yes => Step::Return,
            Outcome::Fell => Step::Next,
            decided if fit == Fit::Yes => Step::Done(decided),
            Outcome::Accepted => {
                self.doubt = true;
                Step::Next
            }
            Outcome::Stopped(_) => Step::Next,
        }
    }

    /// Finds the verdict of a verdict map; an error if it cannot be judged.
    fn mapped(&self, vmap: &Value) -> Result<Option<(String, Value)>, ()> {
        let subject = self.subject(&vmap["key"]).ok_or(())?;
        for entry in self.elements(&vmap["data"]).ok_or(())? {
            let (Some(key), Some(verdict)) = (entry.get(0), entry.get(1).and_then(Value::as_object)) else {
                return Err(());
            };
            match subject.fits(key) {
                Fit::Yes => {
                    return Ok(verdict.iter().next().map(|(kind, value)| (kind.clone(), value.clone())));
                }
                Fit::No => {}
                Fit::Unknown => return Err(()),
            }
        }
        Ok(None)
    }

    fn matches(&self, condition: &Value) -> Fit {
        let Some(subject) = self.subject(&condition["left"]) else {
            return Fit::Unknown;
        };
        let right = &condition["right"];
        let negated = match condition["op"].as_str() {
            Some("==" | "in") => false,
            Some("!=") => true,
            _ => return Fit::Unknown,
        };
        let is_set = right.get("set").is_some() || right.is_array() || is_reference(right);
        let fit = match self.elements(right).filter(|_| is_set) {
            Some(elements) => any(elements.iter().map(|element| subject.fits(element))),
            None if is_set => Fit::Unknown,
            None => subject.fits(right),
        };
        fit.inverted_if(negated)
    }

    /// The elements of a set or map, written out or by its name.
    fn elements<'v>(&'v self, value: &'v Value) -> Option<&'v [Value]> {
        if let Some(name) = value.as_str().and_then(|name| name.strip_prefix('@')) {
            return self.tables.sets.get(&self.name(name)).map(Vec::as_slice);
        }
        value.get("set").unwrap_or(value).as_array().map(Vec::as_slice)
    }

    /// What the packet has where a rule looks.
    fn subject(&self, left: &Value) -> Option<Subject> {
        let packet = self.packet;
        if is_mark(left) {
            return (!*self.is_marked).then_some(Subject::Number(0));
        }
        let interface = |name: &Option<String>, cannot: bool| match name {
            Some(name) => Some(Subject::Interface(name.clone())),
            None if cannot => Some(Subject::Interface(String::new())),
            None => None,
        };
        if let Some(key) = left["meta"]["key"].as_str() {
            return match key {
                "iifname" | "iif" => interface(&packet.incoming, packet.path == PacketPath::Output),
                "oifname" | "oif" => interface(&packet.outgoing, packet.path == PacketPath::Input),
                "l4proto" => Some(Subject::Words(transport(packet))),
                "nfproto" | "protocol" => Some(Subject::Words(match packet.family() {
                    IpFamily::V4 => &["ipv4", "ip"],
                    IpFamily::V6 => &["ipv6", "ip6"],
                })),
                "pkttype" => Some(Subject::Words(&["unicast", "host"])),
                _ => None,
            };
        }
        if let Some(key) = left["ct"]["key"].as_str() {
            return match key {
                "state" => Some(Subject::Words(&["new"])),
                // Nothing was translated yet.
                "status" => Some(Subject::Words(&[])),
                _ => None,
            };
        }
        if let Some(flags) = left["fib"]["flags"].as_array() {
            let is_type = left["fib"]["result"].as_str() == Some("type");
            let has = |flag: &str| flags.iter().any(|given| given.as_str() == Some(flag));
            let is_local = (has("daddr") && packet.path == PacketPath::Input)
                || (has("saddr") && packet.path == PacketPath::Output);
            return is_type.then_some(Subject::Words(if is_local { &["local"] } else { &["unicast"] }));
        }
        self.header(left["payload"]["protocol"].as_str()?, left["payload"]["field"].as_str()?)
    }

    /// A field of a header; a header that the packet does not have has no fields.
    fn header(&self, protocol: &str, field: &str) -> Option<Subject> {
        let packet = self.packet;
        let is_v4 = packet.family() == IpFamily::V4;
        let nothing = Some(Subject::Words(&[]));
        match (protocol, field) {
            ("ip", "saddr") if is_v4 => Some(Subject::Address(packet.source)),
            ("ip", "daddr") if is_v4 => Some(Subject::Address(packet.destination)),
            ("ip6", "saddr") if !is_v4 => Some(Subject::Address(packet.source)),
            ("ip6", "daddr") if !is_v4 => Some(Subject::Address(packet.destination)),
            ("ip", "protocol") if is_v4 => Some(Subject::Words(transport(packet))),
            ("ip6", "nexthdr") if !is_v4 => Some(Subject::Words(transport(packet))),
            ("ip", "saddr" | "daddr" | "protocol") | ("ip6", "saddr" | "daddr" | "nexthdr") => nothing,
            ("tcp" | "udp" | "th", _) => {
                let is_here = protocol == "th" || transport(packet).contains(&protocol);
                match field {
                    _ if !is_here => nothing,
                    "dport" => Some(Subject::Number(packet.port.into())),
                    "sport" => Some(Subject::Number(SOURCE_PORT.into())),
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
    }
}

/// Whether it is the mark of a packet, or of its connection.
fn is_mark(location: &Value) -> bool {
    ["meta", "ct"].iter().any(|kind| location[kind]["key"].as_str() == Some("mark"))
}

fn is_reference(value: &Value) -> bool {
    value.as_str().is_some_and(|name| name.starts_with('@'))
}

fn any(fits: impl Iterator<Item = Fit>) -> Fit {
    fits.fold(Fit::No, |all, one| match (all, one) {
        (Fit::Yes, _) | (_, Fit::Yes) => Fit::Yes,
        (Fit::Unknown, _) | (_, Fit::Unknown) => Fit::Unknown,
        (Fit::No, Fit::No) => Fit::No,
    })
}

/// What a packet has in one location.
#[derive(Debug)]
enum Subject {
    Interface(String),
    Address(IpAddr),
    Number(u64),
    /// Any of these words; with none it has nothing there.
    Words(&'static [&'static str]),
}

impl Subject {
    fn fits(&self, value: &Value) -> Fit {
        // An element may have a comment, a counter or a time to live beside its value.
        let value = value.get("elem").map_or(value, |element| &element["val"]);
        if let Some(parts) = value.get("set").and_then(Value::as_array).or_else(|| value.as_array()) {
            return any(parts.iter().map(|part| self.fits(part)));
        }
        if is_reference(value) {
            return Fit::Unknown;
        }
        match self {
            Self::Interface(name) => match value.as_str() {
                Some("*") => Fit::Yes,
                Some(pattern) => match pattern.strip_suffix('*') {
                    Some(start) => Fit::of(name.starts_with(start)),
                    None => Fit::of(name == pattern),
                },
                None => Fit::Unknown,
            },
            Self::Address(address) => address_fits(*address, value),
            Self::Number(number) => number_fits(*number, value),
            Self::Words(words) => match value.as_str() {
                Some(word) => Fit::of(words.contains(&word)),
                // A number or a flag; where the packet has nothing, nothing fits.
                None if words.is_empty() => Fit::No,
                None => Fit::Unknown,
            },
        }
    }
}

fn address_fits(address: IpAddr, value: &Value) -> Fit {
    let read = |value: &Value| value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
    if let Some(prefix) = value.get("prefix") {
        let length = prefix["len"].as_u64().and_then(|length| u8::try_from(length).ok());
        let net = read(&prefix["addr"]).zip(length).and_then(|(addr, length)| IpNet::new(addr, length).ok());
        return net.map_or(Fit::Unknown, |net| Fit::of(net.contains(&address)));
    }
    if let Some(range) = value.get("range") {
        let bounds = read(&range[0]).zip(read(&range[1]));
        return bounds.map_or(Fit::Unknown, |(first, last)| Fit::of((first..=last).contains(&address)));
    }
    read(value).map_or(Fit::Unknown, |other| Fit::of(other == address))
}

fn number_fits(number: u64, value: &Value) -> Fit {
    if let Some(range) = value.get("range") {
        let bounds = range[0].as_u64().zip(range[1].as_u64());
        return bounds.map_or(Fit::Unknown, |(first, last)| Fit::of((first..=last).contains(&number)));
    }
    value.as_u64().map_or(Fit::Unknown, |other| Fit::of(other == number))
}

/// A rule in few words, nearly as `nft` writes it.
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
