//! Hosts and pods as network namespaces.
//!
//! ```text
//!   switch namespace     br0 ──────────┬───────────── … (one bridge per segment, it routes between them)
//!                         │            │
//!   host namespaces      eth0 host-1  eth0 host-2        192.168.64.1/24  192.168.64.2/24
//!                        cni0         cni0               first address of the host's subnet
//!                         │            │
//!   pod namespaces       eth0 pod     eth0 pod           next addresses of that subnet
//! ```
//!
//! Unless it has a name, a namespace lives as long as a handle to it, so nothing of a lab outlives the process. Labs
//! are isolated from each other although they use the same addresses.

use crate::{DeadlineExceeded, eventually};
use flannel_netlink::{
    Address, Error, LinkChange, Namespace, Netlink, NewLink, NewLinkKind, Route, RouteKind, VethPeer,
    WriteRequest,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use names::{Name, Names};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

mod host;
mod names;
mod requirements;

pub use host::{Host, Pod};
pub use names::remove_name;
pub use requirements::{Missing, check_requirements};

/// The underlay's IPv4 segments are the /24 networks from here on: host `n` of segment `s` is `192.168.(64+s).n`,
/// and the switch is .254 in each.
pub const UNDERLAY_IPV4: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 0);
/// The underlay's IPv6 segments are the /64 networks from here on: host `n` of segment `s` is fd00:64:0:s::n,
/// and the switch is ::fe in each.
pub const UNDERLAY_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x64, 0, 0, 0, 0, 0, 0);
/// The name of each host's link to the underlay, and of each pod's link to its host.
pub const INTERFACE: &str = "eth0";

/// The kernel takes milliseconds, or a second while many links change.
const LIMIT: Duration = Duration::from_secs(30);
/// The last part of the switch's address; those of hosts are smaller.
const SWITCH: u8 = 254;

/// Options of a [`Lab`].
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// The number of hosts, at most 253.
    pub hosts: usize,
    /// The MTU of the underlay, in bytes.
    pub mtu: u32,
    /// The number of underlay networks, 1 to 64. Hosts are assigned to them in turn, and the switch routes between
    /// them: with 2 segments `host-1` reaches `host-3` on its link and `host-2` through a gateway.
    pub segments: usize,
    /// Whether each host has a default route through the switch even with a single segment.
    pub default_route: bool,
    /// Whether the namespaces have names in `/run/netns`, for `ip netns exec NAME …`. The names are removed when the
    /// handles are dropped; a killed process leaves them.
    pub named: bool,
}

/// Two hosts on one network with an MTU of 1500, without default routes and names.
impl Default for LabOptions {
    fn default() -> Self {
        Self { hosts: 2, mtu: 1500, segments: 1, default_route: false, named: false }
    }
}

/// Hosts and the switch that connects them.
#[derive(Debug)]
pub struct Lab {
    /// The hosts, `host-1` first. Taking out and dropping one simulates a dead host.
    pub hosts: Vec<Host>,
    switch: Namespace,
    names: Arc<Names>,
    _switch_name: Option<Name>,
}

impl Lab {
    /// Creates namespaces, links and addresses. All hosts reach each other when this returns.
    ///
    /// # Errors
    /// [`LabError::Missing`] if the machine lacks a requirement, see [`check_requirements`].
    pub fn new(options: &LabOptions) -> Result<Self, LabError> {
        requirements::check_once()?;
        let in_range = options.hosts < usize::from(SWITCH) && (1..=64).contains(&options.segments);
        if !in_range {
            return Err(LabError::TooLarge { hosts: options.hosts, segments: options.segments });
        }
        let names = Arc::new(Names::new(options.named));
        let switch = new_namespace(true)?;
        let switch_name = names.give("switch", &switch)?;
        let mut lab = Self { hosts: Vec::new(), switch, names, _switch_name: switch_name };
        for segment in 0..options.segments {
            lab.add_segment(segment, options.mtu)?;
        }
        for number in 1..=options.hosts {
            let host = lab.new_host(number, options)?;
            lab.hosts.push(host);
        }
        Ok(lab)
    }

    /// Returns the namespace of the switch, which forwards every packet between hosts.
    #[must_use]
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// Returns the prefix of the names in `/run/netns`, in a lab with names: `flannel-4711` for the namespaces
    /// `flannel-4711-host-1` and `flannel-4711-switch`.
    #[must_use]
    pub fn prefix(&self) -> Option<&str> {
        self.names.prefix()
    }

