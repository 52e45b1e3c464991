//! Differences between the kernel's objects and the desired ones.

use flannel_core::{PeerFailure, PlannedAction, PlannedChange};

use super::daemons;
use crate::doctor::facts::Facts;
use crate::doctor::finding::{Cure, Fault, Finding};

pub(super) const MISSING: Fault = Fault::error(
    "objects-missing",
    "without them the pods of a peer are unreachable; a running daemon repairs them, so here it fails to",
);
pub(super) const STALE: Fault = Fault::warning(
    "objects-stale",
    "packets to subnets that no host has, or that another host has now, take the wrong path",
);

/// Returns one finding for all missing objects and one for all stale ones: there may be thousands.
pub(in crate::doctor) fn changes(facts: &Facts) -> Vec<Finding> {
    let of = |is_removal: bool| {
        let planned = facts.plan.iter().flat_map(|plan| &plan.changes);
        planned.filter(move |change| (change.action == PlannedAction::Remove) == is_removal)
    };
    let cure = || match facts.is_running() {
        true => Cure::run(["systemctl restart flanneld"]),
        false => daemons::start(),
    };
    let mut found = Vec::new();
    for (is_removal, fault, words) in
        [(false, &MISSING, "not as they should be"), (true, &STALE, "left over")]
    {
        let count = of(is_removal).count();
        // Objects of peers that are kept after they left are no fault.
        let is_held = is_removal && facts.held_peers > 0;
        if count > 0 && !is_held {
            let what = format!("{count} objects are {words}: {}", list(of(is_removal)));
            found.push(fault.found(what, cure()));
        }
    }
    found
}

/// The maximum number of objects that are named.
const NAMED: usize = 5;

fn list<'c>(changes: impl Iterator<Item = &'c PlannedChange>) -> String {
    let mut changes = changes.map(|change| match &change.instead_of {
        Some(actual) => format!("{} (it is {actual})", change.object),
        None => change.object.clone(),
    });
    let mut names: Vec<String> = changes.by_ref().take(NAMED).collect();
    let more = changes.count();
    names.extend((more > 0).then(|| format!("{more} more")));
    names.join(", ")
}

pub(super) const PEER: Fault = Fault::warning(
    "peer-unusable",
    "this host cannot send to it; if the record is removed, a running host writes a valid one",
);
/// The maximum number of findings.
const MOST: usize = 10;

pub(in crate::doctor) fn peers(facts: &Facts) -> Vec<Finding> {
    let unreachable = facts.plan.iter().flat_map(|plan| &plan.unreachable);
    let found = |failure: &PeerFailure| {
        let remove = facts.registry.commands.remove_record(&failure.peer.to_string());
        PEER.found(failure.to_string(), Cure::run([remove]))
    };
    unreachable.take(MOST).map(found).collect()
}
