//! The scenario of a simulation: what happens to a cluster, and the final checks.

mod faults;
mod final_state;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flannel_core::{LeaseAttrs, SubnetKey};
use tokio::time::Instant;

use super::checker::RecordState;
use super::cluster::Cluster;
use super::{SimOptions, SimReport, SimStore};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// The number of groups in which hosts start that do not start at once.
const START_GROUPS: usize = 12;

/// The duration of the faults.
const FAULTS: Duration = Duration::from_secs(48 * 3600);
/// Longer than a time to live and an audit interval, so that no effect of a fault remains.
const RECOVERY: Duration = Duration::from_secs(30 * 3600);
const QUIET: Duration = Duration::from_secs(12 * 3600);

pub(super) async fn run(store: &dyn SimStore, options: SimOptions) -> SimReport {
    let network_len = 24 - options.subnets().ilog2();
    store.set_config(&format!(
        r#"{{"Network":"10.0.0.0/{network_len}","SubnetLen":24,"Backend":{{"Type":"vxlan"}}}}"#
    ));
    let begun = Instant::now();
    let mut runner = Runner {
        cluster: Cluster::new(store, options),
        ends: BTreeMap::new(),
        ended: 0,
        upstream: BTreeMap::new(),
        upstream_nodes: 0,
        garbage: BTreeSet::new(),
        backup: None,
        actions: 0,
        begun,
    };
    let calls_to_join = runner.join().await;
    if options.faults {
        runner.inject_faults().await;
        runner.recover().await;
    }
    let calls_when_idle = runner.run_quietly().await;
    runner.check_final_state();
    let cluster = &runner.cluster;
    SimReport {
        trace: cluster.checker.trace(),
        violations: cluster.checker.violations(),
        hosts: cluster.hosts.iter().filter(|host| host.runs()).count(),
        actions: runner.actions,
        simulated: begun.elapsed(),
        calls_to_join,
        calls_when_idle,
        max_calls: cluster.hosts.iter().map(|host| host.link.calls().all).max().unwrap_or(0),
    }
}

struct Runner<'a> {
    cluster: Cluster<'a>,
    /// The pending ends of faults, by time.
    ends: BTreeMap<(Instant, u64), FaultEnd>,
    ended: u64,
    /// The records of nodes that do not compare revisions.
    upstream: BTreeMap<SubnetKey, LeaseAttrs>,
    upstream_nodes: u32,
    garbage: BTreeSet<String>,
    backup: Option<Box<dyn FnOnce()>>,
    actions: usize,
    begun: Instant,
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
enum FaultEnd {
    Partition(usize),
    WatchStalled(usize),
    Loss(usize),
    Frozen(usize),
    /// The next write by a second daemon on the same host.
    Rewritten(usize),
    /// The end of a host's downtime.
    Down {
        host: usize,
        with_previous: bool,
        rebooted: bool,
    },
}

