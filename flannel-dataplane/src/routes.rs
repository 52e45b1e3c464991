//! Ownership and writing of routes, shared by the tables of overlay and direct routes.
//!
//! A peer is reached through the tunnel or by a direct route, so two tables have routes to the same subnets, and the
//! kernel refuses a second route to one destination with the same metric. Each table replaces the other's route, in one
//! step where the kernel allows that; the other table then finds its route gone.

use std::collections::BTreeMap;

use flannel_core::BoxError;
use flannel_core::reconcile::Change;
use flannel_netlink::{Error, IpFamily, Route, RouteFilter, RouteKind, WriteRequest};
use ipnet::IpNet;

use crate::netlink::{SharedNetlink, WRITE_BATCH};

/// The protocol number of direct routes (`rtm_protocol`, rtnetlink(7)), by which a restarted process recognises them.
///
/// The default is 241. The lists of the kernel and iproute2 (`linux/rtnetlink.h`, `/etc/iproute2/rt_protos`) end at
/// 192, and routing daemons use numbers below 200. Choose another number if something else on the host uses 241. Two
/// networks in one namespace may share a number: a network owns only routes to subnets of its own range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteProtocol(u8);

impl RouteProtocol {
    /// Accepts a number above 4. The numbers up to 4 (`RTPROT_STATIC`) mark routes of the kernel, of boot scripts and of
    /// administrators.
    #[must_use]
    pub fn new(number: u8) -> Option<Self> {
        (number > 4).then_some(Self(number))
    }

    /// Returns the number.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }
}

impl Default for RouteProtocol {
    fn default() -> Self {
        Self(241)
    }
}

/// The rule by which a network recognises its direct routes.
#[derive(Clone, Copy, Debug)]
pub struct RouteOwner {
    /// The protocol number of the routes.
    pub protocol: RouteProtocol,
    /// The address range of the overlay. Routes of other networks may have the same protocol number.
    pub network: IpNet,
}

impl RouteOwner {
    /// Returns true if a route belongs to the network.
    #[must_use]
    pub fn owns(&self, route: &Route) -> bool {
        route.protocol == self.protocol.number()
            && route.table == Route::MAIN_TABLE
            && route.kind == RouteKind::Unicast
            && self.network.contains(&route.destination)
    }
}

/// The number of IPv4 routes that have metric 0, which upstream flannel gives to all of them.
///
/// The kernel looks up the next hop of a new IPv4 route in a hash table whose key contains the metric but not the gateway
/// (`fib_info_hashfn` in `net/ipv4/fib_semantics.c`), so all routes with one device and metric share one bucket, which is
/// searched for each. Up to this number the search is free; 256 such routes would cost a tenth of the time to program
/// 1,000 peers. Every route beyond gets a metric of its own, so that its cost doesn't depend on the number of peers.
const ROUTES_WITHOUT_METRIC: usize = 64;

/// The metric that the kernel gives to an IPv6 route without one (`IP6_RT_PRIO_USER`, `include/net/ip6_fib.h`).
const IPV6_METRIC: u32 = 1024;

/// Returns the metric of the route to a subnet, given the number of routes before it.
pub(crate) fn metric(subnet: IpNet, position: usize) -> u32 {
    match subnet {
        IpNet::V4(_) if position < ROUTES_WITHOUT_METRIC => 0,
        // The number of the subnet among all subnets of its length, which no other subnet of that length has.
        IpNet::V4(net) => net.network().to_bits().unbounded_shr(u32::from(32 - net.prefix_len())).max(1),
        IpNet::V6(_) => IPV6_METRIC,
    }
}

/// Reads routes of the main table.
pub(crate) fn read_main_table(
    netlink: &SharedNetlink,
    family: IpFamily,
    filter: RouteFilter,
) -> Result<Vec<Route>, Error> {
    let filter = RouteFilter { family: Some(family), table: Some(Route::MAIN_TABLE), ..filter };
    netlink.lock().routes(&filter)
}

/// Writes changes, each converted by `as_routes`, and returns one result for each. A route that occupies the slot of a
/// new one is replaced if `is_ours` accepts it.
pub(crate) fn write_changes<C>(
    netlink: &SharedNetlink,
    family: IpFamily,
    changes: &[C],
    as_routes: impl Fn(&C) -> Change<IpNet, Route>,
    is_ours: impl Fn(&Route) -> bool,
) -> Vec<Result<(), BoxError>> {
    let mut occupied = None;
    let mut results = Vec::with_capacity(changes.len());
    for batch in changes.chunks(WRITE_BATCH) {
        // A change may take two writes and succeeds if both do.
        let (mut writes, mut counts) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for change in batch {
            let start = writes.len();
            match as_routes(change) {
                Change::Put { value, instead_of, .. } => put(value, instead_of, &mut writes),
                Change::Drop { value, .. } => writes.push(WriteRequest::DeleteRoute(value)),
            }
            counts.push(writes.len() - start);
        }
        let outcomes = netlink.lock().apply(&writes);
        let mut answers = resolve(netlink, family, &writes, outcomes, &mut occupied, &is_ours).into_iter();
        results
            .extend(counts.into_iter().map(|count| answers.by_ref().take(count).collect::<Result<(), _>>()));
    }
    results
}

