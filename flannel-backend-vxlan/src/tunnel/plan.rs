//! What a start and a pass would do for a tunnel, told without doing it.

use flannel_core::{BackendError, Dirty, Plan, PlanRequest, PlannedChange};
use flannel_netlink::Namespace;

use super::Tunnel;
use crate::device::{Device, DeviceSpec, OverlayAddress};
use flannel_dataplane::Direct;
use flannel_dataplane::own_subnet;
use flannel_dataplane::{Kernel, unreadable};

impl Tunnel {
    /// Tells what would be done for a tunnel and the direct routes beside it.
    pub(crate) fn plan(
        mut spec: DeviceSpec,
        direct: Direct,
        kernel: Kernel,
        namespace: Namespace,
        has_direct_routing: bool,
        request: PlanRequest<'_>,
    ) -> Result<Plan, BackendError> {
        let PlanRequest { own, peers, .. } = request;
        let net = own_subnet(own, spec.family)?.network().into();
        spec.address = Some(OverlayAddress { net, network: direct.mark().network });
        let (index, mut changes) = spec.plan(&mut kernel.lock())?;
        // Nothing is on a device that is not there.
        let device = Device { index: index.unwrap_or(0), mac: spec.preferred_mac, mtu: spec.below.mtu };
        let mut tunnel = Self::new(spec, device, direct, kernel, namespace, has_direct_routing);
        tunnel.direct.routes.table().tunnel = index;
        tunnel.update(peers, &Dirty::All, &own.subnet);
        let is_there = index.is_some();
        let mut removals: Vec<Vec<PlannedChange>> = Vec::new();
        for (what, planned) in [
            ("the forwarding entries", tunnel.fdb.plan(is_there)),
            ("the neighbours", tunnel.neighbours.plan(is_there)),
            ("the routes", tunnel.routes.plan(is_there)),
            ("the direct routes", tunnel.direct.routes.plan(true)),
        ] {
            let (puts, drops) = planned.map_err(|error| unreadable(what, error))?;
            changes.extend(puts);
            removals.push(drops);
        }
        if peers.is_complete() {
            changes.extend(removals.into_iter().rev().flatten());
        }
        let mut plan = Plan::default();
        (plan.changes, plan.unreachable) = (changes, tunnel.desired.unreachable().cloned().collect());
        Ok(plan)
    }
}
