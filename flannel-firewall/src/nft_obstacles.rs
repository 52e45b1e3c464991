//! Chains of nftables that stop forwarded packets of the network, whatever flannel's rules accept.
//!
//! Each chain at the hook `forward` must let a packet pass; one that accepts it does not speak for the others. A chain that
//! ends in a drop or a rejection is reported and never removed.

use flannel_netlink::{Error, IpFamily, NftChain, NftFamily, NftRule, NftTable, NftVerdict, Nftables};
use ipnet::IpNet;

use crate::rules::OverlayPrefixes;

/// Finds the chains that stop forwarded packets. Where flannel's rules are in `FORWARD` of iptables, which is a chain of
/// nftables too, they precede its other rules and its policy.
pub(crate) fn find(
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
            None if chain.drops_by_policy => "drops by its policy",
            None => continue,
        };
        found.push(describe(&chain.table, &chain.name, how, &nets.network()));
    }
    Ok(found)
}

fn describe(table: &NftTable, chain: &str, how: &str, network: &IpNet) -> String {
    format!(
        "nftables: the chain `{table} {chain}` {how} what none of its own rules accepts, and no rule elsewhere can overrule \
         it; make it accept packets from and to {network} (firewalld: add the tunnel device and the container bridge to \
         the zone trusted)"
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

/// Returns whether a rule stops every packet that reaches it.
fn is_unconditional(rule: &NftRule) -> bool {
    let stops =
        rule.verdict == Some(NftVerdict::Drop) || rule.expressions.iter().any(|name| name == "reject");
    stops
        && rule
            .expressions
            .iter()
            .all(|name| matches!(name.as_str(), "counter" | "log" | "reject" | "immediate"))
}
