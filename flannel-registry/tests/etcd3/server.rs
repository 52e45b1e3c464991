//! An etcd for one test, with operator access.

use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use flannel_netlink::Namespace;
use flannel_registry::{Etcd3Options, Etcd3Registry};
use flannel_testing::{Etcd, EtcdOptions, EtcdTls, random_loopback_address};

use crate::common::certificates::Certificates;
pub(crate) use crate::common::{DAY, PATIENCE, PREFIX, host, next, subnet, subnet_key, until, words};

pub(crate) struct Server {
    etcd: Mutex<Etcd>,
    /// The password of `root`, if authentication is on.
    password: Option<&'static str>,
    /// The certificates, if TLS is on.
    pub(crate) certificates: Option<Certificates>,
    /// Whether clients need a certificate.
    mutual: bool,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let options = EtcdOptions { arguments, ..EtcdOptions::default() };
        let etcd = Mutex::new(Etcd::start_with(options).unwrap());
        Self { etcd, password: None, certificates: None, mutual: false }
    }

    /// Starts a server that accepts only `root`, with a password.
    pub(crate) fn start_with_password(arguments: &[&str]) -> Self {
        let mut server = Self::start_with(arguments);
        let password = "correct horse";
        server.etcd().require_password(password).unwrap();
        server.password = Some(password);
        server
    }

    /// Starts a server with TLS that requires client certificates if `mutual`.
    pub(crate) fn start_tls(mutual: bool) -> Self {
        let (certificates, address) = (Certificates::new(), random_loopback_address());
        certificates.server("server", address);
        certificates.client("client");
        Self::start_with_certificates(certificates, address, mutual)
    }

    /// Starts a server with `server.pem`.
    pub(crate) fn start_with_certificates(
        certificates: Certificates,
        address: Ipv4Addr,
        mutual: bool,
    ) -> Self {
        let path = |file: &str| certificates.path(file);
        let tls = EtcdTls {
            authority: path("ca.pem"),
            certificate: path("server.pem"),
            key: path("server-key.pem"),
            client: mutual.then(|| (path("client.pem"), path("client-key.pem"))),
        };
        let inside = Some((Namespace::current().unwrap(), address.into()));
        let options = EtcdOptions { tls: Some(tls), inside, ..EtcdOptions::default() };
        let etcd = Mutex::new(Etcd::start_with(options).unwrap());
        Self { etcd, password: None, certificates: Some(certificates), mutual }
    }

    pub(crate) fn etcd(&self) -> MutexGuard<'_, Etcd> {
        self.etcd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn url(&self) -> String {
        self.etcd().client_url()
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.etcd().client_address()
    }

    /// Returns options with short timeouts.
    pub(crate) fn options(&self) -> Etcd3Options {
        let mut options = Etcd3Options::default();
        options.endpoints = vec![self.url()];
        options.timeout = Duration::from_secs(2);
        options.silence = Duration::from_secs(3);
        if let Some(password) = self.password {
            options.username = "root".to_owned();
            options.password = password.to_owned();
        }
        if let Some(certificates) = &self.certificates {
            options.ca_file = Some(certificates.path("ca.pem"));
            if self.mutual {
                options.cert_file = Some(certificates.path("client.pem"));
                options.key_file = Some(certificates.path("client-key.pem"));
            }
        }
        options
    }

    pub(crate) fn registry(&self) -> Etcd3Registry {
        Etcd3Registry::new(self.options()).unwrap()
    }

    /// Returns a plain etcd client.
    pub(crate) async fn client(&self) -> Client {
        let mut options = ConnectOptions::new();
        if let Some(password) = self.password {
            options = options.with_user("root", password);
        }
        if let Some(certificates) = &self.certificates {
            let identity =
                Identity::from_pem(certificates.read("client.pem"), certificates.read("client-key.pem"));
            let authority = Certificate::from_pem(certificates.read("ca.pem"));
            options = options.with_tls(TlsOptions::new().ca_certificate(authority).identity(identity));
        }
        Client::connect([self.url()], Some(options)).await.unwrap()
    }

    /// Runs `etcdctl` and returns its output without the last line break.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        self.etcd().etcdctl(arguments).unwrap().trim_end_matches('\n').to_owned()
    }

    pub(crate) fn put(&self, key: &str, value: &str) {
        self.ctl(&["put", &subnet_key(key), value]);
    }

    pub(crate) fn remove(&self, key: &str) {
        self.ctl(&["del", &subnet_key(key)]);
    }

    /// Compacts the whole history.
    pub(crate) fn compact(&self) {
        let revision = self.revision();
        // Fails if the revision is already compacted, or if nothing was written.
        let _ = self.etcd().etcdctl(&["compact", &revision.to_string()]);
    }

    pub(crate) fn revision(&self) -> u64 {
        let answer = self.ctl(&["get", "nothing", "-w", "fields"]);
        let line = answer.lines().find_map(|line| line.strip_prefix("\"Revision\" : "));
        line.unwrap().parse().unwrap()
    }
}
