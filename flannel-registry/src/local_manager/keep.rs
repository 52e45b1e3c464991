//! Keeping a lease.
//!
//! ```text
//!             a third of the time to live
//!   Waiting ───────────────────────────────▶ renew ──yes──▶ Renewed, Waiting
//!      ▲  ▲                                    │ │
//!      │  └───────── Trouble, a pause ◀─no answer │ changed: list, and look who wrote it
//!      │                                          ▼
//!      └──────── this host's other daemon ◀── whose record? ──nobody's or another host's──▶ Lost
//! ```
//!
//! What the watch hears of the own record is looked at in the same way, at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::{KeepEvent, Lease, RegistryError, SubnetRegistry, Term, chain, renew_after};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Shared;
use super::acquire::name;
use super::peers::OwnRecord;

pub(super) struct Keep<R> {
    shared: Arc<Shared<R>>,
    /// The lease as this host wants it, with the revision and term that its record has.
    own: Lease,
    news: watch::Receiver<Option<OwnRecord>>,
    due: Due,
    /// Whether the record says something else than the lease should, so that the next renewal writes it again.
    overwritten: bool,
    /// How many times somebody else wrote the record since the last regular renewal. Each makes the answer slower, so
    /// that two daemons that fight over a record do so slowly.
    disputes: u32,
    failures: u32,
    untold: VecDeque<KeepEvent>,
}

/// When to act.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    /// At the next renewal.
    At(Instant),
    /// Soon, to make a record that somebody else wrote say and last what it should.
    Soon(Instant),
    /// Only when something is heard: the lease is a reservation.
    Never,
    /// Never again: the lease is lost.
    Lost,
}

