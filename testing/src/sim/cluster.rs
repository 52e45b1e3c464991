//! All hosts, driven one after another in a fixed order, and the promises that hold at every moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use flannel_core::{PublicAddrs, SubnetKey, Term};
use futures::task::AtomicWaker;
use tokio::time::Instant;

use super::host::{Birth, Host, HostWaker};
use super::link::Link;
use super::witness::{Holder, LAG, Witness};
use super::{GRACE, RENEWAL, SimOptions, SimStore};

pub(super) struct World<'a> {
    pub(super) store: &'a dyn SimStore,
    pub(super) options: SimOptions,
    pub(super) random: fastrand::Rng,
    pub(super) witness: Witness,
    pub(super) hosts: Vec<Host>,
    wakers: Vec<Waker>,
    woken: Arc<Woken>,
    /// Frozen hosts that have something to do.
    stalled: BTreeSet<usize>,
    owners: BTreeMap<SubnetKey, BTreeSet<usize>>,
    /// When somebody last wrote to the store past the hosts: one record, and all of them.
    disturbed: BTreeMap<SubnetKey, Instant>,
    all_disturbed: Option<Instant>,
    /// When the store last forgot renewals.
    restored: Option<Instant>,
    /// Public addresses are never used twice.
    addresses: u32,
    rest: Rest,
}

/// Counts how often hosts go on, so that a cluster that does not come to rest ends as a broken promise.
#[derive(Default)]
struct Rest {
    polls: usize,
    moment: Option<Instant>,
    polls_in_moment: usize,
}

/// So often a host may go on over all: fifty times what a host of a small cluster needs, which has the most to do.
const MOST_POLLS: usize = 500_000;
/// So often hosts may go on, for each of them, without time passing.
const MOST_POLLS_AT_ONCE: usize = 10_000;

impl Rest {
    /// Counts one more, and tells what is wrong if it was one too many.
    fn count(&mut self, hosts: usize) -> Option<&'static str> {
        let now = Some(Instant::now());
        if std::mem::replace(&mut self.moment, now) != now {
            self.polls_in_moment = 0;
        }
        self.polls += 1;
        self.polls_in_moment += 1;
        if self.polls_in_moment > MOST_POLLS_AT_ONCE * hosts {
            return Some("the hosts go on and on while no time passes");
        }
        (self.polls > MOST_POLLS * hosts).then_some("the hosts do not come to rest")
    }
}

/// The hosts that can go on.
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

impl<'a> World<'a> {
    pub(super) fn new(store: &'a dyn SimStore, options: SimOptions) -> Self {
        Self {
            witness: Witness::new(&*store.registry()),
            store,
            options,
            random: fastrand::Rng::with_seed(options.seed),
            hosts: Vec::new(),
            wakers: Vec::new(),
            woken: Arc::default(),
            stalled: BTreeSet::new(),
            owners: BTreeMap::new(),
            disturbed: BTreeMap::new(),
            all_disturbed: None,
            restored: None,
            addresses: u32::from(Ipv4Addr::new(172, 16, 0, 0)),
            rest: Rest::default(),
        }
    }

