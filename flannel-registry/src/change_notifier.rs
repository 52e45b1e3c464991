//! Notifies subscribers that something may have changed, without saying what.

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::watch;

/// A broadcast of "look again". Notifications between two polls of a subscriber collapse into one.
#[derive(Debug)]
pub(crate) struct ChangeNotifier(watch::Sender<()>);

impl Default for ChangeNotifier {
    fn default() -> Self {
        Self(watch::Sender::new(()))
    }
}

impl ChangeNotifier {
    /// Notifies all subscribers.
    pub(crate) fn notify(&self) {
        self.0.send_replace(());
    }

    /// Subscribes from now on. The stream never ends, even after the notifier is dropped.
    pub(crate) fn subscribe(&self) -> BoxStream<'static, ()> {
        let next = |mut notified: watch::Receiver<()>| async {
            match notified.changed().await {
                Ok(()) => Some(((), notified)),
                Err(_) => std::future::pending().await,
            }
        };
        stream::unfold(self.0.subscribe(), next).boxed()
    }
}
