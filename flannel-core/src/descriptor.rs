//! Facts about a backend that programs need without opening it.

use std::fmt;

use crate::family::IpFamilies;
use crate::{NetworkConfig, OpenBackend};

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

    /// Returns the ports on which the tunnels of this network receive packets from peers. Options that are wrong count as
    /// not given.
    fn tunnel_ports(&self, config: &NetworkConfig) -> Vec<TunnelPort> {
        let _ = config;
        Vec::new()
    }

    /// Returns the names of the devices that the backend creates for this network. Options that are wrong count as not
    /// given.
    fn device_names(&self, config: &NetworkConfig) -> Vec<String> {
        let _ = config;
        Vec::new()
    }
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
