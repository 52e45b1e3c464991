//! The contract of a lease manager while the registry is unavailable.

use std::time::Duration;

use flannel_core::{
    KeepEvent, Lease, LeaseManager, LeaseRequest, NetworkConfig, RegistryError, StaticLeaseManager,
    SubnetRegistry,
};
use flannel_registry::{CacheOptions, CachedLeaseManager, RegistryLeaseManager};
use flannel_testing::{Call, InjectedFault};
use futures::StreamExt;
use tokio::time::timeout;

use crate::site::{CONFIG, DAY, MOMENT, NETWORK, OWN, Site, host, key, short, start, until_complete};

const PEERS: &[(&str, u8)] = &[("10.5.2.0-24", 2), ("10.5.3.0-24", 3)];

#[tokio::test(start_paused = true)]
async fn the_cached_lease_is_used_while_the_registry_is_unavailable() {
    let site = Site::after_a_run(PEERS).await;
    for call in [Call::Config, Call::List, Call::Renew] {
        site.faulty.fail_next(call, [InjectedFault::Unavailable]);
        let manager = site.manager();
        assert_eq!(start(&manager).await.unwrap().subnet, key(OWN), "{call:?}");
        assert_eq!(start(&manager).await.unwrap().subnet, key(OWN), "{call:?}");
    }
    site.faulty.stop_responding();
    assert_eq!(start(&site.manager()).await.unwrap().subnet, key(OWN));
}

#[tokio::test(start_paused = true)]
async fn attributes_are_published_when_the_registry_is_back() {
    let site = Site::after_a_run(PEERS).await;
    site.faulty.stop_responding();
    let manager = site.manager();
    let config = manager.config().await.unwrap();
    let mut attrs = host(1);
    attrs.backend_type = "another".to_owned().into();
    let own = manager.acquire(LeaseRequest::new(&config, &attrs)).await.unwrap();
    assert_eq!(own.attrs, attrs);
    let mut keep = manager.keep(own);
    assert!(matches!(keep.next().await, Some(KeepEvent::RenewalFailed { .. })));
    assert!(matches!(keep.next().await, Some(KeepEvent::RenewalFailed { .. })));
    site.faulty.resume_responding();
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    assert!(site.leases().await.contains(&(OWN.to_owned(), attrs)));
}

