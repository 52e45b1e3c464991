//! What the command line and the environment ask of the daemon, checked.
//!
//! [`FLAGS`] is the whole table of upstream's flags; a row becomes supported by getting a field in
//! [`Settings`] (the raw value) and, if it needs checking, one in [`Options`] (the value that is used).

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use crate::flags::{self, Flag, FlagError, Kind};

mod endpoint;
mod prefix;

/// Every flag of upstream flannel, in its order, and behind them those that only this daemon has.
const FLAGS: &[Flag<Settings>] = &[
    Flag {
        name: "etcd-endpoints",
        kind: Kind::Text(|s| &mut s.etcd_endpoints),
        description: "etcd servers, as URLs separated by commas; http:// may be left out",
    },
    Flag {
        name: "etcd-prefix",
        kind: Kind::Text(|s| &mut s.etcd_prefix),
        description: "key in etcd under which the network lives",
    },
    unsupported("etcd-keyfile"),
    unsupported("etcd-certfile"),
    unsupported("etcd-cafile"),
    unsupported("etcd-username"),
    unsupported("etcd-password"),
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
    unsupported("public-ipv6"),
    Flag {
        name: "subnet-file",
        kind: Kind::Text(|s| &mut s.subnet_file),
        description: "file that tells the container runtime its subnet and MTU",
    },
    unsupported("subnet-lease-renew-margin"),
    unsupported("ip-masq"),
    unsupported("ip-masq-fully-random-disable"),
    unsupported("ip-blackhole-route"),
    unsupported("iptables-forward-rules"),
    unsupported("iptables-resync"),
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
        name: "mass-expiry-hold",
        kind: Kind::Int(|s| &mut s.mass_expiry_hold),
        description: "seconds for which peers are kept when more than half of them leave at once, because then the \
                      registry is more likely at fault than they are; 0 never keeps any",
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
    iface: Vec<String>,
    public_ip: String,
    subnet_file: String,
    version: bool,
    verbosity: i64,
    mass_expiry_hold: i64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            etcd_endpoints: "http://127.0.0.1:4001,http://127.0.0.1:2379".to_owned(),
            etcd_prefix: "/coreos.com/network".to_owned(),
            iface: Vec::new(),
            public_ip: String::new(),
            subnet_file: "/run/flannel/subnet.env".to_owned(),
            version: false,
            verbosity: 0,
            mass_expiry_hold: 300,
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
    Run(Options),
}

/// How to run the daemon.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Options {
    /// The etcd servers, at least one, each as `scheme://host` or `scheme://host:port`.
    pub(crate) etcd_endpoints: Vec<String>,
    /// The key under which the network lives, without a trailing slash: `<prefix>/config` is the key of
    /// its configuration. The root is the empty text.
    pub(crate) etcd_prefix: String,
    /// The external interface, by name or address, in the order of preference; empty for the default route's.
    pub(crate) interfaces: Vec<String>,
    /// The address published to peers, if it was given.
    pub(crate) public_ip: Option<Ipv4Addr>,
    /// Where the container runtime looks for its subnet.
    pub(crate) subnet_file: PathBuf,
    /// How long peers are kept when too many leave at once.
    pub(crate) mass_expiry_hold: Duration,
    /// How much to log; see [`crate::log::start`].
    pub(crate) verbosity: i64,
    /// Arguments after the end of the flags, which nothing reads.
    pub(crate) ignored_arguments: Vec<String>,
}

/// Reads the arguments (without the program's name) and, through `environment`, the variables.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Command, FlagError> {
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
    check(settings, arguments.ignored).map(Command::Run).map_err(FlagError::Refused)
}

/// The usage text of the daemon, run as `program`.
pub(crate) fn usage(program: &str) -> String {
    flags::usage(FLAGS, program)
}

/// Turns raw values into usable ones, or says which flag's value is not.
fn check(settings: Settings, ignored_arguments: Vec<String>) -> Result<Options, String> {
    let bad = |flag: &str, why: String| format!("flag -{flag}: {why}");
    if settings.subnet_file.is_empty() {
        return Err(bad("subnet-file", "the path is empty".to_owned()));
    }
    Ok(Options {
        etcd_endpoints: endpoint::parse_list(&settings.etcd_endpoints)
            .map_err(|why| bad("etcd-endpoints", why))?,
        etcd_prefix: prefix::clean(&settings.etcd_prefix).map_err(|why| bad("etcd-prefix", why))?,
        interfaces: settings.iface,
        public_ip: public_ip(&settings.public_ip).map_err(|why| bad("public-ip", why))?,
        subnet_file: settings.subnet_file.into(),
        mass_expiry_hold: seconds(settings.mass_expiry_hold).map_err(|why| bad("mass-expiry-hold", why))?,
        verbosity: settings.verbosity,
        ignored_arguments,
    })
}

