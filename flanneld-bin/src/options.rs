//! What the command line and the environment ask of the daemon, checked.
//!
//! Which flags there are, [`table`] says.

use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use flannel_firewall::RuleOptions;

use crate::flags::{self, FlagError};
use crate::observe::ObserveOptions;
use crate::ping::MeshOptions;

mod endpoint;
mod etcd;
pub(crate) mod migrate;
pub(crate) mod ping;
mod prefix;
mod settings;
pub(crate) mod table;
pub(crate) mod values;

pub(crate) use etcd::{EtcdApi, EtcdFiles, EtcdOptions};
pub(crate) use settings::Settings;

/// What the command line asks for.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Asked {
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
    /// The external interface, by name or address, in the order of preference; empty for the default route's.
    pub(crate) interfaces: Vec<String>,
    /// The address published to peers, if it was given.
    pub(crate) public_ip: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub(crate) public_ipv6: Option<Ipv6Addr>,
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
    /// Whether everything is removed at the end, and the lease given back.
    pub(crate) release_on_exit: bool,
    /// Where the daemon tells of itself.
    pub(crate) observe: ObserveOptions,
    /// How the other hosts are probed in the background, if they are.
    pub(crate) mesh: Option<MeshOptions>,
    /// How much to log; see [`crate::log::start`].
    pub(crate) verbosity: i64,
    /// Arguments after the end of the flags, which nothing reads.
    pub(crate) ignored_arguments: Vec<String>,
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
) -> Result<Asked, FlagError> {
    let (table, mut settings) = (table::flags(), Settings::default());
    let arguments = flags::parse_arguments(&table, arguments, &mut settings)?;
    // Before the environment, so that no variable can ask for the version or keep it from being printed.
    if settings.version {
        return Ok(Asked::Version);
    }
    flags::apply_environment(&table, &arguments, environment, &mut settings)?;
    check(settings, arguments.ignored)
        .map(|options| Asked::Run(Box::new(options)))
        .map_err(FlagError::Refused)
}

/// The usage text of the daemon, run as `program`.
pub(crate) fn usage(program: &str) -> String {
    flags::usage(program, &flags::describe(&table::flags()))
}

/// Turns raw values into usable ones, or says which flag's value is not.
fn check(settings: Settings, ignored_arguments: Vec<String>) -> Result<Options, String> {
    if settings.subnet_file.is_empty() {
        return Err(bad("subnet-file", "the path is empty".to_owned()));
    }
    Ok(Options {
        etcd: etcd::etcd(&settings)?,
        etcd_api: etcd::etcd_api(&settings.etcd_api).map_err(|why| bad("etcd-api", why))?,
        interfaces: settings.iface,
        public_ip: values::public_ip(&settings.public_ip).map_err(|why| bad("public-ip", why))?,
        public_ipv6: values::public_ipv6(&settings.public_ipv6).map_err(|why| bad("public-ipv6", why))?,
        observe: ObserveOptions {
            health: values::health(&settings.healthz_ip, settings.healthz_port)?,
            socket: values::status_socket(&settings.status_socket, &settings.subnet_file),
        },
        mesh: values::mesh(settings.mesh_probe_interval, settings.mesh_probe_port)?,
        subnet_file: settings.subnet_file.into(),
        firewall: FirewallFlags {
            rules: RuleOptions {
                masquerade: settings.ip_masq,
                fully_random: !settings.ip_masq_fully_random_disable,
                forward: settings.iptables_forward_rules,
            },
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
        release_on_exit: settings.release_on_exit,
        verbosity: settings.verbosity,
        ignored_arguments,
    })
}

fn bad(flag: &str, why: String) -> String {
    format!("flag -{flag}: {why}")
}

#[cfg(test)]
mod tests;
