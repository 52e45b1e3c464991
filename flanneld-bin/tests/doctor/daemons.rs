//! Daemons that should run, and those that should not.

use flannel_testing::Process;

use crate::cluster::PATIENCE;
use crate::site::{Site, what};

#[test]
fn a_host_with_a_lease_misses_its_daemon() {
    let mut site = Site::running(2);
    let before = site.ids();
    site.cluster.daemon(0).terminate(PATIENCE).unwrap();
    let finding = site.finds("daemon-not-running");
    assert_eq!(finding["severity"], "warning");
    assert_eq!(site.doctor().status, 3, "a warning is no error");
    site.apply(&finding);
    assert_eq!(site.asked(), "systemctl start flanneld\n");
    site.cluster.start(0);
    site.cluster.wait_until_ready(0);
    site.is_as(&before, "daemon-not-running");
}

#[test]
fn a_second_daemon_on_the_device_is_named_whether_it_is_of_this_network_or_of_another() {
    let site = Site::running(1);
    let namespace = site.cluster.lab.hosts[0].namespace.clone();
    let other_file = site.path("other/subnet.env");
    let mut second = None;
    let finding = site.cycle("other-daemon", || {
        // The same unit twice: with a file of its own it would be another host, and take another lease.
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