/// Reads a time of up to a day.
fn seconds(value: i64) -> Result<Duration, String> {
    match u64::try_from(value) {
        Ok(seconds @ 0..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{value} is not within 0 and 86400 seconds")),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Options, String> {
        let lookup = |name: &str| {
            environment.iter().find(|(variable, _)| *variable == name).map(|(_, value)| OsString::from(value))
        };
        match parse(arguments.iter().map(OsString::from), lookup) {
            Ok(Command::Run(options)) => Ok(options),
            other => Err(match other {
                Ok(command) => format!("{command:?}"),
                Err(error) => error.to_string(),
            }),
        }
    }

    #[test]
    fn the_defaults_are_upstreams() {
        let options = run(&[], &[]).expect("defaults");
        assert_eq!(options.etcd_endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
        assert_eq!(options.etcd_prefix, "/coreos.com/network");
        assert_eq!(options.subnet_file, PathBuf::from("/run/flannel/subnet.env"));
        assert_eq!((options.public_ip, options.verbosity), (None, 0));
        assert_eq!(options.mass_expiry_hold, Duration::from_secs(300));
        assert!(options.interfaces.is_empty() && options.ignored_arguments.is_empty());
    }

    #[test]
    fn every_flag_reaches_its_option() {
        let options = run(
            &[
                "--etcd-endpoints= 10.0.0.1:2379 ,, https://etcd.example",
                "-etcd-prefix",
                "/kubernetes//network/",
                "-iface=eth0",
                "-iface=10.0.0.7",
                "-public-ip=192.0.2.7",
                "-subnet-file",
                "/vxlan.env",
                "-v=4",
                "-mass-expiry-hold=60",
                "",
                "-iface=eth9",
            ],
            &[],
        )
        .expect("good flags");
        assert_eq!(
            options,
            Options {
                etcd_endpoints: vec!["http://10.0.0.1:2379".to_owned(), "https://etcd.example".to_owned()],
                etcd_prefix: "/kubernetes/network".to_owned(),
                interfaces: vec!["eth0".to_owned(), "10.0.0.7".to_owned()],
                public_ip: Some(Ipv4Addr::new(192, 0, 2, 7)),
                subnet_file: "/vxlan.env".into(),
                mass_expiry_hold: Duration::from_secs(60),
                verbosity: 4,
                ignored_arguments: vec![String::new(), "-iface=eth9".to_owned()],
            }
        );
    }

    #[test]
    fn every_flag_has_its_variable() {
        let options = run(
            &[],
            &[
                ("FLANNELD_ETCD_ENDPOINTS", "10.0.0.1"),
                ("FLANNELD_ETCD_PREFIX", "/p"),
                ("FLANNELD_IFACE", "eth0,eth1"),
                ("FLANNELD_PUBLIC_IP", "192.0.2.7"),
                ("FLANNELD_SUBNET_FILE", "/f"),
                ("FLANNELD_V", "2"),
            ],
        )
        .expect("good variables");
        assert_eq!(options.etcd_endpoints, ["http://10.0.0.1"]);
        assert_eq!(options.etcd_prefix, "/p");
        assert_eq!(options.interfaces, ["eth0,eth1"]);
        assert_eq!(options.public_ip, Some(Ipv4Addr::new(192, 0, 2, 7)));
        assert_eq!(options.subnet_file, PathBuf::from("/f"));
        assert_eq!(options.verbosity, 2);
    }

    #[test]
    fn the_version_is_asked_for_by_its_flag_alone() {
        let version = |arguments: &[&str], variable: &'static str, value: &'static str| {
            let lookup = move |name: &str| (name == variable).then(|| OsString::from(value));
            parse(arguments.iter().map(OsString::from), lookup)
        };
        assert_eq!(version(&["-version"], "", ""), Ok(Command::Version));
        assert_eq!(version(&["-version"], "FLANNELD_V", "bad"), Ok(Command::Version));
        assert!(matches!(version(&[], "FLANNELD_VERSION", "true"), Ok(Command::Run(_))));
        assert!(matches!(version(&["-version=false"], "", ""), Ok(Command::Run(_))));
        assert!(matches!(version(&["-version", "-nosuch"], "", ""), Err(FlagError::Syntax(_))));
        assert_eq!(version(&["-version", "-help"], "", ""), Ok(Command::Help));
    }

    #[test]
    fn a_value_that_cannot_be_used_is_refused_with_its_flag() {
        for (argument, line) in [
            (
                "-etcd-endpoints=http://a,ftp://b",
                "flag -etcd-endpoints: \"ftp://b\": the scheme must be http or https",
            ),
            ("-etcd-endpoints= , ", "flag -etcd-endpoints: no endpoint in \" , \""),
            ("-etcd-prefix=", "flag -etcd-prefix: no key in \"\""),
            ("-public-ip=abc", "flag -public-ip: invalid public IP address: abc"),
            ("-public-ip=10.0.0.01", "flag -public-ip: invalid public IP address: 10.0.0.01"),
            ("-public-ip=0.0.0.0", "flag -public-ip: invalid public IP address: 0.0.0.0"),
            ("-public-ip=fd00::1", "flag -public-ip: invalid public IP address: fd00::1"),
            ("-subnet-file=", "flag -subnet-file: the path is empty"),
            ("-mass-expiry-hold=-1", "flag -mass-expiry-hold: -1 is not within 0 and 86400 seconds"),
        ] {
            assert_eq!(run(&[argument], &[]), Err(line.to_owned()));
        }
        assert_eq!(run(&["-public-ip="], &[]).map(|o| o.public_ip), Ok(None));
    }

    #[test]
    fn the_command_lines_that_operators_have_in_their_units_are_read() {
        let options = run(&["-subnet-file", "/vxlan.env", "-etcd-prefix=/vxlan/network"], &[]);
        assert_eq!(options.map(|o| o.etcd_prefix), Ok("/vxlan/network".to_owned()));
        let twice =
            run(&["-etcd-endpoints=", "-etcd-prefix=", "-etcd-endpoints=b:1", "-etcd-prefix=/b"], &[])
                .expect("the last one wins");
        assert_eq!((twice.etcd_endpoints, twice.etcd_prefix), (vec!["http://b:1".into()], "/b".into()));
    }

    #[test]
    fn no_flag_is_in_the_table_twice() {
        let mut names: Vec<&str> = FLAGS.iter().map(|flag| flag.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!((names.len(), count), (32, 32));
    }
}
