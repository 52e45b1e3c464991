//! Healthy hosts without findings, and hosts without a daemon.

use std::process::Command;

use flannel_testing::{eventually, output_in};

use crate::cluster::{Cluster, PATIENCE, VXLAN, check_ping};
use crate::site::{Report, Site};

#[test]
fn a_healthy_node_has_no_findings_with_any_backend() {
    for backend in [
        r#"{"Type":"vxlan"}"#,
        r#"{"Type":"vxlan","DirectRouting":true}"#,
        r#"{"Type":"host-gw"}"#,
        r#"{"Type":"udp"}"#,
    ] {
        let mut cluster = Cluster::new(3);
        cluster.configure(&format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#));
        cluster.start_all();
        let pods: Vec<_> = (0..3).map(|host| cluster.add_pod(host)).collect();
        check_ping(&pods[0], &pods[1]);
        let site = Site::of(cluster);
        // A ping between two hosts does not prove that they have the third.
        let healthy = eventually(PATIENCE, || {
            let report = site.doctor();
            if (report.status, report.findings.len()) == (0, 0) {
                Ok(())
            } else {
                Err(format!("{:#?}", report.findings))
            }
        });
        healthy.unwrap_or_else(|error| panic!("{backend}: {error}"));
    }
}

#[test]
fn a_dual_stack_node_with_nftables_is_healthy_and_doctor_uses_the_daemons_flags() {
    let config = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd10:5::/48","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;
    let mut cluster = Cluster::new(2);
    cluster.configure(config);
    cluster.start_all_with(&["-ip-masq", "-restrict-tunnel-port", "-ip-blackhole-route"]);
    let pods: Vec<_> = (0..2).map(|host| cluster.add_dual_pod(host)).collect();
    check_ping(&pods[0], &pods[1]);
    let plain = |cluster: &Cluster, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flanneld"));
        command.arg("doctor").args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        output_in(&cluster.lab.hosts[0].namespace, command).unwrap()
    };
    let healthy = eventually(PATIENCE, || {
        let output = plain(&cluster, &[]);
        if output.stdout == b"no findings\n" { Ok(output) } else { Err(format!("{output:?}")) }
    });
    let output = healthy.unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{output:?}");

    let output = plain(&cluster, &["--nosuch"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn a_node_whose_etcd_is_down_has_only_that_finding() {
    let mut cluster = Cluster::running(2);
    let pods = [cluster.add_pod(0), cluster.add_pod(1)];
    check_ping(&pods[0], &pods[1]);
    cluster.etcd.stop().unwrap();
    let site = Site::of(cluster);
    let report = site.doctor();
    assert_eq!(
        report.ids().into_iter().collect::<Vec<_>>(),
        ["registry-unreachable"],
        "{:#?}",
        report.findings
    );
    assert_eq!(report.status, 1);
}

#[test]
fn on_a_new_host_doctor_finds_what_prevents_a_start() {
    let mut site = Site::of(Cluster::new(1));
    site.cluster.configure(VXLAN);
    let report = site.doctor();
    assert_eq!((report.status, report.findings.len()), (0, 0), "{:#?}", report.findings);

    let mut command = Command::new(env!("CARGO_BIN_EXE_flanneld"));
    command.args(["doctor", "--json"]).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let report = Report::of(&output_in(&site.cluster.lab.hosts[0].namespace, command).unwrap());
    let ids: Vec<_> = report.ids().into_iter().collect();
    assert_eq!(
        ids,
        ["interface", "registry-unreachable"],
        "no flags, no default route: {:#?}",
        report.findings
    );

    site.cluster.start(0);
    site.cluster.wait_until_ready(0);
    assert_eq!(site.doctor().status, 0);
}
