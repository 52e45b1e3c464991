//! All hosts, polled one after another in a fixed order, and the invariants that hold throughout.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use flannel_core::{PublicAddrs, SubnetKey, Term};
use futures::task::AtomicWaker;
use tokio::time::Instant;

use super::checker::{InvariantChecker, MAX_LAG, SubnetOwner};
use super::host::{Host, HostWaker, Start};
use super::link::StoreLink;
use super::{GRACE, RENEWAL, SimOptions, SimStore};

pub(super) struct Cluster<'a> {
    pub(super) store: &'a dyn SimStore,
    pub(super) options: SimOptions,
    pub(super) random: fastrand::Rng,
    pub(super) checker: InvariantChecker,
    pub(super) hosts: Vec<Host>,
    wakers: Vec<Waker>,
    woken: Arc<Woken>,
    /// Frozen hosts that were woken.
    woken_while_frozen: BTreeSet<usize>,
    owners: BTreeMap<SubnetKey, BTreeSet<usize>>,
    /// When a record, or all of them, were last written by others than the hosts.
    written_at: BTreeMap<SubnetKey, Instant>,
    all_written_at: Option<Instant>,
    /// When the store last lost renewals to a restore.
    restored: Option<Instant>,
    /// The last public address; addresses are never reused.
    addresses: u32,
    progress: ProgressLimit,
}

/// Counts polls, so that a cluster that never becomes idle is reported as a violation.
#[derive(Default)]
struct ProgressLimit {
    polls: usize,
    moment: Option<Instant>,
    polls_in_moment: usize,
}

/// The most polls per host over a whole run: fifty times the need of the busiest hosts, those of small clusters.
const MAX_POLLS: usize = 500_000;
/// The most polls per host without time passing.
const MAX_POLLS_PER_MOMENT: usize = 10_000;

impl ProgressLimit {
    /// Counts a poll and returns what is wrong if there were too many.
    fn count(&mut self, hosts: usize) -> Option<&'static str> {
        let now = Some(Instant::now());
        if std::mem::replace(&mut self.moment, now) != now {
            self.polls_in_moment = 0;
        }
        self.polls += 1;
        self.polls_in_moment += 1;
        if self.polls_in_moment > MAX_POLLS_PER_MOMENT * hosts {
            return Some("the hosts are polled without end while no time passes");
        }
        (self.polls > MAX_POLLS * hosts).then_some("the hosts never become idle")
    }
}

/// The hosts that were woken.
#[derive(Default)]
pub(super) struct Woken {
    hosts: Mutex<BTreeSet<usize>>,
    simulation: AtomicWaker,
}

