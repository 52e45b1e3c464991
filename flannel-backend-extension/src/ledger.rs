//! Tracks for which peers commands have run and which command is next. It runs nothing and reads no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::{Backoff, ObjectFailure, PeerFailure, SubnetKey};

/// The backoff before a failed command runs again.
const AGAIN: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(300) };

/// The number of attempts of `SubnetRemoveCommand`: it fails for ever if the object to remove no longer exists.
const REMOVE_ATTEMPTS: u32 = 3;

/// The environment and standard input of the commands for a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommandInput {
    pub(crate) variables: Vec<(&'static str, String)>,
    pub(crate) stdin: String,
}

/// The kind of a command for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Task {
    /// `SubnetRemoveCommand`, for a peer that left or whose input changed.
    Remove,
    /// `SubnetAddCommand`, for a peer that joined.
    Add,
}

/// A command to run for a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) subnet: SubnetKey,
    pub(crate) task: Task,
    pub(crate) input: Arc<CommandInput>,
}

/// The desired and the applied input of each peer.
#[derive(Debug, Default)]
pub(crate) struct Ledger(BTreeMap<SubnetKey, Entry>);

#[derive(Debug, Default)]
struct Entry {
    /// The input that the peer's lease asks for; `None` if the peer left.
    desired: Option<Arc<CommandInput>>,
    /// The input of the last `SubnetAddCommand` that has not been undone.
    applied: Option<Arc<CommandInput>>,
    /// Whether that command succeeded.
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
    fn next(&self) -> Option<(Task, &Arc<CommandInput>)> {
        match (&self.desired, &self.applied) {
            (Some(desired), None) => Some((Task::Add, desired)),
            (Some(desired), Some(applied)) if desired == applied => {
                Some((Task::Add, desired)).filter(|_| !self.is_done)
            }
            (_, Some(applied)) => Some((Task::Remove, applied)),
            (None, None) => None,
        }
    }
}

impl Ledger {
    /// Sets the desired input of a peer; `None` if the peer left.
    pub(crate) fn set_desired(&mut self, subnet: SubnetKey, input: Option<CommandInput>) {
        if input.is_none() && !self.0.contains_key(&subnet) {
            return;
        }
        let entry = self.0.entry(subnet).or_default();
        if entry.desired.as_deref() != input.as_ref() {
            entry.desired = input.map(Arc::new);
            entry.failure = None;
        }
        self.prune(&subnet);
    }

    /// Marks all other peers as having left.
    pub(crate) fn retain(&mut self, subnets: &BTreeSet<SubnetKey>) {
        let others: Vec<_> = self.0.keys().filter(|subnet| !subnets.contains(subnet)).copied().collect();
        others.into_iter().for_each(|subnet| self.set_desired(subnet, None));
    }

    /// Returns the commands that are due, removals first.
    pub(crate) fn due(&self, now: Instant) -> Vec<Job> {
        let due = self.0.iter().filter(|(_, entry)| entry.failure.as_ref().is_none_or(|it| it.again <= now));
        let job = |(subnet, entry): (&SubnetKey, &Entry)| {
            let (task, input) = entry.next()?;
            Some(Job { subnet: *subnet, task, input: Arc::clone(input) })
        };
        let mut jobs: Vec<Job> = due.filter_map(job).collect();
        jobs.sort_by_key(|job| job.task);
        jobs
    }

    /// Records the result of a command. Returns the failure if the command failed and won't run again.
    pub(crate) fn ended(&mut self, job: Job, result: Result<(), String>, now: Instant) -> Option<String> {
        let entry = self.0.entry(job.subnet).or_default();
        if job.task == Task::Add {
            // A failed command may have done part of its work.
            entry.applied = Some(job.input);
            entry.is_done = result.is_ok();
        }
        let mut given_up = None;
        let before = entry.failure.take().filter(|failure| failure.task == job.task);
        match result {
            Ok(()) if job.task == Task::Remove => entry.applied = None,
            Ok(()) => {}
            Err(reason) => {
                let attempts = before.map_or(0, |failure| failure.attempts) + 1;
                if job.task == Task::Remove && (entry.desired.is_some() || attempts == REMOVE_ATTEMPTS) {
                    entry.applied = None;
                    given_up = Some(reason);
                } else {
                    let again = now + AGAIN.delay(attempts - 1, 0.0);
                    entry.failure = Some(Failure { task: job.task, reason, attempts, again });
                }
            }
        }
        // The failure belongs to this task only; the next one may differ.
        let next = entry.next().map(|(task, _)| task);
        entry.failure = entry.failure.take().filter(|failure| Some(failure.task) == next);
        self.prune(&job.subnet);
        given_up
    }

    /// Returns the failed commands that will run again.
    pub(crate) fn failed(&self) -> Vec<ObjectFailure> {
        let describe = |(subnet, failure): (&SubnetKey, &Failure)| {
            ObjectFailure::new(describe(failure.task, subnet), failure.reason.clone())
        };
        self.failures().map(describe).collect()
    }

    /// Returns the peers whose `SubnetAddCommand` failed.
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

    /// Returns the time until the next retry. A command that is already due is running or queued, and its end triggers a
    /// pass.
    pub(crate) fn retry_in(&self, now: Instant) -> Option<Duration> {
        let again = self.0.values().filter_map(|entry| Some(entry.failure.as_ref()?.again));
        again.filter(|again| *again > now).min().map(|again| again - now)
    }

    /// Returns the commands that undo everything.
    pub(crate) fn undo(&self) -> Vec<Job> {
        let applied = self.0.iter().filter_map(|(subnet, entry)| Some((subnet, entry.applied.clone()?)));
        applied.map(|(subnet, input)| Job { subnet: *subnet, task: Task::Remove, input }).collect()
    }

    fn prune(&mut self, subnet: &SubnetKey) {
        if self.0.get(subnet).is_some_and(|entry| entry.desired.is_none() && entry.applied.is_none()) {
            self.0.remove(subnet);
        }
    }
}

/// Names a command and its peer.
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
