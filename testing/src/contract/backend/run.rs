//! A backend that runs on the host under test.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::{
    Backend, BackendError, Dirty, Lease, LeaseAttrs, LeaseChange, NetworkConfig, OpenBackend, OpenRequest,
    PeerSet, SubnetKey, SyncReport, SyncRequest,
};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::BackendSubject;
use crate::contract::subnet;

pub(super) struct Run<'a> {
    pub(super) subject: &'a dyn BackendSubject,
    pub(super) config: NetworkConfig,
    opener: Box<dyn OpenBackend>,
    pub(super) backend: Box<dyn Backend>,
    pub(super) own: Lease,
    pub(super) peers: PeerSet,
    /// The time passed to `sync`, which a check moves forward instead of waiting for a retry.
    pub(super) now: Instant,
    pub(super) runtime: Runtime,
}

/// Returns the public address of peer number `n`.
pub(super) fn address_of(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 64, n)
}

/// Returns the address of peer number `n` after it moved.
fn new_address_of(n: u8) -> Ipv4Addr {
    address_of(n + 100)
}

/// Returns a dirty hint that names these peers.
pub(super) fn only(hosts: &[u8]) -> Dirty {
    Dirty::Some(hosts.iter().copied().map(subnet).collect())
}

impl<'a> Run<'a> {
    /// Opens the backend on a host without an earlier lease.
    pub(super) fn start(subject: &'a dyn BackendSubject) -> Self {
        Self::start_after(subject, None)
    }

    /// Opens the backend on a host whose earlier lease had these attributes.
    pub(super) fn start_after(subject: &'a dyn BackendSubject, before: Option<&LeaseAttrs>) -> Self {
        Self::start_with(subject, subject.config(), before)
    }

    fn start_with(
        subject: &'a dyn BackendSubject,
        config: NetworkConfig,
        before: Option<&LeaseAttrs>,
    ) -> Self {
        let (external, opener, state_dir) = (subject.external(), subject.opener(), subject.state_dir());
        let request =
            OpenRequest::new(&config, &external).with_before(before).with_state_dir(state_dir.as_deref());
        let mut backend = opener.open(request).expect("open must succeed");
        let public = external.public.only(opener.underlay(&config));
        let own = Lease::new(subnet(1), backend.attrs().at(public));
        backend.configure(&own).expect("configure must succeed");
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self {
            subject,
            config,
            opener,
            backend,
            own,
            peers: PeerSet::default(),
            now: Instant::now(),
            runtime,
        }
    }

    /// Drops the backend and opens it again with an empty peer set.
    pub(super) fn restart(self) -> Self {
        let Self { subject, config, backend, own, .. } = self;
        drop(backend);
        Self::start_with(subject, config, Some(&own.attrs))
    }

    /// Reconfigures the backend and updates the own lease to its new attributes.
    pub(super) fn reconfigure(&mut self, config: NetworkConfig) -> Result<(), BackendError> {
        let (external, state_dir) = (self.subject.external(), self.subject.state_dir());
        let request = OpenRequest::new(&config, &external)
            .with_before(Some(&self.own.attrs))
            .with_state_dir(state_dir.as_deref());
        self.backend.reconfigure(request)?;
        let public = external.public.only(self.opener.underlay(&config));
        self.own.attrs = self.backend.attrs().at(public);
        self.backend.configure(&self.own).expect("configure must succeed after a reconfigure");
        self.config = config;
        Ok(())
    }

    /// Starts and syncs with a complete set of these peers.
    pub(super) fn with_peers(subject: &'a dyn BackendSubject, hosts: &[u8]) -> Self {
        let mut run = Self::start(subject);
        run.put_peers(hosts);
        run.peers.complete();
        run.sync(&Dirty::All);
        run.assert_converged();
        run
    }

    pub(super) fn put_peers(&mut self, hosts: &[u8]) {
        hosts.iter().for_each(|n| self.put_reachable(*n, address_of(*n)));
    }

