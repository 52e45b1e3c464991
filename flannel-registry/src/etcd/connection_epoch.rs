//! How often this host moved: connections that were made before it did may be dead, without ever saying so.

use tokio::sync::watch;

/// Counts the times that addresses of this host changed.
#[derive(Debug)]
pub(crate) struct Moves(watch::Sender<u64>);

impl Default for Moves {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Moves {
    /// Counts one more, and tells whoever waits.
    pub(crate) fn add(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    /// How often so far.
    pub(crate) fn count(&self) -> u64 {
        *self.0.borrow()
    }

    /// Waits until there were more than so many.
    pub(crate) async fn beyond(&self, count: u64) {
        // The sender is borrowed here, so it is not gone.
        let _ = self.0.subscribe().wait_for(|now| *now > count).await;
    }
}
