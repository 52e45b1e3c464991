//! Acquisition of a lease.

use std::time::Duration;

use flannel_core::{
    LeaseManager, LeaseRequest, ManagerError, PeerEvent, PublicAddrs, RegistryError, SubnetRegistry, Term,
};
use flannel_registry::MemoryRegistry;
use flannel_testing::{Call, InjectedFault};
use futures::StreamExt;

use crate::site::*;

#[tokio::test(start_paused = true)]
async fn a_missing_config_is_reported_with_a_command_to_write_it() {
    let manager = manager(MemoryRegistry::new());
    let error = manager.config().await.unwrap_err();
    assert!(matches!(&error, ManagerError::NotConfigured { how, .. } if how == "MemoryRegistry::set_config"));
}

#[tokio::test(start_paused = true)]
async fn an_invalid_config_is_named_and_a_valid_one_is_read() {
    let site = site();
    site.store.set_config(r#"{"Network":"10.5.0.0/33"}"#);
    assert!(
        matches!(site.manager.config().await, Err(ManagerError::Config { error, .. }) if error.field() == Some("Network"))
    );
    site.store.set_config(CONFIG);
    assert_eq!(site.manager.config().await.unwrap(), config(CONFIG));
}

#[tokio::test(start_paused = true)]
async fn a_host_without_a_lease_takes_a_free_subnet() {
    let site = site();
    site.lease("10.5.1.0-24", 2).await;
    let lease = site.acquire().await.unwrap();
    assert_eq!((lease.attrs.clone(), lease.term), (host(1), Term::Limited));
    assert_ne!(lease.subnet, key("10.5.1.0-24"));
    assert!(site.list().await.contains(&lease));
}

#[tokio::test(start_paused = true)]
async fn a_host_finds_its_lease_by_its_address_and_renews_it_without_an_event() {
    let site = site();
    let before = site.lease("10.5.9.0-24", 1).await;
    tokio::time::sleep(DAY / 2).await;
    let previous = site.manager.previous_lease(host(1).public).await.unwrap();
    assert_eq!(previous, Some(before.clone()));
    assert_eq!(site.acquire_with(CONFIG, Some("10.5.7.0-24")).await.unwrap(), before);
    assert_eq!(site.faulty.count(Call::Update), 0, "an update would send a needless event to the peers");
    tokio::time::sleep(DAY * 3 / 4).await;
    assert_eq!(site.list().await, [before]);
}

#[tokio::test(start_paused = true)]
async fn a_record_with_other_attributes_is_rewritten() {
    let site = site();
    site.store.create(key("10.5.9.0-24"), &vxlan("a"), DAY).await.unwrap();
    let lease = site.acquire().await.unwrap();
    assert_eq!((lease.subnet, lease.attrs.clone()), (key("10.5.9.0-24"), host(1)));
    assert_eq!(site.list().await, [lease]);
}

#[tokio::test(start_paused = true)]
async fn a_host_takes_its_previous_subnet_back_if_it_is_free() {
    let site = site();
    let lease = site.acquire_with(CONFIG, Some("10.5.77.0-24")).await.unwrap();
    assert_eq!(lease.subnet, key("10.5.77.0-24"));
}

#[tokio::test(start_paused = true)]
async fn a_previous_subnet_that_another_host_holds_stays_with_it() {
    let site = site();
    let theirs = site.lease("10.5.77.0-24", 2).await;
    let lease = site.acquire_with(CONFIG, Some("10.5.77.0-24")).await.unwrap();
    assert_ne!(lease.subnet, theirs.subnet);
    assert!(site.list().await.contains(&theirs));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_the_network_no_longer_offers_is_replaced_at_once() {
    let site = site();
    site.lease("10.9.1.0-24", 1).await;
    site.lease("10.9.2.0-24", 1).await;
    let lease = site.acquire().await.unwrap();
    assert!(config(CONFIG).offers(&lease.subnet));
    assert_eq!(site.list().await, [lease], "the old leases are gone");
}

#[tokio::test(start_paused = true)]
async fn discarding_a_lease_that_is_gone_succeeds() {
    let site = site();
    let old = site.lease("10.9.1.0-24", 1).await;
    site.manager.previous_lease(host(1).public).await.unwrap();
    site.store.delete(&old).await.unwrap();
    assert!(config(CONFIG).offers(&site.acquire().await.unwrap().subnet));
}

#[tokio::test(start_paused = true)]
async fn a_full_network_is_reported() {
    let site = site();
    site.lease("10.5.0.0-16", 2).await;
    let error = site.acquire().await.unwrap_err();
    assert_eq!(error.to_string(), "out of subnets: all of 10.5.1.0 ... 10.5.255.0 are leased");
}

#[tokio::test(start_paused = true)]
async fn a_subnet_with_a_bad_record_is_not_taken() {
    let site = site();
    let narrow = r#"{"Network":"10.5.0.0/28"}"#;
    site.store.put_raw("10.5.0.4-30", b"garbage");
    site.store.put_raw("10.5.0.8-30", b"garbage");
    assert_eq!(site.acquire_with(narrow, None).await.unwrap().subnet, key("10.5.0.12-30"));
}

#[tokio::test(start_paused = true)]
async fn hosts_that_start_together_get_different_subnets() {
    let store = MemoryRegistry::new();
    let tight = config(r#"{"Network":"10.5.0.0/26","SubnetLen":30}"#);
    let hosts: Vec<_> = (1..=9).map(|last| (manager(store.clone()), host(last))).collect();
    for (manager, attrs) in &hosts {
        // All list the empty network first and make the same random choices.
        manager.previous_lease(attrs.public).await.unwrap();
    }
    let mut subnets = std::collections::BTreeSet::new();
    for (manager, attrs) in &hosts {
        let request = LeaseRequest::new(&tight, attrs);
        subnets.insert(manager.acquire(request).await.unwrap().subnet);
    }
    assert_eq!(subnets.len(), 9);
}

#[tokio::test(start_paused = true)]
async fn losing_ten_races_fails_and_may_be_retried() {
    let site = site();
    site.faulty.fail_next(Call::Create, [InjectedFault::LostRace; 10]);
    let error = site.acquire().await.unwrap_err();
    assert!(matches!(error, ManagerError::Registry(RegistryError::Exists(_))), "{error:?}");
    assert_eq!(site.faulty.count(Call::List), 10);
    assert_eq!(site.list().await.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_create_without_a_response_is_found_and_kept() {
    let site = site();
    site.faulty.fail_next(Call::Create, [InjectedFault::AnswerLost]);
    let lease = site.acquire_with(CONFIG, Some("10.5.7.0-24")).await.unwrap();
    assert_eq!(lease.subnet, key("10.5.7.0-24"));
    assert_eq!(site.list().await, [lease], "not a second lease");
    assert_eq!(site.faulty.count(Call::Create), 1);
}

#[tokio::test(start_paused = true)]
async fn a_create_that_never_arrived_is_repeated_for_the_same_subnet() {
    let site = site();
    site.faulty.fail_next(Call::Create, [InjectedFault::RequestLost, InjectedFault::RequestLost]);
    let lease = site.acquire_with(CONFIG, Some("10.5.7.0-24")).await.unwrap();
    assert_eq!(lease.subnet, key("10.5.7.0-24"));
    assert_eq!(site.list().await, [lease]);
}

#[tokio::test(start_paused = true)]
async fn an_update_or_discard_without_a_response_has_the_same_result() {
    for lost in [InjectedFault::AnswerLost, InjectedFault::RequestLost] {
        let site = site();
        site.store.create(key("10.5.9.0-24"), &vxlan("a"), DAY).await.unwrap();
        site.faulty.fail_next(Call::Update, [lost]);
        let lease = site.acquire().await.unwrap();
        assert_eq!(site.list().await, std::slice::from_ref(&lease));
        assert_eq!((lease.subnet, lease.attrs), (key("10.5.9.0-24"), host(1)));

        let site = self::site();
        site.lease("10.9.1.0-24", 1).await;
        site.faulty.fail_next(Call::Delete, [lost]);
        let lease = site.acquire().await.unwrap();
        assert_eq!(site.list().await, [lease]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_or_refusing_registry_is_not_retried_at_once() {
    let site = site();
    for fault in [InjectedFault::Unavailable, InjectedFault::Refused] {
        site.faulty.fail_next(Call::Create, [fault]);
        let before = site.faulty.count(Call::Create);
        assert!(matches!(site.acquire().await, Err(ManagerError::Registry(_))));
        assert_eq!(site.faulty.count(Call::Create), before + 1);
    }
    site.acquire().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_expires_between_list_and_write_is_taken_back() {
    let site = site();
    site.store.create(key("10.5.9.0-24"), &host(1), Duration::from_secs(1)).await.unwrap();
    site.manager.previous_lease(host(1).public).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(site.acquire().await.unwrap().subnet, key("10.5.9.0-24"));
}

#[tokio::test(start_paused = true)]
async fn a_host_costs_one_config_one_list_one_write_and_one_watch() {
    let site = site();
    for last in 2..100 {
        site.lease(&format!("10.5.{last}.0-24"), last).await;
    }
    site.manager.config().await.unwrap();
    site.manager.previous_lease(host(1).public).await.unwrap();
    let own = site.acquire().await.unwrap();
    let mut peers = site.manager.watch(own.subnet);
    assert!(matches!(peers.next().await, Some(PeerEvent::Changed(changes)) if changes.len() == 98));
    assert!(matches!(peers.next().await, Some(PeerEvent::Complete)));
    for last in 100..120 {
        site.lease(&format!("10.5.{last}.0-24"), last).await;
        assert!(matches!(peers.next().await, Some(PeerEvent::Changed(_))));
    }
    let expected = [(Call::Config, 1), (Call::List, 1), (Call::Create, 1), (Call::Watch, 1)];
    assert_eq!(site.calls(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_changes_between_list_and_write_is_listed_again() {
    let site = site();
    let old = site.store.create(key("10.5.9.0-24"), &vxlan("a"), DAY).await.unwrap();
    site.manager.previous_lease(host(1).public).await.unwrap();
    site.store.update(&old, &vxlan("b"), DAY).await.unwrap();
    let lease = site.acquire().await.unwrap();
    assert_eq!((lease.subnet, lease.attrs), (key("10.5.9.0-24"), host(1)));
}

#[tokio::test(start_paused = true)]
async fn the_lowest_of_two_leases_of_a_host_is_used() {
    let site = site();
    site.lease("10.5.10.0-24", 1).await;
    let lowest = site.lease("10.5.9.0-24", 1).await;
    assert_eq!(site.manager.previous_lease(host(1).public).await.unwrap(), Some(lowest.clone()));
    assert_eq!(site.acquire().await.unwrap(), lowest);
}

#[tokio::test(start_paused = true)]
async fn a_host_without_an_address_has_no_previous_lease() {
    let site = site();
    site.store.put_raw("10.5.1.0-24", b"{}");
    assert_eq!(site.manager.previous_lease(PublicAddrs::default()).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_lease_whose_renewal_grants_another_ttl_is_rewritten() {
    let site = site();
    let old = site.lease("10.5.9.0-24", 1).await;
    let seen = site.acquire().await.unwrap();
    assert_eq!(seen, old, "a renewal with the wanted TTL sends no event");
    site.faulty.limit_renewals(Duration::from_secs(3600));
    let own = site.acquire().await.unwrap();
    assert_eq!((own.subnet, &own.attrs), (old.subnet, &old.attrs));
    assert!(own.revision > old.revision, "{own:?}");
    assert_eq!(site.list().await, [own]);
}
