//! A custom registry: leases in the orchestrator's store instead of etcd.
//!
//! `store` is the orchestrator's, and `registry` implements `SubnetRegistry` for it. The contract suite of `flannel-testing` checks
//! the implementation in `examples/tests/own_registry.rs`.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

mod registry;
mod store;

use std::error::Error;

use flannel_backend_vxlan::{OpenVxlan, external_interface};
use flannel_core::{Network, NetworkOptions, Shutdown, SubnetRegistry};
use flannel_examples::{pod, ready, run, show_ping};
use flannel_registry::RegistryLeaseManager;
use flannel_testing::{INTERFACE, Lab, LabOptions};

use store::Store;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let lab = Lab::new(&LabOptions::default())?;
    let store = Store::default();
    store.content().config = Some(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#.to_owned());

    let mut networks = Vec::new();
    for host in &lab.hosts {
        let external = external_interface(&host.namespace, INTERFACE)?;
        // The manager acquires, renews and defends the lease, with any registry.
        let manager = RegistryLeaseManager::new(store.clone());
        let backend = OpenVxlan::new(host.namespace.clone());
        let (network, task) = Network::new(NetworkOptions::new(manager, backend, external));
        run(task);
        networks.push(network);
    }
    let mut pods = Vec::new();
    for (host, network) in lab.hosts.iter().zip(&networks) {
        let running = ready(network, 1).await?;
        println!("{} leased {}", host.name, running.lease.subnet);
        pods.push(pod(host, &running)?);
    }
    show_ping(&pods[0], &pods[1]).await?;
    println!("{} holds {} leases", store.describe(), store.list().await?.leases.len());
    for network in networks {
        network.shutdown(Shutdown::Remove).await;
    }
    println!("{} holds {} leases", store.describe(), store.list().await?.leases.len());
    Ok(())
}
