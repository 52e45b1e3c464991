//! The command line of the program: exit statuses, streams and texts.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::LazyLock;

use flannel_netlink::Namespace;
use flannel_testing::output_in;

mod flags;

/// Exit status and output of a run.
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs flanneld with only these arguments and variables, in a namespace without interfaces, so that a daemon exits at once.
fn flanneld<A: AsRef<OsStr>>(arguments: &[A], environment: &[(&str, &str)]) -> Outcome {
    static EMPTY: LazyLock<Namespace> = LazyLock::new(|| Namespace::create().expect("root"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_flanneld"));
    command
        .args(arguments)
        .env_clear()
        .env("FLANNELD_SUBNET_FILE", "/nonexistent/subnet.env")
        .envs(environment.iter().copied());
    let output = output_in(&EMPTY, command).expect("flanneld runs");
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

/// The usage text.
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
fn help_is_the_usage_text_and_a_success() {
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
        "  -follow-config",
        "  -healthz-ip string",
        "  -healthz-port int",
        "  -iface value",
        "  -iface-can-reach string",
        "  -iface-regex value",
        "  -ip-blackhole-route",
        "  -ip-masq",
        "  -ip-masq-fully-random-disable",
        "  -iptables-forward-rules",
        "  -iptables-resync int",
        "  -keep-udp-device",
        "  -kube-annotation-prefix string",
        "  -kube-api-url string",
        "  -kube-subnet-mgr",
        "  -kubeconfig-file string",
        "  -log-format string",
        "  -log_backtrace_at string",
        "  -mass-expiry-hold int",
        "  -mesh-probe-interval duration",
        "  -mesh-probe-port int",
        "  -net-config-path string",
        "  -public-ip string",
        "  -public-ipv6 string",
        "  -release-on-exit",
        "  -restrict-tunnel-port",
        "  -set-node-network-unavailable",
        "  -status-socket string",
        "  -subnet-file string",
        "  -subnet-lease-renew-margin int",
        "  -subnet-lease-ttl duration",
        "  -v int",
        "  -version",
        "  -vmodule string",
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
        " (default \"flannel.alpha.coreos.com\")\n",
        " (default \"/etc/kube-flannel/net-conf.json\")\n",
        " (default \"text\")\n",
        " (default \"0.0.0.0\")\n",
        " (default 8473)\n",
    ] {
        assert!(usage.contains(default), "{default} is not in {usage}");
    }
    assert_eq!(usage.matches("(default").count(), 16);
    let (flags, commands) = usage.split_once("Commands:\n").expect("the commands are listed");
    assert!(commands.contains("migrate-etcd [OPTION]...\n    \t"), "{commands}");
    let descriptions = flags.lines().skip(2).step_by(2);
    for description in descriptions {
        assert!(description.starts_with("    \t"), "{description:?}");
    }
}

#[test]
fn the_usage_text_of_a_subcommand_lists_its_flags() {
    let outcome = flanneld(&["migrate-etcd", "-help"], &[]);
    assert_eq!((outcome.stdout.as_str(), outcome.code), ("", Some(0)));
    let first = format!("Usage: {} migrate-etcd [OPTION]...", env!("CARGO_BIN_EXE_flanneld"));
    assert_eq!(outcome.stderr.lines().next(), Some(first.as_str()));
    let heads: Vec<_> = outcome.stderr.lines().filter_map(|line| line.strip_prefix("  -")).collect();
    assert_eq!(heads.len(), 9, "{heads:?}");
    assert!(heads.contains(&"dry-run") && !heads.contains(&"etcd-api string"), "{heads:?}");
    let outcome = flanneld(&["migrate-etcd", "now", "--dry-run"], &[]);
    assert_eq!(outcome.stderr, "unexpected argument \"now\"\n");
    assert_eq!((outcome.stdout.as_str(), outcome.code), ("", Some(2)));
}

#[test]
fn an_invalid_flag_is_a_failure_and_prints_the_usage_text() {
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

/// The names of the flags in a usage text, without dashes.
fn names(usage: &str) -> Vec<&str> {
    let heads = usage.lines().filter_map(|line| line.strip_prefix("  -"));
    heads.filter_map(|head| head.split([' ', '\t']).next()).collect()
}

#[test]
fn the_manual_lists_every_flag_and_every_command() {
    let roff = include_str!("../../../dist/flanneld.8");
    let markdown = include_str!("../../../docs/flags.md");
    let usage = usage();
    let commands: Vec<&str> = usage.lines().filter_map(|line| line.strip_suffix(" [OPTION]...")).collect();
    let commands: Vec<&str> =
        commands.iter().skip(1).filter_map(|line| line.split(' ').next_back()).collect();
    assert!(names(&usage).len() > 20 && commands.contains(&"migrate-etcd"), "{usage}");
    let own = commands.iter().map(|command| flanneld(&[command, "-help"], &[]).stderr);
    for usage in own.chain([usage.clone()]) {
        for name in names(&usage) {
            let escaped = name.replace('-', "\\-");
            assert!(roff.contains(&format!("\n.TP\n\\fB\\-{escaped}\\fR")), "-{name} in the man page");
            assert!(markdown.contains(&format!("\n| `-{name}")), "-{name} in the page");
        }
    }
    for command in commands {
        assert!(roff.contains(&format!("\n.SS {}\n", command.replace('-', "\\-"))), "{command}");
        assert!(markdown.contains(&format!("\n### {command}\n")), "{command}");
    }
}
