//! The tunnel device: made what it should be, field by field.
//!
//! What cannot be changed on a device (its kind, VNI, port, local address, lower link and the like) makes it another
//! device: it is replaced, and keeps its address so that the peers need not learn a new one. Everything else is set
//! in place, so that routes and neighbours live on.

use std::net::IpAddr;

use flannel_core::BackendError;
use flannel_netlink::{
    Address, Error, Family, Link, LinkChange, Mac, Namespace, Netlink, NewLink, NewLinkKind, NewVxlan, Vxlan,
};
use ipnet::IpNet;

/// What a tunnel device should be.
#[derive(Clone, Debug)]
pub(crate) struct DeviceSpec {
    pub(crate) name: String,
    pub(crate) family: Family,
    pub(crate) vni: u32,
    pub(crate) port: u16,
    pub(crate) gbp: bool,
    pub(crate) learning: bool,
    /// The external interface.
    pub(crate) lower: u32,
    /// Where the tunnel ends on this host.
    pub(crate) local: IpAddr,
    pub(crate) mtu: u32,
    /// The device's address; before it is known, that of an existing device is kept.
    pub(crate) mac: Option<Mac>,
    /// The address to make a new device with, while `mac` is not known.
    pub(crate) preferred_mac: Mac,
    /// The host's own address on the overlay, once there is a lease.
    pub(crate) address: Option<OverlayAddress>,
}

/// The host's own address on the overlay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OverlayAddress {
    /// The first address of the host's subnet, as a single one.
    pub(crate) net: IpNet,
    /// The whole overlay: other addresses in it are leftovers of an earlier lease.
    pub(crate) network: IpNet,
}

/// A tunnel device as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) index: u32,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
}

/// What was done to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ensured {
    pub(crate) device: Device,
    /// How many things were not as they should be.
    pub(crate) changes: usize,
}

impl DeviceSpec {
    /// Makes the device so, or says why it cannot be.
    pub(crate) fn ensure(
        &self,
        netlink: &mut Netlink,
        namespace: &Namespace,
    ) -> Result<Ensured, BackendError> {
        let (link, mut changes) = self.find_or_create(netlink)?;
        if changes > 0 {
            self.refuse_router_advertisements(namespace);
        }
        let mac = self.mac.or(link.mac).unwrap_or(self.preferred_mac);
        changes += self.set_fields(netlink, &link, mac)?;
        if let Some(address) = self.address {
            changes += self.set_address(netlink, link.index, address)?;
        }
        // Last, because a route can only be put on a device that is up.
        if self.address.is_some() && !link.up {
            let up = LinkChange { up: Some(true), ..LinkChange::default() };
            netlink.change_link(link.index, &up).map_err(|error| self.failed("set up", error))?;
            changes += 1;
        }
        let device = Device { index: link.index, mac, mtu: self.mtu };
        Ok(Ensured { device, changes })
    }

    fn find_or_create(&self, netlink: &mut Netlink) -> Result<(Link, usize), BackendError> {
        let found = netlink.link(&self.name).map_err(|error| self.failed("look up", error))?;
        let mut mac = self.mac.unwrap_or(self.preferred_mac);
        if let Some(link) = found {
            let Some(difference) = self.difference(&link) else {
                return Ok((link, 0));
            };
            tracing::warn!(device = self.name, %difference, "replacing the device");
            if self.mac.is_none() && link.vxlan().is_some() {
                mac = link.mac.unwrap_or(mac);
            }
            netlink.delete_link(link.index).map_err(|error| self.failed("delete", error))?;
        }
        self.create(netlink, mac)?;
        let created = netlink.link(&self.name).map_err(|error| self.failed("look up", error))?;
        let link = created.ok_or_else(|| self.host("it vanished right after it was created".to_owned()))?;
        Ok((link, 1))
    }

    /// Tells what keeps an existing device from being used.
    fn difference(&self, link: &Link) -> Option<String> {
        let Some(vxlan) = link.vxlan() else {
            return Some("it is no VXLAN device".to_owned());
        };
        let wanted = Vxlan {
            vni: self.vni,
            port: self.port,
            lower: Some(self.lower),
            local: Some(self.local),
            learning: self.learning,
            gbp: self.gbp,
            // What the kernel fills in, and what an operator may have tuned without harm.
            ageing: vxlan.ageing,
            limit: vxlan.limit,
            port_range: vxlan.port_range,
            ttl: vxlan.ttl,
            tos: vxlan.tos,
            udp_checksum: vxlan.udp_checksum,
            zero_checksum6_tx: vxlan.zero_checksum6_tx,
            zero_checksum6_rx: vxlan.zero_checksum6_rx,
            ..Vxlan::default()
        };
        (*vxlan != wanted).then(|| format!("it is {vxlan:?} and should be {wanted:?}"))
    }

