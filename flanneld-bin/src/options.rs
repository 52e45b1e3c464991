//! The options of the daemon: command line and environment, checked. [`table`] lists the flags.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use flannel_dataplane::{InterfacePattern, InterfaceSelector};
use flannel_firewall::RuleOptions;
use flannel_node::probe::MeshOptions;
use flannel_node::server::ObserveOptions;
use flannel_registry::CachedNetwork;

use crate::flags::{self, BadValue, FlagError, IgnoredArguments};
use crate::log::{LogOptions, ModuleLevel};

pub(crate) mod doctor;
mod endpoint;
mod etcd;
pub(crate) mod migrate;
pub(crate) mod ping;
pub(crate) mod plan;
mod prefix;
mod settings;
pub(crate) mod show;
pub(crate) mod table;
pub(crate) mod values;

pub(crate) use etcd::{EtcdApi, EtcdFiles, EtcdOptions};
pub(crate) use settings::Settings;

/// What the command line requests.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Request {
    /// To print the version.
    Version,
    /// To run the daemon.
    Run(Box<Options>),
}

/// The options of the daemon.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Options {
    /// The etcd servers and credentials.
    pub(crate) etcd: EtcdOptions,
    /// The etcd API to use.
    pub(crate) etcd_api: EtcdApi,
    /// How to select the external interface and the public addresses.
    pub(crate) external: InterfaceSelector,
    /// The path of `subnet.env`.
    pub(crate) subnet_file: PathBuf,
    /// The firewall rules to maintain.
    pub(crate) firewall: FirewallFlags,
    /// How long to keep peers when too many disappear at once.
    pub(crate) mass_expiry_hold: Duration,
    /// How long the lease lasts without renewal.
    pub(crate) lease_ttl: Duration,
    /// The remaining time at which the lease is renewed at the latest; two thirds of the TTL if `None`.
    pub(crate) renew_margin: Option<Duration>,
    /// Whether a changed network config is applied as soon as the registry reports it.
    pub(crate) follow_config: bool,
    /// Whether to remove everything and release the lease when stopped.
    pub(crate) release_on_exit: bool,
    /// Whether the service manager keeps the device and sockets of the UDP backend across a restart.
    pub(crate) keep_udp_device: bool,
    /// Verbosity and format of the log.
    pub(crate) log: LogOptions,
    /// The health port and the status socket.
    pub(crate) observe: ObserveOptions,
    /// Interval and port of the mesh probes, if enabled.
    pub(crate) mesh: Option<MeshOptions>,
    /// The arguments after the last flag.
    pub(crate) ignored: IgnoredArguments,
}

impl Options {
    /// Returns the path of a state file. State files are next to `subnet.env`, so that two daemons on one host have their own.
    pub(crate) fn beside_subnet_file(&self, suffix: &str) -> PathBuf {
        let mut path = self.subnet_file.clone().into_os_string();
        path.push(suffix);
        path.into()
    }
}

/// The firewall rules to maintain. The network config selects iptables or nftables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FirewallFlags {
    /// The masquerade and forward rules.
    pub(crate) rules: RuleOptions,
    /// The interval of checks without a notification from the kernel.
    pub(crate) resync: Duration,
    /// Whether to drop packets to the tunnel port that do not come from a peer.
    pub(crate) restrict_tunnel_port: bool,
    /// Whether to maintain a blackhole route for the host's subnet.
    pub(crate) blackhole_route: bool,
}

/// Parses the arguments, without the program's name, and the variables, read through `environment`.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Request, FlagError> {
    let (table, mut settings) = (table::flags(), Settings::default());
    let mut arguments = flags::parse_arguments(&table, arguments, &mut settings)?;
    // Before the environment, whose variables may be invalid.
    if settings.version {
        return Ok(Request::Version);
    }
    flags::apply_environment(&table, &mut arguments, environment, &mut settings)?;
    let ignored = IgnoredArguments::new(&table, &arguments.ignored);
    match check(settings, ignored) {
        Ok(options) => Ok(Request::Run(Box::new(options))),
        Err(bad) => Err(arguments.invalid(&bad)),
    }
}

/// Returns the usage text of the daemon, run as `program`.
pub(crate) fn usage(program: &str) -> String {
    flags::usage(program, &flags::describe(&table::flags()))
}

