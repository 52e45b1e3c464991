//! When too many peers leave at once, doubting that they did.
//!
//! A store that lost its content, or ended all leases because it stood still, says the same as a network whose hosts
//! were all switched off. The first is more likely, and to believe it cuts every host off from every other.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lease_set::LeaseChange;
use crate::peers::{PeerChange, PeerSet};
use crate::{Lease, PublicAddrs, SubnetKey};

/// How many peers may leave within which time before it is doubted, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DampingOptions {
    /// Doubt begins when more than this share of all peers leaves, in percent.
    pub share: u8,
    /// Doubt begins with no fewer peers than this, however few there are.
    pub at_least: usize,
    /// The time within which departures are counted together.
    pub window: Duration,
    /// How long the peers are held that are said to have left; zero holds none.
    pub hold: Duration,
}

impl Default for DampingOptions {
    /// Takes half of all peers but at least two, within ten seconds, and holds them for five minutes.
    fn default() -> Self {
        Self {
            share: 50,
            at_least: 2,
            window: Duration::from_secs(10),
            // A host asks for a lost lease again at once, and then at least twice a minute.
            hold: Duration::from_secs(300),
        }
    }
}

/// Knows the peers, and holds them back from leaving when too many leave at once. Pure: time is an argument, and must not run backwards.
///
/// - A peer that leaves alone leaves at once.
/// - When more than the share have left within the window, all of them are held: those whose departure was passed on
///   already are told again. While any peer is held, others that leave are held with them. One that left and came back
///   in the same breath as others left counts.
/// - A held peer stops being held when it is told again, when its host takes another subnet, or when the time is over.
/// - A subnet whose host is there under another one was given up; it leaves at once and does not count.
///
/// ```
/// use std::time::Instant;
/// use flannel_core::{Damping, DampingOptions, Lease, LeaseAttrs, LeaseChange, PublicAddrs, Revision, Term};
///
/// let lease = |subnet: &str| Lease {
///     subnet: subnet.parse().unwrap(),
///     attrs: LeaseAttrs::new(PublicAddrs::default()),
///     revision: Revision(1),
///     term: Term::Limited,
/// };
/// let (a, b) = (lease("10.5.1.0-24"), lease("10.5.2.0-24"));
/// let mut damping = Damping::new(DampingOptions::default());
/// let now = Instant::now();
/// damping.filter(vec![LeaseChange::Put(a.clone().into()), LeaseChange::Put(b.clone().into())], now);
/// let told = damping.filter(vec![LeaseChange::Removed(a.subnet), LeaseChange::Removed(b.subnet)], now);
/// assert_eq!((told, damping.held()), (vec![], 2));
/// ```
#[derive(Clone, Debug)]
pub struct Damping {
    options: DampingOptions,
    /// The peers as passed on, those that are held among them.
    peers: PeerSet,
    /// How many of them each host has.
    hosts: Hosts,
    /// Those that left within the window, and when.
    left: BTreeMap<SubnetKey, (Instant, Arc<Lease>)>,
    /// The same in the order in which they left; what is not in `left` at this time any more does not count.
    order: VecDeque<(Instant, SubnetKey)>,
    /// Those that are held, by the addresses of their hosts.
    held: BTreeMap<SubnetKey, PublicAddrs>,
    held_at: BTreeMap<PublicAddrs, SubnetKey>,
    until: Option<Instant>,
}

impl Damping {
    /// Begins without peers.
    #[must_use]
    pub fn new(options: DampingOptions) -> Self {
        Self {
            options,
            peers: PeerSet::default(),
            hosts: Hosts::default(),
            left: BTreeMap::new(),
            order: VecDeque::new(),
            held: BTreeMap::new(),
            held_at: BTreeMap::new(),
            until: None,
        }
    }

    /// Returns the peers as passed on; those that are held are among them.
    #[must_use]
    pub fn peers(&self) -> &PeerSet {
        &self.peers
    }

