//! The backend: a tunnel for each family that the network has.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{
    Backend, BackendAttrs, BackendError, BackendType, ExternalInterface, Lease, NetworkConfig, ObjectFailure,
    OpenBackend, OpenRequest, PublicAddrs, SubnetKey, SyncReport, SyncRequest,
};
use flannel_netlink::{Family, Mac, Monitor, Namespace, Netlink, Notice};
use ipnet::IpNet;

use crate::attrs;
use crate::config::VxlanConfig;
use crate::device::{DeviceSpec, OverlayAddress};
use crate::tables::Kernel;
use crate::tunnel::Tunnel;

/// Opens the VXLAN backend in one network namespace.
///
/// ```no_run
/// use flannel_backend_vxlan::OpenVxlan;
/// use flannel_netlink::Namespace;
///
/// // For the namespace of this thread, and for a named one.
/// let here = OpenVxlan::new(Namespace::current()?);
/// let there = OpenVxlan::new(Namespace::open("/run/netns/blue")?);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct OpenVxlan {
    namespace: Namespace,
}

impl OpenVxlan {
    /// Takes the namespace that the external interface is in.
    #[must_use]
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace }
    }
}

impl OpenBackend for OpenVxlan {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        Ok(Box::new(Vxlan::open(self.namespace.clone(), request)?))
    }
}

/// Reads what a network needs to know of an interface: its index, MTU and addresses. Its addresses are those that
/// peers use, unless the caller says otherwise afterwards.
///
/// # Errors
///
/// [`BackendError::Host`] if there is no such interface; [`BackendError::Kernel`] if the kernel does not answer.
pub fn external_interface(namespace: &Namespace, name: &str) -> Result<ExternalInterface, BackendError> {
    let failed = |error: flannel_netlink::Error| BackendError::Kernel {
        object: format!("cannot read the interface {name}"),
        source: error.into(),
    };
    let mut netlink = Netlink::open_in(namespace).map_err(failed)?;
    let link = netlink.link(name).map_err(failed)?;
    let link = link.ok_or_else(|| BackendError::Host(format!("there is no interface {name}")))?;
    let addresses = netlink.addresses(link.index).map_err(failed)?;
    let usable = || addresses.iter().filter(|address| address.scope == 0).map(|address| address.net.addr());
    let public = PublicAddrs {
        v4: usable().find_map(|address| if let IpAddr::V4(v4) = address { Some(v4) } else { None }),
        v6: usable().find_map(|address| if let IpAddr::V6(v6) = address { Some(v6) } else { None }),
    };
    Ok(ExternalInterface {
        name: link.name,
        index: link.index,
        mtu: link.mtu,
        v4: public.v4,
        v6: public.v6,
        public,
    })
}

/// The VXLAN backend of one network on one host.
#[derive(Debug)]
struct Vxlan {
    vni: u32,
    config: NetworkConfig,
    namespace: Namespace,
    kernel: Kernel,
    /// Gone if it broke and could not be opened again yet.
    monitor: Option<Monitor>,
    tunnels: Vec<Tunnel>,
    own: Option<SubnetKey>,
}

impl Vxlan {
    fn open(namespace: Namespace, request: OpenRequest<'_>) -> Result<Self, BackendError> {
        let OpenRequest { config, external, before } = request;
        let options = VxlanConfig::parse(&config.backend, config.ipv6.is_some())?;
        tracing::info!(
            "VXLAN config: VNI={} Port={} GBP={} Learning={} DirectRouting={}",
            options.vni,
            options.port.unwrap_or(0),
            options.gbp,
            options.learning,
            options.direct_routing
        );
        if options.direct_routing {
            tracing::warn!("DirectRouting is not supported yet: traffic to all peers is encapsulated");
        }
        let kernel = Kernel::new(Netlink::open_in(&namespace).map_err(no_socket)?);
        // Before the first read, so that no change falls between the two.
        let monitor = open_monitor(&namespace, &kernel)?;
        let mut tunnels = Vec::new();
        for family in families(config) {
            let before = before.and_then(|attrs| match family {
                Family::V4 => attrs.backend_data.as_ref(),
                Family::V6 => attrs.backend_v6_data.as_ref(),
            });
            let preferred_mac = attrs::read(before).unwrap_or_else(|_| random_mac());
            let spec = device_spec(family, &options, external, preferred_mac)?;
            tunnels.push(Tunnel::open(spec, kernel.clone(), namespace.clone())?);
        }
        Ok(Self {
            vni: options.vni,
            config: config.clone(),
            namespace,
            kernel,
            monitor: Some(monitor),
            tunnels,
            own: None,
        })
    }
}

#[async_trait]
impl Backend for Vxlan {
    fn attrs(&self) -> BackendAttrs {
        let data = |family| {
            let tunnel = self.tunnels.iter().find(|tunnel| tunnel.family() == family)?;
            Some(attrs::write(self.vni, tunnel.device().mac))
        };
        BackendAttrs { backend_type: BackendType::VXLAN, data: data(Family::V4), v6_data: data(Family::V6) }
    }

    fn mtu(&self) -> u32 {
        self.tunnels.iter().map(|tunnel| tunnel.device().mtu).min().unwrap_or(0)
    }

