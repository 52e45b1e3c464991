//! The three kernel tables of a tunnel device, each as a [`Table`].
//!
//! Whose is an object? Permanent neighbours and forwarding entries on our device are ours, and so are all routes in
//! the main table that leave by it, but for those that the kernel makes for the device's addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flannel_core::BoxError;
use flannel_core::reconcile::{Change, Table};
use flannel_netlink::{
    Error, Family, FdbEntry, Mac, Neighbour, Netlink, Route, RouteFilter, RouteKind, Write,
};
use ipnet::IpNet;

/// The request socket that a backend's tables share.
#[derive(Clone, Debug)]
pub(crate) struct Kernel(Arc<Mutex<Netlink>>);

impl Kernel {
    pub(crate) fn new(netlink: Netlink) -> Self {
        Self(Arc::new(Mutex::new(netlink)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Netlink> {
        // A panic elsewhere leaves the socket usable: every request has its own number.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, writes: &[Write]) -> Vec<Result<(), BoxError>> {
        self.lock().apply(writes).into_iter().map(|result| result.map_err(boxed)).collect()
    }
}

fn boxed(error: Error) -> BoxError {
    Box::new(error)
}

/// On which device a table's objects are.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) kernel: Kernel,
    pub(crate) index: u32,
    pub(crate) family: Family,
}

/// Permanent neighbours: which device address stands for a peer's overlay address.
#[derive(Debug)]
pub(crate) struct Neighbours(pub(crate) Place);

impl Table for Neighbours {
    type Key = IpAddr;
    type Value = Mac;

    fn name(address: &IpAddr, mac: &Mac) -> String {
        format!("neighbour {address} lladdr {mac}")
    }

    fn read(&mut self) -> Result<Vec<(IpAddr, Mac)>, BoxError> {
        let read = self.0.kernel.lock().neighbours(self.0.index, Some(self.0.family)).map_err(boxed)?;
        let ours = read.into_iter().filter(Neighbour::is_permanent);
        Ok(ours.filter_map(|neighbour| Some((neighbour.address, neighbour.mac?))).collect())
    }

    fn apply(&mut self, changes: &[Change<IpAddr, Mac>]) -> Vec<Result<(), BoxError>> {
        let neighbour = |address: IpAddr, mac: Mac| Neighbour::permanent(self.0.index, address, mac);
        let writes: Vec<Write> = changes
            .iter()
            .map(|change| match change {
                Change::Put { key, value, .. } => Write::PutNeighbour(neighbour(*key, *value)),
                Change::Drop { key, value } => Write::DeleteNeighbour(neighbour(*key, *value)),
            })
            .collect();
        self.0.kernel.apply(&writes)
    }
}

/// Permanent forwarding entries: where the tunnel to a peer's device ends.
#[derive(Debug)]
pub(crate) struct Fdb(pub(crate) Place);

impl Table for Fdb {
    type Key = Mac;
    type Value = IpAddr;

    fn name(mac: &Mac, destination: &IpAddr) -> String {
        format!("forwarding entry {mac} dst {destination}")
    }

    fn read(&mut self) -> Result<Vec<(Mac, IpAddr)>, BoxError> {
        let read = self.0.kernel.lock().fdb(self.0.index).map_err(boxed)?;
        let ours = read.into_iter().filter(|entry| entry.is_permanent() && entry.bridge.is_none());
        Ok(ours.filter_map(|entry| Some((entry.mac, entry.destination?))).collect())
    }

    fn apply(&mut self, changes: &[Change<Mac, IpAddr>]) -> Vec<Result<(), BoxError>> {
        let entry = |mac: Mac, destination: IpAddr| FdbEntry::permanent(self.0.index, mac, destination);
        let writes: Vec<Write> = changes
            .iter()
            .map(|change| match change {
                Change::Put { key, value, .. } => Write::PutFdb(entry(*key, *value)),
                Change::Drop { key, value } => Write::DeleteFdb(entry(*key, *value)),
            })
            .collect();
        self.0.kernel.apply(&writes)
    }
}

/// A route to a peer's subnet through the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OverlayRoute {
    /// The peer's own address on the overlay. A route of ours has one.
    pub(crate) gateway: Option<IpAddr>,
    /// Whether the gateway need not be covered by an address of the device, which has only a single one.
    pub(crate) onlink: bool,
    /// Which of several routes to the same subnet counts; as there is one, any value will do.
    pub(crate) metric: u32,
    /// The type of service it is for; ours are for any, which is 0.
    pub(crate) tos: u8,
    /// How far the kernel takes the destination to be, and who made the route. Any value will do; the kernel wants to
    /// hear them when a route is to be deleted that stands beside another one.
    pub(crate) scope: u8,
    pub(crate) protocol: u8,
}

/// So many routes keep the metric 0, as upstream flannel writes all of them.
///
/// The kernel finds the next hop of a new IPv4 route in a hash table whose key leaves the gateway out but has the
/// metric in it (`fib_info_hashfn` in `net/ipv4/fib_semantics.c`): all routes of one device and metric share one
/// bucket, which is searched for each. Up to this number that costs less than programming the peer's other objects;
/// beyond, each route gets a metric of its own, and its cost does not depend on the number of peers.
const ROUTES_WITHOUT_METRIC: usize = 256;

/// What the kernel gives an IPv6 route without a metric (`IP6_RT_PRIO_USER`, `include/net/ip6_fib.h`).
const IPV6_METRIC: u32 = 1024;

impl OverlayRoute {
    /// The route to a peer's subnet, given how many other routes there are.
    pub(crate) fn to(subnet: IpNet, others: usize) -> Self {
        let metric = match subnet {
            IpNet::V4(_) if others < ROUTES_WITHOUT_METRIC => 0,
            // The number of the subnet among all of its size: two subnets of one size never share it.
            IpNet::V4(net) => net.network().to_bits().unbounded_shr(u32::from(32 - net.prefix_len())).max(1),
            IpNet::V6(_) => IPV6_METRIC,
        };
        Self {
            gateway: Some(subnet.network()),
            onlink: true,
            metric,
            tos: 0,
            scope: Route::SCOPE_UNIVERSE,
            protocol: Route::PROTOCOL_BOOT,
        }
    }
}

/// Routes to the peers' subnets.
#[derive(Debug)]
pub(crate) struct Routes(pub(crate) Place);

impl Routes {
    /// The same message puts and deletes, so that the two cannot disagree.
    fn route(&self, subnet: IpNet, route: &OverlayRoute) -> Route {
        Route {
            gateway: route.gateway,
            onlink: route.onlink,
            metric: Some(route.metric).filter(|metric| *metric > 0),
            tos: route.tos,
            scope: route.scope,
            protocol: route.protocol,
            ..Route::attached(subnet, self.0.index)
        }
    }

