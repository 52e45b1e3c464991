//! A node agent without a registry: a control plane assigns the subnets and sends each host the leases of the others.
//!
//! Here the control plane is the main thread. Between real hosts, a lease travels as two strings over its RPC: see
//! `data_plane.rs`.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::error::Error;
use std::path::Path;

use flannel_backend_vxlan::{OpenVxlan, external_interface};
use flannel_core::{NetworkConfig, NetworkOptions, StaticLeaseManager};
use flannel_examples::agent::{AgentThread, agent_options};
use flannel_examples::show_ping;
use flannel_netlink::Namespace;
use flannel_node::{BackendRegistry, NodeAgent};
use flannel_testing::{INTERFACE, Lab, LabOptions};

/// Builds the agent of the host whose namespace the thread is in.
fn agent(manager: StaticLeaseManager, files: &Path) -> Result<NodeAgent, Box<dyn Error>> {
    let namespace = Namespace::current()?;
    let backends = BackendRegistry::new().with(OpenVxlan::new(namespace.clone()));
    let external = external_interface(&namespace, INTERFACE)?;
    let network = NetworkOptions::new(manager, backends.clone(), external);
    Ok(NodeAgent::new(namespace, network, backends, agent_options(files)))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let lab = Lab::new(&LabOptions::default())?;
    let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#)?;

    let (mut agents, mut managers) = (Vec::new(), Vec::new());
    for (host, subnet) in lab.hosts.iter().zip(["10.5.1.0-24", "10.5.2.0-24"]) {
        let manager = StaticLeaseManager::new(config.clone(), subnet.parse()?)?;
        managers.push(manager.clone());
        agents.push(AgentThread::start(host, move |files| agent(manager, files))?);
    }
    // A lease is complete when the backend has its device. Every host gets the same list and ignores its own lease.
    let leases = [managers[0].lease().await, managers[1].lease().await];
    managers.iter().for_each(|manager| manager.set_peers(leases.clone()));

    let mut pods = Vec::new();
    for (host, agent) in lab.hosts.iter().zip(&agents) {
        agent.wait_until_ready(1)?;
        pods.push(agent.add_pod(host)?);
    }
    show_ping(&pods[0], &pods[1]).await?;

    managers[0].set_unavailable("the control plane restarts");
    show_ping(&pods[1], &pods[0]).await?;
    println!("flannel_registry_up {}", agents[0].metric("flannel_registry_up")?);
    for agent in agents {
        agent.stop()?;
    }
    println!("everything removed");
    Ok(())
}
