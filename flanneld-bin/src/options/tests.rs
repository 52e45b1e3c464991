//! Flags and variables, and the options that they yield.

use super::etcd::EtcdUser;
use super::migrate::MigrateOptions;
use super::*;
use crate::flags::Kind;
use crate::log::LogFormat;

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Options, String> {
    let lookup = |name: &str| {
        environment.iter().find(|(variable, _)| *variable == name).map(|(_, value)| OsString::from(value))
    };
    match parse(arguments.iter().map(OsString::from), lookup) {
        Ok(Request::Run(options)) => Ok(*options),
        other => Err(match other {
            Ok(command) => format!("{command:?}"),
            Err(error) => error.to_string(),
        }),
    }
}

#[test]
fn the_defaults_are_upstreams() {
    let options = run(&[], &[]).expect("defaults");
    assert_eq!(options.etcd.endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!(options.etcd.prefix, "/coreos.com/network");
    assert_eq!(options.subnet_file, PathBuf::from("/run/flannel/subnet.env"));
    assert_eq!((options.external, options.log), (InterfaceSelector::default(), LogOptions::default()));
    assert_eq!((options.mass_expiry_hold, options.etcd_api), (Duration::from_secs(300), EtcdApi::Auto));
    let rules = RuleOptions::default().with_fully_random(true).with_forward(true);
    let resync = Duration::from_secs(5);
    assert_eq!(
        options.firewall,
        FirewallFlags { rules, resync, restrict_tunnel_port: false, blackhole_route: false }
    );
    assert_eq!(options.ignored, IgnoredArguments::default());
}

#[test]
fn every_flag_reaches_its_option() {
    let options = run(
        &[
            "--etcd-endpoints= 10.0.0.1:2379 ,, https://etcd.example",
            "-etcd-prefix",
            "/kubernetes//network/",
            "-etcd-cafile=/ca.pem",
            "-etcd-certfile=/cert.pem",
            "-etcd-keyfile=/key.pem",
            "-etcd-username=flannel",
            "-etcd-password=secret",
            "-iface=eth0",
            "-iface=10.0.0.7",
            "-public-ip=192.0.2.7",
            "-subnet-file",
            "/vxlan.env",
            "-v=4",
            "-vmodule=iface=1",
            "-log_backtrace_at=iface.rs:12",
            "-log-format=json",
            "-iface-regex=^eth",
            "-iface-regex",
            "",
            "-iface-can-reach=192.0.2.9",
            "-kube-subnet-mgr=false",
            "-kube-api-url=https://k",
            "-kubeconfig-file=/k",
            "-kube-annotation-prefix=p",
            "-net-config-path=/n",
            "-set-node-network-unavailable=false",
            "-ip-masq",
            "-ip-masq-fully-random-disable",
            "-ip-blackhole-route",
            "-iptables-forward-rules=false",
            "-iptables-resync=60",
            "-restrict-tunnel-port",
            "-public-ipv6=2001:db8::7",
            "-mass-expiry-hold=60",
            "-subnet-lease-ttl=1h30m",
            "-subnet-lease-renew-margin=15",
            "-release-on-exit",
            "-healthz-ip=::1",
            "-healthz-port=8090",
            "-status-socket=/a.sock",
            "-keep-udp-device",
            "-etcd-api=v2",
            "-follow-config=false",
            "",
            "-iface=eth9",
        ],
        &[],
    )
    .expect("good flags");
    assert_eq!(
        options,
        Options {
            etcd: EtcdOptions {
                endpoints: vec!["https://10.0.0.1:2379".to_owned(), "https://etcd.example".to_owned()],
                prefix: "/kubernetes/network".to_owned(),
                files: EtcdFiles {
                    authorities: Some("/ca.pem".into()),
                    certificate: Some("/cert.pem".into()),
                    key: Some("/key.pem".into()),
                },
                user: EtcdUser { name: "flannel".to_owned(), password: "secret".to_owned() },
            },
            etcd_api: EtcdApi::V2,
            external: InterfaceSelector::new()
                .with_interface("eth0")
                .with_interface("10.0.0.7")
                .with_pattern(InterfacePattern::new("^eth").expect("a pattern"))
                .with_pattern(InterfacePattern::new("").expect("a pattern"))
                .with_reachable("192.0.2.9".parse().expect("an address"))
                .with_public_v4("192.0.2.7".parse().expect("an address"))
                .with_public_v6("2001:db8::7".parse().expect("an address")),
            subnet_file: "/vxlan.env".into(),
            firewall: FirewallFlags {
                rules: RuleOptions::default().with_masquerade(true),
                resync: Duration::from_secs(60),
                restrict_tunnel_port: true,
                blackhole_route: true,
            },
            mass_expiry_hold: Duration::from_secs(60),
            lease_ttl: Duration::from_secs(5400),
            renew_margin: Some(Duration::from_secs(900)),
            follow_config: false,
            release_on_exit: true,
            keep_udp_device: true,
            log: LogOptions {
                verbosity: 4,
                modules: ModuleLevel::parse_list("iface=1").expect("a list"),
                format: LogFormat::Json,
            },
            observe: ObserveOptions { health: "[::1]:8090".parse().ok(), socket: Some("/a.sock".into()) },
            mesh: None,
            ignored: IgnoredArguments { count: 1, flags: vec!["iface"] },
        }
    );
}

#[test]
fn every_flag_has_a_variable() {
    let options = run(
        &[],
        &[
            ("FLANNELD_ETCD_ENDPOINTS", "10.0.0.1"),
            ("FLANNELD_ETCD_PREFIX", "/p"),
            ("FLANNELD_ETCD_CAFILE", "/ca"),
            ("FLANNELD_ETCD_CERTFILE", "/cert"),
            ("FLANNELD_ETCD_KEYFILE", "/key"),
            ("FLANNELD_ETCD_USERNAME", "flannel"),
            ("FLANNELD_ETCD_PASSWORD", "secret"),
            ("FLANNELD_IFACE", "eth0,eth1"),
            ("FLANNELD_PUBLIC_IP", "192.0.2.7"),
            ("FLANNELD_SUBNET_FILE", "/f"),
            ("FLANNELD_V", "2"),
        ],
    )
    .expect("good variables");
    assert_eq!(options.etcd.endpoints, ["https://10.0.0.1"], "https because of the client certificate");
    assert_eq!(options.etcd.prefix, "/p");
    let EtcdFiles { authorities, certificate, key } = &options.etcd.files;
    let files = [authorities, certificate, key].map(|path| path.as_deref().and_then(|path| path.to_str()));
    assert_eq!(files, [Some("/ca"), Some("/cert"), Some("/key")]);
    assert_eq!((options.etcd.user.name.as_str(), options.etcd.user.password.as_str()), ("flannel", "secret"));
    assert!(!format!("{options:?}").contains("secret"));
    let public = "192.0.2.7".parse().expect("an address");
    assert_eq!(options.external, InterfaceSelector::new().with_interface("eth0,eth1").with_public_v4(public));
    assert_eq!(options.subnet_file, PathBuf::from("/f"));
    assert_eq!(options.log.verbosity, 2);
}

#[test]
fn only_the_flag_requests_the_version() {
    let version = |arguments: &[&str], variable: &'static str, value: &'static str| {
        let lookup = move |name: &str| (name == variable).then(|| OsString::from(value));
        parse(arguments.iter().map(OsString::from), lookup)
    };
    assert_eq!(version(&["-version"], "", ""), Ok(Request::Version));
    assert_eq!(version(&["-version"], "FLANNELD_V", "bad"), Ok(Request::Version));
    assert!(matches!(version(&[], "FLANNELD_VERSION", "true"), Ok(Request::Run(_))));
    assert!(matches!(version(&["-version=false"], "", ""), Ok(Request::Run(_))));
    assert!(matches!(version(&["-version", "-nosuch"], "", ""), Err(FlagError::Syntax(_))));
    assert_eq!(version(&["-version", "-help"], "", ""), Err(FlagError::Help));
}

#[test]
fn an_invalid_value_is_rejected_with_its_flag() {
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
        ("-public-ipv6=10.0.0.1", "flag -public-ipv6: invalid public IPv6 address: 10.0.0.1"),
        ("-public-ipv6=::", "flag -public-ipv6: invalid public IPv6 address: ::"),
        ("-subnet-file=", "flag -subnet-file: the path is empty"),
        ("-etcd-api=v4", "flag -etcd-api: \"v4\" is not auto, v2 or v3"),
        ("-iface-can-reach=abc", "flag -iface-can-reach: invalid IP address: abc"),
        (
            "-vmodule=iface",
            "flag -vmodule: syntax error: expect comma-separated list of filename=N: \"iface\"",
        ),
        ("-log-format=xml", "flag -log-format: \"xml\" is neither text nor json"),
        (
            "-kube-subnet-mgr",
            "flag -kube-subnet-mgr: Kubernetes is not supported yet; leases are stored in etcd",
        ),
        ("-iptables-resync=0", "flag -iptables-resync: 0 is not within 1 and 86400 seconds"),
        ("-mass-expiry-hold=-1", "flag -mass-expiry-hold: -1 is not within 0 and 86400 seconds"),
    ] {
        assert_eq!(run(&[argument], &[]), Err(line.to_owned()));
    }
    let error = run(&["-iface-regex=eth0", "-iface-regex=(", "-iface-regex=["], &[]).expect_err("no pattern");
    assert!(error.starts_with("flag -iface-regex: could not compile the IP address regex '(': "), "{error}");
    assert!(!error.contains('\n'), "{error}");
    assert_eq!(run(&["-public-ip="], &[]).map(|o| o.external), Ok(InterfaceSelector::new()));
}

