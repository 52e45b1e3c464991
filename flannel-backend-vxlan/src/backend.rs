//! The VXLAN backend: a tunnel for each family of the network.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;

use async_trait::async_trait;
use flannel_core::{
    Backend, BackendAttrs, BackendDescriptor, BackendError, BackendType, DataPath, DeviceFacts,
    ExternalInterface, IpFamilies, KernelFeature, Lease, MigrationRole, NetworkConfig, OpenBackend,
    OpenRequest, Plan, PlanRequest, SubnetKey, SubnetPool, SyncReport, SyncRequest, TunnelDevice, TunnelPort,
};
use flannel_dataplane::{
    DirectRouting, DriftMonitor, RouteOwner, RouteProtocol, SharedNetlink, check_same_type, family_pools,
    own_subnet,
};
use flannel_netlink::{IpFamily, Mac, Namespace};
use ipnet::IpNet;

use crate::attrs;
use crate::checksums::ChecksumOffload;
use crate::config::VxlanConfig;
use crate::device::{DeviceSpec, OverlayAddress, UnderlaySpec};
use crate::tunnel::Tunnel;

/// Opens the VXLAN backend in a network namespace.
///
/// ```no_run
/// use flannel_backend_vxlan::{Namespace, OpenVxlan};
///
/// let in_current_namespace = OpenVxlan::new(Namespace::current()?);
/// let in_named_namespace = OpenVxlan::new(Namespace::open("/run/netns/blue")?);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct OpenVxlan {
    namespace: Namespace,
    protocol: RouteProtocol,
    offload: ChecksumOffload,
}

impl OpenVxlan {
    /// Opens backends in the namespace of the external interface.
    #[must_use]
    pub fn new(namespace: Namespace) -> Self {
        let (protocol, offload) = (RouteProtocol::default(), ChecksumOffload::default());
        Self { namespace, protocol, offload }
    }

    /// Sets the protocol number of direct routes (`DirectRouting`).
    #[must_use]
    pub fn with_route_protocol(self, protocol: RouteProtocol) -> Self {
        Self { protocol, ..self }
    }

    /// Sets how the checksum offload of the tunnel device is treated.
    #[must_use]
    pub fn with_checksum_offload(self, offload: ChecksumOffload) -> Self {
        Self { offload, ..self }
    }

    fn disables_checksums(&self) -> bool {
        // A kernel whose release is unknown counts as a correct one.
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        self.offload.is_off_on(&release)
    }

    /// Returns the device and the direct routing of each family.
    fn parts(
        &self,
        request: OpenRequest<'_>,
        options: &VxlanConfig,
        netlink: &SharedNetlink,
    ) -> Result<Vec<(DeviceSpec, DirectRouting)>, BackendError> {
        let OpenRequest { config, external, before, .. } = request;
        let disable_checksums = self.disables_checksums();
        let parts = |(family, pool): (IpFamily, SubnetPool)| {
            let before = before.and_then(|attrs| match family {
                IpFamily::V4 => attrs.backend_data.as_ref(),
                IpFamily::V6 => attrs.backend_v6_data.as_ref(),
            });
            let spec = DeviceSpec {
                name: device_name(family, options),
                family,
                vni: options.vni,
                port: options.udp_port(),
                gbp: options.gbp,
                learning: options.learning,
                underlay: UnderlaySpec::new(family, options, external)?,
                disable_checksums,
                index: None,
                mac: None,
                preferred_mac: attrs::read(before).unwrap_or_else(|_| random_mac()),
                address: None,
            };
            let owner = RouteOwner { protocol: self.protocol, network: pool.network() };
            Ok((spec, DirectRouting::new(netlink.clone(), external, family, owner)))
        };
        family_pools(config).map(parts).collect()
    }
}

impl OpenBackend for OpenVxlan {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        Ok(Box::new(Vxlan::open(self, request)?))
    }

    fn plan(&self, request: PlanRequest<'_>) -> Result<Plan, BackendError> {
        let PlanRequest { config, external, .. } = request;
        config.backend.check_type("vxlan")?;
        let options = VxlanConfig::parse(&config.backend, config.ipv6.is_some())?;
        let (netlink, has_direct_routing) =
            (SharedNetlink::open_in(&self.namespace)?, options.direct_routing);
        let mut plan = Plan::default();
        for (spec, direct) in self.parts(OpenRequest::new(config, external), &options, &netlink)? {
            let (netlink, namespace) = (netlink.clone(), self.namespace.clone());
            plan.merge(Tunnel::plan(spec, direct, netlink, namespace, has_direct_routing, request)?);
        }
        Ok(plan)
    }
}

/// The VXLAN backend of one network on one host.
#[derive(Debug)]
struct Vxlan {
    opener: OpenVxlan,
    options: VxlanConfig,
    config: NetworkConfig,
    monitor: DriftMonitor,
    tunnels: Vec<Tunnel>,
    own: Option<SubnetKey>,
}

