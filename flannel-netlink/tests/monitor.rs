//! Notifications of changes.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::cloned_ref_to_slice_refs,
    reason = "a failed step or an unexpected result fails the test"
)]

mod common;

use std::time::Duration;

use common::*;
use flannel_netlink::{
    Address, FdbEntry, IpFamily, LinkChange, Monitor, Namespace, Neighbour, Netlink, NewLink, NewLinkKind,
    Notification, Route, WriteRequest,
};

/// Waits for a notification that `select` accepts; skips those before it.
fn wait_for<T>(monitor: &mut Monitor, what: &str, select: impl Fn(Notification) -> Option<T>) -> T {
    eventually(what, || {
        while let Some(notification) = monitor.try_next().unwrap() {
            if let Some(found) = select(notification) {
                return Some(found);
            }
        }
        None
    })
}

/// Returns all notifications before that of a marker change made here.
fn until_marker(monitor: &mut Monitor, netlink: &mut Netlink) -> Vec<Notification> {
    const MARK: u32 = 60_000;
    let change = LinkChange { mtu: Some(MARK), ..LinkChange::default() };
    netlink.change_link(LOOPBACK, &change).unwrap();
    let mut seen = Vec::new();
    eventually("the marker", || {
        while let Some(notification) = monitor.try_next().unwrap() {
            if matches!(&notification, Notification::Link { link, .. } if link.mtu == MARK) {
                return Some(());
            }
            seen.push(notification);
        }
        None
    });
    seen
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn within<T>(future: impl Future<Output = T>) -> T {
    runtime()
        .block_on(async { tokio::time::timeout(DEADLINE, future).await.expect("a notification in time") })
}

/// Opens a socket that stands for another program in the same namespace.
fn another_program(namespace: &Namespace) -> Netlink {
    Netlink::open_in(namespace).unwrap()
}

#[test]
fn setting_a_link_down_and_deleting_it_is_announced() {
    let (namespace, mut netlink, index) = namespace_with_vxlan();
    let mut monitor = Monitor::open_in(&namespace).unwrap();
    set_up(&mut netlink, index, false);
    let notification = wait_for(&mut monitor, "the link going down", |notification| match notification {
        Notification::Link { link, removed } if !link.up => Some((link.index, link.name, removed)),
        _ => None,
    });
    assert_eq!(notification, (index, "flannel.1".to_owned(), false));
    netlink.delete_link(index).unwrap();
    let gone = wait_for(&mut monitor, "the link's end", |notification| match notification {
        Notification::Link { link, removed: true } => Some(link.index),
        _ => None,
    });
    assert_eq!(gone, index);
}

#[test]
fn a_port_that_leaves_its_bridge_is_not_announced_as_removed() {
    let (namespace, mut netlink) = namespace();
    let bridge = create(&mut netlink, &NewLink::new("cni0", NewLinkKind::Bridge)).index;
    let port = create(&mut netlink, &NewLink { master: Some(bridge), ..ethernet("port0") }).index;
    let mut monitor = Monitor::open_in(&namespace).unwrap();
    let change = LinkChange { master: Some(0), ..LinkChange::default() };
    netlink.change_link(port, &change).unwrap();
    let seen = until_marker(&mut monitor, &mut netlink);
    assert!(!seen.is_empty());
    assert!(
        !seen.iter().any(|notification| matches!(notification, Notification::Link { removed: true, .. })),
        "{seen:?}"
    );
}

#[test]
fn every_put_and_delete_of_another_program_is_announced() {
    let (namespace, _netlink, index) = namespace_with_vxlan();
    let mut monitor = Monitor::open_in(&namespace).unwrap();
    let mut other = another_program(&namespace);
    let address = Address::new(index, net("10.5.1.0/32"));
    let neighbour = Neighbour::permanent(index, ip("10.5.3.0"), numbered_mac(3));
    let neighbour6 = Neighbour::permanent(index, ip("fd99::3"), numbered_mac(3));
    let entry = FdbEntry::permanent(index, numbered_mac(3), ip("10.88.0.3"));
    let route = Route::onlink(net("10.5.3.0/24"), ip("10.5.3.0"), index).with_metric(3);
    let route6 = Route::onlink(net("fd99:3::/64"), ip("fd99:3::"), index).with_metric(3);
    let writes = [
        WriteRequest::PutAddress(address.clone()),
        WriteRequest::PutNeighbour(neighbour.clone()),
        WriteRequest::PutNeighbour(neighbour6.clone()),
        WriteRequest::PutFdb(entry.clone()),
        WriteRequest::PutRoute(route.clone()),
        WriteRequest::PutRoute(route6.clone()),
        WriteRequest::DeleteRoute(route6.clone()),
        WriteRequest::DeleteRoute(route.clone()),
        WriteRequest::DeleteFdb(entry.clone()),
        WriteRequest::DeleteNeighbour(neighbour.clone()),
        WriteRequest::DeleteNeighbour(neighbour6.clone()),
        WriteRequest::DeleteAddress(address.clone()),
    ];
    assert!(other.apply(&writes).iter().all(Result::is_ok));
    for removed in [false, true] {
        let mut expected = vec![
            Notification::Route { route: route.clone(), removed },
            Notification::Route { route: route6.clone(), removed },
            Notification::Fdb { entry: entry.clone(), removed },
        ];
        eventually("all notifications", || {
            while let Some(notification) = monitor.try_next().unwrap() {
                expected.retain(|expected| *expected != notification);
                // A deleted neighbour has another state, and an address gets flags.
                match &notification {
                    Notification::Neighbour { neighbour: seen, removed: gone } if *gone == removed => {
                        assert!(seen.address == neighbour.address || seen.address == neighbour6.address);
                    }
                    Notification::Address { address: seen, removed: gone } if *gone == removed && removed => {
                        assert_eq!((seen.net, seen.index), (address.net, index));
                        return Some(());
                    }
                    _ => {}
                }
                if !removed && expected.is_empty() {
                    return Some(());
                }
            }
            None
        });
        assert_eq!(expected, []);
    }
}

#[test]
fn own_routes_and_neighbours_are_filtered() {
    let (namespace, mut netlink, index) = namespace_with_vxlan();
    let mut second = another_program(&namespace);
    let mut other = another_program(&namespace);
    let mut monitor = Monitor::open_in(&namespace).unwrap();
    monitor.ignore_changes_of(&[netlink.port_id(), second.port_id()]).unwrap();
    let writes = |number: u32| {
        let gateway = ip(&format!("10.5.{number}.0"));
        [
            WriteRequest::PutNeighbour(Neighbour::permanent(index, gateway, numbered_mac(number))),
            WriteRequest::PutRoute(Route::onlink(ipnet::IpNet::new(gateway, 24).unwrap(), gateway, index)),
        ]
    };
    for (writer, number) in [(&mut netlink, 1), (&mut second, 2), (&mut other, 3)] {
        assert!(writer.apply(&writes(number)).iter().all(Result::is_ok));
    }
    assert!(netlink.add_address(&Address::new(index, net("10.5.9.0/32"))).is_ok());
    let seen = until_marker(&mut monitor, &mut other);
    let gateways: Vec<_> = seen
        .iter()
        .filter_map(|notification| match notification {
            Notification::Neighbour { neighbour, .. } => Some(neighbour.address),
            Notification::Route { route, .. } => route.gateway,
            _ => None,
        })
        .collect();
    assert_eq!(gateways, [ip("10.5.3.0"), ip("10.5.3.0")]);
    assert!(
        seen.iter().any(|notification| matches!(notification, Notification::Address { .. })),
        "address changes are always announced: {seen:?}"
    );
}

#[test]
fn a_deleted_neighbour_wakes_a_waiting_monitor() {
    let (namespace, mut netlink, index) = namespace_with_vxlan();
    let neighbour = Neighbour::permanent(index, ip("10.5.3.0"), numbered_mac(3));
    assert!(netlink.apply(&[WriteRequest::PutNeighbour(neighbour.clone())])[0].is_ok());
    let mut monitor = Monitor::open_in(&namespace).unwrap();
    let found = within(async {
        // A cancelled wait loses nothing.
        assert!(tokio::time::timeout(Duration::from_millis(20), monitor.next()).await.is_err());
        let delete = WriteRequest::DeleteNeighbour(neighbour.clone());
        let writer = std::thread::spawn(move || netlink.apply(&[delete])[0].is_ok());
        let found = loop {
            if let Notification::Neighbour { neighbour, removed: true } = monitor.next().await.unwrap() {
                break neighbour;
            }
        };
        assert!(writer.join().unwrap());
        found
    });
    assert_eq!((found.index, found.address), (index, neighbour.address));
}

#[test]
fn a_burst_of_notifications_is_received_completely() {
    let (namespace, mut netlink, index) = namespace_with_vxlan();
    let mut monitor = Monitor::open_in(&namespace).unwrap();
    let writes: Vec<_> = (0..5000)
        .map(|number| WriteRequest::PutFdb(FdbEntry::permanent(index, numbered_mac(number), ip("10.88.0.3"))))
        .collect();
    assert!(netlink.apply(&writes).iter().all(Result::is_ok));
    let count = within(async {
        let mut count = 0;
        while count < 5000 {
            match monitor.next().await.unwrap() {
                Notification::Fdb { removed: false, .. } => count += 1,
                Notification::Overrun => panic!("5,000 notifications fit into the buffer"),
                _ => {}
            }
        }
        count
    });
    assert_eq!(count, 5000);
}

#[test]
fn a_flood_yields_one_overrun_and_then_new_notifications() {
    let (namespace, mut netlink, index) = namespace_with_vxlan();
    let mut monitor = Monitor::open_in(&namespace).unwrap();
    let writes: Vec<_> = (0..60_000)
        .map(|number| WriteRequest::PutFdb(FdbEntry::permanent(index, numbered_mac(number), ip("10.88.0.3"))))
        .collect();
    assert!(netlink.apply(&writes).iter().all(Result::is_ok), "the writer loses nothing");
    assert_eq!(within(monitor.next()).unwrap(), Notification::Overrun);
    let seen = until_marker(&mut monitor, &mut netlink);
    assert_eq!(seen, [], "what was queued before the overrun is of no use");
}

#[test]
fn changes_in_other_namespaces_are_not_received() {
    let (namespace, mut netlink) = namespace();
    let (_other, mut elsewhere, _index) = namespace_with_vxlan();
    let mut monitor = Monitor::open_in(&namespace).unwrap();
    elsewhere.create_link(&NewLink::new("cni0", NewLinkKind::Bridge)).unwrap();
    assert_eq!(until_marker(&mut monitor, &mut netlink), []);
}

#[test]
fn a_monitor_of_connections_receives_links_addresses_and_default_routes_only() {
    let (namespace, mut netlink, index) = namespace_with_ethernet();
    let mut monitor = Monitor::open_for_connections(&namespace).unwrap();
    let address = Address::new(index, net("10.88.0.1/24"));
    netlink.add_address(&address).unwrap();
    let default = Route::by_gateway(net("0.0.0.0/0"), ip("10.88.0.254"));
    let writes = [
        WriteRequest::PutRoute(Route::by_gateway(net("10.5.2.0/24"), ip("10.88.0.2"))),
        WriteRequest::PutRoute(default.clone()),
        WriteRequest::PutNeighbour(Neighbour::permanent(index, ip("10.88.0.2"), numbered_mac(2))),
        WriteRequest::DeleteRoute(Route::by_gateway(net("10.5.2.0/24"), ip("10.88.0.2"))),
        WriteRequest::DeleteRoute(default),
    ];
    assert!(netlink.apply(&writes).iter().all(Result::is_ok));
    let seen = until_marker(&mut monitor, &mut netlink);
    let short = |notification: &Notification| match notification {
        Notification::Address { address, removed: false } => format!("{}", address.net),
        Notification::Route { route, removed } => format!("{} {removed}", route.destination),
        other => panic!("{other:?}"),
    };
    let seen: Vec<_> = seen.iter().map(short).collect();
    assert_eq!(seen, ["10.88.0.1/24", "0.0.0.0/0 false", "0.0.0.0/0 true"]);
}

#[test]
fn forwarding_changes_are_announced_for_one_link_and_for_all() {
    let (namespace, mut netlink, index) = namespace_with_ethernet();
    let families = [
        (IpFamily::V4, "net/ipv4/ip_forward", "ipv4"),
        (IpFamily::V6, "net/ipv6/conf/all/forwarding", "ipv6"),
    ];
    for (family, all, one) in families {
        for value in ["0", "1"] {
            namespace.write_sysctl(all, value).unwrap();
        }
        let mut monitor = Monitor::open_in(&namespace).unwrap();
        let mut is_notified = |name: &str, value: &str, wanted: Option<u32>| {
            namespace.write_sysctl(name, value).unwrap();
            wait_for(&mut monitor, name, |notification| match notification {
                Notification::Forwarding { family: of, index, on } if (of, index) == (family, wanted) => {
                    Some(on)
                }
                _ => None,
            })
        };
        assert!(!is_notified(&format!("net/{one}/conf/eth0/forwarding"), "0", Some(index)));
        // The setting of a link is independent of that of all links.
        assert_eq!(netlink.is_forwarding(family, Some(index)).ok(), Some(false));
        assert_eq!(netlink.is_forwarding(family, None).ok(), Some(true));
        assert!(!is_notified(all, "0", None));
        assert_eq!(netlink.is_forwarding(family, None).ok(), Some(false));
        assert!(is_notified(all, "1", None));
        assert_eq!(netlink.is_forwarding(family, Some(index)).ok(), Some(true));
        assert!(netlink.is_forwarding(family, Some(999)).is_err());
    }
}
