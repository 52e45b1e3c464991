//! The handles of a running network.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use futures::Stream;
use futures::stream;
use tokio::sync::{broadcast, watch};

use crate::damping::Damping;
use crate::event::NetworkEvent;
use crate::lease::Lease;
use crate::manager::LeaseManager;
use crate::node::Node;
use crate::options::NetworkOptions;
use crate::running::{Ended, NetworkError, NotReady, Progress, Running, Shutdown};
use crate::state::NetworkState;
use crate::status::NetworkStatus;

/// A network in which this host takes part.
///
/// Several networks can share a process: each has its own manager, backend and interface. A network installs no logger,
/// spawns neither threads nor tasks, and never exits the process. It runs where its [`NetworkTask`] is awaited, inside a
/// tokio runtime with time enabled.
///
/// Clones are handles of the same network. When the last one is dropped, the network ends and keeps everything on the host.
/// [`shutdown`](Self::shutdown) ends it for all handles; the first call decides what remains.
///
/// A program follows [`running`](Self::running) for the parameters that containers need, polls
/// [`status`](Self::status) for health, and logs [`events`](Self::events):
///
/// ```
/// use flannel_core::{
///     BackendError, ExternalInterface, Network, NetworkConfig, NetworkOptions, OpenRequest, Shutdown, StaticLeaseManager,
/// };
/// # use flannel_core::Backend;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#)?;
/// let manager = StaticLeaseManager::new(config, "10.5.1.0/24".parse()?)?;
/// let backend = |_: OpenRequest<'_>| -> Result<Box<dyn Backend>, BackendError> {
///     Err(BackendError::Host("the kernel lacks VXLAN".to_owned()))
/// };
/// let external = ExternalInterface::new("eth0", 2, 1500, std::net::Ipv4Addr::new(192, 168, 64, 1));
/// let (network, task) = Network::new(NetworkOptions::new(manager, backend, external));
/// let task = tokio::spawn(task.run());
///
/// let running = network.running();
/// assert_eq!(network.ready().await.unwrap_err().to_string(), "the network failed: the kernel lacks VXLAN");
/// assert_eq!(*running.borrow(), None);
/// assert_eq!(network.status().ended.as_deref(), Some("the kernel lacks VXLAN"));
/// assert!(task.await?.is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Network {
    view: NetworkView,
    running: watch::Receiver<Option<Running>>,
    progress: watch::Receiver<Progress>,
    events: broadcast::Sender<NetworkEvent>,
    stop: watch::Sender<Option<Shutdown>>,
    reloads: watch::Sender<u64>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("view", &self.view).finish_non_exhaustive()
    }
}

impl Network {
    /// Creates a network. Nothing happens until the task runs.
    pub fn new(options: NetworkOptions) -> (Self, NetworkTask) {
        let (running_sender, running) = watch::channel(None);
        let (progress_sender, progress) = watch::channel(Progress::default());
        let (events, _) = broadcast::channel(options.event_backlog.max(1));
        let (stop, stopped) = watch::channel(None);
        let (reloads, reload_requests) = watch::channel(0);
        let (damping, now) = (Damping::new(options.damping), tokio::time::Instant::now().into_std());
        let state = NetworkState::new(options.external.clone(), damping, options.audit_every, now);
        let (manager, state) = (Arc::clone(&options.manager), Arc::new(RwLock::new(state)));
        let node = Node::new(
            options,
            running_sender,
            progress_sender,
            Arc::clone(&state),
            events.clone(),
            reload_requests,
        );
        let view = NetworkView { manager, state };
        (Self { view, running, progress, events, stop, reloads }, NetworkTask { node, stopped })
    }

    /// Waits until all peers are known, from the registry or a cache, and the host carries their traffic.
    ///
    /// To limit the wait, wrap it in a timeout and read the obstacle from
    /// [`NetworkStatus::waiting_for`](crate::NetworkStatus::waiting_for).
    ///
    /// # Errors
    ///
    /// [`NotReady`] if the network ended before it was ready.
    pub async fn ready(&self) -> Result<Running, NotReady> {
        let (mut running, mut progress) = (self.running.clone(), self.progress.clone());
        loop {
            if let Some(running) = running.borrow_and_update().clone() {
                return Ok(running);
            }
            if let Some(ended) = progress.borrow().ended.clone() {
                return Err(self.not_ready(ended));
            }
            // The task marks its end before it drops its senders.
            tokio::select! {
                _ = running.changed() => {}
                _ = progress.wait_for(|progress| progress.ended.is_some()) => {}
            }
        }
    }

    fn not_ready(&self, ended: Ended) -> NotReady {
        match ended {
            Ended::Failed(reason) => NotReady::Failed(reason),
            Ended::Shutdown | Ended::Dropped => {
                NotReady::Ended { reason: ended.to_string(), waiting_for: self.summary().waiting_for }
            }
        }
    }

