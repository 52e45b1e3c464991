//! What the command line and the environment ask of the daemon, checked.
//!
//! Which flags there are, [`table`] says.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use flannel_dataplane::{InterfacePattern, InterfaceSelector};
use flannel_firewall::RuleOptions;
use flannel_node::probe::MeshOptions;
use flannel_node::server::ObserveOptions;

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

/// What the command line asks for.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Request {
    /// Print the version and succeed.
    Version,
    /// Run the daemon.
    Run(Box<Options>),
}

/// How to run the daemon.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Options {
    /// Where etcd is.
    pub(crate) etcd: EtcdOptions,
    /// The interface of etcd to use.
    pub(crate) etcd_api: EtcdApi,
    /// Which interface other hosts reach this one by, and where.
    pub(crate) external: InterfaceSelector,
    /// Where the container runtime looks for its subnet.
    pub(crate) subnet_file: PathBuf,
    /// Which firewall rules to keep.
    pub(crate) firewall: FirewallFlags,
    /// How long peers are kept when too many leave at once.
    pub(crate) mass_expiry_hold: Duration,
    /// How long the lease lasts that is not renewed.
    pub(crate) lease_ttl: Duration,
    /// How much of that is left at the latest when it is renewed, if not two thirds.
    pub(crate) renew_margin: Option<Duration>,
    /// Whether another network config is taken in as soon as the registry tells of it.
    pub(crate) follow_config: bool,
    /// Whether everything is removed at the end, and the lease given back.
    pub(crate) release_on_exit: bool,
    /// Whether the service manager keeps the device and the sockets of the UDP backend over a restart.
    pub(crate) keep_udp_device: bool,
    /// What to log, and how.
    pub(crate) log: LogOptions,
    /// Where the daemon tells of itself.
    pub(crate) observe: ObserveOptions,
    /// How the other hosts are probed in the background, if they are.
    pub(crate) mesh: Option<MeshOptions>,
    /// What followed the end of the flags, which nothing reads.
    pub(crate) ignored: IgnoredArguments,
}

impl Options {
    /// What is to be remembered lies beside `subnet.env`, so that two daemons on one host have two memories.
    pub(crate) fn beside_subnet_file(&self, suffix: &str) -> PathBuf {
        let mut path = self.subnet_file.clone().into_os_string();
        path.push(suffix);
        path.into()
    }
}

/// Which firewall rules to keep. Where they are, the network config says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FirewallFlags {
    /// The masquerade and forward rules.
    pub(crate) rules: RuleOptions,
    /// How often they are looked at whether or not the kernel told of a change.
    pub(crate) resync: Duration,
    /// Close the tunnel's port to everybody but peers.
    pub(crate) restrict_tunnel_port: bool,
    /// Keep a blackhole route for the own subnet.
    pub(crate) blackhole_route: bool,
}

/// Reads the arguments (without the program's name) and, through `environment`, the variables.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Request, FlagError> {
    let (table, mut settings) = (table::flags(), Settings::default());
    let mut arguments = flags::parse_arguments(&table, arguments, &mut settings)?;
    // Before the environment, so that no variable can ask for the version or keep it from being printed.
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

/// The usage text of the daemon, run as `program`.
pub(crate) fn usage(program: &str) -> String {
    flags::usage(program, &flags::describe(&table::flags()))
}

/// Turns raw values into usable ones, or says which flag's value is not.
fn check(settings: Settings, ignored: IgnoredArguments) -> Result<Options, BadValue> {
    if settings.kube_subnet_mgr {
        let why = "Kubernetes is not supported yet, leases are kept in etcd";
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

/// Reads where the health port is; nowhere if the port is 0.
fn health(settings: &Settings) -> Result<Option<SocketAddr>, BadValue> {
    let port = values::port(settings.healthz_port).map_err(|why| bad("healthz-port", why))?;
    let ip = values::listening_ip(&settings.healthz_ip).map_err(|why| bad("healthz-ip", why))?;
    Ok((port != 0).then(|| SocketAddr::new(ip, port)))
}

fn mesh(settings: &Settings) -> Result<Option<MeshOptions>, BadValue> {
    let port = values::mesh_port(settings.mesh_probe_port).map_err(|why| bad("mesh-probe-port", why))?;
    let interval =
        values::mesh_interval(settings.mesh_probe_interval).map_err(|why| bad("mesh-probe-interval", why))?;
    Ok(interval.map(|interval| MeshOptions { interval, port }))
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
