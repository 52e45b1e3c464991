//! The TUN device: its desired state, and the repair of differences.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use flannel_core::BackendError;
use flannel_netlink::{
    Address, AddressGeneration, Error, IpFamily, Link, LinkChange, LinkKind, Namespace, Netlink,
    Notification, Route, RouteFilter, Tun, TunOptions, WriteRequest,
};
use ipnet::IpNet;

use crate::store::{DescriptorSlot, OptionalStore};
use crate::sys::tun;
use crate::worker::Offloads;

/// The address and route of the device in one address family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overlay {
    /// The first address of the host's subnet, as a /32 or /128.
    pub(crate) address: IpNet,
    /// The whole network, which is the device's route.
    pub(crate) network: IpNet,
}

/// The open device; dropping it closes the queue.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) tun: Arc<File>,
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) mtu: u32,
    /// Empty before the host has a lease.
    pub(crate) overlays: Vec<Overlay>,
    /// The offloads that the device has enabled.
    pub(crate) offloads: Offloads,
}

/// The kernel replaces `%d` with the first free number.
const NAME: &str = "flannel%d";

fn options(name: &str) -> TunOptions {
    TunOptions { vnet_header: true, ..TunOptions::new(name) }
}

impl Device {
    /// Creates a device with the given name, or the first free one.
    pub(crate) fn open(
        namespace: &Namespace,
        name: Option<&str>,
        mtu: u32,
        requested: Offloads,
    ) -> Result<Self, BackendError> {
        let opened = Tun::open_in(namespace, &options(name.unwrap_or(NAME))).map_err(cannot_open)?;
        Self::prepare(opened, mtu, requested)
    }

    /// Restores the stored device of a previous process if it belongs to these networks. Packets that the host has sent
    /// since wait in its queue.
    pub(crate) fn restore(
        store: &OptionalStore,
        namespace: &Namespace,
        netlink: &mut Netlink,
        networks: &[IpNet],
        mtu: u32,
        requested: Offloads,
    ) -> Option<Self> {
        store.restore(DescriptorSlot::Tun, |kept| {
            let opened = Tun::adopt_in(namespace, kept, &options(NAME))
                .map_err(|error| flannel_core::chain(&error))?;
            let device =
                Self::prepare(opened, mtu, requested).map_err(|error| flannel_core::chain(&error))?;
            match device.is_for(netlink, networks) {
                Ok(true) => Ok(device),
                Ok(false) => Err(format!("{} belongs to another network", device.name)),
                Err(error) => Err(flannel_core::chain(&error)),
            }
        })
    }

    fn prepare(opened: Tun, mtu: u32, requested: Offloads) -> Result<Self, BackendError> {
        let kernel = |source: std::io::Error| BackendError::Kernel {
            object: format!("failed to set up device {}", opened.name),
            source: source.into(),
        };
        tun::set_little_endian(opened.fd.as_fd()).map_err(kernel)?;
        tun::set_nonblocking(opened.fd.as_fd()).map_err(kernel)?;
        let offloads = probe(&opened, requested);
        let Tun { fd, name, index } = opened;
        Ok(Self { tun: Arc::new(File::from(fd)), name, index, mtu, overlays: Vec::new(), offloads })
    }

    /// Returns whether the device's addresses and routes are in these networks. If not, deletes the device to free its name,
    /// because the store may not close the queue at once.
    fn is_for(&self, netlink: &mut Netlink, networks: &[IpNet]) -> Result<bool, Error> {
        let has_name = self.name.strip_prefix("flannel").is_some_and(|n| n.parse::<u16>().is_ok());
        let of_network = |net: &IpNet| networks.iter().any(|network| network.contains(net));
        let is_link_local = |net: &IpNet| matches!(net, IpNet::V6(v6) if v6.addr().is_unicast_link_local());
        let addresses = netlink.addresses(self.index)?;
        let mut addresses = addresses.iter().map(|address| address.net).filter(|net| !is_link_local(net));
        let on_device =
            RouteFilter { index: Some(self.index), table: Some(Route::MAIN_TABLE), ..RouteFilter::default() };
        let routes = netlink.routes(&on_device)?;
        let mut routes = routes.iter().map(|route| route.destination).filter(|net| !is_link_local(net));
        // The kernel adds a route for each IPv6 address.
        let is_own = |net: &IpNet| net.prefix_len() == net.max_prefix_len() && of_network(net);
        let is_for = has_name
            && addresses.all(|net| of_network(&net))
            && routes.all(|net| networks.contains(&net) || is_own(&net));
        if !is_for {
            netlink.delete_link(self.index)?;
        }
        Ok(is_for)
    }

