//! Routes to the subnets of peers on the same link, without a tunnel, as a [`Table`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use flannel_core::BoxError;
use flannel_core::reconcile::{Change, Table};
use flannel_netlink::{IpFamily, Route, RouteFilter, RouteKind, WriteRequest};
use ipnet::IpNet;

use crate::routes::{self, Mark, RouteProtocol};
use crate::tables::{Kernel, boxed};

/// The way to a peer on the same link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The peer's public address.
    pub gateway: IpAddr,
    /// The external interface.
    pub index: u32,
    pub protocol: RouteProtocol,
}

impl Hop {
    /// The route to the peer's subnet, given how many other ones there are.
    pub fn route(&self, subnet: IpNet, others: usize) -> Route {
        Route {
            index: Some(self.index),
            protocol: self.protocol.number(),
            metric: Some(routes::metric(subnet, others)).filter(|metric| *metric > 0),
            ..Route::by_gateway(subnet, self.gateway)
        }
    }
}

/// The routes in the main table that carry our mark.
///
/// One that leads the same way and is not marked, as upstream flannel leaves it, becomes ours when it is wanted: it
/// is marked in place. Any other one that is not marked stays.
#[derive(Debug)]
pub struct DirectRoutes {
    pub kernel: Kernel,
    pub family: IpFamily,
    pub mark: Mark,
    /// The tunnel, if there is one: a route of ours through it may be replaced.
    pub tunnel: Option<u32>,
}

/// Tells whether two routes lead the same way.
fn is_same_way(one: &Route, other: &Route) -> bool {
    let way = |route: &Route| (route.gateway, route.index, route.tos, route.kind, route.multipath);
    way(one) == way(other)
}

fn is_unmarked(route: &Route) -> bool {
    route.protocol == Route::PROTOCOL_BOOT && route.kind == RouteKind::Unicast
}

impl DirectRoutes {
    /// Drops all there are.
    pub fn remove(&mut self) -> Result<(), BoxError> {
        let writes: Vec<_> =
            self.read()?.into_iter().map(|(_, route)| WriteRequest::DeleteRoute(route)).collect();
        self.kernel.apply(&writes).into_iter().collect()
    }

    /// Finds the unmarked routes that lead the way that wanted ones shall lead.
    fn adoptable(&self, changes: &[Change<IpNet, Route>]) -> BTreeMap<IpNet, Route> {
        let new = |change: &Change<IpNet, Route>| match change {
            Change::Put { key, value, instead_of: None } => Some((*key, value.clone())),
            Change::Put { .. } | Change::Drop { .. } => None,
        };
        let new: BTreeMap<IpNet, Route> = changes.iter().filter_map(new).collect();
        // All of them leave by the external interface.
        let Some(index) = new.values().next().map(|route| route.index) else {
            return BTreeMap::new();
        };
        let protocol = Some(Route::PROTOCOL_BOOT);
        let filter = RouteFilter { index, protocol, ..RouteFilter::default() };
        // If they cannot be read, they are found to be in the way and looked at again.
        let unmarked = routes::read_main(&self.kernel, self.family, filter).unwrap_or_default();
        let wanted = |route: &Route| new.get(&route.destination).is_some_and(|new| is_same_way(new, route));
        unmarked
            .into_iter()
            .filter(|route| is_unmarked(route) && wanted(route))
            .map(|route| (route.destination, route))
            .collect()
    }
}

impl Table for DirectRoutes {
    type Key = IpNet;
    type Value = Route;

    fn name(subnet: &IpNet, route: &Route) -> String {
        match route.gateway {
            Some(gateway) => format!("route {subnet} via {gateway}"),
            None => format!("route {subnet}"),
        }
    }

    fn satisfies(desired: &Route, actual: &Route) -> bool {
        is_same_way(desired, actual) && desired.protocol == actual.protocol
    }

    fn read(&mut self) -> Result<Vec<(IpNet, Route)>, BoxError> {
        let protocol = Some(self.mark.protocol.number());
        let filter = RouteFilter { protocol, ..RouteFilter::default() };
        let read = routes::read_main(&self.kernel, self.family, filter).map_err(boxed)?;
        let ours = read.into_iter().filter(|route| self.mark.is_on(route));
        Ok(ours.map(|route| (route.destination, route)).collect())
    }

    fn apply(&mut self, changes: &[Change<IpNet, Route>]) -> Vec<Result<(), BoxError>> {
        let adoptable = self.adoptable(changes);
        let adopting = |change: &Change<IpNet, Route>| match change {
            Change::Put { key, value, instead_of: None } => {
                Change::Put { key: *key, value: value.clone(), instead_of: adoptable.get(key).cloned() }
            }
            Change::Put { .. } | Change::Drop { .. } => change.clone(),
        };
        let is_ours = |there: &Route| {
            self.mark.is_on(there)
                || (there.index == self.tunnel
                    && self.tunnel.is_some()
                    && there.protocol != Route::PROTOCOL_KERNEL)
        };
        routes::apply(&self.kernel, self.family, changes, adopting, is_ours)
    }
}

#[cfg(test)]
mod tests;
