//! The backend: a tunnel for each family that the network has.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;

use async_trait::async_trait;
use flannel_core::{
    Backend, BackendAttrs, BackendError, BackendType, DeviceFacts, ExternalInterface, Lease, NetworkConfig,
    OpenBackend, OpenRequest, Plan, PlanRequest, SubnetKey, SubnetPool, SyncReport, SyncRequest,
};
use flannel_netlink::{IpFamily, Mac, Namespace};
use ipnet::IpNet;

use crate::attrs;
use crate::checksums::ChecksumOffload;
use crate::config::VxlanConfig;
use crate::device::{Below, DeviceSpec, OverlayAddress};
use crate::tunnel::Tunnel;
use flannel_dataplane::Direct;
use flannel_dataplane::DriftMonitor;
use flannel_dataplane::Kernel;
use flannel_dataplane::{Mark, RouteProtocol};
use flannel_dataplane::{families, own_subnet, pool, same_kind};

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
    protocol: RouteProtocol,
    offload: ChecksumOffload,
}

impl OpenVxlan {
    /// Takes the namespace that the external interface is in.
    #[must_use]
    pub fn new(namespace: Namespace) -> Self {
        let (protocol, offload) = (RouteProtocol::default(), ChecksumOffload::default());
        Self { namespace, protocol, offload }
    }

    /// Marks direct routes (`DirectRouting`) with another number than the default.
    #[must_use]
    pub fn with_route_protocol(self, protocol: RouteProtocol) -> Self {
        Self { protocol, ..self }
    }

    fn are_checksums_off(&self) -> bool {
        // A kernel that does not say its release is taken for a good one.
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        self.offload.is_off_on(&release)
    }

    /// Treats the checksum offload of the tunnel device in another way than by the kernel's release.
    #[must_use]
    pub fn with_checksum_offload(self, offload: ChecksumOffload) -> Self {
        Self { offload, ..self }
    }
}

impl OpenBackend for OpenVxlan {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        Ok(Box::new(Vxlan::open(self, request)?))
    }

    fn plan(&self, request: PlanRequest<'_>) -> Result<Plan, BackendError> {
        let PlanRequest { config, external, .. } = request;
        let options = VxlanConfig::parse(&config.backend, config.ipv6.is_some())?;
        let (kernel, has_direct_routing) = (Kernel::open_in(&self.namespace)?, options.direct_routing);
        let mut plan = Plan::default();
        for (spec, direct) in self.parts(OpenRequest::new(config, external), &options, &kernel)? {
            let (kernel, namespace) = (kernel.clone(), self.namespace.clone());
            plan.merge(Tunnel::plan(spec, direct, kernel, namespace, has_direct_routing, request)?);
        }
        Ok(plan)
    }
}

impl OpenVxlan {
    /// What each family's tunnel is to be, and its direct routes.
    fn parts(
        &self,
        request: OpenRequest<'_>,
        options: &VxlanConfig,
        kernel: &Kernel,
    ) -> Result<Vec<(DeviceSpec, Direct)>, BackendError> {
        let OpenRequest { config, external, before, .. } = request;
        let checksums_off = self.are_checksums_off();
        let parts = |(family, pool): (IpFamily, SubnetPool)| {
            let before = before.and_then(|attrs| match family {
                IpFamily::V4 => attrs.backend_data.as_ref(),
                IpFamily::V6 => attrs.backend_v6_data.as_ref(),
            });
            let preferred_mac = attrs::read(before).unwrap_or_else(|_| random_mac());
            let below = Below::of(family, options, external)?;
            let spec = DeviceSpec { checksums_off, ..device_spec(family, options, below, preferred_mac) };
            let mark = Mark { protocol: self.protocol, network: pool.network() };
            Ok((spec, Direct::new(kernel.clone(), external, family, mark)))
        };
        families(config).map(parts).collect()
    }
}

