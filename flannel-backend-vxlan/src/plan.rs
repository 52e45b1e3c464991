//! What a start and a pass would do, told without doing it.

use flannel_core::reconcile::Reconciler;
use flannel_core::{BackendError, Dirty, PlanRequest, PlannedChange};
use ipnet::IpNet;

use crate::desired::{Desired, Wanted};
use crate::device::{DeviceSpec, OverlayAddress};
use crate::direct::Direct;
use crate::families::own_subnet;
use crate::overlay_routes::Routes;
use crate::tables::{Fdb, Kernel, Neighbours, Place};

/// A plan that failed, in the words of a pass.
pub(crate) fn unreadable(what: &str, error: flannel_core::BoxError) -> BackendError {
    BackendError::Kernel { object: format!("cannot read {what}"), source: error }
}

/// What would be done for one tunnel and the direct routes beside it.
pub(crate) fn tunnel(
    mut spec: DeviceSpec,
    kernel: &Kernel,
    mut direct: Direct,
    has_direct_routing: bool,
    network: IpNet,
    request: PlanRequest<'_>,
) -> Result<flannel_core::Plan, BackendError> {
    let (own, family) = (request.own, spec.family);
    spec.address = Some(OverlayAddress { net: own_subnet(own, family)?.network().into(), network });
    let (index, mut changes) = spec.plan(&mut kernel.lock())?;
    // Nothing is on a device that is not there.
    let place = index.map(|index| Place { kernel: kernel.clone(), index, family });
    let nowhere = Place { kernel: kernel.clone(), index: 0, family };
    let here = place.clone().unwrap_or(nowhere);
    let mut neighbours = Reconciler::new(Neighbours(here.clone()));
    let mut fdb = Reconciler::new(Fdb(here.clone()));
    let mut routes = Reconciler::new(Routes::new(here, direct.mark()));
    direct.routes.table().tunnel = index;
    let mut desired = Desired::default();
    {
        let mark = direct.mark();
        let Direct { underlay, routes: by_gateway, .. } = &mut direct;
        let mut hop = |subnet, public| {
            if has_direct_routing { Direct::hop(underlay, mark, subnet, public) } else { None }
        };
        let mut wanted = Wanted {
            hop: &mut hop,
            direct: &mut by_gateway.tracker,
            neighbours: &mut neighbours.tracker,
            fdb: &mut fdb.tracker,
            routes: &mut routes.tracker,
        };
        desired.update(request.peers, &Dirty::All, &own.subnet, family, &mut wanted);
    }
    let is_there = place.is_some();
    let mut removals: Vec<Vec<PlannedChange>> = Vec::new();
    for (what, planned) in [
        ("the forwarding entries", fdb.plan(is_there)),
        ("the neighbours", neighbours.plan(is_there)),
        ("the routes", routes.plan(is_there)),
        ("the direct routes", direct.routes.plan(true)),
    ] {
        let (puts, drops) = planned.map_err(|error| unreadable(what, error))?;
        changes.extend(puts);
        removals.push(drops);
    }
    if request.peers.is_complete() {
        changes.extend(removals.into_iter().rev().flatten());
    }
    let mut plan = flannel_core::Plan::default();
    (plan.changes, plan.unreachable) = (changes, desired.unreachable().cloned().collect());
    Ok(plan)
}
