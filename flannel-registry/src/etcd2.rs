//! Leases in etcd's v2 store, which upstream flannel uses up to v0.17.
//!
//! | module | contents |
//! |---|---|
//! | `options` | options of a registry |
//! | `store` | state shared by the clones of a registry |
//! | `response` | responses of the interface (pure) |
//! | `keys` | keys and records of a network (pure) |
//! | `revisions` | revisions that stay the same across renewals (pure) |
//! | `tls` | TLS configs of connections |
//! | `connection` | HTTP connections |
//! | `poll_reply` | replies to long polls |
//! | `member` | requests to one member |
//! | `cluster` | choice of a member for each request |
//! | `records` | reads and writes of records |
//! | `watch` | endless watch of the leases |
//! | `request_counters` | numbers of requests |

use std::sync::Arc;

mod cluster;
mod connection;
mod keys;
mod member;
mod options;
mod poll_reply;
mod records;
mod request_counters;
mod response;
mod revisions;
mod store;
mod tls;
mod watch;

#[cfg(feature = "etcd-v3")]
pub(crate) use member::NOT_SERVED;
pub use options::{Etcd2Options, Etcd2OptionsError};
pub use request_counters::Etcd2Calls;
use store::Store;

/// A registry in the v2 store of etcd 2.3 to 3.5; etcd 3.4 and 3.5 serve it only with `--enable-v2=true`.
///
/// The v2 and v3 interfaces have separate stores, even on one server: hosts that use different interfaces never see each
/// other.
///
/// Clones share their knowledge of revisions. The registry connects at the first call and runs nothing in the background,
/// so etcd may start after its clients, stop and come back.
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

impl Etcd2Registry {
    /// Creates a registry without connecting.
    ///
    /// # Errors
    ///
    /// Returns [`Etcd2OptionsError`] if an option is invalid.
    pub fn new(options: Etcd2Options) -> Result<Self, Etcd2OptionsError> {
        let store = Store::new(&options)?;
        Ok(Self { store: Arc::new(store) })
    }

    /// Returns the numbers of requests so far.
    #[must_use]
    pub fn calls(&self) -> Etcd2Calls {
        self.store.cluster.counters.read()
    }
}