impl Runner<'_> {
    /// Starts most hosts at the same moment and the others in groups within an hour. Returns the mean number of calls.
    async fn join(&mut self) -> f64 {
        let hosts = self.cluster.options.hosts;
        let begun = Instant::now();
        let groups: Vec<Instant> =
            (0..START_GROUPS).map(|_| begun + HOUR.mul_f64(self.cluster.random.f64())).collect();
        for _ in 0..hosts {
            let host = self.cluster.add_host();
            if self.cluster.random.f64() < 0.6 {
                self.cluster.start(host, false, false);
            } else {
                let at = groups[self.cluster.random.usize(..START_GROUPS)];
                self.end_at(at, FaultEnd::Down { host, with_previous: false, rebooted: false });
            }
        }
        self.run_for(HOUR + MINUTE).await;
        let calls: Vec<_> = self.cluster.hosts.iter().map(|host| host.link.calls()).collect();
        for (number, calls) in calls.iter().enumerate() {
            if calls.watches != 1 || calls.lists > 12 {
                self.cluster.checker.violation(format_args!("host {number} joined with {calls:?}"));
            }
        }
        calls.iter().map(|calls| calls.all as f64).sum::<f64>() / hosts.max(1) as f64
    }

    async fn inject_faults(&mut self) {
        let options = self.cluster.options;
        let actions = 60 + (options.hosts / 4).min(options.at_most(250));
        let pause = FAULTS / u32::try_from(actions).unwrap_or(u32::MAX);
        for _ in 0..actions {
            // Some actions happen at the same moment.
            if self.cluster.random.f64() < 0.7 {
                let share = self.cluster.random.f64() * 2.0 / 0.7;
                self.run_for(pause.mul_f64(share)).await;
            }
            self.spot_check();
            self.inject();
            self.actions += 1;
        }
    }

    /// Ends all faults and runs until no effect remains.
    async fn recover(&mut self) {
        let ends: Vec<FaultEnd> = std::mem::take(&mut self.ends).into_values().collect();
        ends.into_iter().for_each(|end| self.end(end));
        for number in 0..self.cluster.hosts.len() {
            self.cluster.freeze(number, false);
            let host = &self.cluster.hosts[number];
            host.link.clear_faults();
            host.link.mark_stalled(Instant::now());
            host.kernel.tables().refuse(0);
        }
        self.cluster.checker.record(format_args!("the faults end"));
        self.run_for(MINUTE * 10).await;
        self.clean_up();
        self.run_for(RECOVERY).await;
    }

    /// Removes the records that an operator would have to remove: garbage, and reservations of hosts that are gone.
    fn clean_up(&mut self) {
        for key in std::mem::take(&mut self.garbage) {
            // A host may have replaced the garbage by a lease.
            let is_lease = key.parse().is_ok_and(|subnet| {
                matches!(self.cluster.checker.record_state(subnet), RecordState::Lease(_))
            });
            if !is_lease {
                self.cluster.store.remove_raw(&key);
            }
        }
        self.cluster.note_external_write(None);
        for (subnet, attrs) in self.cluster.checker.leases() {
            let is_held = self.cluster.hosts.iter().any(|host| host.holds == Some(subnet));
            if !is_held && self.upstream.get(&subnet) != Some(&attrs) {
                self.cluster.store.remove_raw(&subnet.to_string());
            }
        }
        self.cluster.note_external_write(None);
    }

    async fn run_quietly(&mut self) -> f64 {
        let before: Vec<_> = self.cluster.hosts.iter().map(|host| host.link.calls()).collect();
        self.run_for(QUIET).await;
        // A renewal comes after a third of a day, or up to a tenth earlier.
        let renewals = (QUIET.as_secs_f64() / (8.0 * 3600.0 * 0.9)).ceil() as u64;
        let mut made = 0;
        for (host, before) in self.cluster.hosts.iter().zip(before) {
            let calls = host.link.calls();
            made += calls.all - before.all;
            let others = calls.lists - before.lists + calls.watches - before.watches;
            if calls.all - before.all > renewals || others > 0 {
                let number = host.number;
                self.cluster.checker.violation(format_args!(
                    "host {number} made calls in a quiet period: {before:?} {calls:?}"
                ));
            }
        }
        made as f64 / self.cluster.hosts.len().max(1) as f64
    }

    fn end_within(&mut self, within: Duration, end: FaultEnd) {
        let share = self.cluster.random.f64();
        self.end_at(Instant::now() + within.mul_f64(share), end);
    }

    fn end_at(&mut self, at: Instant, end: FaultEnd) {
        self.ended += 1;
        self.ends.insert((at, self.ended), end);
    }

    async fn run_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while let Some(entry) = self.ends.first_entry().filter(|entry| entry.key().0 <= until) {
            let at = entry.key().0;
            let end = entry.remove();
            self.cluster.run_until(at).await;
            self.end(end);
        }
        self.cluster.run_until(until).await;
    }

    fn end(&mut self, end: FaultEnd) {
        self.cluster.checker.record(format_args!("end of {end:?}"));
        let link = |host: usize| &self.cluster.hosts[host].link;
        match end {
            FaultEnd::Partition(host) => link(host).partition(false),
            FaultEnd::WatchStalled(host) => link(host).stall_watch(false),
            FaultEnd::Loss(host) => link(host).set_loss(0.0),
            FaultEnd::Frozen(host) => self.cluster.freeze(host, false),
            FaultEnd::Rewritten(host) => return self.write_for(host),
            FaultEnd::Down { host, with_previous, rebooted } => {
                if !self.cluster.hosts[host].runs() {
                    self.cluster.kill(host);
                    self.cluster.start(host, with_previous, rebooted);
                }
            }
        }
        let (FaultEnd::Partition(host)
        | FaultEnd::WatchStalled(host)
        | FaultEnd::Loss(host)
        | FaultEnd::Frozen(host)
        | FaultEnd::Rewritten(host)
        | FaultEnd::Down { host, .. }) = end;
        self.cluster.hosts[host].link.mark_stalled(Instant::now());
    }
}
