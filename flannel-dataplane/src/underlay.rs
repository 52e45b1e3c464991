//! The network below: which peers are on the external interface's own link.
//!
//! The kernel is asked as `ip route get` asks it, once for each address; what it answered holds until something is
//! told that may change the answer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use flannel_core::ExternalInterface;
use flannel_netlink::{IpFamily, Notification, Route, RouteKind};

use crate::tables::Kernel;

/// The external interface, for one family.
#[derive(Debug)]
pub struct Underlay {
    kernel: Kernel,
    name: String,
    family: IpFamily,
    index: u32,
    /// Whether it was up when it was last told of.
    up: bool,
    /// What was asked: whether an address is on the link.
    on_link: BTreeMap<IpAddr, bool>,
}

impl Underlay {
    pub fn new(kernel: Kernel, external: &ExternalInterface, family: IpFamily) -> Self {
        let (name, index) = (external.name.clone(), external.index);
        Self { kernel, name, family, index, up: true, on_link: BTreeMap::new() }
    }

    /// Asks about another interface from now on.
    pub fn update_interface(&mut self, name: &str, index: u32) {
        name.clone_into(&mut self.name);
        self.index = index;
        self.on_link.clear();
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks everything anew from now on.
    pub fn distrust(&mut self) {
        self.on_link.clear();
        // One that is not there, or cannot be read, has no addresses on its link either.
        if let Ok(Some(link)) = self.kernel.lock().link(&self.name) {
            (self.index, self.up) = (link.index, link.up);
        }
    }

    /// Returns the index of the interface if an address is on its link.
    pub fn link_to(&mut self, address: IpAddr) -> Option<u32> {
        let Self { kernel, index, on_link, .. } = self;
        let is_on_link = *on_link.entry(address).or_insert_with(|| {
            let answer = kernel.lock().route_to(address);
            answer.is_ok_and(|route| is_on_link(&route, *index))
        });
        is_on_link.then_some(*index)
    }

    /// Takes in what the kernel tells, and says what may have changed the answers.
    pub fn notice(&mut self, notice: &Notification) -> Option<String> {
        let what = match notice {
            Notification::Overrun => "notices were lost".to_owned(),
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
            Notification::Route { route, .. } if self.decides_with(route) => format!("{route} changed"),
            Notification::Link { .. }
            | Notification::Address { .. }
            | Notification::Route { .. }
            | Notification::Forwarding { .. }
            | Notification::Neighbour { .. }
            | Notification::Fdb { .. } => return None,
            other => format!("{other:?}"),
        };
        Some(what)
    }

    /// Tells whether a route leads to an address that was asked for.
    fn decides_with(&self, route: &Route) -> bool {
        route.table == Route::MAIN_TABLE
            && IpFamily::of(route.destination.addr()) == self.family
            && self.on_link.keys().any(|address| route.destination.contains(address))
    }
}

/// Tells whether the kernel's answer for an address says that it is on the link of an interface.
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
