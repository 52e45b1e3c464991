//! When etcd was last heard, and up to where.

use std::sync::{Mutex, PoisonError};

use flannel_core::{LastContact, Revision};
use tokio::time::Instant;

/// The last word of a cluster.
#[derive(Debug, Default)]
pub(crate) struct Word(Mutex<Option<LastContact>>);

impl Word {
    /// Takes note of an answer.
    pub(crate) fn heard(&self) {
        self.note(None);
    }

    /// Takes note of an answer that says how far the store is. It may go back: it may have been restored from a backup.
    pub(crate) fn heard_at(&self, revision: u64) {
        self.note(Some(Revision(revision)));
    }

    /// The last word, if there was any.
    pub(crate) fn last(&self) -> Option<LastContact> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, revision: Option<Revision>) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let revision = revision.or_else(|| last.and_then(|last| last.revision));
        *last = Some(LastContact::new(Instant::now().into_std(), revision));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_without_a_revision_keeps_the_one_before() {
        let word = Word::default();
        assert_eq!(word.last(), None);
        word.heard();
        assert_eq!(word.last().map(|word| word.revision), Some(None));
        word.heard_at(7);
        word.heard();
        assert_eq!(word.last().and_then(|word| word.revision), Some(Revision(7)));
        word.heard_at(3);
        assert_eq!(word.last().and_then(|word| word.revision), Some(Revision(3)), "restored from a backup");
    }
}
