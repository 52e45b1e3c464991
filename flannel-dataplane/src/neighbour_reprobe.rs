//! Fast neighbour resolution after the external interface regains its carrier.
//!
//! The first packets out of an interface that has just come up are often lost, because the switch port at the other end
//! isn't forwarding yet. A lost ARP or neighbour request holds up every packet to that neighbour until the kernel retries
//! after a second (`retrans_time_ms`, arp(7)). So within the first second after the interface is back, the incomplete
//! neighbour entries are deleted a few times, and the next packet makes the kernel send a new request. An incomplete
//! entry contains nothing that could be lost.

use std::time::{Duration, Instant};

use flannel_netlink::{NeighbourState, Notification, WriteRequest};

use crate::netlink::SharedNetlink;

/// The pauses before each round, in milliseconds. Together they are shorter than the kernel's own second, and each is as
/// long as all before it, so that resolution takes at most twice as long as the switch port.
const PAUSES: [u64; 7] = [10, 10, 20, 40, 80, 160, 320];

/// Deletes incomplete neighbours of the external interface after it regains its carrier.
#[derive(Debug)]
pub(crate) struct NeighbourReprobe {
    interface: String,
    index: u32,
    has_carrier: bool,
    next: Option<Round>,
}

/// One deletion of incomplete neighbours.
#[derive(Clone, Copy, Debug)]
struct Round {
    due: Instant,
    /// Its number since the interface came back.
    number: usize,
}

impl Round {
    fn new(now: Instant, number: usize) -> Option<Self> {
        let pause = Duration::from_millis(*PAUSES.get(number)?);
        Some(Self { due: now + pause, number })
    }
}

impl NeighbourReprobe {
    /// Assumes that the interface has a carrier until a notification contradicts.
    pub(crate) fn new(interface: &str) -> Self {
        Self { interface: interface.to_owned(), index: 0, has_carrier: true, next: None }
    }

    /// Replaces the interface.
    pub(crate) fn update_interface(&mut self, interface: &str) {
        if self.interface != interface {
            *self = Self::new(interface);
        }
    }

    /// Handles a notification and returns what changed if the interface is back.
    pub(crate) fn handle(&mut self, notification: &Notification, now: Instant) -> Option<String> {
        let Notification::Link { link, removed } = notification else { return None };
        if link.name != self.interface {
            return None;
        }
        let has_carrier = link.up && link.running && !removed;
        let had_carrier = std::mem::replace(&mut self.has_carrier, has_carrier);
        self.index = link.index;
        if had_carrier || !has_carrier {
            return None;
        }
        self.next = Round::new(now, 0);
        Some(format!("the interface {} has a carrier again", self.interface))
    }

    /// Runs the round that is due and returns the pause before the next one.
    pub(crate) fn run(&mut self, netlink: &SharedNetlink, now: Instant) -> Option<Duration> {
        let round = self.next?;
        if round.due <= now {
            self.delete_incomplete(netlink);
            self.next = Round::new(now, round.number + 1);
        }
        self.next.map(|round| round.due.saturating_duration_since(now))
    }

    fn delete_incomplete(&self, netlink: &SharedNetlink) {
        // After a failure the kernel retries at its own pace.
        let neighbours = netlink.lock().neighbours(self.index, None).unwrap_or_default().into_iter();
        let incomplete = neighbours.filter(|neighbour| neighbour.state == NeighbourState::Incomplete);
        let writes: Vec<_> = incomplete.map(WriteRequest::DeleteNeighbour).collect();
        if !writes.is_empty() {
            tracing::debug!(
                interface = self.interface,
                neighbours = writes.len(),
                "probing neighbours again"
            );
            drop(netlink.write(&writes));
        }
    }
}
