//! What stands in the way: rules of others that stop forwarded packets of the network whatever ours say.
//!
//! It is looked for and told, never removed. Two kinds are found:
//!
//! * In iptables, a rule that a packet from pod to pod certainly meets before our chain, and that drops or rejects it. Rules
//!   with conditions that cannot be judged, such as an interface or a state, are passed over.
//! * In nftables, another chain at the hook `forward` that ends in a drop or a rejection: each chain there must let a packet
//!   pass, and one that accepts it does not speak for the others.

use flannel_netlink::{Error, IpFamily, NftChain, NftFamily, NftRule, NftTable, NftVerdict, Nftables};
use ipnet::IpNet;

use crate::iptables::listing::{Listed, Listing};
use crate::iptables::spec::Spec;
use crate::rules::{OverlayPrefixes, Selector};

/// Chains that call each other deeper than this are not followed; the kernel allows none that call themselves.
const DEEPEST: usize = 32;

/// Finds the rule that stops packets from pod to pod before our chain is asked.
pub(crate) fn in_iptables(
    listing: &Listing,
    ours: &str,
    nets: &OverlayPrefixes,
    family: IpFamily,
) -> Vec<String> {
    let walk = Walk { listing, ours, network: nets.network() };
    let Some(Outcome::Stopped(rule)) = walk.chain("FORWARD", 0) else {
        return Vec::new();
    };
    let program = if family == IpFamily::V4 { "iptables" } else { "ip6tables" };
    vec![format!(
        "{program}: the rule `-A {} {}` stops forwarded packets of {} before {ours} accepts them; put one that accepts \
         them in front: {program} -I FORWARD -d {2} -j ACCEPT; {program} -I FORWARD -s {2} -j ACCEPT",
        rule.chain,
        rule.text,
        nets.network()
    )]
}

struct Walk<'a> {
    listing: &'a Listing,
    ours: &'a str,
    network: IpNet,
}

/// How the way of a packet through the rules ends.
enum Outcome<'a> {
    /// Our chain, or somebody else, accepts it.
    Accepted,
    /// This rule drops or rejects it.
    Stopped(&'a Listed),
}

