//! What a pass of the daemon would write now, as `flanneld plan` tells it.

use std::sync::Arc;
use std::time::Duration;

use flannel_core::{Lease, OpenBackend as _, Plan, PlanRequest};

use crate::doctor::facts::Facts;
use crate::plan::peers;

/// A daemon that runs repairs within this time what it can, with much to spare.
const REPAIRED: Duration = Duration::from_secs(1);

/// Asks the backend; nothing if it cannot tell. What a daemon is about to put right is no fault.
pub(super) async fn look(facts: &Facts) -> Option<Plan> {
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
    let leases: &[Arc<Lease>] = match (&facts.registry.leases, &facts.memory.network) {
        (Some(snapshot), _) => &snapshot.leases,
        (None, Some(remembered)) => &remembered.peers,
        (None, None) => return None,
    };
    // What is remembered is no reason to remove anything.
    let peers = peers(leases.iter().cloned(), own, facts.registry.leases.is_some());
    let request = PlanRequest::new(&network.config, external, own, &peers);
    facts.backends.plan(request).ok()
}
