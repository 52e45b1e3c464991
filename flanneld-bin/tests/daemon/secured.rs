//! An etcd that lets in only those who show a certificate and know a password.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use flannel_testing::{EtcdOptions, EtcdTls, eventually};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

use crate::cluster::{Cluster, PATIENCE, SWITCH, VXLAN};

const PASSWORD: &str = "never to be logged";

/// Certificates in a directory that goes with them.
pub(crate) struct Certificates(PathBuf);

impl Certificates {
    /// Makes an authority, and of each name a certificate for etcd's address; one of them has expired.
    pub(crate) fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("flanneld-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let certificates = Self(directory);
        certificates.issue();
        certificates
    }

    /// Makes all of them anew, by another authority.
    pub(crate) fn issue(&self) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, self.0.display().to_string());
        let key = KeyPair::generate().unwrap();
        fs::write(self.path("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let authority = Issuer::new(params, key);
        for name in ["server", "client", "late"] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new([SWITCH.to_owned()]).unwrap();
            if name == "late" {
                params.not_after = date_time_ymd(2020, 1, 1);
            }
            let certificate = params.signed_by(&key, &authority).unwrap();
            fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
            fs::write(self.path(&format!("{name}-key.pem")), key.serialize_pem()).unwrap();
        }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    /// An etcd that wants to be shown a certificate.
    pub(crate) fn options(&self) -> EtcdOptions {
        let client = Some((self.path("client.pem"), self.path("client-key.pem")));
        self.options_for(client)
    }

    /// An etcd that shows its own only.
    pub(crate) fn one_sided(&self) -> EtcdOptions {
        self.options_for(None)
    }

    fn options_for(&self, client: Option<(PathBuf, PathBuf)>) -> EtcdOptions {
        let tls = EtcdTls {
            authority: self.path("ca.pem"),
            certificate: self.path("server.pem"),
            key: self.path("server-key.pem"),
            client,
        };
        EtcdOptions { tls: Some(tls), ..EtcdOptions::default() }
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn give(command: &mut Command, flag: &str, path: &Path) {
    command.arg(flag).arg(path);
}

#[test]
fn hosts_use_an_etcd_that_wants_a_certificate_and_a_password() {
    let files = Certificates::new("secured");
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
fn what_is_wrong_with_the_certificates_is_said() {
    let files = Certificates::new("wrong");
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

/// Starts the daemon with these files for each of etcd's interfaces, and returns what it says first about a file.
fn said(cluster: &mut Cluster, files: [&Path; 3], about: &Path) -> [String; 2] {
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
fn a_file_that_is_at_fault_is_named_in_one_line_over_both_interfaces() {
    let (files, stranger) = (Certificates::new("fault"), Certificates::new("stranger"));
    fs::write(files.path("garbage.pem"), "no certificate at all\n").unwrap();
    let mut cluster = Cluster::with_etcd(1, EtcdOptions { enable_v2: true, ..files.options() });
    let [ca, client, key] = ["ca.pem", "client.pem", "client-key.pem"].map(|name| files.path(name));
    let at = |name: &str| files.path(name);
    let (other, trusted) = (stranger.path("client-key.pem"), stranger.path("ca.pem"));
    for (given, at_fault, reason) in [
        ([&at("absent.pem"), &client, &key], &at("absent.pem"), "No such file"),
        ([&at("garbage.pem"), &client, &key], &at("garbage.pem"), "holds no certificate in PEM form"),
        ([&ca, &client, &at("garbage.pem")], &at("garbage.pem"), "holds no private key in PEM form"),
        ([&ca, &client, &other], &other, "does not fit the certificate in"),
        ([&trusted, &client, &key], &trusted, "UnknownIssuer"),
        ([&ca, &at("late.pem"), &at("late-key.pem")], &at("late.pem"), "which has expired"),
    ] {
        for line in said(&mut cluster, given.map(PathBuf::as_path), at_fault) {
            assert!(line.contains(reason), "no {reason:?} in {line:?}");
        }
    }
}
