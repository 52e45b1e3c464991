//! Reads the configuration of a running network.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, Fuse};
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::NetworkConfig;
use crate::manager::{LeaseManager, ManagerError};

/// The result of reading the configuration.
pub(crate) type ReadConfig = Result<NetworkConfig, ManagerError>;

/// Reads the configuration whenever it may have changed.
pub(crate) struct ConfigReader {
    manager: Arc<dyn LeaseManager>,
    changes: Fuse<BoxStream<'static, ()>>,
    reloads: watch::Receiver<u64>,
    /// The time of the retry after a failure.
    retry_at: Option<Instant>,
    failures: u32,
    reading: Option<BoxFuture<'static, ReadConfig>>,
    /// The last reload that the current read answers, and that the last completed one answered.
    answers: u64,
    answered: u64,
}

impl ConfigReader {
    /// Subscribes to changes from now on.
    pub(crate) fn new(manager: &Arc<dyn LeaseManager>, reloads: watch::Receiver<u64>) -> Self {
        Self {
            changes: manager.config_changes().fuse(),
            manager: Arc::clone(manager),
            reloads,
            retry_at: None,
            failures: 0,
            reading: None,
            answers: 0,
            answered: 0,
        }
    }

    /// Waits for a reason to read the configuration, and reads it. Also returns whether a reload requested it. Cancel safe.
    pub(crate) async fn next(&mut self) -> (ReadConfig, bool) {
        if self.reading.is_none() {
            tokio::select! {
                biased;
                Ok(()) = self.reloads.changed() => self.failures = 0,
                Some(()) = self.changes.next() => self.failures = 0,
                () = tokio::time::sleep_until(self.retry_at.unwrap_or_else(Instant::now)), if self.retry_at.is_some() => {}
            }
            self.retry_at = None;
            self.answers = *self.reloads.borrow_and_update();
        }
        let manager = Arc::clone(&self.manager);
        let reading = self.reading.get_or_insert_with(|| async move { manager.config().await }.boxed());
        let read = reading.await;
        self.reading = None;
        let was_requested = self.answers > self.answered;
        self.answered = self.answers;
        (read, was_requested)
    }

    /// Returns the number of reloads that are complete.
    pub(crate) fn reloaded(&self) -> u64 {
        self.answered
    }

    /// Returns the number of consecutive failures.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// Schedules a retry after a failure.
    pub(crate) fn retry_at(&mut self, time: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(time);
    }
}