    /// Says that all peers are known now.
    pub fn complete(&mut self) {
        self.peers.complete();
    }

    /// Returns the number of peers that are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Tells whether a peer is held.
    #[must_use]
    pub fn is_held(&self, subnet: &SubnetKey) -> bool {
        self.held.contains_key(subnet)
    }

    /// Returns when [`expire`](Self::expire) has something to do.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.until
    }

    /// Takes in changes that happened together, and returns those to pass on.
    pub fn filter(&mut self, changes: Vec<LeaseChange>, now: Instant) -> Vec<PeerChange> {
        self.stop_counting(now);
        let (mut passed, mut leaving) = (Vec::new(), BTreeMap::new());
        let mut back = 0;
        for change in changes {
            match change {
                LeaseChange::Put(lease) => {
                    back += usize::from(leaving.remove(&lease.subnet).is_some());
                    self.put(lease, &mut passed);
                }
                LeaseChange::Removed(subnet) if self.held.contains_key(&subnet) => {}
                LeaseChange::Removed(subnet) => {
                    leaving.extend(self.peers.peer(&subnet).map(|lease| (subnet, Arc::clone(lease))));
                }
            }
        }
        self.give_up(&mut leaving, &mut passed);
        if leaving.is_empty() {
            return passed;
        }
        if self.is_doubtful(leaving.len() + back) {
            self.hold(leaving, now, &mut passed);
        } else {
            for (subnet, lease) in leaving {
                passed.extend(self.forget(&subnet));
                self.left.insert(subnet, (now, lease));
                self.order.push_back((now, subnet));
            }
        }
        passed
    }

    /// Lets the peers go that were held for long enough, and returns the changes to pass on.
    pub fn expire(&mut self, now: Instant) -> Vec<PeerChange> {
        if self.until.is_none_or(|until| now < until) {
            return Vec::new();
        }
        self.until = None;
        self.held_at.clear();
        let gone = std::mem::take(&mut self.held);
        gone.into_keys().filter_map(|subnet| self.forget(&subnet)).collect()
    }

    /// Forgets peers without doubt, and returns the changes to pass on.
    pub fn disown(&mut self, subnets: &[SubnetKey]) -> Vec<PeerChange> {
        let forget = |subnet: &SubnetKey| {
            self.left.remove(subnet);
            self.unhold(subnet);
            self.forget(subnet)
        };
        subnets.iter().filter_map(forget).collect()
    }

    fn put(&mut self, lease: Arc<Lease>, passed: &mut Vec<PeerChange>) {
        let subnet = lease.subnet;
        self.left.remove(&subnet);
        self.unhold(&subnet);
        let public = lease.attrs.public;
        if public != PublicAddrs::default()
            && let Some(before) = self.held_at.get(&public).copied()
        {
            // The host is back under another subnet, so it did give the one before up.
            self.unhold(&before);
            passed.extend(self.forget(&before));
        }
        passed.extend(self.know(lease));
    }

    /// Lets those go whose hosts are there under another subnet.
    fn give_up(&mut self, leaving: &mut BTreeMap<SubnetKey, Arc<Lease>>, passed: &mut Vec<PeerChange>) {
        let mut of_host = BTreeMap::new();
        for lease in leaving.values() {
            *of_host.entry(lease.attrs.public).or_insert(0_usize) += 1;
        }
        leaving.retain(|subnet, lease| {
            let public = lease.attrs.public;
            let stays = self.hosts.count(&public) > *of_host.get(&public).unwrap_or(&0);
            if stays && public != PublicAddrs::default() {
                passed.extend(self.forget(subnet));
                return false;
            }
            true
        });
    }

    /// Tells whether so many more departures are too many to be believed. Those who are back already count: that some were
    /// quicker than this host looked makes the departure of the others no more likely.
    fn is_doubtful(&self, leaving: usize) -> bool {
        if self.options.hold.is_zero() {
            return false;
        }
        let gone = self.left.len() + leaving;
        let all = self.peers.len() + self.left.len();
        let many = gone.saturating_mul(100) > all.saturating_mul(self.options.share.into());
        !self.held.is_empty() || (many && gone >= self.options.at_least)
    }

    fn hold(&mut self, leaving: BTreeMap<SubnetKey, Arc<Lease>>, now: Instant, passed: &mut Vec<PeerChange>) {
        self.until.get_or_insert(now + self.options.hold);
        self.order.clear();
        for (_, lease) in std::mem::take(&mut self.left).into_values() {
            self.mark(&lease);
            passed.extend(self.know(lease));
        }
        for lease in leaving.values() {
            self.mark(lease);
        }
    }

    /// Takes in a peer, and returns how it changed, if it did.
    fn know(&mut self, lease: Arc<Lease>) -> Option<PeerChange> {
        self.hosts.add(Arc::clone(&lease));
        let Some(before) = self.peers.insert(Arc::clone(&lease)) else {
            return Some(PeerChange::Joined(lease));
        };
        self.hosts.remove(&before.attrs.public);
        (before.attrs != lease.attrs).then_some(PeerChange::Changed(lease))
    }

    fn forget(&mut self, subnet: &SubnetKey) -> Option<PeerChange> {
        let lease = self.peers.remove(subnet)?;
        self.hosts.remove(&lease.attrs.public);
        Some(PeerChange::Left(*subnet))
    }

    fn mark(&mut self, lease: &Lease) {
        self.held.insert(lease.subnet, lease.attrs.public);
        self.held_at.insert(lease.attrs.public, lease.subnet);
    }

    fn unhold(&mut self, subnet: &SubnetKey) {
        let Some(public) = self.held.remove(subnet) else {
            return;
        };
        if self.held_at.get(&public) == Some(subnet) {
            self.held_at.remove(&public);
        }
        if self.held.is_empty() {
            self.until = None;
        }
    }

    /// Stops counting the departures that are older than the window.
    fn stop_counting(&mut self, now: Instant) {
        while let Some((at, subnet)) = self.order.front().copied() {
            if now.saturating_duration_since(at) < self.options.window {
                break;
            }
            self.order.pop_front();
            if self.left.get(&subnet).is_some_and(|(left, _)| *left == at) {
                self.left.remove(&subnet);
            }
        }
    }
}

