//! What the tables of routes have in common: which routes are whose, and how they are written.
//!
//! A host may reach a peer through the tunnel or directly, so two tables have routes to the same subnets. To the
//! kernel such routes stand in each other's way; each table puts its own in the place of the other's, in one step
//! where the kernel allows it, and the other one then finds its route gone.

use std::collections::BTreeMap;

use flannel_core::BoxError;
use flannel_core::reconcile::Change;
use flannel_netlink::{Error, IpFamily, Route, RouteFilter, RouteKind, WriteRequest};
use ipnet::IpNet;

use crate::tables::{Kernel, WRITES_AT_ONCE, boxed};

/// Who made a route, as the kernel remembers it (`rtm_protocol`, rtnetlink(7)). Direct routes carry it so that a
/// process that has just started recognises them.
///
/// The default is 241: the kernel's and iproute2's lists (`linux/rtnetlink.h`, `/etc/iproute2/rt_protos`) end at 192,
/// and routing daemons number themselves below 200. Choose another one if something else on the host uses it. Two
/// networks in one namespace may share it, as a route is only taken for a network's own inside that network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteProtocol(u8);

impl RouteProtocol {
    /// Takes a number above 4; those up to 4 (`RTPROT_STATIC`) stand for the kernel, and for routes that programs and
    /// people make.
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

/// By what the direct routes of a network are known.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    pub protocol: RouteProtocol,
    /// The whole overlay: other networks' routes may carry the same number.
    pub network: IpNet,
}

impl Mark {
    pub fn is_on(&self, route: &Route) -> bool {
        route.protocol == self.protocol.number()
            && route.table == Route::MAIN_TABLE
            && route.kind == RouteKind::Unicast
            && self.network.contains(&route.destination)
    }
}

/// So many routes keep the metric 0, as upstream flannel writes all of them.
///
/// The kernel finds the next hop of a new IPv4 route in a hash table whose key leaves the gateway out but has the
/// metric in it (`fib_info_hashfn` in `net/ipv4/fib_semantics.c`): all routes of one device and metric share one
/// bucket, which is searched for each. Up to this number that costs next to nothing, where 256 such routes would take a
/// tenth of the time in which 1,000 peers are programmed; beyond, each route gets a metric of its own, and its cost does
/// not depend on the number of peers.
const ROUTES_WITHOUT_METRIC: usize = 64;

/// What the kernel gives an IPv6 route without a metric (`IP6_RT_PRIO_USER`, `include/net/ip6_fib.h`).
const IPV6_METRIC: u32 = 1024;

/// The metric of the route to a subnet, given how many other routes there are.
pub fn metric(subnet: IpNet, others: usize) -> u32 {
    match subnet {
        IpNet::V4(_) if others < ROUTES_WITHOUT_METRIC => 0,
        // The number of the subnet among all of its size: two subnets of one size never share it.
        IpNet::V4(net) => net.network().to_bits().unbounded_shr(u32::from(32 - net.prefix_len())).max(1),
        IpNet::V6(_) => IPV6_METRIC,
    }
}

/// Reads routes of the main table.
pub fn read_main(kernel: &Kernel, family: IpFamily, filter: RouteFilter) -> Result<Vec<Route>, Error> {
    let filter = RouteFilter { family: Some(family), table: Some(Route::MAIN_TABLE), ..filter };
    kernel.lock().routes(&filter)
}

/// Writes changes of routes, each told as one of plain routes, and answers for each. `is_ours` tells of a route that has
/// the place of a new one whether it may go.
pub fn apply<C>(
    kernel: &Kernel,
    family: IpFamily,
    changes: &[C],
    plain: impl Fn(&C) -> Change<IpNet, Route>,
    is_ours: impl Fn(&Route) -> bool,
) -> Vec<Result<(), BoxError>> {
    let mut places = None;
    let mut results = Vec::with_capacity(changes.len());
    // In parts, so that the writes of a large network never all stand in memory.
    for part in changes.chunks(WRITES_AT_ONCE) {
        // A change may take two writes; it is done if both are.
        let (mut writes, mut counts) = (Vec::with_capacity(part.len()), Vec::with_capacity(part.len()));
        for change in part {
            let start = writes.len();
            match plain(change) {
                Change::Put { value, instead_of, .. } => put(value, instead_of, &mut writes),
                Change::Drop { value, .. } => writes.push(WriteRequest::DeleteRoute(value)),
            }
            counts.push(writes.len() - start);
        }
        let outcomes = kernel.lock().apply(&writes);
        let mut answers = resolve(kernel, family, &writes, outcomes, &mut places, &is_ours).into_iter();
        results
            .extend(counts.into_iter().map(|count| answers.by_ref().take(count).collect::<Result<(), _>>()));
    }
    results
}

