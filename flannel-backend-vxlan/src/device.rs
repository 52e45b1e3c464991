//! The tunnel device, reconciled field by field.
//!
//! A device whose type, VNI, port or another immutable field differs is replaced; the new one keeps the MAC address, so
//! that peers need not learn another. Everything else, including the external interface and its address, is changed in
//! place, so that routes and neighbours survive.

use std::net::IpAddr;

use flannel_core::{BackendError, PlannedChange};
use flannel_netlink::{
    Address, Error, IpFamily, Link, LinkChange, Mac, Namespace, Netlink, NewLink, NewLinkKind, NewVxlan,
    Vxlan, VxlanChange,
};
use ipnet::IpNet;

/// The desired state of a tunnel device.
#[derive(Clone, Debug)]
pub(crate) struct DeviceSpec {
    pub(crate) name: String,
    pub(crate) family: IpFamily,
    pub(crate) vni: u32,
    pub(crate) port: u16,
    pub(crate) gbp: bool,
    pub(crate) learning: bool,
    pub(crate) underlay: UnderlaySpec,
    /// Whether the kernel computes all checksums before a packet leaves the device.
    pub(crate) disable_checksums: bool,
    /// The last index of the device, which survives a rename.
    pub(crate) index: Option<u32>,
    /// The MAC address. If absent, that of an existing device is kept.
    pub(crate) mac: Option<Mac>,
    /// The MAC address of a new device while `mac` is absent.
    pub(crate) preferred_mac: Mac,
    /// The host's own address on the overlay, once it has a lease.
    pub(crate) address: Option<OverlayAddress>,
}

/// The external interface below a tunnel device, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnderlaySpec {
    /// The name of the external interface.
    pub(crate) interface: String,
    /// Its index, which changes when the interface is recreated.
    pub(crate) index: u32,
    /// The local endpoint of the tunnel.
    pub(crate) local: IpAddr,
    /// The MTU of the tunnel device, in bytes.
    pub(crate) mtu: u32,
}

/// The host's own address on the overlay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OverlayAddress {
    /// The first address of the host's subnet, with a full-length prefix.
    pub(crate) net: IpNet,
    /// The address range of the overlay. Other addresses in it are leftovers of an earlier lease.
    pub(crate) network: IpNet,
}

/// The actual tunnel device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VxlanDevice {
    pub(crate) index: u32,
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
}

/// The outcome of reconciling a device.
#[derive(Debug)]
pub(crate) struct EnsureOutcome {
    pub(crate) device: VxlanDevice,
    /// The number of fields that differed.
    pub(crate) changes: usize,
    /// The errors of fields that could not be changed on an existing device.
    pub(crate) failed: Vec<BackendError>,
}

impl EnsureOutcome {
    /// Returns the first error, if any.
    pub(crate) fn complete(mut self) -> Result<Self, BackendError> {
        if self.failed.is_empty() { Ok(self) } else { Err(self.failed.swap_remove(0)) }
    }
}

/// How a device was provisioned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Provisioning {
    /// It existed with the right immutable fields.
    Reused,
    /// It existed and was moved to another external interface or address.
    Moved,
    /// It was created.
    Created,
}

impl DeviceSpec {
    /// Reconciles the device. Fails if there cannot be one.
    pub(crate) fn ensure(
        &mut self,
        netlink: &mut Netlink,
        namespace: &Namespace,
    ) -> Result<EnsureOutcome, BackendError> {
        self.find_underlay(netlink)?;
        let (link, provisioning) = self.find_or_create(netlink)?;
        if provisioning == Provisioning::Created {
            self.refuse_router_advertisements(namespace);
        }
        let mac = self.mac.or(link.mac).unwrap_or(self.preferred_mac);
        let mut results = self.set_fields(netlink, &link, mac);
        results.push(self.set_checksums(netlink));
        if self.address.is_some() {
            results.push(self.set_address(netlink, link.index));
            // Last, because routes need a device that is up.
            results.push(self.set_up(netlink, &link));
        }
        self.index = Some(link.index);
        let device = VxlanDevice { index: link.index, mac, mtu: self.underlay.mtu };
        let changes = usize::from(provisioning != Provisioning::Reused);
        let mut outcome = EnsureOutcome { device, changes, failed: Vec::new() };
        for result in results {
            match result {
                Ok(changes) => outcome.changes += changes,
                Err(error) => outcome.failed.push(error),
            }
        }
        Ok(outcome)
    }

