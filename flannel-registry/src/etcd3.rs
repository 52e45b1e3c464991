//! Leases in etcd, over its v3 interface, where flannel v0.18 and later keep them.
//!
//! | part | what it does |
//! |---|---|
//! | `keys` | names the keys and reads what is under them (pure) |
//! | `position` | decides what follows from what etcd says to a watch (pure) |
//! | `cluster` | finds a member that answers |
//! | `connection` | connects to a member, and shows it who we are |
//! | `records` | reads and writes records |
//! | `copies` | reads and writes copies of the records of another store |
//! | `watch` | follows them, for ever |
//! | `calls` | counts what that costs |

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
#[cfg(feature = "etcd-v2")]
use flannel_core::BadRecord;
use flannel_core::{
    LastContact, Lease, LeaseAttrs, RegistryError, RegistryEvent, Revision, Snapshot, StoreIdentity,
    SubnetKey, SubnetRegistry,
};
use futures::stream::BoxStream;

mod calls;
mod cluster;
mod connection;
#[cfg(feature = "etcd-v2")]
mod copies;
mod keys;
mod position;
mod records;
mod watch;

use crate::etcd::{ConfigRead, LastCluster};
#[cfg(feature = "etcd-v2")]
use crate::migration::{Found, Original};
use crate::news::News;
pub use calls::Etcd3Calls;
use cluster::Cluster;
use keys::Keys;

/// A registry in etcd, 3.4 or later. Clones share their connections.
///
/// Nothing is connected before the first call, and a connection that breaks is made anew by itself; so etcd may come
/// later than its users, go, and come back. Connections belong to the tokio runtime that made the first call.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use flannel_core::SubnetRegistry;
/// use flannel_registry::{Etcd3Options, Etcd3Registry};
///
/// let mut options = Etcd3Options::default();
/// options.endpoints = vec!["http://10.0.0.1:2379".into(), "http://10.0.0.2:2379".into()];
/// let registry = Etcd3Registry::new(options)?;
/// println!("{:?}", registry.config().await?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Etcd3Registry {
    store: Arc<Store>,
}

/// How to reach a network in etcd.
///
/// Members at `https://` are reached over TLS 1.2 or newer, and only those. Certificate files are read again when they
/// change: connections made after that use the new ones, and open watches go on.
#[derive(Clone)]
#[non_exhaustive]
pub struct Etcd3Options {
    /// The members of the cluster, as `http://ADDRESS:PORT` or `https://ADDRESS:PORT`; without a scheme it is `http`.
    /// A member that does not answer is replaced by the next.
    pub endpoints: Vec<String>,
    /// The certificates of the authorities to trust, in PEM form; without it, those that this system trusts.
    pub ca_file: Option<PathBuf>,
    /// The certificate to show to etcd, with those that lead to its authority, in PEM form. Comes with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// The key of that certificate, in PEM form: PKCS#8, PKCS#1 (RSA) or SEC1 (elliptic curves), not encrypted.
    pub key_file: Option<PathBuf>,
    /// The user of etcd to act as, or nothing. Comes with `password`.
    pub username: String,
    /// The user's password. Never shown.
    pub password: String,
    /// What all keys of the network begin with.
    pub prefix: String,
    /// How long a member may take to answer one call.
    pub timeout: Duration,
    /// How long a connection may take to be made. Shorter than `timeout`, or it has no effect.
    pub connect_timeout: Duration,
    /// How long a watch may hear nothing, though it asks, before it is opened anew.
    pub silence: Duration,
    /// How many leases are read at once. A lease is about 150 bytes.
    pub page_size: u32,
    /// How often a watch reads all leases though nothing seems missing, give or take a quarter; `None` for never.
    ///
    /// Some losses cannot be seen from a watch: etcd has lost events (etcd-io/etcd#17529, #18089), and a cluster that
    /// was restored from a backup and has caught up looks like one that went on. This bounds how long they last, at
    /// the cost of one list for each host and interval.
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
    /// One etcd on this host, and flannel's usual prefix.
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
            // A page stays below 1 MB, and a network of usual size is one page.
            page_size: 5000,
            // With 1000 hosts, 1.7 lists each second in the whole cluster.
            audit: Some(Duration::from_secs(600)),
        }
    }
}

