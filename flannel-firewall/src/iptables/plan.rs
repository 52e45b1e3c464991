//! What to change in a table so that it holds the rules that are wanted. Pure.
//!
//! Ours are: in our chain, the rules that mention our networks and the one about kube-proxy's mark; each jump into our
//! chain; and in the built-in chain, what earlier versions of flannel left there about our networks. Everything else
//! stays where it is, also in our chain: another daemon on this host keeps the rules of its network there.

use flannel_netlink::IpFamily;
use ipnet::IpNet;

use super::listing::{Listed, Listing};
use super::spec::Spec;
use crate::rules::{self, LEAVE_MARKED, OverlayPrefixes, RuleOptions, Selector};

/// A table, and where our rules are in it.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) table: &'static str,
    /// The kernel's chain.
    pub(crate) builtin: &'static str,
    /// Our chain, called from there.
    pub(crate) chain: &'static str,
    comment: &'static str,
}

/// Where packets are masqueraded.
pub(crate) const MASQUERADE: Place =
    Place { table: "nat", builtin: "POSTROUTING", chain: "FLANNEL-POSTRTG", comment: "flanneld masq" };
/// Where packets are let through.
pub(crate) const FORWARD: Place =
    Place { table: "filter", builtin: "FORWARD", chain: "FLANNEL-FWD", comment: "flanneld forward" };

/// The comments of rules that flannel kept in built-in chains (v0.16 to v0.19; one was misspelt).
const OLD_COMMENTS: [&str; 3] = ["flanneld masq", "flannel masq", "flanneld forward"];

impl Place {
    /// The rules that are wanted here.
    pub(crate) fn wanted(&self, nets: Option<&OverlayPrefixes>, options: &RuleOptions) -> Vec<Spec> {
        let rules = match nets {
            None => Vec::new(),
            Some(nets) if self.table == MASQUERADE.table => rules::masquerade(nets, options),
            Some(nets) => rules::forward(nets, options),
        };
        rules.iter().map(|rule| Spec::of(rule, self.comment)).collect()
    }

    /// The rule of ours that is about no network.
    fn shared(&self) -> Spec {
        Spec::of(&LEAVE_MARKED, self.comment)
    }

    fn jump(&self) -> Spec {
        Spec::jump(self.chain, self.comment)
    }
}

/// What a table should hold.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) place: &'a Place,
    /// The rules, in order; none to remove ours.
    pub(crate) rules: Vec<Spec>,
    /// The networks of this host, those that it has and those that it had.
    pub(crate) nets: &'a [OverlayPrefixes],
    /// Remove also what v0.11 and earlier left, which looks as if anybody had written it.
    pub(crate) old: bool,
}

impl Wanted<'_> {
    /// The commands that make it so, in the syntax of `iptables-restore`; none if it is so.
    pub(crate) fn changes(&self, listing: &Listing) -> Vec<String> {
        let found = Found::new(self, listing);
        let mut changes = deletions(&found.old);
        if self.rules.is_empty() {
            self.remove(&found, &mut changes)
        } else {
            self.put(&found, &mut changes)
        }
        changes
    }

    /// Takes our rules away, and the chain if nobody else has rules in it.
    fn remove(&self, found: &Found<'_>, changes: &mut Vec<String>) {
        changes.extend(deletions(&found.own));
        if found.others == 0 {
            changes.extend(deletions(&found.jumps));
            if found.has_chain {
                changes.push(format!("-F {}", self.place.chain));
                changes.push(format!("-X {}", self.place.chain));
            }
        }
    }

    fn put(&self, found: &Found<'_>, changes: &mut Vec<String>) {
        let chain = self.place.chain;
        if !found.has_chain {
            changes.push(format!(":{chain} - [0:0]"));
        }
        let shared = self.place.shared();
        let own: Vec<&Spec> = self.rules.iter().filter(|rule| **rule != shared).collect();
        let is_own_right = found.own.iter().map(|rule| &rule.spec).eq(own.iter().copied());
        if !is_own_right {
            changes.extend(deletions(&found.own));
        }
        if self.rules.contains(&shared) && !found.is_shared_first {
            changes.extend(deletions(&found.shared));
            changes.push(format!("-I {chain} 1 {shared}"));
        }
        if !is_own_right {
            changes.extend(own.iter().map(|rule| format!("-A {chain} {rule}")));
        }
        let jump = self.place.jump();
        let right = found.jumps.iter().position(|rule| rule.spec == jump);
        let surplus = found.jumps.iter().enumerate().filter(|(i, _)| Some(*i) != right);
        changes.extend(deletions(&surplus.map(|(_, rule)| *rule).collect::<Vec<_>>()));
        if right.is_none() {
            changes.push(format!("-A {} {jump}", self.place.builtin));
        }
    }

    /// Tells whether a rule of the built-in chain is of an earlier version of flannel.
    fn is_old(&self, spec: &Spec, nets: &[IpNet]) -> bool {
        match &spec.comment {
            Some(comment) => OLD_COMMENTS.contains(&comment.as_str()) && spec.mentions(nets),
            None => self.old && self.nets.iter().any(|nets| is_of_v011(self.place, nets, spec)),
        }
    }
}

