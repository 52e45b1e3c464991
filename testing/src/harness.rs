//! A backend on a host of the lab, driven by a test instead of a network's loop.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::{
    Backend, Dirty, ExternalInterface, Lease, LeaseChange, NetworkConfig, OpenBackend, OpenRequest, PeerSet,
    Revision, SubnetKey, SyncReport, SyncRequest, Term,
};
use flannel_netlink::{Namespace, Netlink};

use crate::{output_in, program};

/// A host with an open backend that a test drives step by step.
///
/// Every method panics if a step fails.
pub struct BackendHarness {
    /// The host.
    pub namespace: Namespace,
    /// A request socket in the host.
    pub netlink: Netlink,
    /// The open, configured backend.
    pub backend: Box<dyn Backend>,
    /// The host's own lease.
    pub own: Lease,
    /// The peers that the next pass syncs.
    pub peers: PeerSet,
    /// The network config.
    pub config: NetworkConfig,
    /// The external interface that the backend was opened with.
    pub external: ExternalInterface,
    opener: Arc<dyn OpenBackend>,
    runtime: tokio::runtime::Runtime,
}

impl BackendHarness {
    /// How long to wait for asynchronous work of the kernel.
    pub const DEADLINE: Duration = Duration::from_secs(30);

    /// How long nothing must happen to count as quiet. The backend notices its own writes at once.
    pub const QUIET: Duration = Duration::from_millis(300);

    /// Opens a backend on a host and configures it for a subnet such as `10.5.1.0-24`.
    #[must_use]
    pub fn open(
        opener: Arc<dyn OpenBackend>,
        namespace: &Namespace,
        external: ExternalInterface,
        config: &NetworkConfig,
        subnet: &str,
    ) -> Self {
        let backend = opener.open(OpenRequest::new(config, &external)).unwrap();
        let own = Lease {
            subnet: subnet.parse().unwrap(),
            attrs: backend.attrs().at(external.public),
            revision: Revision(1),
            term: Term::Limited,
        };
        let mut harness = Self {
            namespace: namespace.clone(),
            netlink: Netlink::open_in(namespace).unwrap(),
            backend,
            own,
            peers: PeerSet::default(),
            config: config.clone(),
            external,
            opener,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        };
        harness.backend.configure(&harness.own).unwrap();
        harness
    }

    /// Drops the backend and opens it again, as a restarted daemon does. The peers stay known.
    #[must_use]
    pub fn restart(self) -> Self {
        let Self { namespace, backend, own, peers, config, external, opener, .. } = self;
        drop(backend);
        let opened = Self::open(opener, &namespace, external, &config, &own.subnet.to_string());
        Self { peers, ..opened }
    }

    /// Adds or replaces peers.
    pub fn learn(&mut self, leases: impl IntoIterator<Item = Lease>) {
        let puts = leases.into_iter().map(|lease| LeaseChange::Put(Arc::new(lease)));
        self.peers.extend(puts);
    }

    /// Removes a peer by its subnet.
    pub fn remove(&mut self, subnet: &str) {
        let subnet: SubnetKey = subnet.parse().unwrap();
        self.peers.apply(LeaseChange::Removed(subnet));
    }

    /// Runs one pass over everything.
    pub fn sync(&mut self) -> SyncReport {
        self.sync_only(&Dirty::All)
    }

    /// Runs one pass over the peers that changed.
    pub fn sync_only(&mut self, dirty: &Dirty) -> SyncReport {
        self.backend.sync(SyncRequest::new(&self.peers, dirty, Instant::now()))
    }

    /// Runs the pass that follows after some time without any change.
    pub fn sync_later(&mut self, later: Duration) -> SyncReport {
        let now = Instant::now() + later;
        self.backend.sync(SyncRequest::new(&self.peers, &Dirty::NONE, now))
    }

    /// Adds peers, marks the set complete and runs a pass, in which nothing may fail.
    pub fn complete(&mut self, leases: impl IntoIterator<Item = Lease>) {
        self.learn(leases);
        self.peers.complete();
        let report = self.sync();
        assert_eq!((report.failed, report.unreachable), (vec![], vec![]));
    }

    /// Returns the drift that the backend notices within the time.
    pub fn noticed(&mut self, limit: Duration) -> Option<String> {
        let drift = self.backend.wait_for_drift();
        self.runtime.block_on(async { tokio::time::timeout(limit, drift).await.ok() })
    }

    /// Waits until the backend no longer notices its own writes.
    pub fn settle(&mut self) {
        let noticed = self.noticed(Self::QUIET);
        if noticed.is_some() {
            assert_idle(&self.sync_only(&Dirty::NONE));
        }
        let again = self.noticed(Self::QUIET);
        assert_eq!(again, None, "the backend notices its own writes, first {noticed:?}");
    }

    /// Waits for the backend to notice a change and runs passes, as a network's loop does.
    pub fn heal(&mut self) -> SyncReport {
        let noticed = self.noticed(Self::DEADLINE);
        assert!(noticed.is_some(), "the change was not noticed");
        let mut report = self.sync_only(&Dirty::NONE);
        // One command may cause several notifications.
        while self.noticed(Self::QUIET).is_some() {
            report.merge(self.sync_only(&Dirty::NONE));
        }
        report
    }
}

/// Asserts that a pass found everything in order.
#[track_caller]
pub fn assert_idle(report: &SyncReport) {
    assert_eq!(*report, SyncReport::default());
}

/// Runs `ip` in a namespace and returns its output lines.
#[track_caller]
pub fn ip(namespace: &Namespace, arguments: &str) -> Vec<String> {
    run(namespace, "ip", arguments)
}

/// Runs `bridge` in a namespace and returns its output lines.
#[track_caller]
pub fn bridge(namespace: &Namespace, arguments: &str) -> Vec<String> {
    run(namespace, "bridge", arguments)
}

#[track_caller]
fn run(namespace: &Namespace, name: &'static str, arguments: &str) -> Vec<String> {
    let mut command = Command::new(program(name, "iproute2").unwrap());
    command.args(arguments.split_whitespace());
    let output = output_in(namespace, command).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {arguments}: {stderr}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}
