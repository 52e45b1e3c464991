//! The rules of a network on one host, before any program's syntax. Pure.
//!
//! With `C` the network, `P` this host's subnet of it and `M` the multicast addresses, the first rule that fits decides:
//!
//! | masquerade | | |
//! |---|---|---|
//! | packets that kube-proxy marked | go on | it masquerades them itself |
//! | `P` → `C` | go on | pods see each other's addresses |
//! | `C` → `P` | go on | |
//! | not `C` → `P` | go on | a pod sees who calls it from outside |
//! | `C` → not `M` | masqueraded | pods reach the world by the host's address |
//! | not `C` → `C` | masqueraded | the answer of another host's pod comes back this way |
//!
//! | forward | |
//! |---|---|
//! | `C` → anywhere | accepted |
//! | anywhere → `C` | accepted |

use std::net::{Ipv4Addr, Ipv6Addr};

use flannel_core::{NetworkConfig, SubnetKey};
use flannel_netlink::IpFamily;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The network and this host's part of it, in one family. The host bits are clear.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct OverlayPrefixes {
    network: IpNet,
    subnet: IpNet,
}

impl OverlayPrefixes {
    /// Takes a network and a subnet; `None` if the families differ, or if one of them is everything: rules about
    /// everything cannot be told from somebody else's.
    #[must_use]
    pub fn new(network: IpNet, subnet: IpNet) -> Option<Self> {
        let is_one_family = network.addr().is_ipv4() == subnet.addr().is_ipv4();
        let is_part = network.prefix_len() > 0 && subnet.prefix_len() > 0;
        (is_one_family && is_part).then(|| Self { network: network.trunc(), subnet: subnet.trunc() })
    }

    /// Returns those of a network's configuration and a host's lease, IPv4 first.
    #[must_use]
    pub fn of(config: &NetworkConfig, lease: &SubnetKey) -> Vec<Self> {
        let v4 = config.ipv4.zip(lease.v4()).map(|(pool, net)| (pool.network(), IpNet::V4(net)));
        let v6 = config.ipv6.zip(lease.v6()).map(|(pool, net)| (pool.network(), IpNet::V6(net)));
        v4.into_iter().chain(v6).filter_map(|(network, subnet)| Self::new(network, subnet)).collect()
    }

    /// Returns the family.
    #[must_use]
    pub fn family(&self) -> IpFamily {
        IpFamily::of(self.network.addr())
    }

    /// Returns the network of the whole cluster.
    #[must_use]
    pub fn network(&self) -> IpNet {
        self.network
    }

    /// Returns the subnet of this host.
    #[must_use]
    pub fn subnet(&self) -> IpNet {
        self.subnet
    }
}

/// What the rules are to do; by default nothing, and then there are none.
///
/// ```
/// use flannel_firewall::RuleOptions;
///
/// let rules = RuleOptions::default().with_masquerade(true).with_fully_random(true);
/// assert!(!rules.forward);
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct RuleOptions {
    /// Masquerade what leaves the network.
    pub masquerade: bool,
    /// Choose the source ports of masqueraded connections at random, so that two of them do not collide.
    pub fully_random: bool,
    /// Let packets of the network be forwarded whatever the policy of the host.
    pub forward: bool,
}

impl RuleOptions {
    /// Says whether to masquerade what leaves the network.
    #[must_use]
    pub fn with_masquerade(self, masquerade: bool) -> Self {
        Self { masquerade, ..self }
    }

    /// Says whether to choose the source ports of masqueraded connections at random.
    #[must_use]
    pub fn with_fully_random(self, fully_random: bool) -> Self {
        Self { fully_random, ..self }
    }

    /// Says whether to let packets of the network be forwarded.
    #[must_use]
    pub fn with_forward(self, forward: bool) -> Self {
        Self { forward, ..self }
    }
}

/// One rule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Rule {
    /// Concerns packets that kube-proxy marked; else all.
    pub(crate) marked: bool,
    pub(crate) source: Option<Selector>,
    pub(crate) destination: Option<Selector>,
    pub(crate) verdict: Verdict,
}

/// Some addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Selector {
    pub(crate) net: IpNet,
    /// All addresses but these.
    pub(crate) negated: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// No rule of ours concerns the packet.
    Return,
    Masquerade {
        fully_random: bool,
    },
    Accept,
}

/// The bit by which kube-proxy marks what it masquerades (`--iptables-masquerade-bit`, 14 by default).
pub(crate) const KUBE_PROXY_MARK: u32 = 0x4000;

fn is(net: IpNet) -> Option<Selector> {
    Some(Selector { net, negated: false })
}

fn is_not(net: IpNet) -> Option<Selector> {
    Some(Selector { net, negated: true })
}

/// The rule about what kube-proxy masquerades; the only one that is not about a network.
pub(crate) const LEAVE_MARKED: Rule =
    Rule { marked: true, source: None, destination: None, verdict: Verdict::Return };

/// The rules for what leaves the host, in order; none if they are not wanted.
pub(crate) fn masquerade(nets: &OverlayPrefixes, options: &RuleOptions) -> Vec<Rule> {
    if !options.masquerade {
        return Vec::new();
    }
    let (network, subnet) = (nets.network, nets.subnet);
    let verdict = Verdict::Masquerade { fully_random: options.fully_random };
    let rule = |source, destination, verdict| Rule { marked: false, source, destination, verdict };
    vec![
        LEAVE_MARKED,
        rule(is(subnet), is(network), Verdict::Return),
        rule(is(network), is(subnet), Verdict::Return),
        rule(is_not(network), is(subnet), Verdict::Return),
        rule(is(network), is_not(multicast(nets.family())), verdict),
        rule(is_not(network), is(network), verdict),
    ]
}

/// The rules for what passes the host, in order; none if they are not wanted.
pub(crate) fn forward(nets: &OverlayPrefixes, options: &RuleOptions) -> Vec<Rule> {
    if !options.forward {
        return Vec::new();
    }
    let rule = |source, destination| Rule { marked: false, source, destination, verdict: Verdict::Accept };
    vec![rule(is(nets.network), None), rule(None, is(nets.network))]
}

/// Packets to a group keep their source: nobody answers to it.
pub(crate) fn multicast(family: IpFamily) -> IpNet {
    match family {
        IpFamily::V4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
        IpFamily::V6 => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_about_everything_or_about_two_families_at_once_cannot_be_asked_for() {
        let nets = |network: &str, subnet: &str| {
            OverlayPrefixes::new(network.parse().expect("net"), subnet.parse().expect("net"))
        };
        assert_eq!(nets("0.0.0.0/0", "10.5.1.0/24"), None);
        assert_eq!(nets("10.5.0.0/16", "0.0.0.0/0"), None);
        assert_eq!(nets("10.5.0.0/16", "fd00::/64"), None);
        let found = nets("10.5.7.7/16", "10.5.1.1/24").expect("nets");
        assert_eq!(
            (found.network().to_string(), found.subnet().to_string()),
            ("10.5.0.0/16".into(), "10.5.1.0/24".into())
        );
    }
}
