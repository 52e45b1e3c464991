//! Which thread serves a queue (the device or a socket): the main worker, or the queue's own thread.

use std::io::{PipeWriter, Write};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{PacketQueue, PathFault, ThreadContext};
use crate::sys::poll;

/// A queue that is idle for this long goes back to the main worker.
const IDLE: Duration = Duration::from_millis(5);

/// After this many waits without a large step, here or in the main worker, the queue goes back to it.
const LIGHT: u32 = 256;

/// The lease of one queue. It starts with the main worker.
#[derive(Debug)]
pub(super) struct QueueLease {
    owner: Mutex<Owner>,
    changed: Condvar,
    /// Tells the main worker which queue was returned, by one byte.
    returns: Arc<PipeWriter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    MainWorker,
    OwnThread,
    /// The threads must end.
    Ended,
}

impl QueueLease {
    pub(super) fn new(returns: Arc<PipeWriter>) -> Self {
        Self { owner: Mutex::new(Owner::MainWorker), changed: Condvar::new(), returns }
    }

    /// Leases the queue to its own thread. Called by the main worker.
    pub(super) fn give(&self) {
        self.change(Owner::MainWorker, Owner::OwnThread);
    }

    /// Ends the lease for good. Called on shutdown.
    pub(super) fn end(&self) {
        *self.lock() = Owner::Ended;
        self.changed.notify_all();
    }

    /// Waits for the lease; returns false on shutdown.
    pub(super) fn wait(&self) -> bool {
        let lease = self.changed.wait_while(self.lock(), |owner| *owner == Owner::MainWorker);
        *lease.unwrap_or_else(PoisonError::into_inner) == Owner::OwnThread
    }

    /// Returns the queue to the main worker.
    pub(super) fn give_back(&self, index: usize) {
        self.change(Owner::OwnThread, Owner::MainWorker);
        // Fails only during shutdown.
        let _ = (&*self.returns).write_all(&[index as u8]);
    }

    fn change(&self, from: Owner, to: Owner) {
        let mut owner = self.lock();
        if *owner == from {
            *owner = to;
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Owner> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves a queue while this thread holds its lease, until shutdown.
pub(super) fn serve(
    context: &ThreadContext,
    index: usize,
    queue: &mut impl PacketQueue,
) -> Result<(), PathFault> {
    let Some(lease) = context.leases.get(index) else { return Ok(()) };
    while lease.wait() {
        let (mut light, mut large) = (0, None);
        while light < LIGHT {
            let step = queue.step()?;
            if step.is_full {
                (light, large) = (0, None);
                continue;
            }
            let before = large.replace(context.large.load(Ordering::Relaxed));
            light = if step.is_large() || before != large { 0 } else { light + 1 };
            let descriptors = [Some(queue.descriptor()), Some(context.ended.as_fd())];
            let [own, ended] = poll::wait_readable(descriptors, Some(IDLE)).map_err(|_| queue.closed())?;
            if ended.is_readable {
                return Ok(());
            }
            if own.is_over {
                return Err(queue.closed());
            }
            if !own.is_readable {
                break;
            }
        }
        lease.give_back(index);
    }
    Ok(())
}