    /// Gives a peer another public address.
    pub(super) fn move_peer(&mut self, n: u8) {
        self.put_reachable(n, new_address_of(n));
    }

    fn put_reachable(&mut self, n: u8, public: Ipv4Addr) {
        let attrs = self.subject.peer(n, public);
        assert!(self.subject.endpoint_of(&attrs).is_some(), "the subject's peer {n} must have an endpoint");
        self.put_peer(n, attrs);
    }

    pub(super) fn put_peer(&mut self, n: u8, attrs: LeaseAttrs) {
        self.peers.apply(LeaseChange::Put(Arc::new(Lease::new(subnet(n), attrs))));
    }

    pub(super) fn remove_peer(&mut self, n: u8) {
        self.peers.apply(LeaseChange::Removed(subnet(n)));
    }

    pub(super) fn sync(&mut self, dirty: &Dirty) -> SyncReport {
        self.backend.sync(SyncRequest::new(&self.peers, dirty, self.now))
    }

    /// Returns where the traffic to each known peer should go.
    fn expected_destinations(&self) -> BTreeMap<SubnetKey, IpAddr> {
        let carried = self.peers.iter().filter(|_| self.subject.carries_traffic());
        carried.filter_map(|lease| Some((lease.subnet, self.subject.endpoint_of(&lease.attrs)?))).collect()
    }

    /// Asserts that the host reaches the known peers and no others.
    #[track_caller]
    pub(super) fn assert_converged(&mut self) {
        self.assert_destinations(&self.expected_destinations());
    }

    /// Asserts that the host reaches the known peers except one.
    #[track_caller]
    pub(super) fn assert_converged_without(&mut self, n: u8) {
        let mut expected = self.expected_destinations();
        expected.remove(&subnet(n));
        self.assert_destinations(&expected);
    }

    /// Asserts where the host sends traffic, after as much time as the backend may take.
    #[track_caller]
    fn assert_destinations(&mut self, expected: &BTreeMap<SubnetKey, IpAddr>) {
        let deadline = Instant::now() + self.subject.patience();
        let mut destinations = self.subject.peer_destinations();
        while destinations != *expected && Instant::now() < deadline {
            self.wait_for_drift(Duration::from_millis(50));
            self.sync(&Dirty::NONE);
            destinations = self.subject.peer_destinations();
        }
        assert_eq!(destinations, *expected, "the host must send traffic (left) to the current peers (right)");
    }

    /// Asserts that a sync writes nothing, whatever its dirty hint.
    #[track_caller]
    pub(super) fn assert_idle(&mut self) {
        let deadline = Instant::now() + self.subject.patience();
        let mut report = self.sync(&Dirty::All);
        while !is_idle(&report) && Instant::now() < deadline {
            self.wait_for_drift(Duration::from_millis(50));
            report = self.sync(&Dirty::All);
        }
        assert!(is_idle(&report), "a sync of a converged host must do nothing, got {report:?}");
        let all = self.peers.iter().map(|lease| lease.subnet).collect();
        for dirty in [Dirty::NONE, Dirty::Some(all), Dirty::All] {
            let report = self.sync(&dirty);
            assert!(
                is_idle(&report),
                "a sync of a converged host with {dirty:?} must do nothing, got {report:?}"
            );
        }
    }

    /// Returns the drift that the backend notices within the limit.
    pub(super) fn wait_for_drift(&mut self, limit: Duration) -> Option<String> {
        let drifted = self.backend.wait_for_drift();
        self.runtime.block_on(async { timeout(limit, drifted).await.ok() })
    }
}

fn is_idle(report: &SyncReport) -> bool {
    let SyncReport { written, removed, drifted, failed, pending, retry_in, .. } = report;
    (*written, *removed, *drifted) == (0, 0, 0)
        && failed.is_empty()
        && pending.is_empty()
        && retry_in.is_none()
}