impl<'a> Walk<'a> {
    /// Follows a packet through a chain; `None` if no rule there certainly decides on it.
    fn chain(&self, name: &str, depth: usize) -> Option<Outcome<'a>> {
        for rule in self.listing.of(name) {
            if !self.certainly_fits(&rule.spec) {
                continue;
            }
            match rule.spec.target.as_str() {
                "ACCEPT" => return Some(Outcome::Accepted),
                "DROP" | "REJECT" => return Some(Outcome::Stopped(rule)),
                "RETURN" => return None,
                target if target == self.ours => return Some(Outcome::Accepted),
                target if depth < DEEPEST && self.listing.chains.contains_key(target) => {
                    if let Some(outcome) = self.chain(target, depth + 1) {
                        return Some(outcome);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// Tells whether a rule concerns every packet from pod to pod. What a target is told (`--reject-with`) is no condition.
    fn certainly_fits(&self, spec: &Spec) -> bool {
        let fits = |selector: Option<Selector>| {
            selector.is_none_or(|Selector { net, negated }| match negated {
                false => net.contains(&self.network),
                true => !net.contains(&self.network) && !self.network.contains(&net),
            })
        };
        let has_no_other_condition =
            spec.others.is_empty() || spec.others.first().is_some_and(|word| word == "--reject-with");
        fits(spec.source) && fits(spec.destination) && spec.mark.is_none() && has_no_other_condition
    }
}

/// Finds the chains of nftables that stop forwarded packets. Where our rules are in `FORWARD` of iptables, which is a chain
/// of nftables too, they overrule what comes behind them there, and its policy.
pub(crate) fn in_nftables(
    kernel: &mut Nftables,
    nets: &[OverlayPrefixes],
    are_in_iptables: bool,
) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    for chain in kernel.chains()? {
        let Some(nets) = nets.iter().find(|nets| concerns(chain.table.family, nets)) else {
            continue;
        };
        let is_of_iptables = chain.table.family != NftFamily::Inet && chain.table.name == "filter";
        let is_ours = chain.table.name.starts_with("flannel-") || (is_of_iptables && are_in_iptables);
        if chain.hook != Some(NftChain::FORWARD) || is_ours {
            continue;
        }
        let rules = kernel.rules(&chain.table, &chain.name)?;
        let how = match rules.iter().rev().find(|rule| is_unconditional(rule)) {
            Some(_) => "rejects or drops in its last rule",
            None if chain.drops => "drops by its policy",
            None => continue,
        };
        found.push(describe(&chain.table, &chain.name, how, &nets.network()));
    }
    Ok(found)
}

fn describe(table: &NftTable, chain: &str, how: &str, network: &IpNet) -> String {
    format!(
        "nftables: the chain `{table} {chain}` {how} what none of its own rules accepts, and no rule elsewhere can overrule \
         it; unless it does, have it accept packets from and to {network} (firewalld: put the tunnel device and the bridge \
         of the containers into the zone trusted)"
    )
}

fn concerns(family: NftFamily, nets: &OverlayPrefixes) -> bool {
    match family {
        NftFamily::Inet => true,
        NftFamily::Ip => nets.family() == IpFamily::V4,
        NftFamily::Ip6 => nets.family() == IpFamily::V6,
        NftFamily::Other(_) => false,
    }
}

/// Tells whether a rule stops every packet that comes to it.
fn is_unconditional(rule: &NftRule) -> bool {
    let stops =
        rule.verdict == Some(NftVerdict::Drop) || rule.expressions.iter().any(|name| name == "reject");
    stops
        && rule
            .expressions
            .iter()
            .all(|name| matches!(name.as_str(), "counter" | "log" | "reject" | "immediate"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found in these rules, with a jump to our chain in `FORWARD` where they say so.
    fn obstacle(rules: &str) -> Option<String> {
        let chains = [":FORWARD DROP [0:0]", ":FLANNEL-FWD - [0:0]", ":A - [0:0]", ":B - [0:0]"].join("\n");
        let text = format!("*filter\n{chains}\n{rules}\nCOMMIT\n");
        let listing = Listing::read(&text, "filter").expect("whole");
        let nets =
            OverlayPrefixes::new("10.5.0.0/16".parse().expect("net"), "10.5.1.0/24".parse().expect("net"));
        in_iptables(&listing, "FLANNEL-FWD", &nets.expect("nets"), IpFamily::V4).pop()
    }

    const OURS: &str = "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD";

    #[test]
    fn a_rule_that_stops_everything_in_front_of_ours_is_named() {
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
            let line = obstacle(&format!("{rules}\n{OURS}")).unwrap_or_default();
            assert!(line.contains(&format!("`{rule}")), "{rules}: {line}");
            assert!(line.contains("iptables -I FORWARD -d 10.5.0.0/16 -j ACCEPT"), "{line}");
        }
    }

    #[test]
    fn rules_that_may_not_fit_or_come_behind_ours_are_no_obstacle() {
        for rules in [
            format!("{OURS}\n-A FORWARD -j DROP"),
            format!("-A FORWARD -i docker0 -j DROP\n{OURS}"),
            format!("-A FORWARD -m conntrack --ctstate INVALID -j DROP\n{OURS}"),
            format!("-A FORWARD -d 10.5.1.7/32 -j DROP\n{OURS}"),
            format!("-A FORWARD ! -s 10.5.1.0/24 -j DROP\n{OURS}"),
            format!("-A FORWARD -d 10.4.0.0/16 -j DROP\n{OURS}"),
            format!("-A FORWARD -m mark --mark 0x1/0x1 -j DROP\n{OURS}"),
            format!("-A FORWARD -j A\n-A A -j RETURN\n-A A -j DROP\n{OURS}"),
            format!("-A FORWARD -j A\n{OURS}"),
            format!("-A FORWARD -s 10.5.0.0/16 -j ACCEPT\n-A FORWARD -j DROP\n{OURS}"),
            "-A FORWARD -j A\n-A A -j A".to_owned(),
        ] {
            assert_eq!(obstacle(&rules), None, "{rules}");
        }
    }
}
