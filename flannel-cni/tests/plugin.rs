//! The program `flannel` as a container runtime runs it, with a delegate that records its calls.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flannel_testing::{Directory, write_program};

/// A directory with a delegate `bridge`, a `subnet.env` and states.
struct Site(Directory);

/// Exit status and output of a run.
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

const ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// Appends operation, container, interface, namespace and input to `calls`, prints `answer`, and exits with the status in
/// `status`.
const RECORDER: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
input=$(cat)
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS $input" >> calls
[ -f answer ] && cat answer
[ -f words ] && cat words >&2
exit "$(cat status 2>/dev/null || echo 0)"
"#;

impl Site {
    fn new() -> Self {
        let site = Self(Directory::new().unwrap());
        site.put("subnet.env", ENV);
        site.put("answer", "{\n    \"cniVersion\": \"0.3.1\",\n    \"ips\": []\n}\n");
        write_program(&site.0.join("bridge"), RECORDER).unwrap();
        site
    }

    fn put(&self, name: &str, content: &str) {
        fs::write(self.0.join(name), content).unwrap();
    }

    /// Returns and clears the recorded calls of the delegate.
    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.join("calls")).unwrap_or_default();
        let _ = fs::remove_file(self.0.join("calls"));
        text.lines().map(str::to_owned).collect()
    }

    /// The names of the state files.
    fn states(&self) -> Vec<String> {
        let entries = fs::read_dir(self.states_directory()).into_iter().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn states_directory(&self) -> PathBuf {
        self.0.join("states")
    }

    /// A configuration with the site's files and these members.
    fn conf(&self, more: &str) -> String {
        let (env, states) = (self.0.join("subnet.env"), self.states_directory());
        format!(
            r#"{{"type":"flannel","subnetFile":"{}","dataDir":"{}",{more}}}"#,
            env.display(),
            states.display()
        )
    }

    fn run(&self, variables: &[(&str, &str)], input: &str) -> Outcome {
        run(self.0.path(), variables, input)
    }

    /// Runs an operation for a container's `eth0`.
    fn operation(&self, operation: &str, container: &str, input: &str) -> Outcome {
        let variables = [
            ("CNI_COMMAND", operation),
            ("CNI_CONTAINERID", container),
            ("CNI_NETNS", "/nonexistent"),
            ("CNI_IFNAME", "eth0"),
        ];
        self.run(&variables, input)
    }
}

fn run(path: &Path, variables: &[(&str, &str)], input: &str) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flannel"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("CNI_PATH", path);
    command.envs(variables.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A plugin that reads no input may have exited.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The printed error object.
fn error(outcome: &Outcome) -> (u64, String, String) {
    assert_eq!(outcome.code, Some(1), "{}", outcome.stdout);
    assert!(outcome.stdout.starts_with("{\n    \"code\": ") && outcome.stdout.ends_with("\n}"));
    let object: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let word = |key: &str| object.get(key).and_then(|word| word.as_str()).unwrap_or_default().to_owned();
    (object["code"].as_u64().unwrap(), word("msg"), word("details"))
}

#[test]
fn without_a_command_the_plugin_prints_its_version() {
    let outcome = run(Path::new("/"), &[], "");
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), ""));
    assert!(outcome.stderr.starts_with("CNI Plugin flannel version v"), "{}", outcome.stderr);
    assert!(outcome.stderr.ends_with("supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n"));
}

#[test]
fn version_reads_no_input() {
    let outcome = run(Path::new("/"), &[("CNI_COMMAND", "VERSION")], "");
    let expected = r#"{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#;
    assert_eq!((outcome.code, outcome.stdout), (Some(0), format!("{expected}\n")));
}