    fn read_main(&self, index: Option<u32>) -> Result<Vec<Route>, Error> {
        let filter = RouteFilter {
            family: Some(self.0.family),
            table: Some(Route::MAIN_TABLE),
            index,
            ..RouteFilter::default()
        };
        self.0.kernel.lock().routes(&filter)
    }

    /// Looks what has the place of routes that could not be added: one on our device that we did not know of is
    /// replaced, somebody else's is named.
    fn resolve(&self, writes: &[Write], outcomes: Vec<Result<(), Error>>) -> Vec<Result<(), BoxError>> {
        let is_taken = |outcome: &Result<(), Error>| outcome.as_ref().is_err_and(Error::is_exists);
        let mut places = BTreeMap::new();
        if outcomes.iter().any(is_taken) {
            // If they cannot be read, the kernel's answer has to do.
            let present = self.read_main(None).unwrap_or_default();
            places.extend(present.into_iter().map(|route| (place(&route), route)));
        }
        let answer = |(write, outcome): (&Write, Result<(), Error>)| {
            let there = if let Write::AddRoute(new) = write
                && is_taken(&outcome)
            {
                places.get(&place(new)).map(|there| (new, there))
            } else {
                None
            };
            match there {
                None => outcome.map_err(boxed),
                Some((new, there)) if there.index == new.index => {
                    self.0.kernel.apply(&[Write::PutRoute(new.clone())]).remove(0)
                }
                Some((_, there)) => Err(InTheWay(there.clone()).into()),
            }
        };
        writes.iter().zip(outcomes).map(answer).collect()
    }

    fn put(&self, subnet: IpNet, new: &OverlayRoute, old: Option<OverlayRoute>, writes: &mut Vec<Write>) {
        let place = |route: &OverlayRoute| (route.metric, route.tos);
        let route = self.route(subnet, new);
        match old {
            Some(old) if place(&old) == place(new) => writes.push(Write::PutRoute(route)),
            // Where none of ours is there, a route to the same subnet is somebody else's and stays.
            None => writes.push(Write::AddRoute(route)),
            // To the kernel it is another route: the new one is put beside the old one, which goes afterwards.
            Some(old) => {
                writes.extend([Write::AddRoute(route), Write::DeleteRoute(self.route(subnet, &old))])
            }
        }
    }
}

/// What makes two routes stand in each other's way.
fn place(route: &Route) -> (IpNet, Option<u32>, u8) {
    (route.destination, route.metric, route.tos)
}

/// A route cannot be put because somebody else's is there.
#[derive(Debug, thiserror::Error)]
#[error("somebody else's route is in its place: {0}")]
struct InTheWay(Route);

impl Table for Routes {
    type Key = IpNet;
    type Value = OverlayRoute;

    fn name(subnet: &IpNet, route: &OverlayRoute) -> String {
        match route.gateway {
            Some(gateway) => format!("route {subnet} via {gateway}"),
            None => format!("route {subnet}"),
        }
    }

    fn will_do(desired: &OverlayRoute, actual: &OverlayRoute) -> bool {
        (desired.gateway, desired.onlink, desired.tos) == (actual.gateway, actual.onlink, actual.tos)
    }

    fn read(&mut self) -> Result<Vec<(IpNet, OverlayRoute)>, BoxError> {
        let read = self.read_main(Some(self.0.index)).map_err(boxed)?;
        let ours = read
            .into_iter()
            .filter(|route| route.kind == RouteKind::Unicast && route.protocol != Route::PROTOCOL_KERNEL);
        Ok(ours.map(|route| (route.destination, OverlayRoute::from(&route))).collect())
    }

    fn apply(&mut self, changes: &[Change<IpNet, OverlayRoute>]) -> Vec<Result<(), BoxError>> {
        // A change may take two writes; it is done if both are.
        let mut writes = Vec::with_capacity(changes.len());
        let mut answers = Vec::with_capacity(changes.len());
        for change in changes {
            let start = writes.len();
            match change {
                Change::Put { key, value, instead_of } => self.put(*key, value, *instead_of, &mut writes),
                Change::Drop { key, value } => writes.push(Write::DeleteRoute(self.route(*key, value))),
            }
            answers.push(writes.len() - start);
        }
        let outcomes = self.0.kernel.lock().apply(&writes);
        let mut results = self.resolve(&writes, outcomes).into_iter();
        answers.into_iter().map(|count| results.by_ref().take(count).collect()).collect()
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
        }
    }
}

#[cfg(test)]
mod tests;
