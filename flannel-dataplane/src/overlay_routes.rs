//! Routes to the peers' subnets through the tunnel, as a [`Table`].

use std::net::IpAddr;

use flannel_core::BoxError;
use flannel_core::reconcile::{Change, Table};
use flannel_netlink::{Route, RouteFilter, RouteKind};
use ipnet::IpNet;

use crate::routes::{self, Foreign, InTheWay, Mark};
use crate::tables::{Place, boxed};

/// A route to a peer's subnet through the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlayRoute {
    /// The peer's own address on the overlay. A route of ours has one.
    pub gateway: Option<IpAddr>,
    /// Whether the gateway need not be covered by an address of the device, which has only a single one.
    pub onlink: bool,
    /// Which of several routes to the same subnet counts; as there is one, any value will do.
    pub metric: u32,
    /// The type of service it is for; ours are for any, which is 0.
    pub tos: u8,
    /// How far the kernel takes the destination to be, and who made the route. Any value will do; the kernel wants to
    /// hear them when a route is to be deleted that stands beside another one.
    pub scope: u8,
    pub protocol: u8,
    /// Whether somebody else's route to the same subnet counts instead; ours then is as good as missing.
    pub is_shadowed: bool,
}

impl OverlayRoute {
    /// The route to a peer's subnet, given how many other routes there are.
    pub fn to(subnet: IpNet, others: usize) -> Self {
        Self {
            gateway: Some(subnet.network()),
            onlink: true,
            metric: routes::metric(subnet, others),
            tos: 0,
            scope: Route::SCOPE_UNIVERSE,
            protocol: Route::PROTOCOL_BOOT,
            is_shadowed: false,
        }
    }

    /// The same message puts and deletes, so that the two cannot disagree.
    fn message(&self, subnet: IpNet, index: u32) -> Route {
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

/// All routes in the main table that leave by the tunnel, but for those that the kernel makes for its addresses.
#[derive(Debug)]
pub struct Routes {
    pub place: Place,
    /// By what the direct routes are known that one of these may take the place of.
    pub mark: Mark,
    foreign: Foreign,
}

impl Routes {
    pub fn new(place: Place, mark: Mark) -> Self {
        Self { place, mark, foreign: Foreign::default() }
    }

    /// Finds somebody else's route that would count instead of a new one.
    fn in_the_way(&self, change: &Change<IpNet, OverlayRoute>) -> Option<&Route> {
        match change {
            Change::Put { key, value, .. } => self.foreign.before(key, value.metric),
            Change::Drop { .. } => None,
        }
    }

    fn write(&self, changes: &[Change<IpNet, OverlayRoute>]) -> Vec<Result<(), BoxError>> {
        let Self { place, mark, .. } = self;
        let message = |subnet: &IpNet, route: &OverlayRoute| route.message(*subnet, place.index);
        let plain = |change: &Change<IpNet, OverlayRoute>| match change {
            Change::Put { key, value, instead_of } => Change::Put {
                key: *key,
                value: message(key, value),
                instead_of: instead_of.as_ref().map(|old| message(key, old)),
            },
            Change::Drop { key, value } => Change::Drop { key: *key, value: message(key, value) },
        };
        let is_ours = |there: &Route| there.index == Some(place.index) || mark.is_on(there);
        routes::apply(&place.kernel, place.family, changes, plain, is_ours)
    }
}

impl Table for Routes {
    type Key = IpNet;
    type Value = OverlayRoute;

    fn name(subnet: &IpNet, route: &OverlayRoute) -> String {
        match route.gateway {
            Some(gateway) => format!("route {subnet} via {gateway}"),
            None => format!("route {subnet}"),
        }
    }

    fn satisfies(desired: &OverlayRoute, actual: &OverlayRoute) -> bool {
        let way = |route: &OverlayRoute| (route.gateway, route.onlink, route.tos, route.is_shadowed);
        way(desired) == way(actual)
    }

    /// Reads the whole table, since it takes other routes to tell which of ours count.
    fn read(&mut self) -> Result<Vec<(IpNet, OverlayRoute)>, BoxError> {
        let Self { place, mark, foreign } = self;
        let read = routes::read_main(&place.kernel, place.family, RouteFilter::default()).map_err(boxed)?;
        let (mut ours, mut others) = (Vec::with_capacity(read.len()), Foreign::default());
        for route in read {
            if route.index != Some(place.index) {
                others.add(route, mark);
            } else if route.kind == RouteKind::Unicast && route.protocol != Route::PROTOCOL_KERNEL {
                ours.push((route.destination, OverlayRoute::from(&route)));
            }
        }
        for (subnet, route) in &mut ours {
            route.is_shadowed = others.before(subnet, route.metric).is_some();
        }
        *foreign = others;
        Ok(ours)
    }

    fn apply(&mut self, changes: &[Change<IpNet, OverlayRoute>]) -> Vec<Result<(), BoxError>> {
        if !changes.iter().any(|change| self.in_the_way(change).is_some()) {
            return self.write(changes);
        }
        let free: Vec<_> =
            changes.iter().filter(|change| self.in_the_way(change).is_none()).cloned().collect();
        let mut answers = self.write(&free).into_iter();
        let answer = |change| match self.in_the_way(change) {
            Some(there) => Err(InTheWay(there.clone()).into()),
            None => answers.next().unwrap_or(Ok(())),
        };
        changes.iter().map(answer).collect()
    }
}
