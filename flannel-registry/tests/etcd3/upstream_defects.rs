//! Defects of upstream flannel v0.28.9 with etcd, tested on nodes without a kernel. Tests that need one are in
//! `flanneld-bin/tests/daemon/upstream_defects.rs`.

use std::time::Duration;

use flannel_core::{NetworkEvent, RegistryError, SubnetKey, SubnetRegistry};
use flannel_registry::Etcd3Registry;
use tokio::time::sleep;

use crate::common::crowd::{CONFIG, Node};
use crate::common::proxy::Proxy;
use crate::server::{DAY, PREFIX, Server, host, subnet, subnet_key};

/// Starts an etcd with a config, and a registry that reaches it only through a proxy.
async fn site() -> (Server, Proxy, Etcd3Registry) {
    let server = Server::start();
    server.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
    let proxy = Proxy::to(server.address()).await;
    let mut options = server.options();
    options.endpoints = vec![proxy.url()];
    // A busy machine must not cause repeated requests.
    options.timeout = Duration::from_secs(20);
    (server, proxy, Etcd3Registry::new(options).unwrap())
}

fn put(server: &Server, subnet: SubnetKey, last: u8) {
    server.put(&subnet.to_string(), &host(last).to_record());
}

/// Makes the watch of a node miss changes for good, so that it must list.
async fn miss_changes(server: &Server, proxy: &Proxy, registry: &Etcd3Registry, meanwhile: impl FnOnce()) {
    let before = registry.calls().range;
    proxy.freeze();
    meanwhile();
    server.ctl(&["put", "/other", "value"]);
    server.compact();
    proxy.reset();
    proxy.thaw();
    while registry.calls().range == before {
        sleep(Duration::from_millis(20)).await;
    }
}

fn left(event: &NetworkEvent) -> bool {
    matches!(event, NetworkEvent::PeerLeft(_))
}

/// Upstream treats an invalid event as an empty list, and drops all peers (`watchSubnets`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u1_an_invalid_record_removes_no_peer() {
    let (server, _proxy, registry) = site().await;
    (1..4).for_each(|third| put(&server, subnet(third), third));
    let node = Node::start(registry, 99, None);
    node.until("it knows its peers", |node| node.host.peers().len() == 3).await;
    server.put("garbage", "x");
    server.put("10.5.1.0-24", "{");
    put(&server, subnet(4), 4);
    node.until("it hears what comes after", |node| node.host.peers().len() == 4).await;
    assert!(!node.emitted(left));
    assert_eq!(node.network.status().bad_records.len(), 2);
}

/// Upstream compares only the subnets of a list with the known ones (`Reset`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u2_the_next_list_shows_a_missed_change_of_a_peer() {
    let (server, proxy, registry) = site().await;
    put(&server, subnet(1), 1);
    let node = Node::start(registry.clone(), 99, None);
    node.until("it knows its peer", |node| node.host.peers().len() == 1).await;
    miss_changes(&server, &proxy, &registry, || put(&server, subnet(1), 77)).await;
    node.until("it acts on the change", |node| node.host.peers().get(&subnet(1)) == Some(&host(77))).await;
    assert!(!node.emitted(left));
}

/// Upstream's peers include the own lease after the first list, and the second list removes it (`Reset`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u3_repeated_lists_remove_neither_the_own_subnet_nor_a_peer() {
    let (server, proxy, registry) = site().await;
    put(&server, subnet(1), 1);
    let node = Node::start(registry.clone(), 99, None);
    node.until("it knows its peer", |node| node.host.peers().len() == 1).await;
    let own = node.network.lease().unwrap();
    for third in 2..4 {
        miss_changes(&server, &proxy, &registry, || put(&server, subnet(third), third)).await;
        node.until("it knows one more", |node| node.host.peers().contains_key(&subnet(third))).await;
    }
    assert!(!node.emitted(|event| left(event) || matches!(event, NetworkEvent::LeaseLost(_))));
    assert!(!node.host.peers().contains_key(&own.subnet));
    assert_eq!(node.network.lease().unwrap().subnet, own.subnet);
}

/// Upstream renews with an unconditional write (`updateSubnet`), so two hosts overwrite each other at each renewal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u7_a_partitioned_host_leaves_its_subnet_to_the_new_owner() {
    let (server, proxy, registry) = site().await;
    let one = Node::start(registry.clone(), 1, Some(subnet(100)));
    one.until("it has its subnet", |node| node.network.status().ready).await;
    let before = one.network.lease().unwrap();
    assert_eq!(before.subnet, subnet(100));

    proxy.freeze();
    let ids = server.ctl(&["lease", "list"]);
    ids.lines().skip(1).for_each(|id| drop(server.ctl(&["lease", "revoke", id])));
    let other = Node::start(server.registry(), 2, Some(subnet(100)));
    other.until("the other has it now", |node| node.network.status().ready).await;
    assert_eq!(other.network.lease().unwrap().subnet, subnet(100));
    let written = server.ctl(&["get", &subnet_key("10.5.100.0-24"), "-w", "json"]);
    proxy.reset();
    proxy.thaw();

    // The first call may use the connection that was reset.
    while registry.config().await.is_err() {}
    let renewed = registry.renew(&before, DAY).await;
    assert!(matches!(renewed, Err(RegistryError::Changed(_))), "{renewed:?}");
    let overwritten = registry.update(&before, &host(1), DAY).await;
    assert!(matches!(overwritten, Err(RegistryError::Changed(_))), "{overwritten:?}");
    let moved = |node: &Node| node.network.lease().is_some_and(|lease| lease.subnet != subnet(100));
    one.until("the first has a new lease", moved).await;
    let still = server.ctl(&["get", &subnet_key("10.5.100.0-24"), "-w", "json"]);
    // Everything but the response header, which carries the revision of the store.
    let kvs = |json: &str| json.split_once("\"kvs\"").unwrap().1.to_owned();
    assert_eq!(kvs(&still), kvs(&written), "nobody wrote the record again");
}

/// Upstream requests the TTL of each lease in a list or event (`getSubnets`), one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u8_a_start_among_a_hundred_leases_and_twenty_events_makes_five_calls() {
    let (server, _proxy, registry) = site().await;
    let others = server.registry();
    for third in 1..101 {
        others.create(subnet(third), &host(third), DAY).await.unwrap();
    }
    let node = Node::start(registry.clone(), 250, None);
    node.until("it knows its peers", |node| node.host.peers().len() == 100).await;
    for third in 101..121 {
        others.create(subnet(third), &host(third), DAY).await.unwrap();
    }
    let has_all = |node: &Node| (101..121).all(|third| node.host.peers().contains_key(&subnet(third)));
    node.until("it knows twenty more", has_all).await;
    let calls = registry.calls();
    // The config, a list, a grant of an etcd lease, the record, and a watch.
    assert_eq!((calls.lease_time_to_live, calls.total()), (0, 5), "{calls:?}");
}
