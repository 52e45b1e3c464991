//! The changes that make a table hold the desired rules. Pure.
//!
//! flannel owns, in its chain, the rules that mention its prefixes and the one about kube-proxy's mark; each jump into its
//! chain; and in the built-in chain, rules of earlier versions about its prefixes. Everything else stays, also in
//! flannel's chain: another daemon on this host keeps the rules of its network there.

use flannel_netlink::IpFamily;
use ipnet::IpNet;

use super::listing::{ListedRule, TableListing};
use super::spec::RuleSpec;
use crate::rules::{self, AddressSelector, LEAVE_MARKED, OverlayPrefixes, RuleOptions};

/// A chain of flannel's, and its table.
#[derive(Debug)]
pub(crate) struct OwnChain {
    pub(crate) table: &'static str,
    /// The built-in chain that calls it.
    pub(crate) builtin: &'static str,
    /// Its name.
    pub(crate) chain: &'static str,
    /// A chain of another program that also calls it, where that chain exists.
    pub(crate) foreign_caller: Option<&'static str>,
    comment: &'static str,
}

/// The chain that masquerades packets.
pub(crate) const MASQUERADE: OwnChain = OwnChain {
    table: "nat",
    builtin: "POSTROUTING",
    chain: "FLANNEL-POSTRTG",
    foreign_caller: None,
    comment: "flanneld masq",
};
/// Docker's chain for rules of the operator.
pub(crate) const DOCKER_USER: &str = "DOCKER-USER";
/// The chain that accepts forwarded packets.
///
/// Docker 28 and later drop packets to containers in a chain that precedes the jump from `FORWARD`. `DOCKER-USER` is
/// evaluated before that chain, and Docker keeps its rules.
pub(crate) const FORWARD: OwnChain = OwnChain {
    table: "filter",
    builtin: "FORWARD",
    chain: "FLANNEL-FWD",
    foreign_caller: Some(DOCKER_USER),
    comment: "flanneld forward",
};

/// The comments of rules that flannel v0.16 to v0.19 kept in built-in chains; one was misspelt.
const OLD_COMMENTS: [&str; 3] = ["flanneld masq", "flannel masq", "flanneld forward"];

impl OwnChain {
    /// Returns the desired rules of this chain.
    pub(crate) fn rules(&self, nets: Option<&OverlayPrefixes>, options: &RuleOptions) -> Vec<RuleSpec> {
        let rules = match nets {
            None => Vec::new(),
            Some(nets) if self.table == MASQUERADE.table => rules::masquerade(nets, options),
            Some(nets) => rules::forward(nets, options),
        };
        rules.iter().map(|rule| RuleSpec::of(rule, self.comment)).collect()
    }

    /// Returns the rule that is about no network, which all daemons on this host share.
    fn shared(&self) -> RuleSpec {
        RuleSpec::of(&LEAVE_MARKED, self.comment)
    }

    fn jump(&self) -> RuleSpec {
        RuleSpec::jump(self.chain, self.comment)
    }
}

/// The desired contents of a table.
#[derive(Debug)]
pub(crate) struct DesiredTable<'a> {
    pub(crate) own_chain: &'a OwnChain,
    /// The rules, in order; empty to remove them.
    pub(crate) rules: Vec<RuleSpec>,
    /// The prefixes that this host has and had.
    pub(crate) owned: &'a [OverlayPrefixes],
    /// Whether to remove rules of v0.11 and earlier, which have no comment: a person may have written them.
    pub(crate) v011: bool,
}

impl DesiredTable<'_> {
    /// Returns the commands for `iptables-restore`; none if the table is as desired.
    pub(crate) fn changes(&self, listing: &TableListing) -> Vec<String> {
        let state = TableState::new(self, listing);
        let mut changes = deletions(&state.old);
        if self.rules.is_empty() {
            self.remove(&state, &mut changes)
        } else {
            self.write(&state, &mut changes)
        }
        changes
    }

    /// Removes flannel's rules, and the chain if nobody else has rules in it.
    fn remove(&self, state: &TableState<'_>, changes: &mut Vec<String>) {
        changes.extend(deletions(&state.own));
        if state.others == 0 {
            changes.extend(deletions(&state.jumps));
            changes.extend(deletions(&state.foreign_jumps));
            if state.has_chain {
                changes.push(format!("-F {}", self.own_chain.chain));
                changes.push(format!("-X {}", self.own_chain.chain));
            }
        }
    }

    fn write(&self, state: &TableState<'_>, changes: &mut Vec<String>) {
        let chain = self.own_chain.chain;
        if !state.has_chain {
            changes.push(format!(":{chain} - [0:0]"));
        }
        let shared = self.own_chain.shared();
        let own: Vec<&RuleSpec> = self.rules.iter().filter(|rule| **rule != shared).collect();
        let is_own_right = state.own.iter().map(|rule| &rule.spec).eq(own.iter().copied());
        if !is_own_right {
            changes.extend(deletions(&state.own));
        }
        if self.rules.contains(&shared) && !state.is_shared_first {
            changes.extend(deletions(&state.shared));
            changes.push(format!("-I {chain} 1 {shared}"));
        }
        if !is_own_right {
            changes.extend(own.iter().map(|rule| format!("-A {chain} {rule}")));
        }
        let jump = self.own_chain.jump();
        let right = state.jumps.iter().position(|rule| rule.spec == jump);
        let surplus = state.jumps.iter().enumerate().filter(|(i, _)| Some(*i) != right);
        changes.extend(deletions(&surplus.map(|(_, rule)| *rule).collect::<Vec<_>>()));
        if right.is_none() {
            changes.push(format!("-A {} {jump}", self.own_chain.builtin));
        }
        self.write_foreign_jump(state, changes);
    }

    /// Makes the foreign caller call the chain after its own rules, but before it returns.
    fn write_foreign_jump(&self, state: &TableState<'_>, changes: &mut Vec<String>) {
        let Some(rules) = &state.foreign_rules else { return };
        let Some(caller) = self.own_chain.foreign_caller else { return };
        let jump = self.own_chain.jump();
        let end = rules.iter().position(|rule| rule.spec == RuleSpec::returning()).unwrap_or(rules.len());
        let is_right = |rule: &&ListedRule| rule.spec == jump;
        if state.foreign_jumps.len() == 1 && rules[..end].iter().any(is_right) {
            return;
        }
        changes.extend(deletions(&state.foreign_jumps));
        let kept = rules[..end].iter().filter(|rule| rule.spec.target != self.own_chain.chain).count();
        changes.push(format!("-I {caller} {} {jump}", kept + 1));
    }

    /// Returns whether a rule of the built-in chain was written by an earlier version of flannel.
    fn is_old(&self, spec: &RuleSpec, nets: &[IpNet]) -> bool {
        match &spec.comment {
            Some(comment) => OLD_COMMENTS.contains(&comment.as_str()) && spec.mentions(nets),
            None => self.v011 && self.owned.iter().any(|nets| is_of_v011(self.own_chain, nets, spec)),
        }
    }
}

