//! A packet's path through the chains of iptables. Pure.

use flannel_core::TransportProtocol;

use super::{BlockingRule, Packet, PacketPath, RuleLocation, RuleMatch, SOURCE_PORT};
use crate::chain_verdict::{ChainVerdict, MAX_DEPTH};
use crate::iptables::listing::{ListedRule, TableListing};
use crate::iptables::spec::RuleSpec;
use crate::rules::AddressSelector;

/// Returns the built-in chains that a packet passes, in order (`iptables(8)`, TABLES). The table nat drops nothing.
fn chains(path: PacketPath) -> &'static [(&'static str, &'static str)] {
    match path {
        PacketPath::Input => &[
            ("raw", "PREROUTING"),
            ("mangle", "PREROUTING"),
            ("mangle", "INPUT"),
            ("filter", "INPUT"),
            ("security", "INPUT"),
        ],
        PacketPath::Forward => &[
            ("raw", "PREROUTING"),
            ("mangle", "PREROUTING"),
            ("mangle", "FORWARD"),
            ("filter", "FORWARD"),
            ("security", "FORWARD"),
            ("mangle", "POSTROUTING"),
        ],
        PacketPath::Output => &[
            ("raw", "OUTPUT"),
            ("mangle", "OUTPUT"),
            ("filter", "OUTPUT"),
            ("security", "OUTPUT"),
            ("mangle", "POSTROUTING"),
        ],
    }
}

/// Returns the rules that stop a packet. Reads and updates whether the packet may be marked.
pub(super) fn blocking_rules(
    program: &'static str,
    tables: &[(String, TableListing)],
    packet: &Packet,
    may_be_marked: &mut bool,
) -> Vec<BlockingRule> {
    let mut blocking_rules = Vec::new();
    for (table, chain) in chains(packet.path) {
        let Some((_, listing)) = tables.iter().find(|(name, _)| name == table) else {
            continue;
        };
        let mut walk =
            IptablesWalk { listing, packet, may_be_marked: &mut *may_be_marked, may_accept: false };
        let rule = match walk.chain(chain, 0) {
            ChainVerdict::Stopped(rule) => format!("-A {} {}", rule.chain, rule.text),
            ChainVerdict::FellThrough if walk.policy_drops(chain) => format!("-P {chain} DROP"),
            ChainVerdict::FellThrough | ChainVerdict::Accepted => continue,
        };
        if !walk.may_accept {
            let location = RuleLocation::Iptables { program, table: (*table).into(), chain: (*chain).into() };
            blocking_rules.push(BlockingRule { location, rule });
        }
    }
    blocking_rules
}

struct IptablesWalk<'a> {
    listing: &'a TableListing,
    packet: &'a Packet,
    /// Whether a rule may have marked the packet or its connection.
    may_be_marked: &'a mut bool,
    /// Whether a rule that cannot be evaluated may have accepted the packet.
    may_accept: bool,
}

impl<'a> IptablesWalk<'a> {
    fn policy_drops(&self, chain: &str) -> bool {
        self.listing.chains.get(chain).is_some_and(|policy| policy.as_deref() == Some("DROP"))
    }

    fn chain(&mut self, name: &str, depth: usize) -> ChainVerdict<&'a ListedRule> {
        let listing = self.listing;
        for rule in listing.of(name) {
            let (matched, goto) = matches(&rule.spec, self.packet, *self.may_be_marked);
            if matched == RuleMatch::No {
                continue;
            }
            let target = goto.unwrap_or(rule.spec.target.as_str());
            let verdict = match target {
                "ACCEPT" => ChainVerdict::Accepted,
                "DROP" | "REJECT" => ChainVerdict::Stopped(rule),
                "RETURN" if matched == RuleMatch::Yes => return ChainVerdict::FellThrough,
                "MARK" | "CONNMARK" => {
                    *self.may_be_marked = true;
                    continue;
                }
                // A program decides.
                "RETURN" | "NFQUEUE" | "QUEUE" => {
                    self.may_accept = true;
                    continue;
                }
                _ if depth < MAX_DEPTH && listing.chains.contains_key(target) => {
                    self.chain(target, depth + 1)
                }
                _ => continue,
            };
            match verdict {
                ChainVerdict::FellThrough if goto.is_some() && matched == RuleMatch::Yes => {
                    return ChainVerdict::FellThrough;
                }
                ChainVerdict::FellThrough => {}
                decided if matched == RuleMatch::Yes => return decided,
                ChainVerdict::Accepted => self.may_accept = true,
                ChainVerdict::Stopped(_) => {}
            }
        }
        ChainVerdict::FellThrough
    }
}