/// The VXLAN backend of one network on one host.
#[derive(Debug)]
struct Vxlan {
    opener: OpenVxlan,
    options: VxlanConfig,
    config: NetworkConfig,
    watch: DriftMonitor,
    tunnels: Vec<Tunnel>,
    own: Option<SubnetKey>,
}

impl Vxlan {
    fn open(opener: &OpenVxlan, request: OpenRequest<'_>) -> Result<Self, BackendError> {
        let OpenRequest { config, external, .. } = request;
        let options = VxlanConfig::parse(&config.backend, config.ipv6.is_some())?;
        tracing::info!(
            "VXLAN config: VNI={} Port={} GBP={} Learning={} DirectRouting={}",
            options.vni,
            options.port.unwrap_or(0),
            options.gbp,
            options.learning,
            options.direct_routing
        );
        // Before the first read, so that no change falls between the two.
        let (watch, kernel) = DriftMonitor::open(opener.namespace.clone(), &external.name)?;
        let mut tunnels = Vec::new();
        for (spec, direct) in opener.parts(request, &options, &kernel)? {
            let (kernel, namespace) = (kernel.clone(), opener.namespace.clone());
            tunnels.push(Tunnel::open(spec, direct, kernel, namespace, options.direct_routing)?);
        }
        Ok(Self { opener: opener.clone(), options, config: config.clone(), watch, tunnels, own: None })
    }
}

#[async_trait]
impl Backend for Vxlan {
    fn attrs(&self) -> BackendAttrs {
        let data = |family| {
            let tunnel = self.tunnels.iter().find(|tunnel| tunnel.family() == family)?;
            Some(attrs::write(self.options.vni, tunnel.device().mac))
        };
        BackendAttrs::new(BackendType::VXLAN).with_data(data(IpFamily::V4)).with_v6_data(data(IpFamily::V6))
    }

    fn mtu(&self) -> u32 {
        self.tunnels.iter().map(|tunnel| tunnel.device().mtu).min().unwrap_or(0)
    }

    fn update_interface(&mut self, external: &ExternalInterface) -> Result<(), BackendError> {
        let below = |tunnel: &Tunnel| Below::of(tunnel.family(), &self.options, external);
        // Each family's, before any is moved.
        let below = self.tunnels.iter().map(below).collect::<Result<Vec<_>, _>>()?;
        for (tunnel, below) in self.tunnels.iter_mut().zip(below) {
            tunnel.update_interface(below);
        }
        self.watch.update_interface(&external.name);
        Ok(())
    }

    /// As a restart would: the device is taken over or replaced, and one that has another name now goes.
    fn reconfigure(&mut self, request: OpenRequest<'_>) -> Result<(), BackendError> {
        same_kind(&self.config.backend, &request.config.backend)?;
        let next = Self::open(&self.opener, request)?;
        for tunnel in &mut self.tunnels {
            if next.tunnels.iter().all(|next| next.name() != tunnel.name()) {
                tunnel.remove()?;
            }
        }
        *self = next;
        Ok(())
    }

    fn configure(&mut self, own: &Lease) -> Result<(), BackendError> {
        self.own = Some(own.subnet);
        let mut configured = Ok(());
        for tunnel in &mut self.tunnels {
            let family = tunnel.family();
            let subnet = own_subnet(own, family)?;
            let Some(pool) = pool(&self.config, family) else { continue };
            let address = OverlayAddress { net: IpNet::from(subnet.network()), network: pool.network() };
            configured = configured.and(tunnel.configure(address));
        }
        configured
    }

    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
        let mut report = SyncReport::default();
        let Some(own) = self.own else { return report };
        report.merge(self.watch.mend(request.now));
        for tunnel in &mut self.tunnels {
            report.merge(tunnel.sync(request, &own));
        }
        report
    }

    async fn wait_for_drift(&mut self) -> String {
        self.watch.wait_for_drift(&mut self.tunnels).await
    }

    fn devices(&self) -> Vec<DeviceFacts> {
        self.tunnels.iter().map(Tunnel::facts).collect()
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        let removed: Vec<_> = self.tunnels.iter_mut().map(Tunnel::remove).collect();
        removed.into_iter().collect()
    }
}