    fn configure(&mut self, own: &Lease) -> Result<(), BackendError> {
        self.own = Some(own.subnet);
        let mut configured = Ok(());
        for tunnel in &mut self.tunnels {
            let family = tunnel.family();
            let subnet = own.subnet.nets().find(|net| Family::of(net.addr()) == family);
            let pool = match family {
                Family::V4 => self.config.ipv4,
                Family::V6 => self.config.ipv6,
            };
            let (Some(subnet), Some(pool)) = (subnet, pool) else {
                let reason = format!("the lease {} has no {family} subnet", own.subnet);
                return Err(BackendError::Host(reason));
            };
            let address = OverlayAddress { net: IpNet::from(subnet.network()), network: pool.network() };
            configured = configured.and(tunnel.configure(address));
        }
        configured
    }

    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
        let mut report = SyncReport::default();
        let Some(own) = self.own else { return report };
        if self.monitor.is_none() {
            match open_monitor(&self.namespace, &self.kernel) {
                Ok(monitor) => self.monitor = Some(monitor),
                Err(error) => {
                    let object = "the monitor of the kernel's notices".to_owned();
                    report.failed.push(ObjectFailure { object, reason: flannel_core::chain(&error) });
                    report.retry_in = Some(MONITOR_RETRY);
                }
            }
        }
        for tunnel in &mut self.tunnels {
            report.merge(tunnel.sync(request, &own));
        }
        report
    }

    async fn drifted(&mut self) -> String {
        loop {
            let Some(monitor) = &mut self.monitor else {
                return std::future::pending().await;
            };
            let notices = match monitor.next().await {
                Ok(notice) => drain(monitor, notice),
                Err(error) => {
                    self.monitor = None;
                    self.tunnels.iter_mut().for_each(Tunnel::distrust);
                    return format!("the monitor of the kernel's notices broke: {error}");
                }
            };
            let mut what = None;
            for notice in &notices {
                for tunnel in &mut self.tunnels {
                    what = what.or(tunnel.notice(notice));
                }
            }
            if let Some(what) = what {
                return what;
            }
        }
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        let removed: Vec<_> = self.tunnels.iter().map(Tunnel::remove).collect();
        removed.into_iter().collect()
    }
}

/// How long after a failure the monitor is opened again.
const MONITOR_RETRY: Duration = Duration::from_secs(1);

/// Notices taken at once, so that a storm leads to one pass and not to one for each; bounded, so that a storm without
/// end does not keep the pass from coming.
const NOTICES_AT_ONCE: usize = 4096;

fn drain(monitor: &mut Monitor, first: Notice) -> Vec<Notice> {
    let mut notices = vec![first];
    while notices.len() < NOTICES_AT_ONCE {
        // An error shows again at the next wait.
        let Ok(Some(notice)) = monitor.try_next() else {
            break;
        };
        notices.push(notice);
    }
    notices
}

fn open_monitor(namespace: &Namespace, kernel: &Kernel) -> Result<Monitor, BackendError> {
    let mut monitor = Monitor::open_in(namespace).map_err(no_socket)?;
    monitor.ignore_changes_of(&[kernel.lock().port_id()]).map_err(no_socket)?;
    Ok(monitor)
}

fn no_socket(error: flannel_netlink::Error) -> BackendError {
    BackendError::Kernel { object: "cannot open a netlink socket".to_owned(), source: error.into() }
}

fn families(config: &NetworkConfig) -> impl Iterator<Item = Family> + use<> {
    config.ipv4.map(|_| Family::V4).into_iter().chain(config.ipv6.map(|_| Family::V6))
}

/// What encapsulation adds to a packet, in bytes: the inner Ethernet header (14), VXLAN (8), UDP (8) and the outer IP
/// header (RFC 7348, section 5).
fn overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 14 + 8 + 8 + 20,
        Family::V6 => 14 + 8 + 8 + 40,
    }
}

fn device_spec(
    family: Family,
    options: &VxlanConfig,
    external: &ExternalInterface,
    preferred_mac: Mac,
) -> Result<DeviceSpec, BackendError> {
    let (name, local) = match family {
        Family::V4 => (format!("flannel.{}", options.vni), external.v4.map(IpAddr::V4)),
        Family::V6 => (format!("flannel-v6.{}", options.vni), external.v6.map(IpAddr::V6)),
    };
    let local = local.ok_or_else(|| {
        BackendError::Host(format!(
            "the interface {} has no {family} address for the tunnel {name}",
            external.name
        ))
    })?;
    // The kernel does not let a tunnel's packets be larger than the interface below can carry.
    let underlay = options.mtu.unwrap_or(external.mtu).min(external.mtu);
    Ok(DeviceSpec {
        name,
        family,
        vni: options.vni,
        port: options.udp_port(),
        gbp: options.gbp,
        learning: options.learning,
        lower_name: external.name.clone(),
        lower: external.index,
        local,
        mtu: underlay.saturating_sub(overhead(family)),
        mac: None,
        preferred_mac,
        address: None,
    })
}

/// Makes up a device address: locally administered, for a single device (IEEE 802, section 8.4).
fn random_mac() -> Mac {
    // The keys of the standard library's hashers come from the operating system's random source.
    let [mut first, b, c, d, e, f, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    first = (first & 0xfe) | 0x02;
    Mac([first, b, c, d, e, f])
}
