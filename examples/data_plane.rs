//! A data plane without any registry: who the hosts are comes from the program, and the network makes it so.
//!
//! Here the program is the control plane of two hosts: it gives each a subnet, asks what the host says about itself,
//! and tells it to the other one. Between real hosts the pair of texts in `wire` goes over the program's own RPC.
#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::error::Error;

use flannel_backend_vxlan::{OpenVxlan, external_interface};
use flannel_core::{
    BadRecord, Lease, Network, NetworkConfig, NetworkOptions, OpenBackend, PeerSet, PlanRequest, Revision,
    Running, Shutdown, StaticLeaseManager, Term, read_record,
};
use flannel_examples::{pod, ready, run, show_ping, until};
use flannel_netlink::{Netlink, Route, RouteFilter, Write};
use flannel_testing::{Host, INTERFACE, Lab, LabOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let lab = Lab::new(&LabOptions::default())?;
    let (red, blue) = (&lab.hosts[0], &lab.hosts[1]);
    let (red_plane, red_network) = start(red, "10.5.1.0-24")?;
    let (blue_plane, blue_network) = start(blue, "10.5.2.0-24")?;

    // What each host says about itself is known when its device is up; the other one must hear it.
    let (red_says, blue_says) = (wire(&red_plane.lease().await), wire(&blue_plane.lease().await));
    println!("red says {} {}", red_says.0, red_says.1);
    red_plane.set_peers([read(&blue_says)?]);
    blue_plane.set_peers([read(&red_says)?]);
    let (red_runs, blue_runs) = (ready(&red_network, 1).await?, ready(&blue_network, 1).await?);
    let (red_pod, blue_pod) = (pod(red, &red_runs)?, pod(blue, &blue_runs)?);
    show_ping(&red_pod, &blue_pod).await?;

    // It is kept so, whoever else changes the host.
    let mut kernel = Netlink::open_in(&red.namespace)?;
    let route = to_blue(&mut kernel)?.ok_or("there is no route to blue")?;
    show_plan(red, &red_runs, &[])?;
    for outcome in kernel.apply(&[Write::DeleteRoute(route)]) {
        outcome?;
    }
    until("the route is back", || to_blue(&mut kernel).is_ok_and(|route| route.is_some())).await?;
    println!("the route to blue was deleted, and is back");
    show_ping(&red_pod, &blue_pod).await?;

    // A list without blue, and blue is no peer any more.
    red_plane.set_peers(Vec::<Lease>::new());
    until("the route is gone", || to_blue(&mut kernel).is_ok_and(|route| route.is_none())).await?;
    println!("blue left, and its route with it");

    red_network.shutdown(Shutdown::Remove).await;
    blue_network.shutdown(Shutdown::Remove).await;
    Ok(())
}

/// Starts the network of a host, which gets its subnet from here.
fn start(host: &Host, subnet: &str) -> Result<(StaticLeaseManager, Network), Box<dyn Error>> {
    let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#)?;
    let plane = StaticLeaseManager::new(config, subnet.parse()?)?;
    let external = external_interface(&host.namespace, INTERFACE)?;
    let options = NetworkOptions::new(plane.clone(), OpenVxlan::new(host.namespace.clone()), external);
    let (network, task) = Network::new(options);
    run(task);
    Ok((plane, network))
}

/// Tells what would be done to a host if these were its peers. Nothing is written, and no network needs to run.
fn show_plan(host: &Host, running: &Running, peers: &[Lease]) -> Result<(), Box<dyn Error>> {
    let external = external_interface(&host.namespace, INTERFACE)?;
    let (config, own, peers) = (&running.config, &running.lease, &PeerSet::all_of(peers.to_vec()));
    let request = PlanRequest::new(config, &external, own, peers);
    let changes = OpenVxlan::new(host.namespace.clone()).plan(request)?.changes;
    changes.iter().for_each(|change| println!("without blue: {:?} {}", change.action, change.object));
    Ok(())
}

/// What a host says about itself, as two texts for the wire.
fn wire(own: &Lease) -> (String, String) {
    (own.subnet.to_string(), own.attrs.to_record())
}

fn read((subnet, record): &(String, String)) -> Result<Lease, BadRecord> {
    read_record(subnet, record.as_bytes(), Revision::default(), Term::Permanent)
}

/// The route that leads to blue's containers, if there is one.
fn to_blue(kernel: &mut Netlink) -> Result<Option<Route>, Box<dyn Error>> {
    let subnet = "10.5.2.0/24".parse()?;
    Ok(kernel.routes(&RouteFilter::default())?.into_iter().find(|route| route.destination == subnet))
}
