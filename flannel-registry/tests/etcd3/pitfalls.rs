//! Known failures of etcd clients, provoked through a proxy. `docs/registry-tests.md` lists the tests for each.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use flannel_core::{
    KeepEvent, LeaseManager, LeaseRequest, NetworkConfig, RegistryError, RegistryEvent, SubnetRegistry,
};
use flannel_registry::{Etcd3Options, Etcd3Registry, RegistryLeaseManager};
use futures::StreamExt;
use futures::future::join;
use tokio::time::{sleep, timeout};

use crate::common::frames::WatchFault;
use crate::common::proxy::Proxy;
use crate::server::{DAY, PATIENCE, PREFIX, Server, host, next, subnet, subnet_key, until, words};

/// Returns a registry whose first member is the proxy.
async fn through(proxy: &Proxy, options: &Etcd3Options) -> Etcd3Registry {
    loop {
        let (before, registry) = (proxy.connections(), Etcd3Registry::new(options.clone()).unwrap());
        registry.config().await.unwrap();
        if proxy.connections() > before {
            return registry;
        }
    }
}

#[test]
fn every_test_in_the_table_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let table = fs::read_to_string(root.join("docs/registry-tests.md")).unwrap();
    let sources =
        ["flannel-registry/tests/etcd3", "flannel-registry/tests/etcd2", "flanneld-bin/tests/daemon"];
    let contract = fs::read_dir(root.join("testing/src/contract/registry")).unwrap();
    let contract: Vec<_> = contract.map(|file| file.unwrap().path()).collect();
    let exists = |file: &str, test: &str| match file {
        "contract" => contract.iter().any(|file| contains(file, test)),
        file => sources.iter().any(|dir| contains(&root.join(dir).join(format!("{file}.rs")), test)),
    };
    let named: Vec<_> = table.split('`').filter_map(|word| word.split_once("::")).collect();
    assert!(named.len() > 50, "{}", named.len());
    let missing: Vec<_> =
        named.iter().filter(|(file, test)| *file != "file" && !exists(file, test)).collect();
    assert_eq!(missing, [&("", ""); 0]);
}

