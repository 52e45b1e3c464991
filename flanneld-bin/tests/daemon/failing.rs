//! Failing starts, and the log lines about them.

use std::process::Command;
use std::time::Duration;

use flannel_testing::{Process, program};

use crate::cluster::{Cluster, PATIENCE, VXLAN};

/// The log lines of level error.
fn errors(process: &Process) -> Vec<String> {
    process.lines().into_iter().filter(|line| line.starts_with('E')).collect()
}

/// Runs the daemon until it exits, and returns its exit status and errors.
pub(crate) fn ended(cluster: &mut Cluster, command: Command) -> (Option<i32>, Vec<String>) {
    cluster.start_as(0, command);
    let daemon = cluster.daemon(0);
    let status = flannel_testing::eventually(PATIENCE, || daemon.exit_status().ok().flatten()).unwrap();
    // Another thread reads standard error to its end.
    let last =
        flannel_testing::eventually(PATIENCE, || Some(errors(daemon)).filter(|lines| !lines.is_empty()));
    (status.code(), last.unwrap())
}

#[test]
fn an_invalid_config_is_logged_in_one_line_and_retried() {
    for (config, reason) in [
        (r#"{"Network":"10.5.0.0/16""#, "unexpected end of JSON input"),
        (r#"{"Network":"10.5.0.0/29"}"#, "network is too small. Minimum useful network prefix is /28"),
        (r#"{"Network":"10.5.0.0/33"}"#, "invalid CIDR address: 10.5.0.0/33 (Network)"),
    ] {
        let mut cluster = Cluster::new(1);
        cluster.configure(config);
        cluster.start(0);
        let line = cluster.daemon(0).wait_for_line("Couldn't fetch network config: ", PATIENCE).unwrap();
        assert!(line.starts_with('E') && line.contains(reason), "{line}");
        assert!(line.contains("/coreos.com/network/config"), "says where to correct it: {line}");
        cluster.configure(VXLAN);
        cluster.wait_until_ready(0);
    }
}

#[test]
fn a_missing_config_is_logged_with_the_command_to_write_it_and_retried() {
    let mut cluster = Cluster::new(1);
    cluster.start(0);
    let line = cluster.daemon(0).wait_for_line("Couldn't fetch network config: ", PATIENCE).unwrap();
    assert!(line.contains("/coreos.com/network/config"), "{line}");
    cluster.configure(VXLAN);
    cluster.wait_until_ready(0);
}

#[test]
fn an_unknown_backend_ends_the_daemon_with_the_list_of_backends() {
    let mut cluster = Cluster::new(1);
    // All but the first exist upstream.
    for name in ["nosuch", "ipip", "ipsec", "wireguard", "aws-vpc", "gce", "ali-vpc", "tencent-vpc"] {
        cluster.configure(&format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"{name}"}}}}"#));
        let command = cluster.command(0);
        let (status, errors) = ended(&mut cluster, command);
        assert_eq!((status, errors.len()), (Some(1), 1), "{errors:?}");
        let line = format!(
            "Error fetching backend: unknown backend type: {name} (available: vxlan, host-gw, udp, extension, alloc)"
        );
        assert!(errors[0].ends_with(&line), "{errors:?}");
    }
}

#[test]
fn an_invalid_backend_option_ends_the_daemon() {
    let mut cluster = Cluster::new(1);
    cluster.configure(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":"1"}}"#);
    let command = cluster.command(0);
    let (status, errors) = ended(&mut cluster, command);
    assert_eq!((status, errors.len()), (Some(1), 1), "{errors:?}");
    let reason = "Error registering network: error decoding VXLAN backend config: json: cannot unmarshal string into VNI";
    assert!(errors[0].contains(reason), "{errors:?}");
}

#[test]
fn an_unknown_interface_ends_the_daemon_with_the_list_of_interfaces() {
    let mut cluster = Cluster::new(1);
    let mut command = cluster.command(0);
    command.arg("-iface=nosuch0");
    // -iface collects its values, so the existing interface must not be among them.
    let arguments: Vec<_> =
        command.get_args().filter(|arg| *arg != "-iface=eth0").map(ToOwned::to_owned).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flanneld"));
    command.args(arguments);
    let (status, errors) = ended(&mut cluster, command);
    assert_eq!((status, errors.len()), (Some(1), 1), "{errors:?}");
    assert!(errors[0].contains("nosuch0") && errors[0].contains("eth0"), "{errors:?}");
}

#[test]
fn a_missing_capability_ends_the_daemon_and_is_named() {
    let mut cluster = Cluster::new(1);
    let daemon = cluster.command(0);
    let mut command = Command::new(program("setpriv", "util-linux").unwrap());
    // Another user could not read a private build directory.
    command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"]);
    command.arg(daemon.get_program()).args(daemon.get_args());
    let (status, errors) = ended(&mut cluster, command);
    assert_eq!((status, errors.len()), (Some(1), 1), "{errors:?}");
    assert!(errors[0].contains("CAP_NET_ADMIN") && errors[0].contains("root"), "{errors:?}");
}

#[test]
fn without_etcd_the_daemon_retries_with_backoff_and_starts_when_etcd_responds() {
    let mut cluster = Cluster::new(1);
    cluster.configure(VXLAN);
    cluster.etcd.stop().unwrap();
    cluster.start(0);
    let line = cluster.daemon(0).wait_for_line("Couldn't fetch network config: ", PATIENCE).unwrap();
    assert!(line.contains("does not answer") && line.contains("retrying in"), "{line}");
    std::thread::sleep(Duration::from_millis(1500));
    let count = errors(cluster.daemon(0)).len();
    assert!(count <= 3, "{:#?}", errors(cluster.daemon(0)));
    cluster.etcd.restart().unwrap();
    cluster.wait_until_ready(0);
}
