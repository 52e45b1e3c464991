//! What a network does when its configuration becomes another one.
//!
//! ```text
//!  noticed, or asked ──▶ read ──▶ the same: nothing to do
//!                         ▲ │     cannot be read, or is wrong: said once, the one before goes on
//!                  later  └─┤     another: does the own lease fit? can the backend? ── no: said once, as above
//!                           └──▶  yes: the backend is reconfigured, a pass follows, and the lease says what is new
//! ```

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, Fuse};
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Node, until};
use crate::backend::{BackendError, OpenRequest};
use crate::event::NetworkEvent;
use crate::manager::{LeaseManager, ManagerError};
use crate::peers::Dirty;
use crate::registry::RegistryError;
use crate::{NetworkConfig, SubnetKey};

/// What reading the configuration gave.
type Read = Result<NetworkConfig, ManagerError>;

/// When the configuration is read again.
pub(super) struct Reread {
    manager: Arc<dyn LeaseManager>,
    changes: Fuse<BoxStream<'static, ()>>,
    reloads: watch::Receiver<u64>,
    /// When it is tried again after a failure.
    again: Option<Instant>,
    failures: u32,
    reading: Option<BoxFuture<'static, Read>>,
    /// Up to which reload the read under way answers, and the last one that ended.
    answers: u64,
    answered: u64,
}

impl Reread {
    /// Listens from now on.
    pub(super) fn new(manager: &Arc<dyn LeaseManager>, reloads: watch::Receiver<u64>) -> Self {
        Self {
            changes: manager.config_changes().fuse(),
            manager: Arc::clone(manager),
            reloads,
            again: None,
            failures: 0,
            reading: None,
            answers: 0,
            answered: 0,
        }
    }

    /// Waits until there is a reason to read the configuration, and reads it; says also whether somebody asked for it.
    /// To drop the future loses nothing.
    pub(super) async fn next(&mut self) -> (Read, bool) {
        if self.reading.is_none() {
            tokio::select! {
                biased;
                Ok(()) = self.reloads.changed() => self.failures = 0,
                Some(()) = self.changes.next() => self.failures = 0,
                () = until(self.again.map(Instant::into_std)) => {}
            }
            self.again = None;
            self.answers = *self.reloads.borrow_and_update();
        }
        let manager = Arc::clone(&self.manager);
        let reading = self.reading.get_or_insert_with(|| async move { manager.config().await }.boxed());
        let read = reading.await;
        self.reading = None;
        let was_asked = self.answers > self.answered;
        self.answered = self.answers;
        (read, was_asked)
    }

    /// How many of the reloads that were asked for are answered.
    pub(super) fn reloaded(&self) -> u64 {
        self.answered
    }
}

impl Node {
    /// Takes in what the registry says of the configuration, and returns it if the network runs by it from now on.
    pub(super) fn on_config(
        &mut self,
        running: &NetworkConfig,
        read: Read,
        was_asked: bool,
        reread: &mut Reread,
    ) -> Option<Arc<NetworkConfig>> {
        let wanted = match read {
            Ok(config) => config,
            Err(error) => {
                if matches!(error, ManagerError::Registry(_)) {
                    self.read_again(reread);
                }
                // A registry that does not answer is told of by those who listen to it.
                if was_asked || !matches!(error, ManagerError::Registry(RegistryError::Unavailable(..))) {
                    self.refuse(crate::chain(&error));
                }
                return None;
            }
        };
        if wanted == *running {
            self.note(|state| state.config_refused = None);
            return None;
        }
        if !was_asked && !self.options.follow_config {
            self.refuse("it waits until the network is asked to take it in, or for a restart".to_owned());
            return None;
        }
        match self.reconfigure(&wanted) {
            Ok(()) => {}
            Err(error) => {
                if let BackendError::Kernel { .. } = error {
                    self.read_again(reread);
                }
                self.refuse(crate::chain(&error));
                return None;
            }
        }
        let config = Arc::new(wanted);
        self.take_in(&config);
        Some(config)
    }

