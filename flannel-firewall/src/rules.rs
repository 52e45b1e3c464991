//! The rules of a network on one host, independent of any program's syntax. Pure.
//!
//! With `C` the network, `P` this host's subnet and `M` the multicast addresses, the first rule that matches decides:
//!
//! | masquerade | | |
//! |---|---|---|
//! | packets that kube-proxy marked | return | kube-proxy masquerades them |
//! | `P` → `C` | return | containers see each other's addresses |
//! | `C` → `P` | return | |
//! | not `C` → `P` | return | a container sees the address of an outside client |
//! | `C` → not `M` | masquerade | containers reach the outside with the host's address |
//! | not `C` → `C` | masquerade | replies from containers on other hosts return through this host |
//!
//! | forward | |
//! |---|---|
//! | `C` → anywhere | accept |
//! | anywhere → `C` | accept |

use std::net::{Ipv4Addr, Ipv6Addr};

use flannel_core::{NetworkConfig, SubnetKey};
use flannel_netlink::IpFamily;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The overlay network and this host's subnet of it, in one address family. Host bits are zero.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct OverlayPrefixes {
    network: IpNet,
    subnet: IpNet,
}

impl OverlayPrefixes {
    /// Combines a network and a subnet; `None` if the families differ, or if a prefix has length 0: rules about every
    /// address cannot be distinguished from those of others.
    #[must_use]
    pub fn new(network: IpNet, subnet: IpNet) -> Option<Self> {
        let is_one_family = network.addr().is_ipv4() == subnet.addr().is_ipv4();
        let is_part = network.prefix_len() > 0 && subnet.prefix_len() > 0;
        (is_one_family && is_part).then(|| Self { network: network.trunc(), subnet: subnet.trunc() })
    }

    /// Returns the prefixes of a network configuration and a host's lease, IPv4 first.
    #[must_use]
    pub fn of(config: &NetworkConfig, lease: &SubnetKey) -> Vec<Self> {
        let v4 = config.ipv4.zip(lease.v4()).map(|(pool, net)| (pool.network(), IpNet::V4(net)));
        let v6 = config.ipv6.zip(lease.v6()).map(|(pool, net)| (pool.network(), IpNet::V6(net)));
        v4.into_iter().chain(v6).filter_map(|(network, subnet)| Self::new(network, subnet)).collect()
    }

    /// Returns the address family.
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

/// Which rules to keep; none by default.
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
    /// Masquerade packets that leave the network.
    pub masquerade: bool,
    /// Choose the source ports of masqueraded connections at random, which avoids collisions.
    pub fully_random: bool,
    /// Accept forwarded packets of the network whatever the policy of the host.
    pub forward: bool,
}

impl RuleOptions {
    /// Sets whether to masquerade packets that leave the network.
    #[must_use]
    pub fn with_masquerade(self, masquerade: bool) -> Self {
        Self { masquerade, ..self }
    }

    /// Sets whether to choose the source ports of masqueraded connections at random.
    #[must_use]
    pub fn with_fully_random(self, fully_random: bool) -> Self {
        Self { fully_random, ..self }
    }

    /// Sets whether to accept forwarded packets of the network.
    #[must_use]
    pub fn with_forward(self, forward: bool) -> Self {
        Self { forward, ..self }
    }
}

/// One rule, as it applies to packets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Rule {
    /// Whether it applies only to packets that kube-proxy marked.
    pub(crate) marked: bool,
    pub(crate) source: Option<AddressSelector>,
    pub(crate) destination: Option<AddressSelector>,
    pub(crate) action: RuleAction,
}

/// A condition on an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct AddressSelector {
    pub(crate) net: IpNet,
    /// Whether it matches all addresses outside the prefix.
    pub(crate) negated: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RuleAction {
    /// Leave the chain.
    Return,
    Masquerade {
        fully_random: bool,
    },
    Accept,
}

/// The mark of packets that kube-proxy masquerades (`--iptables-masquerade-bit`, 14 by default).
pub(crate) const KUBE_PROXY_MARK: u32 = 0x4000;

fn is(net: IpNet) -> Option<AddressSelector> {
    Some(AddressSelector { net, negated: false })
}

fn is_not(net: IpNet) -> Option<AddressSelector> {
    Some(AddressSelector { net, negated: true })
}

/// The rule for packets that kube-proxy masquerades; the only one that is not about a network.
pub(crate) const LEAVE_MARKED: Rule =
    Rule { marked: true, source: None, destination: None, action: RuleAction::Return };

/// Returns the masquerade rules, in order; none if they are off.
pub(crate) fn masquerade(nets: &OverlayPrefixes, options: &RuleOptions) -> Vec<Rule> {
    if !options.masquerade {
        return Vec::new();
    }
    let (network, subnet) = (nets.network, nets.subnet);
    let action = RuleAction::Masquerade { fully_random: options.fully_random };
    let rule = |source, destination, action| Rule { marked: false, source, destination, action };
    vec![
        LEAVE_MARKED,
        rule(is(subnet), is(network), RuleAction::Return),
        rule(is(network), is(subnet), RuleAction::Return),
        rule(is_not(network), is(subnet), RuleAction::Return),
        rule(is(network), is_not(multicast(nets.family())), action),
        rule(is_not(network), is(network), action),
    ]
}

/// Returns the forward rules, in order; none if they are off.
pub(crate) fn forward(nets: &OverlayPrefixes, options: &RuleOptions) -> Vec<Rule> {
    if !options.forward {
        return Vec::new();
    }
    let rule = |source, destination| Rule { marked: false, source, destination, action: RuleAction::Accept };
    vec![rule(is(nets.network), None), rule(None, is(nets.network))]
}

/// Returns the multicast range. Packets to a group keep their source address, since there is no reply.
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
    fn prefixes_of_length_0_or_of_two_families_are_refused() {
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
