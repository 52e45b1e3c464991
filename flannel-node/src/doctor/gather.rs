//! Reads the facts about a host. It writes nothing; facts that cannot be read are missing.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use flannel_core::{
    BackendError, DataPath, ExternalInterface, IpFamilies, KernelFeature, Lease, NetworkConfig, PublicAddrs,
    TunnelDevice,
};
use flannel_netlink::{IpFamily, LinkKind, Namespace, Netlink, Route, RouteFilter};
use flannel_registry::CachedNetwork;

use super::facts::{
    CachedFiles, ConfigFact, Facts, FirewallFacts, KernelFacts, NetworkFacts, RegistryFacts, RunningAgent,
};
use super::profile::AgentProfile;
use crate::backends::BackendRegistry;
use crate::plan::{own_lease, read_node_id};
use crate::subnet_file::SubnetEnv;
use crate::{capabilities, client};

mod agents;
mod firewall;
mod kernel;
mod managers;
mod peers;
mod plan;
mod sockets;

pub use agents::running as running_agents;

/// Reads the facts about this host. `all` are the running agents; the one that `options` describe is examined.
///
/// # Errors
///
/// Returns a message of one line if the network of the host cannot be read.
pub async fn read(
    options: AgentProfile,
    backends: &BackendRegistry,
    all: Vec<RunningAgent>,
) -> Result<Facts, String> {
    let failed = |what: &str, error: &dyn std::error::Error| format!("{what} cannot be read: {error}");
    let namespace = Namespace::current().map_err(|error| failed("the network namespace", &error))?;
    let mut netlink = Netlink::open().map_err(|error| failed("the network", &error))?;
    let (own_daemon, daemons) = split(&options, all);
    let registry = options.registry.read().await;
    let cached = cached_files(&options);
    let external = external(&options, &registry, &cached);
    let network = network(&options, backends, &registry, &cached, &external);
    let mut facts = Facts {
        now: wall_clock(),
        backends: backends.clone(),
        program: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("flanneld")),
        may_change_network: capabilities::has_net_admin(own_daemon.as_ref().map(|daemon| daemon.pid)),
        may_look: capabilities::has_net_admin(None) != Some(false),
        daemons: with_devices(daemons, backends, &external).await,
        own_daemon,
        kernel: KernelFacts::default(),
        sysctls: Default::default(),
        links: netlink.links().map_err(|error| failed("the links", &error))?,
        addresses: netlink.addresses(0).map_err(|error| failed("the addresses", &error))?,
        routes: routes(&mut netlink).map_err(|error| failed("the routes", &error))?,
        external,
        registry,
        cached,
        network,
        peers: Vec::new(),
        plan: None,
        held_peers: 0,
        sockets: Vec::new(),
        firewall: FirewallFacts::default(),
        managed: Vec::new(),
        options,
    };
    look_closer(&namespace, &mut facts).await;
    Ok(facts)
}

/// Returns the time of this host, to compare it with the registry's and with the dates of certificates.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the program, and it is the wall clock that is looked at"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// Reads the facts that depend on the network.
async fn look_closer(namespace: &Namespace, facts: &mut Facts) {
    find_tun(facts);
    let leases = facts.registry.leases.iter().flat_map(|leases| &leases.leases);
    let is_other = |lease: &&Arc<Lease>| Some(lease.as_ref()) != facts.own();
    let others = leases.filter(is_other).cloned().collect();
    facts.peers = peers::probe(others).await;
    facts.plan = plan::read(facts).await;
    facts.held_peers = held_peers(facts);
    facts.kernel = kernel::features(facts.network.as_ref());
    let mut names: Vec<String> = facts.devices().map(|link| link.name.clone()).collect();
    facts.managed = managers::of(facts.devices());
    names.extend(facts.external.iter().map(|external| external.name.clone()));
    facts.sysctls = kernel::sysctls(namespace, &names);
    let ports = facts.network.iter().flat_map(|network| &network.ports);
    facts.sockets = ports.flat_map(|port| sockets::on(*port)).collect();
    facts.firewall = firewall::read(namespace, facts).await;
}

/// Separates the agent with these options from the others.
fn split(options: &AgentProfile, mut all: Vec<RunningAgent>) -> (Option<RunningAgent>, Vec<RunningAgent>) {
    let is_own =
        |daemon: &RunningAgent| daemon.options.as_ref().is_ok_and(|other| other.is_same_network(options));
    let same_file =
        |daemon: &RunningAgent| daemon.options.as_ref().is_ok_and(|it| it.subnet_file == options.subnet_file);
    let position = all.iter().position(|daemon| is_own(daemon) && same_file(daemon));
    let position = position.or_else(|| all.iter().position(is_own));
    let own = position.map(|position| all.remove(position));
    (own, all)
}

