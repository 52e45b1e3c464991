//! The tunnel device: made what it should be, field by field.
//!
//! What cannot be changed on a device (its kind, VNI, port and the like) makes it another device: it is replaced, and
//! keeps its address so that the peers need not learn a new one. Everything else, also the external interface and its
//! address, is set in place, so that routes and neighbours live on.

use std::net::IpAddr;

use flannel_core::{BackendError, PlannedChange};
use flannel_netlink::{
    Address, Error, IpFamily, Link, LinkChange, Mac, Namespace, Netlink, NewLink, NewLinkKind, NewVxlan,
    Vxlan, VxlanChange,
};
use ipnet::IpNet;

/// What a tunnel device should be.
#[derive(Clone, Debug)]
pub(crate) struct DeviceSpec {
    pub(crate) name: String,
    pub(crate) family: IpFamily,
    pub(crate) vni: u32,
    pub(crate) port: u16,
    pub(crate) gbp: bool,
    pub(crate) learning: bool,
    pub(crate) below: Below,
    /// Whether the kernel shall compute all checksums before a packet leaves the device.
    pub(crate) checksums_off: bool,
    /// By what the kernel knew the device last: nobody can change that.
    pub(crate) index: Option<u32>,
    /// The device's address; before it is known, that of an existing device is kept.
    pub(crate) mac: Option<Mac>,
    /// The address to make a new device with, while `mac` is not known.
    pub(crate) preferred_mac: Mac,
    /// The host's own address on the overlay, once there is a lease.
    pub(crate) address: Option<OverlayAddress>,
}

/// What a tunnel device has below, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Below {
    /// The external interface.
    pub(crate) lower_name: String,
    /// Its index, which is another one when it went away and came back.
    pub(crate) lower: u32,
    /// Where the tunnel ends on this host.
    pub(crate) local: IpAddr,
    /// The largest packet for the tunnel, in bytes.
    pub(crate) mtu: u32,
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
#[derive(Debug)]
pub(crate) struct Ensured {
    pub(crate) device: Device,
    /// How many things were not as they should be.
    pub(crate) changes: usize,
    /// What could not be set right on a device that is there.
    pub(crate) failed: Vec<BackendError>,
}

impl Ensured {
    /// Makes an error of the first thing that could not be set right.
    pub(crate) fn complete(mut self) -> Result<Self, BackendError> {
        if self.failed.is_empty() { Ok(self) } else { Err(self.failed.swap_remove(0)) }
    }
}

/// How a device was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// It was there as it should be.
    Kept,
    /// It was there, with something else below.
    Moved,
    /// It is new.
    Made,
}

impl DeviceSpec {
    /// Makes the device so, or says why there cannot be one.
    pub(crate) fn ensure(
        &mut self,
        netlink: &mut Netlink,
        namespace: &Namespace,
    ) -> Result<Ensured, BackendError> {
        self.find_lower(netlink)?;
        let (link, found) = self.find_or_create(netlink)?;
        if found == Found::Made {
            self.refuse_router_advertisements(namespace);
        }
        let mac = self.mac.or(link.mac).unwrap_or(self.preferred_mac);
        let mut done = self.set_fields(netlink, &link, mac);
        done.push(self.set_checksums(netlink));
        if self.address.is_some() {
            done.push(self.set_address(netlink, link.index));
            // Last, because a route can only be put on a device that is up.
            done.push(self.set_up(netlink, &link));
        }
        self.index = Some(link.index);
        let device = Device { index: link.index, mac, mtu: self.below.mtu };
        let changes = usize::from(found != Found::Kept);
        let mut ensured = Ensured { device, changes, failed: Vec::new() };
        for result in done {
            match result {
                Ok(changes) => ensured.changes += changes,
                Err(error) => ensured.failed.push(error),
            }
        }
        Ok(ensured)
    }

