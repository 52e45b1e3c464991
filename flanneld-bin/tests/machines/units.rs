//! The units in `dist/`: their validity, their sandboxing, and the daemon inside it.

use flannel_testing::{Lab, LabOptions, eventually};

use crate::machine::{Machine, PATIENCE, text};

/// The unit of Docker's package, for a Docker that does nothing.
const DOCKER: &str = "[Service]\nType=notify\nExecStart=/usr/bin/dockerd -H fd://\n";

fn installed(lab: &Lab) -> Machine {
    let machine = Machine::boot(&lab.hosts[0].namespace, "host-1");
    machine.get("scripts/install");
    machine
}

#[test]
fn systemd_analyze_accepts_the_units() {
    let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap();
    let machine = installed(&lab);
    machine.write("/etc/systemd/system/docker.service", DOCKER);
    machine.get("install -m 755 /bin/true /usr/bin/dockerd");
    machine.get("install -D -m 644 dist/systemd/docker.service.d/flannel.conf -t /etc/systemd/system/docker.service.d");
    let verified = machine.run("systemd-analyze verify --man=no flanneld.service docker.service");
    assert!(verified.status.success() && text(&verified).is_empty(), "{}", text(&verified));
    let rated = machine.get("systemd-analyze security --no-pager --offline=true flanneld.service");
    let overall = rated.lines().rfind(|line| line.contains("Overall exposure level")).unwrap();
    assert!(overall.contains(" OK ") || overall.contains(" SAFE "), "{overall}");
    // The drop-in is loaded, and its command is used.
    let docker = machine.get("systemctl show -p ExecStart -p Wants docker.service");
    assert!(docker.contains("$DOCKER_NETWORK_OPTIONS") && docker.contains("flanneld.service"), "{docker}");
}

/// Waits until the daemon's journal contains a text.
fn wait_for_journal(machine: &Machine, text: &str) {
    eventually(PATIENCE, || {
        let journal = machine.journal("flanneld");
        if journal.contains(text) { Ok(()) } else { Err(journal) }
    })
    .unwrap();
}

/// A field of the daemon's `/proc/PID/status`.
fn status(machine: &Machine, field: &str) -> String {
    let line =
        machine.get(&format!("grep {field}: /proc/$(systemctl show -p MainPID --value flanneld)/status"));
    line.split_whitespace().nth(1).unwrap().to_owned()
}

fn configure(machine: &Machine, config: &str) {
    let put = format!("etcdctl put /coreos.com/network/config '{config}'");
    eventually(PATIENCE, || {
        let output = machine.run(&format!("ETCDCTL_API=3 {put}"));
        if output.status.success() { Ok(()) } else { Err(text(&output)) }
    })
    .unwrap();
}

