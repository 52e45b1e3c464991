//! The store, its faults, and the file that outlives the managers.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use flannel_core::{
    Damping, DampingOptions, Lease, LeaseAttrs, LeaseChange, LeaseManager, LeaseRequest, ManagerError,
    NetworkConfig, PeerEvent, SubnetKey, SubnetRegistry,
};
use flannel_registry::{
    CacheOptions, CachedLeaseManager, MemoryRegistry, RegistryLeaseManager, RegistryLeaseManagerOptions,
};
use flannel_testing::FaultyRegistry;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::time::{Instant, sleep_until, timeout};

pub(crate) const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"fake"}}"#;
pub(crate) const NETWORK: &str = "/coreos.com/network";
pub(crate) const DAY: Duration = Duration::from_secs(86_400);
pub(crate) const OWN: &str = "10.5.9.0-24";
/// Long enough for everything except a renewal.
pub(crate) const MOMENT: Duration = Duration::from_secs(120);

type Inner = CachedLeaseManager<RegistryLeaseManager<FaultyRegistry<MemoryRegistry>>>;

/// A manager whose watch damps the peers and reports those in use, as a network does.
pub(crate) struct Manager(pub(crate) Arc<Inner>);

impl std::ops::Deref for Manager {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Manager {
    pub(crate) fn watch(&self, own: SubnetKey) -> BoxStream<'static, PeerEvent> {
        let (manager, events) = (Arc::clone(&self.0), self.0.watch(own));
        let damping = Damping::new(DampingOptions::default());
        stream::unfold((manager, events, damping), |(manager, mut events, mut damping)| async {
            loop {
                let due = damping.due();
                tokio::select! {
                    event = events.next() => {
                        let event = event?;
                        let changes = if let PeerEvent::Changed(changes) = &event {
                            damping.filter(changes.clone(), now())
                        } else if let PeerEvent::CacheRejected(subnets) = &event {
                            damping.remove(subnets)
                        } else {
                            Vec::new()
                        };
                        manager.peers_in_use(&changes);
                        return Some((event, (manager, events, damping)));
                    }
                    () = sleep_until(due.unwrap_or_else(now).into()), if due.is_some() => {
                        manager.peers_in_use(&damping.expire(now()));
                    }
                }
            }
        })
        .boxed()
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

pub(crate) struct Site {
    pub(crate) store: MemoryRegistry,
    pub(crate) faulty: FaultyRegistry<MemoryRegistry>,
    directory: PathBuf,
}

impl Site {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("flannel-cached-{}-{n}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let store = MemoryRegistry::new();
        store.set_config(CONFIG);
        let faulty = FaultyRegistry::new(store.clone());
        Self { store, faulty, directory }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.join("cache")
    }

    pub(crate) fn text(&self) -> String {
        std::fs::read_to_string(self.path()).unwrap_or_default()
    }

    /// Returns the host's manager as after a start.
    pub(crate) fn manager(&self) -> Manager {
        self.manager_of(NETWORK, 1)
    }

    pub(crate) fn manager_of(&self, network: &str, last: u8) -> Manager {
        let mut options = RegistryLeaseManagerOptions::default();
        options.seed = Some(7);
        let inner = RegistryLeaseManager::with_options(self.faulty.clone(), options);
        let options = CacheOptions::new(self.path(), network, host(last).public);
        Manager(Arc::new(CachedLeaseManager::open(inner, options)))
    }

    /// Writes the lease of a peer, which is never renewed.
    pub(crate) fn peer(&self, subnet: &str, last: u8) {
        self.store.put_raw(subnet, host(last).to_record().as_bytes());
    }

    /// Adds peers, and runs this host once so that it caches them.
    pub(crate) async fn after_a_run(peers: &[(&str, u8)]) -> Self {
        let site = Self::new();
        for (subnet, last) in peers {
            site.peer(subnet, *last);
        }
        let manager = site.manager();
        let own = start(&manager).await.unwrap();
        let mut events = manager.watch(own.subnet);
        until_complete(&mut events).await;
        site.is_written(&mut events, |text| text.lines().count() == 6 + peers.len()).await;
        site
    }

    /// Polls a watch until the file has the expected content.
    pub(crate) async fn is_written(
        &self,
        events: &mut BoxStream<'static, PeerEvent>,
        is_it: impl Fn(&str) -> bool,
    ) -> Vec<PeerEvent> {
        let mut seen = Vec::new();
        for _ in 0..1000 {
            if is_it(&self.text()) {
                return seen;
            }
            seen.extend(timeout(Duration::from_millis(100), events.next()).await.ok().flatten());
        }
        panic!("never written: {}", self.text());
    }

    pub(crate) async fn leases(&self) -> Vec<(String, LeaseAttrs)> {
        let leases = self.store.list().await.unwrap().leases;
        leases.into_iter().map(|lease| (lease.subnet.to_string(), lease.attrs.clone())).collect()
    }

    /// Removes the lease of a subnet.
    pub(crate) async fn revoke(&self, subnet: &str) {
        assert!(self.store.remove_raw(subnet));
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Makes the calls of a starting network.
pub(crate) async fn start(manager: &Manager) -> Result<Lease, ManagerError> {
    let config: NetworkConfig = manager.config().await?;
    let attrs = host(1);
    manager.previous_lease(attrs.public).await?;
    let request = LeaseRequest::new(&config, &attrs).with_previous(Some(key(OWN)));
    manager.acquire(request).await
}

/// Returns the events up to `Complete`.
pub(crate) async fn until_complete(events: &mut BoxStream<'static, PeerEvent>) -> Vec<PeerEvent> {
    let mut seen = Vec::new();
    loop {
        let event = timeout(DAY, events.next()).await.unwrap().unwrap();
        let is_complete = matches!(event, PeerEvent::Complete);
        seen.push(event);
        if is_complete {
            return seen;
        }
    }
}

/// Formats events briefly.
pub(crate) fn short(events: &[PeerEvent]) -> Vec<String> {
    let mut seen = Vec::new();
    for event in events {
        match event {
            PeerEvent::Changed(changes) => seen.extend(changes.iter().map(|change| match change {
                LeaseChange::Put(lease) => format!("+{} {}", lease.subnet, lease.attrs.public),
                LeaseChange::Removed(subnet) | LeaseChange::Released(subnet) => format!("-{subnet}"),
            })),
            PeerEvent::CacheRejected(_) => seen.push("rejected".to_owned()),
            PeerEvent::FromCache(_) => seen.push("cached".to_owned()),
            PeerEvent::Complete => seen.push("complete".to_owned()),
            PeerEvent::RegistryUnavailable(_) => seen.push("unavailable".to_owned()),
            PeerEvent::RegistryAvailable => seen.push("available".to_owned()),
            PeerEvent::Bad(_) => seen.push("bad".to_owned()),
            other => seen.push(format!("{other:?}")),
        }
    }
    seen
}

pub(crate) fn host(last: u8) -> LeaseAttrs {
    LeaseAttrs::new(Ipv4Addr::new(192, 168, 0, last).into())
}

pub(crate) fn key(text: &str) -> SubnetKey {
    text.parse().unwrap()
}
