//! Endpoints that serve only part of what a voting member serves: learners, proxies, and members that refuse.

use std::time::{Duration, Instant};

use flannel_core::{RegistryError, RegistryEvent, SubnetRegistry, chain};
use flannel_registry::{Etcd2Options, Etcd2Registry, Etcd3Registry, EtcdRegistry};
use flannel_testing::random_loopback_address;
use futures::FutureExt;
use tokio::time::sleep;

use crate::common::process::Process;
use crate::server::{DAY, Server, host, next, subnet, until, words};

/// Adds a learner to the cluster of a server, and starts it.
fn learner(server: &Server) -> Process {
    let address = random_loopback_address();
    let peer = format!("http://{address}:2380");
    server.ctl(&["member", "add", "learner", "--learner", &format!("--peer-urls={peer}")]);
    let members = server.ctl(&["member", "list"]);
    let voter = members.lines().find(|line| !line.contains(&peer)).unwrap();
    let voter_peer = voter.split(", ").nth(3).unwrap();
    let directory = std::env::temp_dir().join(format!("flannel-etcd-{address}"));
    let client = format!("http://{address}:2379");
    Process::start(
        address,
        &[
            "--name=learner".to_owned(),
            format!("--data-dir={}", directory.display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=test={voter_peer},learner={peer}"),
            "--initial-cluster-state=existing".to_owned(),
        ],
    )
}

/// Starts `etcd grpc-proxy` in front of a server.
fn grpc_proxy(server: &Server, arguments: &[&str]) -> Process {
    let address = random_loopback_address();
    let mut all = vec![
        "grpc-proxy".to_owned(),
        "start".to_owned(),
        format!("--endpoints={}", server.url()),
        format!("--listen-addr={address}:2379"),
        // The proxy connects to itself, and exits if it cannot.
        format!("--advertise-client-url={address}:2379"),
        format!("--data-dir={}", std::env::temp_dir().join(format!("flannel-etcd-{address}")).display()),
    ];
    all.extend(arguments.iter().map(|&argument| argument.to_owned()));
    Process::start(address, &all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_of_one_member_is_not_that_of_the_cluster() {
    let (locked, open) = (Server::start_with_password(&[]), Server::start());
    let mut options = open.options();
    options.endpoints = vec![locked.url(), open.url()];
    // The first member to ask is chosen at random.
    for third in 1..6 {
        let registry = Etcd3Registry::new(options.clone()).unwrap();
        assert_eq!(registry.config().await.unwrap(), None);
        let mut watch = registry.watch(None);
        assert!(matches!(next(&mut watch).await, RegistryEvent::Snapshot(_)));
        registry.create(subnet(third), &host(third), DAY).await.unwrap();
        assert_eq!(words(&[next(&mut watch).await]), [format!("put {}", subnet(third))]);
    }
    let second = Server::start_with_password(&[]);
    options.endpoints = vec![locked.url(), second.url()];
    let registry = Etcd3Registry::new(options).unwrap();
    let error = registry.create(subnet(1), &host(1), DAY).await.unwrap_err();
    assert!(matches!(error, RegistryError::Refused(..)), "{error:?}");
    let text = chain(&error);
    for said in [format!("{}: etcdserver: user name", locked.url()), format!("{}: etcdserver", second.url())]
    {
        assert!(text.contains(&said), "no {said:?} in {text:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_is_passed_over() {
    let server = Server::start();
    let learner = learner(&server);
    let mut options = server.options();
    options.endpoints = vec![learner.url.clone()];
    let alone = Etcd3Registry::new(options.clone()).unwrap();
    let text = chain(&alone.config().await.unwrap_err());
    assert!(text.contains("learner") && text.contains(&learner.url), "{text}");

    options.endpoints = vec![learner.url.clone(), server.url()];
    for third in 1..6 {
        let registry = Etcd3Registry::new(options.clone()).unwrap();
        assert_eq!(registry.config().await.unwrap(), None);
        let mut watch = registry.watch(None);
        assert!(matches!(next(&mut watch).await, RegistryEvent::Snapshot(_)));
        registry.create(subnet(third), &host(third), DAY).await.unwrap();
        assert_eq!(words(&[next(&mut watch).await]), [format!("put {}", subnet(third))]);
    }

    // While the voter is away, everything asks the learner; afterwards, everything finds the voter again.
    let registry = Etcd3Registry::new(options).unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    server.etcd().stop().unwrap();
    assert!(registry.config().await.is_err());
    until(&mut watch, |event| matches!(event, RegistryEvent::Unavailable(_))).await;
    server.etcd().restart().unwrap();
    until(&mut watch, |event| matches!(event, RegistryEvent::Available)).await;
    registry.create(subnet(9), &host(9), DAY).await.unwrap();
    until(&mut watch, |event| words(std::slice::from_ref(event)) == ["put 10.5.9.0-24"]).await;
}

/// Two watches share one connection of the proxy to etcd, and the proxy answers no progress requests.
async fn stays_open_behind_a_proxy(arguments: &[&str]) {
    let server = Server::start();
    let proxy = grpc_proxy(&server, arguments);
    let mut options = server.options();
    options.endpoints = vec![proxy.url.clone()];
    let hosts = [(); 2].map(|()| Etcd3Registry::new(options.clone()).unwrap());
    hosts[0].create(subnet(1), &host(1), DAY).await.unwrap();
    let mut watches = Vec::new();
    for host in &hosts {
        let mut watch = host.watch(None);
        assert_eq!(words(&[next(&mut watch).await]), ["snapshot 10.5.1.0-24"]);
        watches.push(watch);
    }
    // Polls the watches for more than twice the time after which a silent watch is checked.
    let quiet = options.silence * 3;
    let start = Instant::now();
    while start.elapsed() < quiet {
        for watch in &mut watches {
            let event = watch.next_now();
            assert!(event.is_none(), "{event:?} after {:?}", start.elapsed());
        }
        sleep(Duration::from_millis(20)).await;
    }
    for host in &hosts {
        assert_eq!(host.calls().watch, 1, "the watch was reopened");
    }
    hosts[1].create(subnet(2), &host(2), DAY).await.unwrap();
    for watch in &mut watches {
        assert_eq!(words(&[next(watch).await]), ["put 10.5.2.0-24"]);
    }
}

trait NextNow {
    fn next_now(&mut self) -> Option<RegistryEvent>;
}

impl NextNow for futures::stream::BoxStream<'static, RegistryEvent> {
    fn next_now(&mut self) -> Option<RegistryEvent> {
        futures::StreamExt::next(self).now_or_never().flatten()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_watch_behind_a_grpc_proxy_stays_open() {
    stays_open_behind_a_proxy(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_watch_behind_a_grpc_proxy_with_a_namespace_stays_open() {
    stays_open_behind_a_proxy(&["--namespace=/x/"]).await;
}

/// etcd 3.6 leaves progress requests unanswered until something is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_watch_stays_open_after_a_restart_of_etcd() {
    let server = Server::start();
    let registry = server.registry();
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    server.etcd().restart().unwrap();
    let mut watch = registry.watch(None);
    until(&mut watch, |event| matches!(event, RegistryEvent::Snapshot(_))).await;
    let (start, opened) = (Instant::now(), registry.calls().watch);
    while start.elapsed() < server.options().silence * 3 {
        let event = watch.next_now();
        assert!(event.is_none(), "{event:?} after {:?}", start.elapsed());
        sleep(Duration::from_millis(20)).await;
    }
    assert!(registry.calls().watch <= opened + 1, "the watch was reopened");
    registry.create(subnet(2), &host(2), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.2.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_config_under_the_prefix_itself_is_named_with_the_prefix_to_use() {
    let server = Server::start();
    server.ctl(&["put", "/test/network/config", r#"{"Network":"10.5.0.0/16"}"#]);
    let mut options = server.options();
    options.prefix = "/test/network/config".to_owned();
    let registry = Etcd3Registry::new(options).unwrap();
    for _ in 0..2 {
        let error = registry.config().await.unwrap_err();
        assert!(chain(&error).contains("use -etcd-prefix=/test/network"), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn automatic_choice_reports_that_v2_is_not_served() {
    let server = Server::start();
    let mut options = Etcd2Options::default();
    options.endpoints = vec![server.url()];
    let registry = EtcdRegistry::new(server.registry(), Etcd2Registry::new(options).unwrap());
    assert_eq!(registry.config().await.unwrap(), None);
    assert!(registry.describe().ends_with("(v2 is not served here)"), "{}", registry.describe());
}
