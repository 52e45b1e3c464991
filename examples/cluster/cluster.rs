//! The hosts, their networks and their pods.

use std::error::Error;
use std::time::Duration;

use flannel_backend_host_gw::OpenHostGw;
use flannel_backend_udp::OpenUdp;
use flannel_backend_vxlan::{OpenVxlan, external_interface};
use flannel_core::{BackendError, Network, NetworkError, NetworkOptions, NotReady, Running, Shutdown};
use flannel_examples::{Progress, TextTable};
use flannel_registry::{MemoryRegistry, RegistryLeaseManager};
use flannel_testing::{Host, INTERFACE, Lab, LabError, LabOptions, Pod};
use tokio::task::JoinHandle;

use crate::args::Args;

/// The address range of the network.
const NETWORK: &str = "10.5.0.0/16";

/// Timeout for the hosts to learn each other. It usually takes milliseconds, more on machines under load.
const PATIENCE: Duration = Duration::from_secs(30);

/// The running cluster. Fields are dropped in this order: networks before their hosts.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    lab: Lab,
    backend: String,
}

/// A host with its network and its pod.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) running: Running,
    pub(crate) pod: Pod,
    member: Member,
}

/// A network that runs on a host.
struct Member {
    network: Network,
    task: JoinHandle<Result<(), NetworkError>>,
}

impl Cluster {
    pub(crate) async fn start(args: &Args) -> Result<Self, Box<dyn Error>> {
        let step = Progress::begin("hosts");
        let lab = Lab::new(&LabOptions { hosts: args.hosts, named: args.keep, ..LabOptions::default() })?;
        step.done(&format!("{} network namespaces, joined by a switch", args.hosts));

        let step = Progress::begin("leases");
        let registry = MemoryRegistry::new();
        registry
            .set_config(format!(r#"{{"Network": "{NETWORK}", "Backend": {{"Type": "{}"}}}}"#, args.backend));
        let start = |host| Member::start(host, &args.backend, registry.clone());
        let mut members = lab.hosts.iter().map(start).collect::<Result<Vec<_>, _>>()?;
        let mut running = Vec::new();
        for member in &mut members {
            running.push(member.ready(args.hosts - 1).await?);
        }
        step.done("each host has a subnet and routes to all others");

        let step = Progress::begin("pods");
        let hosts = lab.hosts.iter().zip(members).zip(running);
        let nodes = hosts
            .map(|((host, member), running)| Node::new(host, member, running))
            .collect::<Result<_, _>>()?;
        step.done("one on each host");
        Ok(Self { nodes, lab, backend: args.backend.clone() })
    }

    pub(crate) fn show(&self) {
        println!("\nhosts");
        let mut table = TextTable::new(["host", "address", "subnet", "mtu", "pod"]);
        for node in &self.nodes {
            let subnets: Vec<_> = node.running.lease.subnet.nets().map(|net| net.to_string()).collect();
            let pods: Vec<_> = node.pod.addresses.iter().map(ToString::to_string).collect();
            let mtu = node.running.mtu.to_string();
            table.row([node.name.clone(), node.address.clone(), subnets.join(" "), mtu, pods.join(" ")]);
        }
        table.print();
    }

    /// Prints commands to inspect the cluster.
    pub(crate) fn show_commands(&self) {
        let prefix = self.lab.prefix().unwrap_or_default();
        println!("Everything stays up until Ctrl-C. From another terminal, for example:\n");
        let tunnel = ["ip -d link show flannel.1", "ip neigh", "bridge fdb show dev flannel.1"];
        let tunnel = tunnel.into_iter().filter(|_| self.backend == "vxlan");
        for command in std::iter::once("ip route").chain(tunnel) {
            println!("  ip netns exec {prefix}-host-1 {command}");
        }
        if let Some(address) = self.nodes.get(1).and_then(|node| node.pod.addresses.first()) {
            println!("  ip netns exec {prefix}-host-1-pod-1 ping {address}");
        }
    }

    /// Stops all networks and waits for their tasks.
    pub(crate) async fn stop(self) -> Result<(), Box<dyn Error>> {
        for Node { member, .. } in self.nodes {
            member.network.shutdown(Shutdown::Remove).await;
            member.task.await??;
        }
        Ok(())
    }
}

impl Node {
    /// Adds a pod to a host.
    fn new(host: &Host, member: Member, running: Running) -> Result<Self, LabError> {
        let subnets: Vec<_> = running.lease.subnet.nets().collect();
        let pod = host.add_pod(&subnets, running.mtu)?;
        let address = host.ipv4().map(|address| address.to_string()).unwrap_or_default();
        Ok(Self { name: host.name.clone(), address, running, pod, member })
    }
}

impl Member {
    /// Starts the network of one host.
    fn start(host: &Host, backend: &str, registry: MemoryRegistry) -> Result<Self, BackendError> {
        let external = external_interface(&host.namespace, INTERFACE)?;
        let (namespace, manager) = (host.namespace.clone(), RegistryLeaseManager::new(registry));
        let options = match backend {
            "host-gw" => NetworkOptions::new(manager, OpenHostGw::new(namespace), external),
            "udp" => NetworkOptions::new(manager, OpenUdp::new(namespace), external),
            _ => NetworkOptions::new(manager, OpenVxlan::new(namespace), external),
        };
        let (network, task) = Network::new(options);
        Ok(Self { network, task: tokio::spawn(task.run()) })
    }

    /// Waits until the host has programmed this many peers, or returns why not.
    async fn ready(&self, others: usize) -> Result<Running, Box<dyn Error>> {
        let programmed = async {
            let running = self.network.ready().await?;
            while self.network.summary().peers.programmed < others {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok::<_, NotReady>(running)
        };
        match tokio::time::timeout(PATIENCE, programmed).await {
            Ok(running) => Ok(running?),
            Err(_) => Err(format!("timed out waiting for a host: {:?}", self.network.summary()).into()),
        }
    }
}
