//! What a watch has still to tell, and when it tries again. Pure.

use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use flannel_core::{Backoff, RegistryEvent};

/// As upstream's; a cluster that comes back is found within seconds, and its hosts do not come all at once.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(5) };

/// The mouth of a watch.
#[derive(Debug, Default)]
pub(crate) struct Teller {
    /// What is still to be told, in order.
    told: VecDeque<RegistryEvent>,
    /// How long to rest before the next step.
    pause: Option<Duration>,
    /// How many steps failed since an open watch was last heard.
    failures: u32,
    /// Whether it was told that etcd does not answer.
    silent: bool,
}

impl Teller {
    /// Takes out what is to be told next.
    pub(crate) fn next(&mut self) -> Option<RegistryEvent> {
        self.told.pop_front()
    }

    /// Takes out how long to rest before the next step.
    pub(crate) fn pause(&mut self) -> Option<Duration> {
        self.pause.take()
    }

    /// Adds what is to be told.
    pub(crate) fn tell(&mut self, events: impl IntoIterator<Item = RegistryEvent>) {
        self.told.extend(events);
    }

    /// Takes note that an open watch gave a word. To open one is not enough: a member may open watches and not be
    /// able to serve them.
    pub(crate) fn served(&mut self) {
        self.failures = 0;
    }

    /// Says that etcd answers, if the contrary was said.
    pub(crate) fn heard(&mut self) {
        if mem::take(&mut self.silent) {
            self.told.push_back(RegistryEvent::Available);
        }
    }

    /// Says once that etcd does not answer, and rests.
    pub(crate) fn fail(&mut self, reason: String) {
        tracing::debug!(%reason, failures = self.failures, "the watch of the leases broke");
        if !mem::replace(&mut self.silent, true) {
            self.told.push_back(RegistryEvent::Unavailable(reason));
        }
        self.rest();
    }

    /// Rests before the next step, the longer the more steps failed before.
    pub(crate) fn rest(&mut self) {
        self.pause = Some(BACKOFF.delay(self.failures, fastrand::f64()));
        self.failures = self.failures.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_said_once_and_its_end_too() {
        let mut teller = Teller::default();
        teller.fail("away".to_owned());
        assert!(teller.pause().is_some_and(|pause| pause <= Duration::from_millis(100)));
        teller.fail("still away".to_owned());
        assert!(teller.pause().is_some_and(|pause| pause > Duration::from_millis(100)));
        assert!(matches!(teller.next(), Some(RegistryEvent::Unavailable(reason)) if reason == "away"));
        assert!(teller.next().is_none());
        teller.heard();
        teller.heard();
        assert!(matches!(teller.next(), Some(RegistryEvent::Available)));
        assert!(teller.next().is_none() && teller.pause().is_none());
        teller.served();
        teller.rest();
        assert!(teller.pause().is_some_and(|pause| pause <= Duration::from_millis(100)));
    }
}
