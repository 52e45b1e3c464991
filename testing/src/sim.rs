//! A deterministic simulation of whole clusters.
//!
//! Every host is a real [`Network`](flannel_core::Network) with the lease manager of the caller, whose calls go over a
//! link of their own to one store, and with a backend that keeps three tables of a simulated kernel by the real engine.
//! All of them live in one future on tokio's paused clock, and go on in the order of their numbers. Everything that
//! happens by chance comes from one seed, so a seed replays exactly.
//!
//! The scenario is drawn from the seed too: hosts join, leave, are killed, start again, forget, move; links delay, lose,
//! break; watches are cut or fall silent; the store is compacted, restored from a backup, loses leases, gets garbage,
//! and is written to by nodes that do not compare. Then the faults end, and everything must be as it should be.
//!
//! What must hold, all the time or at the end:
//!
//! 1. No two hosts that hear the store hold one subnet.
//! 2. A write succeeds only if the record is what its writer last saw.
//! 3. No route is dropped while the store has its peer: not for an error, not before the peers are complete.
//! 4. No host is told of a change that is none.
//! 5. In the end every host holds a lease, and its kernel holds exactly the other leases that there are.
//! 6. In peace a host makes one call for each renewal and no other; to join costs it one list and one watch.

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

pub use link::Link;

/// How long a host may go by what it knew after it could have heard better.
const GRACE: Duration = Duration::from_secs(60);

/// The longest time between two renewals of a lease: a third of its time to live.
const RENEWAL: Duration = Duration::from_secs(8 * 3600);

/// The store of a simulation, and what can be done to it past the hosts. `flannel-registry/tests/simulation/store.rs` in
/// the repository simulates hosts on its registry in memory, over managers of its own.
pub trait SimStore {
    /// Returns a handle to the store. It answers at once, so that what delays is the links.
    fn registry(&self) -> Arc<dyn SubnetRegistry>;

    /// Makes the lease manager of a host, which reaches the store over a link and draws its random choices from a seed.
    fn manager(&self, link: Link, seed: u64) -> Arc<dyn LeaseManager>;

    /// Writes the configuration of the network.
    fn set_config(&self, text: &str);

    /// Writes a record without comparing and without an end.
    fn put_raw(&self, key: &str, value: &str);

    /// Removes a record without comparing.
    fn remove_raw(&self, key: &str);

    /// Forgets all changes so far.
    fn compact(&self);

    /// Copies the content; the answer restores it.
    fn backup(&self) -> Box<dyn FnOnce()>;
}

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SimOptions {
    /// Where all chance comes from.
    pub seed: u64,
    /// How many hosts start.
    pub hosts: usize,
    /// Whether anything goes wrong after they started.
    pub faults: bool,
}

/// What is done to a host costs every other host work. So that all hosts together bear what a cluster of this size
/// would, larger ones have fewer of it.
const LARGE: usize = 1000;

impl SimOptions {
    /// So many hosts, to which happens what the seed says.
    #[must_use]
    pub const fn new(seed: u64, hosts: usize) -> Self {
        Self { seed, hosts, faults: true }
    }

    /// How many subnets the network has: few more than there are hosts, so that hosts meet.
    fn subnets(&self) -> u32 {
        u32::try_from(self.hosts * 5 / 4).unwrap_or(u32::MAX / 2).next_power_of_two().max(128)
    }

    /// An audit costs each host work for each peer, so in large clusters there is one in each phase.
    fn audit_every(&self) -> Duration {
        Duration::from_secs(if self.hosts > 500 { 29 } else { 6 } * 3600)
    }

    /// The longest time that a link keeps news back to deliver what comes meanwhile along with them.
    fn max_event_delay(&self) -> Duration {
        Duration::from_millis(if self.hosts > 500 { 4000 } else { 300 })
    }

    /// How many of something may happen, if as many as this may in a cluster that is not large.
    fn at_most(&self, number: usize) -> usize {
        (number * LARGE / self.hosts.max(LARGE)).max(1)
    }
}

/// What was seen in a simulation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SimReport {
    /// Stands for everything that happened; the same for every run with the same options.
    pub trace: u64,
    /// The first promises that were broken, each with the time when.
    pub violations: Vec<String>,
    /// How many hosts lived in the end.
    pub hosts: usize,
    /// How many things were done to them and to the store.
    pub actions: usize,
    /// How much time passed on the paused clock.
    pub simulated: Duration,
    /// The mean number of calls of a host until all had joined.
    pub calls_to_join: f64,
    /// The mean number of calls of a host in half a day after that in which nothing happened.
    pub calls_when_idle: f64,
    /// The largest number of calls that a host made over all.
    pub max_calls: u64,
}

/// Simulates a cluster from its first host to a day of peace after the last fault.
///
/// To be awaited on a runtime of one thread with a paused clock, where nothing else runs.
pub async fn simulate(store: &dyn SimStore, options: SimOptions) -> SimReport {
    // The hosts share one future: a budget for each of its polls would fall on them by chance.
    tokio::task::unconstrained(scenario::run(store, options)).await
}
