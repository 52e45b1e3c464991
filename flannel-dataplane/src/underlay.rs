//! The underlay: which peers are on the link of the external interface.
//!
//! The kernel answers for each address, as `ip route get` asks it. The answers are cached until a notification may change them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use flannel_core::ExternalInterface;
use flannel_netlink::{IpFamily, Notification, Route, RouteKind};

use crate::netlink::SharedNetlink;

/// The external interface in one family.
#[derive(Debug)]
pub(crate) struct Underlay {
    netlink: SharedNetlink,
    name: String,
    family: IpFamily,
    index: u32,
    /// Whether the interface was up according to the last notification.
    up: bool,
    /// The kernel's answers: whether an address is on the link.
    on_link: BTreeMap<IpAddr, bool>,
}

impl Underlay {
    pub(crate) fn new(netlink: SharedNetlink, external: &ExternalInterface, family: IpFamily) -> Self {
        let (name, index) = (external.name.clone(), external.index);
        Self { netlink, name, family, index, up: true, on_link: BTreeMap::new() }
    }

    /// Replaces the interface.
    pub(crate) fn update_interface(&mut self, name: &str, index: u32) {
        name.clone_into(&mut self.name);
        self.index = index;
        self.on_link.clear();
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Drops all cached answers.
    pub(crate) fn mark_stale(&mut self) {
        self.on_link.clear();
        // An interface that is gone or cannot be read has no addresses on its link either.
        if let Ok(Some(link)) = self.netlink.lock().link(&self.name) {
            (self.index, self.up) = (link.index, link.up);
        }
    }

    /// Returns the index of the interface if an address is on its link.
    pub(crate) fn link_to(&mut self, address: IpAddr) -> Option<u32> {
        let Self { netlink, index, on_link, .. } = self;
        let is_on_link = *on_link.entry(address).or_insert_with(|| {
            let answer = netlink.lock().route_to(address);
            answer.is_ok_and(|route| is_on_link(&route, *index))
        });
        is_on_link.then_some(*index)
    }

    /// Returns what a notification changed, if it may change an answer.
    pub(crate) fn handle(&mut self, notification: &Notification) -> Option<String> {
        let change = match notification {
            Notification::Overrun => "notifications were lost".to_owned(),
            Notification::Link { link, removed } if link.name == self.name || link.index == self.index => {
                let state = (link.index, link.up && !removed);
                if state == (self.index, self.up) {
                    return None;
                }
                self.up = state.1;
                format!("the interface {} changed", self.name)
            }
            Notification::Address { address, .. }
                if address.index == self.index && IpFamily::of(address.net.addr()) == self.family =>
            {
                format!("{address} changed")
            }
            Notification::Route { route, .. } if self.affects_answers(route) => format!("{route} changed"),
            Notification::Link { .. }
            | Notification::Address { .. }
            | Notification::Route { .. }
            | Notification::Forwarding { .. }
            | Notification::Neighbour { .. }
            | Notification::Fdb { .. } => return None,
            other => format!("{other:?}"),
        };
        Some(change)
    }

    /// Returns true if a route covers an address that was asked for.
    fn affects_answers(&self, route: &Route) -> bool {
        route.table == Route::MAIN_TABLE
            && IpFamily::of(route.destination.addr()) == self.family
            && self.on_link.keys().any(|address| route.destination.contains(address))
    }
}

/// Returns true if the kernel reaches an address on the link of an interface.
fn is_on_link(answer: &Route, index: u32) -> bool {
    answer.kind == RouteKind::Unicast && answer.gateway.is_none() && answer.index == Some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_on_the_link_if_packets_leave_by_it_without_a_gateway() {
        let to = "192.168.64.2/32".parse().unwrap();
        let on_link = Route::attached(to, 2);
        assert!(is_on_link(&on_link, 2));
        assert!(!is_on_link(&on_link, 3), "another interface");
        assert!(!is_on_link(&Route { kind: RouteKind::Local, ..on_link.clone() }, 2), "the host itself");
        let gateway = Some("192.168.64.254".parse().unwrap());
        assert!(!is_on_link(&Route { gateway, ..on_link }, 2), "behind a router");
    }
}