/// Reports whether a file has a test of that name.
fn contains(source: &Path, test: &str) -> bool {
    fs::read_to_string(source).is_ok_and(|text| text.contains(&format!("fn {test}(")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_connection_is_replaced_by_another_member() {
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let mut options = server.options();
    options.endpoints = vec![proxy.url(), server.url()];
    let registry = through(&proxy, &options).await;
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    registry.create(subnet(2), &host(2), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.2.0-24"]);

    proxy.freeze();
    let frozen = Instant::now();
    server.put("10.5.3.0-24", r#"{"PublicIP":"192.168.0.3"}"#);
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Put(_))).await;
    assert_eq!(words(&events), ["unavailable", "available", "put 10.5.3.0-24"]);
    assert!(frozen.elapsed() < Duration::from_secs(10), "{:?}", frozen.elapsed());
    registry.renew(&lease, DAY).await.unwrap();

    // Data sent into the dead connection is of no use when the connection recovers.
    proxy.thaw();
    server.put("10.5.4.0-24", r#"{"PublicIP":"192.168.0.4"}"#);
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.4.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_resets_lose_no_event_and_no_lease() {
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let mut options = server.options();
    options.endpoints = vec![proxy.url()];
    let registry = through(&proxy, &options).await;
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    for third in 2..7 {
        let started = registry.calls().lease_keep_alive;
        let reset = async {
            while registry.calls().lease_keep_alive == started {
                tokio::task::yield_now().await;
            }
            // A renewal has two responses, each delayed by 150 ms: interrupt every part of it.
            sleep(Duration::from_millis(u64::from(third) * 80)).await;
            proxy.reset();
        };
        let renewal = join(registry.renew(&lease, DAY), reset);
        let (renewed, ()) = timeout(PATIENCE, renewal).await.expect("a renewal sends a keep-alive");
        assert!(matches!(renewed, Ok(_) | Err(RegistryError::Unavailable(..))), "{renewed:?}");
        // On a slow machine the reset hits this call.
        let again = async {
            while let Err(error) = registry.renew(&lease, DAY).await {
                assert!(matches!(error, RegistryError::Unavailable(..)), "{error:?}");
            }
        };
        timeout(PATIENCE, again).await.expect("a renewal succeeds after a reset");
        server.put(&subnet(third).to_string(), r#"{"PublicIP":"192.168.0.3"}"#);
        let events = until(&mut watch, |event| matches!(event, RegistryEvent::Put(_))).await;
        assert_eq!(words(&events).last(), Some(&format!("put {}", subnet(third))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_member_delays_only_the_first_call() {
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let mut options = server.options();
    options.endpoints = vec![proxy.url(), server.url()];
    options.timeout = Duration::from_secs(2);
    let registry = through(&proxy, &options).await;
    proxy.delay(Duration::from_secs(3600));
    let mut slowest = Duration::ZERO;
    for third in 1..10 {
        let begin = Instant::now();
        registry.create(subnet(third), &host(third), DAY).await.unwrap();
        if third > 1 {
            slowest = slowest.max(begin.elapsed());
        }
    }
    // The first call asked both members, all others the one that answers.
    assert!(slowest < options.timeout, "{slowest:?}");
    assert_eq!(registry.calls().lease_grant, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_whose_member_withholds_events_is_reopened_elsewhere() {
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let mut options = server.options();
    options.endpoints = vec![proxy.url(), server.url()];
    let registry = through(&proxy, &options).await;
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    registry.create(subnet(2), &host(2), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.2.0-24"]);

    proxy.set_watch_fault(WatchFault::Withheld);
    server.put("10.5.3.0-24", r#"{"PublicIP":"192.168.0.3"}"#);
    let before = registry.calls().range;
    registry.config().await.unwrap();
    assert_eq!(registry.calls().range - before, 1, "the first member answers");
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Put(_))).await;
    assert_eq!(words(&events), ["unavailable", "available", "put 10.5.3.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_finds_lost_events() {
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let mut options = server.options();
    options.endpoints = vec![proxy.url()];
    options.audit = Some(Duration::from_secs(2));
    let registry = Etcd3Registry::new(options).unwrap();
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    registry.create(subnet(2), &host(2), DAY).await.unwrap();
    // An audit may run before the event arrives.
    let knows = |event: &RegistryEvent, third| {
        if let RegistryEvent::Snapshot(all) = event {
            all.leases.iter().any(|lease| lease.subnet == subnet(third))
        } else {
            words(std::slice::from_ref(event)) == [format!("put {}", subnet(third))]
        }
    };
    until(&mut watch, |event| knows(event, 2)).await;

    // Progress requests are answered, so the watch has no reason to reopen.
    proxy.set_watch_fault(WatchFault::Lost);
    server.put("10.5.3.0-24", r#"{"PublicIP":"192.168.0.3"}"#);
    server.remove("10.5.1.0-24");
    let events = until(&mut watch, |event| knows(event, 3)).await;
    assert!(events.iter().all(|event| matches!(event, RegistryEvent::Snapshot(_))), "{:?}", words(&events));
    until(&mut watch, |event| !knows(event, 1)).await;
    proxy.set_watch_fault(WatchFault::None);
    registry.create(subnet(4), &host(4), DAY).await.unwrap();
    until(&mut watch, |event| knows(event, 4)).await;
    assert_eq!(registry.calls().watch, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_events_are_yielded_once() {
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let mut options = server.options();
    options.endpoints = vec![proxy.url()];
    let registry = Etcd3Registry::new(options).unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    proxy.set_watch_fault(WatchFault::Repeated);
    let mut seen = Vec::new();
    for third in 1..5 {
        server.put(&subnet(third).to_string(), r#"{"PublicIP":"192.168.0.3"}"#);
        seen.push(next(&mut watch).await);
    }
    let expected: Vec<_> = (1..5).map(|third| format!("put {}", subnet(third))).collect();
    assert_eq!(words(&seen), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_member_yields_no_old_state() {
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let mut options = server.options();
    options.endpoints = vec![proxy.url()];
    let registry = Etcd3Registry::new(options).unwrap();
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    server.etcd().back_up().unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    for third in 2..6 {
        registry.create(subnet(third), &host(third), DAY).await.unwrap();
        assert_eq!(words(&[next(&mut watch).await]), [format!("put {}", subnet(third))]);
    }
    let behind = server.etcd().start_from_backup().unwrap();
    let put = |third: u8| {
        let record = host(third).to_record();
        behind.etcdctl(&["put", &subnet_key(&subnet(third).to_string()), &record]).unwrap();
    };
    put(7);
    proxy.switch_to(behind.client_address());
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Snapshot(_))).await;
    assert_eq!(words(&events), ["unavailable", "snapshot 10.5.1.0-24,10.5.7.0-24"]);
    // Its revision is still lower than that of the other member.
    put(8);
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Put(_))).await;
    assert_eq!(words(&events), ["available", "put 10.5.8.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_without_a_response_is_retried() {
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let mut options = server.options();
    options.endpoints = vec![proxy.url()];
    let registry = Etcd3Registry::new(options).unwrap();
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    for fault in [WatchFault::CutShort, WatchFault::Withheld] {
        proxy.set_watch_fault(fault);
        let renewed = registry.renew(&lease, DAY).await;
        assert!(matches!(renewed, Err(RegistryError::Unavailable(..))), "{fault:?}: {renewed:?}");
        proxy.set_watch_fault(WatchFault::None);
        assert_eq!(registry.renew(&lease, DAY).await.unwrap(), DAY);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_revoked_during_its_renewal_is_gone() {
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let mut options = server.options();
    options.endpoints = vec![proxy.url()];
    // A response takes a second, or two if it arrives in two parts.
    options.timeout = Duration::from_secs(20);
    let registry = Etcd3Registry::new(options).unwrap();
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let ids = server.ctl(&["lease", "list"]);
    let id = ids.lines().nth(1).unwrap();
    let before = registry.calls().range;
    // The response to the first call of a renewal takes longer than revoking the lease.
    proxy.delay(Duration::from_secs(1));
    let revoke = async {
        while registry.calls().range == before {
            tokio::task::yield_now().await;
        }
        sleep(Duration::from_millis(300)).await;
        tokio::task::block_in_place(|| server.ctl(&["lease", "revoke", id]));
        proxy.delay(Duration::ZERO);
    };
    let (renewed, ()) = join(registry.renew(&lease, DAY), revoke).await;
    assert!(matches!(renewed, Err(RegistryError::Gone(gone)) if gone == subnet(1)), "{renewed:?}");
    assert_eq!(registry.calls().lease_keep_alive, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vanished_leases_are_recreated_with_the_same_subnets() {
    const CONFIG: &str = r#"{"Network":"10.5.0.0/16"}"#;
    let server = Server::start();
    server.ctl(&["put", &format!("{PREFIX}/config"), CONFIG]);
    let config = NetworkConfig::parse(CONFIG).unwrap();
    let mut hosts = Vec::new();
    for last in 1..6 {
        let manager = RegistryLeaseManager::new(server.registry());
        let attrs = host(last);
        // A host without a previous subnet would choose another.
        let request = LeaseRequest::new(&config, &attrs).with_previous(Some(subnet(last + 100)));
        let lease = manager.acquire(request).await.unwrap();
        assert_eq!(lease.subnet, subnet(last + 100));
        let keep = manager.keep(lease.clone());
        let mut peers = manager.watch(lease.subnet);
        let peers = tokio::spawn(async move { while peers.next().await.is_some() {} });
        hosts.push((manager, attrs, lease, keep, peers));
    }
    let ids = server.ctl(&["lease", "list"]);
    for id in ids.lines().skip(1) {
        server.ctl(&["lease", "revoke", id]);
    }
    assert_eq!(server.ctl(&["get", "--prefix", "--keys-only", &format!("{PREFIX}/subnets/")]), "");

    for (manager, attrs, lease, keep, peers) in &mut hosts {
        let lost = async { while !matches!(keep.next().await, Some(KeepEvent::Lost(_))) {} };
        timeout(PATIENCE, lost).await.expect("the loss is noticed long before a renewal is due");
        let previous = Some(lease.subnet);
        let request = LeaseRequest::new(&config, &*attrs).with_previous(previous);
        let again = manager.acquire(request).await.unwrap();
        assert_eq!((again.subnet, &again.attrs), (lease.subnet, &*attrs));
        assert!(again.revision > lease.revision);
        peers.abort();
    }
    let ids = server.ctl(&["lease", "list"]);
    assert!(ids.starts_with("found 5 leases"), "{ids}");
    for id in ids.lines().skip(1) {
        let seen = server.ctl(&["lease", "timetolive", id, "--keys"]);
        assert!(seen.contains("/subnets/10.5."), "{seen}");
    }
}
