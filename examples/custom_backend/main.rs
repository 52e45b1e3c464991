//! A custom backend, in `plain`, and a network of two hosts that uses it.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

mod plain;
mod routes;

use std::error::Error;

use flannel_backend_vxlan::external_interface;
use flannel_core::reconcile::Reconciler;
use flannel_core::{
    Backend, BackendError, BoxError, Network, NetworkConfig, NetworkOptions, OpenRequest, Shutdown,
    StaticLeaseManager,
};
use flannel_examples::{pod, ready, run, show_ping, until};
use flannel_netlink::{Monitor, Namespace, Netlink, RouteFilter, WriteRequest};
use flannel_testing::{INTERFACE, Lab, LabOptions};

use plain::Plain;
use routes::Routes;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let lab = Lab::new(&LabOptions::default())?;
    let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "plain"}}"#)?;
    let (mut networks, mut planes) = (Vec::new(), Vec::new());
    for (host, subnet) in lab.hosts.iter().zip(["10.5.1.0-24", "10.5.2.0-24"]) {
        let plane = StaticLeaseManager::new(config.clone(), subnet.parse()?)?;
        let external = external_interface(&host.namespace, INTERFACE)?;
        let namespace = host.namespace.clone();
        let open = move |request: OpenRequest<'_>| open(&namespace, request);
        let (network, task) = Network::new(NetworkOptions::new(plane.clone(), open, external));
        run(task);
        networks.push(network);
        planes.push(plane);
    }
    let leases = [planes[0].lease().await, planes[1].lease().await];
    let mut pods = Vec::new();
    for ((host, plane), network) in lab.hosts.iter().zip(&planes).zip(&networks) {
        plane.set_peers(leases.clone());
        pods.push(pod(host, &ready(network, 1).await?)?);
    }
    show_ping(&pods[0], &pods[1]).await?;

    // The network repairs drift, because the loop and the reconciler are those of the other backends.
    let mut kernel = Netlink::open_in(&lab.hosts[0].namespace)?;
    let ours = RouteFilter { protocol: Some(routes::OURS), ..RouteFilter::default() };
    let routes: Vec<_> = kernel.routes(&ours)?.into_iter().map(WriteRequest::DeleteRoute).collect();
    kernel.apply(&routes).into_iter().collect::<Result<Vec<_>, _>>()?;
    until("the route to be restored", || kernel.routes(&ours).is_ok_and(|routes| routes.len() == 1)).await?;
    println!("a route was deleted and restored: {}", networks[0].summary().kernel.repaired == 1);

    for network in networks {
        network.shutdown(Shutdown::Remove).await;
    }
    println!("remaining routes: {}", kernel.routes(&ours)?.len());
    Ok(())
}

fn open(namespace: &Namespace, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
    let failed = |source| BackendError::Kernel { object: "cannot open a netlink socket".to_owned(), source };
    // Open the monitor first, so that no change is missed.
    let mut monitor = Monitor::open_in(namespace).map_err(|error| failed(BoxError::from(error)))?;
    let netlink = Netlink::open_in(namespace).map_err(|error| failed(error.into()))?;
    // Ignore notifications about the backend's own writes.
    monitor.ignore_changes_of(&[netlink.port_id()]).map_err(|error| failed(error.into()))?;
    Ok(Box::new(Plain { routes: Reconciler::new(Routes(netlink)), monitor, mtu: request.external.mtu }))
}