#[tokio::test(start_paused = true)]
async fn a_cached_lease_that_the_config_no_longer_offers_is_not_used() {
    let site = Site::after_a_run(PEERS).await;
    site.store.set_config(r#"{"Network":"10.6.0.0/16"}"#);
    let manager = site.manager();
    let config = manager.config().await.unwrap();
    site.faulty.stop_responding();
    let attrs = host(1);
    let request = LeaseRequest::new(&config, &attrs);
    assert!(manager.acquire(request).await.is_err());
    site.faulty.resume_responding();
    assert!(config.offers(&manager.acquire(request).await.unwrap().subnet));
}

#[tokio::test(start_paused = true)]
async fn an_assigned_subnet_outside_the_range_is_used_from_the_cache() {
    let site = Site::new();
    let public = host(1).public;
    let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.100.0"}"#).unwrap();
    let options = || CacheOptions::new(site.path(), NETWORK, public);
    let attrs = host(1);
    let request = LeaseRequest::new(&config, &attrs);
    // A /26 that the config never offers.
    let assigned = StaticLeaseManager::new(config.clone(), key("10.5.9.64-26")).unwrap();
    assigned.set_peers::<Lease>([]);
    let manager = CachedLeaseManager::open(assigned, options());
    assert_eq!(manager.config().await.unwrap(), config);
    let own = manager.acquire(request).await.unwrap();
    let mut events = manager.watch(own.subnet);
    site.is_written(&mut events, |text| text.contains("10.5.9.64-26")).await;

    // The control plane is unavailable at the next start.
    site.faulty.stop_responding();
    let manager = CachedLeaseManager::open(RegistryLeaseManager::new(site.faulty.clone()), options());
    assert_eq!(manager.config().await.unwrap(), config);
    assert_eq!(manager.acquire(request).await.unwrap().subnet, own.subnet);
    // Not under a config whose network does not contain the subnet.
    let other = NetworkConfig::parse(r#"{"Network":"10.6.0.0/16"}"#).unwrap();
    assert!(manager.acquire(LeaseRequest::new(&other, &attrs)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_cache_holds_a_lease_and_a_config_that_offers_it() {
    let site = Site::after_a_run(PEERS).await;
    let manager = site.manager();
    let own = start(&manager).await.unwrap();
    // A running network keeps its subnet when the subnet length changes, and gets one of the new length when it loses it.
    site.store.set_config(r#"{"Network":"10.5.0.0/16","SubnetLen":25}"#);
    let config = manager.config().await.unwrap();
    site.revoke(&own.subnet.to_string()).await;
    let own = manager.acquire(LeaseRequest::new(&config, &host(1))).await.unwrap();
    assert!(config.offers(&own.subnet));
    let mut events = manager.watch(own.subnet);
    site.is_written(&mut events, |text| text.contains(&own.subnet.to_string())).await;
    site.faulty.stop_responding();
    assert_eq!(start(&site.manager()).await.unwrap().subnet, own.subnet);
}

#[tokio::test(start_paused = true)]
async fn a_vanished_lease_is_acquired_again_with_the_same_subnet() {
    let site = Site::after_a_run(PEERS).await;
    site.revoke(OWN).await;
    site.faulty.stop_responding();
    let manager = site.manager();
    let mut keep = manager.keep(start(&manager).await.unwrap());
    assert!(matches!(keep.next().await, Some(KeepEvent::RenewalFailed { .. })));
    site.faulty.resume_responding();
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    assert!(site.leases().await.contains(&(OWN.to_owned(), host(1))));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_another_host_holds_is_lost_and_replaced() {
    let site = Site::after_a_run(PEERS).await;
    site.revoke(OWN).await;
    site.store.create(key(OWN), &host(7), DAY).await.unwrap();
    site.faulty.stop_responding();
    let manager = site.manager();
    let mut keep = manager.keep(start(&manager).await.unwrap());
    assert!(matches!(keep.next().await, Some(KeepEvent::RenewalFailed { .. })));
    site.faulty.resume_responding();
    let lost = keep.next().await;
    assert!(matches!(&lost, Some(KeepEvent::Lost(reason)) if reason.contains(OWN)), "{lost:?}");
    assert!(keep.next().await.is_none());
    // Another outage does not restore a lease that another host holds.
    site.faulty.stop_responding();
    assert!(start(&manager).await.is_err());
    site.faulty.resume_responding();
    let own = start(&manager).await.unwrap();
    assert_ne!(own.subnet, key(OWN));
    assert!(site.leases().await.contains(&(OWN.to_owned(), host(7))));
    assert!(matches!(manager.keep(own).next().await, Some(KeepEvent::Waiting(_))));
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_kept_throughout_an_outage() {
    let site = Site::after_a_run(PEERS).await;
    site.faulty.stop_responding();
    let manager = site.manager();
    let mut keep = manager.keep(start(&manager).await.unwrap());
    let end = tokio::time::Instant::now() + DAY;
    let mut asked = 0;
    while tokio::time::Instant::now() < end {
        assert!(matches!(keep.next().await, Some(KeepEvent::RenewalFailed { .. })));
        asked += 1;
    }
    assert!((2880..4000).contains(&asked), "about twice a minute: {asked}");
    site.faulty.resume_responding();
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
}

#[tokio::test(start_paused = true)]
async fn a_watch_yields_the_cached_peers_and_then_their_changes() {
    let site = Site::after_a_run(&[PEERS[0], PEERS[1], ("10.5.8.0-24", 8)]).await;
    site.faulty.stop_responding();
    let manager = site.manager();
    let own = start(&manager).await.unwrap();
    let mut events = manager.watch(own.subnet);
    let mut seen = Vec::new();
    while let Ok(Some(event)) = timeout(MOMENT, events.next()).await {
        seen.push(event);
    }
    let cached = [
        "+10.5.2.0-24 192.168.0.2",
        "+10.5.3.0-24 192.168.0.3",
        "+10.5.8.0-24 192.168.0.8",
        "cached",
        "unavailable",
    ];
    assert_eq!(short(&seen), cached);

    site.revoke("10.5.2.0-24").await;
    site.peer("10.5.3.0-24", 33);
    site.peer("10.5.4.0-24", 4);
    site.faulty.resume_responding();
    let seen = until_complete(&mut events).await;
    let changes =
        ["available", "+10.5.3.0-24 192.168.0.33", "+10.5.4.0-24 192.168.0.4", "-10.5.2.0-24", "complete"];
    assert_eq!(short(&seen), changes);
}

#[tokio::test(start_paused = true)]
async fn an_available_registry_shows_current_and_departed_peers() {
    let site = Site::after_a_run(PEERS).await;
    site.revoke("10.5.2.0-24").await;
    let manager = site.manager();
    let own = start(&manager).await.unwrap();
    let seen = until_complete(&mut manager.watch(own.subnet)).await;
    let expected = ["+10.5.3.0-24 192.168.0.3", "+10.5.2.0-24 192.168.0.2", "-10.5.2.0-24", "complete"];
    assert_eq!(short(&seen), expected);
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_confirmed_as_soon_as_the_watch_reaches_the_registry() {
    let site = Site::after_a_run(PEERS).await;
    site.faulty.stop_responding();
    let manager = site.manager();
    let own = start(&manager).await.unwrap();
    let mut events = manager.watch(own.subnet);
    let watching = tokio::spawn(async move { while events.next().await.is_some() {} });
    let mut keep = manager.keep(own);
    for _ in 0..10 {
        keep.next().await;
    }
    let next = tokio::spawn(async move { keep.next().await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    site.faulty.resume_responding();
    let event = timeout(Duration::from_secs(1), next).await.expect("long before the pause is over").unwrap();
    assert!(matches!(event, Some(KeepEvent::Waiting(_))), "{event:?}");
    watching.abort();
}

#[tokio::test(start_paused = true)]
async fn a_missing_or_invalid_config_does_not_prevent_a_restart() {
    let site = Site::after_a_run(PEERS).await;
    site.store.set_config("nonsense");
    let manager = site.manager();
    assert_eq!(manager.config().await.unwrap().ipv4, NetworkConfig::parse(CONFIG).unwrap().ipv4);
    let own = start(&manager).await.unwrap();
    // The registry answers, so nothing else comes from the cache.
    assert!(!short(&until_complete(&mut manager.watch(own.subnet)).await).contains(&"cached".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn without_a_cache_errors_are_passed_on() {
    let site = Site::new();
    site.faulty.stop_responding();
    let error = start(&site.manager()).await.unwrap_err();
    let is_registry = matches!(error, flannel_core::ManagerError::Registry(RegistryError::Unavailable(..)));
    assert!(is_registry, "{error}");
}

#[tokio::test(start_paused = true)]
async fn published_attributes_are_cached() {
    let site = Site::after_a_run(PEERS).await;
    let manager = site.manager();
    let own = start(&manager).await.unwrap();
    let subnet = own.subnet;
    let mut peers = manager.watch(subnet);
    until_complete(&mut peers).await;
    let own = manager.publish(&own, &host(77)).await.unwrap();
    assert_eq!((own.subnet, &own.attrs), (subnet, &host(77)));
    site.is_written(&mut peers, |text| text.contains(r#"{"PublicIP":"192.168.0.77""#)).await;
    site.faulty.stop_responding();
    let manager = site.manager_of(NETWORK, 77);
    let config = manager.config().await.unwrap();
    let own = manager.acquire(LeaseRequest::new(&config, &host(77))).await.unwrap();
    assert_eq!(own.subnet, subnet);
}

#[tokio::test(start_paused = true)]
async fn publishing_a_cached_lease_confirms_it() {
    let site = Site::after_a_run(PEERS).await;
    site.faulty.stop_responding();
    let manager = site.manager();
    let own = start(&manager).await.unwrap();
    assert!(manager.publish(&own, &host(77)).await.is_err(), "the registry is unavailable");
    site.faulty.resume_responding();
    let own = manager.publish(&own, &host(77)).await.unwrap();
    assert!(site.leases().await.contains(&(OWN.to_owned(), host(77))));
    assert!(matches!(manager.keep(own).next().await, Some(KeepEvent::Waiting(_))), "it is kept");
}
