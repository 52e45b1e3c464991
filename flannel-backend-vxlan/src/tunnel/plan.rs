//! The plan of a tunnel: what a start and a pass would write.

use flannel_core::{BackendError, Dirty, Plan, PlanRequest, PlannedChange};
use flannel_dataplane::{DirectRouting, SharedNetlink, own_subnet, table_read_error};
use flannel_netlink::Namespace;

use super::Tunnel;
use crate::device::{DeviceSpec, OverlayAddress, VxlanDevice};

impl Tunnel {
    /// Plans a tunnel and its direct routes. Writes nothing.
    pub(crate) fn plan(
        mut spec: DeviceSpec,
        direct: DirectRouting,
        netlink: SharedNetlink,
        namespace: Namespace,
        has_direct_routing: bool,
        request: PlanRequest<'_>,
    ) -> Result<Plan, BackendError> {
        let PlanRequest { own, peers, .. } = request;
        let net = own_subnet(own, spec.family)?.network().into();
        spec.address = Some(OverlayAddress { net, network: direct.owner().network });
        let (index, mut changes) = spec.plan(&mut netlink.lock())?;
        // A device that doesn't exist yet has no objects.
        let device =
            VxlanDevice { index: index.unwrap_or(0), mac: spec.preferred_mac, mtu: spec.underlay.mtu };
        let mut tunnel = Self::new(spec, device, direct, netlink, namespace, has_direct_routing);
        tunnel.direct.routes.table().tunnel = index;
        tunnel.update_peers(peers, &Dirty::All, &own.subnet);
        let exists = index.is_some();
        let mut removals: Vec<Vec<PlannedChange>> = Vec::new();
        for (table, planned) in [
            ("FDB entries", tunnel.fdb.plan(exists)),
            ("neighbours", tunnel.neighbours.plan(exists)),
            ("overlay routes", tunnel.routes.plan(exists)),
            ("direct routes", tunnel.direct.routes.plan(true)),
        ] {
            let (puts, drops) = planned.map_err(|error| table_read_error(table, error))?;
            changes.extend(puts);
            removals.push(drops);
        }
        if peers.is_complete() {
            changes.extend(removals.into_iter().rev().flatten());
        }
        let mut plan = Plan::default();
        (plan.changes, plan.unreachable) = (changes, tunnel.peers.unreachable().cloned().collect());
        Ok(plan)
    }
}
