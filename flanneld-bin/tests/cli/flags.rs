//! Every form of every upstream flag, given to the program. Unit tests check the resulting options.

use crate::{flanneld, usage};

/// The type of a flag's value.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Takes {
    Text,
    Number,
    Switch,
    List,
}

use Takes::{List, Number, Switch, Text};

/// One flag of upstream.
struct Row {
    name: &'static str,
    takes: Takes,
    /// The default in the usage text, if any.
    default: &'static str,
    /// A valid value.
    good: &'static str,
    /// An invalid value and the error; empty if every text is valid.
    bad: (&'static str, &'static str),
}

const fn row(
    name: &'static str,
    takes: Takes,
    default: &'static str,
    good: &'static str,
    bad: (&'static str, &'static str),
) -> Row {
    Row { name, takes, default, good, bad }
}

const ANY: (&str, &str) = ("", "");
const NO_NUMBER: (&str, &str) = ("abc", "parse error");
const NO_SWITCH: (&str, &str) = ("maybe", "parse error");
const NO_LIST: (&str, &str) = ("x", "syntax error: expect comma-separated list of filename=N: \"x\"");
const NO_KEY: (&str, &str) = ("a/..", "no key in \"a/..\"");
const NO_PORT: (&str, &str) = ("h:0", "\"h:0\": the port must be a number from 1 to 65535");
const NO_IPV4: (&str, &str) = ("fd00::1", "invalid public IP address: fd00::1");
const NO_IPV6: (&str, &str) = ("10.0.0.1", "invalid public IPv6 address: 10.0.0.1");
const NO_IP: (&str, &str) = ("eth0", "invalid IP address: eth0");
const NO_MARGIN: (&str, &str) = (
    "1440",
    "Invalid subnet-lease-renew-margin option, out of acceptable range: 1440 is not within 1 and 1439 minutes",
);

/// The flags of v0.11 and v0.28, except `-version`, which has its own test.
const UPSTREAM: &[Row] = &[
    row(
        "etcd-endpoints",
        Text,
        "\"http://127.0.0.1:4001,http://127.0.0.1:2379\"",
        "https://192.168.8.26:2379,https://192.168.8.31:2379",
        NO_PORT,
    ),
    row("etcd-prefix", Text, "\"/coreos.com/network\"", "/kubernetes/network", NO_KEY),
    row("etcd-keyfile", Text, "", "/etc/kubernetes/ssl/flanneld-key.pem", ANY),
    row("etcd-certfile", Text, "", "/etc/kubernetes/ssl/flanneld.pem", ANY),
    row("etcd-cafile", Text, "", "/etc/kubernetes/ssl/ca.pem", ANY),
    row("etcd-username", Text, "", "flannel", ANY),
    row("etcd-password", Text, "", "-secret=", ANY),
    row("iface", List, "", "eth0", ANY),
    row("iface-regex", List, "", "eth[0-9]|10\\.0\\.", ANY),
    row("iface-can-reach", Text, "", "192.168.1.1", NO_IP),
    row("public-ip", Text, "", "203.0.113.7", NO_IPV4),
    row("public-ipv6", Text, "", "2001:db8::7", NO_IPV6),
    row("subnet-file", Text, "\"/run/flannel/subnet.env\"", "/vxlan.env", ANY),
    row("subnet-lease-renew-margin", Number, "", "1439", NO_MARGIN),
    row("ip-masq", Switch, "", "true", NO_SWITCH),
    row("ip-masq-fully-random-disable", Switch, "", "true", NO_SWITCH),
    row("ip-blackhole-route", Switch, "", "true", NO_SWITCH),
    row("iptables-forward-rules", Switch, "true", "false", NO_SWITCH),
    row("iptables-resync", Number, "5", "0x10", NO_NUMBER),
    row("kube-subnet-mgr", Switch, "", "false", NO_SWITCH),
    row("kube-api-url", Text, "", "https://10.0.0.1:6443", ANY),
    row("kubeconfig-file", Text, "", "/etc/kubernetes/kubeconfig", ANY),
    row("kube-annotation-prefix", Text, "\"flannel.alpha.coreos.com\"", "example.com", ANY),
    row("net-config-path", Text, "\"/etc/kube-flannel/net-conf.json\"", "/net-conf.json", ANY),
    row("set-node-network-unavailable", Switch, "true", "false", NO_SWITCH),
    row("healthz-ip", Text, "\"0.0.0.0\"", "127.0.0.1", ANY),
    row("healthz-port", Number, "", "8090", NO_NUMBER),
    row("v", Number, "", "10", NO_NUMBER),
    row("vmodule", Text, "", "iface=1,net*=4", NO_LIST),
    row("log_backtrace_at", Text, "", "iface.rs:12", ANY),
];

