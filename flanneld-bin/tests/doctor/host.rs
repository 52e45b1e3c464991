//! Findings about the host itself.

use std::path::Path;
use std::process::Command;

use flannel_testing::{Process, copy_program, output_in, program};

use crate::cluster::{Cluster, PATIENCE, UDP};
use crate::site::{Report, Site, commands, what};

#[test]
fn a_missing_capability_is_found_and_granted() {
    let site = Site::new(1);
    let copy = site.path("flanneld");
    copy_program(Path::new(env!("CARGO_BIN_EXE_flanneld")), &copy).unwrap();
    let look = || {
        let mut command = Command::new(program("setpriv", "util-linux").unwrap());
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--"]);
        let doctor = site.doctor_command();
        command.arg(&copy).args(doctor.get_args());
        Report::of(&output_in(&site.cluster.lab.hosts[0].namespace, command).unwrap())
    };
    let report = look();
    let finding = report.finding("capabilities").unwrap_or_else(|| panic!("{:#?}", report.findings));
    assert_eq!(report.status, 1);
    program("setcap", "libcap2-bin").unwrap();
    site.apply(finding);
    assert!(look().finding("capabilities").is_none());
}

#[test]
fn without_root_doctor_warns_of_incomplete_findings() {
    let site = Site::running(1);
    site.stand_in("sudo", r#"exec "$@""#);
    let doctor = site.doctor_command();
    let mut command = Command::new(program("setpriv", "util-linux").unwrap());
    // Another user could not read a private build directory.
    command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"]);
    command.arg(doctor.get_program()).args(doctor.get_args());
    let report = Report::of(&output_in(&site.cluster.lab.hosts[0].namespace, command).unwrap());
    let ids: Vec<_> = report.ids().into_iter().collect();
    assert_eq!(ids, ["doctor-not-root"], "{:#?}", report.findings);
    let again = site.shell(&commands(&report.findings[0])[0]);
    assert_eq!(again, "no findings\n", "as the daemon is the only one, no flags are needed");
}

#[test]
fn a_missing_tun_device_and_missing_programs_are_restored() {
    let mut site = Site::of(Cluster::new(1));
    site.cluster.configure(UDP);
    site.unshare_mounts();
    let finding = site.cycle("tun-device", || drop(site.shell("mount -t tmpfs none /dev/net")));
    assert!(site.calls().contains("modprobe tun"), "{finding:#}");

    // The fake package manager restores the hidden program.
    site.stand_in("apt-get", r#"umount "$(readlink -f /usr/sbin/iptables)""#);
    let hide = r#"mount --bind /dev/null "$(readlink -f /usr/sbin/iptables)""#;
    site.cycle("firewall-program", || drop(site.shell(hide)));
    assert!(site.calls().contains("apt-get install -y iptables"));
}

#[test]
fn checksum_offload_is_disabled_on_old_kernels() {
    program("ethtool", "ethtool").unwrap();
    let mut site = Site::running(1);
    site.unshare_mounts();
    let release = site.path("osrelease");
    std::fs::write(&release, "5.4.0-150-generic\n").unwrap();
    let pretend = format!("mount --bind {} /proc/sys/kernel/osrelease", release.display());
    let finding = site.cycle("checksum-offload", || drop(site.shell(&pretend)));
    assert!(what(&finding).contains("flannel.1") && what(&finding).contains("5.4.0"), "{finding:#}");
}

#[test]
fn a_process_that_holds_the_port_or_the_tunnel_is_named_and_stopped() {
    let mut site = Site::new(1);
    let namespace = site.cluster.lab.hosts[0].namespace.clone();
    let mut command = Command::new(program("perl", "perl-base").unwrap());
    let script = r#"socket(S, PF_INET, SOCK_DGRAM, 0); bind(S, sockaddr_in(8472, INADDR_ANY)) or die;
        print STDERR "bound\n"; sleep 600"#;
    command.args(["-MSocket", "-e", script]);
    let mut holder = None;
    let finding = site.cycle("port-taken", || {
        let process = Process::spawn_in(&namespace, command).unwrap();
        process.wait_for_line("bound", PATIENCE).unwrap();
        holder = Some(process);
    });
    assert!(what(&finding).contains("perl") && what(&finding).contains("8472"), "{finding:#}");

    let other = "ip link add other0 type vxlan id 1 dstport 8472 dev eth0 local $(ip -4 -o addr show eth0 | awk '{print $4}' | cut -d/ -f1)";
    let finding = site.cycle("tunnel-taken", || drop(site.shell(other)));
    assert_eq!(commands(&finding), ["ip link delete other0"]);
    site.cluster.start(0);
    site.cluster.wait_until_ready(0);
    assert!(Path::new(&site.cluster.subnet_file(0)).exists());
}
