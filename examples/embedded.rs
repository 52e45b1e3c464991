//! Embeds networks in a program with its own runtime, and prints their events.
//!
//! Three hosts, each a network namespace, lease subnets from an in-memory registry. An orchestrator would use its own
//! store instead (see `own_registry`), and run one network per host.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::error::Error;

use flannel_backend_vxlan::{OpenVxlan, external_interface};
use flannel_core::{Network, NetworkEvent, NetworkOptions, Shutdown};
use flannel_examples::{pod, ready, show_ping};
use flannel_registry::{MemoryRegistry, RegistryLeaseManager};
use flannel_testing::{INTERFACE, Lab, LabOptions};
use futures::StreamExt;

fn main() -> Result<(), Box<dyn Error>> {
    // The program chooses the runtime; a current-thread one is sufficient.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(cluster())
}

async fn cluster() -> Result<(), Box<dyn Error>> {
    let lab = Lab::new(&LabOptions { hosts: 3, ..LabOptions::default() })?;
    let registry = MemoryRegistry::new();
    registry.set_config(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#);

    let mut members = Vec::new();
    for host in &lab.hosts {
        let external = external_interface(&host.namespace, INTERFACE)?;
        let backend = OpenVxlan::new(host.namespace.clone());
        let options = NetworkOptions::new(RegistryLeaseManager::new(registry.clone()), backend, external);
        let (network, task) = Network::new(options);
        tokio::spawn(print_events(host.name.clone(), network.events()));
        members.push((network, tokio::spawn(task.run())));
    }

    let mut pods = Vec::new();
    for (host, (network, _)) in lab.hosts.iter().zip(&members) {
        let running = ready(network, lab.hosts.len() - 1).await?;
        pods.push(pod(host, &running)?);
    }
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        show_ping(&pods[from], &pods[to]).await?;
    }
    // The complete state of a network; also available as JSON.
    let status = members[0].0.status();
    println!("host-1 is in order: {}, with {} peers", status.is_in_order(), status.peers.known);

    for (network, task) in members {
        network.shutdown(Shutdown::Remove).await;
        task.await??;
    }
    println!("everything removed");
    Ok(())
}

/// Prints some of the events of a host.
async fn print_events(host: String, mut events: impl futures::Stream<Item = NetworkEvent> + Unpin) {
    while let Some(event) = events.next().await {
        if let NetworkEvent::LeaseAcquired(lease) = &event {
            println!("{host} leased {}", lease.subnet);
        } else if let NetworkEvent::PeerJoined(lease) = &event {
            println!("{host} learned of {}", lease.attrs.public);
        } else if let NetworkEvent::Ready = event {
            println!("{host} is ready");
        }
    }
}