/// An invalid flag that is checked last, so that no daemon starts: its error proves that the others are valid.
fn last(row: &Row) -> (&'static str, &'static str) {
    if row.name == "subnet-lease-renew-margin" {
        ("-etcd-api=v4", "flag -etcd-api: \"v4\" is not auto, v2 or v3\n")
    } else {
        (
            "-subnet-lease-renew-margin=0",
            "flag -subnet-lease-renew-margin: Invalid subnet-lease-renew-margin option, out of acceptable range: 0 \
             is not within 1 and 1439 minutes\n",
        )
    }
}

/// The environment variable of a flag.
fn variable(name: &str) -> String {
    format!("FLANNELD_{}", name.to_uppercase().replace('-', "_"))
}

/// Checks that these arguments and variables are valid.
fn check_valid(row: &Row, arguments: &[&str], environment: &[(&str, &str)]) {
    let (last, line) = last(row);
    let arguments: Vec<&str> = [arguments, &[last]].concat();
    let outcome = flanneld(&arguments, environment);
    assert_eq!(outcome.stderr, line, "{arguments:?} {environment:?}");
    assert_eq!((outcome.stdout.as_str(), outcome.code), ("", Some(2)), "{arguments:?} {environment:?}");
}

/// Checks that these arguments and variables are rejected with this text.
fn check_rejected(arguments: &[&str], environment: &[(&str, &str)], text: &str) {
    let outcome = flanneld(arguments, environment);
    assert_eq!(outcome.stderr, text, "{arguments:?} {environment:?}");
    assert_eq!((outcome.stdout.as_str(), outcome.code), ("", Some(2)), "{arguments:?} {environment:?}");
}

#[test]
fn every_flag_of_upstream_is_in_the_usage_text_with_its_type_and_default() {
    let usage = usage();
    for Row { name, takes, default, .. } in UPSTREAM {
        let word = match takes {
            Text => " string",
            Number => " int",
            List => " value",
            Switch => "",
        };
        let head = format!("  -{name}{word}");
        let mut lines = usage.lines().skip_while(|line| *line != head);
        assert_eq!(lines.next(), Some(head.as_str()), "not in the usage text");
        let description = lines.next().expect("a description");
        let shown =
            description.rsplit_once(" (default ").map_or("", |(_, shown)| shown.trim_end_matches(')'));
        assert_eq!(shown, *default, "-{name}: {description}");
    }
}

