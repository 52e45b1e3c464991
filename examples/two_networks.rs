//! Two independent networks in one process, each with its own VNI and namespaces.
//!
//! Both use the same addresses, so a misrouted packet would reach the wrong pod. They only share the underlay between the
//! hosts.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::error::Error;

use flannel_backend_vxlan::{OpenVxlan, external_interface};
use flannel_core::{Network, NetworkConfig, NetworkOptions, Shutdown, StaticLeaseManager};
use flannel_examples::{first_address, pod, ready, run, show_ping};
use flannel_testing::{Host, INTERFACE, Lab, LabOptions, Pod, transfer};

/// The number of bytes to send over each network while the other one is busy, too.
const BYTES: u64 = 20_000_000;

/// A network between two hosts, with a pod on each.
struct Overlay {
    name: &'static str,
    networks: Vec<Network>,
    pods: Vec<Pod>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let lab = Lab::new(&LabOptions { hosts: 4, ..LabOptions::default() })?;
    let green = overlay("green", 1, &lab.hosts[..2]).await?;
    let amber = overlay("amber", 2, &lab.hosts[2..]).await?;
    tokio::try_join!(carry(&green), carry(&amber))?;

    // Stopping one network does not affect the other.
    for network in green.networks {
        network.shutdown(Shutdown::Remove).await;
    }
    println!("green stopped");
    show_ping(&amber.pods[0], &amber.pods[1]).await?;
    println!("amber is in order: {}", amber.networks[0].summary().is_in_order());
    Ok(())
}

/// Starts a network on two hosts.
async fn overlay(name: &'static str, vni: u32, hosts: &[Host]) -> Result<Overlay, Box<dyn Error>> {
    let text = format!(r#"{{"Network": "10.5.0.0/16", "Backend": {{"Type": "vxlan", "VNI": {vni}}}}}"#);
    let config = NetworkConfig::parse(&text)?;
    let (mut networks, mut planes) = (Vec::new(), Vec::new());
    for (host, subnet) in hosts.iter().zip(["10.5.1.0-24", "10.5.2.0-24"]) {
        let plane = StaticLeaseManager::new(config.clone(), subnet.parse()?)?;
        let external = external_interface(&host.namespace, INTERFACE)?;
        // The network only touches this namespace.
        let backend = OpenVxlan::new(host.namespace.clone());
        let (network, task) = Network::new(NetworkOptions::new(plane.clone(), backend, external));
        run(task);
        networks.push(network);
        planes.push(plane);
    }
    // All hosts get the same list; each ignores its own lease.
    let leases = [planes[0].lease().await, planes[1].lease().await];
    let mut pods = Vec::new();
    for ((host, plane), network) in hosts.iter().zip(&planes).zip(&networks) {
        plane.set_peers(leases.clone());
        let running = ready(network, 1).await?;
        pods.push(pod(host, &running)?);
        let device = network.summary().devices.first().map(|device| device.name.clone()).unwrap_or_default();
        println!("{name}: {} has {} on {device}", host.name, running.lease.subnet);
    }
    Ok(Overlay { name, networks, pods })
}

/// Sends a stream from pod to pod and verifies the received data.
async fn carry(overlay: &Overlay) -> Result<(), Box<dyn Error>> {
    let [from, to] = &overlay.pods[..] else { return Err("expected two pods".into()) };
    let (client, server, address) = (from.namespace.clone(), to.namespace.clone(), first_address(to)?);
    let stream = tokio::task::spawn_blocking(move || transfer(&client, &server, address, BYTES));
    println!("{}: {} bytes from {} to {address}", overlay.name, stream.await??.bytes, from.name);
    Ok(())
}