fn put(new: Route, old: Option<Route>, writes: &mut Vec<WriteRequest>) {
    match old {
        Some(old) if slot(&old) == slot(&new) => writes.push(WriteRequest::PutRoute(new)),
        // An add fails if a foreign route has the slot; a put would replace it.
        None => writes.push(WriteRequest::AddRoute(new)),
        // The kernel takes these for two routes: add the new one, then delete the old one.
        Some(old) => writes.extend([WriteRequest::AddRoute(new), WriteRequest::DeleteRoute(old)]),
    }
}

/// What two routes of a table must not have in common: destination, metric and type of service.
type Slot = (IpNet, Option<u32>, u8);

fn slot(route: &Route) -> Slot {
    (route.destination, route.metric, route.tos)
}

/// Handles routes that could not be added because their slot is occupied: replaces a route of ours, names a foreign one.
/// Reads the table at most once.
fn resolve(
    netlink: &SharedNetlink,
    family: IpFamily,
    writes: &[WriteRequest],
    outcomes: Vec<Result<(), Error>>,
    occupied: &mut Option<BTreeMap<Slot, Route>>,
    is_ours: &impl Fn(&Route) -> bool,
) -> Vec<Result<(), BoxError>> {
    let refused = |write: &WriteRequest, outcome: &Result<(), Error>| {
        outcome.is_err() && matches!(write, WriteRequest::AddRoute(_))
    };
    if occupied.is_none() && writes.iter().zip(&outcomes).any(|(write, outcome)| refused(write, outcome)) {
        // Without the table, the kernel's error stands.
        let present = read_main_table(netlink, family, RouteFilter::default()).unwrap_or_default();
        *occupied = Some(present.into_iter().map(|route| (slot(&route), route)).collect());
    }
    let answer = |(write, outcome): (&WriteRequest, Result<(), Error>)| {
        let WriteRequest::AddRoute(new) = write else { return outcome.map_err(BoxError::from) };
        match occupied.as_ref().and_then(|occupied| occupied.get(&slot(new))) {
            Some(present) if outcome.is_err() && is_ours(present) => replace(netlink, new, present),
            Some(present) if outcome.is_err() => Err(BlockedByForeignRoute(present.clone()).into()),
            Some(_) | None => outcome.map_err(BoxError::from),
        }
    };
    writes.iter().zip(outcomes).map(answer).collect()
}

/// Replaces a route of ours, which may be on another device.
fn replace(netlink: &SharedNetlink, new: &Route, old: &Route) -> Result<(), BoxError> {
    let mut writes = vec![WriteRequest::PutRoute(new.clone())];
    if new.destination.addr().is_ipv6() && new.index != old.index {
        // While the old route is there, the kernel looks for the new gateway on the old device and refuses it
        // (`ip6_route_check_nh_onlink` in `net/ipv6/route.c`). In one batch the gap is microseconds.
        writes.insert(0, WriteRequest::DeleteRoute(old.clone()));
    }
    netlink.write(&writes).into_iter().collect()
}

/// A route cannot be added because a foreign route occupies its slot.
#[derive(Debug, thiserror::Error)]
#[error("blocked by a foreign route: {0}")]
pub(crate) struct BlockedByForeignRoute(pub(crate) Route);

/// The foreign routes into the overlay as last read: for each destination the one that the kernel prefers.
///
/// The kernel refuses a second route only if it has the same metric. With another metric both exist, and the smaller
/// metric wins.
#[derive(Debug, Default)]
pub(crate) struct ForeignRoutes(BTreeMap<IpNet, Route>);

impl ForeignRoutes {
    /// Adds a route of another device, unless the network owns it or it doesn't lead into the overlay.
    pub(crate) fn add(&mut self, route: Route, owner: &RouteOwner) {
        if route.tos != 0 || owner.owns(&route) || !owner.network.contains(&route.destination) {
            return;
        }
        let preferred = self.0.entry(route.destination).or_insert_with(|| route.clone());
        if route.metric < preferred.metric {
            *preferred = route;
        }
    }

    /// Returns the route that the kernel prefers to one with this metric.
    pub(crate) fn preferred_to(&self, destination: &IpNet, metric: u32) -> Option<&Route> {
        self.0.get(destination).filter(|route| route.metric.unwrap_or(0) < metric)
    }
}
