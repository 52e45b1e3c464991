//! Peers that are reached without a tunnel, in one family: who they are, and their routes.

use std::net::IpAddr;

use flannel_core::reconcile::{Reconciler, Table};
use flannel_core::{BackendError, ExternalInterface};
use flannel_netlink::{IpFamily, Notification, Route};
use ipnet::IpNet;

use crate::direct_routes::{DirectRoutes, Hop};
use crate::routes::Mark;
use crate::tables::Kernel;
use crate::underlay::Underlay;

/// The direct routes of one family.
#[derive(Debug)]
pub struct Direct {
    pub underlay: Underlay,
    pub routes: Reconciler<DirectRoutes>,
    mark: Mark,
}

impl Direct {
    pub fn new(kernel: Kernel, external: &ExternalInterface, family: IpFamily, mark: Mark) -> Self {
        let underlay = Underlay::new(kernel.clone(), external, family);
        let table = DirectRoutes { kernel, family, mark, tunnel: None };
        Self { underlay, routes: Reconciler::new(table), mark }
    }

    /// Finds the way to a peer if it is on the link. A subnet outside the network has none, since its route would not
    /// be recognised as ours.
    pub fn hop(underlay: &mut Underlay, mark: Mark, subnet: IpNet, public: IpAddr) -> Option<Hop> {
        if !mark.network.contains(&subnet) {
            return None;
        }
        let index = underlay.link_to(public)?;
        Some(Hop { gateway: public, index, protocol: mark.protocol })
    }

    /// Takes in which interface is the external one from now on.
    pub fn update_interface(&mut self, name: &str, index: u32) {
        self.underlay.update_interface(name, index);
        self.distrust();
    }

    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Says that anything may have changed.
    pub fn distrust(&mut self) {
        self.underlay.distrust();
        self.routes.tracker.mark_stale();
    }

    /// Takes in what the kernel tells of the network below. The kernel removes routes without a word when an
    /// interface goes down or loses its last address, so the routes are in doubt as well.
    pub fn notice_underlay(&mut self, notice: &Notification) -> Option<String> {
        let what = self.underlay.notice(notice)?;
        self.distrust();
        // What could not be put on the interface as it was may now.
        self.routes.tracker.retry_all();
        Some(what)
    }

    /// Takes in that a route was made or removed.
    pub fn notice_route(&mut self, route: &Route, removed: bool) -> Option<String> {
        let wanted = self.routes.tracker.desired(&route.destination);
        let differs = match (self.mark.is_on(route), removed) {
            (true, true) => wanted.is_some_and(|wanted| DirectRoutes::satisfies(wanted, route)),
            // One that would do may be a second one beside it, with another metric.
            (true, false) => self.routes.tracker.actual(&route.destination) != Some(route),
            (false, _) => wanted.is_some(),
        };
        if route.table != Route::MAIN_TABLE || !differs {
            return None;
        }
        // It may have been in the way of ours.
        self.routes.tracker.retry(&route.destination);
        self.routes.tracker.mark_stale();
        Some(format!("{route} changed"))
    }

    /// Removes all direct routes.
    pub fn remove(&mut self) -> Result<(), BackendError> {
        self.routes.table().remove().map_err(|source| BackendError::Kernel {
            object: "cannot remove the direct routes".to_owned(),
            source,
        })
    }
}
