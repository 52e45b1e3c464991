//! Routes to the subnets of peers on the same link, without a tunnel, as a [`Table`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use flannel_core::BoxError;
use flannel_core::reconcile::{Change, Table};
use flannel_netlink::{IpFamily, Route, RouteFilter, RouteKind, WriteRequest};
use ipnet::IpNet;

use crate::netlink::SharedNetlink;
use crate::routes::{RouteOwner, RouteProtocol, metric, read_main_table, write_changes};

/// The next hop to a peer on the same link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The peer's public address.
    pub gateway: IpAddr,
    /// The index of the external interface.
    pub index: u32,
    /// The protocol number of the route.
    pub protocol: RouteProtocol,
}

impl NextHop {
    /// Returns the route to the peer's subnet, given the number of routes before it.
    #[must_use]
    pub fn route(&self, subnet: IpNet, position: usize) -> Route {
        Route {
            index: Some(self.index),
            protocol: self.protocol.number(),
            metric: Some(metric(subnet, position)).filter(|metric| *metric > 0),
            ..Route::by_gateway(subnet, self.gateway)
        }
    }
}

/// The direct routes of the main table, which carry the network's protocol number.
///
/// A route of protocol boot with the same next hop as a desired one, as upstream flannel leaves it, is adopted: its
/// protocol number is changed in place. Other foreign routes stay.
#[derive(Debug)]
pub struct DirectRouteTable {
    /// The socket for requests.
    pub netlink: SharedNetlink,
    /// The address family.
    pub family: IpFamily,
    /// The rule of ownership.
    pub owner: RouteOwner,
    /// The index of the network's tunnel device, if it has one. A direct route may replace a route through it.
    pub tunnel: Option<u32>,
}

/// Returns true if two routes have the same next hop.
fn have_same_next_hop(one: &Route, other: &Route) -> bool {
    let next_hop = |route: &Route| (route.gateway, route.index, route.tos, route.kind, route.multipath);
    next_hop(one) == next_hop(other)
}

impl DirectRouteTable {
    /// Deletes all direct routes of the network.
    ///
    /// # Errors
    ///
    /// The first error of the kernel. The other routes are deleted nevertheless.
    pub fn remove_all(&mut self) -> Result<(), BoxError> {
        let writes: Vec<_> =
            self.read()?.into_iter().map(|(_, route)| WriteRequest::DeleteRoute(route)).collect();
        self.netlink.write(&writes).into_iter().collect()
    }

    /// Returns the routes of protocol boot that have the next hop of a desired new route, by destination.
    fn adoptable(&self, changes: &[Change<IpNet, Route>]) -> BTreeMap<IpNet, Route> {
        let new = |change: &Change<IpNet, Route>| match change {
            Change::Put { key, value, instead_of: None } => Some((*key, value.clone())),
            Change::Put { .. } | Change::Drop { .. } => None,
        };
        let new: BTreeMap<IpNet, Route> = changes.iter().filter_map(new).collect();
        // All of them use the external interface.
        let Some(index) = new.values().next().map(|route| route.index) else {
            return BTreeMap::new();
        };
        let protocol = Some(Route::PROTOCOL_BOOT);
        let filter = RouteFilter { index, protocol, ..RouteFilter::default() };
        // If they cannot be read, the write reports that they block ours, and the next pass tries again.
        let boot = read_main_table(&self.netlink, self.family, filter).unwrap_or_default().into_iter();
        let is_adoptable = |route: &Route| {
            route.protocol == Route::PROTOCOL_BOOT
                && route.kind == RouteKind::Unicast
                && new.get(&route.destination).is_some_and(|new| have_same_next_hop(new, route))
        };
        boot.filter(is_adoptable).map(|route| (route.destination, route)).collect()
    }
}

impl Table for DirectRouteTable {
    type Key = IpNet;
    type Value = Route;

    fn name(subnet: &IpNet, route: &Route) -> String {
        match route.gateway {
            Some(gateway) => format!("route {subnet} via {gateway}"),
            None => format!("route {subnet}"),
        }
    }

    fn satisfies(desired: &Route, actual: &Route) -> bool {
        have_same_next_hop(desired, actual) && desired.protocol == actual.protocol
    }

    fn read(&mut self) -> Result<Vec<(IpNet, Route)>, BoxError> {
        let protocol = Some(self.owner.protocol.number());
        let filter = RouteFilter { protocol, ..RouteFilter::default() };
        let routes = read_main_table(&self.netlink, self.family, filter)?;
        let ours = routes.into_iter().filter(|route| self.owner.owns(route));
        Ok(ours.map(|route| (route.destination, route)).collect())
    }

    fn apply(&mut self, changes: &[Change<IpNet, Route>]) -> Vec<Result<(), BoxError>> {
        let adoptable = self.adoptable(changes);
        let with_adoption = |change: &Change<IpNet, Route>| match change {
            Change::Put { key, value, instead_of: None } => {
                Change::Put { key: *key, value: value.clone(), instead_of: adoptable.get(key).cloned() }
            }
            Change::Put { .. } | Change::Drop { .. } => change.clone(),
        };
        let is_through_tunnel = |route: &Route| self.tunnel.is_some() && route.index == self.tunnel;
        let is_ours = |present: &Route| {
            self.owner.owns(present)
                || (is_through_tunnel(present) && present.protocol != Route::PROTOCOL_KERNEL)
        };
        write_changes(&self.netlink, self.family, changes, with_adoption, is_ours)
    }
}

#[cfg(test)]
mod tests;