#[test]
fn invalid_parameters_have_the_codes_of_the_specification() {
    let container = [("CNI_CONTAINERID", "c"), ("CNI_NETNS", "/x"), ("CNI_IFNAME", "eth0")];
    let named = r#"{"name":"n"}"#;
    let check = |verb: &str, other: &[(&str, &str)], input: &str, code: u64, msg: &str, details: &str| {
        let mut variables = vec![("CNI_COMMAND", verb)];
        variables.extend(container);
        variables.extend(other);
        let (found_code, found_msg, found_details) = error(&run(Path::new("/"), &variables, input));
        assert_eq!((found_code, found_msg.as_str()), (code, msg), "{verb} {other:?} {input}");
        assert_eq!(found_details, details, "{verb} {other:?} {input}");
    };
    let missing = |names| format!("required env variables [{names}] missing");
    check("ADD", &[("CNI_CONTAINERID", "-c")], named, 4, "invalid characters in containerID", "-c");
    check(
        "ADD",
        &[("CNI_IFNAME", "a234567890123456")],
        named,
        4,
        "interface name is too long",
        "a234567890123456",
    );
    check("DEL", &[("CNI_IFNAME", "..")], named, 4, "interface name is . or ..", "..");
    let characters = "interface name contains / or : or whitespace characters";
    check("CHECK", &[("CNI_IFNAME", "a b")], named, 4, characters, "a b");
    let none = [("CNI_CONTAINERID", ""), ("CNI_NETNS", ""), ("CNI_IFNAME", ""), ("CNI_PATH", "")];
    check("ADD", &none, named, 4, &missing("CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"), "");
    check("DEL", &none, named, 4, &missing("CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"), "");
    check("GC", &none, named, 4, &missing("CNI_PATH"), "");
    check("ADD", &[], "", 6, "error unmarshall network config: unexpected end of JSON input", "");
    check("ADD", &[], "{}", 7, "missing network name", "");
    check("ADD", &[], r#"{"name":"a/b"}"#, 7, "invalid characters found in network name", "a/b");
    check("BOGUS", &[], named, 4, "unknown CNI_COMMAND: BOGUS", "");
    let versions =
        r#"config is "9.9.9", plugin supports ["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]"#;
    check("ADD", &[], r#"{"name":"n","cniVersion":"9.9.9"}"#, 1, "incompatible CNI versions", versions);
    check("CHECK", &[], named, 1, "config version does not allow CHECK", "");
    check(
        "STATUS",
        &[],
        r#"{"name":"n","cniVersion":"1.0.0"}"#,
        1,
        "config version does not allow STATUS",
        "",
    );
    check("GC", &[], r#"{"name":"n","cniVersion":"1.0.0"}"#, 1, "config version does not allow GC", "");
}

#[test]
fn add_and_del_pass_the_same_bytes_to_the_delegate() {
    let site = Site::new();
    let conf = site.conf(
        r#""name":"cbr0","cniVersion":"0.3.1","delegate":{"hairpinMode":true,"isDefaultGateway":true}"#,
    );
    let sent = r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#;
    let added = site.operation("ADD", "box", &conf);
    assert_eq!(
        (added.code, added.stdout.as_str()),
        (Some(0), "{\n    \"cniVersion\": \"0.3.1\",\n    \"ips\": []\n}")
    );
    assert_eq!(added.stderr, "", "runtimes log standard error");
    assert_eq!(site.calls(), [format!("ADD box eth0 /nonexistent {sent}")]);
    assert_eq!(site.states(), ["box", "box:cbr0:eth0"]);
    for name in site.states() {
        let path = site.states_directory().join(name);
        assert_eq!(fs::read_to_string(&path).unwrap(), sent);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }
    assert_eq!(fs::metadata(site.states_directory()).unwrap().mode() & 0o777, 0o700);

    // DEL does not need the subnet file.
    fs::remove_file(site.0.join("subnet.env")).unwrap();
    let removed = site.operation("DEL", "box", &site.conf(r#""name":"cbr0","cniVersion":"0.3.1""#));
    assert_eq!((removed.code, removed.stdout.as_str()), (Some(0), ""));
    assert_eq!(site.calls(), [format!("DEL box eth0 /nonexistent {sent}")]);
    assert_eq!(site.states(), [""; 0]);
    let again = site.operation("DEL", "box", &conf);
    assert_eq!((again.code, site.calls()), (Some(0), vec![]));
}

#[test]
fn a_failed_del_can_be_repeated() {
    let site = Site::new();
    let conf = site.conf(r#""name":"n""#);
    assert_eq!(site.operation("ADD", "box", &conf).code, Some(0));
    site.put("status", "1");
    site.put("answer", r#"{"code":11,"msg":"try later"}"#);
    let failure = error(&site.operation("DEL", "box", &conf));
    assert_eq!(failure, (11, "try later".to_owned(), "DEL of plugin bridge".to_owned()));
    assert_eq!(site.states(), ["box", "box:n:eth0"]);
    site.put("status", "0");
    site.calls();
    assert_eq!(site.operation("DEL", "box", &conf).code, Some(0));
    assert_eq!(site.calls().len(), 1);
    assert_eq!(site.states(), [""; 0]);
}

#[test]
fn each_network_and_interface_of_a_container_has_its_own_state() {
    let site = Site::new();
    let confs = ["a", "b"].map(|name| site.conf(&format!(r#""name":"{name}""#)));
    let on = |verb, ifname, conf: &str| {
        let variables = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "box"),
            ("CNI_NETNS", "/nonexistent"),
            ("CNI_IFNAME", ifname),
        ];
        assert_eq!(site.run(&variables, conf).code, Some(0));
        site.calls()
    };
    on("ADD", "eth0", &confs[0]);
    on("ADD", "eth1", &confs[0]);
    on("ADD", "eth2", &confs[1]);
    assert_eq!(site.states(), ["box", "box:a:eth0", "box:a:eth1", "box:b:eth2"]);
    assert!(on("DEL", "eth2", &confs[1])[0].contains(r#""name":"b""#));
    assert_eq!(site.states(), ["box", "box:a:eth0", "box:a:eth1"]);
    assert!(on("DEL", "eth0", &confs[0])[0].starts_with("DEL box eth0"));
    assert_eq!(on("DEL", "eth0", &confs[0]), [""; 0], "the remaining state is another interface's");
    assert_eq!(site.states(), ["box:a:eth1"]);
    on("DEL", "eth1", &confs[0]);
    assert_eq!(site.states(), [""; 0]);
}

#[test]
fn states_are_compatible_with_upstreams_plugin() {
    let site = Site::new();
    fs::create_dir(site.states_directory()).unwrap();
    let state = r#"{"name":"cbr0","type":"bridge","x":1}"#;
    site.put("states/old", state);
    let conf = site.conf(r#""name":"cbr0""#);
    let other = site.operation("DEL", "old", &site.conf(r#""name":"other""#));
    assert_eq!(
        (other.code, site.states()),
        (Some(0), vec!["old".to_owned()]),
        "the state of another network"
    );
    assert_eq!(site.operation("DEL", "old", &conf).code, Some(0));
    assert_eq!(site.calls(), [format!("DEL old eth0 /nonexistent {state}")]);
    assert_eq!(site.states(), [""; 0]);

    // Upstream's plugin removes the file with the container's name.
    site.operation("ADD", "new", &conf);
    fs::remove_file(site.states_directory().join("new")).unwrap();
    assert_eq!(site.operation("DEL", "new", &conf).code, Some(0));
    assert_eq!(site.states(), [""; 0]);
}

#[test]
fn a_damaged_state_is_replaced_by_the_current_configuration() {
    let site = Site::new();
    fs::create_dir(site.states_directory()).unwrap();
    site.put("states/box", r#"{"name":"cb"#);
    let conf = site.conf(r#""name":"cbr0""#);
    fs::rename(site.0.join("subnet.env"), site.0.join("away")).unwrap();
    let without_file = site.operation("DEL", "box", &conf);
    assert_eq!(
        (without_file.code, without_file.stdout.as_str(), site.states()),
        (Some(0), "", vec!["box".to_owned()])
    );
    assert!(without_file.stderr.contains("the state of box is damaged"), "{}", without_file.stderr);
    fs::rename(site.0.join("away"), site.0.join("subnet.env")).unwrap();
    assert_eq!(site.operation("DEL", "box", &conf).code, Some(0));
    assert!(site.calls()[0].contains(r#""type":"host-local""#));
    assert_eq!(site.states(), [""; 0]);
}

#[test]
fn a_missing_subnet_file_is_an_error() {
    let site = Site::new();
    fs::remove_file(site.0.join("subnet.env")).unwrap();
    let conf = site.conf(r#""name":"n","cniVersion":"1.1.0""#);
    let path = site.0.join("subnet.env");
    let msg = format!(
        "failed to load flannel 'subnet.env' file: open {}: no such file or directory. Check the flannel pod log for this node.",
        path.display()
    );
    assert_eq!(error(&site.operation("ADD", "box", &conf)), (999, msg.clone(), String::new()));
    assert_eq!(error(&site.operation("STATUS", "box", &conf)), (50, msg, String::new()));
    assert_eq!((site.calls(), site.states()), (vec![], vec![]));
    site.put("subnet.env", ENV);
    assert_eq!(site.operation("STATUS", "box", &conf).code, Some(0));
    assert!(site.calls()[0].starts_with("STATUS "));
}

#[test]
fn every_failure_of_a_delegate_is_reported() {
    let site = Site::new();
    let conf = site.conf(r#""name":"n""#);
    let fails = |answer: &str, words: &str, status: &str| {
        site.put("answer", answer);
        site.put("words", words);
        site.put("status", status);
        error(&site.operation("ADD", "box", &conf))
    };
    let from = "ADD of plugin bridge".to_owned();
    let failure = fails(r#"{"code":7,"msg":"bad","details":"worse"}"#, "noise", "1");
    assert_eq!(failure, (7, "bad".to_owned(), "worse".to_owned()));
    assert_eq!(fails("", "oops\n", "1"), (0, r#"netplugin failed: "oops\n""#.to_owned(), from.clone()));
    let no_output = "netplugin failed with no error message: exit status: 3".to_owned();
    assert_eq!(fails("", "", "3"), (0, no_output, from.clone()));
    let (code, msg, _) = fails("what?", "", "1");
    assert_eq!(code, 0);
    assert!(
        msg.starts_with("netplugin failed but error parsing its diagnostic message \"what?\": "),
        "{msg}"
    );
    let (code, msg, _) = fails("not a result", "", "0");
    assert_eq!(code, 999);
    assert!(msg.starts_with("failed to delegate add: the result is not JSON"), "{msg}");
    assert_eq!(site.states(), ["box", "box:n:eth0"], "DEL needs the state");

    let conf = site.conf(r#""name":"n","delegate":{"type":"nosuch"}"#);
    let msg = format!(
        "failed to delegate add: failed to find plugin \"nosuch\" in path [{}]",
        site.0.path().display()
    );
    assert_eq!(error(&site.operation("ADD", "box", &conf)), (999, msg, String::new()));
    let conf = site.conf(r#""name":"n","delegate":{"type":"../bridge"}"#);
    let msg = "failed to delegate add: invalid plugin name: \"../bridge\"".to_owned();
    assert_eq!(error(&site.operation("ADD", "box", &conf)), (999, msg, String::new()));
}

#[test]
fn a_result_without_a_version_gets_that_of_the_configuration() {
    let site = Site::new();
    site.put("answer", r#"{"ip4":{"ip":"10.244.1.2/24"}}"#);
    let added = site.operation("ADD", "box", &site.conf(r#""name":"n","cniVersion":"0.2.0""#));
    let expected =
        "{\n    \"cniVersion\": \"0.2.0\",\n    \"ip4\": {\n        \"ip\": \"10.244.1.2/24\"\n    }\n}";
    assert_eq!(added.stdout, expected);
}

#[test]
fn check_passes_the_result_of_add_and_fails_for_unknown_containers() {
    let site = Site::new();
    let conf = site.conf(
        r#""name":"n","cniVersion":"1.0.0","prevResult":{"ips":[{"address":"10.244.1.2/24","gateway":"10.244.1.1"}],
            "routes":[{"dst":"10.244.0.0/16"},{"dst":"::/0"},{"dst":"0.0.0.0/0","gw":"10.244.1.9"}]}"#,
    );
    let msg = "container box has no eth0 in network n".to_owned();
    assert_eq!(error(&site.operation("CHECK", "box", &conf)), (3, msg, String::new()));
    site.operation("ADD", "box", &conf);
    site.calls();
    let checked = site.operation("CHECK", "box", &conf);
    assert_eq!((checked.code, checked.stdout.as_str()), (Some(0), ""));
    let call = site.calls().remove(0);
    assert!(call.starts_with("CHECK box eth0 /nonexistent {"), "{call}");
    // The delegate expects the routes as it installed them: via the gateway of their family.
    let routes = r#""routes":[{"dst":"10.244.0.0/16","gw":"10.244.1.1"},{"dst":"::/0"},{"dst":"0.0.0.0/0","gw":"10.244.1.9"}]"#;
    assert!(call.contains(routes), "{call}");
}

#[test]
fn gc_detaches_containers_that_the_runtime_does_not_list() {
    let site = Site::new();
    let conf = |name: &str, valid: &str| {
        site.conf(&format!(r#""name":"{name}","cniVersion":"1.1.0","cni.dev/valid-attachments":{valid}"#))
    };
    for (container, network) in [("kept", "n"), ("gone", "n"), ("other", "m")] {
        site.operation("ADD", container, &conf(network, "[]"));
    }
    site.put("states/upstreams", r#"{"cniVersion":"0.3.1","name":"n","type":"bridge"}"#);
    site.calls();
    let valid = r#"[{"containerID":"kept","ifname":"eth0"}]"#;
    let collected = site.run(&[("CNI_COMMAND", "GC")], &conf("n", valid));
    assert_eq!((collected.code, collected.stdout.as_str()), (Some(0), ""));
    let mut calls = site.calls();
    let own = calls.pop().unwrap();
    assert!(
        own.starts_with("GC    {") && own.contains(&format!(r#""cni.dev/valid-attachments":{valid}"#)),
        "{own}"
    );
    calls.sort();
    let detached: Vec<_> = calls.iter().map(|call| call.split(" {").next().unwrap()).collect();
    assert_eq!(detached, ["DEL gone eth0 ", "DEL upstreams eth0 "]);
    assert_eq!(site.states(), ["kept", "kept:n:eth0", "other", "other:m:eth0"]);

    let wrong = site.run(&[("CNI_COMMAND", "GC")], &conf("n", r#"[{"containerID":"kept"}]"#));
    let msg = "cni.dev/valid-attachments: an entry without containerID or ifname".to_owned();
    assert_eq!(error(&wrong), (7, msg, String::new()));
    assert_eq!(site.states().len(), 4, "nothing is removed on an error");
}

#[test]
fn the_namespace_of_the_host_is_refused() {
    let site = Site::new();
    let conf = site.conf(r#""name":"n""#);
    let on = |verb, more: &[(&str, &str)]| {
        let mut variables = vec![
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "box"),
            ("CNI_NETNS", "/proc/self/ns/net"),
            ("CNI_IFNAME", "eth0"),
        ];
        variables.extend(more);
        site.run(&variables, &conf)
    };
    let msg = "plugin's netns and netns from CNI_NETNS should not be the same".to_owned();
    assert_eq!(error(&on("ADD", &[])), (8, msg.clone(), String::new()));
    assert_eq!(error(&on("DEL", &[])), (8, msg, String::new()));
    assert_eq!(site.calls(), [""; 0]);
    assert_eq!(on("ADD", &[("CNI_NETNS_OVERRIDE", "true")]).code, Some(0));
}