impl Vxlan {
    fn open(opener: &OpenVxlan, request: OpenRequest<'_>) -> Result<Self, BackendError> {
        let OpenRequest { config, external, .. } = request;
        config.backend.check_type("vxlan")?;
        let options = VxlanConfig::parse(&config.backend, config.ipv6.is_some())?;
        tracing::info!(
            "VXLAN config: VNI={} Port={} GBP={} Learning={} DirectRouting={}",
            options.vni,
            options.port.unwrap_or(0),
            options.gbp,
            options.learning,
            options.direct_routing
        );
        // Before the first read, so that no change is missed between the two.
        let (monitor, netlink) = DriftMonitor::open(opener.namespace.clone(), &external.name)?;
        let mut tunnels = Vec::new();
        for (spec, direct) in opener.parts(request, &options, &netlink)? {
            let (netlink, namespace) = (netlink.clone(), opener.namespace.clone());
            tunnels.push(Tunnel::open(spec, direct, netlink, namespace, options.direct_routing)?);
        }
        Ok(Self { opener: opener.clone(), options, config: config.clone(), monitor, tunnels, own: None })
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
        let underlay = |tunnel: &Tunnel| UnderlaySpec::new(tunnel.family(), &self.options, external);
        // Check every family before moving any tunnel.
        let underlays = self.tunnels.iter().map(underlay).collect::<Result<Vec<_>, _>>()?;
        for (tunnel, underlay) in self.tunnels.iter_mut().zip(underlays) {
            tunnel.update_underlay(underlay);
        }
        self.monitor.update_interface(&external.name);
        Ok(())
    }

    /// Acts like a restart: adopts or replaces each device, and removes a device whose name the new config doesn't have.
    fn reconfigure(&mut self, request: OpenRequest<'_>) -> Result<(), BackendError> {
        check_same_type(&self.config.backend, &request.config.backend)?;
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
            let Some((_, pool)) = family_pools(&self.config).find(|(of, _)| *of == family) else { continue };
            let address = OverlayAddress { net: IpNet::from(subnet.network()), network: pool.network() };
            configured = configured.and(tunnel.configure(address));
        }
        configured
    }

    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
        let mut report = SyncReport::default();
        let Some(own) = self.own else { return report };
        report.merge(self.monitor.sync(request.now));
        for tunnel in &mut self.tunnels {
            report.merge(tunnel.sync(request, &own));
        }
        report
    }

    async fn wait_for_drift(&mut self) -> String {
        self.monitor.wait_for_drift(&mut self.tunnels).await
    }

    fn devices(&self) -> Vec<DeviceFacts> {
        self.tunnels.iter().map(Tunnel::facts).collect()
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        let removed: Vec<_> = self.tunnels.iter_mut().map(Tunnel::remove).collect();
        removed.into_iter().collect()
    }
}

impl BackendDescriptor for OpenVxlan {
    fn name(&self) -> &'static str {
        "vxlan"
    }

    fn options(&self) -> &'static [&'static str] {
        &["VNI", "Port", "GBP", "Learning", "MTU", "DirectRouting"]
    }

    fn tunnel_ports(&self, config: &NetworkConfig) -> Vec<TunnelPort> {
        vec![TunnelPort::udp(VxlanConfig::parse_lenient(config).udp_port(), config.families())]
    }

    fn device_names(&self, config: &NetworkConfig) -> Vec<String> {
        let options = VxlanConfig::parse_lenient(config);
        family_pools(config).map(|(family, _)| device_name(family, &options)).collect()
    }

    fn data_path(
        &self,
        config: &NetworkConfig,
        external: &ExternalInterface,
    ) -> Result<DataPath, BackendError> {
        let options = VxlanConfig::parse(&config.backend, config.ipv6.is_some())?;
        let device = |(family, _)| {
            let UnderlaySpec { mtu, .. } = UnderlaySpec::new(family, &options, external)?;
            let families = if family == IpFamily::V4 { IpFamilies::V4 } else { IpFamilies::V6 };
            let device = TunnelDevice::new(device_name(family, &options), families, mtu);
            Ok(device.with_vni(options.vni).with_port(options.udp_port()))
        };
        let devices = family_pools(config).map(device).collect::<Result<Vec<_>, BackendError>>()?;
        let mtu = devices.iter().map(|device| device.mtu).min().unwrap_or_default();
        Ok(DataPath::new(mtu).with_devices(devices))
    }

    fn kernel_features(&self) -> &'static [KernelFeature] {
        &[KernelFeature::Vxlan]
    }

    fn migration_role(&self) -> Option<MigrationRole> {
        Some(MigrationRole::Tunnel)
    }
}

/// Returns the bytes that encapsulation adds to a packet: the inner Ethernet header (14), VXLAN (8), UDP (8) and the outer
/// IP header (RFC 7348, section 5).
fn overhead(family: IpFamily) -> u32 {
    match family {
        IpFamily::V4 => 14 + 8 + 8 + 20,
        IpFamily::V6 => 14 + 8 + 8 + 40,
    }
}

impl UnderlaySpec {
    /// Returns what is below the tunnel of a family. Fails if the interface has no address of the family.
    fn new(
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
        // The kernel limits the MTU of a tunnel to what the external interface can carry.
        let outer_mtu = options.mtu.unwrap_or(external.mtu).min(external.mtu);
        let mtu = outer_mtu.saturating_sub(overhead(family));
        Ok(Self { interface: external.name.clone(), index: external.index, local, mtu })
    }
}

fn device_name(family: IpFamily, options: &VxlanConfig) -> String {
    match family {
        IpFamily::V4 => format!("flannel.{}", options.vni),
        IpFamily::V6 => format!("flannel-v6.{}", options.vni),
    }
}

/// Returns a random MAC address that is locally administered and unicast (IEEE 802, section 8.4).
fn random_mac() -> Mac {
    // The keys of the standard library's hashers come from the random source of the operating system.
    let [mut first, b, c, d, e, f, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    first = (first & 0xfe) | 0x02;
    Mac([first, b, c, d, e, f])
}
