//! All hosts, driven one after another in a fixed order, and the promises that hold at every moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};

use flannel_core::SubnetKey;
use futures::task::AtomicWaker;
use tokio::time::Instant;

use super::host::{Birth, Host, HostWaker};
use super::link::Link;
use super::witness::Witness;
use super::{GRACE, SimOptions, SimStore};

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
    /// Public addresses are never used twice.
    addresses: u32,
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
            addresses: u32::from(Ipv4Addr::new(172, 16, 0, 0)),
        }
    }

    pub(super) fn new_address(&mut self) -> Ipv4Addr {
        self.addresses += 1;
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

    /// Lets time pass.
    pub(super) async fn run_until(&mut self, end: Instant) {
        let mut sleep = pin!(tokio::time::sleep_until(end));
        std::future::poll_fn(|cx| {
            self.woken.simulation.register(cx.waker());
            self.go_on();
            sleep.as_mut().poll(cx)
        })
        .await;
        let contested: Vec<SubnetKey> =
            self.owners.iter().filter(|(_, hosts)| hosts.len() > 1).map(|(subnet, _)| *subnet).collect();
        contested.into_iter().for_each(|subnet| self.judge_owners(subnet));
    }

    /// Lets every host do what it can do at this moment.
    fn go_on(&mut self) {
        let mut went_on = BTreeSet::new();
        loop {
            let woken = self.woken.take();
            if woken.is_empty() {
                break;
            }
            for number in woken {
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
        if let Some(subnet) = believes {
            self.owners.entry(subnet).or_default().insert(number);
            self.judge_owners(subnet);
        }
    }

    /// Looks whether more than one host holds a subnet that could know better.
    fn judge_owners(&self, subnet: SubnetKey) {
        let now = Instant::now();
        let written = self.disturbed.get(&subnet).copied().max(self.all_disturbed);
        if written.is_some_and(|written| now <= written + GRACE) {
            return;
        }
        let owners = self.owners.get(&subnet).into_iter().flatten().copied();
        let knowing: Vec<usize> = owners.filter(|host| !self.hosts[*host].link.is_excused()).collect();
        if knowing.len() > 1 {
            self.witness.accuse(format_args!("{subnet} has more than one live owner: hosts {knowing:?}"));
        }
    }
}