/// What a table holds of flannel's.
struct TableState<'a> {
    has_chain: bool,
    own: Vec<&'a ListedRule>,
    shared: Vec<&'a ListedRule>,
    /// Whether there is one shared rule, before the own ones.
    is_shared_first: bool,
    /// The number of rules in the chain that are neither.
    others: usize,
    jumps: Vec<&'a ListedRule>,
    /// The rules of the foreign caller; `None` if it does not exist.
    foreign_rules: Option<Vec<&'a ListedRule>>,
    /// The jumps of the foreign caller.
    foreign_jumps: Vec<&'a ListedRule>,
    old: Vec<&'a ListedRule>,
}

impl<'a> TableState<'a> {
    fn new(desired: &DesiredTable<'_>, listing: &'a TableListing) -> Self {
        let own_chain = desired.own_chain;
        let nets: Vec<IpNet> =
            desired.owned.iter().flat_map(|nets| [nets.network(), nets.subnet()]).collect();
        let shared_spec = own_chain.shared();
        let in_chain: Vec<&ListedRule> = listing.of(own_chain.chain).collect();
        let (own, rest): (Vec<&ListedRule>, Vec<&ListedRule>) =
            in_chain.iter().copied().partition(|rule| rule.spec.mentions(&nets));
        let (shared, others): (Vec<&ListedRule>, Vec<&ListedRule>) =
            rest.into_iter().partition(|rule| rule.spec == shared_spec);
        let first = |is: &dyn Fn(&RuleSpec) -> bool| in_chain.iter().position(|rule| is(&rule.spec));
        let first_own = first(&|spec| spec.mentions(&nets)).unwrap_or(usize::MAX);
        let first_shared = first(&|spec| *spec == shared_spec);
        let (jumps, rest): (Vec<&ListedRule>, Vec<&ListedRule>) =
            listing.of(own_chain.builtin).partition(|rule| rule.spec.target == own_chain.chain);
        let foreign_caller = own_chain.foreign_caller.filter(|caller| listing.chains.contains_key(*caller));
        let foreign_rules = foreign_caller.map(|caller| listing.of(caller).collect::<Vec<_>>());
        let foreign_jumps = foreign_rules.iter().flatten().copied();
        let foreign_jumps = foreign_jumps.filter(|rule| rule.spec.target == own_chain.chain).collect();
        Self {
            foreign_rules,
            foreign_jumps,
            has_chain: listing.chains.contains_key(own_chain.chain),
            own,
            is_shared_first: shared.len() == 1 && first_shared.is_some_and(|at| at < first_own),
            shared,
            others: others.len(),
            jumps,
            old: rest.into_iter().filter(|rule| desired.is_old(&rule.spec, &nets)).collect(),
        }
    }
}

fn deletions(rules: &[&ListedRule]) -> Vec<String> {
    rules.iter().map(|rule| format!("-D {} {}", rule.chain, rule.text)).collect()
}

/// Returns whether flannel up to v0.16.1 wrote this rule, without a comment, into a built-in chain.
fn is_of_v011(own_chain: &OwnChain, nets: &OverlayPrefixes, spec: &RuleSpec) -> bool {
    let (network, subnet) = (nets.network(), nets.subnet());
    let is = |net| Some(AddressSelector { net, negated: false });
    let is_not = |net| Some(AddressSelector { net, negated: true });
    let shapes = if own_chain.table == MASQUERADE.table {
        vec![
            (is(network), is(network), "RETURN"),
            (is(network), is_not(rules::multicast(IpFamily::V4)), "MASQUERADE"),
            (is_not(network), is(subnet), "RETURN"),
            (is_not(network), is(network), "MASQUERADE"),
        ]
    } else {
        vec![(is(network), None, "ACCEPT"), (None, is(network), "ACCEPT")]
    };
    shapes.into_iter().any(|(source, destination, target)| {
        let shape = RuleSpec { source, destination, target: target.to_owned(), ..RuleSpec::default() };
        *spec == RuleSpec { fully_random: spec.fully_random && target == "MASQUERADE", ..shape }
    })
}

#[cfg(test)]
mod tests;
