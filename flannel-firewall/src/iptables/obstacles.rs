//! Rules that stop forwarded packets of the network before flannel's chain accepts them.
//!
//! Only a rule that every packet between containers certainly reaches is reported. Rules with other conditions, such as an
//! interface or a connection state, are skipped. They are reported and never removed.

use flannel_netlink::IpFamily;
use ipnet::IpNet;

use super::listing::{ListedRule, TableListing};
use super::spec::RuleSpec;
use crate::chain_verdict::{ChainVerdict, MAX_DEPTH};
use crate::rules::{AddressSelector, OverlayPrefixes};

/// Finds the rule that stops packets between containers before flannel's chain accepts them.
pub(super) fn find(
    listing: &TableListing,
    own_chain: &str,
    nets: &OverlayPrefixes,
    family: IpFamily,
) -> Vec<String> {
    let walk = ForwardWalk { listing, own_chain, network: nets.network() };
    let ChainVerdict::Stopped(rule) = walk.chain("FORWARD", 0) else {
        return Vec::new();
    };
    let program = if family == IpFamily::V4 { "iptables" } else { "ip6tables" };
    vec![format!(
        "{program}: the rule `-A {} {}` stops forwarded packets of {} before {own_chain} accepts them; insert a rule that accepts \
         them first: {program} -I FORWARD -d {2} -j ACCEPT; {program} -I FORWARD -s {2} -j ACCEPT",
        rule.chain,
        rule.text,
        nets.network()
    )]
}

/// The walk of packets of a network through a table.
struct ForwardWalk<'a> {
    listing: &'a TableListing,
    own_chain: &'a str,
    network: IpNet,
}

impl<'a> ForwardWalk<'a> {
    /// Follows a packet through a chain, by rules that certainly match it.
    fn chain(&self, name: &str, depth: usize) -> ChainVerdict<&'a ListedRule> {
        for rule in self.listing.of(name) {
            if !self.certainly_matches(&rule.spec) {
                continue;
            }
            match rule.spec.target.as_str() {
                "ACCEPT" => return ChainVerdict::Accepted,
                "DROP" | "REJECT" => return ChainVerdict::Stopped(rule),
                "RETURN" => return ChainVerdict::FellThrough,
                target if target == self.own_chain => return ChainVerdict::Accepted,
                target if depth < MAX_DEPTH && self.listing.chains.contains_key(target) => {
                    let verdict = self.chain(target, depth + 1);
                    if !matches!(verdict, ChainVerdict::FellThrough) {
                        return verdict;
                    }
                }
                _ => {}
            }
        }
        ChainVerdict::FellThrough
    }

    /// Returns whether a rule matches every packet between containers. An option of a target (`--reject-with`) is no
    /// condition.
    fn certainly_matches(&self, spec: &RuleSpec) -> bool {
        let matches = |selector: Option<AddressSelector>| {
            selector.is_none_or(|AddressSelector { net, negated }| match negated {
                false => net.contains(&self.network),
                true => !net.contains(&self.network) && !self.network.contains(&net),
            })
        };
        let has_no_other_condition =
            spec.others.is_empty() || spec.others.first().is_some_and(|word| word == "--reject-with");
        matches(spec.source) && matches(spec.destination) && spec.mark.is_none() && has_no_other_condition
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the obstacle in these rules, which may jump to flannel's chain.
    fn obstacle(rules: &str) -> Option<String> {
        let chains = [":FORWARD DROP [0:0]", ":FLANNEL-FWD - [0:0]", ":A - [0:0]", ":B - [0:0]"].join("\n");
        let text = format!("*filter\n{chains}\n{rules}\nCOMMIT\n");
        let listing = TableListing::read(&text, "filter").expect("whole");
        let nets =
            OverlayPrefixes::new("10.5.0.0/16".parse().expect("net"), "10.5.1.0/24".parse().expect("net"));
        find(&listing, "FLANNEL-FWD", &nets.expect("nets"), IpFamily::V4).pop()
    }

    const JUMP: &str = "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD";

    #[test]
    fn a_rule_that_stops_everything_before_flannels_chain_is_reported() {
        for (rules, rule) in [
            ("-A FORWARD -j REJECT --reject-with icmp-host-prohibited", "-A FORWARD -j REJECT"),
            ("-A FORWARD -j A\n-A A -j B\n-A B -j DROP", "-A B -j DROP"),
            ("-A FORWARD -d 10.0.0.0/8 -j DROP", "-A FORWARD -d 10.0.0.0/8 -j DROP"),
            ("-A FORWARD ! -s 192.168.0.0/16 -j DROP", "-A FORWARD ! -s 192.168.0.0/16 -j DROP"),
            (
                "-A FORWARD -j A\n-A A -s 10.5.0.0/16 -j REJECT --reject-with icmp-port-unreachable",
                "-A A -s 10.5.0.0/16",
            ),
        ] {
            let line = obstacle(&format!("{rules}\n{JUMP}")).unwrap_or_default();
            assert!(line.contains(&format!("`{rule}")), "{rules}: {line}");
            assert!(line.contains("iptables -I FORWARD -d 10.5.0.0/16 -j ACCEPT"), "{line}");
        }
    }

    #[test]
    fn rules_that_may_not_match_or_come_after_flannels_chain_are_no_obstacle() {
        for rules in [
            format!("{JUMP}\n-A FORWARD -j DROP"),
            format!("-A FORWARD -i docker0 -j DROP\n{JUMP}"),
            format!("-A FORWARD -m conntrack --ctstate INVALID -j DROP\n{JUMP}"),
            format!("-A FORWARD -d 10.5.1.7/32 -j DROP\n{JUMP}"),
            format!("-A FORWARD ! -s 10.5.1.0/24 -j DROP\n{JUMP}"),
            format!("-A FORWARD -d 10.4.0.0/16 -j DROP\n{JUMP}"),
            format!("-A FORWARD -m mark --mark 0x1/0x1 -j DROP\n{JUMP}"),
            format!("-A FORWARD -j A\n-A A -j RETURN\n-A A -j DROP\n{JUMP}"),
            format!("-A FORWARD -j A\n{JUMP}"),
            format!("-A FORWARD -s 10.5.0.0/16 -j ACCEPT\n-A FORWARD -j DROP\n{JUMP}"),
            "-A FORWARD -j A\n-A A -j A".to_owned(),
        ] {
            assert_eq!(obstacle(&rules), None, "{rules}");
        }
    }
}