/// How many peers each host has. Nearly all have one, so only what is beyond that takes a number: for each host there is
/// a pointer to one of its leases, in which its addresses are.
#[derive(Clone, Debug, Default)]
struct Hosts {
    first: HashSet<ByHost>,
    more: HashMap<PublicAddrs, usize>,
}

/// A lease that is equal to others as its host is.
#[derive(Clone, Debug)]
struct ByHost(Arc<Lease>);

impl Hosts {
    fn count(&self, public: &PublicAddrs) -> usize {
        usize::from(self.first.contains(public)) + self.more.get(public).unwrap_or(&0)
    }

    fn add(&mut self, lease: Arc<Lease>) {
        let public = lease.attrs.public;
        if !self.first.insert(ByHost(lease)) {
            *self.more.entry(public).or_insert(0) += 1;
        }
    }

    fn remove(&mut self, public: &PublicAddrs) {
        match self.more.get_mut(public) {
            None => drop(self.first.remove(public)),
            Some(1) => drop(self.more.remove(public)),
            Some(more) => *more -= 1,
        }
    }
}

impl Borrow<PublicAddrs> for ByHost {
    fn borrow(&self) -> &PublicAddrs {
        &self.0.attrs.public
    }
}

impl PartialEq for ByHost {
    fn eq(&self, other: &Self) -> bool {
        self.0.attrs.public == other.0.attrs.public
    }
}

impl Eq for ByHost {}

impl Hash for ByHost {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.attrs.public.hash(state);
    }
}

#[cfg(test)]
mod tests;
