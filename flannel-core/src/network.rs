//! The handle of a running network.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use futures::Stream;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::{broadcast, watch};

use crate::backend::{BackendError, OpenBackend};
use crate::event::NetworkEvent;
use crate::external::{ExternalChoice, ExternalInterface, ExternalUpdate};
use crate::family::IpFamilies;
use crate::manager::{LeaseManager, ManagerError};
use crate::node::Node;
use crate::state::NetworkState;
use crate::status::NetworkStatus;
use crate::{Backoff, Damping, DampingOptions, Lease, NetworkConfig, SubnetKey};

/// What a network is made of.
#[non_exhaustive]
pub struct NetworkOptions {
    /// Where the lease and the peers come from.
    pub manager: Arc<dyn LeaseManager>,
    /// What carries the traffic.
    pub backend: Box<dyn OpenBackend>,
    /// The interface through which the hosts reach each other.
    pub external: ExternalInterface,
    /// Chooses that interface again when the configuration is known, which says of which families it needs an address.
    pub choose_external: Option<ChooseExternal>,
    /// The changes of that interface, which the lease and the host follow. `choose_external` replaces this stream.
    pub external_changes: BoxStream<'static, ExternalUpdate>,
    /// Whether a configuration that became another one is taken in as soon as the registry tells of it. If not, that
    /// waits until [`Network::reload`] is called.
    pub follow_config: bool,
    /// A directory for what the backend keeps across restarts; see [`OpenRequest::state_dir`](crate::OpenRequest).
    pub state_dir: Option<PathBuf>,
    /// The subnet this host had before, if that is remembered.
    pub previous: Option<SubnetKey>,
    /// The pauses between attempts while starting, and while a lost lease is asked for again.
    pub retry: Backoff,
    /// How often everything is compared with the kernel, whether or not a change was noticed.
    pub audit_every: Duration,
    /// When and for how long it is doubted that many peers left at once.
    pub damping: DampingOptions,
    /// How many events a slow receiver may be behind before it misses the oldest. Each costs some 200 bytes of memory,
    /// used or not.
    pub event_backlog: usize,
    /// Fixes the random choices, for tests that shall run the same way each time.
    pub seed: Option<u64>,
}

/// Chooses the external interface of a network that is configured so and needs an address of these families, or says in
/// one line why there is none.
pub type ChooseExternal =
    Box<dyn FnOnce(&NetworkConfig, IpFamilies) -> Result<ExternalChoice, String> + Send>;

impl NetworkOptions {
    /// Takes what every network needs and leaves the rest as most want it.
    pub fn new(
        manager: impl LeaseManager,
        backend: impl OpenBackend + 'static,
        external: ExternalInterface,
    ) -> Self {
        Self {
            manager: Arc::new(manager),
            backend: Box::new(backend),
            external,
            choose_external: None,
            external_changes: stream::pending().boxed(),
            follow_config: true,
            state_dir: None,
            previous: None,
            // A first second, as flannel waits for its configuration; a longest wait that a person fixing the
            // registry does not mind.
            retry: Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(30) },
            audit_every: Duration::from_secs(60),
            damping: DampingOptions::default(),
            event_backlog: 4096,
            seed: None,
        }
    }
}

impl std::fmt::Debug for NetworkOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetworkOptions")
            .field("manager", &self.manager.describe())
            .field("external", &self.external)
            .finish_non_exhaustive()
    }
}

/// A network that this host takes part in.
///
/// Several can live in one process: each has its own manager, backend and interface, and shares nothing. A network
/// installs no logger, starts no thread and no runtime, and never ends the process; it runs where its
/// [`NetworkTask`] is awaited, inside a tokio runtime with time enabled.
pub struct Network {
    view: NetworkView,
    shared: watch::Receiver<Shared>,
    events: broadcast::Sender<NetworkEvent>,
    stop: watch::Sender<Option<Shutdown>>,
    reloads: watch::Sender<u64>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("view", &self.view).finish_non_exhaustive()
    }
}

/// What others wait for.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) running: Option<Running>,
    /// How many of the reloads that were asked for are done.
    pub(crate) reloaded: u64,
    pub(crate) done: bool,
}

/// A network that carries traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Running {
    /// The host's lease.
    pub lease: Lease,
    /// The largest packet, in bytes, that a container may send.
    pub mtu: u32,
    /// The network's configuration.
    pub config: Arc<NetworkConfig>,
}

/// What becomes of the host when a network ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shutdown {
    /// Device, routes and lease stay: traffic goes on, and the next start finds everything in place.
    Keep,
    /// Everything is removed and the lease is given back.
    Remove,
}

impl Network {
    /// Puts a network together. Nothing happens until the task is run.
    #[must_use]
    pub fn new(options: NetworkOptions) -> (Self, NetworkTask) {
        let (shared_in, shared) = watch::channel(Shared::default());
        let (events, _) = broadcast::channel(options.event_backlog.max(1));
        let (stop, stopped) = watch::channel(None);
        let (damping, now) = (Damping::new(options.damping), tokio::time::Instant::now().into_std());
        let state = NetworkState::new(options.external.clone(), damping, options.audit_every, now);
        let (manager, state) = (Arc::clone(&options.manager), Arc::new(RwLock::new(state)));
        let (reloads, to_reload) = watch::channel(0);
        let node = Node::new(options, shared_in, Arc::clone(&state), events.clone(), to_reload);
        let view = NetworkView { manager, state };
        (Self { view, shared, events, stop, reloads }, NetworkTask { node, stopped })
    }

    /// Waits until all peers are known, or remembered, and the host carries their traffic; `None` if the network ended before.
    pub async fn ready(&self) -> Option<Running> {
        let mut shared = self.shared.clone();
        // An error means that the task is gone; the state it left tells whether it was ready.
        let _ = shared.wait_for(|shared| shared.running.is_some() || shared.done).await;
        shared.borrow().running.clone()
    }

