//! Leases in etcd, over its v3 interface, where flannel v0.18 and later keep them.
//!
//! | part | what it does |
//! |---|---|
//! | `keys` | names the keys and reads what is under them (pure) |
//! | `position` | decides what follows from what etcd says to a watch (pure) |
//! | `cluster` | finds a member that answers |
//! | `records` | reads and writes records |
//! | `watch` | follows them, for ever |
//! | `calls` | counts what that costs |

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{
    Lease, LeaseAttrs, RegistryError, RegistryEvent, Revision, Snapshot, SubnetKey, SubnetRegistry,
};
use futures::stream::BoxStream;

mod calls;
mod cluster;
mod keys;
mod position;
mod records;
mod watch;

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
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Etcd3Options {
    /// The members of the cluster, as `http://ADDRESS:PORT`; without a scheme it is `http`. A member that does not
    /// answer is replaced by the next.
    pub endpoints: Vec<String>,
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
}

impl Default for Etcd3Options {
    /// One etcd on this host, and flannel's usual prefix.
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:2379".to_owned()],
            prefix: "/coreos.com/network".to_owned(),
            timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            silence: Duration::from_secs(30),
            // A page stays below 1 MB, and a network of usual size is one page.
            page_size: 5000,
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
}

/// What all clones of a registry share.
#[derive(Debug)]
struct Store {
    cluster: Cluster,
    keys: Keys,
    page_size: u32,
    silence: Duration,
}

impl Store {
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
            page_size: options.page_size,
            silence: options.silence,
        };
        Ok(Self { store: Arc::new(store) })
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

    fn watch(&self, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
        watch::watch(Arc::clone(&self.store), after)
    }
}
