//! A lease manager that remembers, so that a host can start without its registry.
//!
//! ```text
//!                 the inner manager answers            it does not, and there is a memory
//!  config,   ───▶ its answer                           what the file says
//!  acquire
//!  keep      ───▶ as it keeps                          ask again until it answers, then as it keeps; or lost
//!  watch     ───▶ as it watches, and what is           the remembered peers, `Recalled`, then as it watches, each
//!                 remembered but gone, as gone         told only if it is news
//! ```
//!
//! Cached peers that were learnt from another store are no peers, and are told as `Disowned` if they were told at
//! all: a host that was moved to another registry does not keep those of the first.
//!
//! What is known is written to the file when it changes, at most once a second, on another thread.

mod file;
mod keep;
mod watch;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use flannel_core::{
    Backoff, Damping, DampingOptions, KeepEvent, LastContact, Lease, LeaseAttrs, LeaseChange, LeaseManager,
    LeaseRequest, ManagerError, NetworkConfig, PeerEvent, PublicAddrs, RegistryError, StoreIdentity,
    SubnetKey, chain,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::Cache;
use file::CacheFile;
pub(crate) use file::read_cache;

/// A manager in front of another one, which keeps the last known state of the network in a file.
///
/// When the other manager cannot answer at the start, the answers come from the file, if it is about this network and
/// this host: the network carries traffic at once, and what is remembered is put right when the registry answers. A
/// file that is missing or cannot be used is no error.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use flannel_core::{LeaseAttrs, LeaseManager, LeaseRequest};
/// use flannel_registry::{CacheOptions, CachedLeaseManager, RegistryLeaseManager, MemoryRegistry};
/// use std::net::Ipv4Addr;
///
/// let registry = MemoryRegistry::new();
/// registry.set_config(r#"{"Network": "10.5.0.0/16"}"#);
/// let attrs = LeaseAttrs::new(Ipv4Addr::new(192, 168, 0, 1).into());
/// let path = std::env::temp_dir().join("cached-manager-example");
/// let options = CacheOptions::new(path, "/coreos.com/network", attrs.public);
/// let manager = CachedLeaseManager::open(RegistryLeaseManager::new(registry), options);
/// let config = manager.config().await?;
/// let lease = manager.acquire(LeaseRequest::new(&config, &attrs)).await?;
/// manager.release(&lease).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct CachedLeaseManager<M> {
    shared: Arc<Shared<M>>,
}

/// Where and how a [`CachedLeaseManager`] remembers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CacheOptions {
    /// The file. Nobody else writes it.
    pub path: PathBuf,
    /// What tells the network from others, such as its key in the registry. A file about another one is not used.
    pub network: String,
    /// The host's public addresses. A file of a host with others is not used.
    pub public: PublicAddrs,
    /// When it is doubted that many peers left at once; such peers stay in the file.
    pub damping: DampingOptions,
    /// The pauses between attempts to confirm a remembered lease.
    pub retry: Backoff,
}

impl CacheOptions {
    /// Takes what must be said and leaves the rest as most want it.
    pub fn new(path: impl Into<PathBuf>, network: impl Into<String>, public: PublicAddrs) -> Self {
        use std::time::Duration;
        Self {
            path: path.into(),
            network: network.into(),
            public,
            damping: DampingOptions::default(),
            retry: Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(30) },
        }
    }
}

#[derive(Debug)]
struct Shared<M> {
    inner: M,
    file: Arc<CacheFile>,
    retry: Backoff,
    state: Mutex<State>,
    /// The own lease or the configuration became another one.
    changed: Notify,
    /// The watch heard the registry.
    heard: Notify,
}

#[derive(Debug)]
struct State {
    /// What the file says, until the inner manager has given a lease.
    memory: Option<Cache>,
    /// The store that it was learnt from, until the one that is there now has told all peers.
    learnt_from: Option<StoreIdentity>,
    /// Why answers come from memory.
    silent: Option<String>,
    /// Whether the own lease was answered from memory and the registry has not been asked yet.
    unconfirmed: bool,
    config: Option<NetworkConfig>,
    own: Option<Lease>,
    /// The peers to remember.
    peers: Damping,
}

impl<M: LeaseManager> CachedLeaseManager<M> {
    /// Reads the file, and stands before `inner` from now on.
    pub fn open(inner: M, options: CacheOptions) -> Self {
        let CacheOptions { path, network, public, damping, retry } = options;
        let file = CacheFile::new(path, network);
        let memory = file.read(&public);
        let mut peers = Damping::new(damping);
        if let Some(memory) = &memory {
            let told = memory.peers.iter().cloned().map(LeaseChange::Put).collect();
            peers.filter(told, Instant::now().into_std());
        }
        let learnt_from = memory.as_ref().map(|memory| memory.store.clone());
        let state =
            State { memory, learnt_from, silent: None, unconfirmed: false, config: None, own: None, peers };
        let shared = Shared {
            inner,
            file: Arc::new(file),
            retry,
            state: Mutex::new(state),
            changed: Notify::new(),
            heard: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }
}

#[async_trait]
impl<M: LeaseManager> LeaseManager for CachedLeaseManager<M> {
    fn describe(&self) -> String {
        self.shared.inner.describe()
    }

    fn store(&self) -> StoreIdentity {
        self.shared.inner.store()
    }

    fn last_contact(&self) -> Option<LastContact> {
        self.shared.inner.last_contact()
    }

