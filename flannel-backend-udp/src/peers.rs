//! The peer table of the packet path: immutable, looked up by longest prefix, and replaced atomically.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;

use crate::counters::PeerCounters;

/// A peer's subnet in one address family.
#[derive(Clone, Debug)]
pub(crate) struct Hop {
    /// The overlay addresses.
    pub(crate) subnet: IpNet,
    /// The UDP address that its datagrams go to and come from.
    pub(crate) address: SocketAddr,
    pub(crate) counters: Arc<PeerCounters>,
}

/// All peers, with lookup by longest prefix.
#[derive(Debug, Default)]
pub(crate) struct PeerTable {
    hops: Vec<Hop>,
    v4: Ranges<u32>,
    v6: Ranges<u128>,
    /// The sorted public addresses of all peers, each with the index of one of its hops.
    publics: Vec<(IpAddr, usize)>,
}

impl PeerTable {
    pub(crate) fn new(hops: Vec<Hop>) -> Self {
        let mut v4 = Vec::new();
        let mut v6 = Vec::new();
        for (index, hop) in (0..).zip(&hops) {
            match (hop.subnet.network(), hop.subnet.broadcast()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => v4.push((first.to_bits(), last.to_bits(), index)),
                (IpAddr::V6(first), IpAddr::V6(last)) => v6.push((first.to_bits(), last.to_bits(), index)),
                (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
            }
        }
        let mut publics: Vec<_> = hops.iter().map(|hop| hop.address.ip()).zip(0..).collect();
        publics.sort_unstable();
        publics.dedup_by_key(|(address, _)| *address);
        Self { v4: Ranges::new(v4), v6: Ranges::new(v6), publics, hops }
    }

    /// Returns a hop of the peer with a public address.
    pub(crate) fn by_public(&self, address: IpAddr) -> Option<&Hop> {
        let at = self.publics.binary_search_by_key(&address, |(public, _)| *public).ok()?;
        self.hops.get(self.publics.get(at)?.1)
    }

    /// Returns the public addresses of all peers.
    pub(crate) fn publics(&self) -> impl Iterator<Item = IpAddr> {
        self.publics.iter().map(|(public, _)| *public)
    }

    /// Returns the index of the hop whose subnet contains an address.
    pub(crate) fn lookup(&self, address: IpAddr) -> Option<usize> {
        match address {
            IpAddr::V4(v4) => self.v4.lookup(v4.to_bits()),
            IpAddr::V6(v6) => self.v6.lookup(v6.to_bits()),
        }
    }

    /// Returns all subnets.
    pub(crate) fn hops(&self) -> &[Hop] {
        &self.hops
    }
}

/// Prefixes as adjacent ranges, so that a lookup is one binary search.
#[derive(Debug)]
struct Ranges<A> {
    /// The sorted first addresses of the ranges.
    starts: Vec<A>,
    /// The hop of each range.
    hops: Vec<Option<u32>>,
}

impl<A> Default for Ranges<A> {
    fn default() -> Self {
        Self { starts: Vec::new(), hops: Vec::new() }
    }
}

impl<A: Number> Ranges<A> {
    /// Builds the ranges from prefixes given as first and last address. Of equal prefixes the first wins.
    fn new(mut prefixes: Vec<(A, A, u32)>) -> Self {
        // A prefix sorts before those that it contains.
        prefixes.sort_by(|(first, last, hop), (first2, last2, hop2)| {
            first.cmp(first2).then(last2.cmp(last)).then(hop2.cmp(hop))
        });
        let mut ranges = Self::default();
        let mut around: Vec<(A, u32)> = Vec::new();
        for (first, last, hop) in prefixes {
            ranges.leave(&mut around, Some(first));
            ranges.begin(first, Some(hop));
            around.push((last, hop));
        }
        ranges.leave(&mut around, None);
        ranges
    }

    /// Closes the enclosing prefixes that end before an address, or all of them.
    fn leave(&mut self, around: &mut Vec<(A, u32)>, before: Option<A>) {
        while let Some((last, _)) = around.last().copied()
            && before.is_none_or(|before| last < before)
        {
            around.pop();
            if let Some(next) = last.next() {
                // A prefix that ends with its enclosing prefix closes both.
                let outer = around.iter().rev().find(|(outer, _)| *outer > last);
                self.begin(next, outer.map(|(_, hop)| *hop));
            }
        }
    }

    fn begin(&mut self, start: A, hop: Option<u32>) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.hops.pop();
        }
        self.starts.push(start);
        self.hops.push(hop);
    }

    fn lookup(&self, address: A) -> Option<usize> {
        let after = self.starts.partition_point(|start| *start <= address);
        let hop = (*self.hops.get(after.checked_sub(1)?)?)?;
        usize::try_from(hop).ok()
    }
}

/// An address as an integer.
trait Number: Copy + Ord {
    fn next(self) -> Option<Self>;
}

impl Number for u32 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Number for u128 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// The current routing, which the backend replaces while the packet path reads it.
#[derive(Debug, Default)]
pub(crate) struct SharedRouting {
    routing: Mutex<Arc<Routing>>,
    generation: AtomicU64,
}

/// The peer table and the host's own addresses.
#[derive(Debug, Default)]
pub(crate) struct Routing {
    pub(crate) peers: PeerTable,
    /// The host's overlay addresses, the source of its ICMP errors.
    pub(crate) own_v4: Option<Ipv4Addr>,
    pub(crate) own_v6: Option<Ipv6Addr>,
}

impl Routing {
    /// Returns the own address in the address family of `like`.
    pub(crate) fn own(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => self.own_v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.own_v6.map(IpAddr::V6),
        }
    }
}

impl SharedRouting {
    pub(crate) fn replace(&self, routing: Routing) {
        let old = std::mem::replace(&mut *self.lock(), Arc::new(routing));
        // After the replacement, so that a reader of the new version finds the new table.
        self.generation.fetch_add(1, Ordering::Release);
        drop(old);
    }

    pub(crate) fn current(&self) -> Arc<Routing> {
        Arc::clone(&self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Arc<Routing>> {
        self.routing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread's cached routing. Checking for a new table costs one atomic load; only a new one takes the lock.
#[derive(Debug)]
pub(crate) struct CachedRouting {
    exchange: Arc<SharedRouting>,
    generation: u64,
    routing: Arc<Routing>,
}

impl CachedRouting {
    pub(crate) fn new(exchange: Arc<SharedRouting>) -> Self {
        // In this order, a table replaced in between is loaded again.
        let generation = exchange.generation.load(Ordering::Acquire);
        let routing = exchange.current();
        Self { exchange, generation, routing }
    }

    /// Loads the newest table.
    pub(crate) fn refresh(&mut self) {
        let generation = self.exchange.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.routing = self.exchange.current();
            self.generation = generation;
        }
    }

    pub(crate) fn routing(&self) -> &Routing {
        &self.routing
    }
}

#[cfg(test)]
mod tests;
