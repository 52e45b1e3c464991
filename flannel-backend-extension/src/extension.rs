//! The extension backend runs commands of the operator that carry the traffic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use flannel_core::{
    Backend, BackendAttrs, BackendDescriptor, BackendError, Dirty, ExternalInterface, Json, Lease,
    NetworkConfig, OpenBackend, OpenRequest, PeerFailure, PeerSet, PublicAddrs, SubnetKey, SyncReport,
    SyncRequest,
};
use flannel_netlink::Namespace;

use crate::config::ExtensionConfig;
use crate::ledger::{CommandInput, Ledger, describe};
use crate::shell::{Call, Shell};
use crate::worker::{WorkQueue, Worker, run};

/// The backend type in leases.
const NAME: &str = "extension";

/// The time that the first pass waits for the commands of all peers, because containers start after it. Later passes
/// report slower commands.
const FIRST_PASS: Duration = Duration::from_secs(5);

/// Opens the extension backend, whose commands run in one network namespace.
///
/// | command | runs | receives |
/// |---|---|---|
/// | `PreStartupCommand` | before the host has a lease; its output becomes the lease's `BackendData` | |
/// | `PostStartupCommand` | when the host has its subnet, and again when the subnet changes | `NETWORK`, `SUBNET`, `PUBLIC_IP` |
/// | `SubnetAddCommand` | for each peer, at the start and when it joins | `SUBNET`, `PUBLIC_IP`; on standard input the peer's `BackendData` |
/// | `SubnetRemoveCommand` | for each peer that leaves or changes | the same values as when the peer joined |
/// | `ShutdownCommand` | on removal, after `SubnetRemoveCommand` for all peers | as `PostStartupCommand` |
///
/// Networks with IPv6 add `IPV6NETWORK`, `IPV6SUBNET` and `PUBLIC_IPV6`. A command that runs longer than `CommandTimeout`
/// seconds (60 by default) is killed. If a startup command fails, the backend fails; a failed command for a peer runs
/// again.
///
/// ```no_run
/// use flannel_backend_extension::OpenExtension;
/// use flannel_netlink::Namespace;
///
/// let open = OpenExtension::new(Namespace::current()?);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct OpenExtension {
    namespace: Namespace,
}

impl OpenExtension {
    /// Creates an opener for the namespace of the external interface.
    #[must_use]
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace }
    }
}

impl BackendDescriptor for OpenExtension {
    fn name(&self) -> &'static str {
        "extension"
    }

    fn options(&self) -> &'static [&'static str] {
        &[
            "PreStartupCommand",
            "PostStartupCommand",
            "SubnetAddCommand",
            "SubnetRemoveCommand",
            "ShutdownCommand",
            "CommandTimeout",
        ]
    }
}

impl OpenBackend for OpenExtension {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        request.config.backend.check_type("extension")?;
        let commands = Arc::new(ExtensionConfig::parse(&request.config.backend)?);
        let shell = Arc::new(Shell::new(self.namespace.clone(), commands.limit));
        let data = match &commands.pre_startup {
            Some(script) => Some(json(&host_command(&shell, "PreStartupCommand", script, &[])?)?),
            None => None,
        };
        let worker = Worker::start(Arc::clone(&shell), Arc::clone(&commands)).map_err(|source| {
            let object = "cannot start the command thread".to_owned();
            BackendError::Kernel { object, source: source.into() }
        })?;
        Ok(Box::new(Extension {
            worker,
            shell,
            commands,
            config: request.config.clone(),
            public: request.external.public,
            mtu: request.external.mtu,
            data,
            own: None,
            ledger: Ledger::default(),
            unreachable: BTreeMap::new(),
            is_first_pass: true,
        }))
    }
}

