//! The check of routes to the public addresses of peers: whether they lead out of this host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flannel_netlink::{Error, IpFamily, Netlink, Notification, Route, RouteFilter, RouteKind};
use ipnet::IpNet;

/// Finds peers whose packets can't leave this host, because their public address is its own or a route rejects it.
///
/// The kernel's few routes of these types are cached until a notification may change the result, so a peer costs no
/// request unless such a route covers its address.
#[derive(Debug)]
pub struct PathCheck {
    family: IpFamily,
    /// The routes that deliver to this host or reject packets. Absent if they must be read.
    routes: Option<SuspectRoutes>,
    /// The addresses that were checked, and whether each has a problem.
    checked: BTreeMap<IpAddr, bool>,
}

/// Routes that lead nowhere else.
#[derive(Debug, Default)]
struct SuspectRoutes {
    /// The addresses of this host, possibly thousands.
    own: BTreeSet<IpAddr>,
    /// Shorter prefixes that are delivered to this host.
    local: Vec<IpNet>,
    /// Prefixes whose packets are rejected, with the name of the type.
    rejecting: Vec<(IpNet, &'static str)>,
}

/// The types of routes that reject packets, and their names.
const REJECTING: [(RouteKind, &str); 3] = [
    (RouteKind::Blackhole, "blackhole"),
    (RouteKind::Unreachable, "unreachable"),
    (RouteKind::Prohibit, "prohibit"),
];

/// `RT_TABLE_LOCAL`.
const LOCAL_TABLE: u32 = 255;

impl PathCheck {
    /// Creates the check for one family.
    #[must_use]
    pub fn new(family: IpFamily) -> Self {
        Self { family, routes: None, checked: BTreeMap::new() }
    }

    /// Makes the next check read the routes again.
    pub fn mark_stale(&mut self) {
        self.routes = None;
        self.checked.clear();
    }

    /// Returns why packets to the public address of the peer with this subnet don't leave this host. A route that can't be
    /// read isn't a problem.
    pub fn problem(&mut self, netlink: &mut Netlink, subnet: IpNet, public: IpAddr) -> Option<String> {
        if IpFamily::of(public) != self.family {
            return None;
        }
        if self.routes.is_none() {
            self.routes = SuspectRoutes::read(netlink, self.family).ok();
        }
        let problem = self.routes.as_ref().and_then(|routes| routes.problem(netlink, subnet, public));
        self.checked.insert(public, problem.is_some());
        problem
    }

    /// Returns what a notification changed, if it may change a result.
    pub fn handle(&mut self, notification: &Notification) -> Option<String> {
        let change = if let Notification::Route { route, .. } = notification
            && self.is_affected_by(route)
        {
            format!("{route} changed")
        } else if let Notification::Address { address, .. } = notification
            && self.checked.contains_key(&address.net.addr())
        {
            format!("{address} changed")
        } else {
            return None;
        };
        self.mark_stale();
        Some(change)
    }

    fn is_affected_by(&self, route: &Route) -> bool {
        let is_suspect =
            route.kind == RouteKind::Local || REJECTING.iter().any(|(kind, _)| *kind == route.kind);
        let mut checked = self.checked.iter();
        // Any route may replace the one that causes a problem.
        checked.any(|(address, problem)| (is_suspect || *problem) && route.destination.contains(address))
    }
}

impl SuspectRoutes {
    fn read(netlink: &mut Netlink, family: IpFamily) -> Result<Self, Error> {
        let mut suspects = Self::default();
        for table in [Route::MAIN_TABLE, LOCAL_TABLE] {
            let kind = Some(RouteKind::Local);
            let filter =
                RouteFilter { family: Some(family), table: Some(table), kind, ..RouteFilter::default() };
            for route in netlink.routes(&filter)? {
                let net = route.destination;
                if net.prefix_len() == net.max_prefix_len() {
                    suspects.own.insert(net.addr());
                } else {
                    suspects.local.push(net);
                }
            }
        }
        for (kind, name) in REJECTING {
            let filter = RouteFilter { family: Some(family), kind: Some(kind), ..RouteFilter::default() };
            suspects
                .rejecting
                .extend(netlink.routes(&filter)?.into_iter().map(|route| (route.destination, name)));
        }
        Ok(suspects)
    }

    fn problem(&self, netlink: &mut Netlink, subnet: IpNet, public: IpAddr) -> Option<String> {
        let is_own = self.own.contains(&public) || self.local.iter().any(|net| net.contains(&public));
        let covering = self.rejecting.iter().filter(|(net, _)| net.contains(&public));
        let rejecting = covering.max_by_key(|(net, _)| net.prefix_len());
        if !is_own && rejecting.is_none() {
            return None;
        }
        // A longer prefix may lead to the peer.
        match (netlink.route_to(public), rejecting) {
            (Ok(Route { kind: RouteKind::Local, .. }), _) => {
                Some(format!("the public address of {subnet} is this host's own ({public})"))
            }
            (Err(_), Some((net, kind))) => {
                Some(format!("the {kind} route {net} rejects packets to its public address {public}"))
            }
            (Ok(_), _) | (Err(_), None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use flannel_netlink::Namespace;
    use flannel_testing::harness::ip;

    use super::*;

    #[test]
    fn a_route_that_does_not_leave_the_host_is_a_problem() {
        let host = Namespace::create().unwrap();
        let mut netlink = Netlink::open_in(&host).unwrap();
        for step in [
            "link set lo up",
            "link add eth0 up type bridge",
            "address add 192.168.64.1/24 dev eth0",
            "address add 192.168.64.7/32 dev lo",
            "route add local 192.0.2.0/24 dev lo",
            "route add blackhole 10.0.0.0/8",
            "route add prohibit 10.1.0.0/16",
            "route add unreachable 198.51.100.0/24",
            "route add 10.2.0.0/16 dev eth0",
        ] {
            ip(&host, step);
        }
        let mut check = PathCheck::new(IpFamily::V4);
        let mut problem = |public: &str| {
            let subnet = "10.5.2.0/24".parse().unwrap();
            check.problem(&mut netlink, subnet, public.parse().unwrap())
        };
        for own in ["192.168.64.1", "192.168.64.7", "192.0.2.9"] {
            let reason = format!("the public address of 10.5.2.0/24 is this host's own ({own})");
            assert_eq!(problem(own), Some(reason));
        }
        for (public, route) in [
            ("10.9.9.9", "blackhole route 10.0.0.0/8"),
            ("10.1.0.9", "prohibit route 10.1.0.0/16"),
            ("198.51.100.9", "unreachable route 198.51.100.0/24"),
        ] {
            let reason = format!("the {route} rejects packets to its public address {public}");
            assert_eq!(problem(public), Some(reason));
        }
        for fine in ["192.168.64.2", "10.2.0.9", "203.0.113.9", "fd00::1"] {
            assert_eq!(problem(fine), None, "{fine}");
        }
    }
}