/// Checks the values of the flags.
fn check(settings: Settings, ignored: IgnoredArguments) -> Result<Options, BadValue> {
    if settings.kube_subnet_mgr {
        let why = "Kubernetes is not supported yet; leases are stored in etcd";
        return Err(bad("kube-subnet-mgr", why.to_owned()));
    }
    if settings.subnet_file.is_empty() {
        return Err(bad("subnet-file", "the path is empty".to_owned()));
    }
    Ok(Options {
        etcd: etcd::etcd(&settings)?,
        etcd_api: etcd::etcd_api(&settings.etcd_api).map_err(|why| bad("etcd-api", why))?,
        external: external(&settings)?,
        log: log(&settings)?,
        observe: ObserveOptions {
            health: health(&settings)?,
            socket: values::status_socket(&settings.status_socket, &settings.subnet_file),
        },
        mesh: mesh(&settings)?,
        subnet_file: settings.subnet_file.into(),
        firewall: FirewallFlags {
            rules: RuleOptions::default()
                .with_masquerade(settings.ip_masq)
                .with_fully_random(!settings.ip_masq_fully_random_disable)
                .with_forward(settings.iptables_forward_rules),
            resync: values::seconds(settings.iptables_resync, 1)
                .map_err(|why| bad("iptables-resync", why))?,
            restrict_tunnel_port: settings.restrict_tunnel_port,
            blackhole_route: settings.ip_blackhole_route,
        },
        mass_expiry_hold: values::seconds(settings.mass_expiry_hold, 0)
            .map_err(|why| bad("mass-expiry-hold", why))?,
        lease_ttl: values::lease_ttl(settings.lease_ttl).map_err(|why| bad("subnet-lease-ttl", why))?,
        renew_margin: values::renew_margin(settings.renew_margin, settings.lease_ttl)
            .map_err(|why| bad("subnet-lease-renew-margin", why))?,
        follow_config: settings.follow_config,
        release_on_exit: settings.release_on_exit,
        keep_udp_device: settings.keep_udp_device,
        ignored,
    })
}

impl Options {
    /// Returns the rules for the external interface, which keeps the addresses of the cached lease.
    pub(crate) fn interface_selector(&self) -> InterfaceSelector {
        let cached = CachedNetwork::read(&self.beside_subnet_file(".cache"), &self.etcd.prefix);
        // A cache that cannot be used is reported where it is used.
        let previous = cached.ok().flatten().map(|network| network.own.attrs.public);
        self.external.clone().with_previous(previous.unwrap_or_default())
    }
}

fn external(settings: &Settings) -> Result<InterfaceSelector, BadValue> {
    let mut selector = InterfaceSelector::new();
    for interface in &settings.iface {
        selector = selector.with_interface(interface);
    }
    for pattern in &settings.iface_regex {
        let pattern =
            InterfacePattern::new(pattern).map_err(|error| bad("iface-regex", error.to_string()))?;
        selector = selector.with_pattern(pattern);
    }
    if let Some(address) = values::ip(&settings.iface_can_reach).map_err(|why| bad("iface-can-reach", why))? {
        selector = selector.with_reachable(address);
    }
    if let Some(address) = values::public_ip(&settings.public_ip).map_err(|why| bad("public-ip", why))? {
        selector = selector.with_public_v4(address);
    }
    if let Some(address) =
        values::public_ipv6(&settings.public_ipv6).map_err(|why| bad("public-ipv6", why))?
    {
        selector = selector.with_public_v6(address);
    }
    Ok(selector)
}

/// Checks the address of the health port; `None` if the port is 0.
fn health(settings: &Settings) -> Result<Option<SocketAddr>, BadValue> {
    let port = values::port(settings.healthz_port).map_err(|why| bad("healthz-port", why))?;
    let ip = values::listening_ip(&settings.healthz_ip).map_err(|why| bad("healthz-ip", why))?;
    Ok((port != 0).then(|| SocketAddr::new(ip, port)))
}

fn mesh(settings: &Settings) -> Result<Option<MeshOptions>, BadValue> {
    let port = values::mesh_port(settings.mesh_probe_port).map_err(|why| bad("mesh-probe-port", why))?;
    let interval =
        values::mesh_interval(settings.mesh_probe_interval).map_err(|why| bad("mesh-probe-interval", why))?;
    Ok(interval.map(|interval| MeshOptions::new(interval, port)))
}

fn log(settings: &Settings) -> Result<LogOptions, BadValue> {
    Ok(LogOptions {
        verbosity: settings.verbosity,
        modules: ModuleLevel::parse_list(&settings.vmodule).map_err(|why| bad("vmodule", why))?,
        format: values::log_format(&settings.log_format).map_err(|why| bad("log-format", why))?,
    })
}

fn bad(flag: &'static str, why: String) -> BadValue {
    BadValue { flag, why }
}

#[cfg(test)]
mod tests;
