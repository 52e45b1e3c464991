//! The extension backend: commands of the operator's carry the traffic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use flannel_core::{
    Backend, BackendAttrs, BackendError, Dirty, ExternalInterface, Json, Lease, NetworkConfig, OpenBackend,
    OpenRequest, PeerFailure, PeerSet, PublicAddrs, SubnetKey, SyncReport, SyncRequest,
};
use flannel_netlink::Namespace;

use crate::config::ExtensionConfig;
use crate::ledger::{Ledger, Told, describe};
use crate::shell::{Call, Shell};
use crate::worker::{Work, Worker, run};

/// What hosts with this backend say they are.
const NAME: &str = "extension";

/// So long the first pass waits for the commands of all peers, because containers start after it. Whoever needs longer
/// is told of later, as at any other time.
const FIRST_PASS: Duration = Duration::from_secs(5);

/// Opens the extension backend; its commands run in one network namespace.
///
/// | command | runs | is told |
/// |---|---|---|
/// | `PreStartupCommand` | before there is a lease; what it writes goes into the lease | |
/// | `PostStartupCommand` | when the host has its subnet, and again when it gets another one | `NETWORK`, `SUBNET`, `PUBLIC_IP` |
/// | `SubnetAddCommand` | for each peer, at the start and when it comes | `SUBNET`, `PUBLIC_IP`; standard input: what the peer's first command wrote |
/// | `SubnetRemoveCommand` | for each peer that leaves or changes | the same as was told when it came |
/// | `ShutdownCommand` | after that for all peers, when everything is to be removed | as `PostStartupCommand` |
///
/// In networks with IPv6 there are also `IPV6NETWORK`, `IPV6SUBNET` and `PUBLIC_IPV6`. None may take longer than
/// `CommandTimeout` seconds (60). One that fails before or after the start of the host is an error of the backend, one
/// that fails for a peer is run again.
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
    /// Takes the namespace that the external interface is in.
    #[must_use]
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace }
    }
}

impl OpenBackend for OpenExtension {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        let commands = Arc::new(ExtensionConfig::parse(&request.config.backend)?);
        let shell = Arc::new(Shell::new(self.namespace.clone(), commands.limit));
        let data = match &commands.pre_startup {
            Some(script) => Some(json(&host_command(&shell, "PreStartupCommand", script, &[])?)?),
            None => None,
        };
        let worker = Worker::start(Arc::clone(&shell), Arc::clone(&commands)).map_err(|source| {
            let object = "cannot start the thread that runs commands".to_owned();
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

/// Runs a command for the host itself.
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
    /// What the first command wrote.
    data: Option<Json>,
    own: Option<SubnetKey>,
    ledger: Ledger,
    /// Peers that no command can be run for, and why.
    unreachable: BTreeMap<SubnetKey, String>,
    is_first_pass: bool,
}

#[async_trait]
impl Backend for Extension {
    fn attrs(&self) -> BackendAttrs {
        let backend_type = NAME.to_owned().into();
        BackendAttrs::new(backend_type).with_data(self.data.clone())
    }

    /// What the commands take off it they must tell the containers themselves.
    fn mtu(&self) -> u32 {
        self.mtu
    }

    /// No command is run: those for peers do not depend on it, and the one for the host has been.
    fn update_interface(&mut self, external: &ExternalInterface) -> Result<(), BackendError> {
        self.mtu = external.mtu;
        self.public = external.public;
        Ok(())
    }

    fn configure(&mut self, own: &Lease) -> Result<(), BackendError> {
        self.own = Some(own.subnet);
        if let Some(script) = &self.commands.post_startup {
            // One at most is waited for; the next pass says again which come.
            self.worker.with(|work| work.queue.clear());
            host_command(&self.shell, "PostStartupCommand", script, &self.host_variables())?;
        }
        Ok(())
    }

    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
        if self.own.is_none() {
            return SyncReport::default();
        }
        self.take_in(request.peers, request.dirty);
        let mut report = self.drive(request.now);
        if self.is_first_pass && request.peers.is_complete() {
            self.is_first_pass = false;
            self.worker.wait_until_idle(FIRST_PASS);
            report.merge(self.drive(request.now));
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
        "the end of a command".to_owned()
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        self.worker.with(|work| work.queue.clear());
        // What was half done is undone below.
        self.shell.kill();
        self.worker.wait_until_idle(self.commands.limit);
        // Nothing more is to be begun.
        self.worker.with(|work| take_ended(&mut self.ledger, work, Instant::now()));
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
    /// Takes in who there is, as far as it may be news.
    fn take_in(&mut self, peers: &PeerSet, dirty: &Dirty) {
        match dirty {
            Dirty::All => {
                peers.iter().for_each(|lease| self.take_in_one(lease.subnet, Some(lease)));
                if peers.is_complete() {
                    let subnets = peers.iter().map(|lease| lease.subnet).collect();
                    self.ledger.want_only(&subnets);
                    self.unreachable.retain(|subnet, _| subnets.contains(subnet));
                }
            }
            Dirty::Some(subnets) => {
                for subnet in subnets {
                    let lease = peers.peer(subnet).map(AsRef::as_ref);
                    if lease.is_some() || peers.is_complete() {
                        self.take_in_one(*subnet, lease);
                    }
                }
            }
        }
    }

    fn take_in_one(&mut self, subnet: SubnetKey, lease: Option<&Lease>) {
        self.unreachable.remove(&subnet);
        let told = lease.and_then(|lease| match told(lease) {
            Ok(told) => Some(told),
            Err(reason) => {
                self.unreachable.insert(subnet, reason);
                None
            }
        });
        self.ledger.want(subnet, told);
    }

    /// Takes in which commands ended, and says which are next.
    fn drive(&mut self, now: Instant) -> SyncReport {
        let ledger = &mut self.ledger;
        self.worker.with(|work| {
            let report = take_ended(ledger, work, now);
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

/// Takes in which commands ended.
fn take_ended(ledger: &mut Ledger, work: &mut Work, now: Instant) -> SyncReport {
    let mut report = SyncReport::default();
    for (job, result) in work.ended.drain(..) {
        let (subnet, task) = (job.subnet, job.task);
        report.written += usize::from(result.is_ok());
        if let Some(reason) = ledger.ended(job, result, now) {
            tracing::warn!("{} is not run again: {reason}", describe(task, &subnet));
        }
    }
    report
}

/// What the commands for a peer are told; else why they cannot be.
fn told(lease: &Lease) -> Result<Told, String> {
    let attrs = &lease.attrs;
    if attrs.backend_type.as_str() != NAME {
        return Err(format!("its backend is {:?}, not {NAME:?}", attrs.backend_type.as_str()));
    }
    let data = attrs.backend_data.as_ref().map(|data| serde_json::from_str::<String>(data.as_str()));
    let data = data.transpose().map_err(|_| "its BackendData is not a string")?;
    let variables = subnet_variables(&lease.subnet, attrs.public);
    Ok(Told { variables, input: data.unwrap_or_default() + "\n" })
}

fn subnet_variables(subnet: &SubnetKey, public: PublicAddrs) -> Vec<(&'static str, String)> {
    let name = |is_v4, v4, v6| if is_v4 { v4 } else { v6 };
    let nets = subnet.nets().map(|net| (name(net.addr().is_ipv4(), "SUBNET", "IPV6SUBNET"), net.to_string()));
    let publics = public
        .addresses()
        .map(|address| (name(address.is_ipv4(), "PUBLIC_IP", "PUBLIC_IPV6"), address.to_string()));
    nets.chain(publics).collect()
}
