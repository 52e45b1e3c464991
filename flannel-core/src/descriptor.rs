//! Facts about a backend that programs need without opening it.

use std::fmt;

use crate::backend::{BackendError, OpenBackend};
use crate::config::NetworkConfig;
use crate::external::ExternalInterface;
use crate::family::IpFamilies;
use crate::lease::Lease;

/// An opener that describes its backend: its name, its options, and the ports and devices of a configuration.
///
/// A program collects descriptors to select a backend by name, to write firewall rules for its tunnel ports and to
/// diagnose its devices. Nothing here touches the host.
///
/// ```
/// use flannel_core::{
///     Backend, BackendDescriptor, BackendError, IpFamilies, NetworkConfig, OpenBackend, OpenRequest, TunnelPort,
/// };
///
/// struct OpenGre;
///
/// impl OpenBackend for OpenGre {
///     fn open(&self, _: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
///         Err(BackendError::Host("the kernel lacks GRE".to_owned()))
///     }
/// }
///
/// impl BackendDescriptor for OpenGre {
///     fn name(&self) -> &'static str {
///         "gre"
///     }
///     fn options(&self) -> &'static [&'static str] {
///         &["Port"]
///     }
///     fn tunnel_ports(&self, _: &NetworkConfig) -> Vec<TunnelPort> {
///         vec![TunnelPort::udp(4754, IpFamilies::BOTH)]
///     }
/// }
///
/// let backends: Vec<Box<dyn BackendDescriptor>> = vec![Box::new(OpenGre)];
/// let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "gre"}}"#)?;
/// let backend = backends.iter().find(|backend| backend.name() == config.backend.name).unwrap();
/// assert_eq!(backend.tunnel_ports(&config)[0].to_string(), "UDP port 4754");
/// # Ok::<(), flannel_core::ConfigError>(())
/// ```
pub trait BackendDescriptor: OpenBackend + Sync {
    /// Returns the name that selects the backend as `Backend.Type`, in lower case.
    fn name(&self) -> &'static str;

    /// Returns the members of the `Backend` object that the backend reads, except `Type`, as they are documented.
    fn options(&self) -> &'static [&'static str] {
        &[]
    }

    /// Returns the ports on which the tunnels of this network receive packets from peers. Invalid options count as not given.
    fn tunnel_ports(&self, config: &NetworkConfig) -> Vec<TunnelPort> {
        let _ = config;
        Vec::new()
    }

    /// Returns the names of the devices that the backend creates for this network. Invalid options count as not given.
    fn device_names(&self, config: &NetworkConfig) -> Vec<String> {
        let _ = config;
        Vec::new()
    }

    /// Returns the MTU and the devices that this network gets on a host with this external interface.
    ///
    /// # Errors
    ///
    /// [`BackendError`] if the backend cannot work with these options or this interface.
    fn data_path(
        &self,
        config: &NetworkConfig,
        external: &ExternalInterface,
    ) -> Result<DataPath, BackendError> {
        let _ = config;
        Ok(DataPath::new(external.mtu))
    }

    /// Returns the kernel features without which the backend cannot be opened.
    fn kernel_features(&self) -> &'static [KernelFeature] {
        &[]
    }

    /// Returns whether a host with this lease uses the backend.
    fn has_lease(&self, lease: &Lease) -> bool {
        lease.attrs.backend_type.as_str().eq_ignore_ascii_case(self.name())
    }

    /// Returns the part that the backend can take while a network migrates from one backend to another, host by host.
    /// Without one, a change of the backend replaces it at once.
    fn migration_role(&self) -> Option<MigrationRole> {
        None
    }

    /// Returns whether the backend stores descriptors in [`OpenRequest::descriptors`](crate::OpenRequest). Those that
    /// are left there when another backend is opened are closed.
    fn stores_descriptors(&self) -> bool {
        false
    }
}

/// The data path of a network on one host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DataPath {
    /// The largest packet that a container may send, in bytes.
    pub mtu: u32,
    /// The devices whose names are known before they exist.
    pub devices: Vec<TunnelDevice>,
}

impl DataPath {
    /// Describes a data path without a device of its own.
    #[must_use]
    pub const fn new(mtu: u32) -> Self {
        Self { mtu, devices: Vec::new() }
    }

    /// Adds devices.
    #[must_use]
    pub fn with_devices(self, devices: Vec<TunnelDevice>) -> Self {
        Self { devices, ..self }
    }
}

/// A tunnel device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunnelDevice {
    /// The name.
    pub name: String,
    /// The families of the packets in the tunnel.
    pub families: IpFamilies,
    /// The VXLAN network identifier of a VXLAN device.
    pub vni: Option<u32>,
    /// The UDP port.
    pub port: Option<u16>,
    /// The MTU, in bytes.
    pub mtu: u32,
}

impl TunnelDevice {
    /// Creates the description of a device without a VNI and a port.
    #[must_use]
    pub fn new(name: impl Into<String>, families: IpFamilies, mtu: u32) -> Self {
        Self { name: name.into(), families, vni: None, port: None, mtu }
    }

    /// Sets the UDP port.
    #[must_use]
    pub fn with_port(self, port: u16) -> Self {
        Self { port: Some(port), ..self }
    }

    /// Sets the VXLAN network identifier.
    #[must_use]
    pub fn with_vni(self, vni: u32) -> Self {
        Self { vni: Some(vni), ..self }
    }
}

/// A kernel feature that may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KernelFeature {
    /// VXLAN devices.
    Vxlan,
    /// TUN devices.
    Tun,
}

/// The part of a backend in a migration from one backend to another. Two backends are carried side by side if one is a
/// tunnel and the other a fallback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MigrationRole {
    /// The backend has a route for each peer that uses it, and leaves the other peers to the fallback.
    Tunnel,
    /// The backend has one route for the whole network, which any longer route overrides, and receives from every peer.
    Fallback,
}

/// A port on which a tunnel receives packets from peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TunnelPort {
    /// The address families on which the tunnel receives.
    pub families: IpFamilies,
    /// The transport protocol.
    pub protocol: TransportProtocol,
    /// The port number.
    pub port: u16,
    /// Whether a peer may send from an address that is not in its lease, because its endpoint roams. A firewall must
    /// not restrict the sources of this port.
    pub any_source: bool,
}

impl TunnelPort {
    /// Describes a UDP port whose peers send from the addresses in their leases.
    #[must_use]
    pub const fn udp(port: u16, families: IpFamilies) -> Self {
        Self { families, protocol: TransportProtocol::Udp, port, any_source: false }
    }

    /// Allows peers to send from any address.
    #[must_use]
    pub const fn with_any_source(self) -> Self {
        Self { any_source: true, ..self }
    }
}

impl fmt::Display for TunnelPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", self.protocol, self.port)
    }
}

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TransportProtocol {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

impl fmt::Display for TransportProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        })
    }
}
