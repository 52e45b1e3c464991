//! The CNI plugin as a container runtime sees it: variables and standard input in, standard output and exit status out,
//! and what it hands to the plugin that does the work, which is one that writes down what it gets.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flannel_testing::{Directory, write_program};

/// A directory with a delegate called `bridge`, a `subnet.env` and room for states.
struct Site(Directory);

/// What a run left: exit status, standard output, standard error.
struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

const ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// Appends verb, container, interface, namespace and input to `calls`, prints `answer` and ends with the status in
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

    /// What the delegate has been told, and forgets it.
    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.join("calls")).unwrap_or_default();
        let _ = fs::remove_file(self.0.join("calls"));
        text.lines().map(str::to_owned).collect()
    }

    /// The names of the kept states.
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

    /// A configuration with the site's files and more members.
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

    /// Runs a verb for a container's `eth0`.
    fn verb(&self, verb: &str, container: &str, input: &str) -> Outcome {
        let variables = [
            ("CNI_COMMAND", verb),
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
    // A plugin that asks for nothing may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The error object that a run printed.
fn error(outcome: &Outcome) -> (u64, String, String) {
    assert_eq!(outcome.code, Some(1), "{}", outcome.stdout);
    assert!(outcome.stdout.starts_with("{\n    \"code\": ") && outcome.stdout.ends_with("\n}"));
    let object: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let word = |key: &str| object.get(key).and_then(|word| word.as_str()).unwrap_or_default().to_owned();
    (object["code"].as_u64().unwrap(), word("msg"), word("details"))
}

#[test]
fn without_a_command_the_plugin_says_what_it_is() {
    let outcome = run(Path::new("/"), &[], "");
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), ""));
    assert!(outcome.stderr.starts_with("CNI Plugin flannel version v"), "{}", outcome.stderr);
    assert!(outcome.stderr.ends_with("supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n"));
}

#[test]
fn version_is_answered_without_input() {
    let outcome = run(Path::new("/"), &[("CNI_COMMAND", "VERSION")], "");
    let expected = r#"{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#;
    assert_eq!((outcome.code, outcome.stdout), (Some(0), format!("{expected}\n")));
}

