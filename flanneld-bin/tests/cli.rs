//! The command line of the built program: exit status, streams and words.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

/// What a run of flanneld left: exit status, standard output, standard error.
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs flanneld with nothing but these arguments and variables, and no `subnet.env` to find.
fn flanneld<A: AsRef<OsStr>>(arguments: &[A], environment: &[(&str, &str)]) -> Outcome {
    let output = Command::new(env!("CARGO_BIN_EXE_flanneld"))
        .args(arguments)
        .env_clear()
        .env("FLANNELD_SUBNET_FILE", "/nonexistent/subnet.env")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("flanneld runs");
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

/// The usage text that must follow the first line of a syntax error.
fn usage() -> String {
    flanneld(&["-help"], &[]).stderr
}

#[test]
fn the_version_goes_to_standard_error_and_is_a_success() {
    for arguments in [&["-version"][..], &["--version"], &["-version=true", "-iface", "eth0"]] {
        let outcome = flanneld(arguments, &[("FLANNELD_V", "bad")]);
        assert_eq!(outcome.stderr, format!("v{}\n", env!("CARGO_PKG_VERSION")), "{arguments:?}");
        assert_eq!((outcome.stdout.as_str(), outcome.code), ("", Some(0)), "{arguments:?}");
    }
}

#[test]
fn help_is_the_usage_text_alone_and_is_a_success() {
    for argument in ["-h", "-help", "--h", "--help"] {
        let outcome = flanneld(&[argument], &[]);
        assert_eq!((outcome.stdout.as_str(), outcome.code), ("", Some(0)), "{argument}");
        let first = format!("Usage: {} [OPTION]...", env!("CARGO_BIN_EXE_flanneld"));
        assert_eq!(outcome.stderr.lines().next(), Some(first.as_str()), "{argument}");
    }
}

#[test]
fn the_usage_text_lists_the_flags_in_order_with_their_defaults() {
    let usage = usage();
    let heads: Vec<&str> = usage.lines().filter(|line| line.starts_with("  -")).collect();
    let expected = [
        "  -etcd-api string",
        "  -etcd-cafile string",
        "  -etcd-certfile string",
        "  -etcd-endpoints string",
        "  -etcd-keyfile string",
        "  -etcd-password string",
        "  -etcd-prefix string",
        "  -etcd-username string",
        "  -iface value",
        "  -ip-blackhole-route",
        "  -ip-masq",
        "  -ip-masq-fully-random-disable",
        "  -iptables-forward-rules",
        "  -iptables-resync int",
        "  -keep-udp-device",
        "  -mass-expiry-hold int",
        "  -public-ip string",
        "  -public-ipv6 string",
        "  -release-on-exit",
        "  -restrict-tunnel-port",
        "  -subnet-file string",
        "  -subnet-lease-renew-margin int",
        "  -subnet-lease-ttl duration",
        "  -v int",
        "  -version",
    ];
    assert_eq!(heads, expected);
    for default in [
        " (default \"http://127.0.0.1:4001,http://127.0.0.1:2379\")\n",
        " (default \"/coreos.com/network\")\n",
        " (default \"/run/flannel/subnet.env\")\n",
        " (default 300)\n",
        " (default 24h0m0s)\n",
        " (default \"auto\")\n",
        " (default true)\n",
        " (default 5)\n",
    ] {
        assert!(usage.contains(default), "{default} is not in {usage}");
    }
    assert_eq!(usage.matches("(default").count(), 8);
    let (flags, others) = usage.split_once("Another command:\n").expect("the other command is named");
    assert!(others.contains("migrate-etcd [OPTION]...\n    \t"), "{others}");
    let descriptions = flags.lines().skip(2).step_by(2);
    for description in descriptions {
        assert!(description.starts_with("    \t"), "{description:?}");
    }
}

#[test]
fn the_usage_text_of_the_other_command_lists_what_it_takes() {
    let outcome = flanneld(&["migrate-etcd", "-help"], &[]);
    assert_eq!((outcome.stdout.as_str(), outcome.code), ("", Some(0)));
    let first = format!("Usage: {} migrate-etcd [OPTION]...", env!("CARGO_BIN_EXE_flanneld"));
    assert_eq!(outcome.stderr.lines().next(), Some(first.as_str()));
    let heads: Vec<_> = outcome.stderr.lines().filter_map(|line| line.strip_prefix("  -")).collect();
    assert_eq!(heads.len(), 9, "{heads:?}");
    assert!(heads.contains(&"dry-run") && !heads.contains(&"etcd-api string"), "{heads:?}");
    let outcome = flanneld(&["migrate-etcd", "now", "--dry-run"], &[]);
    assert_eq!(outcome.stderr, "argument \"now\" is not expected\n");
    assert_eq!((outcome.stdout.as_str(), outcome.code), ("", Some(2)));
}

#[test]
fn a_wrong_flag_is_a_failure_and_brings_the_usage_text() {
    for (arguments, line) in [
        (&["-nosuch"][..], "flag provided but not defined: -nosuch"),
        (&["--nosuch=1"], "flag provided but not defined: -nosuch"),
        (&["-v", "abc"], "invalid value \"abc\" for flag -v: parse error"),
        (&["-v=1s"], "invalid value \"1s\" for flag -v: parse error"),
        (
            &["-v", "0x8000000000000000"],
            "invalid value \"0x8000000000000000\" for flag -v: value out of range",
        ),
        (&["-version=maybe"], "invalid boolean value \"maybe\" for -version: parse error"),
        (&["-iface"], "flag needs an argument: -iface"),
        (&["---x"], "bad flag syntax: ---x"),
        (&["-="], "bad flag syntax: -="),
        (&["-version", "-nosuch"], "flag provided but not defined: -nosuch"),
    ] {
        let outcome = flanneld(arguments, &[]);
        assert_eq!(outcome.stderr, format!("{line}\n{}", usage()), "{arguments:?}");
        assert_eq!((outcome.stdout.as_str(), outcome.code), ("", Some(2)), "{arguments:?}");
    }
}

#[test]
fn what_cannot_be_honoured_is_a_failure_of_one_line() {
    for (arguments, environment, line) in [
        (&["-net-config-path=/c"][..], &[][..], "flag -net-config-path is not supported yet"),
        (&["--kube-subnet-mgr=true"], &[], "flag -kube-subnet-mgr is not supported yet"),
        (&["-kubeconfig-file", "/k"], &[], "flag -kubeconfig-file is not supported yet"),
        (&["-log_backtrace_at=a.go:1"], &[], "flag -log_backtrace_at is not supported yet"),
        (
            &["-etcd-endpoints=http://10.0.0.1:2379,h:0"],
            &[],
            "flag -etcd-endpoints: \"h:0\": the port must be a number from 1 to 65535",
        ),
        (&["-public-ip=abc"], &[], "flag -public-ip: invalid public IP address: abc"),
        (&[], &[("FLANNELD_V", "abc")], "invalid value \"abc\" for FLANNELD_V: parse error"),
        (
            &[],
            &[("FLANNELD_NET_CONFIG_PATH", "/c")],
            "flag -net-config-path is not supported yet (set by FLANNELD_NET_CONFIG_PATH)",
        ),
    ] {
        let outcome = flanneld(arguments, environment);
        assert_eq!(outcome.stderr, format!("{line}\n"), "{arguments:?} {environment:?}");
        assert_eq!((outcome.stdout.as_str(), outcome.code), ("", Some(2)), "{arguments:?} {environment:?}");
    }
}