    /// Repairs the device and returns the number of repairs. Doesn't create a missing device.
    pub(crate) fn ensure(&self, netlink: &mut Netlink, namespace: &Namespace) -> Result<usize, BackendError> {
        let failed = |error| self.failed(error);
        let link = netlink.link_by_index(self.index).map_err(failed)?;
        let link = link.filter(|link| self.is_met_by_kind(link)).ok_or_else(|| self.gone())?;
        let mut changes = self.set_link(netlink, &link)?;
        for overlay in &self.overlays {
            changes += self.set_address(netlink, overlay)?;
        }
        if !self.overlays.is_empty() && !link.up {
            self.set_sysctls(namespace);
            let up = LinkChange { up: Some(true), ..LinkChange::default() };
            netlink.change_link(self.index, &up).map_err(failed)?;
            changes += 1;
        }
        for overlay in &self.overlays {
            changes += self.set_route(netlink, overlay)?;
        }
        Ok(changes)
    }

    /// Returns whether the device exists.
    pub(crate) fn exists(&self, netlink: &mut Netlink) -> Result<bool, BackendError> {
        let link = netlink.link_by_index(self.index).map_err(|error| self.failed(error))?;
        Ok(link.is_some_and(|link| self.is_met_by_kind(&link)))
    }

    /// Describes how a notification affects the device; `None` if it doesn't.
    pub(crate) fn drift(&self, notification: &Notification) -> Option<String> {
        let name = &self.name;
        match notification {
            Notification::Overrun => Some("netlink notifications were lost".to_owned()),
            Notification::Link { link, removed } if link.index == self.index => {
                let is_met = !removed && self.is_met_by(link);
                let what = if *removed { "removed" } else { "changed" };
                (!is_met).then(|| format!("device {name} was {what}"))
            }
            Notification::Address { address, removed } if address.index == self.index => {
                let differs = if *removed { self.has(address) } else { self.is_leftover(address) };
                differs.then(|| format!("{address} was {}", if *removed { "removed" } else { "added" }))
            }
            Notification::Route { route, removed } if route.table == Route::MAIN_TABLE => {
                let ours =
                    self.overlays.iter().any(|overlay| self.route(overlay).destination == route.destination);
                let is_here = route.index == Some(self.index);
                (ours && (*removed || !is_here)).then(|| format!("{route} changed"))
            }
            Notification::Link { .. }
            | Notification::Address { .. }
            | Notification::Route { .. }
            | Notification::Neighbour { .. }
            | Notification::Fdb { .. }
            | Notification::Forwarding { .. } => None,
            other => Some(format!("{other:?}")),
        }
    }

    fn is_met_by_kind(&self, link: &Link) -> bool {
        link.kind == LinkKind::Tun && link.name == self.name
    }

    fn is_met_by(&self, link: &Link) -> bool {
        self.is_met_by_kind(link) && link.mtu == self.mtu && link.up != self.overlays.is_empty()
    }

    fn has(&self, address: &Address) -> bool {
        self.overlays.iter().any(|overlay| overlay.address == address.net)
    }

    /// Returns whether an address is left from an earlier lease.
    fn is_leftover(&self, address: &Address) -> bool {
        let in_network = |overlay: &Overlay| overlay.network.contains(&address.net.addr());
        !self.has(address) && self.overlays.iter().any(in_network)
    }

    fn set_link(&self, netlink: &mut Netlink, link: &Link) -> Result<usize, BackendError> {
        let failed = |error| self.failed(error);
        let mut changes = 0;
        if link.mtu != self.mtu {
            let mtu = LinkChange { mtu: Some(self.mtu), ..LinkChange::default() };
            netlink.change_link(self.index, &mtu).map_err(failed)?;
            changes += 1;
        }
        // No peer would answer what the kernel sends from a link-local address.
        if link.address_generation.is_some_and(|mode| mode != AddressGeneration::None) {
            let none =
                LinkChange { address_generation: Some(AddressGeneration::None), ..LinkChange::default() };
            netlink.change_link(self.index, &none).map_err(failed)?;
        }
        Ok(changes)
    }

    fn set_address(&self, netlink: &mut Netlink, overlay: &Overlay) -> Result<usize, BackendError> {
        let failed = |error| self.failed(error);
        let present = netlink.addresses(self.index).map_err(failed)?;
        let mut changes = 0;
        // Add the new address first: the kernel removes a device's routes with its last address.
        if !present.iter().any(|present| present.net == overlay.address) {
            let flags = if overlay.address.addr().is_ipv6() { Address::NO_DAD } else { 0 };
            let new = Address { flags, ..Address::new(self.index, overlay.address) };
            netlink.add_address(&new).map_err(failed)?;
            changes += 1;
        }
        for leftover in present.iter().filter(|present| self.is_leftover(present)) {
            netlink.delete_address(leftover).map_err(failed)?;
            changes += 1;
        }
        Ok(changes)
    }

