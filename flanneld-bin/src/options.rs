//! What the command line and the environment ask of the daemon, checked.
//!
//! [`FLAGS`] is the whole table of upstream's flags; a row becomes supported by getting a field in
//! [`Settings`] (the raw value) and, if it needs checking, one in [`Options`] (the value that is used).

use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use flannel_firewall::RuleOptions;

use crate::flags::{self, Flag, FlagError, Kind};
use crate::go_duration::duration;

mod endpoint;
mod migrate;
mod prefix;

pub(crate) use migrate::{MigrateOptions, usage as migrate_usage};

/// Every flag of upstream flannel, in its order, and behind them those that only this daemon has.
const FLAGS: &[Flag<Settings>] = &[
    Flag {
        name: "etcd-endpoints",
        kind: Kind::Text(|s| &mut s.etcd_endpoints),
        description: "etcd servers, as URLs separated by commas; http:// may be left out, and so may https:// if \
                      there is a client certificate",
    },
    Flag {
        name: "etcd-prefix",
        kind: Kind::Text(|s| &mut s.etcd_prefix),
        description: "key in etcd under which the network lives",
    },
    Flag {
        name: "etcd-keyfile",
        kind: Kind::Text(|s| &mut s.etcd_keyfile),
        description: "key of that certificate (PEM)",
    },
    Flag {
        name: "etcd-certfile",
        kind: Kind::Text(|s| &mut s.etcd_certfile),
        description: "client certificate to show to etcd (PEM)",
    },
    Flag {
        name: "etcd-cafile",
        kind: Kind::Text(|s| &mut s.etcd_cafile),
        description: "authorities to trust for etcd's certificate (PEM); without it, those of this system",
    },
    Flag {
        name: "etcd-username",
        kind: Kind::Text(|s| &mut s.etcd_username),
        description: "user of etcd to act as",
    },
    Flag {
        name: "etcd-password",
        kind: Kind::Text(|s| &mut s.etcd_password),
        description: "password of that user; better given as FLANNELD_ETCD_PASSWORD, which other users cannot see",
    },
    Flag {
        name: "iface",
        kind: Kind::List(|s| &mut s.iface),
        description: "external interface, by name or by one of its addresses; may be given several times, \
                      the first that fits is used; without it, the interface of the default route",
    },
    unsupported("iface-regex"),
    unsupported("iface-can-reach"),
    Flag {
        name: "public-ip",
        kind: Kind::Text(|s| &mut s.public_ip),
        description: "IPv4 address at which peers reach this host, if not the address of the external interface",
    },
    Flag {
        name: "public-ipv6",
        kind: Kind::Text(|s| &mut s.public_ipv6),
        description: "IPv6 address at which peers reach this host, if not the address of the external interface",
    },
    Flag {
        name: "subnet-file",
        kind: Kind::Text(|s| &mut s.subnet_file),
        description: "file that tells the container runtime its subnet and MTU",
    },
    Flag {
        name: "subnet-lease-renew-margin",
        kind: Kind::OptionalInt(|s| &mut s.renew_margin),
        description: "minutes, 1 to 1439, that are left of the subnet lease at the latest when it is renewed; without \
                      it, the lease is renewed when a third of its time is over",
    },
    Flag {
        name: "ip-masq",
        kind: Kind::Bool(|s| &mut s.ip_masq),
        description: "masquerade what containers send out of the network",
    },
    Flag {
        name: "ip-masq-fully-random-disable",
        kind: Kind::Bool(|s| &mut s.ip_masq_fully_random_disable),
        description: "let masqueraded connections keep their source ports where they can",
    },
    Flag {
        name: "ip-blackhole-route",
        kind: Kind::Bool(|s| &mut s.ip_blackhole_route),
        description: "end packets to containers that do not exist here, by a route for the own subnet",
    },
    Flag {
        name: "iptables-forward-rules",
        kind: Kind::Bool(|s| &mut s.iptables_forward_rules),
        description: "accept forwarded packets of the network, whatever the policy of this host",
    },
    Flag {
        name: "iptables-resync",
        kind: Kind::Int(|s| &mut s.iptables_resync),
        description: "seconds after which firewall rules are looked at even if the kernel told of no change",
    },
    unsupported("kube-subnet-mgr"),
    unsupported("kube-api-url"),
    unsupported("kubeconfig-file"),
    unsupported("kube-annotation-prefix"),
    unsupported("net-config-path"),
    unsupported("set-node-network-unavailable"),
    unsupported("healthz-ip"),
    unsupported("healthz-port"),
    Flag { name: "version", kind: Kind::Bool(|s| &mut s.version), description: "print the version and exit" },
    Flag {
        name: "v",
        kind: Kind::Int(|s| &mut s.verbosity),
        description: "how much to log: 0 is changes of state, 1 to 3 also each decision, 4 and above everything",
    },
    unsupported("vmodule"),
    unsupported("log_backtrace_at"),
    Flag {
        name: "etcd-api",
        kind: Kind::Text(|s| &mut s.etcd_api),
        description: "interface of etcd to use: v2, v3, or auto for the one that the network config is found in",
    },
    Flag {
        name: "restrict-tunnel-port",
        kind: Kind::Bool(|s| &mut s.restrict_tunnel_port),
        description: "drop packets to the UDP port of the tunnel that do not come from a peer (needs nft)",
    },
    Flag {
        name: "mass-expiry-hold",
        kind: Kind::Int(|s| &mut s.mass_expiry_hold),
        description: "seconds for which peers are kept when more than half of them leave at once, because then the \
                      registry is more likely at fault than they are; 0 never keeps any",
    },
    Flag {
        name: "subnet-lease-ttl",
        kind: Kind::Duration(|s| &mut s.lease_ttl),
        description: "how long the subnet lease lasts when this host no longer renews it, 1m to 8760h; then others may \
                      get the subnet",
    },
    Flag {
        name: "release-on-exit",
        kind: Kind::Bool(|s| &mut s.release_on_exit),
        description: "when told to end, remove device, routes and subnet file, and give the subnet lease back, unless \
                      it is a reservation; without it all stay, and traffic goes on",
    },
    Flag {
        name: "keep-udp-device",
        kind: Kind::Bool(|s| &mut s.keep_udp_device),
        description: "have systemd keep the device and the sockets of the udp backend while this daemon restarts, so \
                      that packets wait and none is lost; the unit needs FileDescriptorStoreMax=3",
    },
];

