//! The hosts, their networks and their pods.

use std::error::Error;
use std::time::Duration;

use flannel_backend_vxlan::{OpenVxlan, external_interface};
use flannel_core::{Network, NetworkError, NetworkOptions, Running, Shutdown};
use flannel_examples::{Progress, Table};
use flannel_registry::{LocalManager, MemoryRegistry};
use flannel_testing::{Host, INTERFACE, Lab, LabOptions, Pod};
use tokio::task::JoinHandle;

use crate::args::Args;

/// The network that the hosts share.
const NETWORK: &str = "10.5.0.0/16";

/// How long the hosts may take to know each other. It takes milliseconds; a machine under load may need more.
const PATIENCE: Duration = Duration::from_secs(30);

/// Everything that was started. The fields are dropped in this order: networks before the hosts they run on.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    lab: Lab,
}

/// One host with its network and its pod.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) running: Running,
    pub(crate) pod: Pod,
    network: Network,
    task: JoinHandle<Result<(), NetworkError>>,
}

impl Cluster {
    pub(crate) async fn start(args: &Args) -> Result<Self, Box<dyn Error>> {
        let step = Progress::begin("hosts");
        let lab = Lab::new(&LabOptions {
            hosts: args.hosts,
            named: args.keep,
            ..LabOptions::default()
        })?;
        step.done(&format!("{} network namespaces, joined by a switch", args.hosts));

        let step = Progress::begin("leases");
        let registry = MemoryRegistry::new();
        registry.set_config(format!(
            r#"{{"Network": "{NETWORK}", "Backend": {{"Type": "{}"}}}}"#,
            args.backend
        ));
        let mut started = Vec::new();
        for host in &lab.hosts {
            started.push(join(host, registry.clone())?);
        }
        let mut joined = Vec::new();
        for (host, (network, task)) in lab.hosts.iter().zip(started) {
            let (running, task) = ready(host, &network, task).await?;
            joined.push((host, network, task, running));
        }
        step.done("every host has a subnet and routes to all others");

        let step = Progress::begin("pods");
        let nodes = joined.into_iter().map(|(host, network, task, running)| {
            let subnets: Vec<_> = running.lease.subnet.nets().collect();
            let pod = host.add_pod(&subnets, running.mtu)?;
            let address = host.ipv4().map(|address| address.to_string()).unwrap_or_default();
            Ok(Node {
                name: host.name.clone(),
                address,
                running,
                pod,
                network,
                task,
            })
        });
        let nodes = nodes.collect::<Result<_, Box<dyn Error>>>()?;
        step.done("one on each host");
        Ok(Self { nodes, lab })
    }

    pub(crate) fn show(&self) {
        println!("\nhosts");
        let mut table = Table::new(["host", "address", "subnet", "mtu", "pod"]);
        for node in &self.nodes {
            let subnets: Vec<_> = node
                .running
                .lease
                .subnet
                .nets()
                .map(|net| net.to_string())
                .collect();
            let pods: Vec<_> = node.pod.addresses.iter().map(ToString::to_string).collect();
            let mtu = node.running.mtu.to_string();
            table.row([
                node.name.clone(),
                node.address.clone(),
                subnets.join(" "),
                mtu,
                pods.join(" "),
            ]);
        }
        table.print();
    }

    /// Says how to look at what is up.
    pub(crate) fn look_around(&self) {
        let prefix = self.lab.prefix().unwrap_or_default();
        println!("All of it is up until Ctrl-C. From another terminal, for example:\n");
        for command in [
            "ip route",
            "ip -d link show flannel.1",
            "ip neigh",
            "bridge fdb show dev flannel.1",
        ] {
            println!("  ip netns exec {prefix}host-1 {command}");
        }
        if let Some(address) = self.nodes.get(1).and_then(|node| node.pod.addresses.first()) {
            println!("  ip netns exec {prefix}host-1-pod-1 ping {address}");
        }
    }

    /// Ends all networks and waits for their tasks.
    pub(crate) async fn stop(self) -> Result<(), Box<dyn Error>> {
        for node in self.nodes {
            node.network.shutdown(Shutdown::Remove).await;
            node.task.await??;
        }
        Ok(())
    }
}

/// Starts the network of one host.
fn join(
    host: &Host,
    registry: MemoryRegistry,
) -> Result<(Network, JoinHandle<Result<(), NetworkError>>), Box<dyn Error>> {
    let external = external_interface(&host.namespace, INTERFACE)?;
    let backend = OpenVxlan::new(host.namespace.clone());
    let (network, task) = Network::new(NetworkOptions::new(
        LocalManager::new(registry),
        backend,
        external,
    ));
    Ok((network, tokio::spawn(task.run())))
}

/// Waits until a host carries traffic to all others, or tells why it does not.
async fn ready(
    host: &Host,
    network: &Network,
    task: JoinHandle<Result<(), NetworkError>>,
) -> Result<(Running, JoinHandle<Result<(), NetworkError>>), Box<dyn Error>> {
    match tokio::time::timeout(PATIENCE, network.ready()).await {
        Ok(Some(running)) => Ok((running, task)),
        Ok(None) => {
            let reason = task
                .await?
                .err()
                .map(|error| flannel_core::chain(&error))
                .unwrap_or_default();
            Err(format!("{}: {reason}", host.name).into())
        }
        Err(_) => {
            let status = network.status();
            let reason = status.waiting_for.unwrap_or_else(|| "the other hosts".to_owned());
            Err(format!("{} is still waiting for {reason}", host.name).into())
        }
    }
}
