//! Leases in etcd, over its v2 interface, where flannel up to v0.17 keeps them.
//!
//! | part | what it does |
//! |---|---|
//! | `answer` | reads what etcd says (pure) |
//! | `keys` | names the keys and reads what is under them (pure) |
//! | `revisions` | tells a renewal from a change (pure) |
//! | `tls` | what a connection over TLS is made with |
//! | `connection` | one HTTP connection |
//! | `member` | one request to one member |
//! | `cluster` | finds a member that answers |
//! | `records` | reads and writes records |
//! | `watch` | follows them, for ever |
//! | `calls` | counts what that costs |

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
#[cfg(feature = "etcd-v3")]
use flannel_core::BadRecord;
use flannel_core::{
    LastContact, Lease, LeaseAttrs, RegistryError, RegistryEvent, Revision, Snapshot, StoreIdentity,
    SubnetKey, SubnetRegistry,
};
use futures::stream::BoxStream;
use tokio::sync::OnceCell;

mod answer;
mod calls;
mod cluster;
mod connection;
mod keys;
mod member;
mod records;
mod revisions;
mod tls;
mod watch;

use crate::etcd::{ConfigRead, LastCluster};
#[cfg(feature = "etcd-v3")]
use crate::migration::Original;
use crate::news::News;
pub use calls::Etcd2Calls;
use cluster::Cluster;
use keys::Keys;
use revisions::Revisions;

/// A registry in etcd 2.3 to 3.5, over the v2 interface, which etcd 3.4 and 3.5 serve with `--enable-v2=true`.
///
/// What is kept over the v2 interface and what is kept over v3 are two stores, also on one server: hosts that use
/// different interfaces never see each other.
///
/// Clones share what they know of the leases. Nothing is connected before the first call, and nothing runs by itself;
/// so etcd may come later than its users, go, and come back.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use flannel_core::SubnetRegistry;
/// use flannel_registry::{Etcd2Options, Etcd2Registry};
///
/// let mut options = Etcd2Options::default();
/// options.endpoints = vec!["http://10.0.0.1:2379".into(), "http://10.0.0.2:2379".into()];
/// let registry = Etcd2Registry::new(options)?;
/// println!("{:?}", registry.config().await?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Etcd2Registry {
    store: Arc<Store>,
}

/// How to reach a network in etcd.
#[derive(Clone)]
#[non_exhaustive]
pub struct Etcd2Options {
    /// The members of the cluster, as `http://ADDRESS:PORT` or `https://ADDRESS:PORT`; without a scheme it is `http`.
    /// A member that does not answer is replaced by the next.
    pub endpoints: Vec<String>,
    /// What all keys of the network begin with.
    pub prefix: String,
    /// How long a member may take to answer one request, once it is connected.
    pub timeout: Duration,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long a watch may hear nothing before it asks anew.
    pub silence: Duration,
    /// The certificates that an `https` member's must be signed by, in PEM form; without it, those that the system
    /// trusts.
    pub ca_file: Option<PathBuf>,
    /// The certificate to show to `https` members, in PEM form. Read for each connection, as all these files are.
    pub cert_file: Option<PathBuf>,
    /// The key of that certificate, in PEM form.
    pub key_file: Option<PathBuf>,
    /// The user to name, if etcd asks for one.
    pub user: Option<String>,
    /// The user's password.
    pub password: String,
}

impl Default for Etcd2Options {
    /// One etcd on this host, and flannel's usual prefix.
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
    /// Shows all but the password.
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

/// Why options make no registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Etcd2OptionsError {
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
    /// A file cannot be used; correct it.
    #[error("{0}")]
    Tls(String),
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
    silence: Duration,
    revisions: Mutex<Revisions>,
    /// The version of etcd, once it is known.
    version: OnceCell<(u32, u32)>,
}

impl Store {
    fn identity(&self) -> StoreIdentity {
        StoreIdentity::new(self.last.id(), self.cluster.addresses())
    }

    fn describe(&self) -> String {
        format!("etcd v2 at {}", self.cluster.describe())
    }

    fn revisions(&self) -> MutexGuard<'_, Revisions> {
        // Each change of it is complete in itself.
        self.revisions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Etcd2Registry {
    /// Makes a registry. Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// [`Etcd2OptionsError`] says which option is wrong.
    pub fn new(options: Etcd2Options) -> Result<Self, Etcd2OptionsError> {
        let store = Store {
            cluster: Cluster::new(&options)?,
            keys: Keys::below(&options.prefix),
            last: LastCluster::default(),
            config_read: ConfigRead::default(),
            configured: News::default(),
            silence: options.silence,
            revisions: Mutex::default(),
            version: OnceCell::new(),
        };
        Ok(Self { store: Arc::new(store) })
    }

    /// Asks what time it is at etcd, to the second, and answers with the URL of the member that told it. Any etcd that
    /// speaks HTTP does, also one that does not serve the v2 interface. The time is missing if something between took it
    /// away.
    ///
    /// # Errors
    ///
    /// [`RegistryError`] if no member answers.
    pub async fn server_time(&self) -> Result<(Option<SystemTime>, String), RegistryError> {
        self.store.date().await
    }

    /// Tells whether this etcd has the v3 interface beside this one.
    #[cfg(feature = "etcd-v3")]
    pub(crate) async fn has_v3(&self) -> Result<bool, RegistryError> {
        Ok(self.store.version().await? >= (3, 0))
    }

    /// Reads all records as they are written, and how long each lasts.
    #[cfg(feature = "etcd-v3")]
    pub(crate) async fn originals(&self) -> Result<(Vec<Original>, Vec<BadRecord>), RegistryError> {
        self.store.originals().await.map_err(|failure| self.store.unwritten(failure))
    }

    /// Tells how many requests were made so far.
    #[must_use]
    pub fn calls(&self) -> Etcd2Calls {
        self.store.cluster.counters.read()
    }
}

#[async_trait]
impl SubnetRegistry for Etcd2Registry {
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
        let key = self.store.keys.config();
        format!(
            r#"ETCDCTL_API=2 etcdctl set {key} '{{"Network":"10.5.0.0/16","Backend":{{"Type":"vxlan"}}}}'"#
        )
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
