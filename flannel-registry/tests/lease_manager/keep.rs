//! Renewal and loss of a lease.

use std::time::Duration;

use flannel_core::{Backoff, KeepEvent, LeaseManager, LeaseRequest, PeerEvent, SubnetRegistry, renew_after};
use flannel_registry::{MemoryRegistry, RegistryLeaseManager, RegistryLeaseManagerOptions};
use flannel_testing::{Call, FaultyRegistry, InjectedFault};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::Instant;

use crate::site::*;

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_at_a_third_of_its_ttl_forever() {
    let site = site();
    let own = site.acquire().await.unwrap();
    let mut keep = site.manager.keep(own.clone());
    let start = Instant::now();
    for _ in 0..20 {
        let Some(KeepEvent::Waiting(wait)) = keep.next().await else {
            panic!("it waits");
        };
        assert!(renew_after(DAY, 1.0) <= wait && wait <= renew_after(DAY, 0.0), "{wait:?}");
        assert_eq!(keep.next().await, Some(KeepEvent::Renewed(DAY)));
    }
    assert!(start.elapsed() > DAY * 5);
    assert_eq!(site.list().await, [own]);
    assert_eq!((site.faulty.count(Call::Renew), site.faulty.count(Call::List)), (20, 1));
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_is_retried_with_backoff_and_is_no_loss() {
    let site = site();
    let own = site.acquire().await.unwrap();
    let mut keep = site.manager.keep(own.clone());
    keep.next().await;
    site.faulty.fail_next(
        Call::Renew,
        [InjectedFault::Unavailable, InjectedFault::Refused, InjectedFault::RequestLost],
    );
    let mut pauses = Vec::new();
    for _ in 0..3 {
        let Some(KeepEvent::RenewalFailed { retry_in, reason }) = keep.next().await else {
            panic!("it fails");
        };
        assert!(!reason.is_empty());
        pauses.push(retry_in);
    }
    assert!(pauses.is_sorted() && pauses[2] < Duration::from_secs(5), "{pauses:?}");
    assert_eq!(keep.next().await, Some(KeepEvent::Renewed(DAY)));
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    assert_eq!(site.list().await, [own]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_expired_in_an_outage_is_lost_only_when_the_registry_answers() {
    let (site, own, mut keep, _peers) = kept().await;
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    site.faulty.stop_responding();
    let start = Instant::now();
    while start.elapsed() < DAY * 2 {
        assert!(matches!(keep.next().await, Some(KeepEvent::RenewalFailed { .. })));
    }
    site.faulty.resume_responding();
    assert!(matches!(keep.next().await, Some(KeepEvent::Lost(_))));
    assert!(keep.next().await.is_none());
    let again = site.acquire_with(CONFIG, Some("10.5.9.0-24")).await.unwrap();
    assert_eq!(again.subnet, own.subnet);
    let mut keep = site.manager.keep(again);
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    assert_eq!(keep.next().await, Some(KeepEvent::Renewed(DAY)), "the old loss is forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_key_is_a_lost_lease_at_once() {
    let (site, own, mut keep, _peers) = kept().await;
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    let start = Instant::now();
    site.store.remove_raw(&own.subnet.to_string());
    assert_eq!(
        keep.next().await,
        Some(KeepEvent::Lost("the lease of 10.5.9.0-24 was removed or expired".to_owned()))
    );
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(site.faulty.count(Call::Renew), 0);
}

#[tokio::test(start_paused = true)]
async fn a_key_deleted_while_the_watch_was_down_is_a_lost_lease_at_once() {
    let (site, own, mut keep, _peers) = kept().await;
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    site.store.remove_raw(&own.subnet.to_string());
    site.faulty.cut_watches();
    assert!(matches!(keep.next().await, Some(KeepEvent::Lost(_))));
}

#[tokio::test(start_paused = true)]
async fn a_deletion_before_the_acquisition_is_ignored() {
    let site = site();
    let old = site.lease("10.5.9.0-24", 1).await;
    site.manager.previous_lease(host(1).public).await.unwrap();
    site.store.delete(&old).await.unwrap();
    let own = site.acquire_with(CONFIG, Some("10.5.9.0-24")).await.unwrap();
    assert_ne!(own.revision, old.revision);
    let mut keep = site.manager.keep(own.clone());
    let mut peers = site.manager.watch(own.subnet);
    let _peers = tokio::spawn(async move { while peers.next().await.is_some() {} });
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    let start = Instant::now();
    assert_eq!(keep.next().await, Some(KeepEvent::Renewed(DAY)));
    assert!(start.elapsed() > DAY / 4, "the event must not cause an earlier renewal");
}

#[tokio::test(start_paused = true)]
async fn a_record_overwritten_by_another_host_is_lost() {
    let (site, _, mut keep, _peers) = kept().await;
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    site.store.put_raw("10.5.9.0-24", host(2).to_record().as_bytes());
    let lost = "the lease of 10.5.9.0-24 was overwritten by 192.168.0.2";
    assert_eq!(keep.next().await, Some(KeepEvent::Lost(lost.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn without_a_watch_the_next_renewal_detects_the_new_owner() {
    let lost = async |change: fn(&Site)| {
        let site = site();
        let own = site.acquire_with(CONFIG, Some("10.5.9.0-24")).await.unwrap();
        let mut keep = site.manager.keep(own);
        keep.next().await;
        change(&site);
        keep.next().await.unwrap()
    };
    let removed = lost(|site| assert!(site.store.remove_raw("10.5.9.0-24"))).await;
    assert_eq!(removed, KeepEvent::Lost("the lease of 10.5.9.0-24 is gone".to_owned()));
    let other = |site: &Site| site.store.put_raw("10.5.9.0-24", host(2).to_record().as_bytes());
    let reason = "the lease of 10.5.9.0-24 was overwritten by 192.168.0.2";
    assert_eq!(lost(other).await, KeepEvent::Lost(reason.to_owned()));
    let garbage = |site: &Site| site.store.put_raw("10.5.9.0-24", b"garbage");
    assert!(
        matches!(lost(garbage).await, KeepEvent::RenewalFailed { reason, .. } if reason.contains("10.5.9.0-24"))
    );
}

#[tokio::test(start_paused = true)]
async fn an_invalid_record_fails_renewals_until_it_is_removed() {
    let (site, own, mut keep, _peers) = kept().await;
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    site.store.put_raw("10.5.9.0-24", b"garbage");
    site.faulty.cut_watches();
    for _ in 0..5 {
        assert!(matches!(keep.next().await, Some(KeepEvent::RenewalFailed { .. })));
    }
    site.store.remove_raw("10.5.9.0-24");
    assert!(matches!(keep.next().await, Some(KeepEvent::Lost(_))));
    assert_eq!(site.acquire_with(CONFIG, Some("10.5.9.0-24")).await.unwrap().subnet, own.subnet);
}

#[tokio::test(start_paused = true)]
async fn a_record_rewritten_by_another_daemon_of_this_host_is_restored_and_kept() {
    for watched in [true, false] {
        let (site, own, mut keep, peers) = kept().await;
        if !watched {
            peers.abort();
        }
        assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
        // Upstream flannel renews without a comparison.
        let theirs = site.store.update(&site.list().await[0], &vxlan("other"), DAY).await.unwrap();
        let seen = "Lease (10.5.9.0/24) was rewritten by another daemon for the current IP (192.168.0.1)";
        assert_eq!(keep.next().await, Some(KeepEvent::Disputed(seen.to_owned())));
        assert_eq!(keep.next().await, Some(KeepEvent::Renewed(DAY)));
        assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
        let now = site.list().await.remove(0);
        assert_eq!(now.attrs, own.attrs);
        assert!(now.revision > theirs.revision);
        assert_eq!(keep.next().await, Some(KeepEvent::Renewed(DAY)));
        site.manager.release(&own).await.unwrap();
        assert_eq!(site.list().await, [], "the newest revision is the one given back");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dispute_between_two_daemons_slows_down() {
    let (site, _, mut keep, _peers) = kept().await;
    keep.next().await;
    let start = Instant::now();
    for _ in 0..20 {
        site.store.update(&site.list().await[0], &vxlan("other"), DAY).await.unwrap();
        assert!(matches!(keep.next().await, Some(KeepEvent::Disputed(_))));
        assert_eq!(keep.next().await, Some(KeepEvent::Renewed(DAY)));
        assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    }
    assert!(start.elapsed() > Duration::from_secs(600), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn renewals_of_a_short_lease_are_retried_often_enough() {
    let store = MemoryRegistry::new();
    let faulty = FaultyRegistry::new(store.clone());
    let mut options = RegistryLeaseManagerOptions::default();
    options.ttl = Duration::from_secs(10);
    options.retry = Backoff { first: Duration::from_secs(5), longest: Duration::from_secs(60) };
    options.seed = Some(1);
    let manager = RegistryLeaseManager::with_options(faulty.clone(), options);
    let own = manager.acquire(LeaseRequest::new(&config(CONFIG), &host(1))).await.unwrap();
    let mut keep = manager.keep(own);
    keep.next().await;
    faulty.fail_next(Call::Renew, [InjectedFault::Unavailable; 4]);
    while !matches!(keep.next().await, Some(KeepEvent::Renewed(_))) {}
    assert_eq!(store.list().await.unwrap().leases.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_released_and_a_missing_lease_is_no_error() {
    let site = site();
    let own = site.acquire().await.unwrap();
    site.manager.release(&own).await.unwrap();
    assert_eq!(site.list().await, []);
    site.manager.release(&own).await.unwrap();
    let other = site.lease(&own.subnet.to_string(), 2).await;
    assert!(site.manager.release(&own).await.is_err(), "it is another host's now");
    assert_eq!(site.list().await, [other]);
}

#[tokio::test(start_paused = true)]
async fn a_shorter_granted_ttl_is_renewed_more_often() {
    let site = site();
    let hour = Duration::from_secs(3600);
    site.faulty.limit_renewals(hour);
    site.lease("10.5.9.0-24", 1).await;
    let mut keep = site.manager.keep(site.acquire().await.unwrap());
    for _ in 0..5 {
        assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(wait)) if wait <= hour / 3));
        assert_eq!(keep.next().await, Some(KeepEvent::Renewed(hour)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_successful_renewal_resets_the_backoff() {
    let site = site();
    let mut keep = site.manager.keep(site.acquire().await.unwrap());
    for _ in 0..2 {
        assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
        site.faulty.fail_next(Call::Renew, [InjectedFault::Unavailable; 4]);
        let trouble = keep.next().await;
        assert!(
            matches!(trouble, Some(KeepEvent::RenewalFailed { retry_in, .. }) if retry_in <= Duration::from_secs(1))
        );
        while !matches!(keep.next().await, Some(KeepEvent::Renewed(_))) {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_restore_from_before_the_lease_loses_it_at_once() {
    let site = site();
    site.lease("10.5.2.0-24", 2).await;
    let backup = site.store.backup();
    site.lease("10.5.3.0-24", 3).await;
    let own = site.acquire_with(CONFIG, Some("10.5.9.0-24")).await.unwrap();
    let mut keep = site.manager.keep(own.clone());
    let mut peers = site.manager.watch(own.subnet);
    let _peers = tokio::spawn(async move { while peers.next().await.is_some() {} });
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    let start = Instant::now();
    site.store.restore(backup);
    assert!(matches!(keep.next().await, Some(KeepEvent::Lost(_))));
    assert_eq!(start.elapsed(), Duration::ZERO);
    let again = site.acquire_with(CONFIG, Some("10.5.9.0-24")).await.unwrap();
    assert_eq!(again.subnet, own.subnet);
    assert!(again.revision <= own.revision, "the store's time went back");
    let mut keep = site.manager.keep(again);
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    let start = Instant::now();
    assert_eq!(keep.next().await, Some(KeepEvent::Renewed(DAY)));
    assert!(start.elapsed() > DAY / 4, "the old loss is forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_restore_loses_the_lease_although_the_revision_grew_again() {
    let site = site();
    let before = site.store.backup();
    let own = site.acquire().await.unwrap();
    let mut peers = site.manager.watch(own.subnet);
    let mut keep = site.manager.keep(own.clone());
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    // The watch sees the own lease.
    assert!(
        tokio::time::timeout(Duration::from_secs(9), async { while peers.next().await.is_some() {} })
            .await
            .is_err()
    );
    site.store.restore(before);
    while site.store.list().await.unwrap().revision < own.revision {
        site.store.put_raw("garbage", b"x");
    }
    let lost = tokio::time::timeout(Duration::from_secs(9), async {
        tokio::select! {
            lost = keep.next() => lost,
            () = async { while peers.next().await.is_some() {} } => None,
        }
    });
    assert!(matches!(lost.await, Ok(Some(KeepEvent::Lost(_)))), "the list does not hold it any more");
}

#[tokio::test(start_paused = true)]
async fn a_restore_loses_a_lease_that_the_watch_never_saw() {
    let site = site();
    let before = site.store.backup();
    let own = site.acquire().await.unwrap();
    let mut peers = site.manager.watch(own.subnet);
    let mut keep = site.manager.keep(own);
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    site.store.restore(before);
    follow_for_a_second(&mut peers).await;
    let lost = tokio::time::timeout(Duration::from_secs(9), keep.next()).await;
    assert!(matches!(lost, Ok(Some(KeepEvent::Lost(_)))), "{lost:?}");
}

#[tokio::test(start_paused = true)]
async fn a_delayed_list_from_before_the_own_write_is_no_dispute() {
    let site = site();
    let own = site.acquire().await.unwrap();
    let mut peers = site.manager.watch(own.subnet);
    let mut keep = site.manager.keep(own.clone());
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    site.store.update(&own, &vxlan("0a:00:00:00:00:09"), DAY).await.unwrap();
    assert!(matches!(keep.next().await, Some(KeepEvent::Disputed(_))));
    // The watch receives its list while the record is being rewritten.
    site.faulty.fail_next(Call::Update, [InjectedFault::Delayed(Duration::from_secs(10))]);
    site.faulty.cut_watches();
    let (renewed, ()) = tokio::join!(keep.next(), follow_for_a_second(&mut peers));
    assert_eq!(renewed, Some(KeepEvent::Renewed(DAY)));
    for _ in 0..6 {
        let event = keep.next().await;
        assert!(matches!(event, Some(KeepEvent::Waiting(_) | KeepEvent::Renewed(_))), "{event:?}");
    }
}

async fn follow_for_a_second(peers: &mut BoxStream<'static, PeerEvent>) {
    let follow = async { while peers.next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(1), follow).await.unwrap_err();
}
