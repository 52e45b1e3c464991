//! Numbers of calls of many nodes.

use flannel_core::SubnetRegistry;
use flannel_registry::{Etcd3Calls, Etcd3Registry};

use crate::common::crowd::{CONFIG, Crowd, NODES, PATIENCE};
use crate::server::{PREFIX, Server};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_many_nodes_makes_five_calls_at_start_and_none_per_peer() {
    let server = Server::start();
    server.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
    let mut options = server.options();
    (options.timeout, options.silence) = (PATIENCE, PATIENCE);
    let open = || Etcd3Registry::new(options.clone()).unwrap();
    let crowd = Crowd::start(open).await;
    assert_eq!(crowd.subnets().len(), usize::from(NODES));
    let calls = || crowd.registries.iter().map(Etcd3Registry::calls).collect::<Vec<Etcd3Calls>>();
    let before = calls();
    for made in &before {
        // The config, a list, a grant of an etcd lease, the record, and the watch.
        assert_eq!((made.range, made.lease_grant, made.txn, made.watch), (2, 1, 1, 1));
        assert_eq!(made.total(), 5, "{made:?}");
    }
    crowd.add_change_and_remove_a_host(&open()).await;
    assert_eq!(calls(), before);
    assert_eq!(server.registry().list().await.unwrap().leases.len(), usize::from(NODES));
    crowd.stop().await;
}
