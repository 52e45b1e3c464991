//! Findings about the registry: reachability, records, clock and certificates.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use flannel_netlink::Namespace;
use flannel_testing::{EtcdOptions, output_in};
use rcgen::date_time_ymd;

use crate::certificates::Certificates;
use crate::cluster::{Cluster, SWITCH, VXLAN};
use crate::site::{Report, Site, commands, flags, what};

#[test]
fn an_unreachable_etcd_is_started_on_the_hosts_of_the_endpoints() {
    let mut site = Site::new(1);
    let before = site.ids();
    site.cluster.etcd.stop().unwrap();
    let finding = site.wait_for_finding("registry-unreachable");
    site.apply(&finding);
    assert_eq!(site.calls(), format!("ssh {SWITCH} systemctl start etcd\n"));
    site.cluster.etcd.restart().unwrap();
    site.wait_until_cured(&before, "registry-unreachable");
}

#[test]
fn a_missing_or_invalid_config_is_written() {
    let site = Site::new(1);
    let erase = || drop(site.cluster.etcd.etcdctl(&["del", "/coreos.com/network/config"]).unwrap());
    site.cycle("config-missing", erase);
    for wrong in [
        r#"{"Network":"10.5.0.0/33"}"#,
        r#"{"Network":"10.5.0.0/16","Backend":{"Type":"nosuch"}}"#,
        r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":"1"}}"#,
        "not JSON",
    ] {
        site.cycle("config-invalid", || site.cluster.configure(wrong));
    }
}

#[test]
fn a_malformed_record_is_removed() {
    let site = Site::running(1);
    let leases = site.cluster.leases();
    let put = |key: &str, value: &str| {
        site.cluster.etcd.etcdctl(&["put", &format!("/coreos.com/network/subnets/{key}"), value]).unwrap();
    };
    let finding = site.cycle("bad-record", || put("it's no subnet", "{}"));
    assert!(what(&finding).contains("it's no subnet"), "{finding:#}");
    site.cycle("bad-record", || put("10.5.250.0-24", "{"));
    assert_eq!(site.cluster.leases(), leases, "and nothing else");
}

#[test]
fn records_in_the_v2_store_are_removed_with_v2_commands() {
    let options = EtcdOptions { enable_v2: true, ..EtcdOptions::default() };
    let site = Site::of(Cluster::with_etcd(1, options));
    site.cluster.etcdctl_v2(&["set", "/coreos.com/network/config", VXLAN]);
    let finding = site.cycle("bad-record", || {
        site.cluster.etcdctl_v2(&["set", "/coreos.com/network/subnets/10.5.250.0-24", "{"]);
    });
    assert!(commands(&finding)[0].starts_with("ETCDCTL_API=2 etcdctl"), "{finding:#}");
}

#[test]
fn an_etcd_with_authentication_gets_a_password() {
    let mut site = Site::new(1);
    site.cluster.etcd.require_password("very secret").unwrap();
    let finding = site.wait_for_finding("registry-refuses");
    let given = flags(&finding)
        .into_iter()
        .map(|flag| flag.replace("NAME", "root").replace("PASSWORD", "very secret"));
    site.flags = given.collect();
    let report = site.doctor();
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

/// A proxy that makes etcd's clock appear two hours ahead until it is corrected.
struct ClockProxy {
    address: SocketAddr,
    is_wrong: Arc<AtomicBool>,
}

impl ClockProxy {
    fn start(namespace: &Namespace) -> Self {
        let listener = namespace.run(|| TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let is_wrong = Arc::new(AtomicBool::new(false));
        let (flag, namespace) = (Arc::clone(&is_wrong), namespace.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = namespace.run(|| TcpStream::connect((SWITCH, 2379))).unwrap();
                let Ok(server) = server else { continue };
                let (from_client, to_client) = (client.try_clone().unwrap(), client);
                let (from_server, to_server) = (server.try_clone().unwrap(), server);
                thread::spawn(move || forward(from_client, to_server, None));
                let flag = Arc::clone(&flag);
                thread::spawn(move || forward(from_server, to_client, Some(flag)));
            }
        });
        Self { address, is_wrong }
    }
}

