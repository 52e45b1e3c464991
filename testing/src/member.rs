//! A network on a thread of its own, with a runtime like the daemon's.

use flannel_core::{Lease, Network, NetworkError, NetworkOptions, NetworkStatus, Shutdown, chain};
use std::io;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

use crate::{DeadlineExceeded, eventually};

/// A running network. Dropping it stops the network without cleaning up the kernel or the registry, as a crash does.
#[derive(Debug)]
pub struct Member {
    network: Option<Network>,
    abandon: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), NetworkError>>>,
}

impl Member {
    /// Starts a network on a new thread with a runtime of its own, as the daemon does.
    ///
    /// # Errors
    /// Fails if the thread or its runtime cannot be created.
    pub fn start(options: NetworkOptions) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (network, task) = Network::new(options);
        let (abandon, abandoned) = oneshot::channel();
        let running = async {
            tokio::select! {
                biased;
                _ = abandoned => Ok(()),
                ended = task.run() => ended,
            }
        };
        let work = move || runtime.block_on(running);
        let thread = std::thread::Builder::new().name("network".to_owned()).spawn(work)?;
        Ok(Self { network: Some(network), abandon: Some(abandon), thread: Some(thread) })
    }

    /// Returns the status of the network.
    #[must_use]
    pub fn status(&self) -> NetworkStatus {
        self.network.as_ref().map(Network::status).unwrap_or_default()
    }

    /// Returns the status of the network without the individual peers.
    #[must_use]
    pub fn summary(&self) -> NetworkStatus {
        self.network.as_ref().map(Network::summary).unwrap_or_default()
    }

    /// Returns the network's lease once there is one.
    #[must_use]
    pub fn lease(&self) -> Option<Lease> {
        self.network.as_ref().and_then(Network::lease)
    }

    /// Waits until the host carries traffic to this many peers.
    ///
    /// # Errors
    /// Contains the status after the limit.
    pub fn wait_for_peers(&self, peers: usize, limit: Duration) -> Result<(), DeadlineExceeded> {
        eventually(limit, || {
            let status = self.summary();
            if status.ready && status.peers.programmed == peers { Ok(()) } else { Err(format!("{status:?}")) }
        })
    }

    /// Shuts down the network, and keeps or removes what it created.
    ///
    /// # Errors
    /// Contains the network's error as text.
    pub fn stop(mut self, shutdown: Shutdown) -> Result<(), String> {
        if let Some(network) = self.network.take() {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            runtime.map_err(|error| error.to_string())?.block_on(network.shutdown(shutdown));
        }
        self.join()
    }

    fn join(&mut self) -> Result<(), String> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Ok(()))) | None => Ok(()),
            Some(Ok(Err(error))) => Err(chain(&error)),
            Some(Err(_)) => Err("the thread of the network panicked".to_owned()),
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // Dropping the handle instead would shut the network down.
        if let Some(abandon) = self.abandon.take() {
            let _ = abandon.send(());
        }
        if let Err(error) = self.join() {
            tracing::warn!(%error, "network ended with an error");
        }
    }
}
