//! Who has which subnet and where: an immutable table for the packet path, and the way it is exchanged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;

use crate::counters::PeerCounters;

/// One subnet of one peer, in one family.
#[derive(Clone, Debug)]
pub(crate) struct Hop {
    /// The addresses behind it.
    pub(crate) subnet: IpNet,
    /// Where its datagrams go, and where they come from.
    pub(crate) address: SocketAddr,
    pub(crate) counters: Arc<PeerCounters>,
}

/// All peers, to be looked up by the longest prefix.
#[derive(Debug, Default)]
pub(crate) struct PeerTable {
    hops: Vec<Hop>,
    v4: Ranges<u32>,
    v6: Ranges<u128>,
    /// The public addresses of all peers, in order, each with one of the peer's subnets.
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

    /// Returns the peer, by one of its subnets, that an address is the public one of.
    pub(crate) fn by_public(&self, address: IpAddr) -> Option<&Hop> {
        let at = self.publics.binary_search_by_key(&address, |(public, _)| *public).ok()?;
        self.hops.get(self.publics.get(at)?.1)
    }

    /// Returns the public addresses of all peers.
    pub(crate) fn publics(&self) -> impl Iterator<Item = IpAddr> {
        self.publics.iter().map(|(public, _)| *public)
    }

    /// Returns the peer whose subnet an address is in.
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

/// Prefixes as ranges beside each other: which one an address is in is one binary search.
#[derive(Debug)]
struct Ranges<A> {
    /// Where ranges begin, in order.
    starts: Vec<A>,
    /// What each is.
    hops: Vec<Option<u32>>,
}

impl<A> Default for Ranges<A> {
    fn default() -> Self {
        Self { starts: Vec::new(), hops: Vec::new() }
    }
}

impl<A: Number> Ranges<A> {
    /// Takes prefixes as first and last address. Of two that are equal the first one wins.
    fn new(mut prefixes: Vec<(A, A, u32)>) -> Self {
        // A prefix stands before those inside it.
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

    /// Leaves the prefixes that end before an address, or all.
    fn leave(&mut self, around: &mut Vec<(A, u32)>, before: Option<A>) {
        while let Some((last, _)) = around.last().copied()
            && before.is_none_or(|before| last < before)
        {
            around.pop();
            if let Some(next) = last.next() {
                // What ends where the one around it ends leaves that one, too.
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

/// An address as a number.
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

/// What the packet path reads and the backend exchanges while packets flow.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    routing: Mutex<Arc<Routing>>,
    generation: AtomicU64,
}

/// All that decides where a packet goes.
#[derive(Debug, Default)]
pub(crate) struct Routing {
    pub(crate) peers: PeerTable,
    /// The host's own addresses on the overlay, from which it complains.
    pub(crate) own_v4: Option<Ipv4Addr>,
    pub(crate) own_v6: Option<Ipv6Addr>,
}

impl Routing {
    /// The own address of the family of another one.
    pub(crate) fn own(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => self.own_v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.own_v6.map(IpAddr::V6),
        }
    }
}

impl Exchange {
    pub(crate) fn replace(&self, routing: Routing) {
        let old = std::mem::replace(&mut *self.lock(), Arc::new(routing));
        // After the exchange: whoever sees the new number finds the new table.
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

/// A thread's own view: to look whether there is a new table costs one load, and the lock is taken only if there is.
#[derive(Debug)]
pub(crate) struct View {
    exchange: Arc<Exchange>,
    generation: u64,
    routing: Arc<Routing>,
}

impl View {
    pub(crate) fn new(exchange: Arc<Exchange>) -> Self {
        // In this order: a table that comes between the two is taken again.
        let generation = exchange.generation.load(Ordering::Acquire);
        let routing = exchange.current();
        Self { exchange, generation, routing }
    }

    /// Takes the newest table.
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
