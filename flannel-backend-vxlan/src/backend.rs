//! The backend: a tunnel for each family that the network has.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;

use async_trait::async_trait;
use flannel_core::{
    Backend, BackendAttrs, BackendError, BackendType, ExternalInterface, Lease, NetworkConfig, OpenBackend,
    OpenRequest, SubnetKey, SyncReport, SyncRequest,
};
use flannel_netlink::{Family, Mac, Namespace};
use ipnet::IpNet;

use crate::attrs;
use crate::config::VxlanConfig;
use crate::device::{DeviceSpec, OverlayAddress};
use crate::direct::Direct;
use crate::families::{families, own_subnet, pool};
use crate::routes::{Mark, RouteProtocol};
use crate::tunnel::Tunnel;
use crate::watch::Watch;

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
}

impl OpenVxlan {
    /// Takes the namespace that the external interface is in.
    #[must_use]
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace, protocol: RouteProtocol::default() }
    }

    /// Marks direct routes (`DirectRouting`) with another number than the default.
    #[must_use]
    pub fn with_route_protocol(self, protocol: RouteProtocol) -> Self {
        Self { protocol, ..self }
    }
}

impl OpenBackend for OpenVxlan {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        Ok(Box::new(Vxlan::open(self.namespace.clone(), self.protocol, request)?))
    }
}

/// The VXLAN backend of one network on one host.
#[derive(Debug)]
struct Vxlan {
    vni: u32,
    config: NetworkConfig,
    watch: Watch,
    tunnels: Vec<Tunnel>,
    own: Option<SubnetKey>,
}

impl Vxlan {
    fn open(
        namespace: Namespace,
        protocol: RouteProtocol,
        request: OpenRequest<'_>,
    ) -> Result<Self, BackendError> {
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
        // Before the first read, so that no change falls between the two.
        let (watch, kernel) = Watch::open(namespace.clone(), &external.name)?;
        let mut tunnels = Vec::new();
        for (family, pool) in families(config) {
            let before = before.and_then(|attrs| match family {
                Family::V4 => attrs.backend_data.as_ref(),
                Family::V6 => attrs.backend_v6_data.as_ref(),
            });
            let preferred_mac = attrs::read(before).unwrap_or_else(|_| random_mac());
            let spec = device_spec(family, &options, external, preferred_mac)?;
            let mark = Mark { protocol, network: pool.network() };
            let direct = Direct::new(kernel.clone(), external, family, mark);
            let (kernel, namespace) = (kernel.clone(), namespace.clone());
            tunnels.push(Tunnel::open(spec, kernel, namespace, direct, options.direct_routing)?);
        }
        Ok(Self { vni: options.vni, config: config.clone(), watch, tunnels, own: None })
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

    async fn drifted(&mut self) -> String {
        self.watch.drifted(&mut self.tunnels).await
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        let removed: Vec<_> = self.tunnels.iter_mut().map(Tunnel::remove).collect();
        removed.into_iter().collect()
    }
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
        index: None,
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