    /// Returns the host's lease, once there is one.
    #[must_use]
    pub fn lease(&self) -> Option<Lease> {
        self.view.state().own.lease.clone()
    }

    /// Returns the state of the network, with all peers one by one; see [`NetworkView::status`].
    #[must_use]
    pub fn status(&self) -> NetworkStatus {
        self.view.status()
    }

    /// Returns the same without the peers one by one; see [`NetworkView::summary`].
    #[must_use]
    pub fn summary(&self) -> NetworkStatus {
        self.view.summary()
    }

    /// Returns a way to look at the network, for whoever shows it and shall not be able to end it.
    #[must_use]
    pub fn view(&self) -> NetworkView {
        self.view.clone()
    }

    /// Follows what happens from now on. The stream ends with the network.
    pub fn events(&self) -> impl Stream<Item = NetworkEvent> + Send + Unpin + use<> {
        let receiver = self.events.subscribe();
        let done = self.shared.clone();
        Box::pin(stream::unfold(receiver, move |mut receiver| {
            let mut done = done.clone();
            async move {
                let event = tokio::select! {
                    biased;
                    event = receiver.recv() => event,
                    _ = done.wait_for(|shared| shared.done) => return None,
                };
                match event {
                    Ok(event) => Some((event, receiver)),
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        Some((NetworkEvent::Missed(missed), receiver))
                    }
                    Err(broadcast::error::RecvError::Closed) => None,
                }
            }
        }))
    }

    /// Reads the configuration again and takes it in if it is another one, whether or not changes are followed. Waits
    /// until that is done; what came of it is told as an event. A network that is still starting does so as soon as it
    /// has its lease.
    pub fn reload(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut number = 0;
        self.reloads.send_modify(|reloads| {
            *reloads += 1;
            number = *reloads;
        });
        let mut shared = self.shared.clone();
        async move {
            // An error means that the task is gone.
            let _ = shared.wait_for(|shared| shared.reloaded >= number || shared.done).await;
        }
    }

    /// Ends the network: the task returns when it has cleaned up as asked.
    ///
    /// To drop the handle instead ends the network too, and keeps everything.
    pub async fn shutdown(self, shutdown: Shutdown) {
        let mut shared = self.shared.clone();
        self.stop.send_replace(Some(shutdown));
        let _ = shared.wait_for(|shared| shared.done).await;
    }
}

/// Looks at a [`Network`], from any thread and for as long as it is wanted: after the network ended it shows its last
/// state.
#[derive(Clone)]
pub struct NetworkView {
    manager: Arc<dyn LeaseManager>,
    state: Arc<RwLock<NetworkState>>,
}

impl std::fmt::Debug for NetworkView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetworkView").field("manager", &self.manager.describe()).finish_non_exhaustive()
    }
}

impl NetworkView {
    /// Returns the state of the network, with all peers one by one. It is put together for this call: a few
    /// milliseconds and some 10 MB with 50,000 peers, and nothing if nobody asks.
    #[must_use]
    pub fn status(&self) -> NetworkStatus {
        self.look(true)
    }

    /// Returns the same without the peers one by one, which costs next to nothing however many there are.
    #[must_use]
    pub fn summary(&self) -> NetworkStatus {
        self.look(false)
    }

    fn look(&self, with_peers: bool) -> NetworkStatus {
        let now = tokio::time::Instant::now().into_std();
        let state = self.state();
        let mut status = state.summary(&*self.manager, now);
        status.traffic = state.traffic.as_ref().map(|traffic| traffic.total());
        status.peers.each = with_peers.then(|| state.each_peer(now));
        status
    }

    fn state(&self) -> RwLockReadGuard<'_, NetworkState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The work of a [`Network`], to be awaited by whoever owns it.
pub struct NetworkTask {
    node: Node,
    stopped: watch::Receiver<Option<Shutdown>>,
}

impl std::fmt::Debug for NetworkTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetworkTask").finish_non_exhaustive()
    }
}

impl NetworkTask {
    /// Runs the network until its handle asks it to end or is dropped.
    ///
    /// Once the network is ready it does not end by itself, whatever the registry or the kernel does.
    ///
    /// # Errors
    ///
    /// [`NetworkError`] if the network cannot start, or if something was left behind that should have been removed.
    pub async fn run(mut self) -> Result<(), NetworkError> {
        let asked = tokio::select! {
            biased;
            shutdown = self.stopped.wait_for(Option::is_some) => {
                Ok(shutdown.ok().and_then(|shutdown| *shutdown).unwrap_or(Shutdown::Keep))
            }
            ended = self.node.live() => Err(ended),
        };
        let result = match asked {
            Ok(Shutdown::Keep) => Ok(()),
            Ok(Shutdown::Remove) => self.node.remove().await,
            Err(Ok(never)) => match never {},
            Err(Err(error)) => Err(error),
        };
        self.node.done();
        result
    }
}

/// Why a network ended by itself, or could not be removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The backend cannot work on this host or with this configuration.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// No interface has what the configuration asks for: see [`NetworkOptions::choose_external`].
    #[error("{0}")]
    External(String),
    /// There is no lease to be had.
    #[error("failed to acquire lease")]
    Lease(#[source] ManagerError),
    /// Everything on the host was removed, but the lease was not given back; it ends by itself.
    #[error("failed to give the lease back")]
    Release(#[source] ManagerError),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compiles only if the work of a network may be given to a runtime with many threads.
    #[expect(dead_code, reason = "it is proven by compiling")]
    fn a_task_may_run_on_any_thread(task: NetworkTask) -> impl Send {
        task.run()
    }
}