/// Why options make no registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Etcd3OptionsError {
    /// There is no endpoint; name one.
    #[error("no etcd endpoint is given")]
    NoEndpoint,
    /// An endpoint cannot be used; correct it.
    #[error("etcd endpoint {endpoint:?}: {reason}")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// One of the certificate and its key is given without the other; give both. The words are upstream's.
    #[error("KeyFile and CertFile must both be present[key: {key_file}, cert: {cert_file}]",
        key_file = .key_file.display(), cert_file = .cert_file.display())]
    IncompleteKeyPair {
        /// The certificate's file, or nothing.
        cert_file: PathBuf,
        /// The key's file, or nothing.
        key_file: PathBuf,
    },
    /// One of the user name and the password is given without the other; give both.
    #[error("etcd is to be told {0}")]
    IncompleteCredentials(&'static str),
}

/// What all clones of a registry share.
#[derive(Debug)]
struct Store {
    cluster: Cluster,
    keys: Keys,
    last: LastCluster,
    /// Up to which revision the configuration is known.
    config_read: ConfigRead,
    /// Says that it may be another one.
    configured: News,
    page_size: u32,
    silence: Duration,
    audit: Option<Duration>,
}

impl Store {
    fn identity(&self) -> StoreIdentity {
        StoreIdentity::new(self.last.id(), self.cluster.addresses())
    }

    fn describe(&self) -> String {
        format!("etcd v3 at {}", self.cluster.describe())
    }
}

impl Etcd3Registry {
    /// Makes a registry. Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// [`Etcd3OptionsError`] says which option is wrong.
    pub fn new(options: Etcd3Options) -> Result<Self, Etcd3OptionsError> {
        let store = Store {
            cluster: Cluster::new(&options)?,
            keys: Keys::below(&options.prefix),
            last: LastCluster::default(),
            config_read: ConfigRead::default(),
            configured: News::default(),
            page_size: options.page_size,
            silence: options.silence,
            audit: options.audit,
        };
        Ok(Self { store: Arc::new(store) })
    }

    /// Reads all records, who wrote them, and how long the copies among them last.
    #[cfg(feature = "etcd-v2")]
    pub(crate) async fn found(&self) -> Result<(Vec<Found>, Vec<BadRecord>), RegistryError> {
        self.store.found().await.map_err(|failure| self.store.unwritten(failure))
    }

    /// Writes a copy of a record, if what it replaces is still there.
    #[cfg(feature = "etcd-v2")]
    pub(crate) async fn copy(
        &self,
        original: &Original,
        replaced: Option<&Lease>,
    ) -> Result<bool, RegistryError> {
        self.store.copy(original.lease.subnet, &original.record, original.left, replaced).await
    }

    /// Writes the configuration, if there is none or the same.
    #[cfg(feature = "etcd-v2")]
    pub(crate) async fn copy_config(&self, text: &str) -> Result<bool, RegistryError> {
        self.store.copy_config(text).await
    }

    /// Tells how many calls were made so far.
    #[must_use]
    pub fn calls(&self) -> Etcd3Calls {
        self.store.cluster.counters.read()
    }
}

#[async_trait]
impl SubnetRegistry for Etcd3Registry {
    fn describe(&self) -> String {
        self.store.describe()
    }

    fn store(&self) -> StoreIdentity {
        self.store.identity()
    }

    fn last_contact(&self) -> Option<LastContact> {
        self.store.cluster.word.last()
    }

    fn how_to_configure(&self) -> String {
        // What etcdctl needs besides: 3.4 speaks the v3 interface by default.
        let key = self.store.keys.config();
        format!(r#"etcdctl put {key} '{{"Network":"10.5.0.0/16","Backend":{{"Type":"vxlan"}}}}'"#)
    }

    async fn config(&self) -> Result<Option<String>, RegistryError> {
        self.store.config().await
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        match self.store.list().await {
            Ok((_, snapshot)) => Ok(snapshot),
            Err(failure) => Err(self.store.unwritten(failure)),
        }
    }

    async fn create(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError> {
        self.store.create(subnet, attrs, ttl).await
    }

    async fn update(&self, lease: &Lease, attrs: &LeaseAttrs, ttl: Duration) -> Result<Lease, RegistryError> {
        self.store.update(lease, attrs, ttl).await
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError> {
        self.store.renew(lease, ttl).await
    }

    async fn delete(&self, lease: &Lease) -> Result<(), RegistryError> {
        self.store.delete(lease).await
    }

    fn config_changes(&self) -> BoxStream<'static, ()> {
        self.store.configured.listen()
    }

    fn reconnect(&self) {
        self.store.cluster.moves.add();
    }

    fn watch(&self, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
        watch::watch(Arc::clone(&self.store), after)
    }
}
