//! The output of `dist/mk-docker-opts.sh`, in each shell that may be `/bin/sh`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use flannel_netlink::Namespace;
use flannel_testing::{Directory, Lab, LabOptions, output_in, program};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/mk-docker-opts.sh");
const SHELLS: [&[&str]; 3] = [&["dash"], &["bash", "--posix"], &["bash"]];

/// A subnet file.
const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";

/// A directory in which the script runs, with its input.
struct Site {
    directory: Directory,
    /// A namespace without the machine's routes.
    namespace: Namespace,
}

impl Site {
    fn new(subnet_env: Option<&str>) -> Self {
        Self::new_in(Namespace::create().unwrap(), subnet_env)
    }

    fn new_in(namespace: Namespace, subnet_env: Option<&str>) -> Self {
        let directory = Directory::new().unwrap();
        if let Some(text) = subnet_env {
            fs::write(directory.join("subnet.env"), text).unwrap();
        }
        Self { directory, namespace }
    }

    fn output_file(&self) -> PathBuf {
        self.directory.join("docker")
    }

    /// Runs the script with the site's input and output files, and these flags and variables.
    fn run(&self, shell: &[&str], flags: &str, environment: &[(&str, &str)]) -> Output {
        let files = [("-f", self.directory.join("subnet.env")), ("-d", self.output_file())];
        self.run_plain(shell, &files, flags, environment)
    }

    fn run_plain(
        &self,
        shell: &[&str],
        files: &[(&str, PathBuf)],
        flags: &str,
        environment: &[(&str, &str)],
    ) -> Output {
        let mut command =
            Command::new(program(if shell[0] == "dash" { "dash" } else { "bash" }, "dash bash").unwrap());
        command.args(&shell[1..]).arg(SCRIPT).current_dir(self.directory.path());
        for (flag, path) in files {
            command.arg(flag).arg(path);
        }
        command.args(flags.split_whitespace());
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(environment.iter().copied());
        output_in(&self.namespace, command).unwrap()
    }

    fn written(&self) -> String {
        fs::read_to_string(self.output_file()).unwrap()
    }
}

/// Checks the output with these flags and variables in every shell.
fn check(subnet_env: Option<&str>, flags: &str, environment: &[(&str, &str)], expected: &[&str]) {
    for shell in SHELLS {
        let site = Site::new(subnet_env);
        let output = site.run(shell, flags, environment);
        assert_eq!(
            (output.status.code(), output.stderr.len()),
            (Some(0), 0),
            "{shell:?} {flags}: {output:?}"
        );
        let text: String = expected.iter().map(|line| format!("{line}\n")).collect();
        assert_eq!(site.written(), text, "{shell:?} {flags}");
    }
}

const BIP: &str = r#"DOCKER_OPT_BIP="--bip=10.1.74.1/24""#;
const IPMASQ: &str = r#"DOCKER_OPT_IPMASQ="--ip-masq=true""#;
const MTU: &str = r#"DOCKER_OPT_MTU="--mtu=1472""#;
const ALL: &str = r#"DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472""#;
const NAMED: &str = r#"DOCKER_NETWORK_OPTIONS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472""#;
const UNMASKED: &str = r#"DOCKER_OPTS=" --bip=10.1.74.1/24 --mtu=1472""#;

