//! An etcd that requires client certificates and a password.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use flannel_testing::{EtcdOptions, eventually, output_in, program};
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256};

use crate::certificates::Certificates;
use crate::cluster::{Cluster, PATIENCE, VXLAN};

/// A 2048-bit RSA key for tests, in two formats.
const RSA_PKCS1: &str = include_str!("../../../flannel-registry/tests/common/rsa-pkcs1.pem");
const RSA_PKCS8: &str = include_str!("../../../flannel-registry/tests/common/rsa-pkcs8.pem");

const PASSWORD: &str = "never to be logged";

impl Certificates {
    /// Creates client certificates with keys in every common format: RSA in PKCS#1 and PKCS#8, P-256 in PKCS#8 and SEC1
    /// (RFC 5915).
    fn clients_of_all_formats(&self) -> [(PathBuf, PathBuf); 4] {
        let rsa = KeyPair::from_pkcs8_pem_and_sign_algo(RSA_PKCS8, &PKCS_RSA_SHA256).unwrap();
        let curve = KeyPair::generate().unwrap();
        let [rsa_certificate, curve_certificate] = [("rsa", &rsa), ("curve", &curve)].map(|(name, key)| {
            let certificate = CertificateParams::default().signed_by(key, &self.authority()).unwrap();
            self.write(&format!("{name}.pem"), &certificate.pem())
        });
        [
            (rsa_certificate.clone(), self.write("pkcs1.pem", RSA_PKCS1)),
            (rsa_certificate, self.write("pkcs8.pem", RSA_PKCS8)),
            (curve_certificate.clone(), self.write("curve-pkcs8.pem", &curve.serialize_pem())),
            (curve_certificate, self.write("sec1.pem", &sec1(&curve))),
        ]
    }
}

/// Encodes a P-256 key as `openssl ecparam -genkey` does: the inner part of its PKCS#8 encoding.
fn sec1(key: &KeyPair) -> String {
    let pkcs8 = key.serialize_der();
    // An octet string of 109 bytes with a sequence of 107.
    let begin = pkcs8.windows(4).position(|bytes| bytes == [0x04, 0x6d, 0x30, 0x6b]).unwrap() + 2;
    let text = base64::engine::general_purpose::STANDARD.encode(&pkcs8[begin..begin + 109]);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN EC PRIVATE KEY-----\n{}\n-----END EC PRIVATE KEY-----\n", lines.join("\n"))
}

fn give(command: &mut Command, flag: &str, path: &Path) {
    command.arg(flag).arg(path);
}

#[test]
fn hosts_use_an_etcd_that_requires_a_certificate_and_a_password() {
    let files = Certificates::new();
    let mut cluster = Cluster::with_etcd(2, files.options());
    cluster.configure(VXLAN);
    cluster.etcd.require_password(PASSWORD).unwrap();
    for host in 0..2 {
        let mut command = cluster.command(host);
        give(&mut command, "-etcd-cafile", &files.path("ca.pem"));
        give(&mut command, "-etcd-certfile", &files.path("client.pem"));
        give(&mut command, "-etcd-keyfile", &files.path("client-key.pem"));
        command.args(["-etcd-username=root", "-v=10"]).env("FLANNELD_ETCD_PASSWORD", PASSWORD);
        cluster.start_as(host, command);
    }
    for host in 0..2 {
        cluster.wait_until_ready(host);
        eventually(PATIENCE, || cluster.routes(host).len() == 1).unwrap();
        let lines = cluster.daemon(host).lines();
        assert!(lines.iter().all(|line| !line.contains(PASSWORD)), "{lines:#?}");
    }
}

#[test]
fn certificate_errors_are_logged() {
    let files = Certificates::new();
    let mut cluster = Cluster::with_etcd(1, files.options());
    let mut command = cluster.command(0);
    give(&mut command, "-etcd-certfile", Path::new("x"));
    cluster.start_as(0, command);
    let upstreams =
        "Failed to create SubnetManager: KeyFile and CertFile must both be present[key: , cert: x]";
    cluster.daemon(0).wait_for_line(upstreams, PATIENCE).unwrap();
    let status = eventually(PATIENCE, || cluster.daemon(0).exit_status().ok().flatten()).unwrap();
    assert_eq!(status.code(), Some(1));
}

