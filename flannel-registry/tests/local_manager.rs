//! A host's lease over a registry: getting it, keeping it, losing it. The clock is paused, so days pass at once.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail in its helpers too")]

use std::net::Ipv4Addr;
use std::time::Duration;

use flannel_core::{
    Backoff, KeepEvent, Lease, LeaseAttrs, LeaseChange, LeaseManager, LeaseRequest, ManagerError,
    NetworkConfig, PeerEvent, PublicAddrs, RegistryError, SubnetKey, SubnetRegistry, Term, renew_after,
};
use flannel_registry::{LocalManager, LocalManagerOptions, MemoryRegistry};
use flannel_testing::{Call, Fault, FaultyRegistry};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::{Instant, timeout};

const CONFIG: &str = r#"{"Network":"10.5.0.0/16"}"#;
const DAY: Duration = Duration::from_secs(86_400);

/// A store with its faults, and the manager of the host 192.168.0.1 on it.
struct Site {
    store: MemoryRegistry,
    faulty: FaultyRegistry<MemoryRegistry>,
    manager: LocalManager<FaultyRegistry<MemoryRegistry>>,
}

fn site() -> Site {
    let store = MemoryRegistry::new();
    store.set_config(CONFIG);
    let faulty = FaultyRegistry::new(store.clone());
    let manager = manager(faulty.clone());
    Site { store, faulty, manager }
}

fn manager<R: SubnetRegistry>(registry: R) -> LocalManager<R> {
    let options = LocalManagerOptions { seed: Some(7), ..LocalManagerOptions::default() };
    LocalManager::with_options(registry, options)
}

fn host(last: u8) -> LeaseAttrs {
    LeaseAttrs::new(Ipv4Addr::new(192, 168, 0, last).into())
}

fn key(text: &str) -> SubnetKey {
    text.parse().unwrap()
}

fn config(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text).unwrap()
}

impl Site {
    async fn acquire(&self) -> Result<Lease, ManagerError> {
        self.acquire_with(CONFIG, None).await
    }

    async fn acquire_with(&self, text: &str, previous: Option<&str>) -> Result<Lease, ManagerError> {
        let request = LeaseRequest { config: &config(text), attrs: &host(1), previous: previous.map(key) };
        self.manager.acquire(request).await
    }

    /// Writes the lease of a host that has another manager.
    async fn lease(&self, subnet: &str, last: u8) -> Lease {
        self.store.create(key(subnet), &host(last), DAY).await.unwrap()
    }

    async fn list(&self) -> Vec<Lease> {
        self.store.list().await.unwrap().leases
    }

    fn calls(&self) -> Vec<(Call, usize)> {
        self.faulty.counts()
    }
}

// Getting a lease.

#[tokio::test(start_paused = true)]
async fn a_network_without_configuration_says_what_to_write_and_where() {
    let manager = manager(MemoryRegistry::new());
    let error = manager.config().await.unwrap_err();
    assert!(matches!(&error, ManagerError::NotConfigured { how, .. } if how == "MemoryRegistry::set_config"));
}

