//! Damping of mass departures.
//!
//! A store that lost its content, or expired all leases because it had stopped, looks like a network whose hosts were all
//! switched off. The former is more likely, and acting on it would disconnect every host from every other.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lease::{Lease, PublicAddrs};
use crate::lease_set::LeaseChange;
use crate::peers::{PeerChange, PeerSet};
use crate::subnet::SubnetKey;

/// The thresholds of [`Damping`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DampingOptions {
    /// The share of all peers, in percent, that may disappear within the window.
    pub share: u8,
    /// The minimum number of peers that must disappear for damping to start.
    pub at_least: usize,
    /// The time within which departures are counted together.
    pub window: Duration,
    /// The time for which peers are held; zero disables damping.
    pub hold: Duration,
}

impl Default for DampingOptions {
    /// Returns a threshold of half of all peers, but at least two, within ten seconds, and a hold of five minutes.
    fn default() -> Self {
        Self {
            share: 50,
            at_least: 2,
            window: Duration::from_secs(10),
            // A host requests a lost lease at once, and then at least twice a minute.
            hold: Duration::from_secs(300),
        }
    }
}

/// Tracks the peers, and holds them when too many disappear at once. Pure: time is an argument and must not go backwards.
///
/// - A single peer that disappears leaves at once.
/// - A peer whose lease was [released](LeaseChange::Released) leaves at once, and doesn't count.
/// - When more than the share have disappeared within the window, all of them are held, including those already reported
///   as left. While any peer is held, others that disappear are held too. A peer that disappears and reappears together
///   with the departure of others counts.
/// - A hold ends when the peer reappears, when its host takes another subnet, or when the time is over.
/// - If the host of a lease that disappears has another lease, it gave the former up: the peer leaves at once and doesn't
///   count.
///
/// ```
/// use std::time::Instant;
/// use flannel_core::{Damping, DampingOptions, Lease, LeaseAttrs, LeaseChange, PeerChange, PublicAddrs};
///
/// let lease = |subnet: &str| Lease::new(subnet.parse().unwrap(), LeaseAttrs::new(PublicAddrs::default()));
/// let (a, b) = (lease("10.5.1.0/24"), lease("10.5.2.0/24"));
/// let join = || vec![LeaseChange::Put(a.clone().into()), LeaseChange::Put(b.clone().into())];
/// let now = Instant::now();
///
/// let mut damping = Damping::new(DampingOptions::default());
/// damping.filter(join(), now);
/// damping.filter(vec![LeaseChange::Removed(a.subnet), LeaseChange::Removed(b.subnet)], now);
/// assert_eq!((damping.held(), damping.peers().len()), (2, 2));
///
/// let mut damping = Damping::new(DampingOptions::default());
/// damping.filter(join(), now);
/// let left = damping.filter(vec![LeaseChange::Released(a.subnet), LeaseChange::Released(b.subnet)], now);
/// assert_eq!(left, [PeerChange::Left(a.subnet), PeerChange::Left(b.subnet)]);
/// ```
#[derive(Clone, Debug)]
pub struct Damping {
    options: DampingOptions,
    /// The peers as reported, including the held ones.
    peers: PeerSet,
    hosts: Hosts,
    /// The time of the first change, from which the peers' times count.
    epoch: Option<Instant>,
    /// The peers that left within the window.
    left: BTreeMap<SubnetKey, (Instant, Arc<Lease>)>,
    /// The same in the order of their departure. An entry that doesn't match `left` no longer counts.
    order: VecDeque<(Instant, SubnetKey)>,
    /// The held peers, with the addresses of their hosts.
    held: BTreeMap<SubnetKey, PublicAddrs>,
    held_at: BTreeMap<PublicAddrs, SubnetKey>,
    until: Option<Instant>,
}

impl Damping {
    /// Creates a state without peers.
    #[must_use]
    pub fn new(options: DampingOptions) -> Self {
        Self {
            options,
            peers: PeerSet::default(),
            hosts: Hosts::default(),
            epoch: None,
            left: BTreeMap::new(),
            order: VecDeque::new(),
            held: BTreeMap::new(),
            held_at: BTreeMap::new(),
            until: None,
        }
    }

    /// Returns the peers as reported, including the held ones.
    #[must_use]
    pub fn peers(&self) -> &PeerSet {
        &self.peers
    }

    /// Marks the peers as complete.
    pub fn complete(&mut self) {
        self.peers.complete();
    }

    /// Returns the number of held peers.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Returns true if the peer is held.
    #[must_use]
    pub fn is_held(&self, subnet: &SubnetKey) -> bool {
        self.held.contains_key(subnet)
    }

    /// Returns the time of the change by which the peer joined, to the second.
    #[must_use]
    pub fn joined(&self, subnet: &SubnetKey) -> Option<Instant> {
        Some(self.epoch? + Duration::from_secs(self.peers.joined(subnet)?.into()))
    }