    /// Tells what `ensure` would do, and by what index the kernel knows the device if it would stay. Writes nothing.
    pub(crate) fn plan(
        &mut self,
        netlink: &mut Netlink,
    ) -> Result<(Option<u32>, Vec<PlannedChange>), BackendError> {
        self.find_lower(netlink)?;
        let device = format!("device {}", self.name);
        let link = netlink.link(&self.name).map_err(|error| self.failed("look up", error))?;
        let difference = link.as_ref().and_then(|link| self.difference(link));
        let Some(link) = link.filter(|_| difference.is_none()) else {
            self.check_is_free(netlink)?;
            return Ok((None, vec![PlannedChange::put(device, difference)]));
        };
        let mut changes = Vec::new();
        if self.move_of(&link).is_some() {
            let below = format!("{} at {} below the {device}", self.below.lower_name, self.below.local);
            changes.push(PlannedChange::put(below, None));
        }
        let mac = self.mac.or(link.mac).unwrap_or(self.preferred_mac);
        for (_, what, actual) in self.field_changes(&link, mac) {
            changes.push(PlannedChange::put(format!("{what} the {device}"), Some(actual)));
        }
        if self.checksums_off && netlink.tx_checksum_offload(&self.name).unwrap_or(false) {
            changes.push(PlannedChange::put(format!("no checksum offload on the {device}"), None));
        }
        changes.extend(self.plan_address(netlink, link.index)?);
        if !link.up {
            changes.push(PlannedChange::put(format!("{device} up"), None));
        }
        Ok((Some(link.index), changes))
    }

    fn plan_address(&self, netlink: &mut Netlink, index: u32) -> Result<Vec<PlannedChange>, BackendError> {
        let failed = |error| self.failed("read the addresses of", error);
        let (missing, leftovers) = self.address_changes(netlink, index).map_err(failed)?;
        let name = |address: Address| format!("address {} of the device {}", address.net, self.name);
        let put = missing.map(|address| PlannedChange::put(name(address), None));
        let removals = leftovers.into_iter().map(|address| PlannedChange::remove(name(address)));
        Ok(put.into_iter().chain(removals).collect())
    }

    /// Tells whether a link is all that the device should be, but for its addresses.
    pub(crate) fn is_met_by(&self, link: &Link) -> bool {
        let fields = (link.mtu, link.mac, link.txqlen, link.up);
        link.name == self.name
            && self.difference(link).is_none()
            && self.move_of(link).is_none()
            && fields == (self.below.mtu, self.mac, 0, self.address.is_some())
    }

    /// Tells whether an address of the device is a leftover of an earlier lease.
    pub(crate) fn is_leftover(&self, present: &Address) -> bool {
        self.address.is_some_and(|address| {
            IpFamily::of(present.net.addr()) == self.family
                && present.net != address.net
                && address.network.contains(&present.net.addr())
        })
    }

    fn find_lower(&mut self, netlink: &mut Netlink) -> Result<(), BackendError> {
        let lower = netlink
            .link(&self.below.lower_name)
            .map_err(|error| self.failed("look up the interface below", error))?;
        // One that is not there under its name may have another one now.
        self.below.lower = lower.map_or(self.below.lower, |link| link.index);
        Ok(())
    }

    /// Returns the device, and what was done for it.
    fn find_or_create(&self, netlink: &mut Netlink) -> Result<(Link, Found), BackendError> {
        let look_up =
            |netlink: &mut Netlink| netlink.link(&self.name).map_err(|error| self.failed("look up", error));
        let mut found = look_up(netlink)?;
        if found.is_none() && self.take_name_back(netlink)? {
            found = look_up(netlink)?;
        }
        let mut mac = self.mac.unwrap_or(self.preferred_mac);
        if let Some(link) = found {
            let difference = match (self.difference(&link), self.move_of(&link)) {
                (Some(difference), _) => difference,
                (None, None) => return Ok((link, Found::Kept)),
                (None, Some(below)) => match self.moved(netlink, &link, &below) {
                    Ok(link) => return Ok((link, Found::Moved)),
                    Err(reason) => reason,
                },
            };
            // Without this, a device that carries traffic would go for one that cannot be made.
            self.check_is_free(netlink)?;
            tracing::warn!(device = self.name, %difference, "replacing the device");
            if self.mac.is_none() && link.vxlan().is_some() {
                mac = link.mac.unwrap_or(mac);
            }
            netlink.delete_link(link.index).map_err(|error| self.failed("delete", error))?;
        }
        self.create(netlink, mac)?;
        let link = look_up(netlink)?.ok_or_else(|| BackendError::Kernel {
            object: format!("cannot create the device {}", self.name),
            source: "it vanished right after it was created".into(),
        })?;
        Ok((link, Found::Made))
    }