/// A flag that upstream has and this daemon does not have yet.
const fn unsupported(name: &'static str) -> Flag<Settings> {
    Flag { name, kind: Kind::Unsupported, description: "" }
}

/// The values of the flags as they were given.
struct Settings {
    etcd_endpoints: String,
    etcd_prefix: String,
    etcd_keyfile: String,
    etcd_certfile: String,
    etcd_cafile: String,
    etcd_username: String,
    etcd_password: String,
    etcd_api: String,
    iface: Vec<String>,
    public_ip: String,
    public_ipv6: String,
    subnet_file: String,
    ip_masq: bool,
    ip_masq_fully_random_disable: bool,
    ip_blackhole_route: bool,
    iptables_forward_rules: bool,
    iptables_resync: i64,
    restrict_tunnel_port: bool,
    version: bool,
    verbosity: i64,
    mass_expiry_hold: i64,
    lease_ttl: Duration,
    renew_margin: Option<i64>,
    release_on_exit: bool,
    keep_udp_device: bool,
    dry_run: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            etcd_endpoints: "http://127.0.0.1:4001,http://127.0.0.1:2379".to_owned(),
            etcd_prefix: "/coreos.com/network".to_owned(),
            etcd_keyfile: String::new(),
            etcd_certfile: String::new(),
            etcd_cafile: String::new(),
            etcd_username: String::new(),
            etcd_password: String::new(),
            etcd_api: "auto".to_owned(),
            iface: Vec::new(),
            public_ip: String::new(),
            public_ipv6: String::new(),
            subnet_file: "/run/flannel/subnet.env".to_owned(),
            ip_masq: false,
            ip_masq_fully_random_disable: false,
            ip_blackhole_route: false,
            iptables_forward_rules: true,
            iptables_resync: 5,
            restrict_tunnel_port: false,
            version: false,
            verbosity: 0,
            mass_expiry_hold: 300,
            lease_ttl: Duration::from_secs(86_400),
            renew_margin: None,
            release_on_exit: false,
            keep_udp_device: false,
            dry_run: false,
        }
    }
}

