//! Which peers the commands were run for, and which command comes next. It runs nothing and reads no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::{Backoff, ObjectFailure, PeerFailure, SubnetKey};

/// The pauses before a command that failed is run again.
const AGAIN: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(300) };

/// How often the command for a peer that left is run: what it is to remove may be gone, and then it fails for ever.
const REMOVE_ATTEMPTS: u32 = 3;

/// What the commands for a peer are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) variables: Vec<(&'static str, String)>,
    pub(crate) input: String,
}

/// Which of the two commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Task {
    /// For a peer that left, or that was told otherwise before.
    Remove,
    /// For a peer that came.
    Add,
}

/// A command to be run for a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) subnet: SubnetKey,
    pub(crate) task: Task,
    pub(crate) told: Arc<Told>,
}

/// What is known of every peer.
#[derive(Debug, Default)]
pub(crate) struct Ledger(BTreeMap<SubnetKey, Entry>);

#[derive(Debug, Default)]
struct Entry {
    /// What it should be told; nothing if there is no such peer.
    wanted: Option<Arc<Told>>,
    /// What the last command told it that is not undone.
    last: Option<Arc<Told>>,
    /// Whether that one did well.
    is_done: bool,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Failure {
    task: Task,
    reason: String,
    attempts: u32,
    again: Instant,
}

impl Entry {
    fn next(&self) -> Option<(Task, &Arc<Told>)> {
        match (&self.wanted, &self.last) {
            (Some(wanted), None) => Some((Task::Add, wanted)),
            (Some(wanted), Some(last)) if wanted == last => {
                Some((Task::Add, wanted)).filter(|_| !self.is_done)
            }
            (_, Some(last)) => Some((Task::Remove, last)),
            (None, None) => None,
        }
    }
}

impl Ledger {
    /// Takes in what a peer should be told; with nothing, that there is no such peer.
    pub(crate) fn want(&mut self, subnet: SubnetKey, told: Option<Told>) {
        if told.is_none() && !self.0.contains_key(&subnet) {
            return;
        }
        let entry = self.0.entry(subnet).or_default();
        if entry.wanted.as_deref() != told.as_ref() {
            entry.wanted = told.map(Arc::new);
            // It is another matter now.
            entry.failure = None;
        }
        self.forget(&subnet);
    }

    /// Takes in that there are no other peers than these.
    pub(crate) fn want_only(&mut self, subnets: &BTreeSet<SubnetKey>) {
        let others: Vec<_> = self.0.keys().filter(|subnet| !subnets.contains(subnet)).copied().collect();
        others.into_iter().for_each(|subnet| self.want(subnet, None));
    }

    /// Returns what is to be run now, in this order: first what makes room.
    pub(crate) fn due(&self, now: Instant) -> Vec<Job> {
        let due = self.0.iter().filter(|(_, entry)| entry.failure.as_ref().is_none_or(|it| it.again <= now));
        let job = |(subnet, entry): (&SubnetKey, &Entry)| {
            let (task, told) = entry.next()?;
            Some(Job { subnet: *subnet, task, told: Arc::clone(told) })
        };
        let mut jobs: Vec<Job> = due.filter_map(job).collect();
        jobs.sort_by_key(|job| job.task);
        jobs
    }

    /// Takes in how a command ended. Returns why it will not be run again, if that is not because it did well.
    pub(crate) fn ended(&mut self, job: Job, result: Result<(), String>, now: Instant) -> Option<String> {
        let entry = self.0.entry(job.subnet).or_default();
        if job.task == Task::Add {
            // Also one that failed may have done a part of it.
            entry.last = Some(job.told);
            entry.is_done = result.is_ok();
        }
        let mut given_up = None;
        let before = entry.failure.take().filter(|failure| failure.task == job.task);
        match result {
            Ok(()) if job.task == Task::Remove => entry.last = None,
            Ok(()) => {}
            Err(reason) => {
                let attempts = before.map_or(0, |failure| failure.attempts) + 1;
                if job.task == Task::Remove && (entry.wanted.is_some() || attempts == REMOVE_ATTEMPTS) {
                    entry.last = None;
                    given_up = Some(reason);
                } else {
                    let again = now + AGAIN.delay(attempts - 1, 0.0);
                    entry.failure = Some(Failure { task: job.task, reason, attempts, again });
                }
            }
        }
        // What comes next may be something else, which has not failed.
        let next = entry.next().map(|(task, _)| task);
        entry.failure = entry.failure.take().filter(|failure| Some(failure.task) == next);
        self.forget(&job.subnet);
        given_up
    }

    /// Returns what failed and will be run again.
    pub(crate) fn failed(&self) -> Vec<ObjectFailure> {
        let describe = |(subnet, failure): (&SubnetKey, &Failure)| {
            ObjectFailure::new(describe(failure.task, subnet), failure.reason.clone())
        };
        self.failures().map(describe).collect()
    }

    /// Returns the peers for whom a command failed.
    pub(crate) fn pending(&self) -> Vec<PeerFailure> {
        let waiting = self.failures().filter(|(_, failure)| failure.task == Task::Add);
        let describe = |(peer, failure): (&SubnetKey, &Failure)| {
            PeerFailure::new(*peer, format!("SubnetAddCommand: {}", failure.reason))
        };
        waiting.map(describe).collect()
    }

    fn failures(&self) -> impl Iterator<Item = (&SubnetKey, &Failure)> {
        self.0.iter().filter_map(|(subnet, entry)| Some((subnet, entry.failure.as_ref()?)))
    }

    /// Returns how long until the first of these is to be run again. One whose time has come runs or is about to, and
    /// tells by itself when it ends.
    pub(crate) fn retry_in(&self, now: Instant) -> Option<Duration> {
        let again = self.0.values().filter_map(|entry| Some(entry.failure.as_ref()?.again));
        again.filter(|again| *again > now).min().map(|again| again - now)
    }

    /// Returns what would undo everything.
    pub(crate) fn undo(&self) -> Vec<Job> {
        let told = self.0.iter().filter_map(|(subnet, entry)| Some((subnet, entry.last.clone()?)));
        told.map(|(subnet, told)| Job { subnet: *subnet, task: Task::Remove, told }).collect()
    }

    fn forget(&mut self, subnet: &SubnetKey) {
        if self.0.get(subnet).is_some_and(|entry| entry.wanted.is_none() && entry.last.is_none()) {
            self.0.remove(subnet);
        }
    }
}

/// Names a command that is run for a peer.
pub(crate) fn describe(task: Task, subnet: &SubnetKey) -> String {
    let command = match task {
        Task::Remove => "SubnetRemoveCommand",
        Task::Add => "SubnetAddCommand",
    };
    let nets: Vec<String> = subnet.nets().map(|net| net.to_string()).collect();
    format!("{command} for {}", nets.join(" "))
}

#[cfg(test)]
mod tests;
