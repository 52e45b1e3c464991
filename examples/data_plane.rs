//! A network without a registry: the program assigns the subnets and passes the leases between hosts.
//!
//! Here the program is the control plane of two hosts. Between real hosts, the two strings that `wire` returns would travel over
//! the program's own RPC.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::error::Error;

use flannel_backend_vxlan::{OpenVxlan, external_interface};
use flannel_core::{
    BadRecord, Lease, Network, NetworkConfig, NetworkOptions, OpenBackend, PeerSet, PlanRequest, Revision,
    Running, Shutdown, StaticLeaseManager, Term, read_record,
};
use flannel_examples::{pod, ready, run, show_ping, until};
use flannel_netlink::{Netlink, Route, RouteFilter, WriteRequest};
use flannel_testing::{Host, INTERFACE, Lab, LabOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let lab = Lab::new(&LabOptions::default())?;
    let (red, blue) = (&lab.hosts[0], &lab.hosts[1]);
    let (red_plane, red_network) = start(red, "10.5.1.0-24")?;
    let (blue_plane, blue_network) = start(blue, "10.5.2.0-24")?;

    // The lease of a host is complete when its device exists; the other host needs it.
    let (red_lease, blue_lease) = (wire(&red_plane.lease().await), wire(&blue_plane.lease().await));
    println!("lease of red: {} {}", red_lease.0, red_lease.1);
    red_plane.set_peers([read(&blue_lease)?]);
    blue_plane.set_peers([read(&red_lease)?]);
    let (red_runs, blue_runs) = (ready(&red_network, 1).await?, ready(&blue_network, 1).await?);
    let (red_pod, blue_pod) = (pod(red, &red_runs)?, pod(blue, &blue_runs)?);
    show_ping(&red_pod, &blue_pod).await?;

    // The network repairs external changes.
    let mut kernel = Netlink::open_in(&red.namespace)?;
    let route = to_blue(&mut kernel)?.ok_or("no route to blue")?;
    show_plan(red, &red_runs, &[])?;
    for outcome in kernel.apply(&[WriteRequest::DeleteRoute(route)]) {
        outcome?;
    }
    until("the route to be restored", || to_blue(&mut kernel).is_ok_and(|route| route.is_some())).await?;
    println!("the route to blue was deleted and restored");
    show_ping(&red_pod, &blue_pod).await?;

    // A peer that is missing from the list is removed.
    red_plane.set_peers(Vec::<Lease>::new());
    until("the route to be removed", || to_blue(&mut kernel).is_ok_and(|route| route.is_none())).await?;
    println!("blue left, and its route was removed");

    red_network.shutdown(Shutdown::Remove).await;
    blue_network.shutdown(Shutdown::Remove).await;
    Ok(())
}

/// Starts the network of a host with an assigned subnet.
fn start(host: &Host, subnet: &str) -> Result<(StaticLeaseManager, Network), Box<dyn Error>> {
    let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#)?;
    let plane = StaticLeaseManager::new(config, subnet.parse()?)?;
    let external = external_interface(&host.namespace, INTERFACE)?;
    let options = NetworkOptions::new(plane.clone(), OpenVxlan::new(host.namespace.clone()), external);
    let (network, task) = Network::new(options);
    run(task);
    Ok((plane, network))
}

/// Prints what the network would change on a host with these peers. Writes nothing, and needs no running network.
fn show_plan(host: &Host, running: &Running, peers: &[Lease]) -> Result<(), Box<dyn Error>> {
    let external = external_interface(&host.namespace, INTERFACE)?;
    let (config, own, peers) = (&running.config, &running.lease, &PeerSet::all_of(peers.to_vec()));
    let request = PlanRequest::new(config, &external, own, peers);
    let changes = OpenVxlan::new(host.namespace.clone()).plan(request)?.changes;
    changes.iter().for_each(|change| println!("without blue: {:?} {}", change.action, change.object));
    Ok(())
}

/// Formats a lease as two strings for the wire.
fn wire(own: &Lease) -> (String, String) {
    (own.subnet.to_string(), own.attrs.to_record())
}

fn read((subnet, record): &(String, String)) -> Result<Lease, BadRecord> {
    read_record(subnet, record.as_bytes(), Revision::default(), Term::Permanent)
}

/// Returns the route to blue's containers.
fn to_blue(kernel: &mut Netlink) -> Result<Option<Route>, Box<dyn Error>> {
    let subnet = "10.5.2.0/24".parse()?;
    Ok(kernel.routes(&RouteFilter::default())?.into_iter().find(|route| route.destination == subnet))
}
