//! Reading what doctor judges by. Nothing is written, and whatever cannot be read is left out.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use flannel_backend_udp::OpenUdp;
use flannel_backend_vxlan::{OpenVxlan, TunnelDevice};
use flannel_core::{BackendError, ExternalInterface, Lease, NetworkConfig, PublicAddrs};
use flannel_netlink::{IpFamily, LinkKind, Namespace, Netlink, Route, RouteFilter};
use flannel_registry::{CachedNetwork, CertificateDates, certificate_dates};

use super::facts::{Config, Daemon, Facts, Firewall, Kernel, Memory, Network, Registry};
use crate::observe::client;
use crate::options::{EtcdFiles, Options};
use crate::registry::own_lease;
use crate::subnet_env::SubnetEnv;
use crate::{capabilities, external};

mod daemons;
mod firewall;
mod kernel;
mod managers;
mod peers;
mod plan;
mod registry;
mod sockets;

pub(super) use daemons::all as daemons;

/// Reads everything. `all` are the daemons that run here.
pub(super) async fn read(options: Options, all: Vec<Daemon>) -> Result<Facts, String> {
    let failed = |what: &str, error: &dyn std::error::Error| format!("{what} cannot be read: {error}");
    let namespace = Namespace::current().map_err(|error| failed("the network namespace", &error))?;
    let mut netlink = Netlink::open().map_err(|error| failed("the network", &error))?;
    let (own_daemon, daemons) = split(&options, all);
    let registry = registry::ask(&options).await;
    let memory = memory(&options);
    let external = external(&options, &registry, &memory);
    let network = network(&options, &registry, &memory, &external);
    let mut facts = Facts {
        now: wall_clock(),
        program: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("flanneld")),
        may_change_network: capabilities::of(own_daemon.as_ref().map(|daemon| daemon.pid)),
        may_look: capabilities::of(None) != Some(false),
        certificates: certificates(&options.etcd.files),
        daemons: with_devices(daemons, &external).await,
        own_daemon,
        kernel: Kernel::default(),
        sysctls: Default::default(),
        links: netlink.links().map_err(|error| failed("the links", &error))?,
        addresses: netlink.addresses(0).map_err(|error| failed("the addresses", &error))?,
        routes: routes(&mut netlink).map_err(|error| failed("the routes", &error))?,
        external,
        registry,
        memory,
        network,
        peers: Vec::new(),
        plan: None,
        held_peers: 0,
        sockets: Vec::new(),
        firewall: Firewall::default(),
        managed: Vec::new(),
        options,
    };
    look_closer(&namespace, &mut facts).await;
    Ok(facts)
}

/// What time this host takes it to be: doctor compares it with etcd's, and judges certificates by it as TLS does.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the program, and it is the wall clock that is looked at"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// Reads what it takes the network to know for.
async fn look_closer(namespace: &Namespace, facts: &mut Facts) {
    find_tun(facts);
    let leases = facts.registry.leases.iter().flat_map(|leases| &leases.leases);
    let is_other = |lease: &&Arc<Lease>| Some(lease.as_ref()) != facts.own();
    let others = leases.filter(is_other).cloned().collect();
    facts.peers = peers::look(others).await;
    facts.plan = plan::look(namespace, facts).await;
    facts.held_peers = held_peers(facts);
    facts.kernel = kernel::features(facts.network.as_ref());
    let mut names: Vec<String> = facts.devices().map(|link| link.name.clone()).collect();
    facts.managed = managers::of(facts.devices());
    names.extend(facts.external.iter().map(|external| external.name.clone()));
    facts.sysctls = kernel::sysctls(namespace, &names);
    if let Some(port) = facts.network.as_ref().and_then(|network| network.port) {
        facts.sockets = sockets::on(port);
    }
    facts.firewall = firewall::look(namespace, facts).await;
}

/// Tells the daemon that the flags are of from the others.
fn split(options: &Options, mut all: Vec<Daemon>) -> (Option<Daemon>, Vec<Daemon>) {
    let is_own = |daemon: &Daemon| {
        daemon.options.as_ref().is_ok_and(|other| other.etcd.is_same_network(&options.etcd))
    };
    let same_file =
        |daemon: &Daemon| daemon.options.as_ref().is_ok_and(|it| it.subnet_file == options.subnet_file);
    let position = all.iter().position(|daemon| is_own(daemon) && same_file(daemon));
    let position = position.or_else(|| all.iter().position(is_own));
    let own = position.map(|position| all.remove(position));
    (own, all)
}