    /// Follows the parameters of the network: `None` until it is ready, then the current lease, MTU and configuration. The
    /// receiver never misses the latest value. The channel closes when the network's task is gone.
    #[must_use]
    pub fn running(&self) -> watch::Receiver<Option<Running>> {
        self.running.clone()
    }

    /// Returns the host's lease: that of [`running`](Self::running), or before the network is ready the one that it
    /// acquired.
    #[must_use]
    pub fn lease(&self) -> Option<Lease> {
        let running = self.running.borrow().as_ref().map(|running| running.lease.clone());
        running.or_else(|| self.view.state().own.lease.clone())
    }

    /// Returns the status of the network with each peer; see [`NetworkView::status`].
    #[must_use]
    pub fn status(&self) -> NetworkStatus {
        self.view.status()
    }

    /// Returns the status without each peer; see [`NetworkView::summary`].
    #[must_use]
    pub fn summary(&self) -> NetworkStatus {
        self.view.summary()
    }

    /// Returns a read-only handle, which doesn't keep the network running.
    #[must_use]
    pub fn view(&self) -> NetworkView {
        self.view.clone()
    }

    /// Follows the events from now on. The stream ends with the network.
    pub fn events(&self) -> impl Stream<Item = NetworkEvent> + Send + Unpin + use<> {
        let receiver = self.events.subscribe();
        let progress = self.progress.clone();
        Box::pin(stream::unfold(receiver, move |mut receiver| {
            let mut progress = progress.clone();
            async move {
                let event = tokio::select! {
                    biased;
                    event = receiver.recv() => event,
                    _ = progress.wait_for(|progress| progress.ended.is_some()) => return None,
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

    /// Reads the configuration again and applies it if it changed, whether or not the network follows changes. The future
    /// completes when that is done; an event reports the result. A network that is starting reloads once it has its
    /// lease.
    pub fn reload(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut number = 0;
        self.reloads.send_modify(|reloads| {
            *reloads += 1;
            number = *reloads;
        });
        let mut progress = self.progress.clone();
        async move {
            // An error means that the task is gone.
            let _ = progress.wait_for(|now| now.reloaded >= number || now.ended.is_some()).await;
        }
    }

    /// Ends the network, and returns after the task has cleaned up.
    pub async fn shutdown(self, shutdown: Shutdown) {
        let mut progress = self.progress.clone();
        self.stop.send_if_modified(|stop| {
            let is_first = stop.is_none();
            stop.get_or_insert(shutdown);
            is_first
        });
        let _ = progress.wait_for(|progress| progress.ended.is_some()).await;
    }
}

/// A read-only handle of a [`Network`]. Usable from any thread; after the network ended it shows the last state.
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
    /// Returns the status of the network with each peer. Each call builds it: a few milliseconds and about 10 MB with
    /// 50,000 peers.
    #[must_use]
    pub fn status(&self) -> NetworkStatus {
        let names = self.manager.peer_names();
        let now = tokio::time::Instant::now().into_std();
        let state = self.state();
        let mut status = state.summary(&*self.manager, now);
        status.peers.each = Some(state.each_peer(names, now));
        status
    }

    /// Returns the status without each peer, at a cost that doesn't depend on their number.
    #[must_use]
    pub fn summary(&self) -> NetworkStatus {
        self.state().summary(&*self.manager, tokio::time::Instant::now().into_std())
    }

    fn state(&self) -> RwLockReadGuard<'_, NetworkState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The work of a [`Network`], awaited by its owner.
#[must_use = "a network does nothing until its task runs"]
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
    /// Runs the network until a handle shuts it down or the last handle is dropped.
    ///
    /// Once the network is ready it continues, whatever the registry or the kernel does.
    ///
    /// # Errors
    ///
    /// [`NetworkError`] if the network can't start, or if it couldn't remove everything that it should.
    pub async fn run(mut self) -> Result<(), NetworkError> {
        let stop = tokio::select! {
            biased;
            shutdown = self.stopped.wait_for(Option::is_some) => {
                Ok(shutdown.ok().and_then(|shutdown| *shutdown).unwrap_or(Shutdown::Keep))
            }
            failed = self.node.run() => Err(failed),
        };
        let result = match stop {
            Ok(Shutdown::Keep) => Ok(()),
            Ok(Shutdown::Remove) => self.node.remove().await,
            Err(Ok(never)) => match never {},
            Err(Err(error)) => Err(error),
        };
        self.node.end(match &result {
            Ok(()) => Ended::Shutdown,
            Err(error) => Ended::Failed(crate::chain(error)),
        });
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compiles only if a runtime with several threads can run the task.
    #[expect(dead_code, reason = "compiling it is the test")]
    fn the_task_is_send(task: NetworkTask) -> impl Send {
        task.run()
    }
}
