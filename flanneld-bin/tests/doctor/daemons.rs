//! Findings about missing and additional daemons.

use flannel_testing::Process;

use crate::cluster::PATIENCE;
use crate::site::{Site, what};

#[test]
fn a_host_with_a_lease_but_no_daemon_is_found() {
    let mut site = Site::running(2);
    let before = site.ids();
    site.cluster.daemon(0).terminate(PATIENCE).unwrap();
    let finding = site.wait_for_finding("daemon-not-running");
    assert_eq!(finding["severity"], "warning");
    assert_eq!(site.doctor().status, 3, "a warning is no error");
    site.apply(&finding);
    assert_eq!(site.calls(), "systemctl start flanneld\n");
    site.cluster.start(0);
    site.cluster.wait_until_ready(0);
    site.wait_until_cured(&before, "daemon-not-running");
}

#[test]
fn a_second_daemon_on_the_device_is_found_in_this_or_another_network() {
    let site = Site::running(1);
    let namespace = site.cluster.lab.hosts[0].namespace.clone();
    let other_file = site.path("other/subnet.env");
    let mut second = None;
    let finding = site.cycle("other-daemon", || {
        // The same subnet file: with its own it would act as another host with another lease.
        second = Some(Process::spawn_in(&namespace, site.cluster.command(0)).unwrap());
    });
    let pid = second.as_ref().unwrap().id();
    assert!(what(&finding).contains(&format!("process {pid}")), "{finding:#}");
    drop(second);

    let config = r#"{"Network":"10.77.0.0/16","Backend":{"Type":"vxlan"}}"#;
    site.cluster.etcd.etcdctl(&["put", "/other/config", config]).unwrap();
    let mut second = None;
    let finding = site.cycle("other-daemon", || {
        let mut command = site.cluster.command(0);
        command.arg("-etcd-prefix=/other").arg("-subnet-file").arg(&other_file);
        let process = Process::spawn_in(&namespace, command).unwrap();
        process.wait_for_line("Found network config", PATIENCE).ok();
        second = Some(process);
    });
    assert!(what(&finding).contains("flannel.1") && what(&finding).contains("/other"), "{finding:#}");
}
