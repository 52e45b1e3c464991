//! A host in a namespace of its own, with the tunnel device.

use flannel_backend_vxlan::{OpenVxlan, external_interface};
use flannel_core::{Backend, Lease, NetworkConfig, OpenBackend, OpenRequest, Revision, Term};
use flannel_netlink::{Namespace, Netlink, RouteFilter, RouteKind, WriteRequest};
use flannel_testing::{Lab, LabOptions};

use crate::peers;

pub(crate) fn lab() -> Lab {
    Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap()
}

/// Opens the backend and configures it for the host's own lease.
pub(crate) fn open(namespace: &Namespace) -> Box<dyn Backend> {
    let config = NetworkConfig::parse(peers::CONFIG).unwrap();
    let external = external_interface(namespace, "eth0").unwrap();
    let request = OpenRequest::new(&config, &external);
    let mut backend = OpenVxlan::new(namespace.clone()).open(request).unwrap();
    let own = Lease {
        subnet: peers::OWN_SUBNET.parse().unwrap(),
        attrs: backend.attrs().at(external.public),
        revision: Revision(1),
        term: Term::Limited,
    };
    backend.configure(&own).unwrap();
    backend
}

/// Creates the device as the backend does, and returns its index.
pub(crate) fn device(namespace: &Namespace) -> u32 {
    drop(open(namespace));
    Netlink::open_in(namespace).unwrap().link("flannel.1").unwrap().unwrap().index
}

/// Removes the objects of all peers, as a person with `ip` and `bridge` would.
pub(crate) fn flush(namespace: &Namespace, peers: u32) {
    let mut netlink = Netlink::open_in(namespace).unwrap();
    let index = netlink.link("flannel.1").unwrap().unwrap().index;
    let routes = netlink.routes(&RouteFilter { index: Some(index), ..RouteFilter::default() }).unwrap();
    let routes =
        routes.into_iter().filter(|route| route.gateway.is_some() && route.kind == RouteKind::Unicast);
    let neighbours = netlink.neighbours(index, None).unwrap().into_iter();
    let neighbours = neighbours.filter(flannel_netlink::Neighbour::is_permanent);
    let fdb = netlink.fdb(index).unwrap().into_iter();
    let writes: Vec<WriteRequest> = routes
        .map(WriteRequest::DeleteRoute)
        .chain(neighbours.map(WriteRequest::DeleteNeighbour))
        .chain(fdb.map(WriteRequest::DeleteFdb))
        .collect();
    assert_eq!(writes.len(), 3 * peers as usize, "every object must have existed");
    assert!(netlink.apply(&writes).iter().all(Result::is_ok));
}
