//! A network with everything around it that a host needs.

use std::convert::Infallible;
use std::path::PathBuf;

use flannel_core::{
    Lease, Network, NetworkError, NetworkOptions, NetworkTask, NetworkView, Running, Shutdown, Term, chain,
};
use flannel_firewall::{
    BlackholeRoutes, Firewall, FirewallNetwork, FirewallOptions, FirewallStatus, OverlayPrefixes,
};
use flannel_netlink::Namespace;
use futures::future;
use futures::stream::{self, Stream, StreamExt as _};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::backends::BackendRegistry;
#[cfg(feature = "probes")]
use crate::probe::{Mesh, MeshOptions};
#[cfg(feature = "server")]
use crate::server::{self, ObserveOptions};
use crate::service_manager::{Notifier, log_failure, report_status};
use crate::status::{AgentState, StatusSource};
use crate::subnet_file::SubnetFile;
use crate::text::subnets;

mod reload;

use reload::ReloadState;

/// What a [`NodeAgent`] does beside running the network. By default, nothing.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct AgentOptions {
    /// The file that tells container runtimes the subnet of this host.
    pub subnet_file: Option<PathBuf>,
    /// The firewall rules to keep.
    pub firewall: Option<FirewallOptions>,
    /// The networks of an earlier run, whose firewall rules are removed.
    pub previous: Vec<OverlayPrefixes>,
    /// Whether to keep a blackhole route for the host's own subnet.
    pub blackhole_route: bool,
    /// Where to serve health, metrics and status.
    #[cfg(feature = "server")]
    pub observe: ObserveOptions,
    /// How to probe the other hosts in the background.
    #[cfg(feature = "probes")]
    pub mesh: Option<MeshOptions>,
    /// The service manager to notify.
    pub service_manager: Notifier,
    /// Whether the end of the agent removes the network from this host and releases its lease.
    pub release_on_exit: bool,
}

/// A command to a running [`NodeAgent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AgentCommand {
    /// Reads the network configuration again.
    Reload,
    /// Ends the agent.
    Shutdown,
}

/// Runs a network on this host with everything around it: once the network carries traffic, the agent writes the firewall
/// rules, then the subnet file, and then notifies the service manager; whenever the network changes, it does so again.
///
/// The [crate's documentation](crate) has an example.
#[derive(Debug)]
pub struct NodeAgent {
    network: Network,
    task: NetworkTask,
    host: Host,
    applied: watch::Sender<Option<Running>>,
}

/// What the agent does to the host beside the network.
#[derive(Clone, Debug)]
struct Host {
    namespace: Namespace,
    backends: BackendRegistry,
    options: AgentOptions,
    state: AgentState,
}

impl NodeAgent {
    /// Puts an agent together. `backends` is the registry that `network` opens its backend from. Nothing happens until the
    /// agent runs.
    #[must_use]
    pub fn new(
        namespace: Namespace,
        network: NetworkOptions,
        backends: BackendRegistry,
        options: AgentOptions,
    ) -> Self {
        let (network, task) = Network::new(network);
        let host = Host { namespace, backends, options, state: AgentState::default() };
        Self { network, task, host, applied: watch::Sender::new(None) }
    }

    /// Returns the network, for its events and its status.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Returns the status of the network and of the agent.
    #[must_use]
    pub fn status_source(&self) -> StatusSource {
        let source = StatusSource::new(self.network.view(), self.host.state.clone());
        match &self.host.options.subnet_file {
            Some(path) => source.with_subnet_file(path),
            None => source,
        }
    }

    /// Follows the running state for which firewall rules and subnet file are in place, or were tried.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<Option<Running>> {
        self.applied.subscribe()
    }

    /// Runs the agent until `shutdown` is ready.
    ///
    /// # Errors
    ///
    /// [`NetworkError`], like [`run`](Self::run).
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), NetworkError> {
        self.run(stream::once(shutdown).map(|()| AgentCommand::Shutdown)).await
    }

    /// Runs the agent until a command ends it.
    ///
    /// # Errors
    ///
    /// [`NetworkError`] if the network cannot start, or if something was left behind that should have been removed.
    pub async fn run(self, commands: impl Stream<Item = AgentCommand>) -> Result<(), NetworkError> {
        let source = self.status_source();
        let Self { network, task, host, applied } = self;
        let running = network.running();
        let notifier = &host.options.service_manager;
        let work = task.run();
        let upkeep = host.keep(running.clone(), &applied);
        let serving = host.serve(source.clone());
        let reporting = report_status(notifier, source);
        let probing = host.probe(network.view());
        tokio::pin!(work, upkeep, serving, reporting, probing, commands);
        let (mut changes, mut running_changes) = (applied.subscribe(), running.clone());
        let mut reload = ReloadState::default();
        let ended = loop {
            reload.notify(notifier, &running.borrow(), &applied.borrow());
            tokio::select! {
                biased;
                command = commands.next() => match command {
                    Some(AgentCommand::Reload) => reload.start(network.reload()),
                    Some(AgentCommand::Shutdown) | None => break None,
                },
                ended = &mut work => break Some(ended),
                Ok(()) = running_changes.changed() => {}
                Ok(()) = changes.changed() => {}
                () = reload.finished() => {}
                never = &mut upkeep => match never {},
                never = &mut serving => match never {},
                never = &mut reporting => match never {},
                never = &mut probing => match never {},
            }
        };
        match ended {
            Some(ended) => ended,
            None => {
                let running = running.borrow().clone();
                host.stop(network, work, running).await
            }
        }
    }
}

