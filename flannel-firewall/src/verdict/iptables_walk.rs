//! A packet on its path through the chains of iptables. Pure.

use super::{BlockingRule, DEEPEST, Fit, Packet, PacketPath, RuleLocation, SOURCE_PORT, TransportProtocol};
use crate::iptables::listing::{Listed, Listing};
use crate::iptables::spec::Spec;
use crate::rules::Selector;

/// The built-in chains that a packet passes, in order (`iptables(8)`, TABLES). The table nat has no say in what passes.
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

/// Names the rules that stop a packet. Takes and tells whether it may be marked.
pub(super) fn barriers(
    program: &'static str,
    tables: &[(String, Listing)],
    packet: &Packet,
    is_marked: &mut bool,
) -> Vec<BlockingRule> {
    let mut barriers = Vec::new();
    for (table, chain) in chains(packet.path) {
        let Some((_, listing)) = tables.iter().find(|(name, _)| name == table) else {
            continue;
        };
        let mut walk = Walk { listing, packet, is_marked: &mut *is_marked, doubt: false };
        let rule = match walk.chain(chain, 0) {
            Outcome::Stopped(rule) => format!("-A {} {}", rule.chain, rule.text),
            Outcome::Fell if walk.policy_drops(chain) => format!("-P {chain} DROP"),
            Outcome::Fell | Outcome::Accepted => continue,
        };
        if !walk.doubt {
            let location = RuleLocation::Iptables { program, table: (*table).into(), chain: (*chain).into() };
            barriers.push(BlockingRule { location, rule });
        }
    }
    barriers
}

struct Walk<'a> {
    listing: &'a Listing,
    packet: &'a Packet,
    /// Whether a rule may have marked the packet or its connection.
    is_marked: &'a mut bool,
    /// Whether a rule that cannot be judged may have accepted the packet.
    doubt: bool,
}

/// How the path of a packet through a chain ends.
enum Outcome<'a> {
    Accepted,
    Stopped(&'a Listed),
    /// No rule decides.
    Fell,
}

impl<'a> Walk<'a> {
    fn policy_drops(&self, chain: &str) -> bool {
        self.listing.chains.get(chain).is_some_and(|policy| policy.as_deref() == Some("DROP"))
    }

    fn chain(&mut self, name: &str, depth: usize) -> Outcome<'a> {
        let listing = self.listing;
        for rule in listing.of(name) {
            let (fit, goto) = fits(&rule.spec, self.packet, *self.is_marked);
            if fit == Fit::No {
                continue;
            }
            let target = goto.unwrap_or(rule.spec.target.as_str());
            let outcome = match target {
                "ACCEPT" => Outcome::Accepted,
                "DROP" | "REJECT" => Outcome::Stopped(rule),
                "RETURN" if fit == Fit::Yes => return Outcome::Fell,
                "MARK" | "CONNMARK" => {
                    *self.is_marked = true;
                    continue;
                }
                // Another program decides.
                "RETURN" | "NFQUEUE" | "QUEUE" => {
                    self.doubt = true;
                    continue;
                }
                _ if depth < DEEPEST && listing.chains.contains_key(target) => self.chain(target, depth + 1),
                _ => continue,
            };
            match outcome {
                Outcome::Fell if goto.is_some() && fit == Fit::Yes => return Outcome::Fell,
                Outcome::Fell => {}
                decided if fit == Fit::Yes => return decided,
                Outcome::Accepted => self.doubt = true,
                Outcome::Stopped(_) => {}
            }
        }
        Outcome::Fell
    }
}

/// Tells whether a rule concerns a packet, and the chain that it goes to for good (`-g`).
fn fits<'r>(spec: &'r Spec, packet: &Packet, is_marked: bool) -> (Fit, Option<&'r str>) {
    let of = |selector: Option<Selector>, address| {
        selector.map_or(Fit::Yes, |Selector { net, negated }| {
            Fit::of(net.contains(&address)).inverted_if(negated)
        })
    };
    let of_mark = |mark| if is_marked { Fit::Unknown } else { has_no_mark(mark) };
    let mark = spec.mark.as_deref().map_or(Fit::Yes, of_mark);
    let (others, goto) = conditions(&spec.others, packet);
    let addresses = of(spec.source, packet.source).and(of(spec.destination, packet.destination));
    (addresses.and(mark).and(others), goto)
}