/// A tunnel device that a configuration asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunnelDevice {
    /// Its name.
    pub name: String,
    /// The family of the packets in it, and of the packets that carry them.
    pub family: IpFamily,
    /// The number of its VXLAN network.
    pub vni: u32,
    /// Its UDP port.
    pub port: u16,
    /// Its MTU, in bytes.
    pub mtu: u32,
}

impl TunnelDevice {
    /// Describes a device.
    #[must_use]
    pub fn new(name: String, family: IpFamily, vni: u32, port: u16, mtu: u32) -> Self {
        Self { name, family, vni, port, mtu }
    }
}

impl OpenVxlan {
    /// Tells which devices a configuration asks for on a host with this external interface. Looks at nothing else.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the configuration is wrong, or the interface has no address of a family.
    pub fn devices(
        config: &NetworkConfig,
        external: &ExternalInterface,
    ) -> Result<Vec<TunnelDevice>, BackendError> {
        let options = VxlanConfig::parse(&config.backend, config.ipv6.is_some())?;
        let device = |(family, _)| {
            let Below { mtu, .. } = Below::of(family, &options, external)?;
            let (name, vni, port) = (device_name(family, &options), options.vni, options.udp_port());
            Ok(TunnelDevice { name, family, vni, port, mtu })
        };
        families(config).map(device).collect()
    }
}

/// What encapsulation adds to a packet, in bytes: the inner Ethernet header (14), VXLAN (8), UDP (8) and the outer IP
/// header (RFC 7348, section 5).
fn overhead(family: IpFamily) -> u32 {
    match family {
        IpFamily::V4 => 14 + 8 + 8 + 20,
        IpFamily::V6 => 14 + 8 + 8 + 40,
    }
}

impl Below {
    /// What a tunnel of a family has below, or why it cannot be there.
    fn of(
        family: IpFamily,
        options: &VxlanConfig,
        external: &ExternalInterface,
    ) -> Result<Self, BackendError> {
        let local = match family {
            IpFamily::V4 => external.v4.map(IpAddr::V4),
            IpFamily::V6 => external.v6.map(IpAddr::V6),
        };
        let local = local.ok_or_else(|| {
            let (interface, device) = (&external.name, device_name(family, options));
            BackendError::Host(format!(
                "the interface {interface} has no {family} address for the tunnel {device}"
            ))
        })?;
        // The kernel does not let a tunnel's packets be larger than the interface below can carry.
        let underlay = options.mtu.unwrap_or(external.mtu).min(external.mtu);
        let mtu = underlay.saturating_sub(overhead(family));
        Ok(Self { lower_name: external.name.clone(), lower: external.index, local, mtu })
    }
}

fn device_name(family: IpFamily, options: &VxlanConfig) -> String {
    match family {
        IpFamily::V4 => format!("flannel.{}", options.vni),
        IpFamily::V6 => format!("flannel-v6.{}", options.vni),
    }
}

fn device_spec(family: IpFamily, options: &VxlanConfig, below: Below, preferred_mac: Mac) -> DeviceSpec {
    DeviceSpec {
        name: device_name(family, options),
        family,
        vni: options.vni,
        port: options.udp_port(),
        gbp: options.gbp,
        learning: options.learning,
        below,
        checksums_off: false,
        index: None,
        mac: None,
        preferred_mac,
        address: None,
    }
}

/// Makes up a device address: locally administered, for a single device (IEEE 802, section 8.4).
fn random_mac() -> Mac {
    // The keys of the standard library's hashers come from the operating system's random source.
    let [mut first, b, c, d, e, f, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    first = (first & 0xfe) | 0x02;
    Mac([first, b, c, d, e, f])
}