/// Starts the daemon with these files for each etcd API, and returns its first log line about a file.
fn first_line_about(cluster: &mut Cluster, files: [&Path; 3], about: &Path) -> [String; 2] {
    ["v3", "v2"].map(|api| {
        let mut command = cluster.command(0);
        command.arg(format!("-etcd-api={api}"));
        for (flag, path) in ["-etcd-cafile", "-etcd-certfile", "-etcd-keyfile"].iter().zip(files) {
            give(&mut command, flag, path);
        }
        cluster.start_as(0, command);
        let line = cluster.daemon(0).wait_for_line(&about.display().to_string(), PATIENCE).unwrap();
        let first = cluster.daemon(0).lines().into_iter().find(|line| line.starts_with('E'));
        assert_eq!(first.as_ref(), Some(&line), "one line, at once");
        cluster.daemon(0).kill().unwrap();
        line
    })
}

#[test]
fn an_invalid_file_is_named_in_one_line_with_both_apis() {
    let (files, stranger) = (Certificates::new(), Certificates::new());
    fs::write(files.path("garbage.pem"), "no certificate at all\n").unwrap();
    let mut cluster = Cluster::with_etcd(1, EtcdOptions { enable_v2: true, ..files.options() });
    let [ca, client, key] = ["ca.pem", "client.pem", "client-key.pem"].map(|name| files.path(name));
    let at = |name: &str| files.path(name);
    let (other, trusted) = (stranger.path("client-key.pem"), stranger.path("ca.pem"));
    for (given, at_fault, reason) in [
        ([&at("absent.pem"), &client, &key], &at("absent.pem"), "No such file"),
        ([&at("garbage.pem"), &client, &key], &at("garbage.pem"), "contains no PEM certificate"),
        ([&ca, &client, &at("garbage.pem")], &at("garbage.pem"), "contains no PEM private key"),
        ([&ca, &client, &other], &other, "does not match the certificate in"),
        ([&trusted, &client, &key], &trusted, "UnknownIssuer"),
        ([&ca, &at("late.pem"), &at("late-key.pem")], &at("late.pem"), "(expired)"),
    ] {
        for line in first_line_about(&mut cluster, given.map(PathBuf::as_path), at_fault) {
            assert!(line.contains(reason), "no {reason:?} in {line:?}");
        }
    }
}

/// Adds the flags for the files to a command.
fn show(command: &mut Command, authority: &Path, (certificate, key): &(PathBuf, PathBuf)) {
    give(command, "-etcd-cafile", authority);
    give(command, "-etcd-certfile", certificate);
    give(command, "-etcd-keyfile", key);
}

#[test]
fn a_network_with_certificates_migrates_to_v3_with_every_key_format() {
    let files = Certificates::new();
    let (authority, clients) = (files.path("ca.pem"), files.clients_of_all_formats());
    let mut cluster = Cluster::with_etcd(1, EtcdOptions { enable_v2: true, ..files.options() });
    let etcdctl = |arguments: &[&str]| {
        let mut command = Command::new(program("etcdctl", "etcd-client").unwrap());
        command.env("ETCDCTL_API", "2").arg("--endpoints").arg(cluster.etcd.client_url());
        give(&mut command, "--ca-file", &authority);
        give(&mut command, "--cert-file", &files.path("client.pem"));
        give(&mut command, "--key-file", &files.path("client-key.pem"));
        command.args(arguments);
        let output = output_in(cluster.lab.switch(), command).unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let migrate = |client, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flanneld"));
        command
            .arg("migrate-etcd")
            .arg(format!("-etcd-endpoints={}", cluster.etcd.client_url()))
            .args(arguments);
        show(&mut command, &authority, client);
        let output = output_in(cluster.lab.switch(), command).unwrap();
        (output.status.code(), format!("{output:?}"))
    };
    etcdctl(&["set", "/coreos.com/network/config", VXLAN]);
    // Each run reads both stores.
    for client in &clients {
        let (code, output) = migrate(client, &["--dry-run"]);
        assert!(
            code == Some(0) && output.contains("network config: would be copied"),
            "{client:?}: {output}"
        );
    }
    let nobody = (files.path("late.pem"), files.path("late-key.pem"));
    assert_eq!(migrate(&nobody, &[]).0, Some(1), "an expired certificate moves nothing");
    let (code, output) = migrate(&clients[0], &[]);
    assert!(code == Some(0) && output.contains("network config: copied"), "{output}");
    for (api, client) in ["v2", "v3", "v2", "v3"].iter().zip(&clients) {
        let mut command = cluster.command(0);
        command.arg(format!("-etcd-api={api}"));
        show(&mut command, &authority, client);
        cluster.start_as(0, command);
        cluster.wait_until_ready(0);
        assert_eq!(cluster.daemon(0).terminate(PATIENCE).unwrap().code(), Some(0));
    }
    assert_eq!(cluster.leases().len(), 1);
}