fn put(new: Route, old: Option<Route>, writes: &mut Vec<WriteRequest>) {
    match old {
        Some(old) if place(&old) == place(&new) => writes.push(WriteRequest::PutRoute(new)),
        // Where none of ours is there, a route to the same subnet is somebody else's and stays.
        None => writes.push(WriteRequest::AddRoute(new)),
        // To the kernel it is another route: the new one is put beside the old one, which goes afterwards.
        Some(old) => writes.extend([WriteRequest::AddRoute(new), WriteRequest::DeleteRoute(old)]),
    }
}

/// The routes of a table by what makes them stand in others' way.
type Places = BTreeMap<(IpNet, Option<u32>, u8), Route>;

/// What makes two routes stand in each other's way.
fn place(route: &Route) -> (IpNet, Option<u32>, u8) {
    (route.destination, route.metric, route.tos)
}

/// Looks, once, what has the place of routes that could not be added: ours is replaced, somebody else's is named.
fn resolve(
    kernel: &Kernel,
    family: IpFamily,
    writes: &[WriteRequest],
    outcomes: Vec<Result<(), Error>>,
    places: &mut Option<Places>,
    is_ours: &impl Fn(&Route) -> bool,
) -> Vec<Result<(), BoxError>> {
    let refused = |write: &WriteRequest, outcome: &Result<(), Error>| {
        outcome.is_err() && matches!(write, WriteRequest::AddRoute(_))
    };
    if places.is_none() && writes.iter().zip(&outcomes).any(|(write, outcome)| refused(write, outcome)) {
        // If they cannot be read, the kernel's answer has to do.
        let present = read_main(kernel, family, RouteFilter::default()).unwrap_or_default();
        *places = Some(present.into_iter().map(|route| (place(&route), route)).collect());
    }
    let answer = |(write, outcome): (&WriteRequest, Result<(), Error>)| {
        let WriteRequest::AddRoute(new) = write else { return outcome.map_err(boxed) };
        match places.as_ref().and_then(|places| places.get(&place(new))) {
            Some(there) if outcome.is_err() && is_ours(there) => replace(kernel, new, there),
            Some(there) if outcome.is_err() => Err(InTheWay(there.clone()).into()),
            Some(_) | None => outcome.map_err(boxed),
        }
    };
    writes.iter().zip(outcomes).map(answer).collect()
}

/// Puts a route in the place of another one of ours, perhaps on another device.
fn replace(kernel: &Kernel, new: &Route, old: &Route) -> Result<(), BoxError> {
    let mut writes = vec![WriteRequest::PutRoute(new.clone())];
    if new.destination.addr().is_ipv6() && new.index != old.index {
        // As long as the old one is there, the new one's gateway seems to be on the old one's device, and the kernel
        // refuses it (`ip6_route_check_nh_onlink` in `net/ipv6/route.c`). In one batch the gap is microseconds.
        writes.insert(0, WriteRequest::DeleteRoute(old.clone()));
    }
    kernel.apply(&writes).into_iter().collect()
}

/// A route cannot be put because somebody else's is there.
#[derive(Debug, thiserror::Error)]
#[error("somebody else's route is in its place: {0}")]
pub struct InTheWay(pub Route);

/// Somebody else's routes into the overlay, as last read: for each destination the one that counts.
///
/// The kernel takes the route with the smallest metric, so one beside ours may count instead. The kernel refuses only
/// what has the same metric.
#[derive(Debug, Default)]
pub struct Foreign(BTreeMap<IpNet, Route>);

impl Foreign {
    /// Takes in a route that is not the caller's, if it is nobody's of this network.
    pub fn add(&mut self, route: Route, mark: &Mark) {
        if route.tos != 0 || mark.is_on(&route) || !mark.network.contains(&route.destination) {
            return;
        }
        let counts = self.0.entry(route.destination).or_insert_with(|| route.clone());
        if route.metric < counts.metric {
            *counts = route;
        }
    }

    /// Finds the route to a destination that counts before one with this metric.
    pub fn before(&self, destination: &IpNet, metric: u32) -> Option<&Route> {
        self.0.get(destination).filter(|route| route.metric.unwrap_or(0) < metric)
    }
}