#[test]
fn every_combination_of_flags_has_upstreams_output() {
    for (flags, expected) in [
        ("", &[BIP, IPMASQ, MTU, ALL][..]),
        ("-i -c", &[BIP, IPMASQ, MTU, ALL]),
        ("-ic", &[BIP, IPMASQ, MTU, ALL]),
        ("-i", &[BIP, IPMASQ, MTU]),
        ("-i -k X", &[BIP, IPMASQ, MTU]),
        ("-c", &[ALL]),
        ("-k DOCKER_NETWORK_OPTIONS", &[BIP, IPMASQ, MTU, NAMED]),
        ("-c -k DOCKER_NETWORK_OPTIONS", &[NAMED]),
        ("-m", &[BIP, MTU, UNMASKED]),
        ("-m -i", &[BIP, MTU]),
        ("-m -c", &[UNMASKED]),
        ("-m -i -c", &[BIP, MTU, UNMASKED]),
        ("-m -k DOCKER_OPTS", &[BIP, MTU, UNMASKED]),
        ("-m -k X", &[BIP, MTU, r#"X=" --bip=10.1.74.1/24 --mtu=1472""#]),
        ("-m -c -k X", &[r#"X=" --bip=10.1.74.1/24 --mtu=1472""#]),
        ("-m -i -k X", &[BIP, MTU]),
        ("-c ignored arguments", &[ALL]),
    ] {
        check(Some(SUBNET_ENV), flags, &[], expected);
    }
}

#[test]
fn flanneld_and_docker_never_both_masquerade() {
    let expected = [
        BIP,
        r#"DOCKER_OPT_IPMASQ="--ip-masq=false""#,
        MTU,
        r#"DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=false --mtu=1472""#,
    ];
    check(Some(&SUBNET_ENV.replace("false", "true")), "", &[], &expected);
}

#[test]
fn variables_of_the_environment_are_used() {
    let with = |before: &str| format!("{before} --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"");
    check(Some(SUBNET_ENV), "-c", &[("DOCKER_OPTS", "--foo")], &[&with("DOCKER_OPTS=\"--foo ")]);
    let environment = [("DOCKER_OPTS", "--foo"), ("MY", "--baz")];
    check(Some(SUBNET_ENV), "-c -k MY", &environment, &[&with("MY=\"--baz ")]);
    let extra = r#"DOCKER_OPT_EXTRA="--bar""#;
    let all = r#"DOCKER_OPTS=" --bip=10.1.74.1/24 --bar --ip-masq=true --mtu=1472""#;
    check(Some(SUBNET_ENV), "", &[("DOCKER_OPT_EXTRA", "--bar")], &[BIP, extra, IPMASQ, MTU, all]);
    let blanks = r#"DOCKER_OPT_LOG="--log-opt a=b c""#;
    check(None, "-i", &[("DOCKER_OPT_LOG", "--log-opt a=b c")], &[blanks]);
}

#[test]
fn without_a_file_the_environment_is_used() {
    check(None, "", &[], &[r#"DOCKER_OPTS="""#]);
    check(None, "-c", &[], &[r#"DOCKER_OPTS="""#]);
    check(None, "-i", &[], &[]);
    let expected = [r#"DOCKER_OPT_MTU="--mtu=9000""#, r#"DOCKER_OPTS=" --mtu=9000""#];
    check(None, "", &[("FLANNEL_MTU", "9000")], &expected);
}

#[test]
fn ipv6_is_not_passed_to_docker() {
    let v6 = "FLANNEL_IPV6_NETWORK=fd10:5::/48\nFLANNEL_IPV6_SUBNET=fd10:5:0:1::1/64\n";
    check(Some(&format!("{v6}{SUBNET_ENV}")), "", &[], &[BIP, IPMASQ, MTU, ALL]);
    let only = format!("{v6}FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n");
    check(Some(&only), "-i", &[], &[IPMASQ, MTU]);
}

#[test]
fn an_unknown_value_is_an_error_and_keeps_the_file() {
    for shell in SHELLS {
        let site = Site::new(Some(&SUBNET_ENV.replace("false", "yes")));
        fs::write(site.output_file(), "before").unwrap();
        let output = site.run(shell, "", &[]);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "Invalid value of FLANNEL_IPMASQ: yes\n");
        assert_eq!(site.written(), "before");
        // Who leaves it to Docker is not asked.
        assert_eq!(site.run(shell, "-m -i", &[]).status.code(), Some(0));
        assert_eq!(site.written(), format!("{BIP}\n{MTU}\n"));
    }
}

#[test]
fn invalid_flags_print_the_usage_text() {
    for shell in SHELLS {
        let site = Site::new(Some(SUBNET_ENV));
        for flags in ["-h", "-?", "-x", "-f"] {
            let output = site.run_plain(shell, &[("-d", site.output_file())], flags, &[]);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.code() == Some(1) && stderr.contains("usage: "),
                "{shell:?} {flags}: {stderr}"
            );
        }
        let output = site.run(shell, "-k a;b", &[]);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "Invalid name of a variable: a;b\n");
        assert!(!site.output_file().exists());
    }
}

#[test]
fn a_file_in_the_working_directory_needs_no_slash_and_a_missing_directory_is_an_error() {
    for shell in SHELLS {
        let site = Site::new(Some(SUBNET_ENV));
        let files = [("-f", "subnet.env".into()), ("-d", "docker".into())];
        assert_eq!(site.run_plain(shell, &files, "-c", &[]).status.code(), Some(0));
        assert_eq!(site.written(), format!("{ALL}\n"));
        let output = site.run_plain(shell, &[("-d", site.directory.join("missing/docker"))], "-c", &[]);
        assert!(!output.status.success() && !output.stderr.is_empty(), "{shell:?}: {output:?}");
    }
}

#[test]
fn a_route_to_the_own_subnet_via_another_host_is_reported_after_the_file_is_written() {
    let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap();
    let route = |line: &str| {
        let mut command = Command::new(program("ip", "iproute2").unwrap());
        command.args(["route", "replace"]).args(line.split(' '));
        assert!(output_in(&lab.hosts[0].namespace, command).unwrap().status.success(), "{line}");
    };
    // No false positives: a network with the same suffix, another prefix length, the bridge's own route.
    route("210.1.74.0/24 via 192.168.64.254");
    route("10.1.74.0/25 via 192.168.64.254");
    route("10.1.74.0/24 dev eth0");
    for shell in SHELLS {
        let site = Site::new_in(lab.hosts[0].namespace.clone(), Some(SUBNET_ENV));
        let output = site.run(shell, "-c", &[]);
        assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{shell:?}: {output:?}");
    }
    route("10.1.74.0/24 via 192.168.64.254 dev eth0");
    for shell in SHELLS {
        let site = Site::new_in(lab.hosts[0].namespace.clone(), Some(SUBNET_ENV));
        let output = site.run(shell, "-c", &[]);
        let line = "Your routing table already contains the subnet: 10.1.74.0/24 via 192.168.64.254 dev eth0";
        assert_eq!(String::from_utf8_lossy(&output.stderr).trim_end(), line);
        assert_eq!((output.status.code(), site.written()), (Some(1), format!("{ALL}\n")));
    }
}

#[test]
fn the_script_is_executable() {
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(fs::metadata(Path::new(SCRIPT)).unwrap().permissions().mode() & 0o111, 0o111);
}
