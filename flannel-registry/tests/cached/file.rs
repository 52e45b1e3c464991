//! Content, writes and validation of the cache file.

use std::time::Duration;

use flannel_core::LeaseManager;
use futures::StreamExt;
use tokio::time::timeout;

use crate::site::{NETWORK, OWN, Site, host, key, start, until_complete};

const PEERS: &[(&str, u8)] = &[("10.5.2.0-24", 2), ("10.5.3.0-24", 3)];

#[tokio::test(start_paused = true)]
async fn the_file_holds_the_state_of_the_registry() {
    let site = Site::after_a_run(PEERS).await;
    let text = site.text();
    let lines: Vec<_> = text.lines().collect();
    let peer = |subnet: &str, last| format!("peer {subnet} {}", host(last).to_record());
    assert_eq!(lines[..3], ["flannel cache 2", "network /coreos.com/network", "store -"]);
    assert!(
        lines[4].starts_with(&format!("own {OWN} ")) && lines[4].ends_with(&host(1).to_record()),
        "{text}"
    );
    assert_eq!(lines[5..7], [peer("10.5.2.0-24", 2), peer("10.5.3.0-24", 3)]);
}

#[tokio::test(start_paused = true)]
async fn many_changes_cause_one_write() {
    let site = Site::new();
    let manager = site.manager();
    let own = start(&manager).await.unwrap();
    let mut events = manager.watch(own.subnet);
    until_complete(&mut events).await;
    site.is_written(&mut events, |text| !text.is_empty()).await;
    for last in 20..30 {
        site.peer(&format!("10.5.{last}.0-24"), last);
        // Within the minimum interval between writes.
        assert!(timeout(Duration::from_millis(50), events.next()).await.is_ok());
        assert!(timeout(Duration::from_millis(20), events.next()).await.is_err());
        assert_eq!(site.text().lines().count(), 6);
    }
    site.is_written(&mut events, |text| text.lines().count() == 16).await;
}

#[tokio::test(start_paused = true)]
async fn peers_that_all_leave_at_once_stay_in_the_file_while_they_are_held() {
    let site = Site::after_a_run(PEERS).await;
    let manager = site.manager();
    let own = start(&manager).await.unwrap();
    let mut events = manager.watch(own.subnet);
    until_complete(&mut events).await;
    for (subnet, _) in PEERS {
        site.revoke(subnet).await;
    }
    // A change, so that the file is written.
    site.peer("10.5.4.0-24", 4);
    site.is_written(&mut events, |text| text.contains("10.5.4.0-24") && text.contains("10.5.2.0-24")).await;
    assert!(timeout(Duration::from_secs(250), events.next()).await.is_err());
    assert!(site.text().contains("10.5.3.0-24"));
    assert!(timeout(Duration::from_secs(60), events.next()).await.is_err());
    site.is_written(&mut events, |text| !text.contains("10.5.2.0-24")).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_of_another_host_or_network_is_ignored() {
    let site = Site::after_a_run(PEERS).await;
    site.faulty.stop_responding();
    assert!(site.manager_of("/another/network", 1).config().await.is_err());
    assert!(site.manager_of(NETWORK, 2).config().await.is_err());
    let text = site.text();
    std::fs::write(site.path(), &text[..text.len() / 2]).unwrap();
    assert!(site.manager().config().await.is_err());
    std::fs::write(site.path(), text).unwrap();
    assert!(site.manager().config().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn releasing_the_lease_removes_the_file() {
    let site = Site::after_a_run(PEERS).await;
    let manager = site.manager();
    let own = start(&manager).await.unwrap();
    manager.release(&own).await.unwrap();
    assert!(!site.path().exists());
    assert!(!site.leases().await.iter().any(|(subnet, _)| key(subnet) == own.subnet));
}