    /// Keeps the names of all namespaces, and so the namespaces, when the handles are dropped. Remove each name with
    /// [`remove_name`] or `ip netns delete`. Does nothing without names.
    pub fn keep(&self) {
        self.names.keep();
    }

    /// Creates the bridge of a segment in the switch, with the gateway addresses.
    fn add_segment(&self, segment: usize, mtu: u32) -> Result<(), LabError> {
        let mut netlink = Netlink::open_in(&self.switch)?;
        let link = NewLink { mtu: Some(mtu), ..NewLink::new(bridge_name(segment), NewLinkKind::Bridge) };
        let index = create_up(&mut netlink, link)?;
        add_addresses(&mut netlink, index, &underlay(segment, SWITCH.into()))
    }

    fn new_host(&self, number: usize, options: &LabOptions) -> Result<Host, LabError> {
        let segment = (number - 1) % options.segments;
        let name = format!("host-{number}");
        let namespace = new_namespace(true)?;
        let handle = self.names.give(&name, &namespace)?;
        let port = format!("port{number}");
        let index = connect(&namespace, &self.switch, &port, &bridge_name(segment), options.mtu)?;
        let mut netlink = Netlink::open_in(&namespace)?;
        let addresses = underlay(segment, number as u16);
        add_addresses(&mut netlink, index, &addresses)?;
        if options.default_route || options.segments > 1 {
            add_default_routes(&mut netlink, &underlay(segment, SWITCH.into()))?;
        }
        Ok(Host {
            name,
            namespace,
            addresses,
            pods: AtomicU32::new(0),
            switch: self.switch.clone(),
            port,
            names: Arc::clone(&self.names),
            _name: handle,
        })
    }
}

