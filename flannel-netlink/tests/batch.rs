//! Batches of writes, and dumps of many objects.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::cloned_ref_to_slice_refs,
    reason = "a failed step or an unexpected result fails the test"
)]

mod common;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use flannel_netlink::{
    Error, FdbEntry, IpFamily, Neighbour, Netlink, NewLink, NewLinkKind, Route, RouteFilter, WriteRequest,
};
use ipnet::{IpNet, Ipv4Net};

/// Returns the three objects of an overlay peer.
fn peer(index: u32, number: u32) -> [WriteRequest; 3] {
    let subnet = subnet(number);
    let mac = numbered_mac(number);
    let host = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + number);
    [
        WriteRequest::PutNeighbour(Neighbour::permanent(index, subnet.addr(), mac)),
        WriteRequest::PutFdb(FdbEntry::permanent(index, mac, host.into())),
        WriteRequest::PutRoute(Route::onlink(subnet, subnet.addr(), index).with_metric(number + 1)),
    ]
}

fn subnet(number: u32) -> IpNet {
    let start = u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (number << 8);
    IpNet::V4(Ipv4Net::new(Ipv4Addr::from(start), 24).unwrap())
}

/// Returns the positions of the first failed writes.
fn failures(results: &[Result<(), Error>]) -> Vec<usize> {
    results
        .iter()
        .enumerate()
        .filter(|(_, outcome)| outcome.is_err())
        .map(|(position, _)| position)
        .take(10)
        .collect()
}

fn overlay_routes(netlink: &mut Netlink, index: u32) -> Vec<Route> {
    let filter = RouteFilter { family: Some(IpFamily::V4), index: Some(index), ..RouteFilter::default() };
    netlink.routes(&filter).unwrap()
}

#[test]
fn one_invalid_object_among_a_thousand_fails_at_its_position() {
    let (_namespace, mut netlink, index) = namespace_with_vxlan();
    let mut writes: Vec<WriteRequest> = (0..334).flat_map(|number| peer(index, number)).collect();
    writes.truncate(1000);
    // The kernel refuses a multicast gateway.
    writes[500] = WriteRequest::PutRoute(Route::onlink(net("10.200.0.0/24"), ip("224.0.0.1"), index));
    let results = netlink.apply(&writes);
    assert_eq!(results.len(), 1000);
    assert_eq!(failures(&results), [500]);
    let error = results[500].as_ref().unwrap_err();
    assert_eq!(error.errno(), Some(libc::EINVAL));
    assert!(error.to_string().contains("10.200.0.0/24 via 224.0.0.1"), "{error}");

    let routes: BTreeSet<_> =
        overlay_routes(&mut netlink, index).iter().map(|route| route.destination).collect();
    let neighbours = netlink.neighbours(index, Some(IpFamily::V4)).unwrap();
    let entries = netlink.fdb(index).unwrap();
    let mut expected_routes = BTreeSet::new();
    for (position, write) in writes.iter().enumerate().filter(|(position, _)| *position != 500) {
        match write {
            WriteRequest::PutRoute(route) => assert!(expected_routes.insert(route.destination), "{position}"),
            WriteRequest::PutNeighbour(neighbour) => assert!(neighbours.contains(neighbour), "{position}"),
            WriteRequest::PutFdb(entry) => assert!(entries.contains(entry), "{position}"),
            other => panic!("{other}"),
        }
    }
    assert_eq!(routes, expected_routes);
}

#[test]
fn every_failure_in_a_batch_is_reported() {
    let (_namespace, mut netlink, index) = namespace_with_vxlan();
    let writes: Vec<_> = (0..1000)
        .map(|number| WriteRequest::PutRoute(Route::onlink(subnet(number), ip("224.0.0.1"), index)))
        .collect();
    let results = netlink.apply(&writes);
    assert_eq!(results.len(), 1000);
    for (outcome, write) in results.iter().zip(&writes) {
        let error = outcome.as_ref().unwrap_err();
        assert_eq!(error.errno(), Some(libc::EINVAL), "{error:?}");
        assert!(error.to_string().contains(&write.to_string()), "{error}");
    }
    assert!(netlink.link("flannel.1").unwrap().is_some(), "the socket is still usable");
}

#[test]
fn an_empty_batch_has_no_results() {
    let (_namespace, mut netlink) = namespace();
    assert!(netlink.apply(&[]).is_empty());
}

#[test]
fn twenty_thousand_peers_are_written_read_and_deleted() {
    const PEERS: u32 = 20_000;
    let (_namespace, mut netlink, index) = namespace_with_vxlan();
    let writes: Vec<WriteRequest> = (0..PEERS).flat_map(|number| peer(index, number)).collect();
    assert_eq!(failures(&netlink.apply(&writes)), [0; 0]);

    let routes: BTreeSet<_> =
        overlay_routes(&mut netlink, index).iter().map(|route| route.destination).collect();
    assert_eq!(routes, (0..PEERS).map(subnet).collect());
    assert_eq!(netlink.neighbours(index, Some(IpFamily::V4)).unwrap().len(), PEERS as usize);
    assert_eq!(netlink.fdb(index).unwrap().len(), PEERS as usize);

    let deletes: Vec<WriteRequest> = writes
        .into_iter()
        .map(|write| match write {
            WriteRequest::PutRoute(route) => WriteRequest::DeleteRoute(route),
            WriteRequest::PutNeighbour(neighbour) => WriteRequest::DeleteNeighbour(neighbour),
            WriteRequest::PutFdb(entry) => WriteRequest::DeleteFdb(entry),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(failures(&netlink.apply(&deletes)), [0; 0]);
    assert!(overlay_routes(&mut netlink, index).is_empty());
    assert!(netlink.neighbours(index, Some(IpFamily::V4)).unwrap().is_empty());
    assert!(netlink.fdb(index).unwrap().is_empty());
}

#[test]
fn a_dump_during_changes_is_complete_or_an_error() {
    const STEADY: usize = 200;
    let (namespace, mut netlink) = namespace();
    for number in 0..STEADY {
        netlink.create_link(&NewLink::new(format!("steady{number}"), NewLinkKind::Bridge)).unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut other = Netlink::open_in(&namespace).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let link = create(&mut other, &NewLink::new("fleeting", NewLinkKind::Bridge));
                other.delete_link(link.index).unwrap();
            }
        });
        for _ in 0..30 {
            match netlink.links() {
                Ok(links) => {
                    let steady: BTreeSet<_> = links
                        .iter()
                        .filter(|link| link.name.starts_with("steady"))
                        .map(|link| link.index)
                        .collect();
                    assert_eq!(steady.len(), STEADY);
                }
                Err(error) => assert!(matches!(error, Error::Interrupted("links")), "{error:?}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(netlink.links().unwrap().len(), STEADY + 1, "and loopback");
}