impl Host {
    /// Keeps firewall, routes and subnet file as the running network needs them, and publishes each running state once
    /// they are.
    async fn keep(
        &self,
        mut running: watch::Receiver<Option<Running>>,
        applied: &watch::Sender<Option<Running>>,
    ) -> Infallible {
        let mut peers = self.backends.peer_addresses();
        let networks = watch::Sender::new(None);
        let routes = self.keep_routes(networks.subscribe());
        tokio::pin!(routes);
        let mut firewall = self.options.firewall.as_ref().map(|options| {
            Firewall::new(self.namespace.clone(), options.clone()).with_previous(&self.options.previous)
        });
        loop {
            let current = running.borrow_and_update().clone();
            if let Some(current) = current {
                let network = self.firewall_network(&current);
                if let Some(firewall) = &mut firewall {
                    firewall.set_network(network.clone());
                    firewall.set_peers(peers.borrow_and_update().clone());
                    self.reconcile(firewall).await;
                }
                networks.send_replace(Some(network));
                self.write_subnet_file(&current);
                applied.send_replace(Some(current));
            }
            loop {
                tokio::select! {
                    biased;
                    changed = running.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return future::pending().await,
                    },
                    Ok(()) = peers.changed() => {
                        let peers = peers.borrow_and_update().clone();
                        firewall.iter_mut().for_each(|firewall| firewall.set_peers(peers.clone()));
                    }
                    Some(firewall) = wait(&mut firewall) => self.reconcile(firewall).await,
                    never = &mut routes => match never {},
                }
            }
        }
    }

    async fn reconcile(&self, firewall: &mut Firewall) {
        firewall.reconcile().await;
        let status: &FirewallStatus = firewall.status();
        self.state.set_firewall(status.clone());
    }

    async fn keep_routes(&self, networks: watch::Receiver<Option<FirewallNetwork>>) -> Infallible {
        let audit_interval = self.options.firewall.as_ref().map(|options| options.audit_interval);
        let audit_interval = audit_interval.unwrap_or(BLACKHOLE_AUDIT_INTERVAL);
        BlackholeRoutes::new(self.namespace.clone(), audit_interval)
            .with_enabled(self.options.blackhole_route)
            .with_previous(&self.options.previous)
            .run(networks)
            .await
    }

    fn firewall_network(&self, running: &Running) -> FirewallNetwork {
        let ports = self.backends.restrictable_ports(&running.config);
        FirewallNetwork::new(&running.config, &running.lease.subnet, ports)
    }

    fn subnet_file(&self) -> Option<SubnetFile> {
        let masquerade = self.options.firewall.as_ref().is_some_and(|firewall| firewall.rules.masquerade);
        let path = self.options.subnet_file.as_ref()?;
        Some(SubnetFile::new(path).with_masquerade(masquerade))
    }

    /// Writes the subnet file. A host without it still carries traffic, so a failure is only reported.
    fn write_subnet_file(&self, running: &Running) {
        let Some(file) = self.subnet_file() else {
            self.state.set_subnet_file(Ok(()));
            return;
        };
        let written = file.write(running).map_err(|error| chain(&error));
        match &written {
            Ok(()) => info!("Wrote subnet file to {}", file.path().display()),
            Err(error) => warn!("Failed to write subnet file: {error}"),
        }
        self.state.set_subnet_file(written);
    }

    async fn serve(&self, source: StatusSource) -> Infallible {
        #[cfg(feature = "server")]
        server::serve(&self.options.observe, source).await;
        #[cfg(not(feature = "server"))]
        drop(source);
        future::pending().await
    }

    async fn probe(&self, network: NetworkView) -> Infallible {
        #[cfg(feature = "probes")]
        if let Some(mesh) = self.options.mesh {
            let mesh = Mesh::new(mesh, network, self.backends.clone());
            self.state.set_mesh(mesh.results());
            mesh.run().await;
        }
        #[cfg(not(feature = "probes"))]
        drop(network);
        future::pending().await
    }

    async fn stop(
        &self,
        network: Network,
        work: impl Future<Output = Result<(), NetworkError>>,
        running: Option<Running>,
    ) -> Result<(), NetworkError> {
        log_failure(self.options.service_manager.stopping());
        if !self.options.release_on_exit {
            let ((), ended) = tokio::join!(network.shutdown(Shutdown::Keep), work);
            return ended;
        }
        let lease = network.lease();
        let ((), ended) = tokio::join!(network.shutdown(Shutdown::Remove), work);
        if let Some(file) = self.subnet_file()
            && let Err(error) = file.remove()
        {
            warn!("Failed to remove the subnet file {}: {error}", file.path().display());
        }
        if let Some(running) = running {
            self.remove_rules(&running).await;
        }
        if let (Ok(()), Some(Lease { subnet, term, .. })) = (&ended, lease) {
            match term {
                Term::Limited => info!("Released the lease {}", subnets(&subnet)),
                Term::Permanent => info!("Keeping the lease {}: it is a reservation", subnets(&subnet)),
            }
        }
        ended
    }

    async fn remove_rules(&self, running: &Running) {
        let network = self.firewall_network(running);
        if self.options.firewall.is_some() {
            Firewall::remove(self.namespace.clone(), &network).await;
        }
        if self.options.blackhole_route
            && let Err(error) = BlackholeRoutes::remove(&self.namespace, &network)
        {
            error!("Failed to remove the blackhole route: {}", chain(&error));
        }
    }
}

/// Waits until the firewall has a reason for a pass.
async fn wait(firewall: &mut Option<Firewall>) -> Option<&mut Firewall> {
    let firewall = firewall.as_mut()?;
    firewall.wait().await;
    Some(firewall)
}

/// How often blackhole routes are checked on a host without firewall rules.
const BLACKHOLE_AUDIT_INTERVAL: std::time::Duration = std::time::Duration::from_secs(5);