impl<R: SubnetRegistry> Keep<R> {
    pub(super) fn stream(shared: Arc<Shared<R>>, own: Lease) -> BoxStream<'static, KeepEvent> {
        let mut news = shared.own.subscribe();
        // What was heard since the lease was acquired counts.
        news.mark_changed();
        let mut keep = Self {
            shared,
            own,
            news,
            due: Due::Never,
            overwritten: false,
            disputes: 0,
            failures: 0,
            untold: VecDeque::new(),
        };
        keep.wait();
        stream::unfold(keep, |mut keep| async { keep.next().await.map(|event| (event, keep)) }).boxed()
    }

    async fn next(&mut self) -> Option<KeepEvent> {
        loop {
            if let Some(event) = self.untold.pop_front() {
                return Some(event);
            }
            let at = match self.due {
                Due::Lost => return None,
                Due::At(at) | Due::Soon(at) => Some(at),
                Due::Never => None,
            };
            let due = async {
                match at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // The sender cannot be gone: it is shared with this stream.
            tokio::select! {
                biased;
                _ = self.news.changed() => self.hear(),
                () = due => self.renew().await,
            }
        }
    }

    /// Waits for the next renewal, if there is to be one.
    fn wait(&mut self) {
        self.failures = 0;
        if self.own.term == Term::Permanent {
            self.due = Due::Never;
            self.untold.push_back(KeepEvent::Permanent);
            return;
        }
        let granted = self.shared.state().granted;
        let pause = renew_after(granted, self.shared.chance());
        self.due = Due::At(Instant::now() + pause);
        self.untold.push_back(KeepEvent::Waiting(pause));
    }

    async fn renew(&mut self) {
        let ttl = self.shared.options.ttl;
        let registry = &self.shared.registry;
        let result = if self.overwritten {
            registry.update(&self.own, &self.own.attrs, ttl).await.map(|lease| (lease, ttl))
        } else {
            registry.renew(&self.own, ttl).await.map(|granted| (self.own.clone(), granted))
        };
        match result {
            Ok((lease, granted)) => {
                self.overwritten = false;
                if matches!(self.due, Due::At(_)) {
                    self.disputes = 0;
                }
                self.note(lease.revision, lease.term);
                self.shared.granted(granted);
                self.untold.push_back(KeepEvent::Renewed(granted));
                self.wait();
            }
            Err(error @ RegistryError::Gone(_)) => self.lose(chain(&error)),
            Err(RegistryError::Changed(_)) => self.read_back().await,
            Err(error) => self.trouble(chain(&error)),
        }
    }

    /// Finds out who changed the record.
    async fn read_back(&mut self) {
        let subnet = self.own.subnet;
        let snapshot = match self.shared.registry.list().await {
            Ok(snapshot) => snapshot,
            Err(error) => return self.trouble(chain(&error)),
        };
        if let Some(lease) = snapshot.leases.into_iter().find(|lease| lease.subnet == subnet) {
            self.see(&lease);
        } else if let Some(bad) = snapshot.bad.iter().find(|bad| bad.subnet == Some(subnet)) {
            // Nobody can take the subnet while it is there, and the peers go on with what they knew.
            self.trouble(bad.to_string());
        } else {
            self.lose(format!("the lease of {subnet} is gone"));
        }
    }

    /// Takes in what the watch heard.
    fn hear(&mut self) {
        self.news.mark_unchanged();
        let mut news = None;
        // Taken away, so that what comes next need not repeat that the store went back.
        self.shared.own.send_if_modified(|heard| {
            news = heard.take();
            false
        });
        let is_new = |news: &OwnRecord| {
            news.subnet == self.own.subnet && (news.restored || news.revision > self.own.revision)
        };
        let Some(news) = news.filter(is_new) else {
            return;
        };
        match news.lease {
            Some(lease) => self.see(&lease),
            None => self.lose(format!("the lease of {} was removed or ran out", self.own.subnet)),
        }
    }

    /// Looks at a record that somebody else wrote.
    fn see(&mut self, lease: &Lease) {
        if !lease.is_held_by(&self.own.attrs.public) {
            let (subnet, other) = (lease.subnet, lease.attrs.public);
            return self.lose(format!("the lease of {subnet} was overwritten by {other}"));
        }
        let was = std::mem::replace(&mut self.own.term, lease.term);
        self.note(lease.revision, lease.term);
        self.overwritten = lease.attrs != self.own.attrs;
        if self.overwritten {
            let (subnet, ip) = (name(&lease.subnet), lease.attrs.public);
            tracing::warn!("Lease ({subnet}) was rewritten by somebody else under the current IP ({ip})");
        } else if lease.term == Term::Permanent {
            self.due = Due::Never;
            if was != Term::Permanent {
                self.wait();
            }
            return;
        }
        let pause = match self.disputes {
            0 => Duration::ZERO,
            disputes => self.pause(disputes - 1),
        };
        self.disputes = self.disputes.saturating_add(1);
        self.due = Due::Soon(Instant::now() + pause);
    }

    fn note(&mut self, revision: flannel_core::Revision, term: Term) {
        self.own.revision = revision;
        self.own.term = term;
        let mut state = self.shared.state();
        if let Some(held) = &mut state.held
            && held.subnet == self.own.subnet
        {
            (held.revision, held.term) = (revision, term);
        }
    }

    fn trouble(&mut self, reason: String) {
        let retry_in = self.pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        let at = Instant::now() + retry_in;
        self.due = match self.due {
            Due::Soon(_) => Due::Soon(at),
            Due::At(_) | Due::Never | Due::Lost => Due::At(at),
        };
        self.untold.push_back(KeepEvent::Trouble { reason, retry_in });
    }

    /// Returns the pause after some failures, never so long that several more attempts do not fit into the lease.
    fn pause(&self, failures: u32) -> Duration {
        let chance = self.shared.chance();
        let pause = self.shared.options.retry.delay(failures, chance);
        pause.min(self.shared.state().granted / 10)
    }

    fn lose(&mut self, reason: String) {
        self.due = Due::Lost;
        self.untold.push_back(KeepEvent::Lost(reason));
    }
}
