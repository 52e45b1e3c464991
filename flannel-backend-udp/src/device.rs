//! The TUN device: what it should be, and how it is made so.

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

use crate::store::{Keeper, Slot};
use crate::sys::tun;
use crate::worker::Offloads;

/// What the device has for one family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overlay {
    /// The first address of the host's subnet, as a single one.
    pub(crate) address: IpNet,
    /// The whole network, which is routed to the device.
    pub(crate) network: IpNet,
}

/// The device, which is open as long as this lives.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) tun: Arc<File>,
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) mtu: u32,
    /// Empty before there is a lease.
    pub(crate) overlays: Vec<Overlay>,
    /// Which packets the kernel hands out and takes in this way.
    pub(crate) offloads: Offloads,
}

/// The kernel puts the first free number in the place of `%d`.
const NAME: &str = "flannel%d";

fn options(name: &str) -> TunOptions {
    TunOptions { vnet_header: true, ..TunOptions::new(name) }
}

impl Device {
    /// Makes a device, under the given name or the first one that is free.
    pub(crate) fn open(
        namespace: &Namespace,
        name: Option<&str>,
        mtu: u32,
        wanted: Offloads,
    ) -> Result<Self, BackendError> {
        let opened = Tun::open_in(namespace, &options(name.unwrap_or(NAME))).map_err(cannot_open)?;
        Self::prepare(opened, mtu, wanted)
    }

    /// Takes back the device that a process which is gone left, if its queue is kept and it is one for these networks.
    /// What the host sent meanwhile waits in it.
    pub(crate) fn take_back(
        keeper: &Keeper,
        namespace: &Namespace,
        netlink: &mut Netlink,
        networks: &[IpNet],
        mtu: u32,
        wanted: Offloads,
    ) -> Option<Self> {
        keeper.take_back(Slot::Tun, |kept| {
            let opened = Tun::adopt_in(namespace, kept, &options(NAME))
                .map_err(|error| flannel_core::chain(&error))?;
            let device = Self::prepare(opened, mtu, wanted).map_err(|error| flannel_core::chain(&error))?;
            match device.is_for(netlink, networks) {
                Ok(true) => Ok(device),
                Ok(false) => Err(format!("{} is a device of another network", device.name)),
                Err(error) => Err(flannel_core::chain(&error)),
            }
        })
    }

    fn prepare(opened: Tun, mtu: u32, wanted: Offloads) -> Result<Self, BackendError> {
        let kernel = |source: std::io::Error| BackendError::Kernel {
            object: format!("cannot set up the device {}", opened.name),
            source: source.into(),
        };
        tun::set_little_endian(opened.fd.as_fd()).map_err(kernel)?;
        tun::set_nonblocking(opened.fd.as_fd()).map_err(kernel)?;
        let offloads = probe(&opened, wanted);
        let Tun { fd, name, index } = opened;
        Ok(Self { tun: Arc::new(File::from(fd)), name, index, mtu, overlays: Vec::new(), offloads })
    }

