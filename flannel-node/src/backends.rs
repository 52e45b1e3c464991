//! The backends that a program links, by name.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use flannel_core::{
    Backend, BackendConfig, BackendDescriptor, BackendError, DescriptorStore, Dirty, IpFamilies, Json,
    MigrationRole, NetworkConfig, OpenBackend, OpenRequest, PeerSet, Plan, PlanRequest, TransportProtocol,
    TunnelPort,
};
use tokio::sync::watch;

mod migrating;

use migrating::MigratingBackend;

/// The backends that a program links. It opens the one that a network configuration names, and migrates a network from
/// one to another while its hosts run.
///
/// Everything that depends on a backend's name, ports, devices or options asks the registry: the firewall, doctor, plan,
/// probes and usage texts. Clones share their state.
///
/// ```
/// use flannel_core::{Backend, BackendDescriptor, BackendError, OpenBackend, OpenRequest};
/// use flannel_node::BackendRegistry;
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
/// }
///
/// let backends = BackendRegistry::new().with(OpenGre);
/// assert!(backends.find("GRE").is_some());
/// let error = backends.get("vxlan").err().unwrap();
/// assert_eq!(error.to_string(), "unknown backend type: vxlan (available: gre)");
/// ```
#[derive(Clone)]
pub struct BackendRegistry {
    backends: Vec<Arc<dyn BackendDescriptor>>,
    peers: watch::Sender<BTreeSet<IpAddr>>,
    descriptors: Option<Arc<dyn DescriptorStore>>,
}

impl Default for BackendRegistry {
    fn default() -> Self {
        Self { backends: Vec::new(), peers: watch::Sender::new(BTreeSet::new()), descriptors: None }
    }
}

impl fmt::Debug for BackendRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BackendRegistry").field(&self.names().collect::<Vec<_>>()).finish()
    }
}

impl BackendRegistry {
    /// Creates a registry without backends.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a backend, or replaces the one of the same name. The first one is suggested where a configuration is missing.
    #[must_use]
    pub fn with(mut self, backend: impl BackendDescriptor + 'static) -> Self {
        let name = backend.name();
        match self.backends.iter_mut().find(|other| other.name().eq_ignore_ascii_case(name)) {
            Some(other) => *other = Arc::new(backend),
            None => self.backends.push(Arc::new(backend)),
        }
        self
    }

    /// Gives the backends a store for descriptors that last across restarts.
    #[must_use]
    pub fn with_descriptors(self, descriptors: Option<Arc<dyn DescriptorStore>>) -> Self {
        Self { descriptors, ..self }
    }

    /// Returns the backend of this name, in any case.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&dyn BackendDescriptor> {
        self.iter().find(|backend| backend.name().eq_ignore_ascii_case(name))
    }

    /// Returns the backend of this name, in any case.
    ///
    /// # Errors
    ///
    /// [`BackendError::UnknownType`], which lists the names there are.
    pub fn get(&self, name: &str) -> Result<&dyn BackendDescriptor, BackendError> {
        self.find(name).ok_or_else(|| {
            let names: Vec<_> = self.names().collect();
            BackendError::UnknownType(format!("{name} (available: {})", names.join(", ")))
        })
    }

    /// Returns the backends in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &dyn BackendDescriptor> {
        self.backends.iter().map(AsRef::as_ref)
    }

    /// Returns the names of the backends in the order in which they were added.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.iter().map(BackendDescriptor::name)
    }

    /// Returns the ports on which the tunnels of a network receive packets from peers.
    #[must_use]
    pub fn tunnel_ports(&self, config: &NetworkConfig) -> Vec<TunnelPort> {
        let backend = self.find(&config.backend.name);
        backend.map_or_else(Vec::new, |backend| backend.tunnel_ports(config))
    }

    /// Returns the UDP ports of a network's tunnels that a firewall may close to all but the peers' addresses.
    #[must_use]
    pub fn restrictable_ports(&self, config: &NetworkConfig) -> BTreeSet<u16> {
        restrictable(self.tunnel_ports(config))
    }

    /// Returns the UDP ports that an earlier run with any of the backends may have closed.
    #[must_use]
    pub fn default_restrictable_ports(&self) -> BTreeSet<u16> {
        restrictable(self.names().flat_map(|name| self.default_ports(name)))
    }

    /// Returns the ports that the tunnels of a backend have unless the configuration names others.
    #[must_use]
    pub fn default_ports(&self, name: &str) -> Vec<TunnelPort> {
        let options = Json::parse("{}").ok();
        let config = options.and_then(|options| default_config(name, options));
        config.map_or_else(Vec::new, |config| self.tunnel_ports(&config))
    }

    /// Follows the public addresses of all peers. While nobody follows them they cost nothing.
    #[must_use]
    pub fn peer_addresses(&self) -> watch::Receiver<BTreeSet<IpAddr>> {
        self.peers.subscribe()
    }

    /// Opens a backend alone.
    fn open_one(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        self.get(&request.config.backend.name)?.open(request.with_descriptors(self.descriptors.as_ref()))
    }

    /// Returns the backend that peers may use during a migration in addition to the configured one.
    fn fallback(&self) -> Option<&dyn BackendDescriptor> {
        self.iter().find(|backend| backend.migration_role() == Some(MigrationRole::Fallback))
    }

    fn publish(&self, peers: &PeerSet, dirty: &Dirty) {
        if *dirty == Dirty::NONE || self.peers.receiver_count() == 0 {
            return;
        }
        let addresses = peers.iter().flat_map(|peer| peer.attrs.public.addresses()).collect();
        self.peers.send_if_modified(|published| {
            let is_new = *published != addresses;
            *published = addresses;
            is_new
        });
    }
}

fn restrictable(ports: impl IntoIterator<Item = TunnelPort>) -> BTreeSet<u16> {
    let is_restrictable = |port: &TunnelPort| port.protocol == TransportProtocol::Udp && !port.any_source;
    ports.into_iter().filter(is_restrictable).map(|port| port.port).collect()
}

/// Describes a network of both families with a backend that has these options.
fn default_config(name: &str, options: Json) -> Option<NetworkConfig> {
    let text = r#"{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#;
    let mut config = NetworkConfig::parse(text).ok()?;
    debug_assert_eq!(config.families(), IpFamilies::BOTH);
    config.backend = BackendConfig::new(name, options);
    Some(config)
}

impl OpenBackend for BackendRegistry {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        let stores_descriptors = self.get(&request.config.backend.name)?.stores_descriptors();
        let backend = MigratingBackend::open(self.clone(), request)?;
        if let Some(descriptors) = self.descriptors.as_ref().filter(|_| !stores_descriptors) {
            descriptors.clear();
        }
        Ok(Box::new(backend))
    }

    fn plan(&self, request: PlanRequest<'_>) -> Result<Plan, BackendError> {
        let backend = self.get(&request.config.backend.name)?;
        let mut plan = backend.plan(request)?;
        if let Some(fallback) =
            self.fallback().filter(|_| backend.migration_role() == Some(MigrationRole::Tunnel))
        {
            let uses_fallback =
                |peer| request.peers.peer(&peer).is_some_and(|lease| fallback.has_lease(lease));
            plan.unreachable.retain(|failure| !uses_fallback(failure.peer));
        }
        Ok(plan)
    }

    fn underlay(&self, config: &NetworkConfig) -> IpFamilies {
        self.find(&config.backend.name).map_or_else(|| config.families(), |backend| backend.underlay(config))
    }
}

#[cfg(test)]
mod tests;
