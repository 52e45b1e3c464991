//! Derives the conditions of a network from its status. Pure.

use std::time::Duration;

use super::condition::{Condition, ConditionName};
use super::network::NetworkStatus;

/// Returns the conditions of a status that has none yet. `audit_every` is the longest time between two passes.
pub(crate) fn conditions(status: &NetworkStatus, audit_every: Duration) -> Vec<Condition> {
    let mut found = Vec::new();
    let mut add = |name, detail: String| found.push(Condition::new(name, detail));
    if let Some(reason) = &status.ended {
        add(ConditionName::Ended, reason.clone());
    } else if !status.ready {
        let what = status.waiting_for.as_ref().map(|waiting| waiting.reason.clone());
        add(ConditionName::Starting, what.unwrap_or_else(|| "the first pass is pending".to_owned()));
    }
    if let Some(lost) = status.lease.as_ref().and_then(|lease| lease.lost.clone()) {
        add(ConditionName::LeaseLost, lost);
    }
    if let Some(reason) = &status.external.lost {
        add(ConditionName::ExternalLost, reason.clone());
    }
    let failed = status.kernel.failed.iter().map(|failure| format!("{}: {}", failure.object, failure.reason));
    if let Some(detail) = first_of(failed) {
        add(ConditionName::ObjectsFailed, detail);
    }
    let longest = audit_every + STALLED_AFTER;
    if let Some(age) = status.kernel.last_pass_age.filter(|age| *age > longest && status.ended.is_none()) {
        add(ConditionName::Stalled, format!("the last pass was {} seconds ago", age.as_secs()));
    }
    if let Some(reason) = &status.registry.unavailable {
        let unavailable_for = status.registry.unavailable_for.unwrap_or_default().as_secs();
        add(ConditionName::RegistryUnavailable, format!("for {unavailable_for} seconds: {reason}"));
    }
    if let Some(reason) = &status.registry.peers_from_cache {
        add(ConditionName::PeersFromCache, reason.clone());
    }
    if let Some(detail) = first_of(status.bad_records.iter().map(ToString::to_string)) {
        add(ConditionName::BadRecords, detail);
    }
    if let Some(reason) = status.network.as_ref().and_then(|network| network.refused.clone()) {
        add(ConditionName::ConfigRefused, reason);
    }
    let peers = &status.peers;
    if peers.unreachable > 0 {
        add(ConditionName::PeersUnreachable, format!("{} of {} peers", peers.unreachable, peers.known));
    }
    if peers.held > 0 {
        add(ConditionName::PeersHeld, format!("{} of {} peers", peers.held, peers.known));
    }
    found
}

/// The tolerance for a late pass: the host may have been suspended, or the pass may take long.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// Returns the first item, and the number of further ones.
fn first_of(mut items: impl ExactSizeIterator<Item = String>) -> Option<String> {
    let first = items.next()?;
    Some(match items.len() {
        0 => first,
        more => format!("{first}; and {more} more"),
    })
}
