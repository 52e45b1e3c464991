//! What follows when the external interface carries packets again: its neighbours are asked for again at once.
//!
//! The first packets out of an interface that has just come up are often lost, because the switch at the other end of
//! its cable is not ready yet. A lost packet of a container costs little. But a lost question for the hardware address
//! of a neighbour holds up every packet to that neighbour until the kernel asks again, which it does after a second
//! (`retrans_time_ms`, arp(7)). So in the first moment after the interface is back the entries of neighbours that have
//! not answered are deleted a few times, and the next packet makes the kernel ask anew. Nothing is known of such a
//! neighbour that could be lost.

use std::time::{Duration, Instant};

use flannel_netlink::{NeighbourState, Notification, WriteRequest};

use crate::tables::Kernel;

/// The pauses before each time, in milliseconds. Together they are less than the second after which the kernel asks by itself; each is
/// as long as those before it together, so that neighbours are reached at the latest after twice the time that the
/// switch needs.
const PAUSES: [u64; 7] = [10, 10, 20, 40, 80, 160, 320];

/// The external interface, as far as its neighbours are concerned.
#[derive(Debug)]
pub struct NeighbourReprobe {
    interface: String,
    index: u32,
    carries: bool,
    /// When to ask next, and how often that was done since the interface is back.
    next: Option<(Instant, usize)>,
}

impl NeighbourReprobe {
    /// Takes the external interface for one that carries packets until the kernel says otherwise.
    pub fn new(interface: &str) -> Self {
        Self { interface: interface.to_owned(), index: 0, carries: true, next: None }
    }

    /// Goes on with the interface of this name.
    pub fn update_interface(&mut self, interface: &str) {
        if self.interface != interface {
            *self = Self::new(interface);
        }
    }

    /// Takes in what the kernel tells, and says so if the interface is back.
    pub fn notice(&mut self, notice: &Notification, now: Instant) -> Option<String> {
        let Notification::Link { link, removed } = notice else { return None };
        if link.name != self.interface {
            return None;
        }
        let carries = link.up && link.running && !removed;
        let carried = std::mem::replace(&mut self.carries, carries);
        self.index = link.index;
        if carried || !carries {
            return None;
        }
        self.next = at(now, 0);
        Some(format!("the interface {} carries packets again", self.interface))
    }

    /// Has the kernel ask again if it is time, and tells after what time that is to be done again.
    pub fn act(&mut self, kernel: &Kernel, now: Instant) -> Option<Duration> {
        let (due, times) = self.next?;
        if due <= now {
            self.forget_unanswered(kernel);
            self.next = at(now, times + 1);
        }
        self.next.map(|(due, _)| due.saturating_duration_since(now))
    }

    fn forget_unanswered(&self, kernel: &Kernel) {
        // What cannot be read or deleted is asked for again by the kernel, in its own time.
        let neighbours = kernel.lock().neighbours(self.index, None).unwrap_or_default().into_iter();
        let unanswered = neighbours.filter(|neighbour| neighbour.state == NeighbourState::Incomplete);
        let writes: Vec<_> = unanswered.map(WriteRequest::DeleteNeighbour).collect();
        if !writes.is_empty() {
            tracing::debug!(interface = self.interface, neighbours = writes.len(), "asking again");
            drop(kernel.apply(&writes));
        }
    }
}

/// When to ask for the next time, if it was done so often.
fn at(now: Instant, times: usize) -> Option<(Instant, usize)> {
    PAUSES.get(times).map(|pause| (now + Duration::from_millis(*pause), times))
}