    /// Lets the backend work by another configuration, if that goes with the lease that the host has.
    fn reconfigure(&mut self, config: &NetworkConfig) -> Result<(), BackendError> {
        let (Some(backend), Some(own)) = (self.backend.as_mut(), self.own.as_ref()) else {
            return Ok(());
        };
        has_room_for(config, &own.subnet).map_err(BackendError::Host)?;
        let request = OpenRequest::new(config, &self.options.external)
            .with_before(Some(&own.attrs))
            .with_state_dir(self.options.state_dir.as_deref());
        backend.reconfigure(request)?;
        if let Err(error) = backend.configure(own) {
            // The next pass tries it again.
            self.tell_failed(format!("lease {}", own.subnet), &error);
        }
        Ok(())
    }

    /// The backend works by this configuration now.
    fn take_in(&mut self, config: &Arc<NetworkConfig>) {
        self.note(|state| {
            state.config = Some(Arc::clone(config));
            state.config_refused = None;
            state.dirty = Dirty::All;
        });
        self.change_running(|running| running.config = Arc::clone(config));
        self.look_again("the network config changed".to_owned());
        self.tell(NetworkEvent::Reconfigured(Arc::clone(config)));
    }

    fn read_again(&mut self, reread: &mut Reread) {
        let pause = self.options.retry.delay(reread.failures, self.random.f64());
        reread.failures = reread.failures.saturating_add(1);
        reread.again = Some(Instant::now() + pause);
    }

    /// Says once why a configuration is not used.
    fn refuse(&mut self, reason: String) {
        let known = self.read().config_refused.as_ref() == Some(&reason);
        if !known {
            self.note(|state| state.config_refused = Some(reason.clone()));
            self.tell(NetworkEvent::ConfigRefused(reason));
        }
    }
}

/// Tells whether a host may keep its subnets under another configuration, or says why not. Their size, and the range
/// that hosts choose from, matter to those who choose one only: containers have addresses of this one.
fn has_room_for(config: &NetworkConfig, own: &SubnetKey) -> Result<(), String> {
    if config.has_room_for(own) {
        return Ok(());
    }
    if (config.ipv4.is_some(), config.ipv6.is_some()) != (own.v4().is_some(), own.v6().is_some()) {
        return Err(format!(
            "it has other address families than the host's lease {own}; restart the daemon, and then the containers, to \
             take it"
        ));
    }
    let outside = config.pools().zip(own.nets()).find(|(pool, net)| !pool.has_room_for(*net));
    Err(outside.map_or_else(String::new, |(pool, net)| {
        format!(
            "the host's subnet {net} does not lie in {}; restart the daemon, and then the containers, to move there",
            pool.network()
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_stays_as_long_as_the_network_has_room_for_it() {
        let own = "10.5.7.0-24".parse().unwrap();
        let fits = |config: &str| has_room_for(&NetworkConfig::parse(config).unwrap(), &own);
        for config in [
            r#"{"Network":"10.5.0.0/16"}"#,
            r#"{"Network":"10.4.0.0/15"}"#,
            r#"{"Network":"10.5.0.0/16","SubnetLen":26}"#,
            r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.100.0"}"#,
        ] {
            assert_eq!(fits(config), Ok(()), "{config}");
        }
        for (config, why) in [
            (r#"{"Network":"10.6.0.0/16"}"#, "the host's subnet 10.5.7.0/24 does not lie in 10.6.0.0/16"),
            (r#"{"Network":"10.5.7.0/24"}"#, "the host's subnet 10.5.7.0/24 does not lie in 10.5.7.0/24"),
            (
                r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#,
                "it has other address families than the host's lease 10.5.7.0-24",
            ),
            (
                r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48"}"#,
                "it has other address families than the host's lease 10.5.7.0-24",
            ),
        ] {
            assert!(fits(config).unwrap_err().starts_with(why), "{config}: {:?}", fits(config));
        }
    }
}
