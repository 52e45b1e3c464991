//! Options of a registry.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Options of an [`Etcd2Registry`](crate::Etcd2Registry).
#[derive(Clone)]
#[non_exhaustive]
pub struct Etcd2Options {
    /// The members of the cluster, as `http://ADDRESS:PORT` or `https://ADDRESS:PORT`; the scheme defaults to `http`.
    /// If a member does not answer, the next one is asked.
    pub endpoints: Vec<String>,
    /// The prefix of all keys of the network.
    pub prefix: String,
    /// The time limit of a request to one member after connecting.
    pub timeout: Duration,
    /// The time limit for connecting.
    pub connect_timeout: Duration,
    /// How long a quiet long poll stays open before it is repeated.
    pub silence: Duration,
    /// PEM file of trusted authorities; `None` for those of the system.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate and its chain. All certificate files are read for each connection.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client key.
    pub key_file: Option<PathBuf>,
    /// The etcd user, if etcd requires authentication.
    pub user: Option<String>,
    /// The user's password.
    pub password: String,
}

impl Default for Etcd2Options {
    /// Returns options for an etcd on this host and upstream flannel's default prefix.
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".to_owned()],
            prefix: "/coreos.com/network".to_owned(),
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            silence: Duration::from_secs(30),
            ca_file: None,
            cert_file: None,
            key_file: None,
            user: None,
            password: String::new(),
        }
    }
}

impl fmt::Debug for Etcd2Options {
    /// Omits the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd2Options")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("silence", &self.silence)
            .field("ca_file", &self.ca_file)
            .field("cert_file", &self.cert_file)
            .field("key_file", &self.key_file)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Invalid [`Etcd2Options`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Etcd2OptionsError {
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
    /// A certificate file is unusable.
    #[error("{0}")]
    Tls(String),
}
