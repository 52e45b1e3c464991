//! What happens to a cluster, drawn from the seed, and what must hold in the end.

mod acts;
mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flannel_core::{LeaseAttrs, SubnetKey};
use tokio::time::Instant;

use super::witness::Found;
use super::world::World;
use super::{SimOptions, SimReport, SimStore};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// In how many groups the hosts start that do not start at once.
const GROUPS: usize = 12;

/// How long the faults go on.
const TROUBLE: Duration = Duration::from_secs(48 * 3600);
/// Longer than a lease lasts and an audit is away, so that nothing is left of the faults.
const RECOVERY: Duration = Duration::from_secs(30 * 3600);
const PEACE: Duration = Duration::from_secs(12 * 3600);

pub(super) async fn play(store: &dyn SimStore, options: SimOptions) -> SimReport {
    let network_len = 24 - options.subnets().ilog2();
    store.set_config(&format!(
        r#"{{"Network":"10.0.0.0/{network_len}","SubnetLen":24,"Backend":{{"Type":"vxlan"}}}}"#
    ));
    let begun = Instant::now();
    let mut play = Play {
        world: World::new(store, options),
        ends: BTreeMap::new(),
        ended: 0,
        upstream: BTreeMap::new(),
        upstream_nodes: 0,
        garbage: BTreeSet::new(),
        backup: None,
        acts: 0,
        begun,
    };
    let calls_to_join = play.join().await;
    if options.faults {
        play.trouble().await;
        play.recover().await;
    }
    let calls_in_peace = play.peace().await;
    play.judge();
    let world = &play.world;
    SimReport {
        trace: world.witness.trace(),
        violations: world.witness.violations(),
        hosts: world.hosts.iter().filter(|host| host.runs()).count(),
        acts: play.acts,
        simulated: begun.elapsed(),
        calls_to_join,
        calls_in_peace,
        most_calls: world.hosts.iter().map(|host| host.link.calls().all).max().unwrap_or(0),
    }
}

struct Play<'a> {
    world: World<'a>,
    /// What ends, and when.
    ends: BTreeMap<(Instant, u64), End>,
    ended: u64,
    /// The records of nodes that do not compare.
    upstream: BTreeMap<SubnetKey, LeaseAttrs>,
    upstream_nodes: u32,
    garbage: BTreeSet<String>,
    backup: Option<Box<dyn FnOnce()>>,
    acts: usize,
    begun: Instant,
}

/// The end of something.
#[derive(Clone, Copy, Debug)]
enum End {
    Partition(usize),
    Stuck(usize),
    Loss(usize),
    Frozen(usize),
    /// Of the pause after which another daemon of a host writes its record once more.
    Rewritten(usize),
    /// Of the time a host is down; it remembers or not, and its kernel is empty or not.
    Down {
        host: usize,
        with_memory: bool,
        anew: bool,
    },
}