/// A part of a [`Lab`] could not be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// The machine or the process lacks a requirement.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// There are too many hosts or segments.
    #[error("a lab of {hosts} hosts on {segments} segments: at most 253 hosts on 64 segments are possible")]
    TooLarge {
        /// The number of hosts.
        hosts: usize,
        /// The number of segments.
        segments: usize,
    },
    /// The subnet has no address left for a pod.
    #[error("subnet {0} has no address left for a pod")]
    SubnetFull(IpNet),
    /// The kernel rejected a link, an address or a route.
    #[error("links of the lab could not be set up")]
    Netlink(#[from] Error),
    /// The kernel rejected a namespace or one of its settings.
    #[error("namespace of the lab could not be set up")]
    Namespace(#[from] io::Error),
    /// A new link disappeared: another program changed the lab.
    #[error("link {0} disappeared")]
    LinkGone(String),
    /// A link or an address does not become usable.
    #[error("lab did not come up")]
    DeadlineExceeded(#[from] DeadlineExceeded),
}

/// Creates a namespace whose loopback is up, with settings that do not depend on the machine's.
fn new_namespace(forwards: bool) -> Result<Namespace, LabError> {
    let namespace = Namespace::create()?;
    // The kernel copies the machine's IPv4 settings (`net.core.devconf_inherit_init_net`), and distributions enable
    // reverse path filtering there.
    let mut settings = vec![
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/ip_forward", if forwards { "1" } else { "0" }),
    ];
    if has_ipv6() {
        settings.extend([
            // Addresses must be usable at once; they are unique.
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/disable_ipv6", "0"),
            ("net/ipv6/conf/default/disable_ipv6", "0"),
            ("net/ipv6/conf/all/forwarding", if forwards { "1" } else { "0" }),
        ]);
    }
    for (name, value) in settings {
        namespace.write_sysctl(name, value)?;
    }
    let mut netlink = Netlink::open_in(&namespace)?;
    let loopback = index_of(&mut netlink, "lo")?;
    netlink.change_link(loopback, &LinkChange { up: Some(true), ..LinkChange::default() })?;
    Ok(namespace)
}

/// Connects [`INTERFACE`] in `namespace` to the bridge `bridge` in `hub`, where the other end is called `port`.
///
/// Returns the index of the interface.
fn connect(
    namespace: &Namespace,
    hub: &Namespace,
    port: &str,
    bridge: &str,
    mtu: u32,
) -> Result<u32, LabError> {
    let mut inside = Netlink::open_in(namespace)?;
    let peer = VethPeer { name: port.to_owned(), mac: None, namespace: Some(hub.clone()) };
    let link = NewLink { mtu: Some(mtu), ..NewLink::new(INTERFACE, NewLinkKind::Veth(peer)) };
    let index = create_up(&mut inside, link)?;
    let mut hub = Netlink::open_in(hub)?;
    let master = Some(index_of(&mut hub, bridge)?);
    let port_index = index_of(&mut hub, port)?;
    let join = LinkChange { up: Some(true), mtu: Some(mtu), master, ..LinkChange::default() };
    hub.change_link(port_index, &join)?;
    for name in [port, bridge] {
        wait_until_running(&mut hub, name)?;
    }
    wait_until_running(&mut inside, INTERFACE)?;
    Ok(index)
}

/// Waits until a link passes packets. The kernel assigns its queue, and a bridge makes its port forward, some time
/// after the carrier is up (`net/core/link_watch.c`). Earlier packets are lost, and the kernel repeats a neighbour
/// request only after a second.
fn wait_until_running(netlink: &mut Netlink, name: &str) -> Result<(), LabError> {
    let running = || match netlink.link(name) {
        Ok(Some(link)) if link.running => Ok(()),
        Ok(Some(_)) => Err(format!("link {name} has no carrier")),
        Ok(None) => Err(format!("link {name} disappeared")),
        Err(error) => Err(error.to_string()),
    };
    Ok(eventually(LIMIT, running)?)
}

/// Creates a link, sets it up and returns its index.
fn create_up(netlink: &mut Netlink, link: NewLink) -> Result<u32, LabError> {
    netlink.create_link(&NewLink { up: true, ..link.clone() })?;
    index_of(netlink, &link.name)
}

fn index_of(netlink: &mut Netlink, name: &str) -> Result<u32, LabError> {
    let link = netlink.link(name)?.ok_or_else(|| LabError::LinkGone(name.to_owned()))?;
    Ok(link.index)
}

/// Adds missing addresses and waits until they are usable.
///
/// The kernel delivers to an IPv6 address only after its work queue has run, although it sends from it at once
/// (`addrconf_dad_start` in `net/ipv6/addrconf.c`): the answer to an early neighbour request would be lost.
fn add_addresses(netlink: &mut Netlink, index: u32, addresses: &[IpNet]) -> Result<(), LabError> {
    for net in addresses {
        let flags = if net.addr().is_ipv6() { Address::NO_DAD } else { 0 };
        match netlink.add_address(&Address { flags, ..Address::new(index, *net) }) {
            Err(error) if !error.is_exists() => return Err(error.into()),
            _ => {}
        }
    }
    for net in addresses {
        eventually(LIMIT, || match netlink.route_to(net.addr()) {
            Ok(route) if route.kind == RouteKind::Local => Ok(()),
            Ok(route) => Err(format!("{} is reached by {route}", net.addr())),
            Err(error) => Err(error.to_string()),
        })?;
    }
    Ok(())
}

/// Adds default routes through the gateways.
fn add_default_routes(netlink: &mut Netlink, gateways: &[IpNet]) -> Result<(), LabError> {
    let route = |gateway: IpAddr| {
        let destination = match gateway {
            IpAddr::V4(_) => IpNet::from(Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::from(Ipv6Net::default()),
        };
        WriteRequest::PutRoute(Route::by_gateway(destination, gateway))
    };
    let writes: Vec<_> = gateways.iter().map(|net| route(net.addr())).collect();
    Ok(netlink.apply(&writes).into_iter().collect::<Result<(), _>>()?)
}

/// Returns the underlay addresses of a station in a segment, with their prefix lengths.
fn underlay(segment: usize, station: u16) -> Vec<IpNet> {
    let [a, b, first, _] = UNDERLAY_IPV4.octets();
    let mut groups = UNDERLAY_IPV6.segments();
    groups[3] = segment as u16;
    groups[7] = station;
    let v4 = Ipv4Net::new_assert(Ipv4Addr::new(a, b, first + segment as u8, station as u8), 24);
    let v6 = Ipv6Net::new_assert(Ipv6Addr::from(groups), 64);
    let mut addresses = vec![IpNet::V4(v4)];
    if has_ipv6() {
        addresses.push(IpNet::V6(v6));
    }
    addresses
}

fn bridge_name(segment: usize) -> String {
    format!("br{segment}")
}

/// Returns whether the kernel has IPv6.
fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").is_dir()
}

/// Returns the next number of a counter, from 0.
fn next(counter: &AtomicU32) -> u32 {
    counter.fetch_add(1, Ordering::Relaxed)
}