#[test]
fn what_is_wrong_with_the_request_has_the_code_of_the_specification() {
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
fn a_container_is_added_by_the_delegate_and_removed_with_the_same_bytes() {
    let site = Site::new();
    let conf = site.conf(
        r#""name":"cbr0","cniVersion":"0.3.1","delegate":{"hairpinMode":true,"isDefaultGateway":true}"#,
    );
    let sent = r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#;
    let added = site.verb("ADD", "box", &conf);
    assert_eq!(
        (added.code, added.stdout.as_str()),
        (Some(0), "{\n    \"cniVersion\": \"0.3.1\",\n    \"ips\": []\n}")
    );
    assert_eq!(added.stderr, "", "runtimes log what is said here");
    assert_eq!(site.calls(), [format!("ADD box eth0 /nonexistent {sent}")]);
    assert_eq!(site.states(), ["box", "box:cbr0:eth0"]);
    for name in site.states() {
        let path = site.states_directory().join(name);
        assert_eq!(fs::read_to_string(&path).unwrap(), sent);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }
    assert_eq!(fs::metadata(site.states_directory()).unwrap().mode() & 0o777, 0o700);

    // The host's subnet has changed meanwhile, and then even the file is gone.
    fs::remove_file(site.0.join("subnet.env")).unwrap();
    let removed = site.verb("DEL", "box", &site.conf(r#""name":"cbr0","cniVersion":"0.3.1""#));
    assert_eq!((removed.code, removed.stdout.as_str()), (Some(0), ""));
    assert_eq!(site.calls(), [format!("DEL box eth0 /nonexistent {sent}")]);
    assert_eq!(site.states(), [""; 0]);
    let again = site.verb("DEL", "box", &conf);
    assert_eq!((again.code, site.calls()), (Some(0), vec![]));
}

#[test]
fn a_delegate_that_cannot_remove_is_asked_again() {
    let site = Site::new();
    let conf = site.conf(r#""name":"n""#);
    assert_eq!(site.verb("ADD", "box", &conf).code, Some(0));
    site.put("status", "1");
    site.put("answer", r#"{"code":11,"msg":"try later"}"#);
    let told = error(&site.verb("DEL", "box", &conf));
    assert_eq!(told, (11, "try later".to_owned(), "DEL of plugin bridge".to_owned()));
    assert_eq!(site.states(), ["box", "box:n:eth0"]);
    site.put("status", "0");
    site.calls();
    assert_eq!(site.verb("DEL", "box", &conf).code, Some(0));
    assert_eq!(site.calls().len(), 1);
    assert_eq!(site.states(), [""; 0]);
}

#[test]
fn two_networks_and_two_interfaces_of_a_container_have_states_of_their_own() {
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
    assert_eq!(on("DEL", "eth0", &confs[0]), [""; 0], "what is left is another interface's");
    assert_eq!(site.states(), ["box:a:eth1"]);
    on("DEL", "eth1", &confs[0]);
    assert_eq!(site.states(), [""; 0]);
}

#[test]
fn what_upstreams_plugin_left_is_removed_and_what_is_left_to_it_can_be() {
    let site = Site::new();
    fs::create_dir(site.states_directory()).unwrap();
    let state = r#"{"name":"cbr0","type":"bridge","x":1}"#;
    site.put("states/old", state);
    let conf = site.conf(r#""name":"cbr0""#);
    let other = site.verb("DEL", "old", &site.conf(r#""name":"other""#));
    assert_eq!((other.code, site.states()), (Some(0), vec!["old".to_owned()]), "another network's");
    assert_eq!(site.verb("DEL", "old", &conf).code, Some(0));
    assert_eq!(site.calls(), [format!("DEL old eth0 /nonexistent {state}")]);
    assert_eq!(site.states(), [""; 0]);

    // Upstream's plugin reads and removes the file that has the container's name.
    site.verb("ADD", "new", &conf);
    fs::remove_file(site.states_directory().join("new")).unwrap();
    assert_eq!(site.verb("DEL", "new", &conf).code, Some(0));
    assert_eq!(site.states(), [""; 0]);
}

#[test]
fn a_state_that_was_half_written_is_made_up_for() {
    let site = Site::new();
    fs::create_dir(site.states_directory()).unwrap();
    site.put("states/box", r#"{"name":"cb"#);
    let conf = site.conf(r#""name":"cbr0""#);
    fs::rename(site.0.join("subnet.env"), site.0.join("away")).unwrap();
    let blind = site.verb("DEL", "box", &conf);
    assert_eq!((blind.code, blind.stdout.as_str(), site.states()), (Some(0), "", vec!["box".to_owned()]));
    assert!(blind.stderr.contains("the state of box is damaged"), "{}", blind.stderr);
    fs::rename(site.0.join("away"), site.0.join("subnet.env")).unwrap();
    assert_eq!(site.verb("DEL", "box", &conf).code, Some(0));
    assert!(site.calls()[0].contains(r#""type":"host-local""#));
    assert_eq!(site.states(), [""; 0]);
}

#[test]
fn a_host_without_a_lease_is_said_to_be_one() {
    let site = Site::new();
    fs::remove_file(site.0.join("subnet.env")).unwrap();
    let conf = site.conf(r#""name":"n","cniVersion":"1.1.0""#);
    let path = site.0.join("subnet.env");
    let msg = format!(
        "failed to load flannel 'subnet.env' file: open {}: no such file or directory. Check the flannel pod log for this node.",
        path.display()
    );
    assert_eq!(error(&site.verb("ADD", "box", &conf)), (999, msg.clone(), String::new()));
    assert_eq!(error(&site.verb("STATUS", "box", &conf)), (50, msg, String::new()));
    assert_eq!((site.calls(), site.states()), (vec![], vec![]));
    site.put("subnet.env", ENV);
    assert_eq!(site.verb("STATUS", "box", &conf).code, Some(0));
    assert!(site.calls()[0].starts_with("STATUS "));
}

#[test]
fn each_way_in_which_a_delegate_fails_is_told() {
    let site = Site::new();
    let conf = site.conf(r#""name":"n""#);
    let fails = |answer: &str, words: &str, status: &str| {
        site.put("answer", answer);
        site.put("words", words);
        site.put("status", status);
        error(&site.verb("ADD", "box", &conf))
    };
    let from = "ADD of plugin bridge".to_owned();
    let told = fails(r#"{"code":7,"msg":"bad","details":"worse"}"#, "noise", "1");
    assert_eq!(told, (7, "bad".to_owned(), "worse".to_owned()));
    assert_eq!(fails("", "oops\n", "1"), (0, r#"netplugin failed: "oops\n""#.to_owned(), from.clone()));
    let silent = "netplugin failed with no error message: exit status: 3".to_owned();
    assert_eq!(fails("", "", "3"), (0, silent, from.clone()));
    let (code, msg, _) = fails("what?", "", "1");
    assert_eq!(code, 0);
    assert!(
        msg.starts_with("netplugin failed but error parsing its diagnostic message \"what?\": "),
        "{msg}"
    );
    let (code, msg, _) = fails("not a result", "", "0");
    assert_eq!(code, 999);
    assert!(msg.starts_with("failed to delegate add: the result is not JSON"), "{msg}");
    assert_eq!(site.states(), ["box", "box:n:eth0"], "DEL needs it");

    let conf = site.conf(r#""name":"n","delegate":{"type":"nosuch"}"#);
    let msg = format!(
        "failed to delegate add: failed to find plugin \"nosuch\" in path [{}]",
        site.0.path().display()
    );
    assert_eq!(error(&site.verb("ADD", "box", &conf)), (999, msg, String::new()));
    let conf = site.conf(r#""name":"n","delegate":{"type":"../bridge"}"#);
    let msg = "failed to delegate add: invalid plugin name: \"../bridge\"".to_owned();
    assert_eq!(error(&site.verb("ADD", "box", &conf)), (999, msg, String::new()));
}

#[test]
fn a_result_without_a_version_gets_that_of_the_configuration() {
    let site = Site::new();
    site.put("answer", r#"{"ip4":{"ip":"10.244.1.2/24"}}"#);
    let added = site.verb("ADD", "box", &site.conf(r#""name":"n","cniVersion":"0.2.0""#));
    let expected =
        "{\n    \"cniVersion\": \"0.2.0\",\n    \"ip4\": {\n        \"ip\": \"10.244.1.2/24\"\n    }\n}";
    assert_eq!(added.stdout, expected);
}

#[test]
fn check_asks_the_delegate_with_the_result_of_add_and_knows_no_stranger() {
    let site = Site::new();
    let conf = site.conf(
        r#""name":"n","cniVersion":"1.0.0","prevResult":{"ips":[{"address":"10.244.1.2/24","gateway":"10.244.1.1"}],
            "routes":[{"dst":"10.244.0.0/16"},{"dst":"::/0"},{"dst":"0.0.0.0/0","gw":"10.244.1.9"}]}"#,
    );
    let msg = "container box has no eth0 in network n".to_owned();
    assert_eq!(error(&site.verb("CHECK", "box", &conf)), (3, msg, String::new()));
    site.verb("ADD", "box", &conf);
    site.calls();
    let checked = site.verb("CHECK", "box", &conf);
    assert_eq!((checked.code, checked.stdout.as_str()), (Some(0), ""));
    let call = site.calls().remove(0);
    assert!(call.starts_with("CHECK box eth0 /nonexistent {"), "{call}");
    // The delegate looks for the routes as it has set them: through the gateway of their family.
    let routes = r#""routes":[{"dst":"10.244.0.0/16","gw":"10.244.1.1"},{"dst":"::/0"},{"dst":"0.0.0.0/0","gw":"10.244.1.9"}]"#;
    assert!(call.contains(routes), "{call}");
}

#[test]
fn what_the_runtime_no_longer_knows_is_collected() {
    let site = Site::new();
    let conf = |name: &str, valid: &str| {
        site.conf(&format!(r#""name":"{name}","cniVersion":"1.1.0","cni.dev/valid-attachments":{valid}"#))
    };
    for (container, network) in [("kept", "n"), ("gone", "n"), ("other", "m")] {
        site.verb("ADD", container, &conf(network, "[]"));
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
    let told: Vec<_> = calls.iter().map(|call| call.split(" {").next().unwrap()).collect();
    assert_eq!(told, ["DEL gone eth0 ", "DEL upstreams eth0 "]);
    assert_eq!(site.states(), ["kept", "kept:n:eth0", "other", "other:m:eth0"]);

    let wrong = site.run(&[("CNI_COMMAND", "GC")], &conf("n", r#"[{"containerID":"kept"}]"#));
    let msg = "cni.dev/valid-attachments: an entry without containerID or ifname".to_owned();
    assert_eq!(error(&wrong), (7, msg, String::new()));
    assert_eq!(site.states().len(), 4, "nothing is removed on an error");
}

#[test]
fn the_hosts_own_namespace_is_left_alone() {
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
