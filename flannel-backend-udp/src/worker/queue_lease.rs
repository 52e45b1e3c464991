//! Whose turn it is to serve the device, or a socket: the first thread's, or that of the thread which is there for it alone.

use std::io::{PipeWriter, Write};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Fault, Path, Work};
use crate::sys::poll;

/// Nothing to do for so long, and the first thread may as well do it.
const IDLE: Duration = Duration::from_millis(5);

/// So many waits in which neither this thread nor the first one moved much at once, and the first one may as well do all.
const LIGHT: u32 = 256;

/// The turn at one descriptor. It begins as the first thread's.
#[derive(Debug)]
pub(super) struct Turn {
    whose: Mutex<Whose>,
    changed: Condvar,
    /// The way to the first thread, which learns by one byte that something is its own again.
    giver: Arc<PipeWriter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    First,
    Given,
    /// The threads are to end.
    Nobodys,
}

impl Turn {
    pub(super) fn new(giver: Arc<PipeWriter>) -> Self {
        Self { whose: Mutex::new(Whose::First), changed: Condvar::new(), giver }
    }

    /// Gives it away: called by the first thread.
    pub(super) fn give(&self) {
        self.change(Whose::First, Whose::Given);
    }

    /// Ends all turns: called by whoever ends the threads.
    pub(super) fn end(&self) {
        *self.lock() = Whose::Nobodys;
        self.changed.notify_all();
    }

    /// Waits for the turn; tells whether it ever came.
    pub(super) fn wait(&self) -> bool {
        let turn = self.changed.wait_while(self.lock(), |whose| *whose == Whose::First);
        *turn.unwrap_or_else(PoisonError::into_inner) == Whose::Given
    }

    /// Gives it back.
    pub(super) fn give_back(&self, index: usize) {
        self.change(Whose::Given, Whose::First);
        // If nobody reads, the threads are about to end.
        let _ = (&*self.giver).write_all(&[index as u8]);
    }

    fn change(&self, from: Whose, to: Whose) {
        let mut whose = self.lock();
        if *whose == from {
            *whose = to;
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Whose> {
        self.whose.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves one way whenever it is this thread's turn, until told to end.
pub(super) fn serve(work: &Work, index: usize, path: &mut impl Path) -> Result<(), Fault> {
    let Some(turn) = work.turns.get(index) else { return Ok(()) };
    while turn.wait() {
        let (mut light, mut large) = (0, None);
        while light < LIGHT {
            let step = path.step()?;
            if step.is_full {
                (light, large) = (0, None);
                continue;
            }
            let before = large.replace(work.large.load(Ordering::Relaxed));
            light = if step.is_large() || before != large { 0 } else { light + 1 };
            let descriptors = [Some(path.descriptor()), Some(work.ended.as_fd())];
            let [own, ended] = poll::wait_readable(descriptors, Some(IDLE)).map_err(|_| path.over())?;
            if ended.is_readable {
                return Ok(());
            }
            if own.is_over {
                return Err(path.over());
            }
            if !own.is_readable {
                break;
            }
        }
        turn.give_back(index);
    }
    Ok(())
}
