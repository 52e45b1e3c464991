//! Routes to the peers' subnets through a tunnel device, as a [`Table`].

use std::net::IpAddr;

use flannel_core::BoxError;
use flannel_core::reconcile::{Change, Table};
use flannel_netlink::{Route, RouteFilter, RouteKind};
use ipnet::IpNet;

use crate::device_tables::DeviceScope;
use crate::routes::{
    BlockedByForeignRoute, ForeignRoutes, RouteOwner, metric, read_main_table, write_changes,
};

/// A route to a peer's subnet through the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlayRoute {
    /// The peer's address on the overlay. Every route that a backend writes has one.
    pub gateway: Option<IpAddr>,
    /// Whether the kernel accepts a gateway that no address of the device covers.
    pub onlink: bool,
    /// The metric. Any value is accepted, since there is one route to a subnet.
    pub metric: u32,
    /// The type of service, 0 for any.
    pub tos: u8,
    /// The scope of the destination. Any value is accepted; the kernel needs it to delete one of several routes.
    pub scope: u8,
    /// The protocol number. Any value is accepted; the kernel needs it to delete one of several routes.
    pub protocol: u8,
    /// Whether the kernel prefers a foreign route to the same subnet, which makes this one useless.
    pub is_shadowed: bool,
}

impl OverlayRoute {
    /// Returns the route to a peer's subnet, given the number of routes before it.
    #[must_use]
    pub fn to(subnet: IpNet, position: usize) -> Self {
        Self {
            gateway: Some(subnet.network()),
            onlink: true,
            metric: metric(subnet, position),
            tos: 0,
            scope: Route::SCOPE_UNIVERSE,
            protocol: Route::PROTOCOL_BOOT,
            is_shadowed: false,
        }
    }

    /// Returns the kernel's form of the route, both to put and to delete it.
    fn on_device(&self, subnet: IpNet, index: u32) -> Route {
        Route {
            gateway: self.gateway,
            onlink: self.onlink,
            metric: Some(self.metric).filter(|metric| *metric > 0),
            tos: self.tos,
            scope: self.scope,
            protocol: self.protocol,
            ..Route::attached(subnet, index)
        }
    }
}

impl From<&Route> for OverlayRoute {
    fn from(route: &Route) -> Self {
        Self {
            gateway: route.gateway,
            onlink: route.onlink,
            metric: route.metric.unwrap_or(0),
            tos: route.tos,
            scope: route.scope,
            protocol: route.protocol,
            is_shadowed: false,
        }
    }
}

/// All routes of the main table through a tunnel device, except those that the kernel makes for the device's addresses.
#[derive(Debug)]
pub struct OverlayRouteTable {
    /// The device.
    pub scope: DeviceScope,
    /// The owner of the direct routes, which an overlay route may replace.
    owner: RouteOwner,
    foreign: ForeignRoutes,
}

impl OverlayRouteTable {
    /// Describes the routes of a device in the network of `owner`.
    #[must_use]
    pub fn new(scope: DeviceScope, owner: RouteOwner) -> Self {
        Self { scope, owner, foreign: ForeignRoutes::default() }
    }

    /// Returns the foreign route that the kernel would prefer to a new one.
    fn shadowed_by(&self, change: &Change<IpNet, OverlayRoute>) -> Option<&Route> {
        match change {
            Change::Put { key, value, .. } => self.foreign.preferred_to(key, value.metric),
            Change::Drop { .. } => None,
        }
    }

    fn write(&self, changes: &[Change<IpNet, OverlayRoute>]) -> Vec<Result<(), BoxError>> {
        let Self { scope, owner, .. } = self;
        let route = |subnet: &IpNet, route: &OverlayRoute| route.on_device(*subnet, scope.index);
        let as_routes = |change: &Change<IpNet, OverlayRoute>| match change {
            Change::Put { key, value, instead_of } => Change::Put {
                key: *key,
                value: route(key, value),
                instead_of: instead_of.as_ref().map(|old| route(key, old)),
            },
            Change::Drop { key, value } => Change::Drop { key: *key, value: route(key, value) },
        };
        let is_ours = |present: &Route| present.index == Some(scope.index) || owner.owns(present);
        write_changes(&scope.netlink, scope.family, changes, as_routes, is_ours)
    }
}

impl Table for OverlayRouteTable {
    type Key = IpNet;
    type Value = OverlayRoute;

    fn name(subnet: &IpNet, route: &OverlayRoute) -> String {
        match route.gateway {
            Some(gateway) => format!("route {subnet} via {gateway}"),
            None => format!("route {subnet}"),
        }
    }

    fn satisfies(desired: &OverlayRoute, actual: &OverlayRoute) -> bool {
        let path = |route: &OverlayRoute| (route.gateway, route.onlink, route.tos, route.is_shadowed);
        path(desired) == path(actual)
    }

    /// Reads the whole table: only the foreign routes show which of ours are shadowed.
    fn read(&mut self) -> Result<Vec<(IpNet, OverlayRoute)>, BoxError> {
        let Self { scope, owner, foreign } = self;
        let routes = read_main_table(&scope.netlink, scope.family, RouteFilter::default())?;
        let (mut ours, mut others) = (Vec::with_capacity(routes.len()), ForeignRoutes::default());
        for route in routes {
            if route.index != Some(scope.index) {
                others.add(route, owner);
            } else if route.kind == RouteKind::Unicast && route.protocol != Route::PROTOCOL_KERNEL {
                ours.push((route.destination, OverlayRoute::from(&route)));
            }
        }
        for (subnet, route) in &mut ours {
            route.is_shadowed = others.preferred_to(subnet, route.metric).is_some();
        }
        *foreign = others;
        Ok(ours)
    }

    fn apply(&mut self, changes: &[Change<IpNet, OverlayRoute>]) -> Vec<Result<(), BoxError>> {
        if !changes.iter().any(|change| self.shadowed_by(change).is_some()) {
            return self.write(changes);
        }
        let writable: Vec<_> =
            changes.iter().filter(|change| self.shadowed_by(change).is_none()).cloned().collect();
        let mut answers = self.write(&writable).into_iter();
        let answer = |change| match self.shadowed_by(change) {
            Some(foreign) => Err(BlockedByForeignRoute(foreign.clone()).into()),
            None => answers.next().unwrap_or(Ok(())),
        };
        changes.iter().map(answer).collect()
    }
}