/// A new packet carries no mark: `0x0/0xff` fits it, `0x4000/0x4000` does not.
fn has_no_mark(mark: &str) -> Fit {
    let value = mark.split('/').next().unwrap_or_default();
    let digits = value.strip_prefix("0x");
    let value = digits.map_or_else(|| value.parse(), |digits| u32::from_str_radix(digits, 16));
    value.map_or(Fit::Unknown, |value| Fit::of(value == 0))
}

/// Judges the words of a rule that have no meaning for our own ones.
fn conditions<'r>(words: &'r [String], packet: &Packet) -> (Fit, Option<&'r str>) {
    let (mut fit, mut goto) = (Fit::Yes, None);
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
        fit = fit.and(condition(word, value, &values, packet).inverted_if(negated));
    }
    (fit, goto)
}

fn condition(word: &str, value: &str, values: &[&str], packet: &Packet) -> Fit {
    match word {
        "-i" => interface(value, packet.incoming.as_deref(), packet.path == PacketPath::Output),
        "-o" => interface(value, packet.outgoing.as_deref(), packet.path == PacketPath::Input),
        "-p" => protocol(value, packet),
        "--dport" | "--dports" | "--destination-port" | "--destination-ports" => ports(value, packet.port),
        "--sport" | "--sports" | "--source-port" | "--source-ports" => ports(value, SOURCE_PORT),
        "--ctstate" | "--state" => Fit::of(value.split(',').any(|state| state == "NEW")),
        "--dst-type" => Fit::of(value.split(',').any(|kind| kind == destination_type(packet))),
        "--src-type" => Fit::of(value.split(',').any(|kind| kind == source_type(packet))),
        "--syn" => Fit::of(packet.transport == TransportProtocol::Tcp),
        "--tcp-flags" => match values.get(1) {
            Some(&"SYN") => Fit::of(packet.transport == TransportProtocol::Tcp),
            _ => Fit::Unknown,
        },
        // The name of an extension says nothing by itself, nor do the options of a target.
        "-m" | "--limit-iface-in" | "--limit-iface-out" => Fit::Yes,
        "--reject-with" | "--log-prefix" | "--log-level" | "--log-tcp-options" | "--nflog-prefix"
        | "--nflog-group" => Fit::Yes,
        _ => Fit::Unknown,
    }
}

/// An interface; a plus at the end of its name stands for anything. `cannot` says that the packet has none.
fn interface(pattern: &str, name: Option<&str>, cannot: bool) -> Fit {
    match (name, pattern.strip_suffix('+')) {
        (None, _) if cannot => Fit::No,
        (None, Some("")) => Fit::Yes,
        (None, _) => Fit::Unknown,
        (Some(name), Some(start)) => Fit::of(name.starts_with(start)),
        (Some(name), None) => Fit::of(name == pattern),
    }
}

fn protocol(value: &str, packet: &Packet) -> Fit {
    let own: &[&str] = match packet.transport {
        TransportProtocol::Tcp => &["tcp", "6", "all", "0"],
        TransportProtocol::Udp => &["udp", "17", "all", "0"],
    };
    Fit::of(own.contains(&value))
}

fn ports(value: &str, port: u16) -> Fit {
    let mut fit = Fit::No;
    for part in value.split(',') {
        let (first, last) = part.split_once(':').unwrap_or((part, part));
        let first = if first.is_empty() { Ok(0) } else { first.parse::<u16>() };
        let last = if last.is_empty() { Ok(u16::MAX) } else { last.parse::<u16>() };
        match (first, last) {
            (Ok(first), Ok(last)) if (first..=last).contains(&port) => return Fit::Yes,
            (Ok(_), Ok(_)) => {}
            // The name of a service.
            _ => fit = Fit::Unknown,
        }
    }
    fit
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

    /// What stops a packet in a table filter with these rules.
    fn stopped(path: PacketPath, policy: &str, rules: &str) -> Option<String> {
        let chains = format!(
            ":INPUT {policy} [0:0]\n:FORWARD {policy} [0:0]\n:OUTPUT {policy} [0:0]\n:A - [0:0]\n:B - [0:0]"
        );
        let tables = Listing::read_all(&format!("*filter\n{chains}\n{rules}\nCOMMIT\n"));
        barriers("iptables", &tables, &packet(path), &mut false).pop().map(|barrier| barrier.rule)
    }

    #[test]
    fn the_rule_that_stops_a_packet_is_named_whatever_it_takes_to_reach_it() {
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
    fn a_packet_that_is_or_may_be_accepted_is_not_stopped() {
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
    fn the_tunnels_datagrams_are_stopped_where_a_host_lets_in_only_what_it_knows() {
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
