//! Whose turn it is to be asked.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Which of several members is asked first.
#[derive(Debug)]
pub(crate) struct Turn {
    members: usize,
    current: AtomicUsize,
}

impl Turn {
    /// Begins at any of so many members, so that hosts with the same options spread over them.
    pub(crate) fn among(members: usize) -> Self {
        Self { members, current: AtomicUsize::new(fastrand::usize(..members.max(1))) }
    }

    /// The index of the member to ask first.
    pub(crate) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// Says that a member does not answer, so that the next call asks another one first.
    pub(crate) fn leave(&self, member: usize) {
        let next = (member + 1) % self.members.max(1);
        // Whoever was told by another call already asks a member that this one knows nothing about.
        let _ = self.current.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_is_left_twice_at_once_is_left_once() {
        let turn = Turn { members: 3, current: AtomicUsize::new(2) };
        turn.leave(2);
        turn.leave(2);
        assert_eq!(turn.current(), 0);
    }
}
