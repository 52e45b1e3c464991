//! The life of the daemon, from its options to its exit status.
//!
//! 1. Check what no waiting will cure: the capability, the external interface.
//! 2. Put the network together and run it.
//! 3. When it carries traffic: put the firewall rules, write `subnet.env`, then tell systemd.
//! 4. On SIGHUP, and when the registry tells that it changed: take in another network configuration.
//! 5. On SIGTERM or SIGINT: end, and leave everything in place, or remove it if that was asked for.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::{
    BackendError, DampingOptions, Network, NetworkError, NetworkEvent, NetworkOptions, Running, Shutdown,
    SubnetKey, Term, chain,
};
use flannel_dataplane::InitialChoice;
use flannel_netlink::Namespace;
use flannel_node::backends::Backends;
use flannel_node::service_manager::{FdStore, Notifier, notified, passed, report_status};
use flannel_node::status::{DaemonState, StatusSource};
use flannel_node::subnet_file::{Previous, SubnetEnv, read_previous};
use flannel_node::{capabilities, probe, server};
use flannel_registry::{
    CacheOptions, CachedLeaseManager, NodeIdentity, RegistryLeaseManager, RegistryLeaseManagerOptions,
};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::firewall::FirewallTask;
use crate::options::Options;
use crate::{event_log, firewall, registry, sys};

/// So long after it is ready the daemon has done what a start brings with it.
const AT_REST: Duration = Duration::from_secs(2);

/// Runs the daemon until it is told to end or cannot start.
pub(crate) fn run(options: &Options) -> ExitCode {
    let ended = start(options).and_then(|daemon| runtime()?.block_on(daemon.live()));
    match ended {
        Ok(()) => {
            info!("Exiting cleanly...");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            error!("{reason}");
            ExitCode::FAILURE
        }
    }
}

/// What the program waits in.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("Failed to start the runtime: {error}"))
}

/// Everything that is needed to begin.
struct Daemon<'a> {
    options: &'a Options,
    namespace: Namespace,
    chosen: InitialChoice,
    previous: Previous,
    notifier: Notifier,
    store: Option<FdStore>,
}

/// Step 1. The reason for not starting is one line for the log.
fn start(options: &Options) -> Result<Daemon<'_>, String> {
    let passed = passed(std::process::id(), |variable| std::env::var_os(variable));
    capabilities::check()?;
    let namespace = Namespace::current().map_err(|error| format!("Failed to open the namespace: {error}"))?;
    let chosen = options.external.choose(&namespace).map_err(|error| chain(&error))?;
    let (previous, warnings) = read_previous(&options.subnet_file);
    for warning in warnings {
        warn!("{warning}");
    }
    let notifier = Notifier::new(std::env::var_os("NOTIFY_SOCKET").as_deref())
        .map_err(|error| format!("NOTIFY_SOCKET cannot be used: {error}"))?;
    let store = FdStore::open(options.keep_udp_device, &notifier, passed);
    Ok(Daemon { options, namespace, chosen, previous, notifier, store })
}

