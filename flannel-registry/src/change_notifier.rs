//! Telling several listeners that something may have changed, and not what.

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::watch;

/// The voice. What is said several times before a listener listens again, it hears once.
#[derive(Debug)]
pub(crate) struct News(watch::Sender<()>);

impl Default for News {
    fn default() -> Self {
        Self(watch::Sender::new(()))
    }
}

impl News {
    pub(crate) fn tell(&self) {
        self.0.send_replace(());
    }

    /// Listens from now on; never ends, also when the voice is gone.
    pub(crate) fn listen(&self) -> BoxStream<'static, ()> {
        let next = |mut heard: watch::Receiver<()>| async {
            match heard.changed().await {
                Ok(()) => Some(((), heard)),
                Err(_) => std::future::pending().await,
            }
        };
        stream::unfold(self.0.subscribe(), next).boxed()
    }
}