    /// Moves a device, and returns what it is then. An old kernel does not do it, or not all of it.
    fn moved(&self, netlink: &mut Netlink, link: &Link, below: &LinkChange) -> Result<Link, String> {
        let moved = netlink.change_link(link.index, below).and_then(|()| netlink.link_by_index(link.index));
        match moved {
            Ok(Some(moved)) if self.move_of(&moved).is_none() => Ok(moved),
            Ok(_) => Err("the kernel does not move it".to_owned()),
            Err(error) => Err(format!("it cannot be moved: {error}")),
        }
    }

    /// What must be changed below a device that can be used otherwise.
    fn move_of(&self, link: &Link) -> Option<LinkChange> {
        let vxlan = link.vxlan()?;
        let below = (Some(self.below.lower), Some(self.below.local));
        let change = VxlanChange { lower: below.0, local: below.1 };
        ((vxlan.lower, vxlan.local) != below)
            .then(|| LinkChange { vxlan: Some(change), ..LinkChange::default() })
    }

    /// Gives the device its name again if somebody gave it another one, and tells whether that was so. As long as it is
    /// there, no other one can have its tunnel.
    fn take_name_back(&self, netlink: &mut Netlink) -> Result<bool, BackendError> {
        let failed = |error| self.failed("take the name back of", error);
        let Some(index) = self.index else { return Ok(false) };
        let found = netlink.link_by_index(index).map_err(failed)?;
        let Some(link) = found.filter(|link| self.difference(link).is_none()) else { return Ok(false) };
        tracing::warn!(device = self.name, other = link.name, "the device was renamed, taking its name back");
        // The kernel renames no device that is up (`dev_change_name` in `net/core/dev.c`).
        let down = LinkChange { up: Some(false), ..LinkChange::default() };
        netlink.change_link(index, &down).map_err(failed)?;
        let name = LinkChange { name: Some(self.name.clone()), ..LinkChange::default() };
        netlink.change_link(index, &name).map_err(failed)?;
        Ok(true)
    }

    /// Tells what keeps an existing device from being used.
    fn difference(&self, link: &Link) -> Option<String> {
        let Some(vxlan) = link.vxlan() else {
            return Some("it is no VXLAN device".to_owned());
        };
        let wanted = Vxlan {
            vni: self.vni,
            port: self.port,
            learning: self.learning,
            gbp: self.gbp,
            // What is moved in place.
            lower: vxlan.lower,
            local: vxlan.local.filter(|local| IpFamily::of(*local) == self.family),
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
            lower: Some(self.below.lower),
            local: Some(self.below.local),
            port: Some(self.port),
            learning: self.learning,
            gbp: self.gbp,
            ..NewVxlan::default()
        };
        let link = NewLink {
            mac: Some(mac),
            mtu: Some(self.below.mtu),
            // No queue: a tunnel's packets wait at the interface below.
            txqlen: Some(0),
            ..NewLink::new(self.name.clone(), NewLinkKind::Vxlan(vxlan))
        };
        netlink.create_link(&link).map_err(|error| match self.check_is_free(netlink) {
            Err(taken) if error.is_exists() => taken,
            _ => self.failed("create", error),
        })
    }

    /// Refuses to make a device whose tunnel another one has.
    fn check_is_free(&self, netlink: &mut Netlink) -> Result<(), BackendError> {
        self.same_tunnel(netlink).map_or(Ok(()), |other| Err(self.taken(&other)))
    }

    /// Finds the device under another name that has the tunnel which the kernel grants only once.
    fn same_tunnel(&self, netlink: &mut Netlink) -> Option<String> {
        let family = |vxlan: &Vxlan| vxlan.local.or(vxlan.group).map_or(IpFamily::V4, IpFamily::of);
        let same = |link: &Link| {
            link.name != self.name
                && link
                    .vxlan()
                    .is_some_and(|v| (v.vni, v.port, family(v)) == (self.vni, self.port, self.family))
        };
        netlink.links().ok()?.into_iter().find(same).map(|link| link.name)
    }

