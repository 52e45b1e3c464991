//! Renewal of a lease.
//!
//! ```text
//!             a third of the TTL, on a clock that includes suspend
//!   Waiting ───────────────────────────────▶ renew ──ok──▶ Renewed, Waiting
//!      ▲  ▲                                    │ │
//!      │  └──────── RenewalFailed, backoff ◀─error  │ changed: list, and check the owner
//!      │                                          ▼
//!      └──────── Disputed ◀── this host ── owner? ── none, or another host ──▶ Lost
//! ```
//!
//! A change of the own record that the watch sees is checked in the same way, at once.

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
use super::peer_view::{OwnRecord, RevisionHint};
use super::shared::{LeaseOwner, Shared};
use crate::clock::sleep_until;

pub(super) struct LeaseRenewal<R> {
    shared: Arc<Shared<R>>,
    /// The lease with the attributes that this host wants, and the revision and term of its record.
    own: Lease,
    own_record: watch::Receiver<Option<OwnRecord>>,
    schedule: Schedule,
    /// Whether the record has other attributes than wanted, so that the next renewal writes it again.
    overwritten: bool,
    /// The number of writes by others since the last regular renewal. Each delays the next rewrite, so that two daemons
    /// that dispute a record write it slowly.
    disputes: u32,
    failures: u32,
    /// When the lease was acquired or last renewed, by the manager's clock.
    renewed: Duration,
    pending: VecDeque<KeepEvent>,
}

/// The owner of a lease after another writer changed its record.
enum Ownership {
    /// This host; the text describes the dispute if the attributes differ.
    Kept(String),
    /// Another host, with the reason.
    Lost(String),
}

/// The next write, by the manager's clock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Schedule {
    /// At the next renewal.
    At(Duration),
    /// Soon, to restore a record that another writer changed.
    Soon(Duration),
    /// Never, unless the record changes: the lease is a reservation.
    Never,
    /// The lease is lost.
    Lost,
}