    /// The hosts stand in racks, each of which has a block of addresses that it counts from one on.
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
        let link = Link::new(
            number,
            self.random.u64(..),
            self.options.slowest_news(),
            self.store.registry(),
            self.witness.clone(),
        );
        self.hosts.push(Host::new(number, public, link));
        self.wakers.push(Waker::from(Arc::new(HostWaker { number, woken: Arc::clone(&self.woken) })));
        number
    }

    pub(super) fn start(&mut self, host: usize, with_memory: bool, anew: bool) {
        let seed = self.random.u64(..);
        let birth = Birth { with_memory, anew, seed, audit_every: self.options.audit_every() };
        self.hosts[host].start(self.store, &self.witness, birth);
        self.woken.add(host);
    }

    pub(super) fn leave(&mut self, host: usize) {
        self.hosts[host].leave();
        self.sees(host);
        self.woken.add(host);
    }

    pub(super) fn kill(&mut self, host: usize) {
        self.stalled.remove(&host);
        self.hosts[host].kill();
        self.sees(host);
    }

    pub(super) fn freeze(&mut self, host: usize, frozen: bool) {
        self.hosts[host].frozen = frozen && self.hosts[host].runs();
        if self.stalled.remove(&host) {
            self.woken.add(host);
        }
    }

    /// Says that a record was changed past the hosts; without a subnet, that any may have been.
    pub(super) fn disturb(&mut self, subnet: Option<SubnetKey>) {
        let now = Instant::now();
        match subnet {
            Some(subnet) => {
                self.disturbed.insert(subnet, now);
            }
            None => self.all_disturbed = Some(now),
        }
        self.witness.catch_up();
    }

    /// Says that the store went back in time.
    pub(super) fn note_restore(&mut self) {
        self.restored = Some(Instant::now());
        self.hosts.iter().for_each(|host| host.link.note_restore());
    }

    /// Lets time pass.
    pub(super) async fn run_until(&mut self, end: Instant) {
        if self.witness.is_hopeless() {
            return;
        }
        let mut sleep = pin!(tokio::time::sleep_until(end));
        std::future::poll_fn(|cx| {
            self.woken.simulation.register(cx.waker());
            self.go_on();
            if self.witness.is_hopeless() { Poll::Ready(()) } else { sleep.as_mut().poll(cx) }
        })
        .await;
        let contested: Vec<SubnetKey> =
            self.owners.iter().filter(|(_, hosts)| hosts.len() > 1).map(|(subnet, _)| *subnet).collect();
        contested.into_iter().for_each(|subnet| self.judge_owners(subnet));
    }

    /// Lets every host do what it can do at this moment.
    fn go_on(&mut self) {
        let mut went_on = BTreeSet::new();
        while !self.witness.is_hopeless() {
            let woken = self.woken.take();
            if woken.is_empty() {
                break;
            }
            for number in woken {
                if let Some(unrest) = self.rest.count(self.hosts.len()) {
                    self.witness.despair(format_args!("{unrest}, now host {number}"));
                    break;
                }
                if self.hosts[number].frozen {
                    self.stalled.insert(number);
                } else {
                    self.poll(number);
                    went_on.insert(number);
                }
            }
        }
        for number in went_on {
            if self.hosts[number].link.take_touched() {
                self.hosts[number].observe();
                self.sees(number);
            }
        }
    }

    fn poll(&mut self, number: usize) {
        let mut cx = Context::from_waker(&self.wakers[number]);
        let host = &mut self.hosts[number];
        match host.poll(&mut cx) {
            None => {}
            // A lease that cannot be given back ends by itself.
            Some(result) if !host.runs() => {
                if let Some(subnet) = host.leaves.filter(|_| result.is_ok()) {
                    self.judge_leaver(number, subnet);
                }
                let left = if result.is_ok() { "left" } else { "left, and could not give back its lease" };
                self.witness.note(format_args!("host {number} {left}"));
            }
            Some(result) => {
                self.witness.accuse(format_args!("the network of host {number} ended by itself: {result:?}"))
            }
        }
    }

    /// Takes in what a host believes now.
    fn sees(&mut self, number: usize) {
        let believes = self.hosts[number].believes;
        let before = std::mem::replace(&mut self.hosts[number].counted, believes);
        if before == believes {
            return;
        }
        if let Some(hosts) = before.and_then(|before| self.owners.get_mut(&before)) {
            hosts.remove(&number);
        }
        self.witness.note(format_args!("host {number} believes {believes:?}"));
        if let Some(before) = before.filter(|_| self.hosts[number].runs()) {
            self.judge_loss(number, before);
        }
        if let Some(subnet) = believes {
            self.owners.entry(subnet).or_default().insert(number);
            self.judge_owners(subnet);
        }
    }

    /// Looks whether more than one host holds a subnet that could know better.
    fn judge_owners(&self, subnet: SubnetKey) {
        let now = Instant::now();
        if self.disturbed_at(subnet).is_some_and(|at| now <= at + GRACE) {
            return;
        }
        let (_, changed) = self.witness.holder(subnet);
        let owners = self.owners.get(&subnet).into_iter().flatten().copied();
        let knowing: Vec<usize> = owners.filter(|host| !self.hosts[*host].is_excused(changed)).collect();
        if knowing.len() > 1 {
            self.witness.accuse(format_args!("{subnet} has more than one live owner: hosts {knowing:?}"));
        }
    }

    fn disturbed_at(&self, subnet: SubnetKey) -> Option<Instant> {
        self.disturbed.get(&subnet).copied().max(self.all_disturbed)
    }

    /// Looks whether a host gave up what it has, or lost it by its own fault.
    fn judge_loss(&self, number: usize, subnet: SubnetKey) {
        let host = &self.hosts[number];
        let (holder, changed) = self.witness.holder(subnet);
        match holder {
            Holder::Host(public, _) if public == PublicAddrs::from(host.public) => {
                if self.witness.is_settled(subnet, host.link.heard()) {
                    self.witness.accuse(format_args!("host {number} gave up {subnet}, which it has"));
                }
            }
            Holder::Nobody => {
                let was_disturbed = self.disturbed_at(subnet).is_some_and(|at| at + LAG >= changed)
                    || self.restored.is_some_and(|at| at + RENEWAL + GRACE >= changed);
                let since = host.link.sound_since().map(|since| since.max(host.started));
                if !was_disturbed && since.is_some_and(|since| since + 2 * GRACE < changed) {
                    self.witness.accuse(format_args!("host {number} let its lease of {subnet} run out"));
                }
            }
            Holder::Host(..) | Holder::Unreadable => {}
        }
    }

    /// Looks whether a host that left gave its lease back.
    fn judge_leaver(&self, number: usize, subnet: SubnetKey) {
        let public = PublicAddrs::from(self.hosts[number].public);
        let was_disturbed = self.disturbed_at(subnet).is_some_and(|at| at.elapsed() <= GRACE);
        if !was_disturbed && self.witness.holder(subnet).0 == Holder::Host(public, Term::Limited) {
            self.witness.accuse(format_args!("host {number} left, and its lease of {subnet} is there"));
        }
    }

    /// Looks whether all hosts that could know that they have lost their subnets do.
    pub(super) fn judge_beliefs(&self) {
        for host in self.hosts.iter().filter(|host| host.runs() && !host.frozen) {
            let Some(subnet) = host.believes else {
                continue;
            };
            let (holder, changed) = self.witness.holder(subnet);
            let is_theirs = match holder {
                Holder::Host(public, _) => public == PublicAddrs::from(host.public),
                Holder::Unreadable => true,
                Holder::Nobody => false,
            };
            let is_new = Instant::now() <= changed.max(host.started) + GRACE;
            if !is_theirs && !is_new && !host.is_excused(changed) {
                let number = host.number;
                self.witness
                    .accuse(format_args!("host {number} believes to hold {subnet}, which has {holder:?}"));
            }
        }
    }
}
