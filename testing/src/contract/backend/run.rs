//! A backend that runs on the host under test.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::{
    Backend, BackendError, Dirty, Lease, LeaseAttrs, LeaseChange, NetworkConfig, OpenRequest, PeerSet,
    SubnetKey, SyncReport, SyncRequest,
};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::BackendSubject;
use crate::contract::subnet;

pub(super) struct Run<'a> {
    pub(super) subject: &'a dyn BackendSubject,
    pub(super) config: NetworkConfig,
    pub(super) backend: Box<dyn Backend>,
    pub(super) own: Lease,
    pub(super) peers: PeerSet,
    /// What the passes are told: later than it is when something is waited for.
    pub(super) now: Instant,
    pub(super) runtime: Runtime,
}

/// Where peer number `n` lives.
pub(super) fn home(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 64, n)
}

/// Where it lives after it moved.
fn new_home(n: u8) -> Ipv4Addr {
    home(n + 100)
}

/// A hint that names these peers.
pub(super) fn only(hosts: &[u8]) -> Dirty {
    Dirty::Some(hosts.iter().copied().map(subnet).collect())
}

impl<'a> Run<'a> {
    /// Opens the backend on a host that says for the first time what it is.
    pub(super) fn start(subject: &'a dyn BackendSubject) -> Self {
        Self::start_after(subject, None)
    }

    /// Opens it on a host whose lease said something before.
    pub(super) fn start_after(subject: &'a dyn BackendSubject, before: Option<&LeaseAttrs>) -> Self {
        Self::start_with(subject, subject.config(), before)
    }

    fn start_with(
        subject: &'a dyn BackendSubject,
        config: NetworkConfig,
        before: Option<&LeaseAttrs>,
    ) -> Self {
        let external = subject.external();
        let request = OpenRequest::new(&config, &external).with_before(before);
        let mut backend = subject.opener().open(request).expect("the backend opens");
        let own = Lease::new(subnet(1), backend.attrs().at(external.public.used_by(&config)));
        backend.configure(&own).expect("the host is made ready for its lease");
        let runtime = Builder::new_current_thread().enable_all().build().expect("starts a runtime");
        Self { subject, config, backend, own, peers: PeerSet::default(), now: Instant::now(), runtime }
    }

    /// Ends and starts again: nothing is known of the peers.
    pub(super) fn start_again(self) -> Self {
        let Self { subject, config, backend, own, .. } = self;
        drop(backend);
        Self::start_with(subject, config, Some(&own.attrs))
    }

    /// Lets the backend work by another configuration, and the lease say what the host has become.
    pub(super) fn reconfigure(&mut self, config: NetworkConfig) -> Result<(), BackendError> {
        let external = self.subject.external();
        let before = Some(&self.own.attrs);
        self.backend.reconfigure(OpenRequest::new(&config, &external).with_before(before))?;
        self.own.attrs = self.backend.attrs().at(external.public.used_by(&config));
        self.backend.configure(&self.own).expect("the host is made ready for its lease");
        self.config = config;
        Ok(())
    }

    /// Starts, and knows just these peers.
    pub(super) fn with_peers(subject: &'a dyn BackendSubject, hosts: &[u8]) -> Self {
        let mut run = Self::start(subject);
        run.learn(hosts);
        run.peers.complete();
        run.pass(&Dirty::All);
        run.is_right();
        run
    }

    pub(super) fn learn(&mut self, hosts: &[u8]) {
        hosts.iter().for_each(|n| self.put(*n, self.subject.peer(*n, home(*n))));
    }

    /// Has a peer live elsewhere.
    pub(super) fn learn_moved(&mut self, n: u8) {
        self.put(n, self.subject.peer(n, new_home(n)));
    }

    pub(super) fn put(&mut self, n: u8, attrs: LeaseAttrs) {
        self.peers.apply(LeaseChange::Put(Arc::new(Lease::new(subnet(n), attrs))));
    }

    pub(super) fn forget(&mut self, n: u8) {
        self.peers.apply(LeaseChange::Removed(subnet(n)));
    }

    pub(super) fn pass(&mut self, dirty: &Dirty) -> SyncReport {
        self.backend.sync(SyncRequest::new(&self.peers, dirty, self.now))
    }

    /// Where the traffic to all known peers should go.
    fn wanted(&self) -> BTreeMap<SubnetKey, IpAddr> {
        let carried = self.peers.iter().filter(|_| self.subject.carries_traffic());
        carried
            .map(|lease| (lease.subnet, lease.attrs.public.v4.expect("peers have IPv4 addresses").into()))
            .collect()
    }

    /// Checks that the host reaches all known peers and nobody else.
    #[track_caller]
    pub(super) fn is_right(&mut self) {
        self.reaches(&self.wanted());
    }

    /// The same, but for one peer whom it does not reach.
    #[track_caller]
    pub(super) fn is_right_without(&mut self, n: u8) {
        let mut wanted = self.wanted();
        wanted.remove(&subnet(n));
        self.reaches(&wanted);
    }

    /// Checks whom the host reaches. A backend that takes its time is given it.
    #[track_caller]
    pub(super) fn reaches(&mut self, wanted: &BTreeMap<SubnetKey, IpAddr>) {
        let deadline = Instant::now() + self.subject.patience();
        let mut reached = self.subject.peer_destinations();
        while reached != *wanted && Instant::now() < deadline {
            self.noticed(Duration::from_millis(50));
            self.pass(&Dirty::NONE);
            reached = self.subject.peer_destinations();
        }
        assert_eq!(reached, *wanted, "left: whom the host reaches and where, right: whom it should");
    }

    /// Checks that every kind of pass finds everything in order and writes nothing.
    #[track_caller]
    pub(super) fn is_at_rest(&mut self) {
        let deadline = Instant::now() + self.subject.patience();
        let mut report = self.pass(&Dirty::All);
        while !is_idle(&report) && Instant::now() < deadline {
            self.noticed(Duration::from_millis(50));
            report = self.pass(&Dirty::All);
        }
        assert!(is_idle(&report), "a pass over a host that is as it should be: {report:?}");
        let all = self.peers.iter().map(|lease| lease.subnet).collect();
        for dirty in [Dirty::NONE, Dirty::Some(all), Dirty::All] {
            let report = self.pass(&dirty);
            assert!(
                is_idle(&report),
                "a pass with {dirty:?} over a host that is as it should be: {report:?}"
            );
        }
    }

    /// What the backend noticed within the time, if it noticed anything.
    pub(super) fn noticed(&mut self, limit: Duration) -> Option<String> {
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
