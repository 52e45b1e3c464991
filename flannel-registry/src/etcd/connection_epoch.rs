//! A counter that invalidates connections when the host's addresses change.
//!
//! A connection from an address that the host no longer has never reports an error, so it must be replaced.

use tokio::sync::watch;

/// Counts the address changes of this host.
#[derive(Debug)]
pub(crate) struct ConnectionEpoch(watch::Sender<u64>);

impl Default for ConnectionEpoch {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl ConnectionEpoch {
    /// Starts the next epoch and wakes everyone in [`ended`](Self::ended).
    pub(crate) fn advance(&self) {
        self.0.send_modify(|epoch| *epoch += 1);
    }

    /// Returns the current epoch.
    pub(crate) fn current(&self) -> u64 {
        *self.0.borrow()
    }

    /// Waits until `epoch` is over.
    pub(crate) async fn ended(&self, epoch: u64) {
        // `self` borrows the sender, so the channel is open.
        let _ = self.0.subscribe().wait_for(|now| *now > epoch).await;
    }
}
