//! Time and revision of etcd's last response.

use std::sync::{Mutex, PoisonError};

use flannel_core::{LastContact, Revision};
use tokio::time::Instant;

/// Tracks the last response of a cluster.
#[derive(Debug, Default)]
pub(crate) struct ContactTracker(Mutex<Option<LastContact>>);

impl ContactTracker {
    /// Records a response that carries no revision.
    pub(crate) fn record(&self) {
        self.update(None);
    }

    /// Records a response at a revision, which may be lower than the last one after a restore from a backup.
    pub(crate) fn record_at(&self, revision: u64) {
        self.update(Some(Revision(revision)));
    }

    /// Returns the last contact.
    pub(crate) fn last(&self) -> Option<LastContact> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, revision: Option<Revision>) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let revision = revision.or_else(|| last.and_then(|last| last.revision));
        *last = Some(LastContact::new(Instant::now().into_std(), revision));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_without_a_revision_keeps_the_previous_one() {
        let tracker = ContactTracker::default();
        assert_eq!(tracker.last(), None);
        tracker.record();
        assert_eq!(tracker.last().map(|contact| contact.revision), Some(None));
        tracker.record_at(7);
        tracker.record();
        assert_eq!(tracker.last().and_then(|contact| contact.revision), Some(Revision(7)));
        tracker.record_at(3);
        assert_eq!(tracker.last().and_then(|contact| contact.revision), Some(Revision(3)), "after a restore");
    }
}
