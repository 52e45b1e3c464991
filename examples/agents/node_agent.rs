//! A node agent built on `flannel-node`: it selects the external interface, runs a network with leases in a registry,
//! maintains the firewall rules and the subnet file, serves status and metrics, and probes its peers.
//!
//! The example runs it on three hosts with an in-memory registry; `flanneld` does the same with etcd.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use flannel_backend_vxlan::OpenVxlan;
use flannel_core::NetworkOptions;
use flannel_dataplane::InterfaceSelector;
use flannel_examples::agent::start_agents;
use flannel_examples::show_ping;
use flannel_firewall::{FirewallOptions, RuleOptions};
use flannel_netlink::Namespace;
use flannel_node::{AgentOptions, BackendRegistry, MeshOptions, NodeAgent};
use flannel_registry::{CacheOptions, CachedLeaseManager, MemoryRegistry, RegistryLeaseManager};
use flannel_testing::{INTERFACE, Lab, LabOptions};

/// Builds the agent of the host whose namespace the thread is in.
fn agent(registry: MemoryRegistry, files: &Path) -> Result<NodeAgent, Box<dyn Error>> {
    let namespace = Namespace::current()?;
    let backends = BackendRegistry::new().with(OpenVxlan::new(namespace.clone()));

    // Without a name it selects the interface of the default route.
    let choice = InterfaceSelector::new().with_interface(INTERFACE).choose(&namespace)?;

    let cache = CacheOptions::new(files.join("subnet.env.cache"), "example", choice.external.public);
    let manager = CachedLeaseManager::open(RegistryLeaseManager::new(registry), cache);
    let mut network = NetworkOptions::new(manager, backends.clone(), choice.external.clone());
    network.choose_external = Some(choice.into_chooser());

    let mut mesh = MeshOptions::default();
    mesh.interval = Duration::from_secs(1);
    let mut options = AgentOptions::default();
    options.subnet_file = Some(files.join("subnet.env"));
    options.firewall = Some(FirewallOptions::new(RuleOptions::default().with_masquerade(true)));
    options.observe.socket = Some(files.join("agent.sock"));
    options.mesh = Some(mesh);
    options.release_on_exit = true;
    Ok(NodeAgent::new(namespace, network, backends, options))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let lab = Lab::new(&LabOptions { hosts: 3, ..LabOptions::default() })?;
    let registry = MemoryRegistry::new();
    registry.set_config(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#);

    let (agents, pods) = start_agents(&lab, move |files| agent(registry.clone(), files))?;
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        show_ping(&pods[from], &pods[to]).await?;
    }
    agents[0].wait_for_metric(r#"flannel_probed_peers{verdict="reachable"}"#, "2")?;
    for metric in
        ["flannel_ready", "flannel_firewall_in_order", r#"flannel_probed_peers{verdict="reachable"}"#]
    {
        println!("{metric} {}", agents[0].metric(metric)?);
    }
    for agent in agents {
        agent.stop()?;
    }
    println!("everything removed");
    Ok(())
}
