//! Options of a registry.

use std::path::PathBuf;
use std::time::Duration;

/// Options of an [`Etcd3Registry`](crate::Etcd3Registry).
///
/// `https://` endpoints use TLS 1.2 or later. Certificate files are read again when they change: new connections use the
/// new files, and open watches continue.
#[derive(Clone)]
#[non_exhaustive]
pub struct Etcd3Options {
    /// The members of the cluster, as `http://ADDRESS:PORT` or `https://ADDRESS:PORT`; the scheme defaults to `http`.
    /// If a member does not answer, the next one is asked.
    pub endpoints: Vec<String>,
    /// PEM file of trusted authorities; `None` for those of the system.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate and its chain. Requires `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client key: unencrypted PKCS#8, PKCS#1 (RSA) or SEC1 (elliptic curve).
    pub key_file: Option<PathBuf>,
    /// The etcd user; empty for none. Requires `password`.
    pub username: String,
    /// The user's password, which is never printed.
    pub password: String,
    /// The prefix of all keys of the network.
    pub prefix: String,
    /// The time limit of a call to one member.
    pub timeout: Duration,
    /// The time limit for connecting, which must be less than `timeout` to have an effect.
    pub connect_timeout: Duration,
    /// How long a watch may stay without a response before its member is checked with a read and, if that fails, the watch
    /// is reopened.
    pub silence: Duration,
    /// The number of leases per page of a list. A lease takes about 150 bytes.
    pub page_size: u32,
    /// The interval, ±25 %, at which a watch reads all leases although nothing seems missing; `None` for never.
    ///
    /// A watch cannot detect every loss: etcd has lost events (etcd-io/etcd#17529, #18089), and a cluster that was
    /// restored from a backup and has caught up looks unchanged. An audit bounds how long such a loss lasts, at the cost
    /// of one list per host and interval.
    pub audit: Option<Duration>,
}

impl std::fmt::Debug for Etcd3Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { endpoints, ca_file, cert_file, key_file, username, password: _, prefix, .. } = self;
        f.debug_struct("Etcd3Options")
            .field("endpoints", endpoints)
            .field("ca_file", ca_file)
            .field("cert_file", cert_file)
            .field("key_file", key_file)
            .field("username", username)
            .field("prefix", prefix)
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("silence", &self.silence)
            .field("page_size", &self.page_size)
            .field("audit", &self.audit)
            .finish_non_exhaustive()
    }
}

impl Default for Etcd3Options {
    /// Returns options for an etcd on this host and upstream flannel's default prefix.
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".to_owned()],
            ca_file: None,
            cert_file: None,
            key_file: None,
            username: String::new(),
            password: String::new(),
            prefix: "/coreos.com/network".to_owned(),
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            silence: Duration::from_secs(30),
            // A page stays below 1 MB, and most networks fit in one page.
            page_size: 5000,
            // 1.7 lists per second in a cluster of 1000 hosts.
            audit: Some(Duration::from_secs(600)),
        }
    }
}

/// Invalid [`Etcd3Options`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Etcd3OptionsError {
    /// No endpoint is given.
    #[error("no etcd endpoint is given")]
    NoEndpoint,
    /// An endpoint is invalid.
    #[error("etcd endpoint {endpoint:?}: {reason}")]
    Endpoint {
        /// The given endpoint.
        endpoint: String,
        /// The defect.
        reason: String,
    },
    /// A certificate is given without its key, or a key without its certificate. The text is upstream flannel's.
    #[error("KeyFile and CertFile must both be present[key: {key_file}, cert: {cert_file}]",
        key_file = .key_file.display(), cert_file = .cert_file.display())]
    IncompleteKeyPair {
        /// The certificate file; empty if missing.
        cert_file: PathBuf,
        /// The key file; empty if missing.
        key_file: PathBuf,
    },
    /// A user name is given without a password, or a password without a user name.
    #[error("incomplete etcd credentials: {0}")]
    IncompleteCredentials(&'static str),
}
