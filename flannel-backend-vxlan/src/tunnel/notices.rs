//! What the kernel's notices mean for a tunnel.
//!
//! The kernel removes routes without a word when a device goes down or loses its last address, so notices about
//! devices and addresses put everything in doubt; one about an object in a table only puts that table in doubt.

use flannel_core::reconcile::{Reconciler, Table};
use flannel_netlink::{Address, FdbEntry, Link, Neighbour, Notification, Route};

use super::Tunnel;
use flannel_dataplane::NoticeHandler;
use flannel_dataplane::{OverlayRoute, Routes};

impl NoticeHandler for Tunnel {
    fn distrust(&mut self) {
        self.device_in_doubt = true;
        self.decide_again = true;
        self.distrust_tables();
        self.direct.distrust();
        self.forwarding.distrust();
    }

    fn notice(&mut self, notice: &Notification) -> Option<String> {
        let underlay = self.direct.notice_underlay(notice);
        if underlay.is_some() {
            self.decide_again = true;
        }
        let tunnel = match notice {
            Notification::Overrun => Some("notices were lost".to_owned()).inspect(|_| self.distrust()),
            Notification::Link { link, removed } => {
                self.notice_link(link, *removed).inspect(|_| self.device_changed())
            }
            Notification::Address { address, removed } => {
                self.notice_address(address, *removed).inspect(|_| self.device_changed())
            }
            Notification::Route { route, removed } => {
                let direct = self.direct.notice_route(route, *removed);
                self.notice_route(route, *removed).or(direct)
            }
            Notification::Neighbour { neighbour, removed } => self.notice_neighbour(neighbour, *removed),
            Notification::Fdb { entry, removed } => self.notice_fdb(entry, *removed),
            Notification::Forwarding { .. } => self.forwarding.notice(notice, Some(self.device.index)),
            other => Some(format!("{other:?}")).inspect(|_| self.distrust()),
        };
        tunnel.or(underlay)
    }
}

impl Tunnel {
    /// What could not be put on the device as it was may now.
    fn device_changed(&mut self) {
        self.distrust();
        self.retry_tables();
    }

    fn notice_link(&self, link: &Link, removed: bool) -> Option<String> {
        let name = &self.spec.name;
        if link.index == self.device.index {
            let what = if removed { "removed" } else { "changed" };
            // That its offloads were changed shows in no field.
            let differs = removed || !self.spec.is_met_by(link) || self.spec.checksums_off;
            differs.then(|| format!("device {name} was {what}"))
        } else if removed {
            None
        } else if link.name == *name {
            Some(format!("another device {name} was made"))
        } else {
            let is_new = link.name == self.spec.below.lower_name && link.index != self.spec.below.lower;
            is_new.then(|| format!("the interface {} was made", link.name))
        }
    }

    fn notice_address(&self, address: &Address, removed: bool) -> Option<String> {
        let is_ours = || self.spec.address.is_some_and(|ours| ours.net == address.net);
        let differs = if removed { is_ours() } else { self.spec.is_leftover(address) };
        (address.index == self.device.index && differs)
            .then(|| format!("{address} was {}", if removed { "removed" } else { "added" }))
    }

    fn notice_route(&mut self, route: &Route, removed: bool) -> Option<String> {
        let told = route.table == Route::MAIN_TABLE && route.protocol != Route::PROTOCOL_KERNEL;
        let here = route.index == Some(self.device.index);
        let wanted = self.routes.tracker.desired(&route.destination);
        let found = OverlayRoute::from(route);
        let differs = match (here, removed) {
            (true, true) => wanted.is_some_and(|wanted| Routes::satisfies(wanted, &found)),
            // One that would do may be a second one beside it, with another metric.
            (true, false) => self.routes.tracker.actual(&route.destination) != Some(&found),
            (false, _) => wanted.is_some(),
        };
        if !(told && differs) {
            return None;
        }
        // It may have been in the way of ours.
        self.routes.tracker.retry(&route.destination);
        Some(in_doubt(&mut self.routes, format!("{route} changed")))
    }

    fn notice_neighbour(&mut self, neighbour: &Neighbour, removed: bool) -> Option<String> {
        let wanted = self.neighbours.tracker.desired(&neighbour.address);
        let found = neighbour.mac.filter(|_| neighbour.is_permanent() && !removed);
        let differs = neighbour.index == self.device.index && wanted != found.as_ref();
        differs.then(|| in_doubt(&mut self.neighbours, format!("{neighbour} changed")))
    }

    fn notice_fdb(&mut self, entry: &FdbEntry, removed: bool) -> Option<String> {
        let wanted = self.fdb.tracker.desired(&entry.mac);
        let told = entry.destination.filter(|_| entry.is_permanent());
        // Of several destinations of one address, only the one that is wanted is missed.
        let as_wanted = wanted == told.as_ref();
        let differs = if removed { wanted.is_some() && as_wanted } else { !as_wanted };
        let differs = entry.index == self.device.index && entry.bridge.is_none() && differs;
        differs.then(|| in_doubt(&mut self.fdb, format!("{entry} changed")))
    }
}

fn in_doubt<T: Table>(table: &mut Reconciler<T>, what: String) -> String {
    table.tracker.mark_stale();
    what
}
