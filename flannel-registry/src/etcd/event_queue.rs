//! Events that a watch has yet to yield, and its backoff. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use flannel_core::{Backoff, BoxError, RegistryEvent};

use super::member_errors::refusals;

/// As in upstream flannel. Hosts find a cluster within seconds after it comes back, and not all at once.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(5) };

/// The output of a watch: pending events, and the pause before its next step.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    events: VecDeque<RegistryEvent>,
    /// The pause before the next step.
    pause: Option<Duration>,
    /// Failed steps since an open watch last delivered something.
    failures: u32,
    /// The outage that was reported last.
    outage: Option<Outage>,
}

/// An outage that was reported.
#[derive(Debug)]
struct Outage {
    /// What etcd itself said, as reported.
    refusals: Option<String>,
}

impl EventQueue {
    /// Removes and returns the next event.
    pub(crate) fn pop(&mut self) -> Option<RegistryEvent> {
        self.events.pop_front()
    }

    /// Removes and returns the pause before the next step.
    pub(crate) fn take_pause(&mut self) -> Option<Duration> {
        self.pause.take()
    }

    /// Appends events.
    pub(crate) fn push(&mut self, events: impl IntoIterator<Item = RegistryEvent>) {
        self.events.extend(events);
    }

    /// Resets the backoff after an open watch delivered something. Opening a watch does not count: a member may accept
    /// watches that it cannot serve.
    pub(crate) fn reset_backoff(&mut self) {
        self.failures = 0;
    }

    /// Reports that etcd is available, if it was reported as unavailable.
    pub(crate) fn available(&mut self) {
        if self.outage.take().is_some() {
            self.events.push_back(RegistryEvent::Available);
        }
    }

    /// Reports that etcd is unavailable, once per outage and again when etcd itself gives another reason, and backs off.
    pub(crate) fn unavailable(&mut self, reason: &BoxError) {
        tracing::debug!(%reason, failures = self.failures, "the watch of the leases failed");
        let refusals = refusals(reason);
        let is_new = match &self.outage {
            Some(outage) => refusals.is_some() && outage.refusals != refusals,
            None => true,
        };
        if is_new {
            self.events.push_back(RegistryEvent::Unavailable(reason.to_string()));
            self.outage = Some(Outage { refusals });
        }
        self.back_off();
    }

    /// Sets the pause before the next step, which grows with the number of failures.
    pub(crate) fn back_off(&mut self) {
        self.pause = Some(BACKOFF.delay(self.failures, fastrand::f64()));
        self.failures = self.failures.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd::MemberErrors;

    #[test]
    fn an_outage_and_its_end_are_reported_once() {
        let mut queue = EventQueue::default();
        queue.unavailable(&"away".into());
        assert!(queue.take_pause().is_some_and(|pause| pause <= Duration::from_millis(100)));
        queue.unavailable(&"still away".into());
        assert!(queue.take_pause().is_some_and(|pause| pause > Duration::from_millis(100)));
        assert!(matches!(queue.pop(), Some(RegistryEvent::Unavailable(reason)) if reason == "away"));
        assert!(queue.pop().is_none());
        queue.available();
        queue.available();
        assert!(matches!(queue.pop(), Some(RegistryEvent::Available)));
        assert!(queue.pop().is_none() && queue.take_pause().is_none());
        queue.reset_backoff();
        queue.back_off();
        assert!(queue.take_pause().is_some_and(|pause| pause <= Duration::from_millis(100)));
    }

    #[test]
    fn a_reason_that_etcd_gives_is_reported_after_a_missing_answer() {
        let refused = |reason: &str| -> BoxError {
            let mut errors = MemberErrors::default();
            errors.refused(0, &reason.into());
            errors.into()
        };
        let mut queue = EventQueue::default();
        let reasons = ["broken pipe".into(), refused("authentication failed"), "no answer".into()];
        for reason in reasons.iter().chain([&refused("authentication failed"), &refused("no space")]) {
            queue.unavailable(reason);
        }
        let mut reported = Vec::new();
        while let Some(RegistryEvent::Unavailable(reason)) = queue.pop() {
            reported.push(reason);
        }
        assert_eq!(reported, ["broken pipe", "authentication failed", "no space"]);
    }
}
