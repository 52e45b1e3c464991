//! Findings about the interface and the public address.

use flannel_testing::eventually;

use crate::cluster::{Cluster, PATIENCE, VXLAN};
use crate::site::{Report, Site, flags};

/// Runs doctor with these interface flags.
fn doctor_with(site: &Site, interface: &[String]) -> Report {
    let daemon = site.cluster.command_without_interface(0);
    let mut command = site.command(std::path::Path::new(daemon.get_program()));
    command.args(["doctor", "--json"]).args(daemon.get_args()).args(interface);
    Report::of(&flannel_testing::output_in(&site.cluster.lab.hosts[0].namespace, command).unwrap())
}

#[test]
fn an_unusable_interface_is_replaced_by_a_usable_one() {
    let site = Site::of(Cluster::new(1));
    site.cluster.configure(VXLAN);
    site.shell(
        "ip link add docker0 type bridge; ip address add 172.17.0.1/16 dev docker0; ip link set docker0 up",
    );
    site.shell("ip link add ll0 type bridge; ip address add 169.254.7.7/16 dev ll0");
    for (id, flag) in [
        ("interface", "-iface=nosuch0"),
        ("public-address", "-iface=docker0"),
        ("public-address", "-iface=ll0"),
        ("public-address", "-public-ip=127.0.0.1"),
    ] {
        let mut wrong = vec![flag.to_owned()];
        if !flag.starts_with("-iface") {
            wrong.insert(0, "-iface=eth0".to_owned());
        }
        let report = doctor_with(&site, &wrong);
        let finding = report.finding(id).unwrap_or_else(|| panic!("{flag}: {:#?}", report.findings));
        assert_eq!(flags(finding), ["-iface=eth0"], "{finding:#}");
        let cured = doctor_with(&site, &flags(finding));
        assert!(cured.findings.is_empty(), "{flag}: {:#?}", cured.findings);
    }
}

#[test]
fn without_a_default_route_the_cure_names_an_interface() {
    let site = Site::of(Cluster::new(1));
    site.cluster.configure(VXLAN);
    let report = doctor_with(&site, &[]);
    let finding = report.finding("interface").unwrap_or_else(|| panic!("{:#?}", report.findings));
    let cured = eventually(PATIENCE, || doctor_with(&site, &flags(finding)).findings.is_empty());
    cured.unwrap();
}
