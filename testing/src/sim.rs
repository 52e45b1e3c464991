//! A deterministic simulation of whole clusters.
//!
//! Every host is a real [`Network`](flannel_core::Network) with the caller's lease manager, which reaches one shared
//! store over a link of its own, and with a backend that reconciles three tables of a simulated kernel with the real
//! engine. All hosts live in one future on tokio's paused clock and are polled in a fixed order. All randomness comes
//! from one seed, so a seed replays exactly.
//!
//! The seed also determines the scenario. Hosts join, leave, crash, restart, lose their state and change address; links
//! delay, drop and partition; watches break or stall; the store is compacted, restored from a backup, loses leases,
//! receives garbage and is written to by nodes that do not compare revisions. Then the faults end and the cluster must
//! converge.
//!
//! Invariants, checked throughout or at the end:
//!
//! 1. No two hosts that can reach the store hold the same subnet.
//! 2. A write succeeds only if the record is at the revision that its writer last saw.
//! 3. No route is dropped while the store has its peer: not because of an error, and not before the peers are complete.
//! 4. No host is notified of a change that did not happen.
//! 5. In the end every host holds a lease, and its kernel holds exactly the other hosts' leases.
//! 6. In quiet periods a host makes one call per renewal and no other; joining costs one list and one watch.

mod backend;
mod checked_manager;
mod checker;
mod cluster;
mod host;
mod kernel;
mod link;
mod scenario;

use std::sync::Arc;
use std::time::Duration;

use flannel_core::{LeaseManager, SubnetRegistry};

pub use link::StoreLink;

/// How long a host may act on stale state after it could have received newer.
const GRACE: Duration = Duration::from_secs(60);

/// The longest time between two renewals of a lease: a third of its time to live.
const RENEWAL: Duration = Duration::from_secs(8 * 3600);

/// The store of a simulation, and the ways to change it without the hosts. In the repository,
/// `flannel-registry/tests/simulation/store.rs` implements it for the registry in memory.
pub trait SimStore {
    /// Returns a handle to the store, which answers at once: all delays come from the links.
    fn registry(&self) -> Arc<dyn SubnetRegistry>;

    /// Creates the lease manager of a host, which reaches the store over the link and seeds its random choices.
    fn manager(&self, link: StoreLink, seed: u64) -> Arc<dyn LeaseManager>;

    /// Writes the network config.
    fn set_config(&self, text: &str);

    /// Writes a record unconditionally and without an expiry.
    fn put_raw(&self, key: &str, value: &str);

    /// Removes a record unconditionally.
    fn remove_raw(&self, key: &str);

    /// Discards the history of changes.
    fn compact(&self);

    /// Copies the content and returns a function that restores it.
    fn backup(&self) -> Box<dyn FnOnce()>;
}

/// The parameters of a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SimOptions {
    /// The seed of all randomness.
    pub seed: u64,
    /// The number of hosts at the start.
    pub hosts: usize,
    /// Whether faults occur once all hosts have joined.
    pub faults: bool,
}

/// The cluster size above which a host suffers fewer faults. A fault of one host costs every other host work; this
/// keeps the total about constant.
const LARGE: usize = 1000;

impl SimOptions {
    /// Creates the parameters of a simulation with faults.
    #[must_use]
    pub const fn new(seed: u64, hosts: usize) -> Self {
        Self { seed, hosts, faults: true }
    }

    /// Returns the number of subnets in the network: few more than hosts, so that hosts compete for them.
    fn subnets(&self) -> u32 {
        u32::try_from(self.hosts * 5 / 4).unwrap_or(u32::MAX / 2).next_power_of_two().max(128)
    }

    /// Returns the interval of audits. An audit costs each host work for each peer, so large clusters have one per
    /// phase.
    fn audit_every(&self) -> Duration {
        Duration::from_secs(if self.hosts > 500 { 29 } else { 6 } * 3600)
    }

    /// Returns the longest time that a link delays events to deliver them in batches.
    fn max_event_delay(&self) -> Duration {
        Duration::from_millis(if self.hosts > 500 { 4000 } else { 300 })
    }

    /// Scales a limit for clusters that are not large to this one.
    fn at_most(&self, number: usize) -> usize {
        (number * LARGE / self.hosts.max(LARGE)).max(1)
    }
}

/// The outcome of a simulation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SimReport {
    /// A hash of everything that happened; equal for every run with the same options.
    pub trace: u64,
    /// The first violations of the invariants, each with its time.
    pub violations: Vec<String>,
    /// The number of running hosts in the end.
    pub hosts: usize,
    /// The number of faults and other actions.
    pub actions: usize,
    /// The time that passed on the paused clock.
    pub simulated: Duration,
    /// The mean number of calls per host until all had joined.
    pub calls_to_join: f64,
    /// The mean number of calls per host during half a day without events.
    pub calls_when_idle: f64,
    /// The largest number of calls of one host.
    pub max_calls: u64,
}

/// Simulates a cluster from its first host to half a quiet day after the last fault.
///
/// Call it on a single-threaded runtime with a paused clock and no other tasks.
pub async fn simulate(store: &dyn SimStore, options: SimOptions) -> SimReport {
    // All hosts share one future, so tokio's cooperative budget would interrupt them at arbitrary points.
    tokio::task::unconstrained(scenario::run(store, options)).await
}