/// Finds out which devices the networks of other daemons have.
async fn with_devices(mut daemons: Vec<Daemon>, external: &Result<ExternalInterface, String>) -> Vec<Daemon> {
    for daemon in &mut daemons {
        let (Ok(options), Ok(external)) = (&daemon.options, external) else { continue };
        if let Some(config) = registry::config_of(options).await
            && let Ok(carried) = Carried::of(&config, external)
        {
            daemon.devices = carried.devices.into_iter().map(|device| device.name).collect();
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

/// Chooses the interface as the daemon does.
fn external(options: &Options, registry: &Registry, memory: &Memory) -> Result<ExternalInterface, String> {
    let config = if let Config::Valid(config) = &registry.config {
        Some(config)
    } else {
        memory.network.as_ref().map(|remembered| &remembered.config)
    };
    external::look(&options.external, config)
}

/// Puts together what is known of the network.
fn network(
    options: &Options,
    registry: &Registry,
    memory: &Memory,
    external: &Result<ExternalInterface, String>,
) -> Option<Network> {
    let remembered = memory.network.as_ref();
    let config = match &registry.config {
        Config::Valid(config) => config.clone(),
        Config::Silent(_) | Config::Refused(_) | Config::BadOptions(_) => remembered?.config.clone(),
        Config::Missing | Config::Invalid(_) => return None,
    };
    let external = external.as_ref().ok()?;
    let Carried { devices, mtu, port } = Carried::of(&config, external).ok()?;
    let public: PublicAddrs = external.public.used_by(&config);
    let own = match &registry.leases {
        Some(all) => own_lease(&all.leases, &public, memory.node).map(|lease| Lease::clone(lease)),
        None => remembered.map(|remembered| remembered.own.clone()),
    };
    let subnet_file = own.as_ref().map(|lease| {
        SubnetEnv::of(&config, &lease.subnet, mtu, options.firewall.rules.masquerade).to_string()
    });
    Some(Network { config, own, devices, mtu, port, subnet_file })
}

/// How a configuration has traffic carried on this host.
pub(super) struct Carried {
    devices: Vec<TunnelDevice>,
    mtu: u32,
    port: Option<u16>,
}

impl Carried {
    /// Asks the backend, which says what is wrong with its part of the configuration.
    pub(super) fn of(config: &NetworkConfig, external: &ExternalInterface) -> Result<Self, BackendError> {
        match config.backend.name.to_lowercase().as_str() {
            "vxlan" => {
                let devices = OpenVxlan::devices(config, external)?;
                let mtu = devices.iter().map(|device| device.mtu).min().unwrap_or(0);
                let port = devices.first().map(|device| device.port);
                Ok(Self { devices, mtu, port })
            }
            "udp" => {
                let (mtu, port) = OpenUdp::device(config, external)?;
                Ok(Self { devices: Vec::new(), mtu, port: Some(port) })
            }
            "host-gw" | "extension" | "alloc" => {
                Ok(Self { devices: Vec::new(), mtu: external.mtu, port: None })
            }
            name => Err(crate::backends::unknown(name)),
        }
    }
}

/// Finds the TUN device of the network, whose name the kernel chose.
fn find_tun(facts: &mut Facts) {
    let Some(network) =
        facts.network.as_ref().filter(|it| it.config.backend.name.eq_ignore_ascii_case("udp"))
    else {
        return;
    };
    let of_network = |index: u32| {
        let mut addresses = facts.addresses.iter().filter(|address| address.index == index);
        addresses
            .any(|address| network.config.pools().any(|pool| pool.network().contains(&address.net.addr())))
    };
    let tun = facts.links.iter().find(|link| link.kind == LinkKind::Tun && of_network(link.index));
    let name = tun.map(|link| link.name.clone());
    let (mtu, port) = (network.mtu, network.port.unwrap_or(0));
    if let (Some(name), Some(network)) = (name, &mut facts.network) {
        network.devices = vec![TunnelDevice::new(name, IpFamily::V4, 0, port, mtu)];
    }
}

/// Asks the daemon that runs, if it has a socket for that.
fn held_peers(facts: &Facts) -> usize {
    let options = facts.own_daemon.as_ref().and_then(|daemon| daemon.options.as_ref().ok());
    let socket = options.and_then(|options| options.observe.socket.as_deref());
    let report = socket.and_then(|socket| client::summary(socket).ok());
    report.map_or(0, |report| report.network.peers.held)
}

/// Reads what earlier runs left.
fn memory(options: &Options) -> Memory {
    let network =
        CachedNetwork::read(&options.beside_subnet_file(".cache"), &options.etcd.prefix).ok().flatten();
    let subnet_file = fs::read_to_string(&options.subnet_file).ok();
    Memory { subnet_file, network, node: crate::plan::node_id(options) }
}

fn certificates(files: &EtcdFiles) -> Vec<CertificateDates> {
    let paths = files.authorities.iter().chain(&files.certificate);
    // Files that cannot be read are told of by whoever opens the registry.
    paths.flat_map(|path| certificate_dates(path).unwrap_or_default()).collect()
}