/// Runs a startup or shutdown command.
fn host_command(
    shell: &Shell,
    name: &str,
    script: &str,
    variables: &[(&'static str, String)],
) -> Result<String, BackendError> {
    let ran = shell.run(&Call { name: name.to_owned(), script, variables, input: "\n" });
    ran.map_err(|reason| BackendError::Host(format!("{name} {reason}")))
}

fn json(text: &str) -> Result<Json, BackendError> {
    let text = serde_json::Value::from(text).to_string();
    Json::parse(&text).map_err(|error| BackendError::Host(format!("PreStartupCommand's output: {error}")))
}

#[derive(Debug)]
struct Extension {
    worker: Worker,
    shell: Arc<Shell>,
    commands: Arc<ExtensionConfig>,
    config: NetworkConfig,
    public: PublicAddrs,
    mtu: u32,
    /// The output of `PreStartupCommand`.
    data: Option<Json>,
    own: Option<SubnetKey>,
    ledger: Ledger,
    /// Peers for which no command can run, each with the reason.
    unreachable: BTreeMap<SubnetKey, String>,
    is_first_pass: bool,
}

#[async_trait]
impl Backend for Extension {
    fn attrs(&self) -> BackendAttrs {
        let backend_type = NAME.to_owned().into();
        BackendAttrs::new(backend_type).with_data(self.data.clone())
    }

    /// Returns the MTU of the external interface. Commands that add headers must configure a smaller MTU in containers.
    fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Runs no command: commands for peers don't depend on the interface, and the startup commands have run.
    fn update_interface(&mut self, external: &ExternalInterface) -> Result<(), BackendError> {
        self.mtu = external.mtu;
        self.public = external.public;
        Ok(())
    }

    fn configure(&mut self, own: &Lease) -> Result<(), BackendError> {
        self.own = Some(own.subnet);
        if let Some(script) = &self.commands.post_startup {
            // At most one running command delays this; the next pass refills the queue.
            self.worker.with(|work| work.queue.clear());
            host_command(&self.shell, "PostStartupCommand", script, &self.host_variables())?;
        }
        Ok(())
    }

    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
        if self.own.is_none() {
            return SyncReport::default();
        }
        self.update_peers(request.peers, request.dirty);
        let mut report = self.schedule(request.now);
        if self.is_first_pass && request.peers.is_complete() {
            self.is_first_pass = false;
            self.worker.wait_until_idle(FIRST_PASS);
            report.merge(self.schedule(request.now));
        }
        report.failed = self.ledger.failed();
        report.retry_in = self.ledger.retry_in(request.now);
        report.pending = self.ledger.pending();
        let unreachable = |(peer, reason): (&SubnetKey, &String)| PeerFailure::new(*peer, reason.clone());
        report.unreachable = self.unreachable.iter().map(unreachable).collect();
        report
    }

    async fn wait_for_drift(&mut self) -> String {
        self.worker.progress().await;
        "a command ended".to_owned()
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        self.worker.with(|work| work.queue.clear());
        // The loop below undoes what the killed command did.
        self.shell.kill();
        self.worker.wait_until_idle(self.commands.limit);
        self.worker.with(|work| record_ended(&mut self.ledger, work, Instant::now()));
        let mut left = Vec::new();
        for job in self.ledger.undo() {
            if let Err(reason) = run(&self.shell, &self.commands, &job) {
                left.push(format!("{} {reason}", describe(job.task, &job.subnet)));
            }
        }
        self.ledger = Ledger::default();
        if let Some(script) = &self.commands.shutdown
            && let Err(error) = host_command(&self.shell, "ShutdownCommand", script, &self.host_variables())
        {
            left.push(error.to_string());
        }
        self.own = None;
        if left.is_empty() { Ok(()) } else { Err(BackendError::Host(left.join("; "))) }
    }
}

impl Extension {
    /// Updates the ledger for the peers that may have changed.
    fn update_peers(&mut self, peers: &PeerSet, dirty: &Dirty) {
        match dirty {
            Dirty::All => {
                peers.iter().for_each(|lease| self.update_peer(lease.subnet, Some(lease)));
                if peers.is_complete() {
                    let subnets = peers.iter().map(|lease| lease.subnet).collect();
                    self.ledger.retain(&subnets);
                    self.unreachable.retain(|subnet, _| subnets.contains(subnet));
                }
            }
            Dirty::Some(subnets) => {
                for subnet in subnets {
                    let lease = peers.peer(subnet).map(AsRef::as_ref);
                    if lease.is_some() || peers.is_complete() {
                        self.update_peer(*subnet, lease);
                    }
                }
            }
        }
    }

    fn update_peer(&mut self, subnet: SubnetKey, lease: Option<&Lease>) {
        self.unreachable.remove(&subnet);
        let input = lease.and_then(|lease| match command_input(lease) {
            Ok(input) => Some(input),
            Err(reason) => {
                self.unreachable.insert(subnet, reason);
                None
            }
        });
        self.ledger.set_desired(subnet, input);
    }

    /// Records the commands that ended and queues the next ones.
    fn schedule(&mut self, now: Instant) -> SyncReport {
        let ledger = &mut self.ledger;
        self.worker.with(|work| {
            let report = record_ended(ledger, work, now);
            let due = ledger.due(now).into_iter().filter(|job| work.running != Some(job.subnet));
            work.queue = due.collect();
            report
        })
    }

    fn host_variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = Vec::new();
        for pool in self.config.pools() {
            let name = if pool.network().addr().is_ipv4() { "NETWORK" } else { "IPV6NETWORK" };
            variables.push((name, pool.network().to_string()));
        }
        if let Some(own) = &self.own {
            variables.extend(subnet_variables(own, self.public.used_by(&self.config)));
        }
        variables
    }
}

/// Records the commands that ended.
fn record_ended(ledger: &mut Ledger, work: &mut WorkQueue, now: Instant) -> SyncReport {
    let mut report = SyncReport::default();
    for (job, result) in work.ended.drain(..) {
        let (subnet, task) = (job.subnet, job.task);
        report.written += usize::from(result.is_ok());
        if let Some(reason) = ledger.ended(job, result, now) {
            tracing::warn!("{} failed and won't run again: {reason}", describe(task, &subnet));
        }
    }
    report
}

/// Returns the input of the commands for a peer, or the reason why none can run.
fn command_input(lease: &Lease) -> Result<CommandInput, String> {
    let attrs = &lease.attrs;
    if attrs.backend_type.as_str() != NAME {
        return Err(format!("its backend is {:?}, not {NAME:?}", attrs.backend_type.as_str()));
    }
    let data = attrs.backend_data.as_ref().map(|data| serde_json::from_str::<String>(data.as_str()));
    let data = data.transpose().map_err(|_| "its BackendData is not a string")?;
    let variables = subnet_variables(&lease.subnet, attrs.public);
    Ok(CommandInput { variables, stdin: data.unwrap_or_default() + "\n" })
}

fn subnet_variables(subnet: &SubnetKey, public: PublicAddrs) -> Vec<(&'static str, String)> {
    let name = |is_v4, v4, v6| if is_v4 { v4 } else { v6 };
    let nets = subnet.nets().map(|net| (name(net.addr().is_ipv4(), "SUBNET", "IPV6SUBNET"), net.to_string()));
    let publics = public
        .addresses()
        .map(|address| (name(address.is_ipv4(), "PUBLIC_IP", "PUBLIC_IPV6"), address.to_string()));
    nets.chain(publics).collect()
}