/// Forwards bytes, with the `Date` header two hours later if `is_wrong`.
fn forward(mut from: TcpStream, mut to: TcpStream, is_wrong: Option<Arc<AtomicBool>>) {
    let mut buffer = [0; 65_536];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let bytes = &mut buffer[..length];
        if is_wrong.as_ref().is_some_and(|flag| flag.load(Ordering::SeqCst))
            && let Some(at) = bytes.windows(6).position(|window| window == b"Date: ")
            && let Some(year) = bytes.get_mut(at + 18..at + 22)
        {
            year.copy_from_slice(b"2099");
        }
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[test]
fn a_clock_that_differs_from_etcd_is_set() {
    let mut site = Site::new(1);
    let clockwork = ClockProxy::start(&site.cluster.lab.hosts[0].namespace);
    site.flags = vec![format!("-etcd-endpoints=http://{}", clockwork.address)];
    let before = site.ids();
    clockwork.is_wrong.store(true, Ordering::SeqCst);
    let finding = site.wait_for_finding("clock-skew");
    assert!(what(&finding).contains("behind"), "{finding:#}");
    site.apply(&finding);
    assert_eq!(site.calls(), "timedatectl set-ntp true\n");
    clockwork.is_wrong.store(false, Ordering::SeqCst);
    site.wait_until_cured(&before, "clock-skew");
}

#[test]
fn expired_certificates_are_replaced_and_unusable_files_are_named() {
    let files = Certificates::new();
    files.issue_one("good", |_| {});
    let mut site = Site::of(Cluster::with_etcd(1, files.options_for(Some("good"))));
    site.cluster.configure(VXLAN);
    let flag = |name: &str, file: &str| format!("-etcd-{name}={}", files.path(file).display());
    site.flags =
        vec![flag("cafile", "ca.pem"), flag("certfile", "client.pem"), flag("keyfile", "client-key.pem")];
    for (id, from, to) in [("certificate-expired", 2019, 2021), ("certificate-not-yet-valid", 2400, 2500)] {
        let before = site.ids();
        files.issue_one("client", |params| {
            (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        });
        let finding = site.wait_for_finding(id);
        for line in commands(&finding) {
            let new = |file: &str| files.path(file).display().to_string();
            let line = line.replace("NEW-CERTIFICATE.pem", &new("good.pem"));
            site.shell(&line.replace("NEW-KEY.pem", &new("good-key.pem")));
        }
        site.wait_until_cured(&before, id);
    }
    let wrong = [flag("cafile", "ca.pem"), flag("certfile", "client.pem"), flag("keyfile", "server-key.pem")];
    let good = std::mem::replace(&mut site.flags, wrong.to_vec());
    let finding = site.wait_for_finding("registry-options");
    assert!(what(&finding).contains("server-key.pem"), "{finding:#}");
    assert_eq!(flags(&finding), ["-etcd-cafile=FILE", "-etcd-certfile=FILE", "-etcd-keyfile=FILE"]);
    site.flags = good;
    assert!(site.doctor().findings.is_empty());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "certificates are judged by the wall clock")]
fn a_certificate_that_expires_soon_is_a_warning() {
    let files = Certificates::new();
    let mut site = Site::new(1);
    let now = std::time::SystemTime::now();
    files.issue_one("late", |params| {
        params.not_before = (now - std::time::Duration::from_secs(300 * 86_400)).into();
        params.not_after = (now + std::time::Duration::from_secs(3 * 86_400)).into();
    });
    let file = files.path("late.pem");
    site.flags = vec![format!("-etcd-cafile={}", file.display())];
    let finding = site.wait_for_finding("certificate-expires-soon");
    assert_eq!((finding["severity"].as_str(), site.doctor().status), (Some("warning"), 3));
    let new = files.path("client.pem").display().to_string();
    for line in commands(&finding) {
        site.shell(&line.replace("NEW-CERTIFICATE.pem", &new));
    }
    assert!(site.doctor().findings.is_empty());
}

#[test]
fn invalid_registry_flags_are_a_finding() {
    let site = Site::new(1);
    let mut command = site.doctor_command();
    command.arg("-etcd-certfile=/nosuch.pem");
    let output = output_in(&site.cluster.lab.hosts[0].namespace, command).unwrap();
    let report = Report::of(&output);
    assert!(report.finding("registry-options").is_some(), "{:#?}", report.findings);
}