/// Returns whether a rule matches a packet, and the chain that it goes to without returning (`-g`).
fn matches<'r>(spec: &'r RuleSpec, packet: &Packet, may_be_marked: bool) -> (RuleMatch, Option<&'r str>) {
    let of = |selector: Option<AddressSelector>, address| {
        selector.map_or(RuleMatch::Yes, |AddressSelector { net, negated }| {
            RuleMatch::of(net.contains(&address)).negate_if(negated)
        })
    };
    let of_mark = |mark| if may_be_marked { RuleMatch::Unknown } else { has_no_mark(mark) };
    let mark = spec.mark.as_deref().map_or(RuleMatch::Yes, of_mark);
    let (others, goto) = conditions(&spec.others, packet);
    let addresses = of(spec.source, packet.source).and(of(spec.destination, packet.destination));
    (addresses.and(mark).and(others), goto)
}

/// Evaluates a mark against a new packet, which has none: `0x0/0xff` matches, `0x4000/0x4000` does not.
fn has_no_mark(mark: &str) -> RuleMatch {
    let value = mark.split('/').next().unwrap_or_default();
    let digits = value.strip_prefix("0x");
    let value = digits.map_or_else(|| value.parse(), |digits| u32::from_str_radix(digits, 16));
    value.map_or(RuleMatch::Unknown, |value| RuleMatch::of(value == 0))
}

/// Evaluates the conditions that flannel's own rules do not use.
fn conditions<'r>(words: &'r [String], packet: &Packet) -> (RuleMatch, Option<&'r str>) {
    let (mut matched, mut goto) = (RuleMatch::Yes, None);
    let mut words = words.iter().map(String::as_str).peekable();
    while let Some(word) = words.next() {
        let negated = word == "!";
        let word = if negated { words.next().unwrap_or_default() } else { word };
        let mut values = Vec::new();
        while let Some(value) = words.next_if(|value| !value.starts_with('-') && *value != "!") {
            values.push(value);
        }
        let value = values.first().copied().unwrap_or_default();
        if word == "-g" {
            goto = Some(value);
            continue;
        }
        matched = matched.and(condition(word, value, &values, packet).negate_if(negated));
    }
    (matched, goto)
}

fn condition(word: &str, value: &str, values: &[&str], packet: &Packet) -> RuleMatch {
    match word {
        "-i" => interface(value, packet.incoming.as_deref(), packet.path == PacketPath::Output),
        "-o" => interface(value, packet.outgoing.as_deref(), packet.path == PacketPath::Input),
        "-p" => protocol(value, packet),
        "--dport" | "--dports" | "--destination-port" | "--destination-ports" => ports(value, packet.port),
        "--sport" | "--sports" | "--source-port" | "--source-ports" => ports(value, SOURCE_PORT),
        "--ctstate" | "--state" => RuleMatch::of(value.split(',').any(|state| state == "NEW")),
        "--dst-type" => RuleMatch::of(value.split(',').any(|kind| kind == destination_type(packet))),
        "--src-type" => RuleMatch::of(value.split(',').any(|kind| kind == source_type(packet))),
        "--syn" => RuleMatch::of(packet.transport == TransportProtocol::Tcp),
        "--tcp-flags" => match values.get(1) {
            Some(&"SYN") => RuleMatch::of(packet.transport == TransportProtocol::Tcp),
            _ => RuleMatch::Unknown,
        },
        // The name of an extension is no condition, nor are the options of a target.
        "-m" | "--limit-iface-in" | "--limit-iface-out" => RuleMatch::Yes,
        "--reject-with" | "--log-prefix" | "--log-level" | "--log-tcp-options" | "--nflog-prefix"
        | "--nflog-group" => RuleMatch::Yes,
        _ => RuleMatch::Unknown,
    }
}

