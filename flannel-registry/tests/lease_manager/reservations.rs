//! Reservations.

use flannel_core::{KeepEvent, LeaseManager, Term};
use flannel_testing::Call;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::timeout;

use crate::site::*;

#[tokio::test(start_paused = true)]
async fn a_reservation_made_in_advance_is_used_and_stays_one() {
    let site = site();
    site.store.put_raw("10.5.9.0-24", br#"{"PublicIP":"192.168.0.1","BackendType":"vxlan"}"#);
    let lease = site.acquire().await.unwrap();
    assert_eq!((lease.subnet, lease.term), (key("10.5.9.0-24"), Term::Permanent));
    assert_eq!(lease.attrs, host(1));
    let mut keep = site.manager.keep(lease.clone());
    assert_eq!(keep.next().await, Some(KeepEvent::Permanent));
    assert!(timeout(DAY * 30, keep.next()).await.is_err(), "it needs nothing");
    assert_eq!(site.faulty.count(Call::Renew), 0);
    assert_eq!(site.list().await, std::slice::from_ref(&lease));
    site.manager.release(&lease).await.unwrap();
    assert_eq!(site.list().await, [lease], "it is not ours to remove");
}

#[tokio::test(start_paused = true)]
async fn a_lease_turned_into_a_reservation_is_not_renewed_until_it_is_limited_again() {
    let (site, own, mut keep, _peers) = kept().await;
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    site.store.put_raw("10.5.9.0-24", host(1).to_record().as_bytes());
    assert_eq!(keep.next().await, Some(KeepEvent::Permanent));
    assert!(timeout(DAY * 3, keep.next()).await.is_err());
    site.store.remove_raw("10.5.9.0-24");
    assert!(matches!(keep.next().await, Some(KeepEvent::Lost(_))));
    assert_eq!(site.acquire_with(CONFIG, Some("10.5.9.0-24")).await.unwrap().subnet, own.subnet);
}

#[tokio::test(start_paused = true)]
async fn a_reservation_overwritten_by_an_operator_gets_our_attributes_back() {
    let (site, own, mut keep, _peers) = kept().await;
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    let bare = br#"{"PublicIP":"192.168.0.1","BackendType":"vxlan"}"#;
    site.store.put_raw("10.5.9.0-24", bare);
    assert!(matches!(keep.next().await, Some(KeepEvent::Disputed(_))));
    assert!(matches!(keep.next().await, Some(KeepEvent::Renewed(_))));
    assert_eq!(keep.next().await, Some(KeepEvent::Permanent));
    let record = site.list().await.remove(0);
    assert_eq!((record.attrs, record.term), (own.attrs, Term::Permanent));
}

#[tokio::test(start_paused = true)]
async fn a_reservation_in_a_restored_store_gets_our_attributes_back_without_a_watch() {
    let site = site();
    let own = site.acquire_with(CONFIG, Some("10.5.9.0-24")).await.unwrap();
    let mut peers = site.manager.watch(own.subnet);
    let mut keep = site.manager.keep(own.clone());
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    // The watch does not see this; only the renewal finds it.
    site.store.put_raw("10.5.9.0-24", vxlan("0a:00:00:00:00:09").to_record().as_bytes());
    let backup = site.store.backup();
    let put_right = async |keep: &mut BoxStream<'static, KeepEvent>| {
        assert!(matches!(keep.next().await, Some(KeepEvent::Disputed(_))));
        assert!(matches!(keep.next().await, Some(KeepEvent::Renewed(_))));
        assert_eq!(keep.next().await, Some(KeepEvent::Permanent));
        assert_eq!(site.list().await.remove(0).attrs, own.attrs);
    };
    put_right(&mut keep).await;

    site.store.restore(backup);
    let _peers = tokio::spawn(async move { while peers.next().await.is_some() {} });
    timeout(DAY, put_right(&mut keep)).await.expect("the record says what another device is");
}