#[test]
fn every_form_of_every_flag_is_valid() {
    for row in UPSTREAM {
        let Row { name, takes, good, .. } = row;
        let (one, two) = (format!("-{name}"), format!("--{name}"));
        let (one_is, two_is) = (format!("{one}={good}"), format!("{two}={good}"));
        check_valid(row, &[&one_is, &two_is], &[]);
        if *takes == Switch {
            if *name != "kube-subnet-mgr" {
                check_valid(row, &[&one, &two, &one_is], &[]);
            }
            // The last value is the default, which leaves Kubernetes disabled.
            let spellings = "1 t T TRUE true True 0 f F FALSE false False";
            let forms: Vec<String> = spellings.split(' ').map(|value| format!("{one}={value}")).collect();
            check_valid(row, &forms.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        } else {
            check_valid(row, &[&one, good, &two, good], &[]);
        }
        check_valid(row, &[], &[(&variable(name), good)]);
        check_valid(row, &[], &[(&variable(name), "")]);
    }
}

#[test]
fn an_invalid_value_is_rejected_from_arguments_and_variables() {
    let usage = usage();
    for row in UPSTREAM.iter().filter(|row| row.bad != ANY) {
        let Row { name, takes, good, bad: (value, why), .. } = row;
        let (line, in_variable) = match (*takes, *why) {
            (Switch, _) => (
                format!("invalid boolean value \"{value}\" for -{name}: {why}\n{usage}"),
                format!("invalid value \"{value}\" for {}: {why}\n", variable(name)),
            ),
            (_, "parse error") => (
                format!("invalid value \"{value}\" for flag -{name}: {why}\n{usage}"),
                format!("invalid value \"{value}\" for {}: {why}\n", variable(name)),
            ),
            _ => (format!("flag -{name}: {why}\n"), format!("{}: {why}\n", variable(name))),
        };
        check_rejected(&[&format!("-{name}={value}")], &[], &line);
        check_rejected(&[&format!("--{name}={value}")], &[], &line);
        if *takes != Switch {
            check_rejected(&[&format!("--{name}"), value], &[], &line);
        }
        check_rejected(&[], &[(&variable(name), value)], &in_variable);
        // The command line takes precedence over the variable.
        check_valid(row, &[&format!("-{name}={good}")], &[(&variable(name), value)]);
    }
}

#[test]
fn a_flag_without_a_value_is_rejected() {
    let usage = usage();
    for Row { name, .. } in UPSTREAM.iter().filter(|row| row.takes != Switch) {
        check_rejected(&[&format!("--{name}")], &[], &format!("flag needs an argument: -{name}\n{usage}"));
        check_rejected(&[&format!("---{name}")], &[], &format!("bad flag syntax: ---{name}\n{usage}"));
    }
}

#[test]
fn numbers_are_parsed_as_in_go() {
    for row in UPSTREAM.iter().filter(|row| row.takes == Number) {
        for number in ["10", "+10", "0xA", "0XA", "0o12", "0b1010", "012", "1_0"] {
            check_valid(row, &[&format!("-{}={number}", row.name)], &[]);
        }
        for (number, why) in [
            ("", "parse error"),
            ("10s", "parse error"),
            ("1.0", "parse error"),
            ("9223372036854775808", "value out of range"),
        ] {
            let line = format!("invalid value \"{number}\" for flag -{}: {why}\n{}", row.name, usage());
            check_rejected(&[&format!("-{}", row.name), number], &[], &line);
        }
    }
}

#[test]
fn arguments_after_the_last_flag_are_ignored() {
    let margin = &UPSTREAM[0];
    let (stop, line) = last(margin);
    for end in [&["--"][..], &["-"], &[""], &["word"], &["-ip-masq", "true"]] {
        let arguments: Vec<&str> = [&[stop][..], end, &["-nosuch", "-v=abc"]].concat();
        check_rejected(&arguments, &[], line);
    }
    // `--` is a value here, and does not end the flags.
    check_rejected(&["-etcd-username", "--", stop], &[], line);
}

#[test]
fn other_variables_are_ignored() {
    let row = &UPSTREAM[0];
    for name in
        ["FLANNEL_ETCD_ENDPOINTS", "ETCD_ENDPOINTS", "FLANNEL_OPTIONS", "FLANNELD_NOSUCH", "FLANNELD_VERSION"]
    {
        check_valid(row, &[], &[(name, "h:0")]);
    }
}

#[test]
fn kubernetes_is_rejected_with_one_line() {
    let why = "Kubernetes is not supported yet; leases are stored in etcd\n";
    for form in ["-kube-subnet-mgr", "--kube-subnet-mgr", "-kube-subnet-mgr=true", "--kube-subnet-mgr=1"] {
        check_rejected(&[form], &[], &format!("flag -kube-subnet-mgr: {why}"));
    }
    check_rejected(&[], &[("FLANNELD_KUBE_SUBNET_MGR", "true")], &format!("FLANNELD_KUBE_SUBNET_MGR: {why}"));
}

#[test]
fn an_invalid_pattern_is_rejected() {
    for (arguments, environment, source) in [
        (&["-iface-regex=("][..], &[][..], "flag -iface-regex"),
        (&["--iface-regex", "eth0", "--iface-regex", "("], &[], "flag -iface-regex"),
        (&[], &[("FLANNELD_IFACE_REGEX", "(")], "FLANNELD_IFACE_REGEX"),
    ] {
        let outcome = flanneld(arguments, environment);
        let head = format!("{source}: could not compile the IP address regex '(': ");
        assert!(outcome.stderr.starts_with(&head), "{}", outcome.stderr);
        assert_eq!((outcome.stderr.lines().count(), outcome.code), (1, Some(2)));
    }
}

#[test]
fn no_password_is_logged() {
    const SECRET: &str = "s3cret";
    let given = format!("-etcd-password={SECRET}");
    for (arguments, variable) in [
        (&[given.as_str()][..], ""),
        (&["--etcd-password", SECRET], ""),
        (&[], SECRET),
        (&["-ip-masq", "true", &given], ""),
        (&["-ip-masq", "true", "-etcd-password", SECRET], ""),
        (&["-etcd-password=", SECRET], ""),
    ] {
        for format in ["-log-format=text", "-log-format=json"] {
            let arguments = [&["-v=10", format, "-etcd-username=flannel"], arguments].concat();
            let outcome = flanneld(&arguments, &[("FLANNELD_ETCD_PASSWORD", variable)]);
            // The daemon exits, because there is no interface.
            assert!(
                outcome.stderr.contains("Failed to find any valid interface to use"),
                "{}",
                outcome.stderr
            );
            assert_eq!(outcome.code, Some(1));
            assert!(!(outcome.stdout + &outcome.stderr).contains(SECRET), "{arguments:?}");
        }
    }
}

#[test]
fn ignored_arguments_are_logged() {
    let warning = |arguments: &[&str]| {
        let stderr = flanneld(arguments, &[]).stderr;
        let line = stderr.lines().find(|line| line.starts_with('W')).map(str::to_owned);
        line.map(|line| line.split_once("] ").expect("a head").1.to_owned())
    };
    let cure = "; a boolean flag takes its value after an equals sign";
    let two = warning(&["--ip-masq", "true", "-iface", "eth0p", "-v=1", "-nosuch"]);
    let expected = format!("5 arguments after the last flag are ignored, including -iface, -v{cure}");
    assert_eq!(two, Some(expected));
    assert_eq!(warning(&["word"]), Some(format!("1 arguments after the last flag are ignored{cure}")));
    assert_eq!(warning(&["-v=1", ""]), None, "a variable that is not set");
}

#[test]
fn a_json_log_has_an_object_per_line() {
    let outcome = flanneld(&["-v=10", "-iface=eth7"], &[("FLANNELD_LOG_FORMAT", "json")]);
    let objects: Vec<serde_json::Value> =
        outcome.stderr.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let last = objects.last().expect("a line");
    assert_eq!(last["level"], "error");
    assert!(last["message"].as_str().is_some_and(|text| text.contains("-iface=eth7: ")), "{last}");
    for member in ["time", "process", "place"] {
        assert!(objects.iter().all(|object| !object[member].is_null()), "{member}");
    }
    assert_eq!(outcome.code, Some(1));
}