/// Evaluates a condition on a link; a plus at the end of its name matches anything. `has_none` says that the packet has no
/// such link.
fn interface(pattern: &str, name: Option<&str>, has_none: bool) -> RuleMatch {
    match (name, pattern.strip_suffix('+')) {
        (None, _) if has_none => RuleMatch::No,
        (None, Some("")) => RuleMatch::Yes,
        (None, _) => RuleMatch::Unknown,
        (Some(name), Some(start)) => RuleMatch::of(name.starts_with(start)),
        (Some(name), None) => RuleMatch::of(name == pattern),
    }
}

fn protocol(value: &str, packet: &Packet) -> RuleMatch {
    let own: &[&str] = match packet.transport {
        TransportProtocol::Tcp => &["tcp", "6", "all", "0"],
        TransportProtocol::Udp => &["udp", "17", "all", "0"],
        _ => return RuleMatch::Unknown,
    };
    RuleMatch::of(own.contains(&value))
}

fn ports(value: &str, port: u16) -> RuleMatch {
    let mut matched = RuleMatch::No;
    for part in value.split(',') {
        let (first, last) = part.split_once(':').unwrap_or((part, part));
        let first = if first.is_empty() { Ok(0) } else { first.parse::<u16>() };
        let last = if last.is_empty() { Ok(u16::MAX) } else { last.parse::<u16>() };
        match (first, last) {
            (Ok(first), Ok(last)) if (first..=last).contains(&port) => return RuleMatch::Yes,
            (Ok(_), Ok(_)) => {}
            // A service name.
            _ => matched = RuleMatch::Unknown,
        }
    }
    matched
}

fn destination_type(packet: &Packet) -> &'static str {
    if packet.path == PacketPath::Input { "LOCAL" } else { "UNICAST" }
}