impl Daemon<'_> {
    /// Steps 2 to 5.
    async fn live(mut self) -> Result<(), String> {
        info!("Installing signal handlers");
        let mut signals = Signals::install().map_err(|error| format!("Failed to catch signals: {error}"))?;
        let (tell_peers, peers) = watch::channel(BTreeSet::new());
        let store = self.store.take();
        let (network, task) = Network::new(self.network_options(tell_peers, store)?);
        let mut events = network.events();
        let work = task.run();
        let (tell_running, running) = watch::channel(None);
        let (done, mut guarded) = mpsc::unbounded_channel();
        let beside = Arc::new(DaemonState::default());
        let rules = self.firewall(running, peers, done, Arc::clone(&beside)).run();
        let sources = StatusSource::new(network.view(), Arc::clone(&beside), &self.options.subnet_file);
        let serving = server::serve(&self.options.observe, sources.clone());
        let telling = report_status(&self.notifier, sources);
        let probing = self.probe(&network, &beside);
        tokio::pin!(work, rules, serving, telling, probing);
        let mut life = Life::default();
        let ended = loop {
            self.tell_reloads(&mut life, &tell_running.borrow());
            tokio::select! {
                biased;
                signal = signals.next() => match signal {
                    Asked::Reload => self.on_reload(&network, &mut life),
                    Asked::End(signal) => {
                        info!("shutdownHandler sent cancel signal... ({signal})");
                        break None;
                    }
                },
                ended = &mut work => break Some(ended),
                Some(event) = events.next() => self.on_event(&network, &event, &tell_running, &mut life).await,
                Some(running) = guarded.recv() => self.on_guarded(running, &mut life, &beside),
                () = life.reload_ends() => life.reload = None,
                never = &mut rules => match never {},
                never = &mut serving => match never {},
                never = &mut telling => match never {},
                never = &mut probing => match never {},
            }
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                let running = tell_running.borrow().clone();
                self.stop(network, work, running).await
            }
        };
        while let Some(Some(event)) = events.next().now_or_never() {
            event_log::tell(&event);
        }
        ended.map_err(|error| reason(&error))
    }

    fn network_options(
        &self,
        peers: watch::Sender<BTreeSet<IpAddr>>,
        store: Option<FdStore>,
    ) -> Result<NetworkOptions, String> {
        let registry = registry::open(&self.options.etcd, self.options.etcd_api)
            .map_err(|error| format!("Failed to create SubnetManager: {}", chain(error.as_ref())))?;
        let previous = SubnetKey::new(self.previous.subnet, self.previous.ipv6_subnet);
        let name = previous.as_ref().map_or_else(|| "None".to_owned(), event_log::subnets);
        info!("Created subnet manager: Etcd Local Manager with Previous Subnet: {name}");
        let mut damping = DampingOptions::default();
        damping.hold = self.options.mass_expiry_hold;
        let manager = RegistryLeaseManager::with_options(registry, self.lease_options()?);
        let manager = CachedLeaseManager::open(manager, self.cache_options(damping));
        let peers = Some(peers).filter(|_| self.options.firewall.restrict_tunnel_port);
        let backends = Backends::new(self.namespace.clone(), peers).with_store(store);
        let mut options = NetworkOptions::new(manager, backends, self.chosen.external.clone());
        options.choose_external = Some(self.chosen.clone().into_chooser());
        options.follow_config = self.options.follow_config;
        options.previous = previous;
        options.damping = damping;
        Ok(options)
    }

    fn lease_options(&self) -> Result<RegistryLeaseManagerOptions, String> {
        let identity = NodeIdentity::open(self.options.beside_subnet_file(".node-id"))
            .map_err(|error| format!("Failed to draw an id for this host: {error}"))?;
        let mut options = RegistryLeaseManagerOptions::default();
        options.ttl = self.options.lease_ttl;
        options.renew_margin = self.options.renew_margin;
        options.identity = Some(Arc::new(identity));
        Ok(options)
    }

    fn cache_options(&self, damping: DampingOptions) -> CacheOptions {
        let path = self.options.beside_subnet_file(".cache");
        let mut options =
            CacheOptions::new(path, self.options.etcd.prefix.clone(), self.chosen.external.public);
        options.damping = damping;
        options
    }

    fn firewall(
        &self,
        running: watch::Receiver<Option<Running>>,
        peers: watch::Receiver<BTreeSet<IpAddr>>,
        done: mpsc::UnboundedSender<Running>,
        beside: Arc<DaemonState>,
    ) -> FirewallTask {
        let (flags, namespace) = (self.options.firewall, self.namespace.clone());
        FirewallTask { flags, namespace, previous: self.previous.nets(), running, peers, beside, done }
    }

    /// Probes the other hosts, if that is asked for.
    fn probe(
        &self,
        network: &Network,
        beside: &Arc<DaemonState>,
    ) -> impl Future<Output = Infallible> + use<> {
        let (mesh, view, beside) = (self.options.mesh, network.view(), Arc::clone(beside));
        async move {
            match mesh {
                Some(options) => probe::keep(options, view, beside).await,
                None => std::future::pending().await,
            }
        }
    }

    async fn on_event(
        &self,
        network: &Network,
        event: &NetworkEvent,
        running: &watch::Sender<Option<Running>>,
        life: &mut Life,
    ) {
        event_log::tell(event);
        if let NetworkEvent::Reconfigured(_) = event {
            self.reloading(life);
        }
        let is_news = matches!(
            event,
            NetworkEvent::Ready | NetworkEvent::MtuChanged(_) | NetworkEvent::Reconfigured(_)
        );
        // Before it is ready there is nothing to be done for it, and `ready` would wait.
        if is_news && (running.borrow().is_some() || matches!(event, NetworkEvent::Ready)) {
            running.send_replace(network.ready().await);
        }
    }

    /// Reads the network configuration again.
    fn on_reload(&self, network: &Network, life: &mut Life) {
        info!("Reading the network config again (SIGHUP)");
        self.reloading(life);
        life.reload = Some(network.reload().boxed());
    }

    /// Tells that something is being taken in. A service that has not started cannot do that.
    fn reloading(&self, life: &mut Life) {
        if life.guarded.is_some() && !std::mem::replace(&mut life.is_reloading, true) {
            notified(self.notifier.reloading());
        }
    }

    /// Tells when all that was taken in has had its effect: rules and file are those of the network as it runs.
    fn tell_reloads(&self, life: &mut Life, running: &Option<Running>) {
        if life.is_reloading && life.reload.is_none() && life.guarded == *running {
            life.is_reloading = false;
            let subnet = running.as_ref().map(|running| event_log::subnets(&running.lease.subnet));
            notified(self.notifier.ready(&format!("holding {}", subnet.unwrap_or_default())));
        }
    }

    /// Step 3, from the second part on: the network carries traffic, and the rules for it are there.
    fn on_guarded(&self, running: Running, life: &mut Life, beside: &DaemonState) {
        let written = self.write_subnet_file(&running);
        let subnet = running.lease.subnet;
        let before = life.guarded.as_ref().map(|before| before.lease.subnet);
        if before != Some(subnet) {
            if written.is_ok() {
                info!("flannel is ready");
            }
            info!("Running backend.");
            event_log::watching(&running.config.backend.name);
            tokio::spawn(async {
                tokio::time::sleep(AT_REST).await;
                sys::give_memory_back();
            });
            notified(self.notifier.ready(&format!("holding {}", event_log::subnets(&subnet))));
        }
        beside.subnet_file(written);
        life.guarded = Some(running);
    }

    /// A host whose file cannot be written still carries traffic, so this is not the end.
    fn write_subnet_file(&self, running: &Running) -> Result<(), String> {
        let path = &self.options.subnet_file;
        let Running { config, lease, mtu, .. } = running;
        let file = SubnetEnv::of(config, &lease.subnet, *mtu, self.options.firewall.rules.masquerade);
        let written = file.write(path);
        match written.map_err(|error| chain(&error)) {
            Ok(()) => {
                info!("Wrote subnet file to {}", path.display());
                Ok(())
            }
            Err(error) => {
                warn!("Failed to write subnet file: {error}");
                Err(error)
            }
        }
    }

    async fn stop(
        &self,
        network: Network,
        work: impl Future<Output = Result<(), NetworkError>>,
        running: Option<Running>,
    ) -> Result<(), NetworkError> {
        notified(self.notifier.stopping());
        info!("Stopped monitoring lease");
        info!("Waiting for all goroutines to exit");
        if !self.options.release_on_exit {
            let ((), ended) = tokio::join!(network.shutdown(Shutdown::Keep), work);
            return ended;
        }
        let lease = network.lease();
        let ((), ended) = tokio::join!(network.shutdown(Shutdown::Remove), work);
        self.remove_subnet_file();
        if let Some(running) = running {
            firewall::remove(&self.options.firewall, self.namespace.clone(), &running).await;
        }
        if ended.is_ok()
            && let Some(lease) = lease
        {
            match lease.term {
                Term::Limited => info!("Gave the lease {} back", event_log::subnets(&lease.subnet)),
                Term::Permanent => {
                    info!("The lease {} is a reservation, and stays", event_log::subnets(&lease.subnet))
                }
            }
        }
        ended
    }

    /// Whoever reads it would give containers addresses that soon are others'.
    fn remove_subnet_file(&self) {
        let path = &self.options.subnet_file;
        if let Err(error) = fs::remove_file(path)
            && error.kind() != ErrorKind::NotFound
        {
            warn!("The subnet file {} cannot be removed: {error}", path.display());
        }
    }
}