impl Woken {
    pub(super) fn add(&self, host: usize) {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).insert(host);
        self.simulation.wake();
    }

    fn take(&self) -> BTreeSet<usize> {
        std::mem::take(&mut *self.hosts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<'a> Cluster<'a> {
    pub(super) fn new(store: &'a dyn SimStore, options: SimOptions) -> Self {
        Self {
            checker: InvariantChecker::new(&*store.registry()),
            store,
            options,
            random: fastrand::Rng::with_seed(options.seed),
            hosts: Vec::new(),
            wakers: Vec::new(),
            woken: Arc::default(),
            woken_while_frozen: BTreeSet::new(),
            owners: BTreeMap::new(),
            written_at: BTreeMap::new(),
            all_written_at: None,
            restored: None,
            addresses: u32::from(Ipv4Addr::new(172, 16, 0, 0)),
            progress: ProgressLimit::default(),
        }
    }

    /// Returns a new address. Hosts stand in racks, each with a block of consecutive addresses.
    pub(super) fn new_address(&mut self) -> Ipv4Addr {
        self.addresses += 1;
        if self.random.f64() < 0.3 {
            self.addresses = (self.addresses | 0xff) + 2;
        }
        self.addresses.into()
    }

    pub(super) fn add_host(&mut self) -> usize {
        let number = self.hosts.len();
        let public = self.new_address();
        let link = StoreLink::new(
            number,
            self.random.u64(..),
            self.options.max_event_delay(),
            self.store.registry(),
            self.checker.clone(),
        );
        self.hosts.push(Host::new(number, public, link));
        self.wakers.push(Waker::from(Arc::new(HostWaker { number, woken: Arc::clone(&self.woken) })));
        number
    }

    pub(super) fn start(&mut self, host: usize, with_previous: bool, rebooted: bool) {
        let seed = self.random.u64(..);
        let start = Start { with_previous, rebooted, seed, audit_every: self.options.audit_every() };
        self.hosts[host].start(self.store, &self.checker, start);
        self.woken.add(host);
    }

    pub(super) fn leave(&mut self, host: usize) {
        self.hosts[host].leave();
        self.update_holder(host);
        self.woken.add(host);
    }

    pub(super) fn kill(&mut self, host: usize) {
        self.woken_while_frozen.remove(&host);
        self.hosts[host].kill();
        self.update_holder(host);
    }

    pub(super) fn freeze(&mut self, host: usize, frozen: bool) {
        self.hosts[host].frozen = frozen && self.hosts[host].runs();
        if self.woken_while_frozen.remove(&host) {
            self.woken.add(host);
        }
    }

    /// Records that another program wrote a record, or with `None`, possibly all of them.
    pub(super) fn note_external_write(&mut self, subnet: Option<SubnetKey>) {
        let now = Instant::now();
        match subnet {
            Some(subnet) => {
                self.written_at.insert(subnet, now);
            }
            None => self.all_written_at = Some(now),
        }
        self.checker.catch_up();
    }

    /// Records that the store was restored from a backup.
    pub(super) fn note_restore(&mut self) {
        self.restored = Some(Instant::now());
        self.hosts.iter().for_each(|host| host.link.note_restore());
    }

    /// Runs the cluster until this time.
    pub(super) async fn run_until(&mut self, end: Instant) {
        if self.checker.is_aborted() {
            return;
        }
        let mut sleep = pin!(tokio::time::sleep_until(end));
        std::future::poll_fn(|cx| {
            self.woken.simulation.register(cx.waker());
            self.run_woken_hosts();
            if self.checker.is_aborted() { Poll::Ready(()) } else { sleep.as_mut().poll(cx) }
        })
        .await;
        let contested: Vec<SubnetKey> =
            self.owners.iter().filter(|(_, hosts)| hosts.len() > 1).map(|(subnet, _)| *subnet).collect();
        contested.into_iter().for_each(|subnet| self.check_owners(subnet));
    }

    /// Polls every woken host until none is left.
    fn run_woken_hosts(&mut self) {
        let mut polled = BTreeSet::new();
        while !self.checker.is_aborted() {
            let woken = self.woken.take();
            if woken.is_empty() {
                break;
            }
            for number in woken {
                if let Some(reason) = self.progress.count(self.hosts.len()) {
                    self.checker.fatal(format_args!("{reason}, now host {number}"));
                    break;
                }
                if self.hosts[number].frozen {
                    self.woken_while_frozen.insert(number);
                } else {
                    self.poll(number);
                    polled.insert(number);
                }
            }
        }
        for number in polled {
            if self.hosts[number].link.take_touched() {
                self.hosts[number].observe();
                self.update_holder(number);
            }
        }
    }

    fn poll(&mut self, number: usize) {
        let mut cx = Context::from_waker(&self.wakers[number]);
        let host = &mut self.hosts[number];
        match host.poll(&mut cx) {
            None => {}
            // If the release fails, the lease expires.
            Some(result) if !host.runs() => {
                if let Some(subnet) = host.releasing.filter(|_| result.is_ok()) {
                    self.check_release(number, subnet);
                }
                let left = if result.is_ok() { "left" } else { "left without releasing its lease" };
                self.checker.record(format_args!("host {number} {left}"));
            }
            Some(result) => self
                .checker
                .violation(format_args!("the network of host {number} ended unexpectedly: {result:?}")),
        }
    }

    /// Records which subnet a host holds now.
    fn update_holder(&mut self, number: usize) {
        let holds = self.hosts[number].holds;
        let before = std::mem::replace(&mut self.hosts[number].counted, holds);
        if before == holds {
            return;
        }
        if let Some(hosts) = before.and_then(|before| self.owners.get_mut(&before)) {
            hosts.remove(&number);
        }
        self.checker.record(format_args!("host {number} holds {holds:?}"));
        if let Some(before) = before.filter(|_| self.hosts[number].runs()) {
            self.check_loss(number, before);
        }
        if let Some(subnet) = holds {
            self.owners.entry(subnet).or_default().insert(number);
            self.check_owners(subnet);
        }
    }

    /// Checks that at most one host holds a subnet, among those that know the current owner.
    fn check_owners(&self, subnet: SubnetKey) {
        let now = Instant::now();
        if self.externally_written_at(subnet).is_some_and(|at| now <= at + GRACE) {
            return;
        }
        let (_, changed) = self.checker.owner(subnet);
        let owners = self.owners.get(&subnet).into_iter().flatten().copied();
        let aware: Vec<usize> = owners.filter(|host| !self.hosts[*host].is_excused(changed)).collect();
        if aware.len() > 1 {
            self.checker.violation(format_args!("{subnet} has more than one live owner: hosts {aware:?}"));
        }
    }

    fn externally_written_at(&self, subnet: SubnetKey) -> Option<Instant> {
        self.written_at.get(&subnet).copied().max(self.all_written_at)
    }

    /// Checks that a host neither gave up a lease that it owns nor let it expire.
    fn check_loss(&self, number: usize, subnet: SubnetKey) {
        let host = &self.hosts[number];
        let (owner, changed) = self.checker.owner(subnet);
        match owner {
            SubnetOwner::Host(public, _) if public == PublicAddrs::from(host.public) => {
                if self.checker.is_settled(subnet, host.link.synced_at()) {
                    self.checker.violation(format_args!("host {number} gave up {subnet}, which it owns"));
                }
            }
            SubnetOwner::None => {
                let written_externally =
                    self.externally_written_at(subnet).is_some_and(|at| at + MAX_LAG >= changed)
                        || self.restored.is_some_and(|at| at + RENEWAL + GRACE >= changed);
                let since = host.link.healthy_since().map(|since| since.max(host.started));
                if !written_externally && since.is_some_and(|since| since + 2 * GRACE < changed) {
                    self.checker.violation(format_args!("host {number} let its lease of {subnet} expire"));
                }
            }
            SubnetOwner::Host(..) | SubnetOwner::Unreadable => {}
        }
    }

    /// Checks that a host that left released its lease.
    fn check_release(&self, number: usize, subnet: SubnetKey) {
        let public = PublicAddrs::from(self.hosts[number].public);
        let written_externally = self.externally_written_at(subnet).is_some_and(|at| at.elapsed() <= GRACE);
        if !written_externally && self.checker.owner(subnet).0 == SubnetOwner::Host(public, Term::Limited) {
            self.checker.violation(format_args!("host {number} left without releasing {subnet}"));
        }
    }

    /// Checks that no host holds a subnet that it must know to be lost.
    pub(super) fn check_held_subnets(&self) {
        for host in self.hosts.iter().filter(|host| host.runs() && !host.frozen) {
            let Some(subnet) = host.holds else {
                continue;
            };
            let (owner, changed) = self.checker.owner(subnet);
            let is_own = match owner {
                SubnetOwner::Host(public, _) => public == PublicAddrs::from(host.public),
                SubnetOwner::Unreadable => true,
                SubnetOwner::None => false,
            };
            let is_new = Instant::now() <= changed.max(host.started) + GRACE;
            if !is_own && !is_new && !host.is_excused(changed) {
                let number = host.number;
                self.checker
                    .violation(format_args!("host {number} holds {subnet}, whose owner is {owner:?}"));
            }
        }
    }
}