    /// Whether what the device has from an earlier process is of these networks. If not, it is deleted, so that its name
    /// is free: the keeper of its queue may not close that at once.
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
        // The kernel routes an IPv6 address of its own.
        let is_own = |net: &IpNet| net.prefix_len() == net.max_prefix_len() && of_network(net);
        let is_for = has_name
            && addresses.all(|net| of_network(&net))
            && routes.all(|net| networks.contains(&net) || is_own(&net));
        if !is_for {
            netlink.delete_link(self.index)?;
        }
        Ok(is_for)
    }

    /// Makes the device as it should be; returns how many things were not so. One that is gone stays gone.
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

    /// Tells whether the device is there at all.
    pub(crate) fn exists(&self, netlink: &mut Netlink) -> Result<bool, BackendError> {
        let link = netlink.link_by_index(self.index).map_err(|error| self.failed(error))?;
        Ok(link.is_some_and(|link| self.is_met_by_kind(&link)))
    }

    /// Says what a notice means for the device, if it means anything.
    pub(crate) fn notice(&self, notice: &Notification) -> Option<String> {
        let name = &self.name;
        match notice {
            Notification::Overrun => Some("notices were lost".to_owned()),
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

    /// Whether an address is a leftover of an earlier lease.
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
        // Nobody at the other end would answer what the kernel sends from an address of its own.
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
        // The new one first: with a device's last address go its routes.
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
        let wanted = self.route(overlay);
        let filter = RouteFilter {
            family: Some(IpFamily::of(overlay.network.addr())),
            table: Some(Route::MAIN_TABLE),
            ..RouteFilter::default()
        };
        let present = netlink.routes(&filter).map_err(|error| self.failed(error))?;
        let mut same = present.iter().filter(|route| route.destination == wanted.destination);
        let is_ours = |route: &Route| route.index == Some(self.index) && route.gateway.is_none();
        if same.clone().any(is_ours) {
            return Ok(0);
        }
        if let Some(other) = same.next() {
            return Err(BackendError::Host(format!(
                "the route {other} is in the way of the network's route to {}: delete it, or choose another Network",
                self.name
            )));
        }
        let added = netlink.apply(&[WriteRequest::AddRoute(wanted)]).into_iter().collect::<Result<(), _>>();
        added.map(|()| 1).map_err(|error| self.failed(error))
    }

    /// Removes the routes of networks that are none any more.
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

    /// What the host itself says to its pods over the device comes from an address of its own, which the kernel takes
    /// only if told so. Forged ones cannot come in: the packet path checks every source.
    fn set_sysctls(&self, namespace: &Namespace) {
        let has_ipv6 = self.overlays.iter().any(|overlay| overlay.network.addr().is_ipv6());
        for (key, value) in [
            ("ipv4/conf/DEVICE/accept_local", "1"),
            ("ipv6/conf/DEVICE/accept_ra", "0"),
            // The kernel would ask after routers and groups, and nobody is there to answer.
            ("ipv6/conf/DEVICE/disable_ipv6", if has_ipv6 { "0" } else { "1" }),
        ] {
            let sysctl = format!("net/{}", key.replace("DEVICE", &self.name));
            if let Err(error) = namespace.write_sysctl(&sysctl, value) {
                tracing::debug!(sysctl, %error, "cannot be set");
            }
        }
    }

    fn failed(&self, error: Error) -> BackendError {
        if error.is_permission() {
            return BackendError::Host(format!(
                "device {}: not permitted to set it up: run as root, or with CAP_NET_ADMIN",
                self.name
            ));
        }
        BackendError::Kernel {
            object: format!("cannot set up the device {}", self.name),
            source: error.into(),
        }
    }

    fn gone(&self) -> BackendError {
        BackendError::Host(format!("the device {} is gone", self.name))
    }
}

impl Overlay {
    /// The address alone.
    pub(crate) fn own(&self) -> IpAddr {
        self.address.addr()
    }
}

/// Tells the kernel which packets can be taken, and less where it knows less.
fn probe(opened: &Tun, wanted: Offloads) -> Offloads {
    let tcp = tun::TUN_F_CSUM | tun::TUN_F_TSO4 | tun::TUN_F_TSO6 | tun::TUN_F_TSO_ECN;
    let udp = tun::TUN_F_CSUM | tun::TUN_F_USO4 | tun::TUN_F_USO6;
    let flags = |offloads: Offloads| {
        (if offloads.device_tcp { tcp } else { 0 }) | (if offloads.device_udp { udp } else { 0 })
    };
    let without_udp = Offloads { device_udp: false, ..wanted };
    let none = Offloads { device_tcp: false, ..without_udp };
    for offloads in [wanted, without_udp, none] {
        match tun::set_offload(opened.fd.as_fd(), flags(offloads)) {
            Ok(()) => return offloads,
            Err(error) => tracing::info!(%error, ?offloads, "the kernel does not know these offloads"),
        }
    }
    none
}

fn cannot_open(error: Error) -> BackendError {
    let Error::Socket(source) = &error else {
        return BackendError::Kernel { object: "cannot make a TUN device".to_owned(), source: error.into() };
    };
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV) => {
            BackendError::Host("there is no /dev/net/tun: load the kernel module tun (modprobe tun)".to_owned())
        }
        Some(libc::EPERM | libc::EACCES) => BackendError::Host(
            "not permitted to make a TUN device: run as root, or with CAP_NET_ADMIN and access to /dev/net/tun"
                .to_owned(),
        ),
        _ => BackendError::Kernel { object: "cannot make a TUN device".to_owned(), source: error.into() },
    }
}
