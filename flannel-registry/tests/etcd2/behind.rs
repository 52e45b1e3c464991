//! etcd behind a v2 proxy, and keys of the wrong kind.

use std::time::{Duration, Instant};

use flannel_core::{RegistryEvent, SubnetRegistry};
use flannel_registry::{Etcd2Registry, Etcd3Options, Etcd3Registry, EtcdRegistry};
use flannel_testing::random_loopback_address;
use futures::{FutureExt, StreamExt};
use tokio::time::sleep;

use crate::common::process::Process;
use crate::common::{DAY, PREFIX, host, next, subnet, words};
use crate::server::Server;

/// Starts `etcd --proxy on` in front of a server. etcd 3.6 and later have no such proxy.
fn proxy(server: &Server) -> Process {
    let address = random_loopback_address();
    let members = server.etcd().etcdctl(&["member", "list"]).unwrap();
    let peer = members.split(", ").nth(3).unwrap().to_owned();
    let directory = std::env::temp_dir().join(format!("flannel-etcd-{address}"));
    let arguments = [
        "--proxy=on".to_owned(),
        format!("--data-dir={}", directory.display()),
        format!("--initial-cluster=test={peer}"),
        format!("--listen-client-urls=http://{address}:2379"),
    ];
    Process::start(address, &arguments)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn automatic_choice_finds_v2_behind_a_proxy() {
    let server = Server::start();
    server.ctl(&["set", &format!("{PREFIX}/config"), "{}"]);
    let proxy = proxy(&server);
    let (mut v2, mut v3) = (server.options(), Etcd3Options::default());
    v2.endpoints = vec![proxy.url.clone()];
    v3.endpoints = vec![proxy.url.clone()];
    let registry = EtcdRegistry::new(Etcd3Registry::new(v3).unwrap(), Etcd2Registry::new(v2).unwrap());
    assert_eq!(registry.config().await.unwrap().as_deref(), Some("{}"));
    assert!(registry.uses_v2());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_long_poll_behind_a_proxy_is_no_outage() {
    let server = Server::start();
    let proxy = proxy(&server);
    let mut options = server.options();
    options.endpoints = vec![proxy.url.clone()];
    options.timeout = Duration::from_secs(1);
    options.silence = Duration::from_secs(2);
    let registry = Etcd2Registry::new(options).unwrap();
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let mut watch = registry.watch(None);
    assert_eq!(words(&[next(&mut watch).await]), ["snapshot 10.5.1.0-24"]);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(7) {
        let event = watch.next().now_or_never();
        assert!(event.is_none(), "{event:?} after {:?}", start.elapsed());
        sleep(Duration::from_millis(20)).await;
    }
    registry.create(subnet(2), &host(2), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.2.0-24"]);
    registry.create(subnet(3), &host(3), DAY).await.unwrap();
    let event = next(&mut watch).await;
    assert!(matches!(event, RegistryEvent::Put(_)), "{event:?}");
}
