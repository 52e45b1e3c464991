//! The packet filters.

use std::net::IpAddr;

use flannel_firewall::{BlockingRule, MissingRules, Packet, PacketPath, RuleLocation};
use ipnet::IpNet;

use super::registry::with_member;
use crate::doctor::facts::Facts;
use crate::doctor::finding::{Cure, Fault, Finding};

pub(super) const TUNNEL: Fault = Fault::error(
    "firewall-drops-tunnel",
    "packets of the tunnel are dropped before they are decapsulated: no pod of another host is reachable",
);
pub(super) const FORWARD: Fault = Fault::error(
    "firewall-drops-pods",
    "packets between pods of this host and those of other hosts are dropped on this host",
);

/// Returns a finding for each rule that drops packets of the network.
pub(in crate::doctor) fn blocking_rules(facts: &Facts) -> Vec<Finding> {
    let mut found: Vec<Finding> = Vec::new();
    for (packet, blocking) in &facts.firewall.blocking_rules {
        let fault = if packet.path == PacketPath::Forward { &FORWARD } else { &TUNNEL };
        let BlockingRule { location, rule, .. } = blocking;
        let what = format!("{}: `{rule}` drops {}", location, kind(packet));
        let mut finding = fault.found(what, open(facts, packet, location));
        if finding.cure.lasting.is_empty() {
            finding.cure.lasting = lasting(facts, packet, location);
        }
        match found.iter_mut().find(|other| other.what == finding.what) {
            Some(other) => {
                for command in finding.cure.commands {
                    if !other.cure.commands.contains(&command) {
                        other.cure.commands.push(command);
                    }
                }
            }
            None => found.push(finding),
        }
    }
    found
}

fn kind(packet: &Packet) -> String {
    match packet.path {
        PacketPath::Input => format!("what comes to UDP port {}, the tunnel's", packet.port),
        PacketPath::Output => format!("what goes to UDP port {}, the tunnel's", packet.port),
        PacketPath::Forward => "packets between pods of different hosts".to_owned(),
        _ => "packets of the network".to_owned(),
    }
}

/// Returns commands that insert accepting rules in front of the dropping one.
fn open(facts: &Facts, packet: &Packet, location: &RuleLocation) -> Cure {
    let interface = match packet.path {
        PacketPath::Input => packet.incoming.as_ref().map(|name| ("-i", "iifname", name)),
        PacketPath::Output => packet.outgoing.as_ref().map(|name| ("-o", "oifname", name)),
        PacketPath::Forward | _ => None,
    };
    let ranges = ranges(facts, packet.destination);
    let commands: Vec<String> = match location {
        RuleLocation::Iptables { program, table, chain } => {
            let table = if table == "filter" { String::new() } else { format!("-t {table} ") };
            let insert = format!("{program} {table}-I {chain}");
            match interface {
                Some((flag, _, name)) => {
                    vec![format!("{insert} {flag} {name} -p udp --dport {} -j ACCEPT", packet.port)]
                }
                None => ranges
                    .iter()
                    .flat_map(|range| ["-s", "-d"].map(|flag| format!("{insert} {flag} {range} -j ACCEPT")))
                    .collect(),
            }
        }
        RuleLocation::Nftables { table, chain } => {
            let insert = format!("nft insert rule {table} {chain}");
            match interface {
                Some((_, key, name)) => {
                    vec![format!("{insert} {key} {name} udp dport {} accept", packet.port)]
                }
                None => {
                    let family = if packet.destination.is_ipv4() { "ip" } else { "ip6" };
                    ranges
                        .iter()
                        .flat_map(|range| {
                            ["saddr", "daddr"]
                                .map(|field| format!("{insert} {family} {field} {range} accept"))
                        })
                        .collect()
                }
            }
        }
        _ => Vec::new(),
    };
    Cure::run(commands)
}

/// Returns commands for the program that made the rule.
fn lasting(facts: &Facts, packet: &Packet, location: &RuleLocation) -> Vec<String> {
    let is_forward = packet.path == PacketPath::Forward;
    let ranges = ranges(facts, packet.destination);
    let of_program = |each: fn(&IpNet) -> String, port: String, last: Option<&str>| {
        let mut lines: Vec<String> = if is_forward { ranges.iter().map(each).collect() } else { vec![port] };
        lines.extend(last.map(str::to_owned));
        lines
    };
    match location {
        RuleLocation::Nftables { table, .. } if table.ends_with(" firewalld") => of_program(
            |range| format!("firewall-cmd --permanent --zone=trusted --add-source={range}"),
            format!("firewall-cmd --permanent --add-port={}/udp", packet.port),
            Some("firewall-cmd --reload"),
        ),
        RuleLocation::Iptables { .. } if facts.firewall.has_ufw => of_program(
            |range| format!("ufw route allow from {range} && ufw route allow to {range}"),
            format!("ufw allow {}/udp", packet.port),
            None,
        ),
        RuleLocation::Iptables { .. } | RuleLocation::Nftables { .. } | _ => Vec::new(),
    }
}

/// Returns the networks in the family of an address.
fn ranges(facts: &Facts, of: IpAddr) -> Vec<IpNet> {
    let pools = facts.network.iter().flat_map(|network| network.config.pools());
    pools.map(|pool| pool.network()).filter(|net| net.addr().is_ipv4() == of.is_ipv4()).collect()
}

pub(super) const RULES: Fault = Fault::error(
    "firewall-rules",
    "packets of pods may be dropped, or leave the network with an address that nobody outside can answer; a \
     running daemon repairs its rules, so here it fails to",
);
pub(super) const NOT_SHOWN: Fault = Fault::error(
    "iptables-not-shown",
    "iptables cannot show the contents of a table, so neither the daemon nor others can maintain rules in it",
);
pub(super) const UNREADABLE: Fault = Fault::warning(
    "firewall-unreadable",
    "doctor cannot tell which packets are dropped, and the daemon cannot maintain rules that it cannot read",
);

/// Without a lease no rules are missing.
pub(in crate::doctor) fn rules(facts: &Facts) -> Vec<Finding> {
    let missing = |rules: &MissingRules| {
        let MissingRules { program, input, .. } = rules;
        let what =
            format!("the network's own rules are not as they should be, as `{program}` would make them");
        RULES.found(what, Cure::run([format!("{program} <<'END'\n{}\nEND", input.trim_end())]))
    };
    let firewall = &facts.firewall;
    let mut found: Vec<Finding> = firewall.missing.iter().map(missing).collect();
    if let (Some(why), Some(network)) = (&firewall.not_shown, &facts.network) {
        let text = with_member(&network.config, "EnableNFTables", true.into());
        let commands = [facts.registry.commands.write_config(&text), "systemctl restart flanneld".to_owned()];
        found.push(NOT_SHOWN.found(why.clone(), Cure::run(commands)));
    } else if facts.may_look {
        let reinstall =
            "apt-get install --reinstall -y iptables nftables || dnf reinstall -y iptables nftables";
        let unreadable = |why: &String| UNREADABLE.found(why.clone(), Cure::run([reinstall]));
        found.extend(firewall.failures.iter().map(unreadable));
    }
    found
}
