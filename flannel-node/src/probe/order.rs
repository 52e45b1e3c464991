//! The schedule of the background probes.
//!
//! Each round has a random order, so that hosts that start together do not all probe the same peer. The rate is bounded: in
//! a large network a round takes longer than the interval.

use std::collections::BTreeSet;
use std::time::Duration;

use flannel_core::SubnetKey;

/// The maximum number of turns per second. A host is probed as often as it probes others.
pub(super) const TURNS_A_SECOND: u32 = 10;

/// The order of the peers in the current round.
#[derive(Debug)]
pub(super) struct Schedule {
    peers: Vec<SubnetKey>,
    /// The number of peers that had their turn.
    dealt: usize,
    random: fastrand::Rng,
}

impl Schedule {
    pub(super) fn new(seed: u64) -> Self {
        Self { peers: Vec::new(), dealt: 0, random: fastrand::Rng::with_seed(seed) }
    }

    /// Sets the peers. New ones have the next turns.
    pub(super) fn set(&mut self, peers: &BTreeSet<SubnetKey>) {
        let mut kept = Vec::with_capacity(peers.len());
        let mut dealt = 0;
        for (at, peer) in self.peers.iter().enumerate().filter(|(_, peer)| peers.contains(peer)) {
            dealt += usize::from(at < self.dealt);
            kept.push(*peer);
        }
        let known: BTreeSet<_> = kept.iter().copied().collect();
        let mut new: Vec<_> = peers.difference(&known).copied().collect();
        self.random.shuffle(&mut new);
        kept.splice(dealt..dealt, new);
        (self.peers, self.dealt) = (kept, dealt);
    }

    /// Returns the peer whose turn it is.
    pub(super) fn next(&mut self) -> Option<SubnetKey> {
        if self.dealt >= self.peers.len() {
            self.random.shuffle(&mut self.peers);
            self.dealt = 0;
        }
        let peer = self.peers.get(self.dealt).copied();
        self.dealt += 1;
        peer
    }
}

/// Returns the pause between two turns so that each peer has one per `interval`, within the budget.
pub(super) fn pace(interval: Duration, peers: usize) -> Duration {
    let peers = u32::try_from(peers.max(1)).unwrap_or(u32::MAX);
    (interval / peers).max(Duration::from_secs(1) / TURNS_A_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(range: std::ops::Range<u8>) -> BTreeSet<SubnetKey> {
        range.map(|n| format!("10.5.{n}.0-24").parse().expect("a key")).collect()
    }

    #[test]
    fn each_round_has_every_peer_once_and_an_order_of_its_own() {
        let all = peers(0..100);
        let mut order = Schedule::new(7);
        order.set(&all);
        let mut round = || (0..100).map(|_| order.next().expect("a peer")).collect::<Vec<_>>();
        let (first, second) = (round(), round());
        assert_ne!(first, second);
        for round in [&first, &second] {
            assert_eq!(round.iter().copied().collect::<BTreeSet<_>>(), all);
        }
        let mut other = Schedule::new(8);
        other.set(&all);
        assert_ne!(other.next(), Some(first[0]), "another host begins with a different peer");
    }

    #[test]
    fn peers_that_come_are_next_and_those_that_leave_have_no_turn() {
        let mut order = Schedule::new(7);
        assert_eq!(order.next(), None);
        order.set(&peers(0..10));
        let had: Vec<_> = (0..5).filter_map(|_| order.next()).collect();
        order.set(&peers(5..12));
        let next: BTreeSet<_> = (0..2).filter_map(|_| order.next()).collect();
        assert_eq!(next, peers(10..12));
        let left = peers(5..10).into_iter().filter(|peer| !had.contains(peer)).count();
        let rest: BTreeSet<_> = (0..left).filter_map(|_| order.next()).collect();
        assert!(rest.iter().all(|peer| peers(5..10).contains(peer) && !had.contains(peer)), "{rest:?}");
        order.set(&BTreeSet::new());
        assert_eq!(order.next(), None);
    }

    #[test]
    fn the_pace_is_bounded_however_many_peers_there_are() {
        let interval = Duration::from_secs(30);
        assert_eq!(pace(interval, 0), interval);
        assert_eq!(pace(interval, 2), Duration::from_secs(15));
        assert_eq!(pace(interval, 300), Duration::from_millis(100));
        assert_eq!(pace(interval, 5_000), Duration::from_millis(100));
        assert_eq!(pace(interval, usize::MAX), Duration::from_millis(100));
    }
}
