//! The life of the daemon, from its options to its exit status.
//!
//! 1. Check what no waiting will cure: the capability, the external interface.
//! 2. Put the network together and run it.
//! 3. When it carries traffic: write `subnet.env`, then tell systemd.
//! 4. On SIGTERM or SIGINT: end, and leave everything in place.

use std::process::ExitCode;
use std::time::Duration;

use flannel_core::{
    BackendError, DampingOptions, ExternalInterface, Network, NetworkError, NetworkEvent, NetworkOptions,
    Running, Shutdown, SubnetKey, chain,
};
use flannel_netlink::Namespace;
use flannel_registry::{CacheOptions, CachedManager, LocalManager};
use futures::{FutureExt, StreamExt};
use ipnet::IpNet;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use crate::backends::Backends;
use crate::iface::{self, Families, Request};
use crate::notify::Notifier;
use crate::options::Options;
use crate::subnet_env::{self, SubnetEnv};
use crate::{capabilities, facts, registry, story, sys};

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
    external: ExternalInterface,
    previous: Option<SubnetKey>,
    notifier: Notifier,
}

/// Step 1. The reason for not starting is one line for the log.
fn start(options: &Options) -> Result<Daemon<'_>, String> {
    capabilities::check()?;
    let facts = facts::read().map_err(|error| format!("Failed to read the interfaces: {}", chain(&error)))?;
    let request = Request {
        interfaces: &options.interfaces,
        public_v4: options.public_ip,
        public_v6: None,
        families: Families { v4: true, v6: false },
    };
    let external = iface::choose_any(&facts, &request).map_err(|error| error.to_string())?;
    let (previous, warnings) = subnet_env::read_previous(&options.subnet_file);
    for warning in warnings {
        warn!("{warning}");
    }
    let notifier = Notifier::new(std::env::var_os("NOTIFY_SOCKET").as_deref())
        .map_err(|error| format!("NOTIFY_SOCKET cannot be used: {error}"))?;
    let namespace = Namespace::current().map_err(|error| format!("Failed to open the namespace: {error}"))?;
    let previous = SubnetKey::new(previous.subnet, previous.ipv6_subnet);
    Ok(Daemon { options, namespace, external, previous, notifier })
}

impl Daemon<'_> {
    /// Steps 2 to 4.
    async fn live(self) -> Result<(), String> {
        info!("Installing signal handlers");
        let mut signals = Signals::install().map_err(|error| format!("Failed to catch signals: {error}"))?;
        let (network, task) = Network::new(self.network_options()?);
        let mut events = network.events();
        let work = task.run();
        tokio::pin!(work);
        let ended = loop {
            tokio::select! {
                biased;
                signal = signals.next() => {
                    info!("shutdownHandler sent cancel signal... ({signal})");
                    break None;
                }
                ended = &mut work => break Some(ended),
                Some(event) = events.next() => self.on_event(&network, &event).await,
            }
        };
        let ended = match ended {
            Some(ended) => ended,
            None => self.stop(network, work).await,
        };
        while let Some(Some(event)) = events.next().now_or_never() {
            story::tell(&event);
        }
        ended.map_err(|error| reason(&error))
    }

    fn network_options(&self) -> Result<NetworkOptions, String> {
        let registry = registry::open(&self.options.etcd, self.options.etcd_api)
            .map_err(|error| format!("Failed to create SubnetManager: {}", chain(error.as_ref())))?;
        let previous = self.previous.as_ref().map_or_else(|| "None".to_owned(), story::subnets);
        info!("Created subnet manager: Etcd Local Manager with Previous Subnet: {previous}");
        let hold = self.options.mass_expiry_hold;
        let damping = DampingOptions { hold, ..DampingOptions::default() };
        let manager = CachedManager::open(LocalManager::new(registry), self.cache_options(damping));
        let backends = Backends::new(self.namespace.clone());
        let options = NetworkOptions::new(manager, backends, self.external.clone());
        Ok(NetworkOptions { previous: self.previous, damping, ..options })
    }

    /// The cache lies beside `subnet.env`, so that two daemons on one host have two.
    fn cache_options(&self, damping: DampingOptions) -> CacheOptions {
        let mut path = self.options.subnet_file.clone().into_os_string();
        path.push(".cache");
        let options = CacheOptions::new(path, self.options.etcd.prefix.clone(), self.external.public);
        CacheOptions { damping, ..options }
    }

    async fn on_event(&self, network: &Network, event: &NetworkEvent) {
        story::tell(event);
        if let NetworkEvent::Ready = event
            && let Some(running) = network.ready().await
        {
            self.write_subnet_file(&running);
            info!("Running backend.");
            tokio::spawn(async {
                tokio::time::sleep(AT_REST).await;
                sys::give_memory_back();
            });
            let subnet = running.lease.subnet;
            self.notified(self.notifier.ready(&format!("holding {}", story::subnets(&subnet))));
        }
    }

    /// A host whose file cannot be written still carries traffic, so this is not the end.
    fn write_subnet_file(&self, running: &Running) {
        let path = &self.options.subnet_file;
        match subnet_env(running).write(path) {
            Ok(()) => info!("Wrote subnet file to {}", path.display()),
            Err(error) => warn!("Failed to write subnet file: {}", chain(&error)),
        }
    }

    async fn stop(
        &self,
        network: Network,
        work: impl Future<Output = Result<(), NetworkError>>,
    ) -> Result<(), NetworkError> {
        self.notified(self.notifier.stopping());
        info!("Waiting for all goroutines to exit");
        let ((), ended) = tokio::join!(network.shutdown(Shutdown::Keep), work);
        ended
    }

    fn notified(&self, result: std::io::Result<()>) {
        if let Err(error) = result {
            warn!("The service manager cannot be told: {error}");
        }
    }
}

fn subnet_env(running: &Running) -> SubnetEnv {
    let Running { lease, mtu, config, .. } = running;
    let v4 = config.ipv4.and_then(|pool| if let IpNet::V4(net) = pool.network() { Some(net) } else { None });
    let v6 = config.ipv6.and_then(|pool| if let IpNet::V6(net) = pool.network() { Some(net) } else { None });
    SubnetEnv {
        network: v4,
        subnet: lease.subnet.v4(),
        ipv6_network: v6,
        ipv6_subnet: lease.subnet.v6(),
        mtu: *mtu,
        ip_masq: false,
    }
}

/// Why the network did not start, with flannel's words in front.
fn reason(error: &NetworkError) -> String {
    let is_unknown = matches!(error, NetworkError::Backend(BackendError::UnknownType(_)));
    let words = if is_unknown { "Error fetching backend" } else { "Error registering network" };
    format!("{words}: {}", chain(error))
}

/// The signals that end the daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one, and names it.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