/// Why the network did not start, with flannel's words in front.
fn reason(error: &NetworkError) -> String {
    if matches!(error, NetworkError::Release(_)) {
        return format!("{}; it runs out by itself", chain(error));
    }
    if let NetworkError::External(why) = error {
        return why.clone();
    }
    let is_unknown = matches!(error, NetworkError::Backend(BackendError::UnknownType(_)));
    let words = if is_unknown { "Error fetching backend" } else { "Error registering network" };
    format!("{words}: {}", chain(error))
}

/// How far the daemon is with what it was asked.
#[derive(Default)]
struct Life {
    /// The network for which rules and file are in place.
    guarded: Option<Running>,
    /// The reading of the configuration that somebody asked for.
    reload: Option<BoxFuture<'static, ()>>,
    /// Whether the service manager was told that something is being taken in.
    is_reloading: bool,
}

impl Life {
    async fn reload_ends(&mut self) {
        match &mut self.reload {
            Some(reload) => reload.await,
            None => std::future::pending().await,
        }
    }
}

/// What a signal asks for.
enum Asked {
    Reload,
    End(&'static str),
}

/// The signals that the daemon obeys.
struct Signals {
    reload: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self {
            reload: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one, and says what it asks for.
    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End("SIGTERM"),
            _ = self.interrupt.recv() => Asked::End("SIGINT"),
            _ = self.reload.recv() => Asked::Reload,
        }
    }
}
