//! The daemon, from its options to its exit status.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::{BackendError, DescriptorStore, NetworkError, NetworkOptions, SubnetKey, chain};
use flannel_dataplane::InitialChoice;
use flannel_firewall::FirewallOptions;
use flannel_node::service_manager::{FdStore, Notifier, PassedDescriptors};
use flannel_node::subnet_file::{Previous, read_previous};
use flannel_node::{AgentCommand, AgentOptions, BackendRegistry, NodeAgent, capabilities};
use flannel_registry::{
    CacheOptions, CachedLeaseManager, NodeIdentity, RegistryLeaseManager, RegistryLeaseManagerOptions,
};
use futures::stream::{self, Stream};
use futures::{FutureExt, StreamExt};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::options::Options;
use crate::{Host, event_log, registry, sys};

/// The pause after the network is ready until freed memory is returned to the kernel.
const TRIM_AFTER: Duration = Duration::from_secs(2);

/// Runs the daemon until a signal ends it or it fails to start.
pub(crate) fn run(options: &Options, host: Host) -> ExitCode {
    match start(options, host) {
        Ok(()) => {
            info!("Stopped monitoring lease");
            info!("Exiting cleanly...");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            error!("{reason}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the runtime of the program.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("Failed to start the runtime: {error}"))
}

fn start(options: &Options, host: Host) -> Result<(), String> {
    capabilities::check()?;
    let Host { namespace, backends, descriptors } = host;
    let chosen = options.interface_selector().choose(&namespace).map_err(|error| chain(&error))?;
    let (previous, warnings) = read_previous(&options.subnet_file);
    for warning in warnings {
        warn!("{warning}");
    }
    let notifier = Notifier::from_env().map_err(|error| format!("NOTIFY_SOCKET cannot be used: {error}"))?;
    let backends = backends.with_descriptors(descriptor_store(options, &notifier, descriptors));
    runtime()?.block_on(async {
        info!("Installing signal handlers");
        let commands = commands().map_err(|error| format!("Failed to catch signals: {error}"))?;
        let manager = lease_manager(options, &chosen, &previous)?;
        let mut network = NetworkOptions::new(manager, backends.clone(), chosen.external.clone());
        network.choose_external = Some(chosen.into_chooser());
        network.follow_config = options.follow_config;
        network.previous = SubnetKey::new(previous.subnet, previous.ipv6_subnet);
        network.damping.hold = options.mass_expiry_hold;
        let agent_options = agent_options(options, &backends, &previous, notifier);
        let agent = NodeAgent::new(namespace, network, backends, agent_options);
        follow(agent, commands).await.map_err(|error| describe(&error))
    })
}

/// Returns the service manager's descriptor store if it is to be used; otherwise the manager closes what it stored.
fn descriptor_store(
    options: &Options,
    notifier: &Notifier,
    passed: PassedDescriptors,
) -> Option<Arc<dyn DescriptorStore>> {
    let store = FdStore::new(notifier, passed);
    if options.keep_udp_device && notifier.has_manager() {
        return Some(Arc::new(store));
    }
    if options.keep_udp_device {
        warn!("-keep-udp-device has no effect: NOTIFY_SOCKET is not set");
    }
    store.clear();
    None
}

fn lease_manager(
    options: &Options,
    chosen: &InitialChoice,
    previous: &Previous,
) -> Result<CachedLeaseManager<RegistryLeaseManager<Arc<dyn flannel_core::SubnetRegistry>>>, String> {
    let registry = registry::open(&options.etcd, options.etcd_api)
        .map_err(|error| format!("Failed to create SubnetManager: {}", chain(error.as_ref())))?;
    let previous = SubnetKey::new(previous.subnet, previous.ipv6_subnet);
    let name = previous.as_ref().map_or_else(|| "None".to_owned(), event_log::subnets);
    info!("Created subnet manager: Etcd Local Manager with Previous Subnet: {name}");
    let identity = NodeIdentity::open(options.beside_subnet_file(".node-id"))
        .map_err(|error| format!("Failed to create an ID for this host: {error}"))?;
    let mut lease = RegistryLeaseManagerOptions::default();
    lease.ttl = options.lease_ttl;
    lease.renew_margin = options.renew_margin;
    lease.identity = Some(Arc::new(identity));
    let path = options.beside_subnet_file(".cache");
    let cache = CacheOptions::new(path, options.etcd.prefix.clone(), chosen.external.public);
    Ok(CachedLeaseManager::open(RegistryLeaseManager::with_options(registry, lease), cache))
}

fn agent_options(
    options: &Options,
    backends: &BackendRegistry,
    previous: &Previous,
    notifier: Notifier,
) -> AgentOptions {
    let flags = &options.firewall;
    let firewall = FirewallOptions::new(flags.rules)
        .with_audit_interval(flags.resync)
        .with_restrict_tunnel_ports(flags.restrict_tunnel_port)
        .with_former_tunnel_ports(backends.default_restrictable_ports());
    let mut agent = AgentOptions::default();
    agent.subnet_file = Some(options.subnet_file.clone());
    agent.firewall = Some(firewall);
    agent.previous = previous.prefixes();
    agent.blackhole_route = flags.blackhole_route;
    agent.observe = options.observe.clone();
    agent.mesh = options.mesh;
    agent.service_manager = notifier;
    agent.release_on_exit = options.release_on_exit;
    agent
}

/// Runs the agent and logs what happens to its network.
async fn follow(agent: NodeAgent, commands: impl Stream<Item = AgentCommand>) -> Result<(), NetworkError> {
    let (mut events, mut applied) = (agent.network().events().fuse(), agent.applied());
    let work = agent.run(commands);
    tokio::pin!(work);
    let mut subnet = None;
    let ended = loop {
        tokio::select! {
            biased;
            Some(event) = events.next() => event_log::log(&event),
            Ok(()) = applied.changed() => {
                let Some(running) = applied.borrow_and_update().clone() else { continue };
                if subnet.replace(running.lease.subnet) != Some(running.lease.subnet) {
                    info!("flannel is ready");
                    info!("Running backend.");
                    event_log::watching(&running.config.backend.name);
                    tokio::spawn(async {
                        tokio::time::sleep(TRIM_AFTER).await;
                        sys::trim_heap();
                    });
                }
            }
            ended = &mut work => break ended,
        }
    };
    while let Some(Some(event)) = events.next().now_or_never() {
        event_log::log(&event);
    }
    ended
}

/// Describes why the network did not start, in upstream's words.
fn describe(error: &NetworkError) -> String {
    if matches!(error, NetworkError::Release(_)) {
        return format!("{}; it expires on its own", chain(error));
    }
    if let NetworkError::External(why) = error {
        return why.clone();
    }
    let is_unknown = matches!(error, NetworkError::Backend(BackendError::UnknownType(_)));
    let words = if is_unknown { "Error fetching backend" } else { "Error registering network" };
    format!("{words}: {}", chain(error))
}

/// Turns SIGHUP into a reload, and SIGTERM and SIGINT into a shutdown.
fn commands() -> std::io::Result<impl Stream<Item = AgentCommand>> {
    let mut reload = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(stream::poll_fn(move |context| {
        use std::task::Poll;
        for (signal, name) in [(&mut terminate, "SIGTERM"), (&mut interrupt, "SIGINT")] {
            if signal.poll_recv(context).is_ready() {
                info!("Received {name}; stopping");
                return Poll::Ready(Some(AgentCommand::Shutdown));
            }
        }
        reload.poll_recv(context).map(|_| {
            info!("Reading the network config again (SIGHUP)");
            Some(AgentCommand::Reload)
        })
    }))
}
