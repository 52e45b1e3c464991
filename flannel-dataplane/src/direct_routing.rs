//! Direct routing of one family: which peers are on the link, and the routes to them.

use std::net::IpAddr;

use flannel_core::reconcile::{Reconciler, Table};
use flannel_core::{BackendError, ExternalInterface};
use flannel_netlink::{IpFamily, Notification, Route};
use ipnet::IpNet;

use crate::direct_routes::{DirectRouteTable, NextHop};
use crate::netlink::SharedNetlink;
use crate::routes::RouteOwner;
use crate::underlay::Underlay;

/// The direct routes of one family.
#[derive(Debug)]
pub struct DirectRouting {
    /// Finds the next hop to a peer.
    pub next_hops: NextHopFinder,
    /// The routes.
    pub routes: Reconciler<DirectRouteTable>,
}

/// Finds the next hop to peers on the link of the external interface.
#[derive(Debug)]
pub struct NextHopFinder {
    underlay: Underlay,
    owner: RouteOwner,
}

impl NextHopFinder {
    /// Returns the next hop to a peer on the link. A subnet outside the network has none, because the network would not
    /// own its route.
    pub fn find(&mut self, subnet: IpNet, public: IpAddr) -> Option<NextHop> {
        if !self.owner.network.contains(&subnet) {
            return None;
        }
        let index = self.underlay.link_to(public)?;
        Some(NextHop { gateway: public, index, protocol: self.owner.protocol })
    }

    /// Returns the name of the external interface.
    #[must_use]
    pub fn interface(&self) -> &str {
        self.underlay.name()
    }
}

impl DirectRouting {
    /// Describes direct routing over an external interface.
    #[must_use]
    pub fn new(
        netlink: SharedNetlink,
        external: &ExternalInterface,
        family: IpFamily,
        owner: RouteOwner,
    ) -> Self {
        let underlay = Underlay::new(netlink.clone(), external, family);
        let table = DirectRouteTable { netlink, family, owner, tunnel: None };
        Self { next_hops: NextHopFinder { underlay, owner }, routes: Reconciler::new(table) }
    }

    /// Replaces the external interface.
    pub fn update_interface(&mut self, name: &str, index: u32) {
        self.next_hops.underlay.update_interface(name, index);
        self.mark_stale();
    }

    /// Returns the rule by which the network recognises its routes.
    #[must_use]
    pub fn owner(&self) -> RouteOwner {
        self.next_hops.owner
    }

    /// Makes the next pass read everything again.
    pub fn mark_stale(&mut self) {
        self.next_hops.underlay.mark_stale();
        self.routes.tracker.mark_stale();
    }

    /// Handles a notification about the underlay and returns what changed. The kernel deletes routes without a notification when an
    /// interface goes down or loses its last address, so the routes become stale too.
    pub fn handle_underlay(&mut self, notification: &Notification) -> Option<String> {
        let change = self.next_hops.underlay.handle(notification)?;
        self.mark_stale();
        // The changed interface may accept a route that it refused before.
        self.routes.tracker.retry_all();
        Some(change)
    }

    /// Handles a notification about a route and returns what changed.
    pub fn handle_route(&mut self, route: &Route, removed: bool) -> Option<String> {
        let tracker = &mut self.routes.tracker;
        let desired = tracker.desired(&route.destination);
        let differs = match (self.next_hops.owner.owns(route), removed) {
            (true, true) => desired.is_some_and(|desired| DirectRouteTable::satisfies(desired, route)),
            // A route that would do may be a second one, with another metric.
            (true, false) => tracker.actual(&route.destination) != Some(route),
            (false, _) => desired.is_some(),
        };
        if route.table != Route::MAIN_TABLE || !differs {
            return None;
        }
        // The changed route may have blocked ours.
        tracker.retry(&route.destination);
        tracker.mark_stale();
        Some(format!("{route} changed"))
    }

    /// Deletes all direct routes of the network.
    ///
    /// # Errors
    ///
    /// [`BackendError::Kernel`] if a route cannot be deleted.
    pub fn remove(&mut self) -> Result<(), BackendError> {
        self.routes.table().remove_all().map_err(|source| BackendError::Kernel {
            object: "cannot delete the direct routes".to_owned(),
            source,
        })
    }
}