fn source_type(packet: &Packet) -> &'static str {
    if packet.path == PacketPath::Output { "LOCAL" } else { "UNICAST" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(path: PacketPath) -> Packet {
        let (incoming, outgoing) = match path {
            PacketPath::Input => (Some("eth0"), None),
            PacketPath::Forward => (Some("flannel.1"), Some("cni0")),
            PacketPath::Output => (None, Some("eth0")),
        };
        let forwarded = path == PacketPath::Forward;
        let address = |text: &str| text.parse().expect("address");
        Packet {
            path,
            incoming: incoming.map(str::to_owned),
            outgoing: outgoing.map(str::to_owned),
            source: address(if forwarded { "10.5.2.2" } else { "192.168.64.2" }),
            destination: address(if forwarded { "10.5.1.2" } else { "192.168.64.1" }),
            transport: if forwarded { TransportProtocol::Tcp } else { TransportProtocol::Udp },
            port: if forwarded { 33_333 } else { 8472 },
        }
    }

    /// Returns the rule that stops a packet in a table `filter` with these rules.
    fn stopped(path: PacketPath, policy: &str, rules: &str) -> Option<String> {
        let chains = format!(
            ":INPUT {policy} [0:0]\n:FORWARD {policy} [0:0]\n:OUTPUT {policy} [0:0]\n:A - [0:0]\n:B - [0:0]"
        );
        let tables = TableListing::read_all(&format!("*filter\n{chains}\n{rules}\nCOMMIT\n"));
        blocking_rules("iptables", &tables, &packet(path), &mut false).pop().map(|blocking| blocking.rule)
    }

    #[test]
    fn the_blocking_rule_is_found_behind_jumps_and_conditions() {
        for (rules, rule) in [
            ("-A FORWARD -j DROP", "-A FORWARD -j DROP"),
            ("-A FORWARD -i flannel.1 -o cni0 -j DROP", "-A FORWARD -i flannel.1 -o cni0 -j DROP"),
            ("-A FORWARD -i flannel+ ! -o docker0 -j A\n-A A -p tcp -j DROP", "-A A -p tcp -j DROP"),
            ("-A FORWARD -g A\n-A FORWARD -j ACCEPT\n-A A -j RETURN", "-P FORWARD DROP"),
            ("-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-P FORWARD DROP"),
            ("-A FORWARD -p tcp -m multiport --dports 80,443 -j ACCEPT", "-P FORWARD DROP"),
            ("-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT", "-P FORWARD DROP"),
            (
                "-A FORWARD -i eth0 -j MARK --set-xmark 0x1/0x1\n-A FORWARD -m mark --mark 0x1 -j ACCEPT",
                "-P FORWARD DROP",
            ),
            ("-A FORWARD -s 10.5.3.0/24 -j ACCEPT", "-P FORWARD DROP"),
            ("-A FORWARD -j LOG --log-prefix \"no \"", "-P FORWARD DROP"),
        ] {
            assert_eq!(stopped(PacketPath::Forward, "DROP", rules).as_deref(), Some(rule), "{rules}");
        }
    }

    #[test]
    fn a_packet_that_may_be_accepted_is_not_reported_as_stopped() {
        for rules in [
            "-A FORWARD -s 10.5.0.0/16 -j ACCEPT",
            "-A FORWARD -j A\n-A A -j B\n-A B -i flannel.1 -j ACCEPT",
            "-A FORWARD -p tcp --dport 30000:40000 -j ACCEPT",
            "-A FORWARD -m conntrack --ctstate NEW -j ACCEPT",
            "-A FORWARD -m set --match-set pods src -j ACCEPT\n-A FORWARD -j DROP",
            "-A FORWARD -j NFQUEUE --queue-num 0",
            "-A FORWARD -m limit --limit 5/min -j A\n-A A -j ACCEPT",
            "-A FORWARD -j MARK --set-xmark 0x1/0x1\n-A FORWARD -m mark --mark 0x1 -j ACCEPT",
            "-A FORWARD -j A\n-A A -j CONNMARK --restore-mark\n-A FORWARD -m mark --mark 0x1/0x1 -j ACCEPT",
        ] {
            assert_eq!(stopped(PacketPath::Forward, "DROP", rules), None, "{rules}");
        }
        for rules in [
            "-A FORWARD -p udp -j DROP",
            "-A FORWARD -m set --match-set bad src -j DROP",
            "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
            "-A FORWARD -i docker0 -j DROP",
        ] {
            assert_eq!(stopped(PacketPath::Forward, "ACCEPT", rules), None, "{rules}");
        }
    }

    #[test]
    fn tunnel_datagrams_are_stopped_by_a_default_deny_policy() {
        let ufw = "-A INPUT -j A\n-A A -i lo -j ACCEPT\n-A A -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
                   -A A -m conntrack --ctstate INVALID -j DROP\n-A A -p udp -m udp --sport 67 --dport 68 -j ACCEPT\n\
                   -A A -j B\n-A B -m addrtype --dst-type LOCAL -j RETURN\n-A B -j DROP\n\
                   -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT";
        assert_eq!(stopped(PacketPath::Input, "DROP", ufw).as_deref(), Some("-P INPUT DROP"));
        let open = format!("{ufw}\n-A INPUT -p udp -m udp --dport 8472 -j ACCEPT");
        assert_eq!(stopped(PacketPath::Input, "DROP", &open), None);
        assert_eq!(
            stopped(
                PacketPath::Output,
                "ACCEPT",
                "-A OUTPUT -o eth0 -p udp -j REJECT --reject-with icmp-port-unreachable"
            ),
            Some("-A OUTPUT -o eth0 -p udp -j REJECT --reject-with icmp-port-unreachable".to_owned())
        );
        assert_eq!(stopped(PacketPath::Output, "ACCEPT", "-A OUTPUT -i eth0 -j DROP"), None);
    }
}