/// What there is of ours.
struct Found<'a> {
    has_chain: bool,
    own: Vec<&'a Listed>,
    shared: Vec<&'a Listed>,
    /// Whether the shared rule is there once, in front of the own ones.
    is_shared_first: bool,
    /// How many rules in our chain are neither.
    others: usize,
    jumps: Vec<&'a Listed>,
    old: Vec<&'a Listed>,
}

impl<'a> Found<'a> {
    fn new(wanted: &Wanted<'_>, listing: &'a Listing) -> Self {
        let place = wanted.place;
        let nets: Vec<IpNet> = wanted.nets.iter().flat_map(|nets| [nets.network(), nets.subnet()]).collect();
        let shared_spec = place.shared();
        let in_chain: Vec<&Listed> = listing.of(place.chain).collect();
        let (own, rest): (Vec<&Listed>, Vec<&Listed>) =
            in_chain.iter().copied().partition(|rule| rule.spec.mentions(&nets));
        let (shared, others): (Vec<&Listed>, Vec<&Listed>) =
            rest.into_iter().partition(|rule| rule.spec == shared_spec);
        let first = |is: &dyn Fn(&Spec) -> bool| in_chain.iter().position(|rule| is(&rule.spec));
        let first_own = first(&|spec| spec.mentions(&nets)).unwrap_or(usize::MAX);
        let first_shared = first(&|spec| *spec == shared_spec);
        let (jumps, rest): (Vec<&Listed>, Vec<&Listed>) =
            listing.of(place.builtin).partition(|rule| rule.spec.target == place.chain);
        Self {
            has_chain: listing.chains.contains_key(place.chain),
            own,
            is_shared_first: shared.len() == 1 && first_shared.is_some_and(|at| at < first_own),
            shared,
            others: others.len(),
            jumps,
            old: rest.into_iter().filter(|rule| wanted.is_old(&rule.spec, &nets)).collect(),
        }
    }
}

fn deletions(rules: &[&Listed]) -> Vec<String> {
    rules.iter().map(|rule| format!("-D {} {}", rule.chain, rule.text)).collect()
}

/// Tells whether a rule is one that flannel up to v0.16.1 put into a built-in chain, without a comment.
fn is_of_v011(place: &Place, nets: &OverlayPrefixes, spec: &Spec) -> bool {
    let (network, subnet) = (nets.network(), nets.subnet());
    let is = |net| Some(Selector { net, negated: false });
    let is_not = |net| Some(Selector { net, negated: true });
    let shapes = if place.table == MASQUERADE.table {
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
        let shape = Spec { source, destination, target: target.to_owned(), ..Spec::default() };
        *spec == Spec { fully_random: spec.fully_random && target == "MASQUERADE", ..shape }
    })
}

#[cfg(test)]
mod tests;