/// Adds the devices of the other agents' networks.
async fn with_devices(
    mut daemons: Vec<RunningAgent>,
    backends: &BackendRegistry,
    external: &Result<ExternalInterface, String>,
) -> Vec<RunningAgent> {
    for daemon in &mut daemons {
        let (Ok(options), Ok(external)) = (&daemon.options, external) else { continue };
        if let Some(config) = options.registry.config().await
            && let Ok(path) = data_path(backends, &config, external)
        {
            daemon.devices = path.devices.into_iter().map(|device| device.name).collect();
        }
    }
    daemons
}

fn routes(netlink: &mut Netlink) -> Result<Vec<Route>, flannel_netlink::Error> {
    let mut routes = Vec::new();
    for family in IpFamily::BOTH {
        let table = Some(Route::MAIN_TABLE);
        routes.extend(netlink.routes(&RouteFilter {
            family: Some(family),
            table,
            ..RouteFilter::default()
        })?);
    }
    Ok(routes)
}

/// Selects the interface as the agent does.
fn external(
    options: &AgentProfile,
    registry: &RegistryFacts,
    cached: &CachedFiles,
) -> Result<ExternalInterface, String> {
    let config = if let ConfigFact::Valid(config) = &registry.config {
        Some(config)
    } else {
        cached.network.as_ref().map(|cached| &cached.config)
    };
    (options.external)(config)
}

/// Derives the network from the registry, or else from the cache.
fn network(
    options: &AgentProfile,
    backends: &BackendRegistry,
    registry: &RegistryFacts,
    files: &CachedFiles,
    external: &Result<ExternalInterface, String>,
) -> Option<NetworkFacts> {
    let cached = files.network.as_ref();
    let config = match &registry.config {
        ConfigFact::Valid(config) => config.clone(),
        ConfigFact::Silent(..) | ConfigFact::Refused(..) | ConfigFact::BadOptions(..) => {
            cached?.config.clone()
        }
        ConfigFact::Missing | ConfigFact::Invalid(_) => return None,
    };
    let external = external.as_ref().ok()?;
    let DataPath { devices, mtu, .. } = data_path(backends, &config, external).ok()?;
    let ports = backends.tunnel_ports(&config).iter().map(|port| port.port).collect();
    let public: PublicAddrs = external.public.used_by(&config);
    let own = match &registry.leases {
        Some(all) => own_lease(&all.leases, &public, files.node).map(|lease| Lease::clone(lease)),
        None => cached.map(|cached| cached.own.clone()),
    };
    let subnet_file = own
        .as_ref()
        .map(|lease| SubnetEnv::new(&config, &lease.subnet, mtu, options.rules.masquerade).to_string());
    Some(NetworkFacts { config, own, devices, mtu, ports, subnet_file })
}

/// Returns the plan of the configured backend on this host.
pub(super) fn data_path(
    backends: &BackendRegistry,
    config: &NetworkConfig,
    external: &ExternalInterface,
) -> Result<DataPath, BackendError> {
    backends.get(&config.backend.name)?.data_path(config, external)
}

/// Finds the TUN device of the network; the kernel chose its name.
fn find_tun(facts: &mut Facts) {
    let uses_tun = |name: &str| {
        let backend = facts.backends.find(name);
        backend.is_some_and(|backend| backend.kernel_features().contains(&KernelFeature::Tun))
    };
    let network = facts.network.as_ref().filter(|network| network.devices.is_empty());
    let Some(network) = network.filter(|network| uses_tun(&network.config.backend.name)) else { return };
    let of_network = |index: u32| {
        let mut addresses = facts.addresses.iter().filter(|address| address.index == index);
        addresses
            .any(|address| network.config.pools().any(|pool| pool.network().contains(&address.net.addr())))
    };
    let tun = facts.links.iter().find(|link| link.kind == LinkKind::Tun && of_network(link.index));
    let name = tun.map(|link| link.name.clone());
    let (mtu, port) = (network.mtu, network.ports.first().copied().unwrap_or_default());
    if let (Some(name), Some(network)) = (name, &mut facts.network) {
        network.devices = vec![TunnelDevice::new(name, IpFamilies::V4, mtu).with_port(port)];
    }
}

/// Returns the number of peers that the running agent keeps although they left.
fn held_peers(facts: &Facts) -> usize {
    let options = facts.own_daemon.as_ref().and_then(|daemon| daemon.options.as_ref().ok());
    let socket = options.and_then(|options| options.status_socket.as_deref());
    let report = socket.and_then(|socket| client::summary(socket).ok());
    report.map_or(0, |report| report.network.peers.held)
}

/// Reads the files of earlier runs.
fn cached_files(options: &AgentProfile) -> CachedFiles {
    let network = CachedNetwork::read(&options.cache, options.registry.cache_key()).ok().flatten();
    let subnet_file = fs::read_to_string(&options.subnet_file).ok();
    CachedFiles { subnet_file, network, node: read_node_id(&options.node_id).ok().flatten() }
}