    /// Answers with the remembered configuration if the registry has none or a wrong one, too: one bad write shall not
    /// keep hosts from starting again.
    async fn config(&self) -> Result<NetworkConfig, ManagerError> {
        let answer = self.shared.inner.config().await;
        let mut state = self.shared.state();
        let config = match (answer, &state.memory) {
            (Ok(config), _) => config,
            (Err(error), Some(memory)) => {
                let (config, why) = (memory.config.clone(), chain(&error));
                tracing::warn!("Going on with the network config of the last run: {why}");
                if is_no_answer(&error) {
                    state.silent = Some(why);
                }
                config
            }
            (Err(error), None) => return Err(error),
        };
        // Another one that has no room for the subnet that is held is none to start with again: it takes a registry, too.
        if state.own.as_ref().is_none_or(|own| config.offers(&own.subnet))
            && state.config.as_ref() != Some(&config)
        {
            state.config = Some(config.clone());
            self.shared.changed.notify_one();
        }
        Ok(config)
    }

    fn config_changes(&self) -> BoxStream<'static, ()> {
        self.shared.inner.config_changes()
    }

    /// Answers with the remembered lease if the registry has none, too: so the host looks to its peers as it did.
    async fn recall(&self, public: PublicAddrs) -> Result<Option<Lease>, ManagerError> {
        if let Some(own) = self.shared.remembered(&public) {
            return Ok(Some(own));
        }
        let answer = self.shared.inner.recall(public).await;
        if let Err(error) = &answer {
            self.shared.note_silence(error);
            return self.shared.remembered(&public).map_or(answer, |own| Ok(Some(own)));
        }
        let held = |memory: &Cache| memory.own.is_held_by(&public).then(|| memory.own.clone());
        answer.map(|own| own.or_else(|| self.shared.state().memory.as_ref().and_then(held)))
    }

    async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError> {
        if let Some(own) = self.shared.reuse(&request) {
            return Ok(own);
        }
        match self.shared.acquire(request).await {
            Ok(own) => Ok(own),
            Err(error) => {
                self.shared.note_silence(&error);
                self.shared.reuse(&request).ok_or(error)
            }
        }
    }

    async fn publish(&self, own: &Lease, attrs: &LeaseAttrs) -> Result<Lease, ManagerError> {
        let own = self.shared.inner.publish(own, attrs).await?;
        self.shared.confirmed(&own);
        Ok(own)
    }

    fn reconnect(&self) {
        self.shared.inner.reconnect();
    }

    fn keep(&self, own: Lease) -> BoxStream<'static, KeepEvent> {
        if self.shared.state().unconfirmed {
            keep::stream(Arc::clone(&self.shared), own)
        } else {
            self.shared.inner.keep(own)
        }
    }

    fn watch(&self, own: SubnetKey) -> BoxStream<'static, PeerEvent> {
        watch::stream(Arc::clone(&self.shared), own).boxed()
    }

    /// Gives the lease back and forgets the network.
    async fn release(&self, own: &Lease) -> Result<(), ManagerError> {
        self.shared.state().memory = None;
        self.shared.file.remove();
        self.shared.inner.release(own).await
    }
}

impl<M: LeaseManager> Shared<M> {
    /// Asks the inner manager for a lease, if nothing else is wished the one that is remembered.
    async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError> {
        let remembered = self.state().memory.as_ref().map(|memory| memory.own.subnet);
        let previous = request.previous.or(remembered);
        let own = self.inner.acquire(request.with_previous(previous)).await?;
        self.state().config = Some(request.config.clone());
        self.confirmed(&own);
        Ok(own)
    }

    /// Takes in the registry's own word of what this host holds.
    fn confirmed(&self, own: &Lease) {
        let mut state = self.state();
        state.memory = None;
        state.silent = None;
        state.unconfirmed = false;
        state.own = Some(own.clone());
        self.changed.notify_one();
    }

    /// Tells whether the store that has answered is another one than the memory was learnt from. Asked once.
    fn has_moved(&self) -> bool {
        let store = self.inner.store();
        let Some(known) = self.state().learnt_from.take() else {
            return false;
        };
        let is_other = store.is_other_than(&known);
        if is_other {
            let addresses = known.addresses.join(", ");
            tracing::warn!(
                "The cache was learnt from another registry, at {addresses}: its peers are none here"
            );
        }
        is_other
    }

    /// Returns the remembered lease, if the registry is silent and the lease is that of this host.
    fn remembered(&self, public: &PublicAddrs) -> Option<Lease> {
        let state = self.state();
        state.silent.as_ref()?;
        let own = &state.memory.as_ref()?.own;
        own.is_held_by(public).then(|| own.clone())
    }

    /// Takes the remembered lease for good until the registry answers, if it can be had.
    fn reuse(&self, request: &LeaseRequest<'_>) -> Option<Lease> {
        let own = self.remembered(&request.attrs.public)?;
        if !request.config.offers(&own.subnet) {
            return None;
        }
        let own = Lease { attrs: request.attrs.clone(), ..own };
        let mut state = self.state();
        state.unconfirmed = true;
        state.config.get_or_insert_with(|| request.config.clone());
        state.own = Some(own.clone());
        Some(own)
    }

    /// Notes that the registry does not answer, if that is what the error says and there is a memory.
    fn note_silence(&self, error: &ManagerError) {
        let mut state = self.state();
        if is_no_answer(error) && state.memory.is_some() {
            state.silent = Some(chain(error));
        }
    }

    /// Returns the state. A panic cannot leave it half written, so poison means nothing.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells whether the registry did not say anything about the network.
fn is_no_answer(error: &ManagerError) -> bool {
    use RegistryError::{Refused, Unavailable, Unknown};
    matches!(error, ManagerError::Registry(Unavailable(..) | Refused(..) | Unknown(..)))
}