    fn taken(&self, other: &str) -> BackendError {
        self.host(format!(
            "the device {other} has VNI {} on port {} already: delete it (ip link del {other}) or choose another VNI \
             or Port in the network config",
            self.vni, self.port
        ))
    }

    /// Sets each field by itself, so that one that the kernel refuses keeps no other from being set.
    fn set_fields(&self, netlink: &mut Netlink, link: &Link, mac: Mac) -> Vec<Result<usize, BackendError>> {
        let changes = self.field_changes(link, mac).into_iter();
        changes.map(|(change, what, _)| self.change(netlink, link, &change, &format!("set {what}"))).collect()
    }

    /// The fields that are not as they should be: what to change, in words, and what they are.
    fn field_changes(&self, link: &Link, mac: Mac) -> Vec<(LinkChange, String, String)> {
        let same = LinkChange::default;
        let mtu = self.below.mtu;
        let mut changes = Vec::new();
        if link.mac != Some(mac) {
            let actual = link.mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string());
            changes.push((
                LinkChange { mac: Some(mac), ..same() },
                format!("the MAC address {mac} of"),
                actual,
            ));
        }
        if link.txqlen != 0 {
            let change = LinkChange { txqlen: Some(0), ..same() };
            changes.push((change, "no queue for".to_owned(), link.txqlen.to_string()));
        }
        if link.mtu != mtu {
            let change = LinkChange { mtu: Some(mtu), ..same() };
            changes.push((change, format!("the MTU {mtu} of"), link.mtu.to_string()));
        }
        changes
    }

    fn set_checksums(&self, netlink: &Netlink) -> Result<usize, BackendError> {
        let failed = |error| self.failed("switch off the checksum offload of", error);
        if !self.checksums_off || !netlink.tx_checksum_offload(&self.name).map_err(failed)? {
            return Ok(0);
        }
        netlink.set_tx_checksum_offload(&self.name, false).map_err(failed)?;
        Ok(1)
    }

    fn set_up(&self, netlink: &mut Netlink, link: &Link) -> Result<usize, BackendError> {
        if link.up {
            return Ok(0);
        }
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        self.change(netlink, link, &up, "set up")
    }

    fn change(
        &self,
        netlink: &mut Netlink,
        link: &Link,
        change: &LinkChange,
        action: &str,
    ) -> Result<usize, BackendError> {
        netlink.change_link(link.index, change).map_err(|error| self.failed(action, error))?;
        Ok(1)
    }

    fn set_address(&self, netlink: &mut Netlink, index: u32) -> Result<usize, BackendError> {
        let failed = |error| self.failed("set the address of", error);
        let (missing, leftovers) = self.address_changes(netlink, index).map_err(failed)?;
        // The new one first: with a device's last address go its routes.
        missing.iter().try_for_each(|address| netlink.add_address(address)).map_err(failed)?;
        leftovers.iter().try_for_each(|address| netlink.delete_address(address)).map_err(failed)?;
        Ok(usize::from(missing.is_some()) + leftovers.len())
    }

    /// The address that is missing, and those that are leftovers.
    fn address_changes(
        &self,
        netlink: &mut Netlink,
        index: u32,
    ) -> Result<(Option<Address>, Vec<Address>), Error> {
        let Some(OverlayAddress { net, .. }) = self.address else { return Ok((None, Vec::new())) };
        let present = netlink.addresses(index)?;
        let is_there = present.iter().any(|present| present.net == net);
        let flags = if net.addr().is_ipv6() { Address::NO_DAD } else { 0 };
        let missing = (!is_there).then(|| Address { flags, ..Address::new(index, net) });
        Ok((missing, present.into_iter().filter(|present| self.is_leftover(present)).collect()))
    }

    /// Removes the device, and with it everything on it.
    pub(crate) fn remove(&self, netlink: &mut Netlink) -> Result<(), BackendError> {
        let found = netlink.link(&self.name).map_err(|error| self.failed("look up", error))?;
        found.map_or(Ok(()), |link| {
            netlink.delete_link(link.index).map_err(|error| self.failed("delete", error))
        })
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
