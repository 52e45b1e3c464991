//! Numbers of requests of many nodes and many events.

use flannel_core::{RegistryEvent, SubnetRegistry};
use flannel_registry::{Etcd2Calls, Etcd2Registry};

use crate::common::crowd::{CONFIG, Crowd, NODES, PATIENCE};
use crate::common::{DAY, PREFIX, host, next, subnet, until, words};
use crate::server::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_per_node_do_not_depend_on_the_number_of_nodes() {
    let server = Server::start();
    server.ctl(&["set", &format!("{PREFIX}/config"), CONFIG]);
    let mut options = server.options();
    (options.timeout, options.silence) = (PATIENCE, PATIENCE);
    let open = || Etcd2Registry::new(options.clone()).unwrap();
    let crowd = Crowd::start(open).await;
    assert_eq!(crowd.subnets().len(), usize::from(NODES));
    let calls = || crowd.registries.iter().map(Etcd2Registry::calls).collect::<Vec<Etcd2Calls>>();
    let before = calls();
    for made in &before {
        assert_eq!(made.writes, 1, "{made:?}");
        // etcd's version, the config and a list; and a few more lists for nodes that fell behind.
        assert!((3..=20).contains(&made.reads), "{made:?}");
    }
    crowd.add_change_and_remove_a_host(&open()).await;
    for (before, after) in before.iter().zip(calls()) {
        assert_eq!((after.reads, after.writes), (before.reads, before.writes));
        // Each of three events answers a poll, and the next poll waits for the next event.
        assert!(after.polls - before.polls <= 3, "{before:?} {after:?}");
    }
    crowd.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_falls_behind_lists() {
    let server = Server::start();
    let registry = server.registry();
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    // The watch is not polled meanwhile, and so sends no requests.
    for third in 2..202 {
        server.put(&subnet(third).to_string(), host(third).to_record().as_bytes());
    }
    let before = registry.calls();
    let is_complete =
        |event: &RegistryEvent| matches!(event, RegistryEvent::Snapshot(all) if all.leases.len() == 201);
    let events = until(&mut watch, is_complete).await;
    assert!(events.len() < 20, "{} events", events.len());
    server.remove("10.5.1.0-24");
    assert_eq!(words(&[next(&mut watch).await]), ["deleted 10.5.1.0-24"]);
    let after = registry.calls();
    assert!(after.polls - before.polls < 20 && after.reads - before.reads == 1, "{before:?} {after:?}");
}
