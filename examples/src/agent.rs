//! Runs the node agents of the examples, each on a thread inside the namespace of its host, as a process of that host.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use flannel_firewall::{FirewallOptions, RuleOptions};
use flannel_node::{AgentOptions, NodeAgent, client};
use flannel_testing::{Directory, Host, Lab, Pod, eventually};
use ipnet::IpNet;
use tokio::sync::oneshot;

/// Timeout for steps that usually take milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Returns agent options with a subnet file, masquerade and forward rules, and a status socket.
#[must_use]
pub fn agent_options(files: &Path) -> AgentOptions {
    let mut options = AgentOptions::default();
    options.subnet_file = Some(files.join("subnet.env"));
    options.firewall = Some(FirewallOptions::new(RuleOptions::default().with_masquerade(true)));
    options.observe.socket = Some(files.join("agent.sock"));
    options.release_on_exit = true;
    options
}

/// Starts an agent on each host, waits until each has programmed all others, and adds a pod to each host.
///
/// # Errors
///
/// Fails if an agent does not become ready within half a minute.
pub fn start_agents<B>(lab: &Lab, build: B) -> Result<(Vec<AgentThread>, Vec<Pod>), Box<dyn Error>>
where
    B: Fn(&Path) -> Result<NodeAgent, Box<dyn Error>> + Clone + Send + 'static,
{
    let start = |host| AgentThread::start(host, build.clone());
    let agents = lab.hosts.iter().map(start).collect::<Result<Vec<_>, _>>()?;
    let pods = lab.hosts.iter().zip(&agents).map(|(host, agent)| {
        agent.wait_until_ready(lab.hosts.len() - 1)?;
        agent.add_pod(host)
    });
    let pods = pods.collect::<Result<_, _>>()?;
    Ok((agents, pods))
}

/// A running node agent and its files.
#[derive(Debug)]
pub struct AgentThread {
    files: Directory,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<(), String>>,
}

impl AgentThread {
    /// Starts the agent that `build` returns, with its subnet file and its status socket in a directory of its own.
    ///
    /// # Errors
    ///
    /// Fails if the directory cannot be created.
    pub fn start<B>(host: &Host, build: B) -> Result<Self, Box<dyn Error>>
    where
        B: FnOnce(&Path) -> Result<NodeAgent, Box<dyn Error>> + Send + 'static,
    {
        let (files, namespace) = (Directory::new()?, host.namespace.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let path = files.path().to_owned();
        let run = move || -> Result<(), Box<dyn Error>> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let agent = build(&path)?;
                Ok(agent.run_until(async { drop(stopped.await) }).await?)
            })
        };
        let run = move || namespace.run(move || run().map_err(|error| error.to_string()));
        let thread = thread::spawn(move || run().map_err(|error| error.to_string())?);
        Ok(Self { files, stop, thread })
    }

    /// Returns the path of the subnet file.
    #[must_use]
    pub fn subnet_file(&self) -> PathBuf {
        self.files.join("subnet.env")
    }

    /// Returns the path of the status socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.files.join("agent.sock")
    }

    /// Waits until the agent is ready and has programmed this many peers.
    ///
    /// # Errors
    ///
    /// Returns the conditions of the agent after half a minute.
    pub fn wait_until_ready(&self, peers: usize) -> Result<(), Box<dyn Error>> {
        let ready = || {
            let status = client::summary(&self.socket()).map_err(|error| error.to_string())?.network;
            if self.subnet_file().exists() && status.ready && status.peers.programmed == peers {
                return Ok(());
            }
            Err(format!("{} peers, {:?}", status.peers.programmed, status.conditions))
        };
        Ok(eventually(PATIENCE, ready)?)
    }

    /// Adds a pod with the subnet and MTU in the subnet file, as a container runtime does.
    ///
    /// # Errors
    ///
    /// Fails if the subnet file is missing or invalid.
    pub fn add_pod(&self, host: &Host) -> Result<Pod, Box<dyn Error>> {
        let text = fs::read_to_string(self.subnet_file())?;
        let value =
            |name| text.lines().find_map(|line| line.strip_prefix(name)).ok_or("incomplete subnet file");
        let subnet: IpNet = value("FLANNEL_SUBNET=")?.parse()?;
        Ok(host.add_pod(&[subnet.trunc()], value("FLANNEL_MTU=")?.parse()?)?)
    }

    /// Returns the value of a metric.
    ///
    /// # Errors
    ///
    /// Fails if the agent does not respond or has no such metric.
    pub fn metric(&self, name: &str) -> Result<String, Box<dyn Error>> {
        let text = String::from_utf8(client::fetch(&self.socket(), "/metrics")?)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.ok_or_else(|| format!("no metric {name}"))?.to_owned())
    }

    /// Waits until a metric has this value.
    ///
    /// # Errors
    ///
    /// Returns the last value after half a minute.
    pub fn wait_for_metric(&self, name: &str, expected: &str) -> Result<(), Box<dyn Error>> {
        Ok(eventually(PATIENCE, || match self.metric(name) {
            Ok(value) if value == expected => Ok(()),
            Ok(value) => Err(format!("{name} is {value}")),
            Err(error) => Err(error.to_string()),
        })?)
    }

    /// Stops the agent.
    ///
    /// # Errors
    ///
    /// Returns the error of the agent.
    pub fn stop(self) -> Result<(), Box<dyn Error>> {
        let _ = self.stop.send(());
        Ok(self.thread.join().map_err(|_| "the agent panicked")??)
    }
}