    /// Returns the time at which to call [`expire`](Self::expire).
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.until
    }

    /// Takes changes that happened together, and returns the changes to apply.
    pub fn filter(&mut self, changes: Vec<LeaseChange>, now: Instant) -> Vec<PeerChange> {
        self.stop_counting(now);
        let (mut applied, mut leaving) = (Vec::new(), BTreeMap::new());
        let mut back = 0;
        for change in changes {
            match change {
                LeaseChange::Put(lease) => {
                    back += usize::from(leaving.remove(&lease.subnet).is_some());
                    self.put(lease, now, &mut applied);
                }
                LeaseChange::Released(subnet) => {
                    leaving.remove(&subnet);
                    applied.extend(self.release(&subnet));
                }
                LeaseChange::Removed(subnet) if self.held.contains_key(&subnet) => {}
                LeaseChange::Removed(subnet) => {
                    leaving.extend(self.peers.peer(&subnet).map(|lease| (subnet, Arc::clone(lease))));
                }
            }
        }
        self.leave_old_subnets(&mut leaving, &mut applied);
        if leaving.is_empty() {
            return applied;
        }
        if self.is_suspicious(leaving.len() + back) {
            self.hold(leaving, now, &mut applied);
        } else {
            for (subnet, lease) in leaving {
                applied.extend(self.delete(&subnet));
                self.left.insert(subnet, (now, lease));
                self.order.push_back((now, subnet));
            }
        }
        applied
    }

    /// Removes the peers that were held for the whole time, and returns the changes to apply.
    pub fn expire(&mut self, now: Instant) -> Vec<PeerChange> {
        if self.until.is_none_or(|until| now < until) {
            return Vec::new();
        }
        self.until = None;
        self.held_at.clear();
        let gone = std::mem::take(&mut self.held);
        gone.into_keys().filter_map(|subnet| self.delete(&subnet)).collect()
    }

    /// Removes peers without damping, and returns the changes to apply.
    pub fn remove(&mut self, subnets: &[SubnetKey]) -> Vec<PeerChange> {
        subnets.iter().filter_map(|subnet| self.release(subnet)).collect()
    }

    fn release(&mut self, subnet: &SubnetKey) -> Option<PeerChange> {
        self.left.remove(subnet);
        self.end_hold(subnet);
        self.delete(subnet)
    }

    fn put(&mut self, lease: Arc<Lease>, now: Instant, applied: &mut Vec<PeerChange>) {
        let subnet = lease.subnet;
        self.left.remove(&subnet);
        self.end_hold(&subnet);
        let public = lease.attrs.public;
        if public != PublicAddrs::default()
            && let Some(before) = self.held_at.get(&public).copied()
        {
            // The host is back with another subnet, so it gave the held one up.
            self.end_hold(&before);
            applied.extend(self.delete(&before));
        }
        applied.extend(self.insert(lease, now));
    }

    /// Removes the leases whose hosts moved to a different subnet.
    fn leave_old_subnets(
        &mut self,
        leaving: &mut BTreeMap<SubnetKey, Arc<Lease>>,
        applied: &mut Vec<PeerChange>,
    ) {
        let mut of_host = BTreeMap::new();
        for lease in leaving.values() {
            *of_host.entry(lease.attrs.public).or_insert(0_usize) += 1;
        }
        leaving.retain(|subnet, lease| {
            let public = lease.attrs.public;
            let stays = self.hosts.count(&public) > *of_host.get(&public).unwrap_or(&0);
            if stays && public != PublicAddrs::default() {
                applied.extend(self.delete(subnet));
                return false;
            }
            true
        });
    }

    /// Returns true if this many further departures are too many. Peers that are back already count: that some returned
    /// before this host looked makes the departure of the others no more likely.
    fn is_suspicious(&self, leaving: usize) -> bool {
        if self.options.hold.is_zero() {
            return false;
        }
        let gone = self.left.len() + leaving;
        let all = self.peers.len() + self.left.len();
        let many = gone.saturating_mul(100) > all.saturating_mul(self.options.share.into());
        !self.held.is_empty() || (many && gone >= self.options.at_least)
    }

    fn hold(
        &mut self,
        leaving: BTreeMap<SubnetKey, Arc<Lease>>,
        now: Instant,
        applied: &mut Vec<PeerChange>,
    ) {
        self.until.get_or_insert(now + self.options.hold);
        self.order.clear();
        for (_, lease) in std::mem::take(&mut self.left).into_values() {
            self.mark_held(&lease);
            self.insert(Arc::clone(&lease), now);
            applied.push(PeerChange::Held { lease, was_gone: true });
        }
        for lease in leaving.into_values() {
            self.mark_held(&lease);
            applied.push(PeerChange::Held { lease, was_gone: false });
        }
    }

    /// Adds or updates a peer, and returns the change, if there is one.
    fn insert(&mut self, lease: Arc<Lease>, now: Instant) -> Option<PeerChange> {
        let seconds = now.saturating_duration_since(*self.epoch.get_or_insert(now)).as_secs();
        self.hosts.add(Arc::clone(&lease));
        let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
        let Some(before) = self.peers.insert(Arc::clone(&lease), seconds) else {
            return Some(PeerChange::Joined(lease));
        };
        self.hosts.remove(&before.attrs.public);
        (before.attrs != lease.attrs).then_some(PeerChange::Changed(lease))
    }

    fn delete(&mut self, subnet: &SubnetKey) -> Option<PeerChange> {
        let lease = self.peers.remove(subnet)?;
        self.hosts.remove(&lease.attrs.public);
        Some(PeerChange::Left(*subnet))
    }

    fn mark_held(&mut self, lease: &Lease) {
        self.held.insert(lease.subnet, lease.attrs.public);
        self.held_at.insert(lease.attrs.public, lease.subnet);
    }

    fn end_hold(&mut self, subnet: &SubnetKey) {
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

    /// Stops counting departures that are older than the window.
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

/// The number of peers of each host. Nearly every host has one, so a count is stored only for more: the set contains a pointer
/// to one of the host's leases, which contains its addresses.
#[derive(Clone, Debug, Default)]
struct Hosts {
    first: HashSet<ByHost>,
    more: HashMap<PublicAddrs, usize>,
}

/// A lease that compares like its host.
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
