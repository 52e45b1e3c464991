//! The plan of the backend.

use std::sync::Arc;
use std::time::Duration;

use flannel_core::{Lease, OpenBackend as _, Plan, PlanRequest};

use crate::doctor::facts::Facts;
use crate::plan::peers;

/// The time within which a running agent repairs what it can.
const REPAIRED: Duration = Duration::from_secs(1);

/// Returns the plan; `None` if the backend has none. Changes that a running agent is about to make are not part of it.
pub(super) async fn read(facts: &Facts) -> Option<Plan> {
    let first = ask(facts)?;
    if !facts.is_running() || first.changes.is_empty() {
        return Some(first);
    }
    tokio::time::sleep(REPAIRED).await;
    let mut second = ask(facts)?;
    second.changes.retain(|change| first.changes.contains(change));
    Some(second)
}

fn ask(facts: &Facts) -> Option<Plan> {
    let network = facts.network.as_ref()?;
    let (own, external) = (network.own.as_ref()?, facts.external.as_ref().ok()?);
    let leases: &[Arc<Lease>] = match (&facts.registry.leases, &facts.cached.network) {
        (Some(snapshot), _) => &snapshot.leases,
        (None, Some(cached)) => &cached.peers,
        (None, None) => return None,
    };
    // A cache is no reason to remove anything.
    let peers = peers(leases.iter().cloned(), own, facts.registry.leases.is_some());
    let request = PlanRequest::new(&network.config, external, own, &peers);
    facts.backends.plan(request).ok()
}