/// What the command line asks for.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Command {
    /// Print the usage text and succeed.
    Help,
    /// Print the version and succeed.
    Version,
    /// Run the daemon.
    Run(Box<Options>),
    /// Print the usage text of `migrate-etcd` and succeed.
    MigrateHelp,
    /// Move the network from etcd's v2 store to its v3 store.
    Migrate(Box<MigrateOptions>),
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
    /// Whether the service manager keeps the device and the sockets of the UDP backend over a restart.
    pub(crate) keep_udp_device: bool,
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

/// How to reach a network in etcd.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct EtcdOptions {
    /// The servers, at least one, each as `scheme://host` or `scheme://host:port`.
    pub(crate) endpoints: Vec<String>,
    /// The key under which the network lives, without a trailing slash: `<prefix>/config` is the key of
    /// its configuration. The root is the empty text.
    pub(crate) prefix: String,
    /// Certificates and key, those that were given.
    pub(crate) files: EtcdFiles,
    /// Name and password of the user; either may be empty, which the registry judges.
    pub(crate) user: EtcdUser,
}

/// The files that etcd over TLS needs, in PEM form.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct EtcdFiles {
    /// The authorities to trust.
    pub(crate) authorities: Option<PathBuf>,
    /// The certificate to show.
    pub(crate) certificate: Option<PathBuf>,
    /// Its key.
    pub(crate) key: Option<PathBuf>,
}

/// Who to be for etcd. Its debug text holds no password.
#[derive(Clone, Default, Eq, PartialEq)]
pub(crate) struct EtcdUser {
    pub(crate) name: String,
    pub(crate) password: String,
}

impl std::fmt::Debug for EtcdUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdUser").field("name", &self.name).finish_non_exhaustive()
    }
}

/// An interface of etcd. Each has a store of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum EtcdApi {
    /// The one that the network config is found in.
    Auto,
    /// HTTP, as flannel up to v0.17 uses it.
    V2,
    /// gRPC, as flannel v0.18 and later use it.
    V3,
}

/// Reads the arguments (without the program's name) and, through `environment`, the variables.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Command, FlagError> {
    let mut arguments = arguments.into_iter().peekable();
    if arguments.next_if(|first| first == migrate::NAME).is_some() {
        return migrate::parse(arguments, environment);
    }
    let mut settings = Settings::default();
    let arguments = match flags::parse_arguments(FLAGS, arguments, &mut settings) {
        Err(FlagError::Help) => return Ok(Command::Help),
        parsed => parsed?,
    };
    // Before the environment, so that no variable can ask for the version or keep it from being printed.
    if settings.version {
        return Ok(Command::Version);
    }
    flags::apply_environment(FLAGS, &arguments, environment, &mut settings)?;
    check(settings, arguments.ignored)
        .map(|options| Command::Run(Box::new(options)))
        .map_err(FlagError::Refused)
}

/// The usage text of the daemon, run as `program`.
pub(crate) fn usage(program: &str) -> String {
    let usage = flags::usage(FLAGS, program);
    format!(
        "{usage}Another command:\n  {program} {} [OPTION]...\n    \t{}\n",
        migrate::NAME,
        migrate::PURPOSE
    )
}

/// Turns raw values into usable ones, or says which flag's value is not.
fn check(settings: Settings, ignored_arguments: Vec<String>) -> Result<Options, String> {
    if settings.subnet_file.is_empty() {
        return Err(bad("subnet-file", "the path is empty".to_owned()));
    }
    Ok(Options {
        etcd: etcd(&settings)?,
        etcd_api: etcd_api(&settings.etcd_api).map_err(|why| bad("etcd-api", why))?,
        interfaces: settings.iface,
        public_ip: public_ip(&settings.public_ip).map_err(|why| bad("public-ip", why))?,
        public_ipv6: public_ipv6(&settings.public_ipv6).map_err(|why| bad("public-ipv6", why))?,
        subnet_file: settings.subnet_file.into(),
        firewall: FirewallFlags {
            rules: RuleOptions {
                masquerade: settings.ip_masq,
                fully_random: !settings.ip_masq_fully_random_disable,
                forward: settings.iptables_forward_rules,
            },
            resync: seconds(settings.iptables_resync, 1).map_err(|why| bad("iptables-resync", why))?,
            restrict_tunnel_port: settings.restrict_tunnel_port,
            blackhole_route: settings.ip_blackhole_route,
        },
        mass_expiry_hold: seconds(settings.mass_expiry_hold, 0)
            .map_err(|why| bad("mass-expiry-hold", why))?,
        lease_ttl: lease_ttl(settings.lease_ttl).map_err(|why| bad("subnet-lease-ttl", why))?,
        renew_margin: renew_margin(settings.renew_margin, settings.lease_ttl)
            .map_err(|why| bad("subnet-lease-renew-margin", why))?,
        release_on_exit: settings.release_on_exit,
        keep_udp_device: settings.keep_udp_device,
        verbosity: settings.verbosity,
        ignored_arguments,
    })
}