    fn set_route(&self, netlink: &mut Netlink, overlay: &Overlay) -> Result<usize, BackendError> {
        let requested = self.route(overlay);
        let filter = RouteFilter {
            family: Some(IpFamily::of(overlay.network.addr())),
            table: Some(Route::MAIN_TABLE),
            ..RouteFilter::default()
        };
        let present = netlink.routes(&filter).map_err(|error| self.failed(error))?;
        let mut same = present.iter().filter(|route| route.destination == requested.destination);
        let is_ours = |route: &Route| route.index == Some(self.index) && route.gateway.is_none();
        if same.clone().any(is_ours) {
            return Ok(0);
        }
        if let Some(other) = same.next() {
            return Err(BackendError::Host(format!(
                "{other} conflicts with the network's route to {}; delete it, or choose another Network",
                self.name
            )));
        }
        let added =
            netlink.apply(&[WriteRequest::AddRoute(requested)]).into_iter().collect::<Result<(), _>>();
        added.map(|()| 1).map_err(|error| self.failed(error))
    }

    /// Removes the routes of networks that are no longer configured.
    pub(crate) fn leave_other_networks(
        &mut self,
        netlink: &mut Netlink,
        networks: &[IpNet],
    ) -> Result<(), BackendError> {
        let (stay, go): (Vec<_>, Vec<_>) =
            self.overlays.iter().partition(|overlay| networks.contains(&overlay.network));
        let routes: Vec<_> =
            go.iter().map(|overlay| WriteRequest::DeleteRoute(self.route(overlay))).collect();
        for outcome in netlink.apply(&routes) {
            if let Err(error) = outcome
                && !error.is_not_found()
            {
                return Err(self.failed(error));
            }
        }
        self.overlays = stay;
        Ok(())
    }

    fn route(&self, overlay: &Overlay) -> Route {
        Route { scope: Route::SCOPE_UNIVERSE, ..Route::attached(overlay.network.trunc(), self.index) }
    }

    /// Allows packets from the host's own addresses to arrive on the device, as replies to its pods do, and disables reverse
    /// path filtering. Forged sources can't arrive: the packet path checks every source.
    fn set_sysctls(&self, namespace: &Namespace) {
        let has_ipv6 = self.overlays.iter().any(|overlay| overlay.network.addr().is_ipv6());
        for (key, value) in [
            ("ipv4/conf/DEVICE/accept_local", "1"),
            ("ipv6/conf/DEVICE/accept_ra", "0"),
            // The kernel would send router solicitations and MLD reports that no peer answers.
            ("ipv6/conf/DEVICE/disable_ipv6", if has_ipv6 { "0" } else { "1" }),
        ] {
            let sysctl = format!("net/{}", key.replace("DEVICE", &self.name));
            if let Err(error) = namespace.write_sysctl(&sysctl, value) {
                tracing::debug!(sysctl, %error, "failed to set the sysctl");
            }
        }
    }

    fn failed(&self, error: Error) -> BackendError {
        if error.is_permission() {
            return BackendError::Host(format!(
                "device {}: permission denied; run as root or with CAP_NET_ADMIN",
                self.name
            ));
        }
        BackendError::Kernel {
            object: format!("failed to set up device {}", self.name),
            source: error.into(),
        }
    }

    fn gone(&self) -> BackendError {
        BackendError::Host(format!("device {} no longer exists", self.name))
    }
}

impl Overlay {
    /// Returns the address without its prefix length.
    pub(crate) fn own(&self) -> IpAddr {
        self.address.addr()
    }
}

/// Enables the offloads on the device, and fewer if the kernel lacks some.
fn probe(opened: &Tun, requested: Offloads) -> Offloads {
    let tcp = tun::TUN_F_CSUM | tun::TUN_F_TSO4 | tun::TUN_F_TSO6 | tun::TUN_F_TSO_ECN;
    let udp = tun::TUN_F_CSUM | tun::TUN_F_USO4 | tun::TUN_F_USO6;
    let flags = |offloads: Offloads| {
        (if offloads.device_tcp { tcp } else { 0 }) | (if offloads.device_udp { udp } else { 0 })
    };
    let without_udp = Offloads { device_udp: false, ..requested };
    let none = Offloads { device_tcp: false, ..without_udp };
    for offloads in [requested, without_udp, none] {
        match tun::set_offload(opened.fd.as_fd(), flags(offloads)) {
            Ok(()) => return offloads,
            Err(error) => tracing::info!(%error, ?offloads, "the kernel lacks these offloads"),
        }
    }
    none
}

fn cannot_open(error: Error) -> BackendError {
    let Error::Socket(source) = &error else {
        return BackendError::Kernel {
            object: "failed to create a TUN device".to_owned(),
            source: error.into(),
        };
    };
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV) => {
            BackendError::Host("/dev/net/tun doesn't exist; load the kernel module: modprobe tun".to_owned())
        }
        Some(libc::EPERM | libc::EACCES) => BackendError::Host(
            "permission denied to create a TUN device; run as root, or with CAP_NET_ADMIN and access to /dev/net/tun"
                .to_owned(),
        ),
        _ => BackendError::Kernel { object: "failed to create a TUN device".to_owned(), source: error.into() },
    }
}