    /// Plans what `ensure` would change, and returns the index of the device if it would be kept. Writes nothing.
    pub(crate) fn plan(
        &mut self,
        netlink: &mut Netlink,
    ) -> Result<(Option<u32>, Vec<PlannedChange>), BackendError> {
        self.find_underlay(netlink)?;
        let device = format!("device {}", self.name);
        let link = netlink.link(&self.name).map_err(|error| self.failed("look up", error))?;
        let difference = link.as_ref().and_then(|link| self.difference(link));
        let Some(link) = link.filter(|_| difference.is_none()) else {
            self.check_is_free(netlink)?;
            return Ok((None, vec![PlannedChange::put(device, difference)]));
        };
        let mut changes = Vec::new();
        if self.move_of(&link).is_some() {
            let underlay =
                format!("{} at {} below the {device}", self.underlay.interface, self.underlay.local);
            changes.push(PlannedChange::put(underlay, None));
        }
        let mac = self.mac.or(link.mac).unwrap_or(self.preferred_mac);
        for (_, field, actual) in self.field_changes(&link, mac) {
            changes.push(PlannedChange::put(format!("{field} the {device}"), Some(actual)));
        }
        if self.disable_checksums && netlink.tx_checksum_offload(&self.name).unwrap_or(false) {
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

    /// Returns true if a link has all fields of the device. Ignores its addresses.
    pub(crate) fn is_met_by(&self, link: &Link) -> bool {
        let fields = (link.mtu, link.mac, link.txqlen, link.up);
        link.name == self.name
            && self.difference(link).is_none()
            && self.move_of(link).is_none()
            && fields == (self.underlay.mtu, self.mac, 0, self.address.is_some())
    }

    /// Returns true if an address of the device is a leftover of an earlier lease.
    pub(crate) fn is_leftover(&self, present: &Address) -> bool {
        self.address.is_some_and(|address| {
            IpFamily::of(present.net.addr()) == self.family
                && present.net != address.net
                && address.network.contains(&present.net.addr())
        })
    }

    fn find_underlay(&mut self, netlink: &mut Netlink) -> Result<(), BackendError> {
        let link = netlink
            .link(&self.underlay.interface)
            .map_err(|error| self.failed("look up the external interface of", error))?;
        // An interface that is not found may have been renamed: keep its index.
        self.underlay.index = link.map_or(self.underlay.index, |link| link.index);
        Ok(())
    }

    /// Returns the device and how it was provisioned.
    fn find_or_create(&self, netlink: &mut Netlink) -> Result<(Link, Provisioning), BackendError> {
        let look_up =
            |netlink: &mut Netlink| netlink.link(&self.name).map_err(|error| self.failed("look up", error));
        let mut found = look_up(netlink)?;
        if found.is_none() && self.restore_name(netlink)? {
            found = look_up(netlink)?;
        }
        let mut mac = self.mac.unwrap_or(self.preferred_mac);
        if let Some(link) = found {
            let difference = match (self.difference(&link), self.move_of(&link)) {
                (Some(difference), _) => difference,
                (None, None) => return Ok((link, Provisioning::Reused)),
                (None, Some(change)) => match self.moved(netlink, &link, &change) {
                    Ok(link) => return Ok((link, Provisioning::Moved)),
                    Err(reason) => reason,
                },
            };
            // Before deleting a device that carries traffic, check that the new one can be created.
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
        Ok((link, Provisioning::Created))
    }

    /// Moves a device to the underlay and returns its new state. Old kernels refuse the move or ignore part of it.
    fn moved(&self, netlink: &mut Netlink, link: &Link, change: &LinkChange) -> Result<Link, String> {
        let moved = netlink.change_link(link.index, change).and_then(|()| netlink.link_by_index(link.index));
        match moved {
            Ok(Some(moved)) if self.move_of(&moved).is_none() => Ok(moved),
            Ok(_) => Err("the kernel did not move it to another interface or address".to_owned()),
            Err(error) => Err(format!("it cannot be moved: {error}")),
        }
    }

    /// Returns the change that moves a device to the underlay, if it is elsewhere.
    fn move_of(&self, link: &Link) -> Option<LinkChange> {
        let vxlan = link.vxlan()?;
        let (lower, local) = (Some(self.underlay.index), Some(self.underlay.local));
        let change = VxlanChange { lower, local };
        ((vxlan.lower, vxlan.local) != (lower, local))
            .then(|| LinkChange { vxlan: Some(change), ..LinkChange::default() })
    }

    /// Renames the device back if it was renamed, and returns whether that was necessary. While it exists, no other
    /// device can have its VNI and port.
    fn restore_name(&self, netlink: &mut Netlink) -> Result<bool, BackendError> {
        let failed = |error| self.failed("rename", error);
        let Some(index) = self.index else { return Ok(false) };
        let link = netlink.link_by_index(index).map_err(failed)?;
        let Some(link) = link.filter(|link| self.difference(link).is_none()) else { return Ok(false) };
        tracing::warn!(device = self.name, found = link.name, "the device was renamed; renaming it back");
        // The kernel doesn't rename a device that is up (`dev_change_name` in `net/core/dev.c`).
        let down = LinkChange { up: Some(false), ..LinkChange::default() };
        netlink.change_link(index, &down).map_err(failed)?;
        let name = LinkChange { name: Some(self.name.clone()), ..LinkChange::default() };
        netlink.change_link(index, &name).map_err(failed)?;
        Ok(true)
    }

    /// Returns the immutable difference that forces a device to be replaced.
    fn difference(&self, link: &Link) -> Option<String> {
        let Some(vxlan) = link.vxlan() else {
            return Some("it is not a VXLAN device".to_owned());
        };
        let desired = Vxlan {
            vni: self.vni,
            port: self.port,
            learning: self.learning,
            gbp: self.gbp,
            // Moved in place.
            lower: vxlan.lower,
            local: vxlan.local.filter(|local| IpFamily::of(*local) == self.family),
            // Filled in by the kernel, or tuned by an operator without harm.
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
        (*vxlan != desired).then(|| format!("it is {vxlan:?}, expected {desired:?}"))
    }

    fn create(&self, netlink: &mut Netlink, mac: Mac) -> Result<(), BackendError> {
        let vxlan = NewVxlan {
            vni: self.vni,
            lower: Some(self.underlay.index),
            local: Some(self.underlay.local),
            port: Some(self.port),
            learning: self.learning,
            gbp: self.gbp,
            ..NewVxlan::default()
        };
        let link = NewLink {
            mac: Some(mac),
            mtu: Some(self.underlay.mtu),
            // No queue: packets of a tunnel queue at the external interface.
            txqlen: Some(0),
            ..NewLink::new(self.name.clone(), NewLinkKind::Vxlan(vxlan))
        };
        netlink.create_link(&link).map_err(|error| match self.check_is_free(netlink) {
            Err(taken) if error.is_exists() => taken,
            _ => self.failed("create", error),
        })
    }

    /// Fails if another device has the VNI and port.
    fn check_is_free(&self, netlink: &mut Netlink) -> Result<(), BackendError> {
        self.device_with_same_tunnel(netlink).map_or(Ok(()), |other| Err(self.taken(&other)))
    }

    /// Returns the name of another device with the same VNI, port and family. The kernel allows only one such device.
    fn device_with_same_tunnel(&self, netlink: &mut Netlink) -> Option<String> {
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

    /// Sets each field in a request of its own, so that one refused field doesn't affect the others.
    fn set_fields(&self, netlink: &mut Netlink, link: &Link, mac: Mac) -> Vec<Result<usize, BackendError>> {
        let changes = self.field_changes(link, mac).into_iter();
        changes
            .map(|(change, field, _)| self.change(netlink, link, &change, &format!("set {field}")))
            .collect()
    }

    /// Returns the fields that differ: the change, its name, and the actual value.
    fn field_changes(&self, link: &Link, mac: Mac) -> Vec<(LinkChange, String, String)> {
        let same = LinkChange::default;
        let mtu = self.underlay.mtu;
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
        let failed = |error| self.failed("disable the checksum offload of", error);
        if !self.disable_checksums || !netlink.tx_checksum_offload(&self.name).map_err(failed)? {
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
        // The new address first: the kernel deletes the routes of a device with its last address.
        missing.iter().try_for_each(|address| netlink.add_address(address)).map_err(failed)?;
        leftovers.iter().try_for_each(|address| netlink.delete_address(address)).map_err(failed)?;
        Ok(usize::from(missing.is_some()) + leftovers.len())
    }

    /// Returns the address that is missing and those that are leftovers.
    fn address_changes(
        &self,
        netlink: &mut Netlink,
        index: u32,
    ) -> Result<(Option<Address>, Vec<Address>), Error> {
        let Some(OverlayAddress { net, .. }) = self.address else { return Ok((None, Vec::new())) };
        let present = netlink.addresses(index)?;
        let exists = present.iter().any(|present| present.net == net);
        let flags = if net.addr().is_ipv6() { Address::NO_DAD } else { 0 };
        let missing = (!exists).then(|| Address { flags, ..Address::new(index, net) });
        Ok((missing, present.into_iter().filter(|present| self.is_leftover(present)).collect()))
    }

    /// Removes the device, and with it everything on it.
    pub(crate) fn remove(&self, netlink: &mut Netlink) -> Result<(), BackendError> {
        let found = netlink.link(&self.name).map_err(|error| self.failed("look up", error))?;
        found.map_or(Ok(()), |link| {
            netlink.delete_link(link.index).map_err(|error| self.failed("delete", error))
        })
    }

    /// A router advertisement from the overlay would change the host's default route.
    fn refuse_router_advertisements(&self, namespace: &Namespace) {
        let sysctl = format!("net/ipv6/conf/{}/accept_ra", self.name);
        if let Err(error) = namespace.write_sysctl(&sysctl, "0") {
            tracing::debug!(sysctl, %error, "cannot set the sysctl");
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