#[tokio::test(start_paused = true)]
async fn a_wrong_configuration_is_named_and_a_correct_one_read() {
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
async fn a_host_finds_its_lease_by_its_address_and_renews_it_silently() {
    let site = site();
    let before = site.lease("10.5.9.0-24", 1).await;
    tokio::time::sleep(DAY / 2).await;
    let recalled = site.manager.recall(host(1).public).await.unwrap();
    assert_eq!(recalled, Some(before.clone()));
    assert_eq!(site.acquire_with(CONFIG, Some("10.5.7.0-24")).await.unwrap(), before);
    assert_eq!(site.faulty.count(Call::Update), 0, "peers would be told for nothing");
    tokio::time::sleep(DAY * 3 / 4).await;
    assert_eq!(site.list().await, [before]);
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_record_says_something_else_writes_it_again() {
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
async fn a_lease_that_is_discarded_and_gone_already_is_no_trouble() {
    let site = site();
    let old = site.lease("10.9.1.0-24", 1).await;
    site.manager.recall(host(1).public).await.unwrap();
    site.store.delete(&old).await.unwrap();
    assert!(config(CONFIG).offers(&site.acquire().await.unwrap().subnet));
}

#[tokio::test(start_paused = true)]
async fn a_full_network_is_said_to_be_full() {
    let site = site();
    site.lease("10.5.0.0-16", 2).await;
    let error = site.acquire().await.unwrap_err();
    assert_eq!(error.to_string(), "out of subnets: all of 10.5.1.0 ... 10.5.255.0 are leased");
}

#[tokio::test(start_paused = true)]
async fn a_subnet_whose_record_cannot_be_read_is_not_taken() {
    let site = site();
    let narrow = r#"{"Network":"10.5.0.0/28"}"#;
    site.store.put_raw("10.5.0.4-30", b"garbage");
    site.store.put_raw("10.5.0.8-30", b"garbage");
    assert_eq!(site.acquire_with(narrow, None).await.unwrap().subnet, key("10.5.0.12-30"));
}

#[tokio::test(start_paused = true)]
async fn hosts_that_start_together_all_get_a_subnet_of_their_own() {
    let store = MemoryRegistry::new();
    let tight = config(r#"{"Network":"10.5.0.0/26","SubnetLen":30}"#);
    let hosts: Vec<_> = (1..=9).map(|last| (manager(store.clone()), host(last))).collect();
    for (manager, attrs) in &hosts {
        // All look at the empty network first, and all choose by the same chance.
        manager.recall(attrs.public).await.unwrap();
    }
    let mut subnets = std::collections::BTreeSet::new();
    for (manager, attrs) in &hosts {
        let request = LeaseRequest { config: &tight, attrs, previous: None };
        subnets.insert(manager.acquire(request).await.unwrap().subnet);
    }
    assert_eq!(subnets.len(), 9);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_loses_ten_races_says_so_and_may_try_again() {
    struct AlwaysLater(FaultyRegistry<MemoryRegistry>);
    let site = site();
    let racing = AlwaysLater(site.faulty.clone());
    /// Somebody else is faster each time.
    #[async_trait::async_trait]
    impl SubnetRegistry for AlwaysLater {
        fn describe(&self) -> String {
            self.0.describe()
        }

        fn how_to_configure(&self) -> String {
            self.0.how_to_configure()
        }
        async fn config(&self) -> Result<Option<String>, RegistryError> {
            self.0.config().await
        }
        async fn list(&self) -> Result<flannel_core::Snapshot, RegistryError> {
            self.0.list().await
        }
        async fn create(
            &self,
            subnet: SubnetKey,
            attrs: &LeaseAttrs,
            ttl: Duration,
        ) -> Result<Lease, RegistryError> {
            self.0.create(subnet, &host(99), ttl).await.unwrap();
            self.0.create(subnet, attrs, ttl).await
        }
        async fn update(
            &self,
            lease: &Lease,
            attrs: &LeaseAttrs,
            ttl: Duration,
        ) -> Result<Lease, RegistryError> {
            self.0.update(lease, attrs, ttl).await
        }
        async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError> {
            self.0.renew(lease, ttl).await
        }
        async fn delete(&self, lease: &Lease) -> Result<(), RegistryError> {
            self.0.delete(lease).await
        }
        fn watch(
            &self,
            after: Option<flannel_core::Revision>,
        ) -> BoxStream<'static, flannel_core::RegistryEvent> {
            self.0.watch(after)
        }
    }
    let manager = manager(racing);
    let request = LeaseRequest { config: &config(CONFIG), attrs: &host(1), previous: None };
    let error = manager.acquire(request).await.unwrap_err();
    assert!(matches!(error, ManagerError::Registry(RegistryError::Exists(_))), "{error:?}");
    assert_eq!(site.faulty.count(Call::List), 10);
    assert_eq!(site.list().await.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_create_whose_answer_is_lost_is_found_and_kept() {
    let site = site();
    site.faulty.fail_next(Call::Create, [Fault::AnswerLost]);
    let lease = site.acquire_with(CONFIG, Some("10.5.7.0-24")).await.unwrap();
    assert_eq!(lease.subnet, key("10.5.7.0-24"));
    assert_eq!(site.list().await, [lease], "not a second lease");
    assert_eq!(site.faulty.count(Call::Create), 1);
}

#[tokio::test(start_paused = true)]
async fn a_create_that_never_arrived_is_made_again_for_the_same_subnet() {
    let site = site();
    site.faulty.fail_next(Call::Create, [Fault::RequestLost, Fault::RequestLost]);
    let lease = site.acquire_with(CONFIG, Some("10.5.7.0-24")).await.unwrap();
    assert_eq!(lease.subnet, key("10.5.7.0-24"));
    assert_eq!(site.list().await, [lease]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_to_an_update_or_a_discard_changes_nothing_in_the_end() {
    for lost in [Fault::AnswerLost, Fault::RequestLost] {
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
async fn a_registry_that_is_silent_or_refuses_is_not_tried_again_without_a_pause() {
    let site = site();
    for fault in [Fault::Unavailable, Fault::Refused] {
        site.faulty.fail_next(Call::Create, [fault]);
        let before = site.faulty.count(Call::Create);
        assert!(matches!(site.acquire().await, Err(ManagerError::Registry(_))));
        assert_eq!(site.faulty.count(Call::Create), before + 1);
    }
    site.acquire().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_runs_out_between_look_and_write_is_taken_back() {
    let site = site();
    site.store.create(key("10.5.9.0-24"), &host(1), Duration::from_secs(1)).await.unwrap();
    site.manager.recall(host(1).public).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(site.acquire().await.unwrap().subnet, key("10.5.9.0-24"));
}

#[tokio::test(start_paused = true)]
async fn a_host_costs_one_configuration_one_list_one_write_and_one_watch() {
    let site = site();
    for last in 2..100 {
        site.lease(&format!("10.5.{last}.0-24"), last).await;
    }
    site.manager.config().await.unwrap();
    site.manager.recall(host(1).public).await.unwrap();
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
async fn a_record_that_changes_between_look_and_write_is_looked_at_again() {
    let site = site();
    let old = site.store.create(key("10.5.9.0-24"), &vxlan("a"), DAY).await.unwrap();
    site.manager.recall(host(1).public).await.unwrap();
    site.store.update(&old, &vxlan("b"), DAY).await.unwrap();
    let lease = site.acquire().await.unwrap();
    assert_eq!((lease.subnet, lease.attrs), (key("10.5.9.0-24"), host(1)));
}

#[tokio::test(start_paused = true)]
async fn of_two_leases_of_a_host_the_lowest_is_recalled_and_used() {
    let site = site();
    site.lease("10.5.10.0-24", 1).await;
    let lowest = site.lease("10.5.9.0-24", 1).await;
    assert_eq!(site.manager.recall(host(1).public).await.unwrap(), Some(lowest.clone()));
    assert_eq!(site.acquire().await.unwrap(), lowest);
}

// Reservations.

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
async fn a_lease_that_is_made_a_reservation_is_not_renewed_any_more_until_it_is_limited_again() {
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
async fn a_reservation_that_somebody_writes_without_our_data_gets_it_back() {
    let (site, own, mut keep, _peers) = kept().await;
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    let bare = br#"{"PublicIP":"192.168.0.1","BackendType":"vxlan"}"#;
    site.store.put_raw("10.5.9.0-24", bare);
    assert!(matches!(keep.next().await, Some(KeepEvent::Renewed(_))));
    assert_eq!(keep.next().await, Some(KeepEvent::Permanent));
    let record = site.list().await.remove(0);
    assert_eq!((record.attrs, record.term), (own.attrs, Term::Permanent));
}

// Keeping.

/// A site with a lease of 10.5.9.0-24 that is kept, and watched as a network does.
async fn kept() -> (Site, Lease, BoxStream<'static, KeepEvent>, tokio::task::JoinHandle<()>) {
    let site = site();
    let own = site.acquire_with(CONFIG, Some("10.5.9.0-24")).await.unwrap();
    let keep = site.manager.keep(own.clone());
    let mut peers = site.manager.watch(own.subnet);
    let peers = tokio::spawn(async move { while peers.next().await.is_some() {} });
    (site, own, keep, peers)
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_at_a_third_of_its_time_to_live_for_ever() {
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
async fn a_renewal_that_fails_is_tried_again_with_growing_pauses_and_is_no_loss() {
    let site = site();
    let own = site.acquire().await.unwrap();
    let mut keep = site.manager.keep(own.clone());
    keep.next().await;
    site.faulty.fail_next(Call::Renew, [Fault::Unavailable, Fault::Refused, Fault::RequestLost]);
    let mut pauses = Vec::new();
    for _ in 0..3 {
        let Some(KeepEvent::Trouble { retry_in, reason }) = keep.next().await else {
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
async fn a_registry_that_is_silent_for_longer_than_the_lease_loses_it_only_when_it_answers() {
    let (site, own, mut keep, _peers) = kept().await;
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    site.faulty.go_silent();
    let start = Instant::now();
    while start.elapsed() < DAY * 2 {
        assert!(matches!(keep.next().await, Some(KeepEvent::Trouble { .. })));
    }
    site.faulty.come_back();
    assert!(matches!(keep.next().await, Some(KeepEvent::Lost(_))));
    assert!(keep.next().await.is_none());
    let again = site.acquire_with(CONFIG, Some("10.5.9.0-24")).await.unwrap();
    assert_eq!(again.subnet, own.subnet);
    let mut keep = site.manager.keep(again);
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    assert_eq!(keep.next().await, Some(KeepEvent::Renewed(DAY)), "the old loss is forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_somebody_deletes_is_a_lost_lease_at_once() {
    let (site, own, mut keep, _peers) = kept().await;
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    let start = Instant::now();
    site.store.remove_raw(&own.subnet.to_string());
    assert_eq!(
        keep.next().await,
        Some(KeepEvent::Lost("the lease of 10.5.9.0-24 was removed or ran out".to_owned()))
    );
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(site.faulty.count(Call::Renew), 0);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_deleted_while_the_watch_was_cut_is_a_lost_lease_at_once() {
    let (site, own, mut keep, _peers) = kept().await;
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    site.store.remove_raw(&own.subnet.to_string());
    site.faulty.cut_watches();
    assert!(matches!(keep.next().await, Some(KeepEvent::Lost(_))));
}

#[tokio::test(start_paused = true)]
async fn a_deletion_from_before_the_lease_is_not_its_end() {
    let site = site();
    let old = site.lease("10.5.9.0-24", 1).await;
    site.manager.recall(host(1).public).await.unwrap();
    site.store.delete(&old).await.unwrap();
    let own = site.acquire_with(CONFIG, Some("10.5.9.0-24")).await.unwrap();
    assert_ne!(own.revision, old.revision);
    let mut keep = site.manager.keep(own.clone());
    let mut peers = site.manager.watch(own.subnet);
    let _peers = tokio::spawn(async move { while peers.next().await.is_some() {} });
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    let start = Instant::now();
    assert_eq!(keep.next().await, Some(KeepEvent::Renewed(DAY)));
    assert!(start.elapsed() > DAY / 4, "what was heard of it is no reason to renew it sooner");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_another_host_overwrites_is_lost_to_that_host() {
    let (site, _, mut keep, _peers) = kept().await;
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    site.store.put_raw("10.5.9.0-24", host(2).to_record().as_bytes());
    let lost = "the lease of 10.5.9.0-24 was overwritten by 192.168.0.2";
    assert_eq!(keep.next().await, Some(KeepEvent::Lost(lost.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn without_a_watch_the_next_renewal_finds_out_who_has_the_lease() {
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
        matches!(lost(garbage).await, KeepEvent::Trouble { reason, .. } if reason.contains("10.5.9.0-24"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_record_that_becomes_garbage_is_trouble_until_it_is_removed() {
    let (site, own, mut keep, _peers) = kept().await;
    assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    site.store.put_raw("10.5.9.0-24", b"garbage");
    site.faulty.cut_watches();
    for _ in 0..5 {
        assert!(matches!(keep.next().await, Some(KeepEvent::Trouble { .. })));
    }
    site.store.remove_raw("10.5.9.0-24");
    assert!(matches!(keep.next().await, Some(KeepEvent::Lost(_))));
    assert_eq!(site.acquire_with(CONFIG, Some("10.5.9.0-24")).await.unwrap().subnet, own.subnet);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_another_daemon_of_this_host_writes_is_put_right_and_kept() {
    for watched in [true, false] {
        let (site, own, mut keep, peers) = kept().await;
        if !watched {
            peers.abort();
        }
        assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
        // Flannel's own renewal compares nothing.
        let theirs = site.store.update(&site.list().await[0], &vxlan("other"), DAY).await.unwrap();
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
async fn two_daemons_that_fight_over_a_record_do_so_ever_more_slowly() {
    let (site, _, mut keep, _peers) = kept().await;
    keep.next().await;
    let start = Instant::now();
    for _ in 0..20 {
        site.store.update(&site.list().await[0], &vxlan("other"), DAY).await.unwrap();
        assert_eq!(keep.next().await, Some(KeepEvent::Renewed(DAY)));
        assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
    }
    assert!(start.elapsed() > Duration::from_secs(600), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_short_lease_is_tried_again_often_enough_to_live() {
    let store = MemoryRegistry::new();
    let faulty = FaultyRegistry::new(store.clone());
    let options = LocalManagerOptions {
        ttl: Duration::from_secs(10),
        retry: Backoff { first: Duration::from_secs(5), longest: Duration::from_secs(60) },
        seed: Some(1),
    };
    let manager = LocalManager::with_options(faulty.clone(), options);
    let request = LeaseRequest { config: &config(CONFIG), attrs: &host(1), previous: None };
    let mut keep = manager.keep(manager.acquire(request).await.unwrap());
    keep.next().await;
    faulty.fail_next(Call::Renew, [Fault::Unavailable; 4]);
    while !matches!(keep.next().await, Some(KeepEvent::Renewed(_))) {}
    assert_eq!(store.list().await.unwrap().leases.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_given_back_and_one_that_is_gone_is_no_error() {
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
async fn a_registry_that_grants_less_is_renewed_more_often() {
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
async fn after_a_renewal_that_worked_the_next_trouble_begins_with_a_short_pause() {
    let site = site();
    let mut keep = site.manager.keep(site.acquire().await.unwrap());
    for _ in 0..2 {
        assert!(matches!(keep.next().await, Some(KeepEvent::Waiting(_))));
        site.faulty.fail_next(Call::Renew, [Fault::Unavailable; 4]);
        let trouble = keep.next().await;
        assert!(
            matches!(trouble, Some(KeepEvent::Trouble { retry_in, .. }) if retry_in <= Duration::from_secs(1))
        );
        while !matches!(keep.next().await, Some(KeepEvent::Renewed(_))) {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_registry_restored_from_before_the_lease_has_lost_it_at_once() {
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

// Peers.

#[tokio::test(start_paused = true)]
async fn peers_are_all_others_first_all_there_are_then_each_change() {
    let site = site();
    let (two, three) = (site.lease("10.5.2.0-24", 2).await, site.lease("10.5.3.0-24", 3).await);
    let own = site.acquire_with(CONFIG, Some("10.5.9.0-24")).await.unwrap();
    let mut peers = site.manager.watch(own.subnet);
    assert_eq!(changed(peers.next().await), [put(&two), put(&three)]);
    assert!(matches!(peers.next().await, Some(PeerEvent::Complete)));
    site.store.renew(&two, DAY).await.unwrap();
    let two = site.store.update(&two, &host(22), DAY).await.unwrap();
    site.store.delete(&three).await.unwrap();
    assert_eq!(
        changed(peers.next().await),
        [put(&two), LeaseChange::Removed(three.subnet)],
        "what comes together is told together, and the own lease never"
    );
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_starts_without_a_list_is_complete_after_its_snapshot() {
    let site = site();
    let two = site.lease("10.5.2.0-24", 2).await;
    let mut peers = site.manager.watch(key("10.5.9.0-24"));
    assert_eq!(changed(peers.next().await), [put(&two)]);
    assert!(matches!(peers.next().await, Some(PeerEvent::Complete)));
    // A second watch, as after the lease moved, begins anew.
    let mut peers = site.manager.watch(two.subnet);
    assert!(matches!(peers.next().await, Some(PeerEvent::Complete)));
}

#[tokio::test(start_paused = true)]
async fn silence_removes_no_peer_and_what_happened_meanwhile_is_told() {
    let site = site();
    let two = site.lease("10.5.2.0-24", 2).await;
    let three = site.lease("10.5.3.0-24", 3).await;
    let mut peers = site.manager.watch(key("10.5.9.0-24"));
    peers.next().await;
    peers.next().await;
    site.faulty.go_silent();
    assert!(matches!(peers.next().await, Some(PeerEvent::Silent(_))));
    site.store.delete(&three).await.unwrap();
    assert!(timeout(DAY / 2, peers.next()).await.is_err(), "nothing is known");
    site.store.renew(&two, DAY).await.unwrap();
    site.faulty.come_back();
    assert!(matches!(peers.next().await, Some(PeerEvent::Heard)));
    assert_eq!(changed(peers.next().await), [LeaseChange::Removed(three.subnet)]);
}

#[tokio::test(start_paused = true)]
async fn a_peer_whose_lease_runs_out_is_removed() {
    let site = site();
    let two = site.lease("10.5.2.0-24", 2).await;
    let mut peers = site.manager.watch(key("10.5.9.0-24"));
    peers.next().await;
    peers.next().await;
    let start = Instant::now();
    assert_eq!(changed(peers.next().await), [LeaseChange::Removed(two.subnet)]);
    assert!(start.elapsed() >= DAY);
}

#[tokio::test(start_paused = true)]
async fn bad_records_are_told_as_a_list_whenever_it_changes() {
    let site = site();
    let two = site.lease("10.5.2.0-24", 2).await;
    site.store.put_raw("garbage", b"x");
    let mut peers = site.manager.watch(key("10.5.9.0-24"));
    peers.next().await;
    peers.next().await;
    assert_eq!(bad(peers.next().await), ["garbage"]);
    site.store.put_raw("10.5.2.0-24", b"x");
    assert_eq!(bad(peers.next().await), ["10.5.2.0-24", "garbage"]);
    site.store.put_raw("10.5.2.0-24", two.attrs.to_record().as_bytes());
    site.store.remove_raw("garbage");
    assert_eq!(bad(peers.next().await), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_is_done_is_logged_in_flannels_words() {
    let log = Log::default();
    let _guard = log.install();
    let site = site();
    site.lease("10.9.1.0-24", 1).await;
    let own = site.acquire_with(r#"{"Network":"10.5.0.0/28"}"#, Some("10.7.1.0-24")).await.unwrap();
    let subnet = own.subnet.v4().unwrap();
    site.acquire_with(r#"{"Network":"10.5.0.0/28"}"#, None).await.unwrap();
    site.manager.release(&own).await.unwrap();
    site.acquire_with(CONFIG, Some("10.5.7.0-24")).await.unwrap();
    assert_eq!(
        log.lines(),
        [
            "Found lease (10.9.1.0/24) for current IP (192.168.0.1) but not compatible with current config, deleting",
            "Found previously leased subnet (10.7.1.0/24) that is not compatible with the network config, ignoring",
            "Picking subnet in range 10.5.0.4 ... 10.5.0.12",
            &format!("Allocated lease ({subnet}) to current node (192.168.0.1) "),
            &format!("Found lease ({subnet}) for current IP (192.168.0.1), reusing"),
            "Found previously leased subnet (10.5.7.0/24), reusing",
            "Allocated lease (10.5.7.0/24) to current node (192.168.0.1) ",
        ]
    );
}

fn vxlan(data: &str) -> LeaseAttrs {
    let data = flannel_core::Json::parse(&format!("{{\"VtepMAC\":\"{data}\"}}")).unwrap();
    LeaseAttrs { backend_data: Some(data), ..host(1) }
}

fn put(lease: &Lease) -> LeaseChange {
    LeaseChange::Put(lease.clone().into())
}

fn changed(event: Option<PeerEvent>) -> Vec<LeaseChange> {
    match event {
        Some(PeerEvent::Changed(changes)) => changes,
        event => panic!("want changes, got {event:?}"),
    }
}

fn bad(event: Option<PeerEvent>) -> Vec<String> {
    match event {
        Some(PeerEvent::Bad(bad)) => bad.into_iter().map(|record| record.key).collect(),
        event => panic!("want bad records, got {event:?}"),
    }
}

/// What is logged on this thread, from info up.
#[derive(Clone, Default)]
struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Log {
    fn install(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || log.clone())
            .without_time()
            .with_level(false)
            .with_target(false)
            .with_ansi(false)
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

// The address of a host, as a registry writes it, is what `recall` looks for.
#[tokio::test(start_paused = true)]
async fn a_host_without_an_address_recalls_nothing() {
    let site = site();
    site.store.put_raw("10.5.1.0-24", b"{}");
    assert_eq!(site.manager.recall(PublicAddrs::default()).await.unwrap(), None);
}
