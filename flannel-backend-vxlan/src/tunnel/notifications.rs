//! Kernel notifications about a tunnel.
//!
//! The kernel deletes routes without a notification when a device goes down or loses its last address. So a notification about a link
//! or an address makes everything stale, and a notification about an object only its table.

use flannel_core::reconcile::{Reconciler, Table};
use flannel_dataplane::{NotificationHandler, OverlayRoute, OverlayRouteTable};
use flannel_netlink::{Address, FdbEntry, Link, Neighbour, Notification, Route};

use super::Tunnel;

impl NotificationHandler for Tunnel {
    fn mark_stale(&mut self) {
        self.is_device_stale = true;
        self.are_paths_stale = true;
        self.mark_tables_stale();
        self.direct.mark_stale();
        self.forwarding.mark_stale();
    }

    fn handle(&mut self, notification: &Notification) -> Option<String> {
        let path = self.paths.handle(notification).inspect(|_| self.direct.mark_stale());
        let underlay = self.direct.handle_underlay(notification).or(path);
        if underlay.is_some() {
            self.are_paths_stale = true;
        }
        let tunnel = match notification {
            Notification::Overrun => {
                Some("notifications were lost".to_owned()).inspect(|_| self.mark_stale())
            }
            Notification::Link { link, removed } => {
                self.link_change(link, *removed).inspect(|_| self.mark_device_changed())
            }
            Notification::Address { address, removed } => {
                self.address_change(address, *removed).inspect(|_| self.mark_device_changed())
            }
            Notification::Route { route, removed } => {
                let direct = self.direct.handle_route(route, *removed);
                self.handle_route(route, *removed).or(direct)
            }
            Notification::Neighbour { neighbour, removed } => self.handle_neighbour(neighbour, *removed),
            Notification::Fdb { entry, removed } => self.handle_fdb(entry, *removed),
            Notification::Forwarding { .. } => self.forwarding.handle(notification, Some(self.device.index)),
            other => Some(format!("{other:?}")).inspect(|_| self.mark_stale()),
        };
        tunnel.or(underlay)
    }
}

impl Tunnel {
    /// The changed device may accept objects that it refused before.
    fn mark_device_changed(&mut self) {
        self.mark_stale();
        self.retry_tables();
    }

    fn link_change(&self, link: &Link, removed: bool) -> Option<String> {
        let name = &self.spec.name;
        if link.index == self.device.index {
            let change = if removed { "removed" } else { "changed" };
            // No field of the notification shows a change of offloads.
            let differs = removed || !self.spec.is_met_by(link) || self.spec.disable_checksums;
            differs.then(|| format!("device {name} was {change}"))
        } else if removed {
            None
        } else if link.name == *name {
            Some(format!("another device {name} was created"))
        } else {
            let is_new = link.name == self.spec.underlay.interface && link.index != self.spec.underlay.index;
            is_new.then(|| format!("the interface {} was created", link.name))
        }
    }

    fn address_change(&self, address: &Address, removed: bool) -> Option<String> {
        let is_ours = || self.spec.address.is_some_and(|ours| ours.net == address.net);
        let differs = if removed { is_ours() } else { self.spec.is_leftover(address) };
        (address.index == self.device.index && differs)
            .then(|| format!("{address} was {}", if removed { "removed" } else { "added" }))
    }

    fn handle_route(&mut self, route: &Route, removed: bool) -> Option<String> {
        let is_relevant = route.table == Route::MAIN_TABLE && route.protocol != Route::PROTOCOL_KERNEL;
        let is_on_device = route.index == Some(self.device.index);
        let tracker = &mut self.routes.tracker;
        let desired = tracker.desired(&route.destination);
        let actual = OverlayRoute::from(route);
        let differs = match (is_on_device, removed) {
            (true, true) => desired.is_some_and(|desired| OverlayRouteTable::satisfies(desired, &actual)),
            // A route that would do may be a second one, with another metric.
            (true, false) => tracker.actual(&route.destination) != Some(&actual),
            (false, _) => desired.is_some(),
        };
        if !(is_relevant && differs) {
            return None;
        }
        // The changed route may have blocked ours.
        tracker.retry(&route.destination);
        Some(mark_stale(&mut self.routes, format!("{route} changed")))
    }

    fn handle_neighbour(&mut self, neighbour: &Neighbour, removed: bool) -> Option<String> {
        let desired = self.neighbours.tracker.desired(&neighbour.address);
        let actual = neighbour.mac.filter(|_| neighbour.is_permanent() && !removed);
        let differs = neighbour.index == self.device.index && desired != actual.as_ref();
        differs.then(|| mark_stale(&mut self.neighbours, format!("{neighbour} changed")))
    }

    fn handle_fdb(&mut self, entry: &FdbEntry, removed: bool) -> Option<String> {
        let desired = self.fdb.tracker.desired(&entry.mac);
        let destination = entry.destination.filter(|_| entry.is_permanent());
        // A MAC address may have several destinations; only the removal of the desired one is drift.
        let is_desired = desired == destination.as_ref();
        let differs = if removed { desired.is_some() && is_desired } else { !is_desired };
        let differs = entry.index == self.device.index && entry.bridge.is_none() && differs;
        differs.then(|| mark_stale(&mut self.fdb, format!("{entry} changed")))
    }
}

fn mark_stale<T: Table>(table: &mut Reconciler<T>, change: String) -> String {
    table.tracker.mark_stale();
    change
}
