//! Keeping a lease.
//!
//! ```text
//!             a third of the time to live, on a clock that goes on in suspend
//!   Waiting ───────────────────────────────▶ renew ──yes──▶ Renewed, Waiting
//!      ▲  ▲                                    │ │
//!      │  └───────── Trouble, a pause ◀─no answer │ changed: list, and look who wrote it
//!      │                                          ▼
//!      └── Disputed, this host's all the same ◀── whose record? ──nobody's or another host's──▶ Lost
//! ```
//!
//! What the watch hears of the own record is looked at in the same way, at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::{
    KeepEvent, Lease, LeaseMatch, RegistryError, SubnetRegistry, Term, chain, renew_after, renew_before,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::watch;

use super::acquire::name;
use super::peers::{OwnRecord, Sign};
use super::{Holder, Shared};
use crate::clock::sleep_until;

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
    /// When the lease was acquired or last renewed.
    renewed: Duration,
    untold: VecDeque<KeepEvent>,
}

/// Who keeps the lease.
enum Verdict {
    /// This host, and what there is to tell about it if the record says something else than it should.
    Kept(String),
    /// Another host, and why.
    Lost(String),
}

/// When to act, by the manager's clock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    /// At the next renewal.
    At(Duration),
    /// Soon, to make a record that somebody else wrote say and last what it should.
    Soon(Duration),
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
            renewed: Duration::ZERO,
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
            let clock = &*self.shared.options.clock;
            let due = async {
                match at {
                    Some(at) => sleep_until(clock, at).await,
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
        self.renewed = self.now();
        if self.own.term == Term::Permanent {
            self.due = Due::Never;
            self.untold.push_back(KeepEvent::Permanent);
            return;
        }
        let granted = self.shared.state().granted;
        let chance = self.shared.chance();
        let pause = match self.shared.options.renew_margin {
            Some(margin) => renew_before(granted, margin, chance),
            None => renew_after(granted, chance),
        };
        self.due = Due::At(self.now() + pause);
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
        let Some(news) = news.filter(|news| news.subnet == self.own.subnet) else {
            return;
        };
        let is_own_write = news.lease.is_some() && news.revision == self.own.revision;
        match (news.lease, news.sign) {
            (lease, sign) if news.revision > self.own.revision || sign == Sign::Undone => match lease {
                Some(lease) => self.see(&lease),
                None => self.lose(format!("the lease of {} was removed or ran out", self.own.subnet)),
            },
            // A renewal compares the revision, so it tells.
            (_, Sign::Doubtful) if !is_own_write => self.due = Due::Soon(self.now()),
            _ => {}
        }
    }

    /// Looks at a record that somebody else wrote.
    fn see(&mut self, lease: &Lease) {
        match self.judge(lease) {
            Verdict::Lost(reason) => return self.lose(reason),
            Verdict::Kept(dispute) => {
                self.overwritten = lease.attrs != self.own.attrs;
                if self.overwritten {
                    self.untold.push_back(KeepEvent::Disputed(dispute));
                }
            }
        }
        let was = std::mem::replace(&mut self.own.term, lease.term);
        self.note(lease.revision, lease.term);
        if !self.overwritten && lease.term == Term::Permanent {
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
        self.due = Due::Soon(self.now() + pause);
    }

    /// Decides who keeps the lease when somebody else wrote its record.
    ///
    /// | the record names | then |
    /// |---|---|
    /// | the own address, and the own id or none | another daemon of this host wrote it, such as upstream's: put it right |
    /// | the own address and another id, or the own id at another address | two hosts have one address, or one id: whoever had the lease first keeps it |
    /// | another host | it is lost |
    ///
    /// Of two hosts that have one address or one id, the later one cannot know of the earlier one when it takes its
    /// lease: that may be its own, from before it moved or lost its id. The earlier one puts the record right, which
    /// shows the later one that both live. It gives up, and takes another subnet. A host that was away for longer than
    /// its lease lasts is the later one of the two.
    fn judge(&self, lease: &Lease) -> Verdict {
        let (subnet, theirs, own) = (lease.subnet, Holder::of(&lease.attrs), Holder::of(&self.own.attrs));
        let Some(tie) = lease.tie(&own.public, own.node) else {
            return Verdict::Lost(format!("the lease of {subnet} was overwritten by {}", theirs.public));
        };
        let has_moved = tie == LeaseMatch::Id && !lease.is_held_by(&own.public);
        if !has_moved && tie != LeaseMatch::AddressOfOtherId {
            let (subnet, ip) = (name(&subnet), own.public);
            return Verdict::Kept(format!(
                "Lease ({subnet}) was rewritten by somebody else under the current IP ({ip})"
            ));
        }
        let id = |holder: Holder| holder.node.map_or_else(|| "none".to_owned(), |id| id.to_string());
        let clash = if has_moved {
            format!("two hosts have the node id {}, {} and {}", id(own), own.public, theirs.public)
        } else {
            let (ip, ours, theirs) = (own.public, id(own), id(theirs));
            format!(
                "two hosts have the IP {ip}, of node ids {ours} and {theirs}; give each its own, see -public-ip"
            )
        };
        let is_overdue = self.is_overdue();
        let mut state = self.shared.state();
        if state.taken_from != Some(theirs) && !is_overdue {
            return Verdict::Kept(format!("Lease ({}) was overwritten: {clash}", name(&subnet)));
        }
        if !has_moved {
            state.others.extend(theirs.node);
        } else if let Some(identity) = &self.shared.options.identity {
            identity.renew();
        }
        Verdict::Lost(format!("the lease of {subnet} is held by another host: {clash}"))
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
        let at = self.now() + retry_in;
        self.due = match self.due {
            Due::Soon(_) => Due::Soon(at),
            Due::At(_) | Due::Never | Due::Lost => Due::At(at),
        };
        self.untold.push_back(KeepEvent::RenewalFailed { reason, retry_in });
    }

    /// Returns the pause after some failures, never so long that several more attempts do not fit into the lease.
    fn pause(&self, failures: u32) -> Duration {
        let chance = self.shared.chance();
        let pause = self.shared.options.retry.delay(failures, chance);
        let granted = self.shared.state().granted;
        let left = self.shared.options.renew_margin.unwrap_or(granted);
        pause.min(granted / 10).min(left / 4)
    }

    fn now(&self) -> Duration {
        self.shared.options.clock.now()
    }

    /// Tells whether the lease would be over by now if nobody had renewed it.
    fn is_overdue(&self) -> bool {
        let lasts = self.renewed.saturating_add(self.shared.state().granted);
        self.own.term == Term::Limited && self.now() > lasts
    }

    fn lose(&mut self, reason: String) {
        self.due = Due::Lost;
        self.untold.push_back(KeepEvent::Lost(reason));
    }
}