fn etcd(settings: &Settings) -> Result<EtcdOptions, String> {
    let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    let files = EtcdFiles {
        authorities: path(&settings.etcd_cafile),
        certificate: path(&settings.etcd_certfile),
        key: path(&settings.etcd_keyfile),
    };
    // A client certificate is never meant for plain text.
    let scheme = if files.certificate.is_some() { "https" } else { "http" };
    Ok(EtcdOptions {
        endpoints: endpoint::parse_list(&settings.etcd_endpoints, scheme)
            .map_err(|why| bad("etcd-endpoints", why))?,
        prefix: prefix::clean(&settings.etcd_prefix).map_err(|why| bad("etcd-prefix", why))?,
        files,
        user: EtcdUser { name: settings.etcd_username.clone(), password: settings.etcd_password.clone() },
    })
}

fn bad(flag: &str, why: String) -> String {
    format!("flag -{flag}: {why}")
}

fn etcd_api(text: &str) -> Result<EtcdApi, String> {
    match text {
        "auto" => Ok(EtcdApi::Auto),
        "v2" => Ok(EtcdApi::V2),
        "v3" => Ok(EtcdApi::V3),
        _ => Err(format!("{text:?} is none of auto, v2 and v3")),
    }
}

/// Checks how long a lease lasts: not so short that a registry that restarts ends it, not so long that a host that is
/// gone for good holds its subnet for ever.
fn lease_ttl(ttl: Duration) -> Result<Duration, String> {
    const RANGE: std::ops::RangeInclusive<Duration> =
        Duration::from_secs(60)..=Duration::from_secs(8760 * 3600);
    if RANGE.contains(&ttl) { Ok(ttl) } else { Err(format!("{} is not within 1m and 8760h", duration(ttl))) }
}

/// Checks how much of a lease is left when it is renewed. Bounds and words are upstream's.
fn renew_margin(minutes: Option<i64>, ttl: Duration) -> Result<Option<Duration>, String> {
    let Some(minutes) = minutes else {
        return Ok(None);
    };
    let margin = match u64::try_from(minutes) {
        Ok(minutes @ 1..=1439) => Duration::from_secs(minutes * 60),
        _ => {
            return Err(format!(
                "Invalid subnet-lease-renew-margin option, out of acceptable range: {minutes} is not within 1 and 1439 \
                 minutes"
            ));
        }
    };
    if margin >= ttl {
        return Err(format!(
            "{minutes} minutes are not less than the {} of -subnet-lease-ttl",
            duration(ttl)
        ));
    }
    Ok(Some(margin))
}

/// Reads a time of up to a day.
fn seconds(value: i64, least: u64) -> Result<Duration, String> {
    match u64::try_from(value) {
        Ok(seconds) if (least..=86_400).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{value} is not within {least} and 86400 seconds")),
    }
}

/// Reads the address to publish; an empty value counts as not given.
fn public_ip(text: &str) -> Result<Option<Ipv4Addr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<Ipv4Addr>() {
        Ok(address) if !address.is_unspecified() => Ok(Some(address)),
        _ => Err(format!("invalid public IP address: {}", text.escape_debug())),
    }
}

/// The same for IPv6.
fn public_ipv6(text: &str) -> Result<Option<Ipv6Addr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<Ipv6Addr>() {
        Ok(address) if !address.is_unspecified() => Ok(Some(address)),
        _ => Err(format!("invalid public IPv6 address: {}", text.escape_debug())),
    }
}

#[cfg(test)]
mod tests;