#[test]
fn the_daemon_works_inside_the_sandbox_of_its_unit() {
    let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap();
    let machine = installed(&lab);
    machine.write("/etc/default/flanneld", "FLANNELD_IFACE=eth0\nFLANNEL_OPTIONS=\"-ip-masq -v=1\"\n");
    machine.get("systemctl start etcd");
    let v6 = r#""EnableIPv6":true,"IPv6Network":"fd10:5::/48""#;
    for (settings, device) in [
        (r#""Backend":{"Type":"vxlan"}"#.to_owned(), "flannel.1"),
        (format!(r#"{v6},"EnableNFTables":true,"Backend":{{"Type":"vxlan"}}"#), "flannel-v6.1"),
        (format!(r#"{v6},"Backend":{{"Type":"udp"}}"#), "flannel0"),
    ] {
        // A change of the address family needs a restart.
        machine.get("systemctl stop flanneld; ip link del flannel.1; ip link del flannel-v6.1; true");
        configure(&machine, &format!(r#"{{"Network":"10.5.0.0/16",{settings}}}"#));
        machine.get("systemctl start flanneld");
        assert!(machine.run(&format!("ip link show {device}")).status.success(), "{settings}");
        let tables = if settings.contains("NFT") { "nft list ruleset" } else { "iptables-save -t nat" };
        assert!(machine.get(tables).contains("masq"), "{settings}");
        if device != "flannel0" {
            // A changed sysctl is restored.
            machine.get("sysctl -q -w net.ipv4.ip_forward=0");
            eventually(PATIENCE, || machine.get("sysctl -n net.ipv4.ip_forward") == "1").unwrap();
        }
        let journal = machine.journal("flanneld");
        assert!(!journal.lines().any(|line| line.starts_with('E')), "{journal}");
        let refused = |line: &&str| line.contains("not permitted") || line.contains("Read-only");
        assert_eq!(journal.lines().find(refused), None, "{journal}");
    }
    // NET_ADMIN and NET_RAW (linux/capability.h), a seccomp filter, and no new privileges.
    assert_eq!(
        ["CapEff", "CapBnd", "CapAmb"].map(|set| status(&machine, set)),
        ["3000", "3000", "0"].map(|set| format!("{set:0>16}"))
    );
    assert_eq!(["NoNewPrivs", "Seccomp"].map(|field| status(&machine, field)), ["1", "2"]);
    let daemon = machine.get("systemctl show -p MainPID --value flanneld");
    for (path, may_write) in [
        ("/etc", false),
        ("/usr/bin", false),
        ("/var/lib", false),
        ("/run", false),
        ("/proc/sys/kernel/core_pattern", false),
        ("/proc/sys/net/ipv4/ip_forward", true),
        ("/run/flannel", true),
        ("/run/xtables.lock", true),
    ] {
        let test = machine.run(&format!("nsenter --target {daemon} --mount --root test -w {path}"));
        assert_eq!(test.status.success(), may_write, "{path} {}", text(&test));
    }
}

#[test]
fn an_invalid_flag_is_not_retried_and_a_crash_is_with_the_network_in_place() {
    let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap();
    let machine = installed(&lab);
    let show = |property: &str| machine.get(&format!("systemctl show -p {property} --value flanneld"));
    machine.write("/etc/default/flanneld", "FLANNELD_IP_MASQ=perhaps\n");
    assert!(!machine.run("systemctl start flanneld").status.success());
    assert_eq!([show("ActiveState"), show("ExecMainStatus"), show("NRestarts")], ["failed", "2", "0"]);
    wait_for_journal(&machine, "FLANNELD_IP_MASQ");

    machine.write("/etc/default/flanneld", "FLANNELD_IFACE=eth0\n");
    machine.get("systemctl start etcd");
    configure(&machine, r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#);
    machine.get("systemctl start flanneld");
    assert!(show("StatusText").contains("10.5."), "{}", show("StatusText"));
    let subnet = machine.get("cat /run/flannel/subnet.env");
    let device = machine.get("cat /sys/class/net/flannel.1/ifindex /sys/class/net/flannel.1/address");
    machine.get("kill -KILL $(systemctl show -p MainPID --value flanneld)");
    eventually(PATIENCE, || show("NRestarts") == "1" && show("ActiveState") == "active").unwrap();
    machine.get("systemctl stop flanneld");
    assert_eq!(
        machine.get("cat /run/flannel/subnet.env"),
        subnet,
        "the runtime directory outlives the daemon"
    );
    assert_eq!(machine.get("cat /sys/class/net/flannel.1/ifindex /sys/class/net/flannel.1/address"), device);
}

#[test]
fn the_udp_device_survives_a_kill_and_a_restart_but_not_a_stop() {
    let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap();
    let machine = installed(&lab);
    let show = |property: &str| machine.get(&format!("systemctl show -p {property} --value flanneld"));
    machine.write("/etc/default/flanneld", "FLANNELD_IFACE=eth0\nFLANNELD_KEEP_UDP_DEVICE=true\n");
    machine.get("systemctl start etcd");
    configure(&machine, r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#);
    machine.get("systemctl start flanneld");
    let seen = || machine.get("cat /sys/class/net/flannel0/ifindex; ip -4 -br addr show flannel0");
    let first = seen();
    eventually(PATIENCE, || show("NFileDescriptorStore") == "2").unwrap();
    machine.get("kill -KILL $(systemctl show -p MainPID --value flanneld)");
    eventually(PATIENCE, || show("NRestarts") == "1" && show("ActiveState") == "active").unwrap();
    assert_eq!((seen(), show("NFileDescriptorStore").as_str()), (first.clone(), "2"));
    machine.get("systemctl restart flanneld");
    assert_eq!((seen(), show("NFileDescriptorStore").as_str()), (first, "2"));
    machine.get("systemctl stop flanneld");
    eventually(PATIENCE, || !machine.run("test -e /sys/class/net/flannel0").status.success()).unwrap();
}

#[test]
fn a_daemon_that_hangs_is_restarted() {
    let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap();
    let machine = installed(&lab);
    let show = |property: &str| machine.get(&format!("systemctl show -p {property} --value flanneld"));
    machine.write(
        "/etc/systemd/system/flanneld.service.d/soon.conf",
        "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n",
    );
    machine.write("/etc/default/flanneld", "FLANNELD_IFACE=eth0\n");
    machine.get("systemctl daemon-reload && systemctl start etcd");
    configure(&machine, r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#);
    machine.get("systemctl start flanneld");
    let before = show("WatchdogTimestampMonotonic");
    eventually(PATIENCE, || show("WatchdogTimestampMonotonic") != before)
        .expect("the daemon notifies the watchdog");
    machine.get("kill -STOP $(systemctl show -p MainPID --value flanneld)");
    eventually(PATIENCE, || show("NRestarts") == "1" && show("ActiveState") == "active").unwrap();
    wait_for_journal(&machine, "flanneld.service: Watchdog timeout");
}

#[test]
fn networkd_does_not_manage_the_tunnel() {
    let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap();
    let machine = installed(&lab);
    // A configuration in which networkd manages every link.
    machine.write(
        "/etc/systemd/network/50-all.network",
        "[Match]\nName=*\n[Network]\nLinkLocalAddressing=no\nKeepConfiguration=no\n",
    );
    machine.write("/etc/default/flanneld", "FLANNELD_IFACE=eth0\n");
    machine.get("ip link add other type bridge");
    machine.get("ip link set other up");
    machine.get("systemctl start etcd systemd-networkd");
    configure(&machine, r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#);
    machine.get("systemctl start flanneld");
    // networkd's state of a link (sd-network).
    let state = |link: &str| {
        let file = format!("/run/systemd/netif/links/$(cat /sys/class/net/{link}/ifindex)");
        text(&machine.run(&format!("sed -n s/ADMIN_STATE=//p {file}")))
    };
    eventually(PATIENCE, || {
        Some(state("other")).filter(|state| state == "configured").ok_or_else(|| state("other"))
    })
    .expect("networkd is at work");
    // A link is pending until networkd processes it.
    eventually(PATIENCE, || {
        Some(state("flannel.1")).filter(|state| state == "unmanaged").ok_or_else(|| state("flannel.1"))
    })
    .unwrap();
    let settings = machine.get("systemd-analyze cat-config systemd/networkd.conf");
    assert!(settings.contains("\nManageForeignRoutes=no"), "{settings}");
}