#[test]
fn the_command_lines_of_common_units_are_accepted() {
    let options = run(&["-subnet-file", "/vxlan.env", "-etcd-prefix=/vxlan/network"], &[]);
    assert_eq!(options.map(|o| o.etcd.prefix), Ok("/vxlan/network".to_owned()));
    let twice = run(&["-etcd-endpoints=", "-etcd-prefix=", "-etcd-endpoints=b:1", "-etcd-prefix=/b"], &[])
        .expect("the last one wins");
    assert_eq!((twice.etcd.endpoints, twice.etcd.prefix), (vec!["http://b:1".into()], "/b".into()));
}

#[test]
fn flag_names_are_unique() {
    let mut names: Vec<&str> = table::flags().iter().map(|flag| flag.name).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn lease_options_have_upstreams_defaults_and_bounds() {
    let options = run(&[], &[]).expect("defaults");
    assert_eq!((options.lease_ttl, options.renew_margin), (Duration::from_secs(86_400), None));
    assert!(!options.release_on_exit && !options.keep_udp_device);
    let options = run(&[], &[("FLANNELD_SUBNET_LEASE_RENEW_MARGIN", "1439")]).expect("upstream's bound");
    assert_eq!(options.renew_margin, Some(Duration::from_secs(1439 * 60)));
    for (arguments, why) in [
        (&["-subnet-lease-renew-margin=0"][..], "out of acceptable range: 0"),
        (
            &["-subnet-lease-renew-margin=1440"],
            "Invalid subnet-lease-renew-margin option, out of acceptable range",
        ),
        (
            &["-subnet-lease-ttl=1h", "-subnet-lease-renew-margin=60"],
            "not less than the 1h0m0s of -subnet-lease-ttl",
        ),
        (&["-subnet-lease-ttl=59s"], "flag -subnet-lease-ttl: 59s is not within 1m and 8760h"),
        (&["-subnet-lease-ttl=8761h"], "is not within 1m and 8760h"),
        (&["-subnet-lease-ttl=86400"], "invalid value \"86400\" for flag -subnet-lease-ttl: parse error"),
    ] {
        let error = run(arguments, &[]).expect_err("bad value");
        assert!(error.contains(why), "{arguments:?}: {error}");
    }
}

fn migrate(arguments: &[&str], environment: &[(&str, &str)]) -> Result<MigrateOptions, String> {
    let lookup = |name: &str| {
        environment.iter().find(|(variable, _)| *variable == name).map(|(_, value)| OsString::from(value))
    };
    migrate::parse(arguments.iter().map(OsString::from), lookup).map_err(|error| error.to_string())
}

#[test]
fn migrate_etcd_takes_only_the_daemons_flags_about_etcd() {
    let variables = [("FLANNELD_ETCD_USERNAME", "flannel"), ("FLANNELD_MASS_EXPIRY_HOLD", "nonsense")];
    let options = migrate(&["-etcd-prefix=/n", "--dry-run", "-v=1"], &variables).expect("good flags");
    assert_eq!((options.etcd.prefix.as_str(), options.etcd.user.name.as_str()), ("/n", "flannel"));
    assert_eq!((options.dry_run, options.verbosity), (true, 1));
    assert!(!migrate(&[], &[]).expect("good flags").dry_run);
    assert_eq!(migrate(&["-help"], &[]), Err("help requested".to_owned()));
    for (arguments, why) in [
        (&["-iface=eth0"][..], "flag provided but not defined: -iface"),
        (&["-etcd-api=v3"], "flag provided but not defined: -etcd-api"),
        (&["true", "--dry-run"], "unexpected argument \"true\""),
        (&["-etcd-endpoints="], "flag -etcd-endpoints"),
    ] {
        let error = migrate(arguments, &[]).expect_err("bad flags");
        assert!(error.starts_with(why), "{arguments:?}: {error}");
    }
}

/// A value other than the default of a flag, and its `Debug` output once stored.
fn sample(kind: Kind<Settings>) -> (String, String) {
    match kind {
        Kind::Bool(field) => {
            let other = (!*field(&mut Settings::default())).to_string();
            (other.clone(), other)
        }
        Kind::Int(_) => ("0x2A".to_owned(), "42".to_owned()),
        Kind::OptionalInt(_) => ("4_2".to_owned(), "Some(42)".to_owned()),
        Kind::Duration(_) => ("90m".to_owned(), "5400s".to_owned()),
        Kind::Text(_) => ("-a=b".to_owned(), "\"-a=b\"".to_owned()),
        Kind::List(_) => ("a,b".to_owned(), "[\"a,b\"]".to_owned()),
    }
}

/// The `Debug` output of every flag's value, by name.
fn shown(settings: &mut Settings) -> Vec<(&'static str, String)> {
    let value = |kind: Kind<Settings>| match kind {
        Kind::Bool(field) => format!("{:?}", field(settings)),
        Kind::Int(field) => format!("{:?}", field(settings)),
        Kind::OptionalInt(field) => format!("{:?}", field(settings)),
        Kind::Duration(field) => format!("{:?}", field(settings)),
        Kind::Text(field) => format!("{:?}", field(settings)),
        Kind::List(field) => format!("{:?}", field(settings)),
    };
    let flags = table::flags();
    let (names, kinds): (Vec<_>, Vec<_>) = flags.iter().map(|flag| (flag.name, flag.kind)).unzip();
    names.into_iter().zip(kinds.into_iter().map(value).collect::<Vec<_>>()).collect()
}

/// The values that these arguments and this variable set.
fn set(arguments: &[&str], variable: (&str, &str)) -> Vec<(&'static str, String)> {
    let (table, mut settings) = (table::flags(), Settings::default());
    let arguments = arguments.iter().map(OsString::from);
    let mut arguments = flags::parse_arguments(&table, arguments, &mut settings).expect("good arguments");
    let lookup = |name: &str| (name == variable.0).then(|| OsString::from(variable.1));
    flags::apply_environment(&table, &mut arguments, lookup, &mut settings).expect("a good variable");
    shown(&mut settings)
}

#[test]
fn every_form_of_every_flag_sets_its_field_and_no_other() {
    let none = ("", "");
    for flag in table::flags() {
        let (given, stored) = sample(flag.kind);
        let mut expected = shown(&mut Settings::default());
        let row = expected.iter_mut().find(|(name, _)| *name == flag.name).expect("its own row");
        assert_ne!(row.1, stored, "-{}: the sample is the default", flag.name);
        row.1 = stored;
        let (one, two) = (format!("-{}", flag.name), format!("--{}", flag.name));
        let variable = format!("FLANNELD_{}", flag.name.to_uppercase().replace('-', "_"));
        assert_eq!(set(&[&format!("{one}={given}")], none), expected, "{one}={given}");
        assert_eq!(set(&[&format!("{two}={given}")], none), expected, "{two}={given}");
        // `-version` has no variable.
        let from_variable =
            if flag.name == "version" { shown(&mut Settings::default()) } else { expected.clone() };
        assert_eq!(set(&[], (&variable, &given)), from_variable, "{variable}={given}");
        assert_eq!(set(&[&format!("{one}={given}")], (&variable, "")), expected, "{variable} is empty");
        let is_bool = matches!(flag.kind, Kind::Bool(_));
        if is_bool {
            let alone = set(&[&one], none);
            assert_eq!(
                alone,
                set(&[&format!("{one}=true")], (&variable, "false")),
                "{one} takes precedence over {variable}"
            );
            assert_eq!(alone, set(&[&two, "false", "-etcd-prefix=/x"], none), "a word ends the flags");
        } else {
            assert_eq!(set(&[&one, &given], none), expected, "{one} {given}");
            assert_eq!(set(&[&two, &given], none), expected, "{two} {given}");
            let last = format!("{one}={given}");
            let other = if matches!(flag.kind, Kind::Duration(_)) { "7m" } else { "7" };
            if !matches!(flag.kind, Kind::List(_)) {
                assert_eq!(set(&[&one, other, &last], none), expected, "the last one wins");
            }
            assert_eq!(set(&[&last], (&variable, "7m")), expected, "{one} takes precedence over {variable}");
        }
    }
}

#[test]
fn the_status_socket_is_next_to_the_subnet_file_and_the_health_port_is_off_by_default() {
    let observed = |arguments: &[&str]| run(arguments, &[]).map(|options| options.observe);
    let none = observed(&["-subnet-file=/a/b.env"]).expect("good flags");
    assert_eq!(none, ObserveOptions { health: None, socket: Some("/a/b.env.sock".into()) });
    let some = observed(&["-healthz-port=80", "-status-socket=off"]).expect("good flags");
    assert_eq!(some, ObserveOptions { health: "0.0.0.0:80".parse().ok(), socket: None });
    for wrong in ["-healthz-port=65536", "-healthz-port=-1"] {
        let line = observed(&[wrong]).expect_err("no port").to_string();
        assert!(line.starts_with("flag -healthz-port: "), "{line}");
    }
    let line = observed(&["-healthz-port=80", "-healthz-ip=here"]).expect_err("no address").to_string();
    assert_eq!(line, "flag -healthz-ip: invalid IP address: here");
}

#[test]
fn mesh_probes_are_off_by_default() {
    let mesh = |arguments: &[&str]| run(arguments, &[]).map(|options| options.mesh);
    assert_eq!(mesh(&[]), Ok(None));
    let options = MeshOptions::new(Duration::from_secs(30), 8473);
    assert_eq!(mesh(&["-mesh-probe-interval=30s"]), Ok(Some(options)));
    for (arguments, why) in [
        (&["-mesh-probe-interval=10ms"][..], "flag -mesh-probe-interval: 10ms is not within 1s and 24h"),
        (&["-mesh-probe-port=0"], "flag -mesh-probe-port: 0 is not within 1 and 65535"),
    ] {
        assert_eq!(mesh(arguments), Err(why.to_owned()));
    }
}

#[test]
fn ping_takes_peers_before_and_after_its_flags() {
    let ping = |arguments: &[&str]| {
        ping::parse(arguments.iter().map(OsString::from).collect(), |_| None)
            .map_err(|error| error.to_string())
    };
    let options = ping(&["10.5.2.0/24", "-count", "3", "192.168.0.3", "-json"]).expect("good flags");
    assert_eq!(
        (options.peers, options.count, options.json),
        (vec!["10.5.2.0/24".into(), "192.168.0.3".into()], 3, true)
    );
    assert_eq!(options.socket, Some("/run/flannel/subnet.env.sock".into()));
    for (argument, why) in [
        ("-count=0", "flag -count: 0 is not within 1 and 1000"),
        ("-color=green", "flag -color: \"green\" is not auto, always or never"),
        ("-iface=eth0", "flag provided but not defined: -iface"),
    ] {
        assert_eq!(ping(&[argument]).map(|_| ()), Err(why.to_owned()));
    }
}
