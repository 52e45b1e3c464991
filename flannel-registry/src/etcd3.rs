//! Leases in etcd's v3 store, which upstream flannel uses since v0.18.
//!
//! | module | contents |
//! |---|---|
//! | `options` | options of a registry |
//! | `store` | state shared by the clones of a registry |
//! | `keys` | keys and records of a network (pure) |
//! | `watch_notice` | watch responses, and the reaction to each (pure) |
//! | `call_error` | errors of calls |
//! | `http1` | detection of servers without HTTP/2 |
//! | `connection` | connections to members, with TLS and authentication |
//! | `cluster` | choice of a member for each call |
//! | `records` | reads and writes of records |
//! | `lease_id` | ids of etcd leases with a meaning (pure) |
//! | `release` | releases, distinguished from expiries |
//! | `copies` | records copied from the v2 store by a migration |
//! | `watch` | endless watch of the leases |
//! | `request_counters` | numbers of calls |

use std::sync::Arc;

mod call_error;
mod cluster;
mod connection;
#[cfg(feature = "etcd-v2")]
mod copies;
#[cfg(feature = "etcd-v2")]
mod http1;
mod keys;
mod lease_id;
mod options;
mod records;
mod release;
mod request_counters;
mod store;
mod watch;
mod watch_notice;

pub use options::{Etcd3Options, Etcd3OptionsError};
pub use request_counters::Etcd3Calls;
use store::Store;

/// A registry in etcd 3.4 or later. Clones share their connections.
///
/// The registry connects at the first call and reconnects automatically, so etcd may start after its clients, stop and
/// come back. Connections belong to the tokio runtime of the first call.
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

impl Etcd3Registry {
    /// Creates a registry without connecting.
    ///
    /// # Errors
    ///
    /// Returns [`Etcd3OptionsError`] if an option is invalid.
    pub fn new(options: Etcd3Options) -> Result<Self, Etcd3OptionsError> {
        let store = Store::new(&options)?;
        Ok(Self { store: Arc::new(store) })
    }

    /// Reports whether all endpoints speak only HTTP/1, like `etcd --proxy on`, so that none serves the v3 interface.
    #[cfg(feature = "etcd-v2")]
    pub(crate) async fn is_not_served(&self) -> bool {
        let urls = self.store.cluster.endpoints.urls();
        futures::future::join_all(urls.iter().map(|url| http1::is_http1_only(url)))
            .await
            .into_iter()
            .all(|is| is)
    }

    /// Returns the numbers of calls so far.
    #[must_use]
    pub fn calls(&self) -> Etcd3Calls {
        self.store.cluster.counters.read()
    }
}