    fn create(&self, netlink: &mut Netlink, mac: Mac) -> Result<(), BackendError> {
        let vxlan = NewVxlan {
            vni: self.vni,
            lower: Some(self.lower),
            local: Some(self.local),
            port: Some(self.port),
            learning: self.learning,
            gbp: self.gbp,
            ..NewVxlan::default()
        };
        let link = NewLink {
            mac: Some(mac),
            mtu: Some(self.mtu),
            // No queue: a tunnel's packets wait at the interface below.
            txqlen: Some(0),
            ..NewLink::new(self.name.clone(), NewLinkKind::Vxlan(vxlan))
        };
        netlink.create_link(&link).map_err(|error| {
            let other = if error.is_exists() { self.same_tunnel(netlink) } else { None };
            match other {
                Some(other) => self.host(format!(
                    "the device {other} has VNI {} on port {} already: delete it (ip link del {other}) or choose \
                     another VNI or Port in the network config",
                    self.vni, self.port
                )),
                None => self.failed("create", error),
            }
        })
    }

    /// Finds the device under another name that has the tunnel which the kernel grants only once.
    fn same_tunnel(&self, netlink: &mut Netlink) -> Option<String> {
        let links = netlink.links().ok()?;
        let same = |link: &Link| link.vxlan().is_some_and(|v| v.vni == self.vni && v.port == self.port);
        links.into_iter().find(same).map(|link| link.name)
    }

    fn set_fields(&self, netlink: &mut Netlink, link: &Link, mac: Mac) -> Result<usize, BackendError> {
        let change = LinkChange {
            mtu: (link.mtu != self.mtu).then_some(self.mtu),
            mac: (link.mac != Some(mac)).then_some(mac),
            txqlen: (link.txqlen != 0).then_some(0),
            ..LinkChange::default()
        };
        let changes = [change.mtu.is_some(), change.mac.is_some(), change.txqlen.is_some()];
        let changes = changes.into_iter().filter(|changed| *changed).count();
        if changes > 0 {
            netlink.change_link(link.index, &change).map_err(|error| self.failed("change", error))?;
        }
        Ok(changes)
    }

    fn set_address(
        &self,
        netlink: &mut Netlink,
        index: u32,
        address: OverlayAddress,
    ) -> Result<usize, BackendError> {
        let failed = |error| self.failed("set the address of", error);
        let present = netlink.addresses(index).map_err(failed)?;
        let mut changes = 0;
        // The new one first: with a device's last address go its routes.
        if !present.iter().any(|present| present.net == address.net) {
            let flags = if address.net.addr().is_ipv6() { Address::NO_DAD } else { 0 };
            let new = Address { flags, ..Address::new(index, address.net) };
            netlink.add_address(&new).map_err(failed)?;
            changes += 1;
        }
        let is_leftover = |present: &&Address| {
            Family::of(present.net.addr()) == self.family
                && present.net != address.net
                && address.network.contains(&present.net.addr())
        };
        for leftover in present.iter().filter(is_leftover) {
            netlink.delete_address(leftover).map_err(failed)?;
            changes += 1;
        }
        Ok(changes)
    }

    /// A router of the overlay's own would change the host's default route.
    fn refuse_router_advertisements(&self, namespace: &Namespace) {
        let sysctl = format!("net/ipv6/conf/{}/accept_ra", self.name);
        if let Err(error) = namespace.write_sysctl(&sysctl, "0") {
            tracing::debug!(sysctl, %error, "cannot be set");
        }
    }

    fn failed(&self, action: &str, error: Error) -> BackendError {
        if error.is_permission() {
            return self.host(format!("not permitted to {action} it: run as root, or with CAP_NET_ADMIN"));
        }
        BackendError::Kernel {
            object: format!("cannot {action} the device {}", self.name),
            source: error.into(),
        }
    }

    fn host(&self, reason: String) -> BackendError {
        BackendError::Host(format!("device {}: {reason}", self.name))
    }
}