impl Play<'_> {
    /// Most hosts start at the same moment, the others in groups within the hour.
    async fn join(&mut self) -> f64 {
        let hosts = self.world.options.hosts;
        let begun = Instant::now();
        let groups: Vec<Instant> =
            (0..GROUPS).map(|_| begun + HOUR.mul_f64(self.world.random.f64())).collect();
        for _ in 0..hosts {
            let host = self.world.add_host();
            if self.world.random.f64() < 0.6 {
                self.world.start(host, false, false);
            } else {
                let at = groups[self.world.random.usize(..GROUPS)];
                self.at(at, End::Down { host, with_memory: false, anew: false });
            }
        }
        self.run_for(HOUR + MINUTE).await;
        let calls: Vec<_> = self.world.hosts.iter().map(|host| host.link.calls()).collect();
        for (number, calls) in calls.iter().enumerate() {
            if calls.watches != 1 || calls.lists > 12 {
                self.world.witness.accuse(format_args!("host {number} joined with {calls:?}"));
            }
        }
        calls.iter().map(|calls| calls.all as f64).sum::<f64>() / hosts.max(1) as f64
    }

    async fn trouble(&mut self) {
        let options = self.world.options;
        let acts = 60 + (options.hosts / 4).min(options.at_most(250));
        let pause = TROUBLE / u32::try_from(acts).unwrap_or(u32::MAX);
        for _ in 0..acts {
            // Sometimes much happens at once.
            if self.world.random.f64() < 0.7 {
                let share = self.world.random.f64() * 2.0 / 0.7;
                self.run_for(pause.mul_f64(share)).await;
            }
            self.look_at_some();
            self.act();
            self.acts += 1;
        }
    }

    /// Ends all faults, and lets time pass until nothing is left of them.
    async fn recover(&mut self) {
        let ends: Vec<End> = std::mem::take(&mut self.ends).into_values().collect();
        ends.into_iter().for_each(|end| self.end(end));
        for number in 0..self.world.hosts.len() {
            self.world.freeze(number, false);
            let host = &self.world.hosts[number];
            host.link.heal();
            host.link.deafen(Instant::now());
            host.kernel.tables().refuse(0);
        }
        self.world.witness.note(format_args!("the faults end"));
        self.run_for(MINUTE * 10).await;
        self.tidy();
        self.run_for(RECOVERY).await;
    }

    /// Removes the records that an operator would have to remove: garbage, and reservations of hosts that are gone.
    fn tidy(&mut self) {
        for key in std::mem::take(&mut self.garbage) {
            // Somebody may have written something better there meanwhile.
            let is_lease =
                key.parse().is_ok_and(|subnet| matches!(self.world.witness.found(subnet), Found::Lease(_)));
            if !is_lease {
                self.world.store.remove_raw(&key);
            }
        }
        self.world.disturb(None);
        for (subnet, attrs) in self.world.witness.leases() {
            let is_held = self.world.hosts.iter().any(|host| host.believes == Some(subnet));
            if !is_held && self.upstream.get(&subnet) != Some(&attrs) {
                self.world.store.remove_raw(&subnet.to_string());
            }
        }
        self.world.disturb(None);
    }

    async fn peace(&mut self) -> f64 {
        let before: Vec<_> = self.world.hosts.iter().map(|host| host.link.calls()).collect();
        self.run_for(PEACE).await;
        // A renewal comes at a third of a day or up to a tenth before.
        let renewals = (PEACE.as_secs_f64() / (8.0 * 3600.0 * 0.9)).ceil() as u64;
        let mut made = 0;
        for (host, before) in self.world.hosts.iter().zip(before) {
            let calls = host.link.calls();
            made += calls.all - before.all;
            let others = calls.lists - before.lists + calls.watches - before.watches;
            if calls.all - before.all > renewals || others > 0 {
                let number = host.number;
                self.world
                    .witness
                    .accuse(format_args!("host {number} made calls in peace: {before:?} {calls:?}"));
            }
        }
        made as f64 / self.world.hosts.len().max(1) as f64
    }

    fn later(&mut self, within: Duration, end: End) {
        let share = self.world.random.f64();
        self.at(Instant::now() + within.mul_f64(share), end);
    }

    fn at(&mut self, at: Instant, end: End) {
        self.ended += 1;
        self.ends.insert((at, self.ended), end);
    }

    async fn run_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while let Some(entry) = self.ends.first_entry().filter(|entry| entry.key().0 <= until) {
            let at = entry.key().0;
            let end = entry.remove();
            self.world.run_until(at).await;
            self.end(end);
        }
        self.world.run_until(until).await;
    }

    fn end(&mut self, end: End) {
        self.world.witness.note(format_args!("end of {end:?}"));
        let link = |host: usize| &self.world.hosts[host].link;
        match end {
            End::Partition(host) => link(host).partition(false),
            End::Stuck(host) => link(host).stick(false),
            End::Loss(host) => link(host).lose(0.0),
            End::Frozen(host) => self.world.freeze(host, false),
            End::Rewritten(host) => return self.write_for(host),
            End::Down { host, with_memory, anew } => {
                if !self.world.hosts[host].runs() {
                    self.world.kill(host);
                    self.world.start(host, with_memory, anew);
                }
            }
        }
        let (End::Partition(host)
        | End::Stuck(host)
        | End::Loss(host)
        | End::Frozen(host)
        | End::Rewritten(host)
        | End::Down { host, .. }) = end;
        self.world.hosts[host].link.deafen(Instant::now());
    }
}