impl<R: SubnetRegistry> LeaseRenewal<R> {
    pub(super) fn stream(shared: Arc<Shared<R>>, own: Lease) -> BoxStream<'static, KeepEvent> {
        let mut own_record = shared.own_record.subscribe();
        // Changes since the acquisition count.
        own_record.mark_changed();
        let mut renewal = Self {
            shared,
            own,
            own_record,
            schedule: Schedule::Never,
            overwritten: false,
            disputes: 0,
            failures: 0,
            renewed: Duration::ZERO,
            pending: VecDeque::new(),
        };
        renewal.schedule_renewal();
        let next = |mut renewal: Self| async { renewal.next().await.map(|event| (event, renewal)) };
        stream::unfold(renewal, next).boxed()
    }

    async fn next(&mut self) -> Option<KeepEvent> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            let at = match self.schedule {
                Schedule::Lost => return None,
                Schedule::At(at) | Schedule::Soon(at) => Some(at),
                Schedule::Never => None,
            };
            let clock = &*self.shared.options.clock;
            let due = async {
                match at {
                    Some(at) => sleep_until(clock, at).await,
                    None => std::future::pending().await,
                }
            };
            // This stream holds the sender.
            tokio::select! {
                biased;
                _ = self.own_record.changed() => self.take_own_record(),
                () = due => self.renew().await,
            }
        }
    }

    /// Schedules the next renewal, unless the lease is a reservation.
    fn schedule_renewal(&mut self) {
        self.failures = 0;
        self.renewed = self.now();
        if self.own.term == Term::Permanent {
            self.schedule = Schedule::Never;
            self.pending.push_back(KeepEvent::Permanent);
            return;
        }
        let granted = self.shared.state().granted;
        let random = self.shared.random();
        let pause = match self.shared.options.renew_margin {
            Some(margin) => renew_before(granted, margin, random),
            None => renew_after(granted, random),
        };
        self.schedule = Schedule::At(self.now() + pause);
        self.pending.push_back(KeepEvent::Waiting(pause));
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
                if matches!(self.schedule, Schedule::At(_)) {
                    self.disputes = 0;
                }
                self.set_record(lease.revision, lease.term);
                self.shared.set_granted(granted);
                self.pending.push_back(KeepEvent::Renewed(granted));
                self.schedule_renewal();
            }
            Err(error @ RegistryError::Gone(_)) => self.lose(chain(&error)),
            Err(RegistryError::Changed(_)) => self.read_back().await,
            Err(error) => self.renewal_failed(chain(&error)),
        }
    }

    /// Reads the record to find out who changed it.
    async fn read_back(&mut self) {
        let subnet = self.own.subnet;
        let snapshot = match self.shared.registry.list().await {
            Ok(snapshot) => snapshot,
            Err(error) => return self.renewal_failed(chain(&error)),
        };
        if let Some(lease) = snapshot.leases.into_iter().find(|lease| lease.subnet == subnet) {
            self.check_owner(&lease);
        } else if let Some(bad) = snapshot.bad.iter().find(|bad| bad.subnet == Some(subnet)) {
            // No host can take the subnet meanwhile, and the peers keep the last valid record.
            self.renewal_failed(bad.to_string());
        } else {
            self.lose(format!("the lease of {subnet} is gone"));
        }
    }

    /// Handles a change of the own record that the watch saw.
    fn take_own_record(&mut self) {
        self.own_record.mark_unchanged();
        let mut record = None;
        // Taken, so that a rollback is handled once.
        self.shared.own_record.send_if_modified(|pending| {
            record = pending.take();
            false
        });
        let Some(record) = record.filter(|record| record.subnet == self.own.subnet) else {
            return;
        };
        let is_own_write = record.lease.is_some() && record.revision == self.own.revision;
        let is_newer = record.revision > self.own.revision;
        match (record.lease, record.hint) {
            (lease, hint) if is_newer || hint == RevisionHint::RolledBack => match lease {
                Some(lease) => self.check_owner(&lease),
                None => self.lose(format!("the lease of {} was removed or expired", self.own.subnet)),
            },
            // A renewal compares the revision and so finds out.
            (_, RevisionHint::Uncertain) if !is_own_write => self.schedule = Schedule::Soon(self.now()),
            _ => {}
        }
    }

    /// Handles a record that another writer changed.
    fn check_owner(&mut self, lease: &Lease) {
        match self.ownership(lease) {
            Ownership::Lost(reason) => return self.lose(reason),
            Ownership::Kept(dispute) => {
                self.overwritten = lease.attrs != self.own.attrs;
                if self.overwritten {
                    self.pending.push_back(KeepEvent::Disputed(dispute));
                }
            }
        }
        let was = std::mem::replace(&mut self.own.term, lease.term);
        self.set_record(lease.revision, lease.term);
        if !self.overwritten && lease.term == Term::Permanent {
            self.schedule = Schedule::Never;
            if was != Term::Permanent {
                self.schedule_renewal();
            }
            return;
        }
        let pause = match self.disputes {
            0 => Duration::ZERO,
            disputes => self.pause(disputes - 1),
        };
        self.disputes = self.disputes.saturating_add(1);
        self.schedule = Schedule::Soon(self.now() + pause);
    }

    /// Decides who owns the lease after another writer changed its record.
    ///
    /// | address and id in the record | consequence |
    /// |---|---|
    /// | own address, own id or none | written by another daemon on this host, such as upstream flannel: rewrite it |
    /// | own address and another id, or own id at another address | two hosts share an address or id: the first owner keeps the lease |
    /// | another address and id | the lease is lost |
    ///
    /// Of two hosts with the same address or id, the later one cannot know about the first when it reuses the lease: it
    /// may be its own, from before its address changed or it lost its id. The first host rewrites the record, which shows
    /// the later one that both are running. The later one gives up and takes another subnet. A host that was away for
    /// longer than the TTL counts as the later one.
    fn ownership(&self, lease: &Lease) -> Ownership {
        let (subnet, theirs, own) =
            (lease.subnet, LeaseOwner::of(&lease.attrs), LeaseOwner::of(&self.own.attrs));
        let Some(matched) = lease.match_host(&own.public, own.node) else {
            return Ownership::Lost(format!("the lease of {subnet} was overwritten by {}", theirs.public));
        };
        let has_moved = matched == LeaseMatch::Id && !lease.is_held_by(&own.public);
        if !has_moved && matched != LeaseMatch::AddressOfOtherId {
            let (subnet, ip) = (name(&subnet), own.public);
            return Ownership::Kept(format!(
                "Lease ({subnet}) was rewritten by another daemon for the current IP ({ip})"
            ));
        }
        let id = |owner: LeaseOwner| owner.node.map_or_else(|| "none".to_owned(), |id| id.to_string());
        let clash = if has_moved {
            format!("two hosts have the node id {}: {} and {}", id(own), own.public, theirs.public)
        } else {
            let (ip, ours, theirs) = (own.public, id(own), id(theirs));
            format!(
                "two hosts have the IP {ip}, with node ids {ours} and {theirs}; give each host its own address, see -public-ip"
            )
        };
        let is_overdue = self.is_overdue();
        let mut state = self.shared.state();
        if state.taken_from != Some(theirs) && !is_overdue {
            return Ownership::Kept(format!("Lease ({}) was overwritten: {clash}", name(&subnet)));
        }
        if !has_moved {
            state.others.extend(theirs.node);
        } else if let Some(identity) = &self.shared.options.identity {
            identity.renew();
        }
        Ownership::Lost(format!("the lease of {subnet} is held by another host: {clash}"))
    }

    fn set_record(&mut self, revision: flannel_core::Revision, term: Term) {
        self.own.revision = revision;
        self.own.term = term;
        let mut state = self.shared.state();
        if let Some(held) = &mut state.held
            && held.subnet == self.own.subnet
        {
            (held.revision, held.term) = (revision, term);
        }
    }

    fn renewal_failed(&mut self, reason: String) {
        let retry_in = self.pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        let at = self.now() + retry_in;
        self.schedule = match self.schedule {
            Schedule::Soon(_) => Schedule::Soon(at),
            Schedule::At(_) | Schedule::Never | Schedule::Lost => Schedule::At(at),
        };
        self.pending.push_back(KeepEvent::RenewalFailed { reason, retry_in });
    }

    /// Returns the backoff after some failures, short enough for several more attempts before the lease expires.
    fn pause(&self, failures: u32) -> Duration {
        let random = self.shared.random();
        let pause = self.shared.options.retry.delay(failures, random);
        let granted = self.shared.state().granted;
        let left = self.shared.options.renew_margin.unwrap_or(granted);
        pause.min(granted / 10).min(left / 4)
    }

    fn now(&self) -> Duration {
        self.shared.options.clock.now()
    }

    /// Reports whether the lease would have expired by now without a renewal by another writer.
    fn is_overdue(&self) -> bool {
        let expires = self.renewed.saturating_add(self.shared.state().granted);
        self.own.term == Term::Limited && self.now() > expires
    }

    fn lose(&mut self, reason: String) {
        self.schedule = Schedule::Lost;
        self.pending.push_back(KeepEvent::Lost(reason));
    }
}
